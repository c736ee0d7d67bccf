"""The images that a page shows, by label and of their own: small copies, and what was said."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pipelines.reports import text
from pipelines.reports.diagnosis import Pairs

MAX_PICTURES = 600
# The longer side of a picture, in pixels.
THUMBNAIL = 128
_LABELS_OF_IMAGE = 6

ReadImages = Callable[[Sequence[int]], Iterable[np.ndarray]]


def choose(
    pairs: Pairs,
    kinds: Sequence[Sequence[np.ndarray]],
    *,
    order: Iterable[int],
    galleries: dict[str, list[int]],
    kind: np.ndarray,
    rank: np.ndarray,
    probabilities: np.ndarray,
    image_names: Sequence[str],
    read_images: ReadImages | None,
) -> dict[str, Any]:
    """Returns the images that a page refers to, and where, for its script.

    Pictures are kept of the first `MAX_PICTURES`: those of the galleries, then one of each kind of
    each label, then a second.

    Args:
        pairs: K pairs of an image and a label.
        kinds: for each kind and each of the C labels, the positions among the pairs that are shown.
        order: the labels, in the order in which they get pictures.
        galleries: images that are shown for themselves, by name.
        kind: the number of the kind by which each pair is said, (K,).
        rank: the pairs of an image that are said are those of the lowest rank, (K,).
        probabilities: what is said of each pair, one or more numbers, (n, K).
        image_names: the names of the N images.
        read_images: a function from positions, which rise, to images, uint8 (H, W, 3); None if
            there are no pictures.

    Returns:
        "kinds", for each label and kind the images with their probabilities; "galleries"; and
        "images", to whose entries both refer.

    Raises:
        ValueError: `read_images` returns something else.
    """
    order = list(order)
    number = max((len(of_label) for of_kind in kinds for of_label in of_kind), default=0)
    shown = (
        int(pairs.image[of_kind[i][at]])
        for at in range(number)
        for i in order
        for of_kind in kinds
        if at < len(of_kind[i])
    )
    used = list(dict.fromkeys([*(i for images in galleries.values() for i in images), *shown]))
    # A stream of images is read in its own order.
    used = [*sorted(used[:MAX_PICTURES]), *used[MAX_PICTURES:]]
    place = {image: at for at, image in enumerate(used)}
    kept = used[:MAX_PICTURES] if read_images is not None else []
    said = pairs.of_images(used, _LABELS_OF_IMAGE, -probabilities[-1], rank)

    of_pair = probabilities.T.tolist()

    def numbers(k: int) -> list[float]:
        return [float(f"{p:.3g}") for p in of_pair[k]]

    return {
        "kinds": [
            [
                [[place[int(pairs.image[k])], *numbers(k)] for k in of_kind[i].tolist()]
                for of_kind in kinds
            ]
            for i in range(pairs.shape[1])
        ],
        "galleries": {name: [place[i] for i in images] for name, images in galleries.items()},
        "images": {
            "names": [text.plain(image_names[i]) for i in used],
            "pictures": [
                _address(image, image_names[position])
                for position, image in zip(
                    kept, read_images(kept) if read_images else (), strict=True
                )
            ],
            "said": [
                [[int(pairs.label[k]), int(kind[k]), *numbers(k)] for k in of_image.tolist()]
                for of_image in said
            ],
        },
    }


def _address(image: np.ndarray, name: str) -> str:
    """Returns the address of a small copy of an image, which contains it."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"read_images must return uint8 (H, W, 3), returned {image.dtype} {image.shape} for "
            f"{name}"
        )
    picture = Image.fromarray(image)
    small = max(picture.size) <= THUMBNAIL
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    # JPEG would blur an image of few pixels.
    kind = "png" if small else "jpeg"
    picture.save(buffer, kind, **({} if small else {"quality": 72}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
