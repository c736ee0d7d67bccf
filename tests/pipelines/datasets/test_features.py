import csv
import pathlib
import re

import numpy as np
import pytest

from dbl_tf.statistics import LabelStatistics
from pipelines.datasets import features, table
from pipelines.datasets.source import LoadOptions
from pipelines.runs.config import ConfigError, DataConfig

CLASS_NAMES = ("cat", "dog", "old dog")


def arrays(**changed):
    """Eight examples of five features: four to train, two each to choose and to test."""
    random = np.random.default_rng(0)
    return {
        "features": random.standard_normal((8, 5)).astype(np.float32),
        "labels": (np.arange(24).reshape(8, 3) % 5 < 2).astype(np.uint8),
        "split": np.array(["train", "test", "train", "val", "train", "test", "train", "val"]),
        "class_names": np.array(CLASS_NAMES),
        **changed,
    }


def save(folder, **changed):
    path = folder / "examples.npz"
    content = {name: value for name, value in arrays(**changed).items() if value is not None}
    np.savez(path, **content)
    return path


def load(path, splits=None, **options):
    return features.load(features.Options(examples=str(path), **options), LoadOptions(), splits)


@pytest.mark.parametrize(
    ("kind", "labels"), [("float32", "uint8"), ("float64", "bool"), ("uint8", "float32")]
)
def test_an_archive_holds_features_labels_splits_and_classes(tmp_path, kind, labels):
    content = arrays()
    content["features"] = (100 * np.abs(content["features"])).astype(kind)
    content["labels"] = content["labels"].astype(labels)
    data = load(save(tmp_path, **content))
    assert data.class_names == CLASS_NAMES and set(data.splits) == {"train", "val", "test"}
    for name, examples in data.splits.items():
        rows = np.flatnonzero(content["split"] == name)
        assert examples.names == [f"row {i}" for i in rows]
        given = examples.features[np.arange(len(rows))]
        assert given.dtype == np.float32
        np.testing.assert_array_equal(given, content["features"][rows].astype(np.float32))
        np.testing.assert_array_equal(examples.labels.toarray(), content["labels"][rows] != 0)
        read = examples.features.reader()(np.array([1, 0]))
        np.testing.assert_array_equal(read, given[[1, 0]])


def test_examples_may_have_names(tmp_path):
    names = np.array([f"song {i}" for i in range(8)])
    data = load(save(tmp_path, names=names, split=np.array([b"train", b"test"] * 4)))
    assert data.splits["test"].names == ["song 1", "song 3", "song 5", "song 7"]


def test_only_the_splits_that_are_needed(tmp_path):
    split = np.array(["test"] * 8)
    assert set(load(save(tmp_path, split=split), splits=("test",)).splits) == {"test"}
    with pytest.raises(features.FeaturesError, match="has no train examples; train and test are"):
        load(save(tmp_path, split=split))


def write_table(folder, names=None):
    content = arrays()
    names = names or [f"clip {i}" for i in range(8)]
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "labels"])
        for name, split, row in zip(names, content["split"], content["labels"], strict=True):
            writer.writerow([name, split, "|".join(np.array(CLASS_NAMES)[row != 0])])
    np.save(folder / "features.npy", content["features"])
    return folder / "table.csv", folder / "features.npy"


def test_a_table_with_a_file_of_features_equals_the_archive(tmp_path):
    examples, path = write_table(tmp_path)
    data, same = load(examples, features=str(path)), load(save(tmp_path))
    assert data.class_names == same.class_names
    for name, part in data.splits.items():
        assert isinstance(part.features.array, np.memmap)
        every = np.arange(len(part))
        np.testing.assert_array_equal(part.features[every], same.splits[name].features[every])
        np.testing.assert_array_equal(part.features.reader()(every), part.features[every])
        np.testing.assert_array_equal(part.labels.toarray(), same.splits[name].labels.toarray())
    assert data.splits["test"].names == ["clip 1", "clip 5"]


def test_each_row_of_a_table_is_an_example_of_its_own(tmp_path):
    examples, path = write_table(tmp_path, ["a", "b", "a", "c", "d", "e", "b", "f"])
    with pytest.raises(table.TableError) as error:
        load(examples, features=str(path))
    assert "rows whose name another row has (each row is an example of its own here): 2" in str(
        error.value
    )
    assert "line 4: a, as line 2" in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": None}, "has no array labels; it must hold features, labels, split, class_na"),
        ({"features": None, "split": None}, "has no array features and no split; it must hold"),
        (
            {"labels": np.zeros((7, 3), int)},
            "as many rows as there are examples, and have features 8, labels 7, split 8",
        ),
        ({"labels": np.zeros((8, 2), int)}, "labels of .* has 2 columns, and class_names has 3"),
        ({"labels": np.zeros(8, int)}, r"labels of .* must be a matrix .* it is int64 \(8,\)"),
        ({"features": np.zeros((8, 0))}, r"features of .* is empty: \(8, 0\)"),
        ({"features": np.zeros((8, 2, 2))}, r"features of .* it is float64 \(8, 2, 2\)"),
        ({"features": np.full((8, 2), "x")}, "features of .* must be a matrix of numbers"),
        ({"class_names": np.array(["a", "b", "a"])}, "class_names of .* repeats a"),
        ({"class_names": np.array(["a", " ", "c"])}, "class_names of .* is blank at 1"),
        ({"class_names": np.arange(3)}, "class_names of .* must be one line of text values"),
        (
            {"class_names": np.array(["a", "b", "c"], object)},
            r"class_names of .* holds Python objects.*array\.astype\(str\)",
        ),
        ({"split": np.array(["train", "test", "dev", "Train"] * 2)}, "row 2: 'dev'"),
        ({"labels": np.arange(24).reshape(8, 3)}, "row 0: 2 for old dog"),
        ({"labels": np.full((8, 3), np.nan)}, "neither 0 nor 1: 24"),
    ],
)
def test_what_is_wrong_with_an_archive_is_named(tmp_path, changed, message):
    path = save(tmp_path, **changed)
    with pytest.raises(features.FeaturesError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("in_archive", [True, False])
def test_rows_with_features_that_are_not_finite_are_named(tmp_path, in_archive):
    content = arrays()["features"]
    content[3, 1], content[3, 2], content[6, 4] = np.nan, np.inf, -np.inf
    if in_archive:
        path, options = save(tmp_path, features=content), {}
    else:
        path, of_rows = write_table(tmp_path)
        np.save(of_rows, content)
        options = {"features": str(of_rows)}
    with pytest.raises(features.FeaturesError, match="not finite numbers: 2") as error:
        load(path, **options)
    assert "row 3: nan in column 1" in str(error.value)
    assert "row 6: -inf in column 4" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_files_of_another_kind_are_refused(tmp_path, content):
    path = tmp_path / "examples.npz"
    path.write_bytes(content)
    with pytest.raises(features.FeaturesError, match="is not an archive of arrays"):
        load(path)
    examples, of_rows = write_table(tmp_path)
    of_rows.write_bytes(content)
    with pytest.raises(features.FeaturesError, match=r"features\.npy is not an array of numbers"):
        load(examples, features=str(of_rows))
    save(tmp_path)
    with pytest.raises(features.FeaturesError, match=r"examples\.npz holds several arrays"):
        load(examples, features=str(path))


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "sprung",))

    examples, of_rows = write_table(tmp_path)
    np.save(of_rows, np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(features.FeaturesError, match="is not an array of numbers"):
        load(examples, features=str(of_rows))
    path = save(tmp_path, class_names=np.array([Trap(), Trap(), Trap()], object))
    with pytest.raises(features.FeaturesError, match="holds Python objects"):
        load(path)
    assert not (tmp_path / "sprung").exists()


def test_features_of_another_length_than_the_table(tmp_path):
    examples, of_rows = write_table(tmp_path)
    np.save(of_rows, np.zeros((7, 5)))
    with pytest.raises(features.FeaturesError, match=r"has 7 rows, and .*table\.csv has 8"):
        load(examples, features=str(of_rows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": "a.csv"}, r"--features must name the \.npy file of the rows of a\.csv"),
        ({"examples": "a.npz", "features": "b.npy"}, "--features goes with a table"),
        ({"examples": "a.npz", "class_names": "b.txt"}, "--class_names goes with a table"),
        ({"examples": "a.npz", "images_dir": "b"}, "--images_dir goes with images"),
        ({}, "--dataset=features needs --examples"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ConfigError, match=message):
        DataConfig.of(dataset="features", **options)


def test_files_that_are_not_there(tmp_path):
    save(tmp_path)
    missing = re.escape(str(tmp_path / "example.npz"))
    with pytest.raises(table.TableError, match=f"{missing} was not found; similar names there"):
        load(tmp_path / "example.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(table.TableError, match="is not a file"):
        load(tmp_path / "folder.npz")


def test_a_real_set_of_features(shared_data):
    data = load(shared_data / "features" / "corel5k.npz")
    assert len(data.class_names) == 371
    assert {name: len(part) for name, part in data.splits.items()} == {"train": 4500, "test": 500}
    statistics = LabelStatistics.from_labels(data.splits["train"].labels, data.class_names)
    sizes = {name: len(members) for name, members in statistics.groups.items()}
    assert sizes == {"head": 36, "medium": 108, "tail": 227}
