"""Reading of the lists of image ids that published data sets come with."""

import csv
import pickle

import numpy as np
import pytest

from pipelines.datasets import assembly, benchmark_sets, coco_mlt, image_ids, voc_mlt

VOC_ID = voc_mlt.BENCHMARK.id_of
COCO_ID = coco_mlt.BENCHMARK.id_of


def _write(folder, content, name="img_id.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_ids_are_read_from_names_paths_and_numbers(tmp_path):
    coco = _write(
        tmp_path, "391895\n\n000000000009\r\n  train2017/000000000025.jpg \nC:\\c\\30.jpg"
    )
    assert image_ids.read(coco, COCO_ID) == [
        "000000391895",
        "000000000009",
        "000000000025",
        "000000000030",
    ]
    older = _write(tmp_path, "COCO_train2014_000000000049.jpg\n")
    assert image_ids.read(older, COCO_ID) == ["000000000049"]
    voc = _write(tmp_path, "\ufeff2008_000023\nVOC2012/JPEGImages/2008_000028.jpg\n000012.xml\n")
    assert image_ids.read(voc, VOC_ID) == ["2008_000023", "2008_000028", "000012"]


def test_a_text_list_called_pkl_is_read_as_text(tmp_path):
    path = _write(tmp_path, "2008_000023\n2008_000028\n", "img_id.pkl")
    assert image_ids.read(path, VOC_ID) == ["2008_000023", "2008_000028"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_pickles_are_refused_unopened(tmp_path, protocol, kind):
    content = pickle.dumps(kind(["2008_000023", "2008_000028", "2008_000032"]), protocol)
    path = _write(tmp_path, content, "img_id.pkl")
    with pytest.raises(image_ids.ImageIdError, match=r"img_id\.pkl begins with .* never opened"):
        image_ids.read(path, VOC_ID)


def test_repeated_ids_count_once_and_are_named(tmp_path, caplog):
    path = _write(tmp_path, "9\n25\n000000000009.jpg\n")
    assert image_ids.read(path, COCO_ID) == ["000000000009", "000000000025"]
    assert "line 3: 000000000009.jpg, as line 1" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n \n", "is empty"),
        ("2008_000023\n2008-000028\n", "1 lines hold no image id.*line 2: '2008-000028'"),
        (b"2008_000023\n\xff\xfe\n", "line 2: byte 0xff is not UTF-8"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, content, message):
    path = _write(tmp_path, content)
    with pytest.raises(image_ids.ImageIdError, match=message) as raised:
        image_ids.read(path, VOC_ID)
    assert str(path) in str(raised.value)


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(image_ids.ImageIdError, match=r"none\.txt: No such file"):
        image_ids.read(tmp_path / "none.txt", VOC_ID)


def test_unknown_ids_are_counted_and_the_first_five_named():
    wanted = [f"2008_00000{i}" for i in range(8)]
    with pytest.raises(image_ids.ImageIdError) as raised:
        image_ids.positions(wanted, ["2008_000003", "2009_000001"], path="img_id.txt")
    message = str(raised.value)
    assert "img_id.txt: 7 of its 8 ids are not among the 2 images" in message
    assert "2008_000000, 2008_000001, 2008_000002, 2008_000004, 2008_000005 and 2 more" in message


@pytest.fixture(scope="module")
def voc2012(shared_data):
    """Ids and labels of all of VOC 2012 train-val."""
    with open(shared_data / "voc_mlt" / "voc2012_trainval.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    labels = [[voc_mlt.CLASSES.index(name) for name in row["labels"].split()] for row in rows]
    codes = np.array([code for row in labels for code in row])
    num_labels = np.array([len(row) for row in labels])
    return [row["image_id"] for row in rows], assembly.label_matrix(codes, num_labels, 20)


def test_the_published_list_chooses_voc_mlt(tmp_path, voc2012, shared_data, voc_mlt_labels):
    ids, labels = voc2012
    with open(shared_data / "voc_mlt" / "voc_mlt_train.csv", newline="") as file:
        published = [row["image_id"] for row in csv.DictReader(file)]
    path = _write(tmp_path, "\n".join(reversed(published)))
    chosen = image_ids.positions(image_ids.read(path, VOC_ID), ids, path=path)
    assert [ids[i] for i in chosen] == sorted(published)
    assert len(chosen) == 1142
    counts = labels[chosen].sum(axis=0)
    np.testing.assert_array_equal(counts, voc_mlt_labels.sum(axis=0))
    assert (counts.min(), counts.max()) == (4, 775)


def test_without_a_list_the_draw_follows_the_seed(voc2012):
    _, labels = voc2012
    first, again, other = (
        benchmark_sets.draw_train(voc_mlt.BENCHMARK, labels, seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    counts = labels[first].sum(axis=0)
    assert 700 < counts.max() <= 800 and counts.min() == 4
