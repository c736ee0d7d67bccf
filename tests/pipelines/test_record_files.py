import os

import numpy as np
import pytest
import tensorflow as tf
from array_record.python import array_record_module

from pipelines import record_files


@pytest.fixture
def paths(tmp_path):
    paths = [tmp_path / f"{k}.array_record" for k in range(3)]
    for k, path in enumerate(paths):
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for i in range(10 * (k + 1)):
            writer.write(b"%d-%d" % (k, i))
        writer.close()
    return paths


def test_positions_count_from_file_to_file_in_any_shape(paths):
    size, read = record_files.open_array_records(paths)
    assert size == 60
    expected = [b"%d-%d" % (k, i) for k in range(3) for i in range(10 * (k + 1))]
    one_by_one = tf.data.Dataset.range(60).map(read, num_parallel_calls=4)
    assert list(one_by_one.as_numpy_iterator()) == expected
    order = np.random.default_rng(0).integers(0, 60, (10, 7, 2))
    blocks = tf.data.Dataset.from_tensor_slices(order).map(read, num_parallel_calls=4)
    for positions, block in zip(order, blocks.as_numpy_iterator(), strict=True):
        assert block.tolist() == [[expected[i] for i in row] for row in positions]
    assert blocks.element_spec == tf.TensorSpec((7, 2), tf.string)


def test_a_position_outside_is_an_error(paths):
    _, read = record_files.open_array_records(paths)
    with pytest.raises(tf.errors.OpError, match="record 60 of 60"):
        list(tf.data.Dataset.range(60, 61).map(read))


@pytest.mark.parametrize("left", [0, 100, 0.5])
def test_a_file_that_is_not_whole_is_named(paths, left):
    size = os.path.getsize(paths[1])
    os.truncate(paths[1], int(left * size) if isinstance(left, float) else left)
    with pytest.raises(ValueError, match=r"1\.array_record is no whole ArrayRecord file"):
        record_files.open_array_records(paths)
