"""Keeps results that were computed from files in the cache folder, for other runs.

A kept result lies under a digest of everything that it depends on: the kind of result and its
version, the arguments of the computation, and path, size and modification time of the files. So
nothing is ever looked up that could be out of date or of another format, and nothing must be
deleted for the results to be right; deleting the cache folder costs the time to compute them again.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from absl import logging

from dbl_tf import atomic
from pipelines import locations

_T = TypeVar("_T")
# What NumPy and the project's own readers raise when a file is cut off or altered.
_DAMAGED = (
    ValueError,
    EOFError,
    KeyError,
    MemoryError,  # an array that is said to be larger than the memory
    OverflowError,
    TypeError,
    struct.error,
    zlib.error,
    OSError,  # a place that the file gives, but does not have
    RuntimeError,
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
)


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
        return f"{self.name}/{self.version}".encode()

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


def load(path: str | os.PathLike, read: Callable[[str | os.PathLike], _T]) -> _T | None:
    """Reads a kept result.

    A damaged file is removed with a warning, so that the result is computed again.

    Args:
        path: the file of the result.
        read: a function that reads the file, and raises a `ValueError` or an error of NumPy if it
            is damaged.

    Returns:
        What `read` returns, or None if there is no such file or it is damaged.
    """
    try:
        return read(path)
    except FileNotFoundError:
        return None
    except _DAMAGED as error:
        if getattr(error, "filename", None) is not None and isinstance(error, OSError):
            raise  # it could not be opened
        logging.warning(
            "%s is damaged (%s); it is removed, and what it held is computed again", path, error
        )
        pathlib.Path(path).unlink(missing_ok=True)
        return None


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Writes a result by `atomic.replacing`, and creates its folder if it does not exist."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as tmp_path:
        yield tmp_path


def file_state(path: str | os.PathLike, status: locations.Status) -> bytes:
    """Returns path, size and version of a file, which change when its content does."""
    path = path if locations.scheme_of(path) else os.path.abspath(path)
    return os.fsencode(f"{path}\0{status.size}\0{status.version}")
