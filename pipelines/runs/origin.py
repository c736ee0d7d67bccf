"""What a run was started with: a fingerprint of its data, and the threads that sums depend on."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar

import msgspec
import numpy as np
import tensorflow as tf

from dbl_tf import saved_json
from dbl_tf.cores import usable_cores
from pipelines import cache, locations
from pipelines.examples import Examples

_ROWS_PER_BLOCK = 1 << 14
_BYTES_AT_ONCE = 1 << 20
# Variables of TensorFlow that change the order of sums.
_VARIABLES = ("TF_ENABLE_ONEDNN_OPTS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")


class SplitFingerprint(msgspec.Struct, frozen=True):
    """Digests of one split, hexadecimal.

    Attributes:
        num_examples: the number of examples.
        names: of their names, in their order.
        labels: of their labels.
        files: of paths, sizes and modification times of the files; of the numbers for features in
            memory; empty if the images are made in memory.
        content: of the bytes of the files, in the order in which they first appear; empty if it
            was not asked for, or there are no files.
    """

    num_examples: saved_json.Count
    names: str
    labels: str
    files: str
    content: str = ""

    @classmethod
    def of(cls, examples: Examples, *, content: bool = False) -> "SplitFingerprint":
        """Returns the fingerprint of a split.

        Args:
            examples: the examples of the split.
            content: whether its files are read, and not only asked for their size and time.

        Raises:
            OSError: a file is not there.
        """
        return cls(
            len(examples),
            _digest(name.encode("utf-8", "surrogateescape") for name in examples.names),
            _digest(
                np.ascontiguousarray(part, np.int64).tobytes()
                for matrix in (examples.labels, examples.unknown)
                if matrix is not None
                for part in (matrix.shape, matrix.indptr, matrix.indices)
            ),
            _digest_of_files(examples),
            _digest_of_content(examples) if content else "",
        )

    def changes(self, before: "SplitFingerprint") -> list[str]:
        """Returns what differs from an earlier fingerprint, in words."""
        found = []
        if self.num_examples != before.num_examples:
            found.append(f"{before.num_examples:,} examples then, {self.num_examples:,} now")
        if self.names != before.names:
            found.append("names")
        if self.labels != before.labels:
            found.append("labels")
        if self.content and before.content:  # files may have been copied
            if self.content != before.content:
                found.append("files (content)")
        elif self.files != before.files:
            found.append("files (path, size or time)")
        return found

    def keeping_content(self, before: "SplitFingerprint") -> "SplitFingerprint":
        """Returns this fingerprint, with the content of an earlier one of the same files."""
        if self.content or self.files != before.files:
            return self
        return msgspec.structs.replace(self, content=before.content)


class Origin(msgspec.Struct, frozen=True):
    """The content of `origin.json`.

    Attributes:
        splits: the fingerprint of each split.
        threads: the versions, devices, cores and threads on which the last digits of the weights
            depend, by name.
        accepted_changes: the changes of the data that were accepted, in words.
    """

    splits: dict[str, SplitFingerprint]
    threads: dict[str, str]
    accepted_changes: list[str] = []

    NAME: ClassVar[str] = "origin.json"

    @classmethod
    def of(
        cls,
        splits: Mapping[str, Examples],
        strategy: tf.distribute.Strategy,
        *,
        content: bool = False,
    ) -> "Origin":
        """Returns the origin of a run that starts now.

        Args:
            splits: the splits of its data.
            strategy: how it is divided among devices.
            content: see `SplitFingerprint.of`.

        Raises:
            OSError: a file of the data is not there.
        """
        threading = tf.config.threading
        return cls(
            {
                name: SplitFingerprint.of(examples, content=content)
                for name, examples in splits.items()
            },
            {
                "TensorFlow": tf.__version__,
                "replicas": str(strategy.num_replicas_in_sync),
                "GPUs": str(len(tf.config.list_physical_devices("GPU"))),
                "cores": str(usable_cores()),
                "intra-op threads": str(threading.get_intra_op_parallelism_threads()),
                "inter-op threads": str(threading.get_inter_op_parallelism_threads()),
                **{name: os.environ.get(name, "not set") for name in _VARIABLES},
            },
        )

    def save(self, run_dir: pathlib.Path) -> None:
        """Writes the file of a run directory."""
        _FORMAT.write(run_dir / self.NAME, msgspec.to_builtins(self), indent=1)

    @classmethod
    def load(cls, run_dir: pathlib.Path) -> "Origin | None":
        """Reads the file of a run directory; None if an earlier version left it without one.

        Raises:
            ValueError: it holds something else, or was changed; the message names file and field.
        """
        path = run_dir / cls.NAME
        if not path.exists():
            return None
        return _FORMAT.read(path)

    def data_changes(self, before: "Origin") -> list[str]:
        """Returns what differs in the data from an earlier origin, a split at a time."""
        found = []
        for name in dict.fromkeys([*before.splits, *self.splits]):
            if name not in self.splits or name not in before.splits:
                found.append(f"{name}: {'added' if name in self.splits else 'removed'}")
            elif changes := self.splits[name].changes(before.splits[name]):
                found.append(f"{name}: {', '.join(changes)}")
        return found

    def of_all_machines(self) -> dict[str, str]:
        """Returns what must be the same on all machines of a cluster, by name.

        Files may be copies, of other paths and times, and machines may have other cores.
        """
        digests = {}
        for name, split in self.splits.items():
            digests[f"examples of {name}"] = str(split.num_examples)
            digests[f"names of {name}"] = split.names
            digests[f"labels of {name}"] = split.labels
        versions = {"Python": platform.python_version()}
        versions |= {n: importlib.metadata.version(n) for n in ("tensorflow", "keras", "numpy")}
        versions["dbl_tf"] = importlib.metadata.version("dbl-tf")
        return {**digests, **versions}

    def thread_changes(self, before: "Origin") -> list[str]:
        """Returns what may change the last digits of the weights, as words for a warning."""
        return [
            f"{name}: {before.threads[name]} then, {value} now"
            for name, value in self.threads.items()
            if before.threads.get(name, value) != value
        ]


_FORMAT = saved_json.Format(
    "dbl_tf.Origin",
    "fingerprint of data",
    Origin,
    "restore it from a copy, or remove it to go on without knowing whether the data have changed",
)


def _digest_of_files(examples: Examples) -> str:
    if examples.features is None:
        return _digest(_file_states(examples.files)) if examples.files else ""
    array, rows = examples.features.array, examples.features.rows
    if isinstance(array, np.memmap):
        positions = np.ascontiguousarray(rows, np.int64).tobytes()
        return _digest([*_file_states([str(array.filename)]), positions])
    starts = range(0, len(rows), _ROWS_PER_BLOCK)
    blocks = (np.ascontiguousarray(array[rows[i : i + _ROWS_PER_BLOCK]]) for i in starts)
    return _digest(block.tobytes() for block in blocks)


def _digest_of_content(examples: Examples) -> str:
    paths: Iterable[str] = examples.files
    if examples.features is not None:
        array = examples.features.array
        paths = [str(array.filename)] if isinstance(array, np.memmap) else []
    digests = [_digest_of_file(path) for path in dict.fromkeys(paths)]
    return _digest(digests) if digests else ""


def _digest_of_file(path: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with locations.open_binary(path) as file:
        while block := file.read(_BYTES_AT_ONCE):
            digest.update(block)
    return digest.digest()


def _file_states(paths: Iterable[str]) -> Iterator[bytes]:
    for path in dict.fromkeys(paths):
        yield cache.file_state(path, locations.status(path))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))  # no two lists of parts give the same bytes
        digest.update(part)
    return digest.hexdigest()
