"""A small data set that several test modules of the pipelines use."""

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from pipelines.examples import Examples, LabelledData

CLASS_NAMES = ("person", "dining table", "sheep")


@pytest.fixture(scope="session")
def small_data() -> LabelledData:
    """237 train and 41 test images of 3 classes, counts falling; some have no label."""
    random = np.random.default_rng(0)

    def examples(split: str, size: int) -> Examples:
        pixels = random.integers(0, 256, (size, 12, 10, 3), np.uint8)
        encoded = [tf.io.encode_png(image).numpy() for image in pixels]
        labels = random.random((size, 3)) < (0.6, 0.2, 0.05)
        with tf.device("CPU"):
            table = tf.constant(encoded)
        return Examples(
            names=[f"{split}/ä {i}.png" for i in range(size)],
            labels=scipy.sparse.csr_array(labels),
            read=lambda position: table[position],
        )

    splits = {"train": examples("train", 237), "test": examples("test", 41)}
    return LabelledData(CLASS_NAMES, splits, flip_probability=0.25)
