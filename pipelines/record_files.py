"""Random access to ArrayRecord files from within `tf.data`."""

import bisect
import collections
import concurrent.futures
import itertools
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
from array_record.python import array_record_module

# No reading ahead and no threads of its own: a position is no hint of the next one, and handing a
# single record to a pool takes longer than reading it.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_SIZE = 1 << 15  # the default of 1 MiB is filled anew for every record
_OPENING_THREADS = 16  # on a network drive opening waits, it does not compute


def open_array_records(
    paths: Sequence[str | os.PathLike],
) -> tuple[int, Callable[[tf.Tensor], tf.Tensor]]:
    """Opens ArrayRecord files as one sequence of records.

    Every file stays open.

    Args:
        paths: of the files, in the order in which their records are counted.

    Returns:
        The number of records, and a function that reads the records at positions, int64 of any
        shape → string of that shape. It runs inside `tf.data` and reads those records alone, in
        files that were written with one record a group, as TFDS writes them. Getting from the
        graph to Python costs more than a record does, so that many positions at once are quicker.

    Raises:
        ValueError: names a file that is no whole ArrayRecord file.
    """
    with concurrent.futures.ThreadPoolExecutor(_OPENING_THREADS) as threads:
        readers = list(threads.map(_open, paths))
    ends = list(itertools.accumulate(reader.num_records() for reader in readers))

    def fetch(positions: np.ndarray) -> np.ndarray:
        places = collections.defaultdict(list)  # of each file: which results, which records
        for place, position in enumerate(positions.ravel().tolist()):
            if not 0 <= position < ends[-1]:
                raise IndexError(f"record {position} of {ends[-1]}")
            file = bisect.bisect_right(ends, position)
            places[file].append((place, position - (ends[file - 1] if file else 0)))
        found = np.empty(positions.size, object)
        for file, wanted in places.items():
            records = readers[file].read([position for _, position in wanted])
            for (place, _), record in zip(wanted, records, strict=True):
                found[place] = record
        return found.reshape(positions.shape)

    def read(positions: tf.Tensor) -> tf.Tensor:
        # The files have no reader among TensorFlow's ops.
        records = tf.numpy_function(fetch, [positions], tf.string, stateful=False)
        return tf.ensure_shape(records, positions.shape)

    return ends[-1], read


def _open(path: str | os.PathLike) -> array_record_module.ArrayRecordReader:
    reader = array_record_module.ArrayRecordReader(
        os.fspath(path), options=_READER_OPTIONS, file_reader_buffer_size=_BUFFER_SIZE
    )
    if not reader.ok():
        # It says so in closing, and would else pass for a file without records.
        try:
            reader.close()
        except Exception as error:  # what the C++ reader raises differs with what it meets
            raise ValueError(f"{path} is no whole ArrayRecord file: {error}") from error
    return reader
