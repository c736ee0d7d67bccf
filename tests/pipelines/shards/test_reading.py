import json
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf

from dbl_tf.statistics import LabelStatistics
from pipelines import inputs, record_formats
from pipelines.examples import set_aside_val
from pipelines.shards import layout, reading, writing


@pytest.mark.parametrize("record_format", record_formats.FORMATS)
def test_images_labels_and_names_come_back(small_data, folders, record_format):
    data = reading.load(folders[record_format])
    assert data.class_names == small_data.class_names
    assert data.flip_probability == 0.25
    assert list(data.splits) == ["train", "test"]
    for name, split in data.splits.items():
        original = small_data.splits[name]
        assert sorted(split.names) == sorted(original.names)
        position = [original.names.index(name) for name in split.names]
        images = list(split.encoded().as_numpy_iterator())
        assert images == [original.read(i).numpy() for i in position]
        assert (split.labels != original.labels[position]).nnz == 0
        for shard, image in zip(split.files, images, strict=True):
            assert image in pathlib.Path(shard).read_bytes()


def test_array_records_are_read_by_position(folders):
    train = reading.load(folders["array_record"]).splits["train"]
    images = list(train.encoded().as_numpy_iterator())
    order = np.random.default_rng(0).permutation(237)
    assert train.read(tf.constant(order)).numpy().tolist() == [images[i] for i in order]
    part = train.take(order[:50])
    assert list(part.encoded().as_numpy_iterator()) == [images[i] for i in order[:50]]


@pytest.mark.parametrize("start", [0, 1, 79, 80, 130, 236, 237])
def test_a_stream_starts_anywhere_with_labels_beside_images(folders, start):
    train = reading.load(folders["tfrecord"]).splits["train"]
    assert train.is_stream
    images = list(train.encoded().as_numpy_iterator())
    examples = list(train.stream(start).as_numpy_iterator())
    assert [example["image"] for example in examples] == images[start:]
    labels = np.array([example["labels"] for example in examples]).reshape(-1, 3)
    np.testing.assert_array_equal(labels, train.labels[start:].toarray())


def test_a_stream_can_set_aside_val_and_move_its_classes(folders):
    whole = reading.load(folders["tfrecord"])
    images = list(whole.splits["train"].encoded().as_numpy_iterator())
    data = set_aside_val(whole, 0.2, seed=0)
    data = data.with_classes(["zebra", *reversed(whole.class_names)])
    names = whole.splits["train"].names
    for split in (data.splits["train"], data.splits["val"]):
        examples = list(split.stream(7).as_numpy_iterator())
        assert [example["image"] for example in examples] == [
            images[names.index(name)] for name in split.names[7:]
        ]
        labels = np.array([example["labels"] for example in examples])
        np.testing.assert_array_equal(labels, split.labels[7:].toarray())
    assert not data.splits["train"].labels[:, [0]].nnz
    assert (data.splits["test"].labels[:, [3]] != whole.splits["test"].labels[:, [0]]).nnz == 0
    with pytest.raises(ValueError, match="own order"):
        whole.splits["train"].take(np.array([3, 2]))


def test_an_unreadable_image_of_a_stream_is_named(small_data, tmp_path):
    train = small_data.splits["train"]
    broken = train.names[100]
    bad = tf.constant(train.names.index(broken), tf.int64)
    spoilt = {
        "train": reading.Examples(
            train.names,
            train.labels,
            lambda i: tf.where(i == bad, tf.strings.substr(train.read(i), 0, 60), train.read(i)),
        )
    }
    data = reading.LabelledData(small_data.class_names, spoilt)
    writing.write(data, tmp_path, layout.make_plan(data, record_format="tfrecord"))
    stream = reading.load(tmp_path).splits["train"]
    error = inputs.find_unreadable(stream, tf.data.Dataset.range(0).batch(1), 8)
    assert broken in str(error)


both = pytest.mark.parametrize("folder", record_formats.FORMATS, indirect=True)


@both
def test_shards_that_are_cut_empty_or_missing_are_named(folder):
    names = sorted(path.name for path in folder.glob("train-0*"))
    os.truncate(folder / names[3], os.path.getsize(folder / names[3]) // 2)
    with pytest.raises(layout.ShardsError, match=rf"{names[3]} is cut off: \d+ of \d+ bytes"):
        reading.load(folder)
    os.truncate(folder / names[3], 0)
    with pytest.raises(layout.ShardsError, match=f"{names[3]} is empty"):
        reading.load(folder)
    (folder / names[3]).unlink()
    with pytest.raises(layout.ShardsError, match=f"{names[3]} was not found"):
        reading.load(folder)
    assert list(reading.load(folder, only_splits=("test",)).splits) == ["test"]


@both
@pytest.mark.parametrize("name", ["statistics.json", "train-labels.npz", "train-names.json"])
def test_what_belongs_to_other_shards_is_refused(folder, small_data, name, tmp_path):
    splits = {part: split.take(np.arange(5, 40)) for part, split in small_data.splits.items()}
    other = reading.LabelledData(small_data.class_names, splits)
    writing.write(other, tmp_path / "other", layout.make_plan(other))
    shutil.copy(tmp_path / "other" / name, folder / name)
    with pytest.raises(layout.ShardsError, match=f"{name} (is|has)"):
        reading.load(folder)


@both
def test_statistics_of_the_same_size_from_other_shards_are_refused(folder):
    statistics = LabelStatistics.load(folder / "statistics.json")
    swapped = statistics.class_names[1::-1] + statistics.class_names[2:]
    size = (folder / "statistics.json").stat().st_size
    LabelStatistics(
        statistics.class_counts, statistics.num_examples, statistics.cooccurrence, swapped
    ).save(folder / "statistics.json")
    assert (folder / "statistics.json").stat().st_size == size
    with pytest.raises(layout.ShardsError, match=r"statistics.json is not the file"):
        reading.load(folder)


@pytest.mark.parametrize("folder", record_formats.FORMATS[:1], indirect=True)
def test_other_folders_and_versions_are_refused(folder, tmp_path):
    with pytest.raises(layout.ShardsError, match="is not a folder of shards"):
        reading.load(tmp_path)
    with pytest.raises(layout.ShardsError, match="no split val; there are train, test"):
        reading.load(folder, only_splits=("val",))
    manifest = folder / "shards.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"format": "dbl_tf.Shards/4"}))
    with pytest.raises(layout.ShardsError, match=r"reads .*Shards/1 and .*found 'dbl_tf.Shards/4'"):
        reading.load(folder)
    manifest.rename(folder / "shards.unfinished.json")
    with pytest.raises(layout.ShardsError, match="not written to their end"):
        reading.load(folder)
