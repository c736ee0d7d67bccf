"""Small copies of images, inside a page."""

import base64
import io
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image

# The longer side of a copy, in pixels.
THUMBNAIL = 128

# From positions in a split to the images in this order, uint8 (H, W, 3).
ReadImages = Callable[[Sequence[int]], Iterable[np.ndarray]]


def thumbnail(image: np.ndarray, name: str) -> str:
    """Returns the address of a small copy of an image, which contains it.

    Args:
        image: the image, uint8 (H, W, 3).
        name: the name of the image, for messages.

    Raises:
        ValueError: the image has another type or shape.
    """
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
