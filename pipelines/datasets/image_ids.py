"""Lists of image ids, one a line: which images of a larger data set a published set consists of."""

import os
from collections.abc import Callable, Sequence

import numpy as np
from absl import logging

_NUM_SHOWN = 5
# From protocol 2 on pickles begin with the first of these, lists and the like before with others.
_PICKLE_STARTS = (b"\x80", b"(", b"]", b"}", b"c__builtin__\n", b"cnumpy")


class ImageIdError(ValueError):
    """A list of image ids that cannot be used as it is."""


def read(path: str | os.PathLike, id_of: Callable[[str], str | None]) -> list[str]:
    """Reads a list of image ids.

    It is text whatever its suffix: one id, file name or path a line; empty lines do not count. An
    id that stands in it again is taken once, with a warning.

    Args:
        path: the list.
        id_of: the id in what a line names, None where that is no image of the data set.

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
            f"{path} begins with {content[:8]!r}: it is a pickle, which is never opened, for "
            "opening one runs whatever code it holds; give the ids as text, one a line"
        )
    first_line: dict[str, int] = {}
    repeated, bad = [], []
    for line, encoded in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), start=1):
        try:
            text = encoded.decode().strip()
        except UnicodeDecodeError as error:
            raise ImageIdError(
                f"{path}, line {line}: byte {encoded[error.start]:#04x} is not UTF-8; a list of "
                "image ids is text, one id a line"
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
            f"{path}: {len(bad)} lines hold no image id of the data set: {_few(bad)}"
        )
    if not first_line:
        raise ImageIdError(f"{path} is empty; it must hold one image id a line")
    if repeated:
        logging.warning(
            "%s: %d ids stand in it again and are taken once: %s",
            path,
            len(repeated),
            _few(repeated),
        )
    return list(first_line)


def positions(wanted: Sequence[str], ids: Sequence[str], *, path: str | os.PathLike) -> np.ndarray:
    """Where the wanted ids stand among all ids.

    Args:
        wanted: distinct ids, what `read` returned.
        ids: those of the N images of the data set.
        path: the list, for the message.

    Returns:
        int64 (len(wanted),), rising.

    Raises:
        ImageIdError: ids that the data set does not have.
    """
    position = {image_id: i for i, image_id in enumerate(ids)}
    unknown = [image_id for image_id in wanted if image_id not in position]
    if unknown:
        raise ImageIdError(
            f"{path}: {len(unknown)} of its {len(wanted)} ids are not among the {len(ids)} images "
            f"that train is chosen from: {_few(unknown)}"
        )
    return np.sort(np.array([position[image_id] for image_id in wanted], np.int64))


def _few(items: Sequence[str]) -> str:
    more = f" and {len(items) - _NUM_SHOWN} more" if len(items) > _NUM_SHOWN else ""
    return ", ".join(items[:_NUM_SHOWN]) + more
