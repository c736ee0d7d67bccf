import numpy as np
import tensorflow as tf

from dbl_tf import LabelStatistics
from pipelines.datasets import digits_mlt


def test_long_tailed_and_the_same_every_time():
    data, again = digits_mlt.compose(), digits_mlt.compose()
    train, test = data.splits["train"], data.splits["test"]
    statistics = LabelStatistics.from_labels(train.labels, data.class_names)
    counts = np.sort(statistics.class_counts)
    assert counts[-1] > 50 * counts[0] > 0
    assert all(len(group) >= 3 for group in statistics.groups.values())
    # Common digits join the rare ones, so re-sampling leaves the classes unequal.
    assert statistics.resampled_probability.max() > 5 * statistics.resampled_probability.min()
    assert len(test) == digits_mlt.NUM_TEST_SCENES
    assert test.labels.toarray().mean(axis=0).min() > 0.05
    for name, examples in data.splits.items():
        other = again.splits[name]
        np.testing.assert_array_equal(examples.labels.toarray(), other.labels.toarray())
        for i in (0, len(examples) - 1):
            assert examples.read(tf.constant(i)) == other.read(tf.constant(i))


def test_images_are_small_pictures_that_differ():
    train = digits_mlt.compose().splits["train"]
    encoded = {train.read(tf.constant(i)).numpy() for i in range(50)}
    assert len(encoded) == 50
    assert {tuple(tf.io.decode_png(e).shape) for e in encoded} == {(32, 32, 3)}


def test_no_digit_is_in_both_train_and_test(monkeypatch):
    used = {"train": set(), "test": set()}
    compose = digits_mlt._examples

    def watched(split, labels, images, targets, random):
        used[split] |= {image.tobytes() for image in images}
        return compose(split, labels[:1], images, targets, random)

    monkeypatch.setattr(digits_mlt, "_examples", watched)
    digits_mlt.compose()
    assert used["train"] and used["test"] and not used["train"] & used["test"]
