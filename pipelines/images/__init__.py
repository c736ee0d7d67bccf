"""Reading images as TensorFlow graph ops: headers, decoding, resizing and augmentation."""

from typing import TYPE_CHECKING

from dbl_tf import lazy
from pipelines.images.settings import Augmentation

if TYPE_CHECKING:
    from pipelines.images.augmentation import augment, color_matrix, read_for_training
    from pipelines.images.decoding import (
        EVALUATION_VERSION,
        decode,
        decode_window,
        read_batch,
        read_for_evaluation,
        resize,
        whole,
    )
    from pipelines.images.headers import (
        MAX_FILE_BYTES,
        MAX_PIXELS,
        MAX_SIDE,
        inspect,
        stored_size,
    )
    from pipelines.images.reasons import reason_of

__all__ = [
    "EVALUATION_VERSION",
    "MAX_FILE_BYTES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "Augmentation",
    "augment",
    "color_matrix",
    "decode",
    "decode_window",
    "inspect",
    "read_batch",
    "read_for_evaluation",
    "read_for_training",
    "reason_of",
    "resize",
    "stored_size",
    "whole",
]

__getattr__, __dir__ = lazy.attributes(
    __name__,
    {
        "augmentation": ["augment", "color_matrix", "read_for_training"],
        "decoding": [
            "EVALUATION_VERSION",
            "decode",
            "decode_window",
            "read_batch",
            "read_for_evaluation",
            "resize",
            "whole",
        ],
        "headers": ["MAX_FILE_BYTES", "MAX_PIXELS", "MAX_SIDE", "inspect", "stored_size"],
        "reasons": ["reason_of"],
    },
)
