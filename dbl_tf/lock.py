"""A directory that one process may write to at a time.

Standard library only. `Lock` works on every platform that has POSIX or Windows file locks.
"""

import errno
import logging
import os
import pathlib
import socket
import sys
import threading
from typing import BinaryIO

if sys.platform == "win32":
    import msvcrt

    # Windows lets no other process read a locked byte, so this one lies far behind the text that
    # names the holder.
    _LOCKED_BYTE = 1 << 30

    def _lock_file(file: BinaryIO) -> None:
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _unlock_file(file: BinaryIO) -> None:
        file.seek(_LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    # POSIX record locks hold between machines that share a file system, and no child process
    # inherits them, which might outlive its parent.
    def _lock_file(file: BinaryIO) -> None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock_file(file: BinaryIO) -> None:
        fcntl.lockf(file, fcntl.LOCK_UN)


_TAKEN = (errno.EACCES, errno.EAGAIN)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)

# POSIX record locks belong to the process: a second lock on the same file would succeed, and
# closing that second file would release the first lock. So a process keeps a list of its own.
_held_here: set[str] = set()
_guard = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child process holds none of its parent's locks
    os.register_at_fork(after_in_child=_held_here.clear)


class InUseError(OSError):
    """Another process, or another `Lock` of this process, holds the directory."""


class Lock:
    """The right to write to a directory, which one `Lock` object can hold at a time.

    The operating system releases it when the process ends, however it ends. The lock file stays
    in the directory and names the last holder.

    Args:
        directory: it must exist when the lock is acquired.
    """

    NAME = "lock"

    def __init__(self, directory: str | os.PathLike):
        self.path = pathlib.Path(directory, self.NAME)
        self._key = ""
        self._file: BinaryIO | None = None
        self._is_held = False

    def acquire(self) -> bool:
        """Acquires the lock without waiting; does nothing if this object holds it already.

        Returns:
            Whether the lock is held. It is not where the file system has no locks, which is logged
            as a warning.

        Raises:
            InUseError: the lock is taken; the message names the process that holds it.
            OSError: the lock file cannot be written; the error names it.
        """
        if self._file is not None:
            return self._is_held
        self._key = os.path.realpath(self.path)
        with _guard:
            if self._key in _held_here:
                raise self._in_use(f"process {os.getpid()}, this one")
            file = self._file = self._open_and_lock()
            if self._is_held:
                _held_here.add(self._key)
                self._name_holder(file)
        return self._is_held

    def release(self) -> None:
        """Releases the lock, if it is held."""
        with _guard:
            self._close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _open_and_lock(self) -> BinaryIO:
        """Opens the lock file, and sets whether it could be locked."""
        file = open(self.path, "a+b", buffering=0)  # noqa: SIM115
        try:
            _lock_file(file)
            self._is_held = True
        except OSError as error:
            if error.errno in _NO_LOCKS:
                logging.getLogger(__name__).warning(
                    "%s cannot be locked (%s), so nothing keeps a second process from writing to "
                    "it at the same time",
                    self.path.parent,
                    error.strerror,
                )
                return file
            with file:
                if error.errno not in _TAKEN:
                    raise
                file.seek(0)
                holder = file.read().decode(errors="replace").strip()
            raise self._in_use(holder or "an unknown process") from None
        return file

    def _name_holder(self, file: BinaryIO) -> None:
        text = f"process {os.getpid()} on {socket.gethostname()}"
        try:
            file.truncate(0)
            file.write(text.encode())
        except OSError as error:
            self._close()
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _close(self) -> None:
        if self._file is None:
            return
        if self._is_held:
            _unlock_file(self._file)
            _held_here.discard(self._key)
        self._file.close()
        self._file, self._is_held = None, False

    def _in_use(self, holder: str) -> InUseError:
        return InUseError(
            f"{self.path.parent} is in use by another run ({holder}): wait until it ends, or "
            "choose another directory"
        )
