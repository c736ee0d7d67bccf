import csv
import json
import pathlib
import pickle
import re
import zipfile

import numpy as np
import pytest
import tensorflow as tf

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
    return features.load(
        features.FeaturesOptions(examples=str(path), **options), LoadOptions(), splits
    )


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("float32", "uint8"),
        ("float64", "bool"),
        ("uint8", "float32"),
        ("bool", "int64"),
        (">f4", "float16"),
        ("longdouble", ">i2"),
    ],
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
    assert data.flip_probability == 0


def test_examples_may_have_names(tmp_path):
    names = np.array([f"song {i}" for i in range(8)])
    data = load(save(tmp_path, names=names, split=np.array([b"train", b"test"] * 4)))
    assert data.splits["test"].names == ["song 1", "song 3", "song 5", "song 7"]
    names[[4, 5]] = "song 0", "song 2"
    with pytest.raises(features.FeaturesError) as error:
        load(save(tmp_path, names=names))
    assert "rows whose name another row has: 2" in str(error.value)
    assert "row 4: song 0, as row 0" in str(error.value)


def test_what_is_unusual_is_logged(tmp_path, caplog):
    labels = arrays()["labels"]
    labels[:, 2] = 0
    labels[0, 2] = 1  # in train alone
    labels[1], labels[5] = (1, 1, 0), 0
    # What is not used is not read, and may be anything.
    load(save(tmp_path, labels=labels, authors=np.array([{}], object)))
    (record,) = [each for each in caplog.records if "examples.npz" in each.getMessage()]
    assert record.levelname == "WARNING"
    lines = [line.strip() for line in record.getMessage().splitlines()]
    assert lines[0].endswith(
        "examples.npz: 4 train, 2 val, 2 test examples of 5 features; 3 classes"
    )
    assert lines[1:3] == ["arrays not used: 1", "'authors'"]
    assert "row 5: row 5 (test)" in lines
    for split in ("val", "test"):
        assert lines[lines.index(f"classes without {split} examples: 1") + 1] == "'old dog'"
    assert "classes without train examples: 1" not in lines

    caplog.clear()
    examples, path = write_table(tmp_path, extra="speaker")
    load(examples, features=str(path))
    assert "columns not used: 1\n    'speaker'" in caplog.text


def test_only_the_splits_that_are_needed(tmp_path):
    split = np.array(["test"] * 8)
    assert set(load(save(tmp_path, split=split), splits=("test",)).splits) == {"test"}
    with pytest.raises(features.FeaturesError, match="has no train examples; train and test are"):
        load(save(tmp_path, split=split))


def write_table(folder, names=None, extra=None):
    content = arrays()
    names = names or [f"clip {i}" for i in range(8)]
    more = [] if extra is None else [extra]
    with open(folder / "table.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "labels", *more])
        for name, split, row in zip(names, content["split"], content["labels"], strict=True):
            writer.writerow([name, split, "|".join(np.array(CLASS_NAMES)[row != 0]), *more])
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


def test_a_table_in_json_lines_and_features_in_columns(tmp_path):
    content = arrays()
    with open(tmp_path / "table.jsonl", "w") as file:
        for i, (split, row) in enumerate(zip(content["split"], content["labels"], strict=True)):
            names = [name for name, has in zip(CLASS_NAMES, row, strict=True) if has]
            file.write(json.dumps({"image": f"{i}", "split": split, "labels": names}) + "\n")
    np.save(tmp_path / "features.npy", np.asfortranarray(content["features"].astype(np.float64)))
    data = load(tmp_path / "table.jsonl", features=str(tmp_path / "features.npy"))
    test = data.splits["test"]
    assert test.names == ["1", "5"]
    np.testing.assert_array_equal(test.features[np.arange(2)], content["features"][[1, 5]])
    np.testing.assert_array_equal(test.features.reader()(np.array([1])), content["features"][[5]])


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
        ({"class_names": np.arange(3)}, "class_names of .* must be a list of texts"),
        (
            {"labels": np.zeros((8, 0), int), "class_names": np.array([], str)},
            "class_names of .* is empty; there must be at least one class",
        ),
        ({"names": np.arange(8)}, r"names of .* must be a list of texts.*it is int64 \(8,\)"),
        ({"names": np.array("a")}, r"names of .* must be a list of texts.*it is <U1 \(\)"),
        ({"names": np.array(["a", "b"])}, "have features 8, labels 8, split 8, names 2"),
        ({"split": np.array("train")}, r"split of .* must be a list of texts.*it is <U5 \(\)"),
        ({"features": np.array(1.0)}, r"features of .* it is float64 \(\)"),
        ({"features": np.ones((8, 2), complex)}, "features of .* it is complex128"),
        ({"features": np.array([[{}]] * 8, object)}, "array features of .* holds Python objects"),
        ({"features": np.zeros((0, 5))}, r"features of .* is empty: \(0, 5\)"),
        ({"labels": np.zeros((8, 3), int)}, "has no label in any of its 8 rows"),
        ({"labels": np.full((8, 3), -2)}, "row 0: -2 for cat"),
        ({"labels": np.full((8, 3), -1)}, "has no label in any of its 8 rows"),
        (
            {"class_names": np.array(["a", "b", "c"], object)},
            r"class_names of .* holds Python objects.*array\.astype\(str\)",
        ),
        ({"split": np.array(["train", "test", "dev", "Train"] * 2)}, "row 2: 'dev'"),
        ({"labels": np.arange(24).reshape(8, 3)}, "row 0: 2 for old dog"),
        ({"labels": np.full((8, 3), -1.0)}, r"neither 0 nor 1 \(an unknown label is .*\): 24"),
    ],
)
def test_what_is_wrong_with_an_archive_is_named(tmp_path, changed, message):
    path = save(tmp_path, **changed)
    with pytest.raises(features.FeaturesError, match=message) as error:
        load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("in_archive", [True, False])
def test_rows_with_features_that_are_not_finite_are_named(tmp_path, in_archive):
    content = arrays()["features"].astype(np.float64)
    content[3, 1], content[3, 2], content[6, 4], content[7, 0] = np.nan, np.inf, -np.inf, 1e39
    content[0, 0] = np.finfo(np.float32).max
    if in_archive:
        path, options = save(tmp_path, features=content), {}
    else:
        path, of_rows = write_table(tmp_path)
        np.save(of_rows, content)
        options = {"features": str(of_rows)}
    with pytest.raises(features.FeaturesError, match="numbers in float32: 3") as error:
        load(path, **options)
    assert "row 3: nan in column 1" in str(error.value)
    assert "row 6: -inf in column 4" in str(error.value)
    assert "row 7: 1e+39 in column 0" in str(error.value)  # float32 ends at 3.4e38


def test_every_block_of_rows_is_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_NUMBERS_AT_ONCE", 11)  # two rows of five, so four blocks
    content = arrays()["features"]
    content[[1, 2, 7], [0, 4, 2]] = np.nan
    with pytest.raises(features.FeaturesError) as error:
        load(save(tmp_path, features=content))
    assert re.findall(r"row (\d): nan in column (\d)", str(error.value)) == [
        ("1", "0"),
        ("2", "4"),
        ("7", "2"),
    ]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "it is empty"),
        (b"no archive", "it is a file of another kind, which starts with b'no arc'"),
        (b"PK\x03\x04 cut off", "it is an archive of which the end is missing"),
        (pickle.dumps([1.0]), "it is a file of another kind"),
    ],
)
def test_files_of_another_kind_are_refused(tmp_path, content, kind):
    path = tmp_path / "examples.npz"
    path.write_bytes(content)
    with pytest.raises(features.FeaturesError, match=rf"npz is not an archive of arrays, .*{kind}"):
        load(path)
    examples, of_rows = write_table(tmp_path)
    of_rows.write_bytes(content)
    with pytest.raises(features.FeaturesError, match=rf"npy is not an array of numbers.*{kind}"):
        load(examples, features=str(of_rows))


def test_archives_and_arrays_are_told_apart_by_their_content(tmp_path):
    examples, of_rows = write_table(tmp_path)
    path = save(tmp_path)
    with pytest.raises(features.FeaturesError, match=r"npz is not .*: it is an archive of arrays"):
        load(examples, features=str(path))
    path.write_bytes(of_rows.read_bytes())
    with pytest.raises(features.FeaturesError, match=r"npz is not .*: it holds one array"):
        load(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in features.FEATURES_ARRAYS:
            archive.writestr(name, "1,2,3")
    with pytest.raises(features.FeaturesError, match=r"features in .*npz is not an array"):
        load(path)


@pytest.mark.parametrize("save_arrays", [np.savez, np.savez_compressed])
def test_damaged_files_are_refused(tmp_path, save_arrays):
    path = tmp_path / "examples.npz"
    save_arrays(path, **arrays(features=np.random.default_rng(0).standard_normal((8, 500))))
    content = bytearray(path.read_bytes())
    start = content.index(b"features.npy") + 600
    for position in range(start, start + 40):
        content[position] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(features.FeaturesError, match="is not an archive of arrays"):
        load(path)
    examples, of_rows = write_table(tmp_path)
    of_rows.write_bytes(of_rows.read_bytes()[:-8])
    with pytest.raises(features.FeaturesError, match=r"features\.npy is not an array of numbers"):
        load(examples, features=str(of_rows))


def test_a_pickle_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "sprung",))

    examples, of_rows = write_table(tmp_path)
    np.save(of_rows, np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(features.FeaturesError, match=r"holds Python objects.*array\.astype\(str\)"):
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


def test_an_archive_behind_a_scheme_is_read(tmp_path):
    url = f"ram://{tmp_path.name}/examples.npz"
    tf.io.gfile.makedirs(f"ram://{tmp_path.name}")
    tf.io.gfile.copy(str(save(tmp_path)), url)
    local, remote = load(tmp_path / "examples.npz"), load(url)
    for name, examples in local.splits.items():
        np.testing.assert_array_equal(remote.splits[name].features[:], examples.features[:])
    with pytest.raises(ValueError, match="s3://"):
        load("s3://bucket/examples.npz")
    with tf.io.gfile.GFile(f"ram://{tmp_path.name}/text.npz", "wb") as file:
        file.write(b"some text")
    with pytest.raises(features.FeaturesError, match=r"not an archive of arrays.*some t"):
        load(f"ram://{tmp_path.name}/text.npz")
