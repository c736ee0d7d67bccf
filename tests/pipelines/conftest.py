"""Small data sets that several test modules of the pipelines use."""

import pathlib

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


@pytest.fixture(scope="session")
def picture_table(tmp_path_factory) -> pathlib.Path:
    """A table of pictures, 40 to train and 12 to test, each class a color: red, green, blue."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    channels = {"red": 0, "green": 1, "blue": 2}
    lines = ["image,split,labels"]
    for i in range(52):
        labels = ["red"] if i % 2 else ["green"]
        labels += ["blue"] if i % 4 == 0 else []
        pixels = random.integers(0, 60, (20, 24, 3))
        for name in labels:
            pixels[..., channels[name]] += 180
        (folder / f"{i}.png").write_bytes(tf.io.encode_png(np.uint8(pixels)).numpy())
        lines.append(f"{i}.png,{'train' if i < 40 else 'test'},{'|'.join(labels)}")
    (folder / "examples.csv").write_text("\n".join(lines))
    return folder / "examples.csv"
