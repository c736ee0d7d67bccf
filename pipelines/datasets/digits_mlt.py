"""digits_mlt: scenes of real handwritten digits with long-tailed labels, made without a download.

Each scene shows one to four different digits on a dark background; its labels are these digits.
Common digits often occur with rare ones, as people do with sheep in photographs, so re-sampling a
rare digit draws common ones too. The images of the digits are part of scikit-learn (Alpaydin and
Kaynak, Optical Recognition of Handwritten Digits); no image is in both train and test.
"""

import functools
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import tensorflow as tf
from sklearn.datasets import load_digits

from pipelines import longtail
from pipelines.datasets.options import DIGITS_SIZE as IMAGE_SIZE
from pipelines.datasets.options import DigitsOptions
from pipelines.datasets.source import LoadOptions
from pipelines.examples import Examples, LabelledData

NUM_CLASSES = 10
MAX_COUNT = 1200  # settling rarer digits removes some of the most common one again
NUM_TEST_SCENES = 2000

_NUM_CANDIDATES = 6000
_TEST_DIGIT_SHARE = 0.4
_NUM_DIGITS_SHARES = (0.4, 0.35, 0.2, 0.05)  # scenes of one, two, three and four digits
_POPULARITY = 0.6 ** np.arange(NUM_CLASSES)  # of the first digit of a training scene
_SOCIABILITY = 0.7 ** np.arange(NUM_CLASSES)  # of a digit that joins another one


def load(
    options: DigitsOptions, load_options: LoadOptions, splits: Sequence[str] | None = None
) -> LabelledData:
    """Composes the scenes of all splits from `data_seed`; see `compose`."""
    load_options.check_no_test("digits_mlt")
    return _composed(load_options.data_seed)


def compose(seed: int = 0) -> LabelledData:
    """Composes the scenes.

    Args:
        seed: the seed of the composition; the same seed gives the same bytes.

    Returns:
        A data set with the splits "train", 930 scenes with class counts from 886 to 6 that
        `longtail.pareto_subset` chose, and "test", 2 000 scenes whose first digit is drawn
        uniformly, so that rare digits are tested on many scenes.
    """
    # The legacy generator, because no version of NumPy changes its stream.
    random = np.random.RandomState(seed)
    digits = load_digits()
    images, targets = digits.images / 16.0, digits.target
    order = random.permutation(len(targets))
    num_test_digits = int(_TEST_DIGIT_SHARE * len(order))
    candidates = _draw_labels(random, _NUM_CANDIDATES, _POPULARITY)
    chosen = longtail.pareto_subset(candidates, max_count=MAX_COUNT, seed=seed)
    parts = {
        "train": (candidates[chosen], order[num_test_digits:]),
        "test": (
            _draw_labels(random, NUM_TEST_SCENES, np.ones(NUM_CLASSES)),
            order[:num_test_digits],
        ),
    }
    splits = {
        name: _examples(name, labels, images[pool], targets[pool], random)
        for name, (labels, pool) in parts.items()
    }
    class_names = tuple(str(digit) for digit in range(NUM_CLASSES))
    return LabelledData(
        class_names=class_names, splits=splits, flip_probability=0.0, origin="digits_mlt scenes"
    )


def _draw_labels(
    random: np.random.RandomState, num_scenes: int, popularity: np.ndarray
) -> np.ndarray:
    """Draws labels, multi-hot (num_scenes, 10): a first digit and then others, by popularity."""
    first = random.choice(NUM_CLASSES, num_scenes, p=popularity / popularity.sum())
    num_digits = 1 + random.choice(len(_NUM_DIGITS_SHARES), num_scenes, p=_NUM_DIGITS_SHARES)
    # Sorting by −log(u)/sociability draws without replacement, in proportion to sociability.
    keys = -np.log(random.random_sample((num_scenes, NUM_CLASSES))) / _SOCIABILITY
    keys[np.arange(num_scenes), first] = -1.0
    ranks = keys.argsort(axis=1).argsort(axis=1)
    return ranks < num_digits[:, None]


def _examples(
    split: str,
    labels: np.ndarray,
    images: np.ndarray,
    targets: np.ndarray,
    random: np.random.RandomState,
) -> Examples:
    pools = [images[targets == digit] for digit in range(NUM_CLASSES)]
    encoded = [tf.io.encode_png(_scene(row, pools, random)).numpy() for row in labels]
    with tf.device("CPU"):
        table = tf.constant(encoded)
    return Examples(
        names=[f"{split}/{i:05d}.png" for i in range(len(encoded))],
        labels=scipy.sparse.csr_array(labels),
        read=lambda position: table[position],
    )


def _scene(
    labels: np.ndarray, pools: list[np.ndarray], random: np.random.RandomState
) -> np.ndarray:
    """Composes a scene, uint8 (S, S, 3), with each digit moved, scaled and tinted in a quarter."""
    half = IMAGE_SIZE // 2
    ground = random.uniform(0.0, 0.25, 3)
    scene = ground + random.normal(0.0, 0.04, (IMAGE_SIZE, IMAGE_SIZE, 1))
    shown = np.flatnonzero(labels)
    for digit, quarter in zip(shown, random.permutation(4), strict=False):
        pool = pools[digit]
        size = random.randint(13, half + 1)
        ink = _enlarge(pool[random.randint(len(pool))], size)[:, :, None]
        top, left = half * np.array(divmod(quarter, 2)) + random.randint(0, half - size + 1, 2)
        place = scene[top : top + size, left : left + size]
        place += ink * (random.uniform(0.7, 1.0, 3) - place)
    return (np.clip(scene, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def _enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """Enlarges a square image by bilinear interpolation."""
    place = np.clip((np.arange(size) + 0.5) * len(image) / size - 0.5, 0, len(image) - 1)
    weights = np.maximum(0.0, 1.0 - np.abs(place[:, None] - np.arange(len(image))))
    return weights @ image @ weights.T


# Cached, so that several runs in one process do not compose the scenes again.
_composed = functools.lru_cache(maxsize=2)(compose)
