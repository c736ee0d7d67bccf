"""Finds doubles: class names that look like one another, and images with the same bytes."""

import collections
import concurrent.futures
import hashlib
import re
import unicodedata
from collections.abc import Callable, Hashable, Mapping, Sequence

from pipelines import locations
from pipelines.examples import Examples

_THREADS = 16  # on a network drive a read waits, it does not compute
_START = 1 << 14
_AT_ONCE = 1 << 20
# Characters beside those of category Cf that show nothing (`Default_Ignorable_Code_Point`).
_UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0]")
_BLANKS = re.compile(r"[\s_\-\u2010-\u2015\u2212]+")


def similar_names(names: Sequence[str]) -> list[list[str]]:
    """Finds names that look like doubles of each other.

    These are names that differ in nothing but upper and lower case, Unicode normalization and
    compatible forms (such as full-width letters), blanks, hyphens, underscores, and characters that
    are invisible (such as zero-width spaces).

    Args:
        names: names that are all different.

    Returns:
        The groups of two or more such names, in the order of `names`.

    Example:

    >>> similar_names(["Dog", "cat", "traffic light", "dog", "traffic_light"])
    [['Dog', 'dog'], ['traffic light', 'traffic_light']]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_looks(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def _looks(name: str) -> str:
    """Returns what is equal for names that look alike."""
    visible = "".join(c for c in name if unicodedata.category(c) != "Cf")
    text = unicodedata.normalize("NFKC", _UNSEEN.sub("", visible)).casefold()
    return unicodedata.normalize("NFKC", _BLANKS.sub("", text)) or name


def is_in_files(splits: Mapping[str, Examples]) -> bool:
    """Whether each image is a file of its own, as `same_images` needs it."""
    files = [path for examples in splits.values() for path in examples.files]
    return bool(files) and len(set(files)) == len(files) == sum(map(len, splits.values()))


def same_images(splits: Mapping[str, Examples]) -> list[list[tuple[str, int]]]:
    """Finds images with the same bytes that are in different splits.

    Files of the same size are compared, by digests of their first bytes and then of all of them.

    Args:
        splits: the examples of each split, whose images are files of their own.

    Returns:
        Groups of such images, each as its split and its position there, in their order.

    Raises:
        OSError: a file cannot be read.
    """
    images = [(name, i) for name, examples in splits.items() for i in range(len(examples))]

    def path_of(image: tuple[str, int]) -> str:
        split, position = image
        return splits[split].files[position]

    same_size = _divide([images], lambda image: locations.status(path_of(image)).size)
    same_start = _divide(same_size, lambda image: _digest(path_of(image), only_start=True))
    return _divide(same_start, lambda image: _digest(path_of(image), only_start=False))


def _divide(
    groups: list[list[tuple[str, int]]], key: Callable[[tuple[str, int]], Hashable]
) -> list[list[tuple[str, int]]]:
    """Divides groups by a key of their images; drops those that lie within one split."""
    divided: list[list[tuple[str, int]]] = []
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
        for group in groups:
            parts = collections.defaultdict(list)
            for image, value in zip(group, threads.map(key, group), strict=True):
                parts[value].append(image)
            divided += [part for part in parts.values() if len({split for split, _ in part}) > 1]
    return divided


def _digest(path: str, *, only_start: bool) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with locations.open_binary(path) as file:
        if only_start:
            digest.update(file.read(_START))
        else:
            while block := file.read(_AT_ONCE):
                digest.update(block)
    return digest.digest()
