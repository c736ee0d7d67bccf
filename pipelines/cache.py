"""Keeps results that were computed from files in the cache folder, for other runs.

A kept result lies under a digest of everything that it depends on: the kind of result and its
version, the arguments of the computation, and path, size and modification time of the files. So
nothing is ever looked up that could be out of date or of another format, and nothing must be
deleted for the results to be right; deleting the cache folder costs the time to compute them again.
Each file begins with a digest of its content, which is compared before it is used.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, TypeVar

from absl import logging

from dbl_tf import atomic
from pipelines import locations

_T = TypeVar("_T")

# A file is this, a digest of all that follows, and the result.
_MARK = b"dbl_tf.cache/1\n\0"
_DIGEST_SIZE = 32
_START = len(_MARK) + _DIGEST_SIZE
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of result.

    Attributes:
        name: the name of its folder in the cache folder.
        version: a number to raise whenever the same arguments and files would give another result,
            because a check is stricter or images are preprocessed in another way, or the same
            result in another file format. Results of other versions are not found any more.
        suffix: the suffix of its files.
    """

    name: str
    version: int
    suffix: str = ""

    @functools.cached_property
    def _key(self) -> bytes:
        return f"{self.name}/{self.version}".encode() + _MARK

    def digest(self, parts: Iterable[str | bytes], files: Iterable[str | os.PathLike] = ()) -> str:
        """Returns a digest of all that a result depends on, 32 hexadecimal digits.

        Args:
            parts: the arguments of the computation, in a fixed order.
            files: the files that it reads; one that is listed again counts once.

        Raises:
            OSError: a file is not there.
        """
        digest = hashlib.blake2b(digest_size=16, key=self._key)
        states = (file_state(path, locations.status(path)) for path in dict.fromkeys(files))
        for mark, group in ((b"p", parts), (b"f", states)):
            for part in group:
                content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
                # With its length, so that no two lists of parts give the same bytes.
                digest.update(mark + len(content).to_bytes(8, "little"))
                digest.update(content)
        return digest.hexdigest()

    def file_digest(self, path: str | os.PathLike, status: locations.Status) -> bytes:
        """Returns a digest of one file, 8 bytes, for results that consist of such digests.

        Args:
            path: the file.
            status: what `locations.status` returned for it.
        """
        return hashlib.blake2b(file_state(path, status), digest_size=8, key=self._key).digest()

    def path(
        self,
        cache_dir: str | os.PathLike,
        parts: Iterable[str | bytes],
        files: Iterable[str | os.PathLike] = (),
    ) -> pathlib.Path:
        """Returns the path of a result; for `parts` and `files` see `digest`."""
        return pathlib.Path(cache_dir, self.name, f"{self.digest(parts, files)}{self.suffix}")


def load(path: str | os.PathLike, read: Callable[[BinaryIO], _T]) -> _T | None:
    """Reads a kept result.

    A file that is not as it was written is removed with a warning, so that the result is computed
    again.

    Args:
        path: the file of the result.
        read: a function that reads the result to the end of an open file, from where that is, and
            raises a `ValueError` if it is something else.

    Returns:
        What `read` returns, or None if there is no such file or it is damaged.

    Raises:
        OSError: the file cannot be opened or read; the error names it.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return None
    with file, _naming(path):
        problem = _problem(file)
        if problem is None:
            file.seek(_START)
            try:
                return read(file)
            except ValueError as error:
                problem = str(error)
    logging.warning(
        "%s is damaged (%s); it is removed, and what it held is computed again", path, problem
    )
    pathlib.Path(path).unlink(missing_ok=True)
    return None


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Gives a file to write a result to, which is kept at the end of the block.

    The folder is created if it does not exist. The file is flushed to the disk and appears under
    its name as a whole or not at all; see `atomic.replacing`.

    Raises:
        OSError: the file cannot be written, for example on a full disk; the error names `path`.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as tmp_path, open(tmp_path, "w+b") as file:
        file.write(_MARK + bytes(_DIGEST_SIZE))
        yield file
        file.seek(_START)
        digest = _digest(file)
        file.seek(len(_MARK))
        file.write(digest)


def _problem(file: BinaryIO) -> str | None:
    """Says what is wrong with a file, None if it is as it was written."""
    start = file.read(_START)
    if len(start) < _START:
        return f"it is cut off after {len(start)} bytes"
    if not start.startswith(_MARK):
        return "it does not begin as a file of the cache"
    if _digest(file) != start[len(_MARK) :]:
        return "its digest differs from that of what was written"
    return None


def _digest(file: BinaryIO) -> bytes:
    """Returns the digest of a file, from where it is to its end."""
    digest = hashlib.blake2b(digest_size=_DIGEST_SIZE)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.digest()


@contextlib.contextmanager
def _naming(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def file_state(path: str | os.PathLike, status: locations.Status) -> bytes:
    """Returns path, size and version of a file, which change when its content does."""
    path = path if locations.scheme_of(path) else os.path.abspath(path)
    return os.fsencode(f"{path}\0{status.size}\0{status.version}")
