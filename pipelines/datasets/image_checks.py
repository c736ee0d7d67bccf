"""Checks images before any training, and remembers those that passed."""

import concurrent.futures
import csv
import dataclasses
import os
import re
import shlex
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import tensorflow as tf

from dbl_tf import atomic, terminal
from dbl_tf.messages import SHOWN, first_few, quoted
from pipelines import cache, images, locations
from pipelines.datasets import spellings
from pipelines.datasets.source import CHECK_LEVELS
from pipelines.examples import Examples, LabelledData
from pipelines.findings import Findings

CACHE_NAME = "checked_images.digests"
NOT_FOUND = "no such file"

_VERSION = 3  # to be raised when a check becomes stricter
_FILES = cache.Kind("checked_images", _VERSION)
_RECORDS = cache.Kind("checked_records", _VERSION)
_STAT_THREADS = 16  # on a network drive a stat call waits, it does not compute
_STAT_BLOCK = 4096
_READ_BLOCK = 64
_FEW = 50  # so few images are read one by one before a pipeline has started
_SECONDS_BETWEEN_SAVES = 60
# Reasons that differ in numbers alone are of one kind.
_DIGITS = re.compile(r"\d+")
# Reasons of images that are whole, but of a kind that is not decoded.
_UNREAD_FORMAT = re.compile(r".* is not read[;,]")


@dataclasses.dataclass(frozen=True)
class BadImage:
    """An image that cannot be used.

    Attributes:
        position: its place in the list that was checked.
        path: its path, or the name of an image in a record file, as that list gives it.
        reason: the reason why it cannot be used, in words.
    """

    position: int
    path: str
    reason: str


class BadImagesError(ValueError):
    """Images cannot be used.

    Attributes:
        bad: all of them.
        data: the data as they were read, with these images; None if they are not at hand.
    """

    def __init__(self, message: str, bad: Sequence[BadImage], data: LabelledData | None = None):
        super().__init__(message)
        self.bad, self.data = tuple(bad), data


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
    "all" also counts as one of "header". Bad files are never remembered. The cache may serve
    several data sets.

    Args:
        paths: the paths of N image files.
        level: "exists": the path is a file that is neither empty nor larger than an image can be.
            "header": its header is also that of an image that can be read. "all": the image can
            also be decoded to its end.
        cache_dir: the folder of the cache, which is created if it does not exist. "exists" does not
            use it.
        progress: whether a check that takes long shows its progress.

    Returns:
        The bad images, in the order of `paths`.

    Raises:
        ValueError: the level is not one of `CHECK_LEVELS`.
    """
    _check_level(level)
    files: list[str] = [os.fspath(path) for path in paths]
    if level == "exists":
        _, reasons = _stat_all(files, False, progress)
    else:
        digests, reasons = _stat_all(files, True, progress)
        cache_file = os.path.join(cache_dir, CACHE_NAME)
        unsure = np.ones(len(files), bool)
        unsure[list(reasons)] = False
        known = _load_digests(cache_file)
        for passed_level in CHECK_LEVELS[CHECK_LEVELS.index(level) :]:
            unsure &= ~np.isin(_at_level(digests, passed_level), known)
        positions = np.flatnonzero(unsure)
        if len(positions):
            os.makedirs(cache_dir, exist_ok=True)  # before the work, not after
            with tf.device("CPU"):
                table = tf.constant([os.fsencode(files[i]) for i in positions])
            found = _read_all(
                lambda i: tf.io.read_file(table[i]),
                len(positions),
                decode=level == "all",
                progress=progress,
                save=lambda passed: _save_digests(
                    cache_file, _at_level(digests[positions[passed]], level)
                ),
            )
            reasons |= {int(positions[i]): reason for i, reason in found.items()}
    return [BadImage(i, files[i], reasons[i]) for i in sorted(reasons)]


def check_records(
    examples: Examples, *, level: str, cache_dir: str | os.PathLike, progress: bool = True
) -> list[BadImage]:
    """Finds the images within record files that cannot be used.

    It is remembered in `cache_dir` that all of them passed, for as long as the files stay the same.

    Args:
        examples: examples whose `files` are record files, which may hold many images each.
        level: see `check_images`. "exists" checks nothing, because records always exist.
        cache_dir: see `check_images`.
        progress: see `check_images`.

    Returns:
        The bad images, in the order of the examples.

    Raises:
        ValueError: the level is not one of `CHECK_LEVELS`.
    """
    _check_level(level)
    if level == "exists":
        return []
    passed_file = _RECORDS.path(cache_dir, [level, *examples.names], examples.files)
    if passed_file.exists():
        return []

    def save(passed: np.ndarray) -> None:
        if passed.all():
            passed_file.parent.mkdir(parents=True, exist_ok=True)
            passed_file.touch()

    reasons = _read_all(
        examples.read, len(examples), decode=level == "all", progress=progress, save=save
    )
    return [BadImage(i, examples.names[i], reasons[i]) for i in sorted(reasons)]


def describe(
    bad: Sequence[BadImage],
    *,
    examples: str | os.PathLike | None = None,
    lines: Sequence[int] | np.ndarray | None = None,
    images_dir: str | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> str:
    """Lists the bad images by kind, from the most frequent, with the first five of each.

    A file that was not found is shown with those that may be meant.

    Args:
        bad: the result of `check_images`.
        examples: the file that lists the images.
        lines: for each image that was checked, the line of that file that names it.
        images_dir: the folder that relative paths start from; None if there is none.
        cache_dir: a folder for a CSV file of all bad images, where there are more than five and
            `examples` is given, after which the file is named.
    """
    kinds: dict[str, list[BadImage]] = {}
    for image in bad:
        kinds.setdefault(_DIGITS.sub("…", image.reason), []).append(image)
    ordered = sorted(kinds.items(), key=lambda item: -len(item[1]))
    folders = spellings.Folders()

    def text_of(image: BadImage, title: str) -> str:
        text = quoted(image.path)
        if images_dir is not None and spellings.is_of_windows(image.path):
            text = quoted(os.path.relpath(image.path, images_dir))
        if image.reason != title:
            text += f": {image.reason}"
        if image.reason == NOT_FOUND:
            folder = images_dir or os.path.dirname(image.path)
            if near := folders.suggest(image.path, folder):
                text += f"; there is {first_few([quoted(path) for path in near], ' and ')}"
        return text

    findings = Findings(os.fspath(examples or ""))
    for kind, of_kind in ordered[:SHOWN]:
        title = kind if len({image.reason for image in of_kind}) > 1 else of_kind[0].reason
        texts = [text_of(image, title) for image in of_kind[:SHOWN]]
        if lines is None:
            findings.add_items(title, texts, count=len(of_kind))
        else:
            of_lines = [lines[image.position] for image in of_kind]
            findings.add_all(title, of_lines, texts.__getitem__)
    text = "\n".join(findings.lines())
    if rest := ordered[SHOWN:]:
        text += f"\nand {sum(len(of) for _, of in rest):,} images of {len(rest)} other kinds"
    if len(bad) > SHOWN and cache_dir is not None and examples is not None:
        text += f"\nAll of them are listed in {_list(bad, examples, lines, cache_dir)}"
    return text


def _list(
    bad: Sequence[BadImage],
    examples: str | os.PathLike,
    lines: Sequence[int] | np.ndarray | None,
    cache_dir: str | os.PathLike,
) -> str:
    """Writes all bad images as CSV; returns the path."""
    path = os.path.join(cache_dir, f"bad_images_of_{os.path.basename(examples)}.csv")
    os.makedirs(cache_dir, exist_ok=True)
    with (
        atomic.replacing(path) as tmp_path,
        open(tmp_path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["line", "image", "reason"])
        for image in bad:
            line = "" if lines is None else lines[image.position]
            writer.writerow([line, image.path, image.reason])
    return path


def bad_images_error(
    bad: Sequence[BadImage],
    *,
    num_images: int,
    examples: str | os.PathLike | None = None,
    lines: Sequence[int] | np.ndarray | None = None,
    images_dir: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    data: LabelledData | None = None,
) -> BadImagesError:
    """Returns an error that names bad images and says what to do about them.

    Args:
        bad: the result of `check_images`, at least one image.
        num_images: the number of images that were checked.
        examples: see `describe`.
        lines: see `describe`.
        images_dir: see `describe`.
        cache_dir: see `describe`.
        data: the data as they were read, with these images.
    """
    source = "" if examples is None else f" of {os.fspath(examples)}"
    text = describe(bad, examples=examples, lines=lines, images_dir=images_dir, cache_dir=cache_dir)
    return BadImagesError(
        f"{len(bad):,} of {num_images:,} images{source} cannot be used:\n"
        f"{textwrap.indent(text, '  ')}\n{' '.join(_remedies(bad, images_dir))}",
        bad,
        data,
    )


def _remedies(bad: Sequence[BadImage], images_dir: str | None) -> Iterator[str]:
    """Yields what to do about bad images, as sentences."""
    missing = [image.path for image in bad if image.reason == NOT_FOUND]
    if missing and images_dir is not None and not _is_url_elsewhere(missing[0], images_dir):
        yield _remedy_for_missing(missing[0], images_dir)
    if any(_UNREAD_FORMAT.match(image.reason) for image in bad):
        yield (
            "python -m pipelines.prepare --output_dir=DIR, with the same flags of the data, makes "
            "JPEGs of images of other formats."
        )
    yield "Repair these images or remove them from the list."
    yield "--skip_bad_images continues without them."
    if len(missing) < len(bad):
        yield (
            "--check_images=exists only checks that the files exist; an image that cannot be "
            "decoded then stops the training."
        )


def _is_url_elsewhere(path: str, images_dir: str) -> bool:
    return locations.scheme_of(path) is not None and not path.startswith(images_dir)


def _remedy_for_missing(path: str, images_dir: str) -> str:
    start = f"Relative paths start from {images_dir}"
    if not locations.scheme_of(images_dir) and not locations.scheme_of(path):
        name = os.path.relpath(path, images_dir)
        if spellings.is_of_another_machine(name):
            near = spellings.Folders().suggest(path, images_dir)
            such = f", such as {quoted(os.path.relpath(near[0], images_dir))}" if near else ""
            return f"{start}; write paths that do{such}, in place of paths of another machine."
        if folder := spellings.folder_with(name, images_dir):
            return (
                f"{start}; try --images_dir={shlex.quote(folder)}, where there is {quoted(name)}."
            )
    return f"{start}; --images_dir=FOLDER names another folder."


def _check_level(level: str) -> None:
    if level not in CHECK_LEVELS:
        raise ValueError(f"check_images must be one of {', '.join(CHECK_LEVELS)}; found {level!r}")


def _stat_all(
    paths: Sequence[str], with_digests: bool, progress: bool
) -> tuple[np.ndarray, dict[int, str]]:
    """Returns digests of the states of files, uint64 (N,), and by position what is wrong."""
    starts = range(0, len(paths), _STAT_BLOCK)
    blocks = [paths[start : start + _STAT_BLOCK] for start in starts]
    digests = np.zeros(len(paths), np.uint64)
    reasons: dict[int, str] = {}
    with (
        _counter("looking for images", len(paths), progress) as counter,
        concurrent.futures.ThreadPoolExecutor(_STAT_THREADS) as threads,
    ):
        found = threads.map(lambda block: _stat_block(block, with_digests), blocks)
        for start, (block, wrong) in zip(starts, found, strict=True):
            digests[start : start + len(block)] = np.frombuffer(b"".join(block), np.uint64)
            reasons |= {start + i: reason for i, reason in wrong.items()}
            counter.show(start + len(block))
    return digests, reasons


def _stat_block(paths: Sequence[str], with_digests: bool) -> tuple[list[bytes], dict[int, str]]:
    digests: list[bytes] = []
    reasons: dict[int, str] = {}
    for i, path in enumerate(paths):
        digest = bytes(8)
        try:
            status = locations.status(path)
        except FileNotFoundError:
            reasons[i] = NOT_FOUND
        except OSError as error:
            reasons[i] = error.strerror or str(error)
        except ValueError as error:  # a null byte
            reasons[i] = f"not a path: {error}"
        else:
            if status.is_folder:
                reasons[i] = "is a folder, not a file"
            elif not status.is_file:
                reasons[i] = "is not a regular file"
            elif not status.size:
                reasons[i] = "is empty (0 bytes)"
            elif status.size > images.MAX_FILE_BYTES:
                reasons[i] = f"has {status.size} bytes; at most {images.MAX_FILE_BYTES} are read"
            elif with_digests:
                digest = _FILES.file_digest(path, status)
        digests.append(digest)
    return digests, reasons


def _at_level(digests: np.ndarray, level: str) -> np.ndarray:
    """Returns the digests with the level in their last two bits."""
    return digests & ~np.uint64(3) | np.uint64(CHECK_LEVELS.index(level))


def _read_all(
    read: Callable[[tf.Tensor], tf.Tensor],
    num_images: int,
    *,
    decode: bool,
    progress: bool,
    save: Callable[[np.ndarray], None],
) -> dict[int, str]:
    """Reads images, and gives by position what is wrong with the bad ones.

    Args:
        read: a function from a position, int64 (), to the encoded bytes, string (), for `tf.data`.
        num_images: the number N of images.
        decode: whether images are decoded too, after their headers have been checked.
        progress: whether a check that takes long shows its progress.
        save: a function that is called with the images that have passed so far, bool (N,), from
            time to time and at the end, even if reading fails.
    """
    passed = np.zeros(num_images, bool)
    reasons: dict[int, str] = {}
    try:
        if num_images > _FEW:
            saved = time.monotonic()
            for good in _good_positions(read, num_images, decode, progress):
                passed[good] = True
                if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    save(passed)
                    saved = time.monotonic()
        for position in np.flatnonzero(~passed).tolist():
            reason = _reason(read, position, decode)
            if reason:
                reasons[position] = reason
            else:
                passed[position] = True
    finally:
        save(passed)
    return reasons


def _good_positions(
    read: Callable[[tf.Tensor], tf.Tensor], num_images: int, decode: bool, progress: bool
) -> Iterator[np.ndarray]:
    """Yields blocks of positions of good images, which are read in parallel."""
    with tf.device("CPU"):
        blocks = (
            tf.data.Dataset.range(num_images)
            .map(lambda i: (i, _is_good(read(i), decode)), num_parallel_calls=tf.data.AUTOTUNE)
            .ignore_errors()  # an error drops its own element and no other
            .batch(_READ_BLOCK)
            .prefetch(tf.data.AUTOTUNE)
        )
    with _counter("checking images", num_images, progress) as counter:
        for block, good in blocks.as_numpy_iterator():
            yield block[good]
            counter.show(int(block[-1]) + 1)


def _counter(title: str, num_images: int, progress: bool) -> terminal.Counter:
    return terminal.Counter(title, num_images, "images", verbose="auto" if progress else 0)


@tf.function  # traced once in a process, because tracing takes seconds
def _is_good(encoded: tf.Tensor, decode: bool) -> tf.Tensor:
    if decode:  # this checks the header too; asking for the size makes it run
        return tf.size(images.decode(encoded)) > 0
    return images.inspect(encoded) == ""


_inspect = tf.function(images.inspect)


def _reason(read: Callable[[tf.Tensor], tf.Tensor], position: int, decode: bool) -> str:
    """Returns what is wrong with an image, "" if nothing is."""
    try:
        encoded = read(tf.constant(position, tf.int64))
        reason = _inspect(encoded).numpy().decode(errors="replace")
        if decode and not reason:
            images.decode(encoded)  # not traced: the errors of a traced function hold its calls
    except tf.errors.OpError as error:
        reason = images.reason_of(error)
    return reason


def _load_digests(path: str) -> np.ndarray:
    """Returns the digests in the cache file, none if it does not exist or is damaged."""
    digests = cache.load(path, _read_digests)
    return np.zeros(0, np.uint64) if digests is None else digests


def _read_digests(file: BinaryIO) -> np.ndarray:
    digests = np.load(file, allow_pickle=False)
    if digests.dtype != np.uint64 or digests.ndim != 1:
        raise ValueError("it does not hold a list of digests")
    return digests


def _save_digests(path: str, digests: np.ndarray) -> None:
    """Adds digests to the cache file."""
    known = np.union1d(_load_digests(path), digests)
    with cache.writing(path) as file:
        np.save(file, known)
