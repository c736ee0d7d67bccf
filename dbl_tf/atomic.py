"""Files that are written whole or not at all."""

import contextlib
import errno
import os
import pathlib
import shutil
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_INCOMPLETE = ".incomplete"


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
        with reraise_full_disk(path):
            yield beside
            with open(beside, "rb") as file:
                os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def reraise_full_disk(path: str | os.PathLike) -> Iterator[None]:
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
