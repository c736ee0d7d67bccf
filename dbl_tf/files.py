"""Files that are written whole or not at all, and a lock on a directory of them."""

import contextlib
import errno
import fcntl
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator
from typing import TextIO

from absl import logging

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_INCOMPLETE = ".incomplete"


class InUseError(OSError):
    """Another process writes to this directory."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a path beside `path` to write to, which takes its place once all is well.

    A process killed at any moment leaves the old file or the new one under the name. The path to
    write to has the same suffix; it is removed where writing fails.

    Raises:
        OSError: naming `path`, where the disk is full.
    """
    path = pathlib.Path(path)
    beside = path.with_name(f"{path.stem}{_INCOMPLETE}{path.suffix}")
    try:
        with naming_full_disk(path):
            yield beside
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def naming_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """Turns what NumPy, HDF5 and TensorFlow raise on a full disk into an `OSError` with a path.

    One that names its file already is left as it is.

    Args:
        path: what is written, or where.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "filename", None) is not None:
            raise
        for code in _FULL:
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code), str(path)) from error
        raise


def remove_incomplete(directory: str | os.PathLike) -> None:
    """Removes what a killed process left half-written, at any depth."""
    for path in list(pathlib.Path(directory).rglob(f"*{_INCOMPLETE}*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


class Lock:
    """The right to write to a directory, which one process can hold at a time.

    It is let go when the process ends, however it ends. Its file stays.

    Args:
        directory: must be there when the lock is taken.
    """

    NAME = "lock"

    def __init__(self, directory: str | os.PathLike):
        self.path = pathlib.Path(directory, self.NAME)
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Takes it; does nothing where this object holds it.

        Where the file system knows no locks this is said, and nothing is held.

        Raises:
            InUseError: another process holds it; names that.
        """
        if self._file is not None:
            return
        # Of POSIX: they hold between machines with a common file system, and no child inherits
        # them, which might live longer than this process.
        self._file = open(self.path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logging.warning(
                    "%s cannot be locked (%s): nothing keeps a second process from writing there",
                    self.path.parent,
                    error.strerror,
                )
                return
            self._file.seek(0)
            holder = self._file.read().strip()
            self.release()
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise InUseError(
                f"{self.path.parent} is in use by another run ({holder}): wait for its end, or "
                "choose another directory"
            ) from None
        with naming_full_disk(self.path):
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    def release(self) -> None:
        """Lets it go."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
