"""Checks image files before any training, and remembers those that passed."""

import concurrent.futures
import contextlib
import csv
import dataclasses
import hashlib
import io
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from pipelines import images

LEVELS = ("exists", "header", "all")  # each one includes those before it
CACHE_NAME = "checked_images.npy"

# Part of every digest: raise it where a check becomes stricter.
_CHECK_VERSION = b"1"
_STAT_THREADS = 16  # on a network drive a stat call waits, it does not compute
_STAT_BLOCK = 4096
_READ_BLOCK = 64
_FEW = 50  # so many files are read one by one before a pipeline would have started
_SECONDS_BEFORE_PROGRESS = 2
_SECONDS_BETWEEN_SAVES = 60
_NUM_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class BadImage:
    """An image file that cannot be used.

    Attributes:
        position: its place in the list of paths that was checked.
        path: as it stood in that list.
        reason: why, in words.
    """

    position: int
    path: str
    reason: str


class BadImagesError(ValueError):
    """Image files that cannot be used; `bad` lists all of them."""

    def __init__(self, message: str, bad: Sequence[BadImage]):
        super().__init__(message)
        self.bad = tuple(bad)


def check_images(
    paths: Sequence[str | os.PathLike],
    *,
    level: str,
    cache_dir: str | os.PathLike,
    progress: bool = True,
) -> list[BadImage]:
    """Finds the image files that cannot be used.

    Files that passed are remembered in `cache_dir` by absolute path, size, modification time and
    level, so that the next call only asks the file system whether they have changed. A pass of
    "all" holds for "header" too. Bad files are never remembered. The cache may serve several
    data sets.

    Args:
        paths: N image files.
        level: "exists": the path is a file and not empty. "header": and its header is that of an
            image that can be read. "all": and it decodes to its end.
        cache_dir: folder of the cache, created where there is none; "exists" does not use it.
        progress: whether a check that lasts shows a bar.

    Returns:
        The bad ones, in the order of `paths`.

    Raises:
        ValueError: another level.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}; found {level!r}")
    paths = [os.fspath(path) for path in paths]
    digests, reasons = _stat_all(paths, progress)
    if level != "exists":
        cache = os.path.join(cache_dir, CACHE_NAME)
        unsure = np.ones(len(paths), bool)
        unsure[list(reasons)] = False
        known = _load_cache(cache)
        for passed_level in LEVELS[LEVELS.index(level) :]:
            unsure &= ~np.isin(_at_level(digests, passed_level), known)
        positions = np.flatnonzero(unsure)
        if len(positions):
            os.makedirs(cache_dir, exist_ok=True)
            reasons |= _read_all(paths, positions, level, digests, cache, progress)
    return [BadImage(i, paths[i], reasons[i]) for i in sorted(reasons)]


def describe(
    bad: Sequence[BadImage],
    *,
    examples: str | os.PathLike | None = None,
    lines: Sequence[int] | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> str:
    """The first five of some bad images, one a line; of more than five, how often each reason.

    Args:
        bad: what `check_images` returned.
        examples: the file that lists the images.
        lines: the line of that file that names each image that was checked.
        cache_dir: folder for a CSV file of all of them, where there are more than five; named
            after `examples`, which is then needed too.
    """
    shown = []
    for image in bad[:_NUM_SHOWN]:
        line = "" if lines is None else f"line {lines[image.position]}: "
        shown.append(f"  {line}{image.path}: {image.reason}")
    if len(bad) > _NUM_SHOWN:
        listed = (
            "" if cache_dir is None else f", listed in {_list(bad, examples, lines, cache_dir)}"
        )
        counts = Counter(image.reason for image in bad).most_common(_NUM_SHOWN)
        shown.append(f"  and {len(bad) - _NUM_SHOWN} more{listed}. The most frequent reasons:")
        shown += [f"  {count} × {reason}" for reason, count in counts]
    return "\n".join(shown)


def _list(
    bad: Sequence[BadImage],
    examples: str | os.PathLike,
    lines: Sequence[int] | None,
    cache_dir: str | os.PathLike,
) -> str:
    """Writes all bad images as CSV; returns the path."""
    os.makedirs(cache_dir, exist_ok=True)
    path = os.path.join(cache_dir, f"bad_images_of_{os.path.basename(examples)}.csv")
    beside = f"{path}.{os.getpid()}"
    with open(beside, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["line", "image", "reason"])
        for image in bad:
            line = "" if lines is None else lines[image.position]
            writer.writerow([line, image.path, image.reason])
    os.replace(beside, path)
    return path


def bad_images_error(
    bad: Sequence[BadImage],
    *,
    num_images: int,
    examples: str | os.PathLike | None = None,
    lines: Sequence[int] | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> BadImagesError:
    """The error that names bad images and says what to do about them.

    Args:
        bad: what `check_images` returned, at least one.
        num_images: how many were checked.
        examples: as in `describe`.
        lines: likewise.
        cache_dir: likewise.
    """
    source = "" if examples is None else f" of {os.fspath(examples)}"
    return BadImagesError(
        f"{len(bad)} of {num_images} images{source} cannot be used:\n"
        f"{describe(bad, examples=examples, lines=lines, cache_dir=cache_dir)}\n"
        "Repair these files or take them off the list. --skip_bad_images goes on without them; "
        "--check_images=exists only looks whether the files are there, and what does not decode "
        "then fails in training.",
        bad,
    )


class _LateBar:
    """A progress bar that only work which lasts gets to show.

    Args:
        num_images: of the whole work.
        wanted: False for none at all.
    """

    def __init__(self, num_images: int, wanted: bool):
        self._num_images, self._wanted = num_images, wanted
        self._bar = keras.utils.Progbar(num_images, interval=1, unit_name="image")
        self._started = time.monotonic()
        self._shown = False

    def update(self, num_done: int) -> None:
        if self._wanted and time.monotonic() - self._started > _SECONDS_BEFORE_PROGRESS:
            self._bar.update(num_done, finalize=False)
            self._shown = True

    def finish(self) -> None:
        if self._shown:
            self._bar.update(self._num_images, finalize=True)


def _stat_all(paths: Sequence[str], progress: bool) -> tuple[np.ndarray, dict[int, str]]:
    """Digests of path, size and time, uint64 (N,), and by position what is wrong already."""
    starts = range(0, len(paths), _STAT_BLOCK)
    blocks = [paths[start : start + _STAT_BLOCK] for start in starts]
    digests = np.zeros(len(paths), np.uint64)
    reasons = {}
    bar = _LateBar(len(paths), progress)
    with concurrent.futures.ThreadPoolExecutor(_STAT_THREADS) as threads:
        for start, (block, wrong) in zip(starts, threads.map(_stat_block, blocks), strict=True):
            digests[start : start + len(block)] = np.frombuffer(b"".join(block), np.uint64)
            reasons |= {start + i: reason for i, reason in wrong.items()}
            bar.update(start + len(block))
    bar.finish()
    return digests, reasons


def _stat_block(paths: Sequence[str]) -> tuple[list[bytes], dict[int, str]]:
    digests, reasons = [], {}
    for i, path in enumerate(paths):
        digest = bytes(8)
        try:
            status = os.stat(path)
        except FileNotFoundError:
            reasons[i] = "no such file"
        except OSError as error:
            reasons[i] = error.strerror
        except ValueError as error:  # a null byte
            reasons[i] = f"not a path: {error}"
        else:
            if stat.S_ISDIR(status.st_mode):
                reasons[i] = "is a folder, not a file"
            elif not stat.S_ISREG(status.st_mode):
                reasons[i] = "is not a regular file"
            elif not status.st_size:
                reasons[i] = "is empty (0 bytes)"
            else:
                text = f"{os.path.abspath(path)}\0{status.st_size}\0{status.st_mtime_ns}"
                digest = hashlib.blake2b(
                    os.fsencode(text), digest_size=8, key=_CHECK_VERSION
                ).digest()
        digests.append(digest)
    return digests, reasons


def _at_level(digests: np.ndarray, level: str) -> np.ndarray:
    """The digests with the level in their last two bits."""
    return digests & ~np.uint64(3) | np.uint64(LEVELS.index(level))


def _read_all(
    paths: Sequence[str],
    positions: np.ndarray,
    level: str,
    digests: np.ndarray,
    cache: str,
    progress: bool,
) -> dict[int, str]:
    """Reads the files at these positions; remembers the good ones, says what the others have."""
    decode = level == "all"
    passed = np.zeros(len(positions), bool)
    reasons = {}
    with tf.device("CPU"):
        table = tf.constant([os.fsencode(paths[i]) for i in positions])

    def save():
        _save_cache(cache, _at_level(digests[positions[passed]], level))

    try:
        if len(positions) > _FEW:
            saved = time.monotonic()
            for good in _good_positions(table, decode, progress):
                passed[good] = True
                if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    save()
                    saved = time.monotonic()
        for i in np.flatnonzero(~passed):
            reason = _reason(table[i], decode)
            if reason:
                reasons[int(positions[i])] = reason
            else:
                passed[i] = True
    finally:
        save()
    return reasons


def _good_positions(table: tf.Tensor, decode: bool, progress: bool) -> Iterator[np.ndarray]:
    """Positions of good files in a table of paths, in blocks, read in parallel."""
    with tf.device("CPU"):
        blocks = (
            tf.data.Dataset.range(len(table))
            .map(lambda i: (i, _is_good(table[i], decode)), num_parallel_calls=tf.data.AUTOTUNE)
            .ignore_errors()  # each takes its own element along, and no other
            .batch(_READ_BLOCK)
            .prefetch(tf.data.AUTOTUNE)
        )
    bar = _LateBar(len(table), progress)
    for block, good in blocks.as_numpy_iterator():
        yield block[good]
        bar.update(int(block[-1]) + 1)
    bar.finish()


@tf.function  # traced once in a process: that takes seconds
def _is_good(path: tf.Tensor, decode: bool) -> tf.Tensor:
    encoded = tf.io.read_file(path)
    if decode:  # which inspects the header too; asking for the size has it done
        return tf.size(images.decode(encoded)) > 0
    return images.inspect(encoded) == ""


_inspect = tf.function(images.inspect)


def _reason(path: tf.Tensor, decode: bool) -> str:
    """What is wrong with the file, "" if nothing."""
    try:
        encoded = tf.io.read_file(path)
        reason = _inspect(encoded).numpy().decode(errors="replace")
        if decode and not reason:
            images.decode(encoded)  # untraced: a traced function's errors hold a stack of calls
    except tf.errors.OpError as error:
        reason = re.sub(r"\{\{.*?\}\}|\[Op:.*?\]", " ", error.message)
        reason = " ".join(reason.split()).removesuffix(" name:")  # the name of the op, removed
    return reason


def _load_cache(path: str) -> np.ndarray:
    """The digests in the cache; none where it is damaged: it is then taken away, with a warning."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        return np.zeros(0, np.uint64)
    # Compared whole: NumPy's reader raises errors of many kinds over a damaged header.
    size = len(content) - len(_npy(np.zeros(0, np.uint64)))
    if size >= 0 and size % 8 == 0:
        digests = np.frombuffer(content, np.uint64, offset=len(content) - size)
        if content == _npy(digests) and (digests[1:] > digests[:-1]).all():
            return digests
    logging.warning(
        "%s is damaged: it holds no sorted list of digests; it is rebuilt, and the images are "
        "read again",
        path,
    )
    os.remove(path)
    return np.zeros(0, np.uint64)


def _save_cache(path: str, digests: np.ndarray) -> None:
    """Adds digests to the cache; another process sees the file before or after, never between."""
    content = _npy(np.union1d(_load_cache(path), digests))
    beside = f"{path}.{os.getpid()}"
    try:
        with open(beside, "wb") as file:
            file.write(content)
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(beside)


def _npy(digests: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, digests)
    return file.getvalue()
