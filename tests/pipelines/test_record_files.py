import os
import re

import numpy as np
import pytest
import tensorflow as tf
from array_record.python import array_record_module

from pipelines import images, record_files, record_formats


def write_file(path, record_format, records):
    if record_format == "array_record":
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    else:
        writer = tf.io.TFRecordWriter(str(path))
    for record in records:
        writer.write(record)
    writer.close()


@pytest.fixture(params=record_formats.FORMATS)
def record_format(request):
    return request.param


@pytest.fixture
def paths(tmp_path, record_format):
    """Three files of 10, 20 and 30 records."""
    paths = [tmp_path / f"{k}.{record_format}" for k in range(3)]
    for k, path in enumerate(paths):
        write_file(path, record_format, [b"%d-%d" % (k, i) for i in range(10 * (k + 1))])
    return paths


def test_positions_count_from_file_to_file_in_any_shape(paths, record_format):
    files = record_files.RecordFiles(paths, record_format)
    size, read = len(files), files.read
    assert size == 60
    expected = [b"%d-%d" % (k, i) for k in range(3) for i in range(10 * (k + 1))]
    one_by_one = tf.data.Dataset.range(60).map(read, num_parallel_calls=4)
    assert list(one_by_one.as_numpy_iterator()) == expected
    order = np.random.default_rng(0).integers(0, 60, (10, 7, 2))
    blocks = tf.data.Dataset.from_tensor_slices(order).map(read, num_parallel_calls=4)
    for positions, block in zip(order, blocks.as_numpy_iterator(), strict=True):
        assert block.tolist() == [[expected[i] for i in row] for row in positions]
    assert blocks.element_spec == tf.TensorSpec((7, 2), tf.string)


def test_files_without_records_take_no_positions(tmp_path, record_format):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, records in zip(paths, ([], [b"one", b""], []), strict=True):
        write_file(path, record_format, records)
    files = record_files.RecordFiles(paths, record_format)
    size, read = len(files), files.read
    assert size == 2
    assert read(tf.constant([1, 0, 1], tf.int64)).numpy().tolist() == [b"", b"one", b""]


def test_a_position_outside_is_an_error(paths, record_format):
    read = record_files.RecordFiles(paths, record_format).read
    with pytest.raises(tf.errors.OpError, match="record 60 of 60"):
        list(tf.data.Dataset.range(60, 61).map(read))


@pytest.mark.parametrize("left", [100, 0.5])
def test_a_file_that_is_not_complete_is_named(paths, record_format, left):
    size = os.path.getsize(paths[1])
    os.truncate(paths[1], int(left * size) if isinstance(left, float) else left)
    with pytest.raises(
        record_files.RecordFileError, match=rf"1\.{record_format} is not a complete \w+Record file"
    ):
        record_files.RecordFiles(paths, record_format)


@pytest.mark.parametrize("record_format", ["array_record"], indirect=True)
def test_an_empty_file_is_no_array_record_file(paths, record_format):
    os.truncate(paths[1], 0)
    with pytest.raises(record_files.RecordFileError, match=r"1\.array_record is not a complete"):
        record_files.RecordFiles(paths, record_format)


def test_another_format_is_refused_with_the_choices(paths):
    with pytest.raises(ValueError, match="one of array_record, tfrecord; got 'parquet'"):
        record_files.RecordFiles(paths, "parquet")


def test_a_flipped_bit_of_a_record_is_named_and_the_others_are_read(paths, record_format):
    content = bytearray(paths[2].read_bytes())
    content[content.index(b"2-17")] ^= 1
    paths[2].write_bytes(content)
    files = record_files.RecordFiles(paths, record_format)
    expected = [b"%d-%d" % (k, i) for k in range(3) for i in range(10 * (k + 1))]
    others = np.delete(np.arange(60), 30 + 17)
    assert files.fetch(others).tolist() == [expected[i] for i in others]
    message = rf"2\.{record_format}, record 17, is damaged: "
    with pytest.raises(record_files.RecordFileError, match=message):
        files.fetch(np.arange(40, 50))
    with pytest.raises(tf.errors.InvalidArgumentError) as eager:
        files.read(tf.range(40, 50, dtype=tf.int64))
    with pytest.raises(tf.errors.InvalidArgumentError) as in_graph:
        list(tf.data.Dataset.range(40, 50).map(files.read))
    for caught in (eager, in_graph):
        reason = images.reason_of(caught.value)
        assert re.match(f"{re.escape(str(paths[2]))}, record 17, is damaged", reason)


def test_a_file_whose_count_is_known_is_opened_when_it_is_read(paths, record_format):
    paths[1].unlink()
    files = record_files.RecordFiles(paths, record_format, [10, 20, 29])
    assert len(files) == 59 and files.fetch(np.array([9])).tolist() == [b"0-9"]
    with pytest.raises(
        record_files.RecordFileError, match=r"2\.\w+ holds 30 records in place of 29"
    ):
        files.fetch(np.array([30]))
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"1\.{record_format}"):
        files.read(tf.constant([10], tf.int64))
