"""Reads lists of image ids, which choose the images of a published set from a larger one."""

import os
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

from dbl_tf.messages import first_few

# Pickles of protocol 2 and higher begin with the first of these, older ones with the others.
_PICKLE_STARTS = (b"\x80", b"(", b"]", b"}", b"c__builtin__\n", b"cnumpy")


class ImageIdError(ValueError):
    """A list of image ids cannot be used."""


def read(path: str | os.PathLike, id_of: Callable[[str], str | None]) -> list[str]:
    """Reads a list of image ids.

    The file is read as text whatever its suffix, with one id, file name or path on each line; empty
    lines are skipped. A repeated id is taken once, with a warning.

    Args:
        path: the list.
        id_of: a function that returns the id of the image that a line names, or None if it names
            no image of the data set.

    Returns:
        The ids in the order of the list.

    Raises:
        ImageIdError: there is no such file, it is a pickle, it is not UTF-8, it has no id, or a
            line holds something else.
    """
    path = os.path.abspath(path)
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ImageIdError(f"the list of image ids {path}: {error.strerror}") from None
    if content.startswith(_PICKLE_STARTS):
        raise ImageIdError(
            f"{path} begins with {content[:8]!r}: it is a pickle, which is never opened, because "
            "opening it would run whatever code it holds; give the ids as text, one on each line"
        )
    first_line: dict[str, int] = {}
    repeated, bad = [], []
    for line, encoded in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            text = encoded.decode().strip()
        except UnicodeDecodeError as error:
            raise ImageIdError(
                f"{path}, line {line}: byte {encoded[error.start]:#04x} is not UTF-8; a list of "
                "image ids is text with one id on each line"
            ) from None
        if not text:
            continue
        image_id = id_of(text)
        if image_id is None:
            bad.append(f"line {line}: {text[:60]!r}")
        elif image_id in first_line:
            repeated.append(f"line {line}: {text}, as line {first_line[image_id]}")
        else:
            first_line[image_id] = line
    if bad:
        raise ImageIdError(
            f"{path}: {len(bad)} lines hold no image id of the data set: {first_few(bad)}"
        )
    if not first_line:
        raise ImageIdError(f"{path} is empty; it must hold one image id on each line")
    if repeated:
        logging.warning(
            "%s: %s ids are repeated and are taken once: %s",
            path,
            f"{len(repeated):,}",
            first_few(repeated),
        )
    return list(first_line)


def positions(
    wanted: Sequence[str], ids: Sequence[str | None], *, path: str | os.PathLike
) -> np.ndarray:
    """Finds the positions of the wanted ids among all ids.

    Args:
        wanted: the distinct ids that `read` returned.
        ids: the ids of the N images of the data set.
        path: the list, which the error message names.

    Returns:
        The positions, int64 (len(wanted),), rising.

    Raises:
        ImageIdError: the data set does not have some of the ids.
    """
    position = {image_id: i for i, image_id in enumerate(ids)}
    unknown = [image_id for image_id in wanted if image_id not in position]
    if unknown:
        raise ImageIdError(
            f"{path}: {len(unknown)} of its {len(wanted)} ids are not among the {len(ids)} images "
            f"that train is chosen from: {first_few(unknown)}"
        )
    return np.sort(np.array([position[image_id] for image_id in wanted], np.int64))
