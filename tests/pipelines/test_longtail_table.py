"""Tests of the command that writes long-tailed tables, and of what it calls."""

import collections
import csv
import json
import os
import pathlib

import numpy as np
import PIL.Image
import programs
import pytest

from dbl_tf.statistics import LabelStatistics
from pipelines import longtail, longtail_table
from pipelines.runs.config import DataConfig

NAMES = ("dog", "ox", "traffic light")


def make_rows(num_train: int = 120):
    """Rows image, split, labels: dog in 5 of 6 train images, ox in 1 of 2, the light in 1 of 3."""
    for i in range(num_train):
        labels = [
            name for name, holds in zip(NAMES, (i % 6, i % 2, not i % 3), strict=True) if holds
        ]
        yield f"pictures/{i}.jpg", "train", labels
    yield "pictures/val.jpg", "val", ["ox"]
    yield "pictures/test.jpg", "test", ["dog", "traffic light"]
    yield "pictures/unlabeled.jpg", "test", []


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Holds `data/examples.csv` and the images that it names."""
    pictures = tmp_path / "data" / "pictures"
    pictures.mkdir(parents=True)
    lines = ["image,split,id,labels"]
    for number, (image, split, labels) in enumerate(make_rows()):
        (tmp_path / "data" / image).write_bytes(b"not looked into")
        lines.append(f"{image},{split},{number},{'|'.join(labels)}")
    (tmp_path / "data" / "examples.csv").write_text("\n".join(lines))
    return tmp_path


@pytest.fixture
def write(tmp_path):
    """`longtail_table.write` with a cache of its own and, unless told otherwise, no picture."""

    def write(examples, output_dir, **arguments):
        construction = {"max_count": 40, "picture": False}
        construction |= {
            name: arguments.pop(name)
            for name in ("max_count", "min_count", "power", "seed", "picture")
            if name in arguments
        }
        config = config_of(examples, tmp_path, **arguments)
        return longtail_table.write(config.source, config.loading, output_dir, **construction)

    return write


def config_of(path, tmp_path, **arguments):
    paths = {
        name: str(value) if isinstance(value, os.PathLike) else value
        for name, value in {"examples": path, "cache_dir": tmp_path / "cache", **arguments}.items()
    }
    return DataConfig.of(**{"dataset": "table", "check_images": "exists"} | paths)


def load(path, tmp_path, **arguments):
    return config_of(path, tmp_path, **arguments).load_data()


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_train_is_thinned_as_the_construction_says_and_other_splits_stay(folder, write):
    source = folder / "data" / "examples.csv"
    thinned = write(source, folder / "elsewhere" / "out", seed=3)
    before, after = load(source, folder), load(thinned.examples, folder)
    assert thinned.examples == str(folder / "elsewhere" / "out" / "examples.csv")
    assert after.class_names == before.class_names == NAMES

    train = before.splits["train"]
    chosen = longtail.pareto_subset(train.labels, max_count=40, seed=3)
    assert 0 < len(chosen) < len(train)
    assert after.splits["train"].files == [train.files[i] for i in chosen]
    assert (after.splits["train"].labels != train.labels[chosen]).nnz == 0
    for name in ("val", "test"):
        assert after.splits[name].files == before.splits[name].files
        assert (after.splits[name].labels != before.splits[name].labels).nnz == 0


def test_rows_keep_their_order_columns_and_cells(folder, write):
    source = folder / "data" / "examples.csv"
    written = rows_of(write(source, folder / "out").examples)
    by_id = {row["id"]: row for row in rows_of(source)}
    assert [int(row["id"]) for row in written] == sorted(int(row["id"]) for row in written)
    for row in written:
        original = by_id[row["id"]]
        assert row == original | {"image": f"../data/{original['image']}"}


def test_json_lines_stay_json_lines(folder, write):
    source = folder / "data" / "examples.jsonl"
    objects = [
        {"id": i, "image": image, "split": split, "labels": labels}
        for i, (image, split, labels) in enumerate(make_rows())
    ]
    objects[-2]["labels"] = "dog|traffic light"
    source.write_text("\n".join(map(json.dumps, objects)))
    thinned = write(source, folder / "data" / "out")
    lines = pathlib.Path(thinned.examples).read_text().splitlines()
    written = [json.loads(line) for line in lines]
    assert thinned.examples.endswith("/out/examples.jsonl")
    for row in written:
        original = objects[row["id"]]
        assert row == original | {"image": f"../{original['image']}"}
    counts = np.asarray(load(thinned.examples, folder).splits["train"].labels.sum(axis=0))
    np.testing.assert_array_equal(counts, thinned.reached.class_counts)


def test_paths_resolve_from_the_new_place_without_images_dir(folder, write):
    (folder / "lists").mkdir()
    source = folder / "lists" / "t.csv"
    rows = [f"{image},{split},{' '.join(labels[:1])}" for image, split, labels in make_rows()]
    absolute = folder / "data" / "pictures" / "val.jpg"
    rows.append(f"{absolute.with_name('absolute.jpg')},test,dog")
    absolute.with_name("absolute.jpg").write_bytes(b"x")
    source.write_text("\n".join(["image,split,labels", *rows]))
    options = {"label_separator": "none"}  # the name of the light has a blank in it
    thinned = write(source, folder / "out", images_dir=folder / "data", **options)
    assert load(thinned.examples, folder, **options).splits["val"].files == [str(absolute)]
    images = {row["image"] for row in rows_of(thinned.examples)}
    assert (
        str(absolute.with_name("absolute.jpg")) in images and "../data/pictures/val.jpg" in images
    )


def test_counts_are_those_of_the_files(folder, write):
    source = folder / "data" / "examples.csv"
    thinned = write(source, folder / "out", seed=1)

    def counted(path):
        train = (row["labels"] for row in rows_of(path) if row["split"] == "train")
        return collections.Counter(name for cell in train for name in cell.split("|") if name)

    before, after = counted(source), counted(thinned.examples)
    rows = rows_of(folder / "out" / "counts.csv")
    assert {row["class"]: int(row["count_before"]) for row in rows} == before
    assert {row["class"]: int(row["count"]) for row in rows} == after
    assert [int(row["reference"]) for row in rows] == longtail.reference_counts(
        3, max_count=40
    ).tolist()
    assert rows[0]["class"] == "dog"
    for row in rows:
        count = int(row["count"])
        assert row["group"] == ("head" if count >= 100 else "medium" if count >= 20 else "tail")


def test_summary_gives_the_published_figures(folder, write):
    source = folder / "data" / "examples.csv"
    classes = folder / "classes.txt"
    classes.write_text("\n".join([*NAMES, "yak"]))
    more = ["pictures/0.jpg,train,,dog", "pictures/val.jpg,val,,yak", "pictures/none.jpg,train,,"]
    (folder / "data" / "pictures" / "none.jpg").write_bytes(b"x")
    source.write_text("\n".join([source.read_text(), *more]))
    thinned = write(source, folder / "out", class_names=classes, max_count=110)
    before, reached = (line.split() for line in str(thinned).splitlines()[1:3])
    # Every sixth image lacks a dog, but for the first.
    assert before == ["before", "121", "101", "40", "1", "2", "0"]
    train = [row for row in rows_of(thinned.examples) if row["split"] == "train"]
    assert reached[1] == str(len({row["image"] for row in train}))
    assert "train images without labels, which are left out: 1" in str(thinned)
    assert "fewer train images than their reference: 1: 'dog'" in str(thinned)
    assert "without train images from the start: 1: 'yak'" in str(thinned)
    assert "over 3 classes" in str(thinned)


def test_rows_of_one_image_are_kept_or_left_out_together(folder, write):
    source = folder / "data" / "examples.csv"
    again = [f"./pictures/{i}.jpg,train,again,ox" for i in range(120)]
    source.write_text("\n".join([source.read_text(), *again]))
    thinned = write(source, folder / "out")
    train = [row["image"] for row in rows_of(thinned.examples) if row["split"] == "train"]
    assert set(collections.Counter(train).values()) == {2}
    labels = load(thinned.examples, folder).splits["train"].labels
    counts = LabelStatistics.from_labels(labels, NAMES).class_counts
    np.testing.assert_array_equal(counts, thinned.reached.class_counts)


def test_picture_is_drawn(folder, write):
    write(folder / "data" / "examples.csv", folder / "out", picture=True)
    assert sorted(os.listdir(folder / "out")) == ["counts.csv", "counts.png", "examples.csv"]
    with PIL.Image.open(folder / "out" / "counts.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(1 << 20)}
    # The reference and the counts reached are there, in their colors.
    assert {(0xD5, 0x5E, 0x00), (0x00, 0x72, 0xB2), (0x99, 0x99, 0x99)} <= colors


def test_same_seed_same_bytes_other_seed_other_images(folder, write):
    source = folder / "data" / "examples.csv"
    texts = [
        pathlib.Path(write(source, folder / name, seed=seed).examples).read_text()
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    ]
    assert texts[0] == texts[1] != texts[2]


def test_nothing_is_overwritten(folder, write):
    (folder / "out").mkdir()
    with pytest.raises(FileExistsError, match=r"out exists and is not overwritten"):
        write(folder / "data" / "examples.csv", folder / "out")
    assert os.listdir(folder / "out") == []


def test_nothing_is_left_of_a_writing_that_failed(folder, write, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vl_convert.vegalite_to_png", full)
    with pytest.raises(OSError, match="No space left"):
        write(folder / "data" / "examples.csv", folder / "new" / "out", picture=True)
    assert os.listdir(folder / "new") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_count": 0}, "max_count must be at least 1, got 0"),
        ({"min_count": 41}, "max_count must be at least 41, got 40"),
        ({"power": 0.0}, "power must be positive"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
    ],
)
def test_arguments_are_refused_before_the_table_is_read(folder, write, arguments, message):
    with pytest.raises(ValueError, match=message):
        write(folder / "nowhere.csv", folder / "out", **arguments)


def test_table_without_train_labels_is_refused(folder, write):
    source = folder / "data" / "t.csv"
    source.write_text("image,split,labels\npictures/0.jpg,train,\npictures/1.jpg,test,dog\n")
    with pytest.raises(ValueError, match="nothing to choose from: none of 1 examples has a label"):
        write(source, folder / "out")
    assert not (folder / "out").exists()


def test_missing_images_are_refused_or_left_out_where_asked(folder, write):
    (folder / "data" / "pictures" / "test.jpg").unlink()
    (folder / "data" / "pictures" / "1.jpg").unlink()
    source = folder / "data" / "examples.csv"
    with pytest.raises(ValueError, match=r"no such file: 2\n +line 3: '.*/1\.jpg'"):
        write(source, folder / "out")
    thinned = write(source, folder / "out", skip_bad_images=True)
    assert thinned.before.num_examples == 119
    written = {os.path.basename(row["image"]) for row in rows_of(thinned.examples)}
    assert not written & {"test.jpg", "1.jpg"} and "unlabeled.jpg" in written


def test_command_on_photographs(shared_data, tmp_path):
    examples = shared_data / "voc_subset" / "examples.csv"
    command = ["-m", "pipelines.write_longtail", f"--examples={examples}"]
    command += ["--max_count=200", f"--output_dir={tmp_path / 'out'}", f"--cache_dir={tmp_path}"]
    done = programs.run(*command)
    assert done.returncode == 0, done.stderr
    data = load(tmp_path / "out" / "examples.csv", tmp_path)
    counts = data.splits["train"].labels.sum(axis=0)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["before", "894", "447", "4", "5", "4", "6"] in lines
    groups = [(counts >= 100).sum(), ((counts >= 20) & (counts < 100)).sum(), (counts < 20).sum()]
    reached = [len(data.splits["train"]), counts.max(), counts.min(), *groups]
    assert ["reached", *map(str, reached)] in lines
    assert len(data.splits["test"]) == 1200
    assert len(rows_of(tmp_path / "out" / "counts.csv")) == 15
