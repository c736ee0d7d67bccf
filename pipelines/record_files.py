"""Random access to the records of ArrayRecord and TFRecord files from within `tf.data`."""

import bisect
import collections
import concurrent.futures
import itertools
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import tensorflow as tf
from array_record.python import array_record_module

from pipelines.shards import FORMATS

# ArrayRecord neither reads ahead nor uses threads of its own: a position does not tell the next
# one, and it takes longer to hand a single record to a pool than to read it.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_SIZE = 1 << 15  # the default of 1 MiB is filled anew for every record
_OPENING_THREADS = 16  # on a network drive opening waits, it does not compute
# TFRecord: a length, its checksum, the record, its checksum.
_HEADER, _LENGTH, _FOOTER = 12, struct.Struct("<Q"), 4


class RecordFileError(ValueError):
    """A record file is damaged."""


class _RecordFile(Protocol):
    """One file, whose records are counted from 0."""

    def num_records(self) -> int: ...

    def read(self, positions: Sequence[int]) -> Sequence[bytes]: ...


def open_records(
    paths: Sequence[str | os.PathLike], record_format: str
) -> tuple[int, Callable[[tf.Tensor], tf.Tensor]]:
    """Opens record files as one sequence of records.

    ArrayRecord files stay open. TFRecord files, which must not be compressed, have no index: the
    places of their records are found by going from length to length.

    Args:
        paths: the files, in the order in which their records are counted.
        record_format: one of `FORMATS`.

    Returns:
        The number of records, and a function that reads the records at positions, int64 of any
        shape → string of that shape. It runs inside `tf.data` and reads only those records, in
        ArrayRecord files if they were written with one record a group, as TFDS writes them.
        Getting from the graph to Python costs more than a record does, so it is faster to read many
        positions at once.

    Raises:
        RecordFileError: a file is not complete; the message names it.
        ValueError: the format is not one of `FORMATS`.
    """
    if record_format not in FORMATS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}; got {record_format!r}")
    open_file = _open_array_record if record_format == "array_record" else _TFRecordFile
    with concurrent.futures.ThreadPoolExecutor(_OPENING_THREADS) as threads:
        files: list[_RecordFile] = list(threads.map(open_file, paths))
    ends = list(itertools.accumulate(file.num_records() for file in files))

    def fetch(positions: np.ndarray) -> np.ndarray:
        places = collections.defaultdict(list)  # of each file: which results, which records
        for place, position in enumerate(positions.ravel().tolist()):
            if not 0 <= position < ends[-1]:
                raise IndexError(f"record {position} of {ends[-1]}")
            number = bisect.bisect_right(ends, position)
            places[number].append((place, position - (ends[number - 1] if number else 0)))
        found = np.empty(positions.size, object)
        for number, wanted in places.items():
            records = files[number].read([position for _, position in wanted])
            for (place, _), record in zip(wanted, records, strict=True):
                found[place] = record
        return found.reshape(positions.shape)

    def read(positions: tf.Tensor) -> tf.Tensor:
        # TensorFlow has no op that reads these files by position.
        records = tf.numpy_function(fetch, [positions], tf.string, stateful=False)
        return tf.ensure_shape(records, positions.shape)

    return ends[-1], read


def _open_array_record(path: str | os.PathLike) -> _RecordFile:
    reader = array_record_module.ArrayRecordReader(
        os.fspath(path), options=_READER_OPTIONS, file_reader_buffer_size=_BUFFER_SIZE
    )
    if not reader.ok():
        # Closing it gives the reason; without that it would pass for a file without records.
        try:
            reader.close()
        except Exception as error:  # the C++ reader raises errors of several types
            raise RecordFileError(f"{path} is not a complete ArrayRecord file: {error}") from error
    return reader


class _TFRecordFile:
    """A TFRecord file and the places of its records; it is opened for every read."""

    def __init__(self, path: str | os.PathLike):
        self._path = os.fspath(path)
        places = np.array(list(_record_places(self._path)), np.int64).reshape(-1, 2)
        self._starts, self._lengths = places.T

    def num_records(self) -> int:
        return len(self._starts)

    def read(self, positions: Sequence[int]) -> list[bytes]:
        records = []
        with open(self._path, "rb") as file:
            for position in positions:
                file.seek(self._starts[position])
                records.append(file.read(self._lengths[position]))
        return records


def _record_places(path: str) -> Iterator[tuple[int, int]]:
    """Yields the start and the length of every record."""
    size = os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        start = 0
        while start < size:
            file.seek(start)
            header = file.read(_HEADER)
            end = start
            if len(header) == _HEADER:
                (length,) = _LENGTH.unpack_from(header)
                end = start + _HEADER + length + _FOOTER
            if not start < end <= size:
                raise RecordFileError(
                    f"{path} is not a complete TFRecord file: it ends at byte {size}, within the "
                    f"record that begins at byte {start}"
                )
            yield start + _HEADER, length
            start = end
