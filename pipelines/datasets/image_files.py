"""Checks image files before any training, and remembers those that passed."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Sequence

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
    digests, reasons = _stat_all(paths)
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


def describe(bad: Sequence[BadImage], *, lines: Sequence[int] | None = None) -> str:
    """The first five of some bad images, one a line; of more than five, how often each reason.

    Args:
        bad: what `check_images` returned.
        lines: the line of the examples file that names each image that was checked.
    """
    shown = []
    for image in bad[:_NUM_SHOWN]:
        line = "" if lines is None else f"line {lines[image.position]}: "
        shown.append(f"  {line}{image.path}: {image.reason}")
    if len(bad) > _NUM_SHOWN:
        counts = Counter(image.reason for image in bad).most_common(_NUM_SHOWN)
        shown.append(f"  and {len(bad) - _NUM_SHOWN} more. The most frequent reasons:")
        shown += [f"  {count} × {reason}" for reason, count in counts]
    return "\n".join(shown)


def bad_images_error(
    bad: Sequence[BadImage],
    *,
    num_images: int,
    examples: str | os.PathLike | None = None,
    lines: Sequence[int] | None = None,
) -> BadImagesError:
    """The error that names bad images and says what to do about them.

    Args:
        bad: what `check_images` returned, at least one.
        num_images: how many were checked.
        examples: the file that lists the images.
        lines: the line of that file that names each image that was checked.
    """
    source = "" if examples is None else f" of {os.fspath(examples)}"
    return BadImagesError(
        f"{len(bad)} of {num_images} images{source} cannot be used:\n"
        f"{describe(bad, lines=lines)}\n"
        "Repair these files or take them off the list. --skip_bad_images goes on without them; "
        "--check_images=exists only looks whether the files are there, and what does not decode "
        "then fails in training.",
        bad,
    )


def _stat_all(paths: Sequence[str]) -> tuple[np.ndarray, dict[int, str]]:
    """Digests of path, size and time, uint64 (N,), and by position what is wrong already."""
    starts = range(0, len(paths), _STAT_BLOCK)
    blocks = [paths[start : start + _STAT_BLOCK] for start in starts]
    digests = np.zeros(len(paths), np.uint64)
    reasons = {}
    with concurrent.futures.ThreadPoolExecutor(_STAT_THREADS) as threads:
        for start, (block, wrong) in zip(starts, threads.map(_stat_block, blocks), strict=True):
            digests[start : start + len(block)] = np.frombuffer(b"".join(block), np.uint64)
            reasons |= {start + i: reason for i, reason in wrong.items()}
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
    with tf.device("CPU"):
        table = tf.constant([os.fsencode(paths[i]) for i in positions])
        # An error drops its element alone; what is missing in the end is looked at once more.
        blocks = (
            tf.data.Dataset.range(len(positions))
            .map(lambda i: (i, *_look(table[i], decode)), num_parallel_calls=tf.data.AUTOTUNE)
            .ignore_errors()
            .batch(_READ_BLOCK)
            .prefetch(tf.data.AUTOTUNE)
        )
    passed = np.zeros(len(positions), bool)
    reasons = {}
    bar = keras.utils.Progbar(len(positions), interval=1, unit_name="image")
    shown, started = False, time.monotonic()
    saved = started

    def save():
        _save_cache(cache, _at_level(digests[positions[passed]], level))

    try:
        for block, found, _ in blocks.as_numpy_iterator():
            good = found == b""
            passed[block[good]] = True
            for i, reason in zip(block[~good], found[~good], strict=True):
                reasons[int(positions[i])] = reason.decode(errors="replace")
            now = time.monotonic()
            if progress and (shown or now - started > _SECONDS_BEFORE_PROGRESS):
                shown = True
                bar.update(int(block[-1]) + 1, finalize=False)
            if now - saved > _SECONDS_BETWEEN_SAVES:
                save()
                saved = now
        if shown:
            bar.update(len(positions), finalize=True)
        for i in np.flatnonzero(~passed):
            if (position := int(positions[i])) not in reasons:
                try:
                    reason, _ = _look(table[i], decode)
                    reason = reason.numpy().decode(errors="replace")
                except tf.errors.OpError as error:
                    reason = _readable(error.message)
                if reason:
                    reasons[position] = reason
                else:
                    passed[i] = True
    finally:
        save()
    return reasons


def _look(path: tf.Tensor, decode: bool) -> tuple[tf.Tensor, tf.Tensor]:
    """What is wrong with the file, "" if nothing, and its height, by which decoding is asked for.

    Raises:
        tf.errors.OpError: it cannot be read, or its data do not decode.
    """
    encoded = tf.io.read_file(path)
    reason = images.inspect(encoded)
    height = tf.constant(0)
    if decode:
        height = tf.cond(
            reason == "", lambda: tf.shape(images.decode(encoded))[0], lambda: tf.constant(0)
        )
    return reason, height


def _readable(message: str) -> str:
    """An error of TensorFlow without the names of its graph's nodes."""
    message = re.sub(r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:.*?\]", " ", message)
    return " ".join(message.split())


def _load_cache(path: str) -> np.ndarray:
    """The digests in the cache; none where it is damaged: it is then taken away, with a warning."""
    try:
        with open(path, "rb") as file:
            digests = np.lib.format.read_array(file, allow_pickle=False)
            complete = not file.read(1)
    except FileNotFoundError:
        return np.zeros(0, np.uint64)
    except (ValueError, OverflowError, MemoryError) as error:
        damage = str(error)
    else:
        ours = digests.dtype == np.uint64 and digests.ndim == 1 and complete
        if ours and (digests[1:] > digests[:-1]).all():
            return digests
        damage = "not a sorted list of digests"
    logging.warning("%s is damaged (%s); it is rebuilt, all images are read again", path, damage)
    os.remove(path)
    return np.zeros(0, np.uint64)


def _save_cache(path: str, digests: np.ndarray) -> None:
    """Adds digests to the cache; another process sees the file before or after, never between."""
    digests = np.union1d(_load_cache(path), digests)
    beside = f"{path}.{os.getpid()}"
    try:
        with open(beside, "wb") as file:
            np.save(file, digests)
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(beside)
