"""The lock of a run directory, which one process holds at a time."""

import errno
import fcntl
import os
import pathlib
import socket
from typing import TextIO

from absl import logging

from dbl_tf.atomic import reraise_full_disk

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class InUseError(OSError):
    """Another process writes to this directory."""


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
        with reraise_full_disk(self.path):
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
