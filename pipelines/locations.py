"""Where files are: joined, asked about and opened alike, on the local disk or behind a scheme.

A location is a local path, or a URL such as `gs://bucket/a.jpg` of a file system that TensorFlow
knows. The functions of `os.path` would make `/here/gs:/bucket/a.jpg` of it, so locations are joined
and made absolute here alone.

TensorFlow is imported for locations behind a scheme alone.
"""

import contextlib
import errno
import hashlib
import io
import os
import posixpath
import re
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO, NamedTuple

# Two letters at least: `C:` is a drive. Other characters are refused by name, and not taken for a
# folder.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://")
# What `os.path` and `pathlib` leave of a URL.
_COLLAPSED = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+):/(?!/)")
# What file managers put into folders, in lower case. Those of macOS and Linux hide theirs by a dot.
_OF_FILE_MANAGERS = {"__macosx", "desktop.ini", "ehthumbs.db", "thumbs.db"}
_REMEDIES = {
    "http": "download the files, and give the folder they are in",
    "https": "download the files, and give the folder they are in",
    "s3": "install tensorflow-io, or copy the files, and give the folder they are in",
}


class Status(NamedTuple):
    """The state of a file or folder.

    Attributes:
        is_file: whether it is a file that can be read.
        is_folder: whether it is a folder.
        size: the number of bytes.
        version: a text that changes when the content does: the time of the last change in
            nanoseconds or, where the file system keeps none, a digest of the content.
    """

    is_file: bool
    is_folder: bool
    size: int
    version: str


def scheme_of(location: str | os.PathLike) -> str | None:
    """Returns the scheme of a URL, such as "gs"; None for a local path.

    Example:

    >>> scheme_of("gs://bucket/a.jpg"), scheme_of("images/a.jpg"), scheme_of("C:/images/a.jpg")
    ('gs', None, None)
    """
    match = _SCHEME.match(os.fspath(location))
    return match[1] if match else None


def check_schemes(locations: Iterable[str | os.PathLike], what: str) -> None:
    """Refuses URLs of schemes for which TensorFlow has no file system.

    Args:
        locations: local paths and URLs.
        what: what they are, for the message, such as "images of FILE".

    Raises:
        ValueError: one line that names the schemes, the first such URL and what would be right.
    """
    import tensorflow as tf

    known = set(tf.io.gfile.get_registered_schemes()) - {""}
    first: dict[str, str] = {}
    count = 0
    for each in locations:
        location = os.fspath(each)
        if ":/" not in location:
            continue
        match = _SCHEME.match(location)
        if match is None:
            match = _COLLAPSED.match(location)
            if match is None or match[1].lower() not in known | _REMEDIES.keys():
                continue
        elif match[1] in known:
            continue
        first.setdefault(match[0], location)
        count += 1
    if not first:
        return
    start, location = next(iter(first.items()))
    scheme = start.partition(":")[0].lower()
    read = ", ".join(["local paths", *(f"{name}://" for name in sorted(known))])
    remedy = _REMEDIES.get(scheme, "copy the files, and give the folder they are in")
    if scheme in known:
        remedy = f"write {scheme}://"
    raise ValueError(
        f"{what}: {count} start with {' or '.join(first)}, such as {location!r}, which TensorFlow "
        f"does not read here (it reads {read}); {remedy}"
    )


def absolute(location: str | os.PathLike) -> str:
    """Returns the absolute path, in which `~` is expanded; a URL stays as it is."""
    location = os.fspath(location)
    return location if scheme_of(location) else os.path.abspath(os.path.expanduser(location))


def join(folder: str | os.PathLike, name: str) -> str:
    """Returns the location of a name that is relative to a folder.

    Args:
        folder: a local folder or a URL.
        name: a relative path. An absolute path or a URL stands for itself.

    Example:

    >>> join("/data/images", "../a.jpg"), join("gs://bucket/images", "../a.jpg")
    ('/data/a.jpg', 'gs://bucket/a.jpg')
    >>> join("/data/images", "gs://bucket/a.jpg")
    'gs://bucket/a.jpg'
    """
    folder = os.fspath(folder)
    if scheme_of(name):
        return name
    if not scheme_of(folder):
        return os.path.normpath(os.path.join(folder, name))
    if posixpath.isabs(name):
        return posixpath.normpath(name)
    start, _, place = folder.partition("://")
    bucket, _, path = place.partition("/")
    # With a leading slash, so that `..` does not lead out of the bucket.
    path = posixpath.normpath(posixpath.join("/", path, name)).lstrip("/")
    return f"{start}://{bucket}/{path}"


def relative(location: str, folder: str | os.PathLike) -> str:
    """Returns the path of a file relative to a folder; a URL to another place stays as it is."""
    folder = os.fspath(folder)
    if not scheme_of(location) and not scheme_of(folder):
        return os.path.relpath(location, folder)
    return location.removeprefix(folder.rstrip("/") + "/")


def status(location: str | os.PathLike) -> Status:
    """Returns the state of a file or folder.

    Raises:
        OSError: it does not exist or cannot be reached.
        ValueError: the path holds a null byte.
    """
    location = _local(location)
    if not scheme_of(location):
        found = os.stat(location)
        return Status(
            stat.S_ISREG(found.st_mode),
            stat.S_ISDIR(found.st_mode),
            found.st_size,
            str(found.st_mtime_ns),
        )
    import tensorflow as tf

    try:
        remote = tf.io.gfile.stat(location)
        if remote.is_directory:
            return Status(False, True, 0, "")
        version = str(remote.mtime_nsec) if remote.mtime_nsec else _digest_of(location)
    except tf.errors.NotFoundError:
        raise FileNotFoundError(f"no such file: {location}") from None
    except tf.errors.OpError as error:
        # A message for many files, each of which is named beside it.
        raise OSError(error.message.replace(location, "the file")) from error
    return Status(True, False, remote.length, version)


def is_folder(location: str | os.PathLike) -> bool:
    """Whether there is a folder at a location."""
    location = _local(location)
    if not scheme_of(location):
        return os.path.isdir(location)
    import tensorflow as tf

    return tf.io.gfile.isdir(location)


def open_binary(location: str | os.PathLike) -> IO[bytes]:
    """Opens a file for reading its bytes; one behind a scheme is read as a whole.

    Raises:
        OSError: it cannot be read.
    """
    location = _local(location)
    if not scheme_of(location):
        return open(location, "rb")
    import tensorflow as tf

    with _reraise_missing(location), tf.io.gfile.GFile(location, "rb") as file:
        return io.BytesIO(file.read())


def read_bounded(location: str | os.PathLike, max_bytes: int) -> bytes:
    """Returns the bytes of a file, whose size is looked at before it is read.

    Args:
        location: a local path or a URL.
        max_bytes: the largest size.

    Raises:
        OSError: it cannot be read, or is no file, such as a folder, a pipe or a device.
        ValueError: it is larger, or its path holds a null byte.
    """
    location = _local(location)
    if scheme_of(location):
        import tensorflow as tf

        with _reraise_missing(location), tf.io.gfile.GFile(location, "rb") as file:
            _check_size(file.size(), max_bytes)
            return file.read()
    found = os.stat(location)
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
        raise OSError(f"it is {kind}, and not a file")
    _check_size(found.st_size, max_bytes)
    with open(location, "rb") as file:
        content = file.read(max_bytes + 1)  # it may have grown since
    _check_size(len(content), max_bytes)
    return content


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ValueError(f"it has {size:,} bytes, and at most {max_bytes:,} are read")


@contextlib.contextmanager
def _reraise_missing(location: str) -> Iterator[None]:
    """Turns the errors of TensorFlow's file systems into those of Python's."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.NotFoundError:
        raise FileNotFoundError(f"no such file: {location}") from None
    except tf.errors.OpError as error:
        raise OSError(f"{location}: {error.message}") from error


def check_output_folder(folder: str | os.PathLike, flag: str) -> None:
    """Refuses a place where a folder of results cannot be, before the work that leads to them.

    Nothing is left there: a folder that does not exist yet is for the work to create.

    Args:
        folder: the folder.
        flag: what gives it, for the message, such as "--run_dir".

    Raises:
        ValueError: it is no local folder, or nothing can be written to it or created there.
    """
    folder = os.fspath(folder)
    if scheme_of(folder):
        raise ValueError(f"{flag} must be a local folder; got {folder!r}")
    nearest = absolute(folder)
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    with _naming_output(folder, nearest, flag):
        if not os.path.isdir(nearest):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if nearest != absolute(folder):
            _try_to_write(nearest)
        elif not os.access(nearest, os.W_OK | os.X_OK):  # nothing foreign appears in it
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def check_output_file(path: str | os.PathLike, flag: str) -> None:
    """Refuses a place where a file of results cannot be written, before the work that leads to it.

    Args:
        path: the file.
        flag: what gives it, for the message, such as "--output".

    Raises:
        ValueError: it is no local file, or its folder does not exist or cannot be written to.
    """
    path = os.fspath(path)
    if scheme_of(path):
        raise ValueError(f"{flag} must be a local file; got {path!r}")
    if os.path.isdir(path):
        raise ValueError(f"{flag}={path} is a folder; give the file to write in it")
    folder = os.path.dirname(absolute(path))
    if not os.path.isdir(folder):
        raise ValueError(f"{flag}={path}: there is no folder {folder}; create it first")
    with _naming_output(path, folder, flag):
        _try_to_write(folder)


def _try_to_write(folder: str) -> None:
    """Creates something in a folder, because some file systems refuse what permissions allow."""
    os.rmdir(tempfile.mkdtemp(prefix=".", dir=folder))


@contextlib.contextmanager
def _naming_output(place: str, folder: str, flag: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(
            f"{flag}={place}: nothing can be written to {folder} ({reason}); choose another place"
        ) from error


def is_passed_over(name: str) -> bool:
    """Whether a search of folders passes over a name: a hidden one, or one of a file manager.

    Args:
        name: its name, without the folder it is in.

    Example:

    >>> [is_passed_over(name) for name in (".DS_Store", "._a.jpg", "Thumbs.db", "a.jpg")]
    [True, True, True, False]
    """
    return name.startswith(".") or name.lower() in _OF_FILE_MANAGERS


def files_below(
    folder: str | os.PathLike, *, on_error: Callable[[OSError], None] | None = None
) -> list[str]:
    """Returns the sorted locations of the files in a folder and in the folders below it.

    Files and folders that `is_passed_over` names are left out. Whatever else is no folder counts as
    a file: links that lead nowhere and pipes too, and links to folders, which are not followed,
    because they can lead in circles.

    Args:
        folder: a local folder or a URL.
        on_error: called with the error of each folder that cannot be listed; None to raise it.

    Raises:
        OSError: a folder cannot be listed, where `on_error` is None.
    """
    folder = os.fspath(folder)

    def refuse(error: Exception) -> None:
        if not isinstance(error, OSError):  # one of TensorFlow's
            error = OSError(f"{folder}: {error}")
        if on_error is None:
            raise error
        on_error(error)

    if scheme_of(folder):
        import tensorflow as tf

        found = [
            f"{root.rstrip('/')}/{name}"
            for root, _, names in tf.io.gfile.walk(folder, onerror=refuse)
            for name in names
        ]
        # This walk cannot be told to leave folders out.
        return sorted(
            path
            for path in found
            if not any(map(is_passed_over, relative(path, folder).split("/")))
        )
    found = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not is_passed_over(name)]
        found += [os.path.join(root, name) for name in names if not is_passed_over(name)]
        inner = [os.path.join(root, name) for name in folders]
        found += [path for path in inner if os.path.islink(path)]
    return sorted(found)


def _local(location: str | os.PathLike) -> str:
    """Returns the path in a URL `file://…`, of which TensorFlow rounds the times to seconds."""
    location = os.fspath(location)
    return location.removeprefix("file://")


def _digest_of(location: str) -> str:
    import tensorflow as tf

    with tf.io.gfile.GFile(location, "rb") as file:
        return f"content {hashlib.blake2b(file.read(), digest_size=16).hexdigest()}"
