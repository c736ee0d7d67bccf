"""Files and folders that are written as a whole or not at all.

Standard library only, on every platform. What is being written has a temporary name of its own, in
the folder where it is going to stay; it is flushed to the disk and then renamed. So a process that
is killed leaves the old content or the new one, and two processes that write the same file do not
meet.
"""

import contextlib
import csv
import errno
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dbl_tf.lock import InUseError, Lock

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# NumPy's error for an array that does not fit on the disk gives no reason.
_NUMPY_SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
_CAN_SYNC_FOLDERS = hasattr(os, "O_DIRECTORY")  # Windows cannot open a folder as a file
_CANNOT_SYNC = (errno.EINVAL, errno.EOPNOTSUPP)  # some network file systems, for folders

_INCOMPLETE = ".incomplete"
# Temporary names are hidden, so that patterns such as `train-*.tfrecord` do not match them. Those
# of earlier versions were not, and had no random part.
_TEMPORARY_NAMES = (
    re.compile(rf"\.(.+){re.escape(_INCOMPLETE)}-[0-9a-f]{{16}}(\.[^.]+)?"),
    re.compile(rf"(.+){re.escape(_INCOMPLETE)}(\.[^.]+)?"),
)
_TEMPORARY_FOLDER = re.compile(r"incomplete-[0-9a-f]{32}")


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a temporary path to write a file to, which replaces `path` when the block has ended.

    The temporary path lies in the same folder, has the same suffix, is hidden, and belongs to this
    call alone. The temporary file is removed if anything fails.

    Args:
        path: the file to write, in a folder that exists. It need not exist itself.

    Raises:
        OSError: the file cannot be written, for example on a full disk; the error names `path`.
    """
    path = pathlib.Path(path)
    tmp_path = path.with_name(f".{path.stem}{_INCOMPLETE}-{secrets.token_hex(8)}{path.suffix}")
    try:
        with reraise_full_disk(path):
            yield tmp_path
            _sync_file(tmp_path)
            os.replace(tmp_path, path)
    except BaseException as error:
        tmp_path.unlink(missing_ok=True)
        if isinstance(error, OSError) and str(error.filename) == str(tmp_path):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    _sync_folder(path.parent)


def write_csv(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Writes a CSV file with a line for each row, below the names of all their columns.

    Args:
        rows: values by the names of their columns, in the order of their first appearance.
        path: the path of the file.
    """
    columns = dict.fromkeys(name for row in rows for name in row)
    with (
        replacing(path) as tmp_path,
        open(tmp_path, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def target_name(name: str) -> str:
    """The name of the file that a temporary file was going to replace.

    Args:
        name: the name of any file, without its folder.

    Returns:
        `name` itself where it is not a temporary name of `replacing`.
    """
    for pattern in _TEMPORARY_NAMES:
        if match := pattern.fullmatch(name):
            return match[1] + (match[2] or "")
    return name


def remove_incomplete(directory: str | os.PathLike) -> None:
    """Removes what killed processes have left half-written, at any depth.

    The caller must know that no other process writes to the directory now, for example by a
    `dbl_tf.lock.Lock`.
    """
    for path in list(pathlib.Path(directory).rglob(f"*{_INCOMPLETE}*")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(parent: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Gives a new, empty folder below `parent`, for `publish` to move to its place.

    It is removed at the end of the block where it has not been moved. What killed processes have
    left of such folders in `parent` is removed at the beginning; those of living ones stay.

    Args:
        parent: it is created if it does not exist.
    """
    parent = pathlib.Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_folders(parent)
    lock, folder = _make_locked_folder(parent)
    try:
        yield folder
    finally:
        lock.release()  # before the removal: Windows removes no open file
        # What cannot be removed now is removed by the next call.
        shutil.rmtree(lock.path.parent, ignore_errors=True)


def publish(folder: str | os.PathLike, path: str | os.PathLike) -> None:
    """Flushes all files of a folder to the disk, and then renames the folder to `path`.

    Args:
        folder: the folder that `temporary_folder` gave.
        path: its new place, on the same file system.

    Raises:
        FileExistsError: there is something at `path`; the folder stays where it is.
    """
    folder, path = pathlib.Path(folder), pathlib.Path(path)
    for root, _, names in os.walk(folder):
        for name in names:
            _sync_file(pathlib.Path(root, name))
        _sync_folder(root)
    exists = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    if os.path.lexists(path):  # an empty folder, which renaming would replace, counts too
        raise exists
    try:
        os.rename(folder, path)
    except OSError as error:  # another process may have been quicker
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise exists from error
        raise
    _sync_folder(path.parent)


@contextlib.contextmanager
def reraise_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """Turns what NumPy, HDF5 and TensorFlow raise on a full disk into an `OSError` with a path.

    An error that names its file already stays as it is.

    Args:
        path: the file or folder that is being written.
    """
    try:
        yield
    except Exception as error:
        if getattr(error, "filename", None) is not None:
            raise
        for code in _FULL:
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code), str(path)) from error
        if isinstance(error, OSError) and _NUMPY_SHORT_WRITE.fullmatch(str(error)):
            raise OSError(
                f"{path} could not be written to its end ({error}); the disk may be full"
            ) from error
        raise


def _make_locked_folder(parent: pathlib.Path) -> tuple[Lock, pathlib.Path]:
    """A new folder, next to a lock that shows whether its writer lives."""
    while True:
        # Made as any folder is, because one of `tempfile` could be read by its owner alone.
        holder = parent / f"incomplete-{secrets.token_hex(16)}"
        folder = holder / "folder"
        holder.mkdir()
        lock = Lock(holder)
        try:
            lock.acquire()
            folder.mkdir()
        except (FileNotFoundError, InUseError):
            # Another process found it before it was locked, and took it for abandoned.
            lock.release()
            continue
        return lock, folder


def _remove_abandoned_folders(parent: pathlib.Path) -> None:
    for path in parent.iterdir():
        if not (_TEMPORARY_FOLDER.fullmatch(path.name) and path.is_dir()):
            continue
        with Lock(path) as lock:
            try:
                is_abandoned = lock.acquire()
            except (InUseError, FileNotFoundError, PermissionError):
                continue  # its writer lives, or has just removed it, or is another user
            if is_abandoned:
                shutil.rmtree(path, ignore_errors=True)


def _sync_file(path: pathlib.Path) -> None:
    with open(path, "r+b") as file:  # Windows flushes only what is open for writing
        os.fsync(file.fileno())


def _sync_folder(path: str | os.PathLike) -> None:
    """Waits until the names in a folder are on the disk."""
    if not _CAN_SYNC_FOLDERS:
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(handle)
