"""Data sets of TensorFlow Datasets with labels of every kind, prepared by TFDS from photographs."""

import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from pipelines import data_summary, images
from pipelines.datasets import image_checks, tfds_source
from pipelines.runs.config import DataConfig

CLASSES = ("person", "dog", "chair", "cat", "train")  # not sorted: TFDS has an order of its own
NUM_TRAIN, NUM_TEST = 24, 8


class LabeledPhotographs(tfds.core.GeneratorBasedBuilder):
    """Photographs whose labels are given in every form."""

    VERSION = tfds.core.Version("1.0.0")
    rows: list  # (path, labels), set by the fixture

    def _info(self):
        names = tfds.features.ClassLabel(names=CLASSES)
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "photograph": tfds.features.Image(),
                    "thumbnail": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "path": tfds.features.Text(),
                    "labels": tfds.features.Sequence(names),
                    "things": tfds.features.Sequence({"kind": names, "size": np.float32}),
                    "tags": tfds.features.Sequence(tfds.features.Text()),
                    "holds": tfds.features.Tensor(shape=(len(CLASSES),), dtype=np.uint8),
                    "flags": tfds.features.Sequence(np.bool_, length=len(CLASSES)),
                    "shares": tfds.features.Tensor(shape=(len(CLASSES),), dtype=np.float32),
                    "main": names,
                    "meta": {"labels": tfds.features.Sequence(names)},
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(0, NUM_TRAIN),
            "held_out": self._generate_examples(NUM_TRAIN, NUM_TRAIN + NUM_TEST),
        }

    def _generate_examples(self, start, stop):
        for i, (path, labels) in enumerate(self.rows[start:stop]):
            holds = [int(name in labels) for name in CLASSES]
            yield (
                i,
                {
                    "photograph": path,
                    "thumbnail": np.full((8, 8, 1), i, np.uint8),
                    "path": path,
                    "labels": labels,
                    "things": [{"kind": name, "size": 1.5} for name in labels * 2],
                    "tags": labels,
                    "holds": holds,
                    "flags": [bool(held) for held in holds],
                    "shares": np.array(holds, np.float32) / max(len(labels), 1),
                    "main": labels[0] if labels else "cat",
                    "meta": {"labels": labels},
                },
            )


class Unreachable(LabeledPhotographs):
    """A data set whose archives cannot be had."""

    VERSION = tfds.core.Version("1.0.0")

    def _split_generators(self, dl_manager):
        raise OSError("the server does not answer")


@pytest.fixture(scope="module")
def rows(drawn_photographs):
    """Paths and labels of photographs, one of them without labels."""
    labels = (["person"], ["person", "dog"], ["cat"], ["chair", "train"], ["dog"])
    rows = [(str(path), labels[i % len(labels)]) for i, path in enumerate(drawn_photographs)]
    rows[3] = (rows[3][0], [])
    assert len(rows) == NUM_TRAIN + NUM_TEST
    LabeledPhotographs.rows = rows
    return rows


def _prepared(folder, file_format):
    builder = LabeledPhotographs(data_dir=folder, file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=3))
    return folder


@pytest.fixture(scope="module")
def array_records(rows, tmp_path_factory) -> pathlib.Path:
    """A folder of TFDS that holds the photographs; only to be read."""
    return _prepared(tmp_path_factory.mktemp("array_records"), "array_record")


@pytest.fixture(scope="module")
def tf_records(rows, tmp_path_factory) -> pathlib.Path:
    """The same in TFDS's other format."""
    return _prepared(tmp_path_factory.mktemp("tf_records"), "tfrecord")


@pytest.fixture(params=["array_records", "tf_records"])
def data_dir(request) -> pathlib.Path:
    """Each of them."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def _load(data_dir, cache_dir, only_splits=None, **options):
    defaults = {
        "tfds_name": "labeled_photographs",
        "label_feature": "labels",
        "image_feature": "photograph",
        "test_split": "held_out",
        "check_images": "exists",
        "data_dir": str(data_dir),
        "cache_dir": str(cache_dir),
    }
    return DataConfig.of(dataset="tfds", **defaults | options).load_data(only_splits)


def _by_image(data, split):
    """The class names of each image, by its bytes, which are read back in one pass."""
    examples = data.splits[split]
    encoded = tf.data.Dataset.range(len(examples)).map(examples.read).as_numpy_iterator()
    return {
        content: {data.class_names[c] for c in np.flatnonzero(row)}
        for content, row in zip(encoded, examples.labels.toarray(), strict=True)
    }


def _expected(rows):
    return {pathlib.Path(path).read_bytes(): set(labels) for path, labels in rows}


def test_labels_and_image_bytes_are_those_that_went_in(data_dir, cache_dir, rows):
    data = _load(data_dir, cache_dir)
    assert data.class_names == CLASSES
    assert _by_image(data, "train") == _expected(rows[:NUM_TRAIN])
    assert _by_image(data, "test") == _expected(rows[NUM_TRAIN:])
    for examples in data.splits.values():
        assert len(set(examples.names)) == len(examples)
        assert {pathlib.Path(path).parent for path in examples.files} == {
            data_dir / "labeled_photographs" / "1.0.0"
        }


@pytest.mark.parametrize("label_feature", ["things/kind", "tags", "meta/labels"])
def test_other_sequences_of_labels(array_records, cache_dir, rows, label_feature):
    data = _load(array_records, cache_dir, label_feature=label_feature, only_splits=["train"])
    found = sorted({name for _, labels in rows[:NUM_TRAIN] for name in labels})
    assert data.class_names == (tuple(found) if label_feature == "tags" else CLASSES)
    assert _by_image(data, "train") == _expected(rows[:NUM_TRAIN])


@pytest.mark.parametrize("label_feature", ["holds", "flags"])
def test_multi_hot_tensors(array_records, cache_dir, rows, label_feature):
    data = _load(array_records, cache_dir, label_feature=label_feature)
    assert data.class_names == ("0", "1", "2", "3", "4")
    expected = {
        content: {str(CLASSES.index(name)) for name in labels}
        for content, labels in _expected(rows[:NUM_TRAIN]).items()
    }
    assert _by_image(data, "train") == expected


def test_shares_are_not_taken_for_zeros_and_ones(array_records, cache_dir):
    with pytest.raises(tfds_source.TfdsError, match=r"shares: .* zeros and ones; the first"):
        _load(array_records, cache_dir, label_feature="shares")


def test_split_expressions(data_dir, cache_dir, rows):
    whole = _by_image(_load(data_dir, cache_dir), "train")
    data = _load(data_dir, cache_dir, train_split="train[:70%]", val_split="train[70%:]")
    parts = [_by_image(data, "train"), _by_image(data, "val")]
    assert [len(part) for part in parts] == [17, 7]
    assert parts[0] | parts[1] == whole
    both = _load(data_dir, cache_dir, test_split="held_out[2:4]+train[-1:]", only_splits=["test"])
    assert list(both.splits) == ["test"]
    assert _by_image(both, "test").items() < _expected(rows).items()
    assert len(both.splits["test"]) == 3


def test_a_test_split_is_set_aside_where_there_is_none(array_records, cache_dir, rows):
    options = {"test_split": "test", "test_fraction": 0.25}
    data = _load(array_records, cache_dir, **options)
    assert set(data.splits) == {"train", "test"}
    assert abs(len(data.splits["test"]) - NUM_TRAIN / 4) <= 2
    found = _by_image(data, "train") | _by_image(data, "test")
    assert found == _expected(rows[:NUM_TRAIN]) and len(found) == NUM_TRAIN
    assert data_summary.summarize(data).startswith("TFDS labeled_photographs/")
    alone = _load(array_records, cache_dir, ("test",), **options)
    assert set(alone.splits) == {"test"}
    assert alone.splits["test"].names == data.splits["test"].names
    with pytest.raises(ValueError, match="has a test split already"):
        _load(array_records, cache_dir, test_fraction=0.25)
    with pytest.raises(ValueError, match=r"no split 'test'.*--test_fraction=0\.2"):
        _load(array_records, cache_dir, test_split="test")


def test_images_of_one_channel(array_records, cache_dir):
    examples = _load(array_records, cache_dir, image_feature="thumbnail").splits["train"]
    shades = [int(images.decode(examples.read(i))[0, 0, 2]) for i in range(len(examples))]
    assert sorted(shades) == list(range(NUM_TRAIN))


def test_labels_are_remembered_until_the_files_change(array_records, tmp_path, rows):
    own = shutil.copytree(array_records, tmp_path / "own")
    first = _load(own, tmp_path / "cache")
    remembered = sorted((tmp_path / "cache" / "tfds_labels").iterdir())
    assert _by_image(_load(own, tmp_path / "cache"), "test") == _by_image(first, "test")
    assert sorted((tmp_path / "cache" / "tfds_labels").iterdir()) == remembered
    for path in own.rglob("*held_out*"):
        path.touch()
    _load(own, tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "tfds_labels").iterdir())) == len(remembered) + 1


def test_a_wrong_name_lists_what_there_is(array_records, cache_dir):
    with pytest.raises(tfds_source.TfdsError) as raised:
        _load(array_records, cache_dir, label_feature="main")
    message = str(raised.value)
    assert "no feature 'main' with several labels per image" in message
    useful = "labels, things/kind, tags, holds, flags, shares, meta/labels"
    assert f"These features can be used: {useful}." in message
    assert "photograph" in message and "things/size" in message
    with pytest.raises(tfds_source.TfdsError, match="its images are: photograph, thumbnail"):
        _load(array_records, cache_dir, image_feature=None)
    with pytest.raises(tfds_source.TfdsError, match=r"no split 'test'; .* train, held_out"):
        _load(array_records, cache_dir, test_split="test")
    with pytest.raises(tfds_source.TfdsError, match="no 'labeled_photo'"):
        _load(array_records, cache_dir, tfds_name="labeled_photo")


def test_damaged_record_files_are_named(data_dir, tmp_path):
    own = shutil.copytree(data_dir, tmp_path / "own")
    path = next(own.rglob("*train*00001-of-00003"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{path.name} is not a complete"):
        _load(own, tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=f"1 of 3 record files were not found: .*{path.name}"):
        _load(own, tmp_path)


def test_older_versions_serve(array_records, tmp_path, cache_dir, rows):
    own = tmp_path / "own" / "labeled_photographs"
    own.mkdir(parents=True)
    shutil.copytree(array_records / "labeled_photographs" / "1.0.0", own / "0.9.0")
    info = own / "0.9.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("1.0.0", "0.9.0"))
    data = _load(tmp_path / "own", cache_dir)
    assert _by_image(data, "test") == _expected(rows[NUM_TRAIN:])


def test_bad_images_are_named_or_left_out(rows, tmp_path, monkeypatch):
    whole = pathlib.Path(rows[0][0]).read_bytes()
    truncated = tmp_path / "truncated.jpg"
    truncated.write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(LabeledPhotographs, "rows", [(str(truncated), ["cat"]), *rows[1:]])
    LabeledPhotographs(data_dir=tmp_path).download_and_prepare()
    with pytest.raises(image_checks.BadImagesError, match="1 of 24 images") as raised:
        _load(tmp_path, tmp_path, check_images="all")
    assert raised.value.bad[0].path.startswith("train/")
    assert len(_load(tmp_path, tmp_path, check_images="header").splits["train"]) == NUM_TRAIN
    data = _load(tmp_path, tmp_path, check_images="all", skip_bad_images=True)
    assert _by_image(data, "train") == _expected(rows[1:NUM_TRAIN])


def test_download(rows, tmp_path):
    with pytest.raises(tfds_source.TfdsError, match=r"is not prepared.*--download") as raised:
        _load(tmp_path, tmp_path)
    assert str(tmp_path / "labeled_photographs" / "1.0.0") in str(raised.value)
    data = _load(tmp_path, tmp_path, download=True)
    assert _by_image(data, "test") == _expected(rows[NUM_TRAIN:])
    with pytest.raises(tfds_source.TfdsError, match="the server does not answer") as raised:
        _load(tmp_path, tmp_path, tfds_name="unreachable", image_feature=None, download=True)
    assert f"{tmp_path}/downloads/manual" in str(raised.value)
