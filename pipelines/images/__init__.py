"""Reading images as TensorFlow graph ops: headers, decoding, resizing and augmentation."""

from pipelines.images.augmentation import Augmentation, augment, color_matrix, read_for_training
from pipelines.images.decoding import (
    EVALUATION_VERSION,
    decode,
    decode_window,
    read_batch,
    read_for_evaluation,
    resize,
)
from pipelines.images.headers import (
    MAX_FILE_BYTES,
    MAX_PIXELS,
    MAX_SIDE,
    inspect,
    stored_size,
)

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
    "resize",
    "stored_size",
]
