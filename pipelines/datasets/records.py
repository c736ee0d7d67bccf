"""Random access to ArrayRecord files from within `tf.data`."""

import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from array_record.python import array_record_data_source


def open_array_records(
    paths: Sequence[str | os.PathLike],
) -> tuple[int, Callable[[tf.Tensor], tf.Tensor]]:
    """Opens ArrayRecord files as one sequence of records.

    Args:
        paths: of the files, in the order in which their records are counted.

    Returns:
        The number of records, and a function that reads the record at a position, int64 () →
        string (). It runs inside `tf.data` and reads that record alone, in files that were written
        with one record a group, as TFDS writes them.

    Raises:
        ValueError: names a file that is no whole ArrayRecord file.
    """
    for path in paths:
        try:
            array_record_data_source.ArrayRecordDataSource([os.fspath(path)])
        except Exception as error:  # what the C++ reader raises differs with what it meets
            raise ValueError(f"{path} is no whole ArrayRecord file: {error}") from error
    source = array_record_data_source.ArrayRecordDataSource([os.fspath(path) for path in paths])

    def fetch(position: np.ndarray) -> bytes:
        return source[int(position)]

    def read(position: tf.Tensor) -> tf.Tensor:
        # The files have no reader among TensorFlow's ops; a call costs some ten microseconds.
        record = tf.numpy_function(fetch, [position], tf.string, stateful=False)
        return tf.ensure_shape(record, ())

    return len(source), read
