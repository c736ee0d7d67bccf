from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import models, prediction, terminal

BATCH_SIZE, NUM_EXAMPLES, NUM_FEATURES = 8, 20, 6


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(NUM_EXAMPLES, NUM_FEATURES)).astype(np.float32)


@pytest.fixture
def network() -> keras.Model:
    return models.build_head(NUM_FEATURES, 3, seed=5)


def batched(features: Any) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices(features).batch(BATCH_SIZE)


def test_logits_are_those_of_keras_bit_for_bit(network, features):
    logits = prediction.predict_logits(network, batched(features), verbose=0)
    assert logits.shape == (NUM_EXAMPLES, 3) and logits.dtype == np.float32
    np.testing.assert_array_equal(logits, network.predict(batched(features), verbose=0))


def test_several_replicas_give_the_logits_of_one(mirrored, network, features):
    with mirrored.scope():
        copy = keras.models.clone_model(network)
    copy.set_weights(network.get_weights())
    np.testing.assert_allclose(
        prediction.predict_logits(copy, batched(features), verbose=0),
        prediction.predict_logits(network, batched(features), verbose=0),
        atol=1e-6,
    )


def test_each_example_is_read_once(network, features):
    starts = []

    def read():
        starts.append(len(starts))
        yield from features

    spec = tf.TensorSpec([NUM_FEATURES], tf.float32)
    batches = tf.data.Dataset.from_generator(read, output_signature=spec).batch(BATCH_SIZE)
    batches = batches.apply(tf.data.experimental.assert_cardinality(3)).prefetch(2)
    prediction.predict_logits(network, batches, verbose=0)
    assert starts == [0]


def test_batches_of_all_sizes_and_splits_share_one_trace(network, features):
    for size in (NUM_EXAMPLES, NUM_EXAMPLES - 1, NUM_EXAMPLES - 2, 3):
        prediction.predict_logits(network, batched(features[:size]), verbose=0)
    assert network.predict_function.experimental_get_tracing_count() == 1


def test_labels_that_come_with_the_inputs_are_left_out(network, features):
    expected = prediction.predict_logits(network, batched(features), verbose=0)
    batches = batched((features, features[:, :3] > 0))
    logits = prediction.predict_logits(network, batches, verbose=0)
    np.testing.assert_array_equal(logits, expected)


def test_a_network_that_runs_eagerly_predicts_the_same(network, features):
    expected = prediction.predict_logits(network, batched(features), verbose=0)
    network.compile(run_eagerly=True)
    logits = prediction.predict_logits(network, batched(features), verbose=0)
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("verbose", ["auto", 0, 1, 2])
@pytest.mark.parametrize("counted", [True, False])
def test_progress_is_shown_as_asked(network, features, verbose, counted, capsys, monkeypatch):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0)
    batches = batched(features)
    if not counted:
        batches = batches.filter(lambda batch: True)
    prediction.predict_logits(network, batches, verbose=verbose)
    output = capsys.readouterr().out
    said = "predicting: 3 of 3 batches" if counted else "predicting: 3 batches"
    assert said in output if verbose else output == ""
