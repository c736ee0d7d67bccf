"""Random access to the records of ArrayRecord and TFRecord files from within `tf.data`.

Every record is compared with the checksum that its file holds of it.
"""

import bisect
import collections
import concurrent.futures
import itertools
import os
import re
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol

import google_crc32c
import numpy as np
import tensorflow as tf
from array_record.python import array_record_module

from pipelines.record_formats import FORMATS

# ArrayRecord neither reads ahead nor uses threads of its own: a position does not tell the next
# one, and it takes longer to hand a single record to a pool than to read it.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_SIZE = 1 << 15  # the default of 1 MiB is filled anew for every record
_OPENING_THREADS = 16  # on a network drive opening waits, it does not compute
_HASHES = re.compile(r" \(computed \w+, stored \w+\)")  # in the errors of ArrayRecord
# TFRecord: a length, its checksum, the record, its checksum.
_HEADER, _LENGTH, _CHECKSUM = 12, struct.Struct("<Q"), struct.Struct("<I")


class RecordFileError(ValueError):
    """A record file or a record of it is damaged."""


class _RecordFile(Protocol):
    """One file, whose records are counted from 0."""

    def num_records(self) -> int: ...

    def read(self, positions: Sequence[int]) -> Sequence[bytes]: ...


class RecordFiles:
    """Record files as one sequence of records.

    ArrayRecord files stay open. TFRecord files, which must not be compressed, have no index: the
    places of their records are found by going from length to length.

    Args:
        paths: the files, in the order in which their records are counted.
        record_format: one of `FORMATS`.
        counts: the number of records of each file, where it is known. Such a file is opened when
            one of its records is read, and not before.

    Raises:
        RecordFileError: a file is not complete; the message names it.
        ValueError: the format is not one of `FORMATS`.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike],
        record_format: str,
        counts: Sequence[int] | None = None,
    ):
        if record_format not in FORMATS:
            raise ValueError(
                f"the format must be one of {', '.join(FORMATS)}; got {record_format!r}"
            )
        self._paths = [os.fspath(path) for path in paths]
        is_array_record = record_format == "array_record"
        self._open = _ArrayRecordFile if is_array_record else _TFRecordFile
        self._files: dict[int, _RecordFile] = {}
        self._opening = threading.Lock()
        self._counts = counts
        if counts is None:
            with concurrent.futures.ThreadPoolExecutor(_OPENING_THREADS) as threads:
                self._files = dict(enumerate(threads.map(self._open, self._paths)))
            counts = [file.num_records() for file in self._files.values()]
        self._ends = list(itertools.accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1]

    def read(self, positions: tf.Tensor) -> tf.Tensor:
        """Reads the records at positions, int64 of any shape → string of that shape.

        It runs inside `tf.data` and reads only those records, in ArrayRecord files if they were
        written with one record a group, as TFDS writes them. Getting from the graph to Python costs
        more than a record does, so it is faster to read many positions at once.

        Raises:
            tf.errors.InvalidArgumentError: a record is damaged; the message names its file and its
                number.
        """
        # TensorFlow has no op that reads these files by position.
        records, problem = tf.numpy_function(
            self._fetch_or_say, [positions], (tf.string, tf.string), stateful=False
        )
        with tf.control_dependencies([tf.debugging.Assert(problem == "", [problem])]):
            return tf.ensure_shape(tf.identity(records), positions.shape)

    def fetch(self, positions: np.ndarray) -> np.ndarray:
        """Reads the records at positions as `read` does, outside of a graph.

        Raises:
            RecordFileError: a record is damaged; the message names its file and its number.
            OSError: a file cannot be read; the error names it.
        """
        places = collections.defaultdict(list)  # of each file: which results, which records
        for place, position in enumerate(positions.ravel().tolist()):
            number, record = self._place(position)
            places[number].append((place, record))
        found = np.empty(positions.size, object)
        for number, wanted in places.items():
            records = self._file(number).read([record for _, record in wanted])
            for (place, _), content in zip(wanted, records, strict=True):
                found[place] = content
        return found.reshape(positions.shape)

    def _fetch_or_say(self, positions: np.ndarray) -> tuple[np.ndarray, bytes]:
        # An error that leaves a numpy_function is logged by TensorFlow with its traceback.
        try:
            return self.fetch(positions), b""
        except (RecordFileError, OSError) as error:  # a file may be removed meanwhile
            return np.full(positions.shape, b"", object), os.fsencode(str(error))

    def _place(self, position: int) -> tuple[int, int]:
        if not 0 <= position < len(self):
            raise IndexError(f"record {position} of {len(self)}")
        number = bisect.bisect_right(self._ends, position)
        return number, position - (self._ends[number - 1] if number else 0)

    def _file(self, number: int) -> _RecordFile:
        if number not in self._files:
            with self._opening:
                if number not in self._files:
                    self._files[number] = self._open_counted(number)
        return self._files[number]

    def _open_counted(self, number: int) -> _RecordFile:
        file = self._open(self._paths[number])
        if self._counts is not None and file.num_records() != self._counts[number]:
            raise RecordFileError(
                f"{self._paths[number]} holds {file.num_records()} records in place of "
                f"{self._counts[number]}"
            )
        return file


class _ArrayRecordFile:
    """An ArrayRecord file, which stays open."""

    def __init__(self, path: str):
        self._path = path
        self._reader = array_record_module.ArrayRecordReader(
            path, options=_READER_OPTIONS, file_reader_buffer_size=_BUFFER_SIZE
        )
        if not self._reader.ok():
            # Closing it gives the reason; without that it would pass for a file without records.
            try:
                self._reader.close()
            except Exception as error:  # the C++ reader raises errors of several types
                raise RecordFileError(
                    f"{path} is not a complete ArrayRecord file: {error}"
                ) from error

    def num_records(self) -> int:
        return self._reader.num_records()

    def read(self, positions: Sequence[int]) -> Sequence[bytes]:
        try:
            return self._reader.read(positions)
        except Exception as error:  # see above
            if len(positions) > 1:  # it does not say of which record it speaks
                return [self.read([position])[0] for position in positions]
            reason = _HASHES.sub("", " ".join(str(error).split()))
            raise RecordFileError(
                f"{self._path}, record {positions[0]}, is damaged: {reason}"
            ) from error


class _TFRecordFile:
    """A TFRecord file and the places of its records; it is opened for every read."""

    def __init__(self, path: str):
        self._path = path
        places = np.array(list(_record_places(path)), np.int64).reshape(-1, 2)
        self._starts, self._lengths = places.T

    def num_records(self) -> int:
        return len(self._starts)

    def read(self, positions: Sequence[int]) -> list[bytes]:
        records = []
        with open(self._path, "rb") as file:
            for position in positions:
                file.seek(self._starts[position])
                record = file.read(self._lengths[position])
                checksum = file.read(_CHECKSUM.size)
                if len(record) != self._lengths[position] or checksum != _checksum(record):
                    raise RecordFileError(
                        f"{self._path}, record {position}, is damaged: its checksum differs"
                    )
                records.append(record)
        return records


def _record_places(path: str) -> Iterator[tuple[int, int]]:
    """Yields the start and the length of every record."""
    size = os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        start = 0
        for number in itertools.count():
            if start == size:
                return
            file.seek(start)
            header = file.read(_HEADER)
            end = start
            if len(header) == _HEADER:
                (length,) = _LENGTH.unpack_from(header)
                if header[_LENGTH.size :] != _checksum(header[: _LENGTH.size]):
                    raise RecordFileError(
                        f"{path}, record {number}, is damaged: the checksum of its length differs, "
                        "so that the records after it cannot be found"
                    )
                end = start + _HEADER + length + _CHECKSUM.size
            if not start < end <= size:
                raise RecordFileError(
                    f"{path} is not a complete TFRecord file: it ends at byte {size}, within the "
                    f"record that begins at byte {start}"
                )
            yield start + _HEADER, length
            start = end


def _checksum(content: bytes) -> bytes:
    """Returns the masked CRC-32C of the format, 4 bytes."""
    checksum = google_crc32c.value(content)
    return _CHECKSUM.pack(((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)
