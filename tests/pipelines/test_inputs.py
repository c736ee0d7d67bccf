import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from dbl_tf.weighting import rebalanced_weights
from pipelines import images, inputs, sampling
from pipelines.datasets import digits_mlt
from pipelines.examples import Examples, FeatureRows

COUNTS = np.arange(1, 11)


@pytest.fixture(scope="module")
def examples():
    return digits_mlt.compose().splits["train"].take(np.arange(200))


def batches(examples, start_step=0, weighting=None, batch_size=16):
    indices = sampling.class_aware_indices(
        examples.labels, batch_size, seed=3, start_step=start_step
    )
    return inputs.training_batches(
        examples, indices, image_size=24, seed=3, weighting=weighting, start_step=start_step
    )


def test_batch_t_is_the_same_in_every_run_and_from_every_start(examples):
    first = list(batches(examples).take(5).as_numpy_iterator())
    later = list(batches(examples, start_step=3).take(2).as_numpy_iterator())
    for a, b in zip(first[3:], later, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)
    assert not np.array_equal(first[0][0], first[1][0])


def test_images_labels_and_weights_belong_together(examples):
    def weigh(labels):
        return rebalanced_weights(labels, COUNTS)

    indices = sampling.class_aware_indices(examples.labels, 16, seed=3).take(3)
    dense = examples.labels.toarray()
    for step, (index, batch) in enumerate(zip(indices, batches(examples, weighting=weigh))):  # noqa: B905
        pixels, labels, weights = (part.numpy() for part in batch)
        np.testing.assert_array_equal(labels, dense[index])
        np.testing.assert_allclose(weights, rebalanced_weights(labels, COUNTS), rtol=1e-6)
        assert pixels.shape == (16, 24, 24, 3) and 0 <= pixels.min() < pixels.max() <= 255
        for place in (0, 15):
            seed = tf.constant([3, step * 16 + place], tf.int64)
            expected = images.read_for_training(examples.read(index[place]), 24, seed)
            np.testing.assert_allclose(pixels[place], expected, atol=1e-3)


def test_evaluation_reads_every_image_once_in_order(examples):
    read = inputs.evaluation_batches(examples, image_size=24, batch_size=64)
    pixels = np.concatenate(list(read.as_numpy_iterator()))
    assert pixels.shape == (200, 24, 24, 3)
    for i in (0, 77, 199):
        expected = images.read_for_evaluation(examples.read(tf.constant(i, tf.int64)), 24)
        np.testing.assert_allclose(pixels[i], expected, atol=1e-3)


def test_dense_labels_of_a_sparse_matrix():
    labels = scipy.sparse.random(300, 40, 0.05, "csr", rng=np.random.default_rng(0)) != 0
    index = np.array([5, 299, 5, 0])
    at = inputs.dense_labels(scipy.sparse.csr_array(labels))
    np.testing.assert_array_equal(at(tf.constant(index)).numpy(), labels.toarray()[index])


def test_features_come_with_their_labels_and_weights(examples):
    features = np.arange(200, dtype=np.float32)[:, None]
    indices = sampling.uniform_indices(200, 8, seed=0)
    rows, labels, weights = next(
        iter(
            inputs.feature_batches(
                FeatureRows.of(features),
                examples.labels,
                indices,
                lambda y: rebalanced_weights(y, COUNTS),
            )
        )
    )
    picked = rows.numpy()[:, 0].astype(int)
    np.testing.assert_array_equal(labels, examples.labels.toarray()[picked])
    assert weights.shape == (8, 10)


def test_an_image_that_can_no_longer_be_read_is_named():
    encoded = tf.constant([tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy(), b"\x89PNG"])
    labels = scipy.sparse.csr_array(np.ones((2, 1), bool))
    examples = Examples(["good.png", "folder/bad.png"], labels, lambda i: encoded[i])
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(inputs.evaluation_batches(examples, image_size=8, batch_size=2))
    error = inputs.find_unreadable(examples, tf.data.Dataset.range(2).batch(2), 8)
    assert "folder/bad.png" in str(error)
    assert inputs.find_unreadable(examples, tf.data.Dataset.range(1).batch(2), 8) is None


def test_batches_train_a_keras_model(examples):
    model = keras.Sequential(
        [keras.Input((24, 24, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    )
    model.compile("sgd", keras.losses.BinaryCrossentropy(from_logits=True))
    history = model.fit(batches(examples), steps_per_epoch=2, verbose=0, shuffle=False)
    assert np.isfinite(history.history["loss"]).all()
