"""Losses of logits that receive probabilities, and the other way round."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import dbl_tf

ROOT = pathlib.Path(__file__).resolve().parents[2]
COUNTS, NUM_EXAMPLES = [60, 40, 20, 12, 8, 4, 3, 2], 100
LOSSES = {
    "db_focal": lambda **a: dbl_tf.DistributionBalancedLoss(COUNTS, NUM_EXAMPLES, **a),
    "weighted": lambda **a: dbl_tf.ReweightedCrossentropy(COUNTS, "inverse_root", **a),
    "ldam": lambda **a: dbl_tf.LDAMLoss(COUNTS, **a),
    "asl": dbl_tf.AsymmetricLoss,
    "hill": dbl_tf.HillLoss,
    "splc": dbl_tf.SPLCLoss,
    "ral": dbl_tf.RobustAsymmetricLoss,
    "poly1": dbl_tf.Poly1Loss,
    "zlpr": dbl_tf.ZLPRLoss,
    "two_way": dbl_tf.TwoWayLoss,
}


def batch(num_classes=8, size=16):
    random = np.random.default_rng(0)
    labels = (random.random((size, num_classes)) < 0.3).astype(np.float32)
    return random.standard_normal((size, 5)).astype(np.float32), labels


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def messages_of(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(w.message) for w in caught if "from_logits" in str(w.message)]


def check_case(case, found):
    """The warnings of a loss, and whether they name the layer."""
    backend, end, from_logits, kind = case
    are_probabilities = end in ("sigmoid", "softmax", "reshaped")
    is_wrong = are_probabilities == from_logits
    if end == "stretched" and backend != "torch" and kind == "compiled":
        is_wrong = False  # only the values would tell
    assert len(found) == is_wrong, (case, found)
    if is_wrong and kind == "compiled" and backend != "torch":
        assert ("probabilities" if are_probabilities else "linear") in found[0].split("(")[2], found


# Runs on the backend of its process, and prints the warnings of each fit.
PROGRAM = """
import json, warnings
import keras, numpy as np
import dbl_tf

D = keras.layers.Dense
ENDS = {
    "sigmoid": [D(8, activation="sigmoid", name="probabilities", dtype="mixed_bfloat16")],
    "softmax": [D(8), keras.layers.Softmax(name="probabilities")],
    "reshaped": [D(8, activation="sigmoid", name="probabilities"), keras.layers.Reshape((8,))],
    "linear": [D(9, activation="sigmoid"), D(8, name="linear")],
    "unbiased": [D(8, use_bias=False, name="linear")],
    "stretched": [D(8, activation="sigmoid"), keras.layers.Rescaling(8.0, -4.0)],
}
random = np.random.default_rng(0)
x, y = random.standard_normal((16, 5)).astype("float32"), random.integers(0, 2, (16, 8))
found = []
for end, layers in ENDS.items():
    for from_logits in (True, False):
        for kind in ("compiled", "eager"):
            model = keras.Sequential([keras.Input((5,)), *layers])
            loss = dbl_tf.AsymmetricLoss(from_logits=from_logits)
            model.compile("sgd", loss, run_eagerly=kind == "eager")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                model.fit(x, y, batch_size=8, verbose=0, validation_data=(x, y))
            texts = [str(w.message) for w in caught]
            case = keras.backend.backend(), end, from_logits, kind
            found.append([case, [t for t in texts if t.startswith("AsymmetricLoss takes")]])
print(json.dumps(found))
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_fit_warns_once_of_outputs_that_do_not_fit_the_loss(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert len(found) == 24
    for case, messages in found:
        check_case(case, messages)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_warns_of_values_and_of_operations(name):
    logits, labels = 2 * batch()[0] @ np.random.default_rng(1).normal(size=(5, 8)), batch()[1]
    make = LOSSES[name]

    @tf.function
    def compiled(loss, outputs):
        return loss(labels, tf.sigmoid(outputs))

    loss = make()
    (message,) = messages_of(lambda: [loss(labels, sigmoid(logits)) for _ in range(3)])
    assert f"{type(loss).__name__} takes logits" in message and "within [0, 1]" in message
    (message,) = messages_of(lambda: compiled(make(), tf.constant(logits)))
    assert "comes from a sigmoid" in message
    (message,) = messages_of(lambda: make(from_logits=False)(labels, logits))
    assert "takes probabilities" in message and f"{logits.min():.3g}" in message
    assert not messages_of(lambda: make(from_logits=False)(labels, sigmoid(logits)))
    assert not messages_of(lambda: make()(labels, logits))


RANDOM = np.random.default_rng(2)
HONEST_LOGITS = {
    "untrained": np.zeros((64, 20)),
    "of a bias alone": np.full((64, 20), 0.3),
    "of few classes": RANDOM.random((64, 2)),
    "of one class": RANDOM.random((64, 1)),
    "of few examples": RANDOM.random((2, 20)),
    "nearly within": RANDOM.random((64, 20)) - 0.01,
    "certain": np.eye(20)[RANDOM.integers(0, 20, 64)],
    "not finite": np.where(np.eye(20), np.nan, 0.5),
    "one distribution": np.tile(RANDOM.dirichlet(np.ones(20)), (3, 1)),
}


@pytest.mark.parametrize("kind", HONEST_LOGITS)
def test_logits_raise_no_alarm(kind):
    logits = HONEST_LOGITS[kind].astype(np.float32)
    labels = np.zeros(logits.shape, np.float32)
    assert not messages_of(lambda: dbl_tf.AsymmetricLoss()(labels, logits))


def test_rows_that_add_up_to_one_are_probabilities_of_any_number_of_classes():
    rows = np.random.default_rng(3).dirichlet(np.ones(3), size=8).astype(np.float32)
    (message,) = messages_of(lambda: dbl_tf.AsymmetricLoss()(np.zeros((8, 3)), rows))
    assert "add up to 1" in message


def test_a_mean_of_probabilities_is_no_linear_layer():
    @tf.function
    def compiled(loss, first, second):
        mean = 0.5 * tf.sigmoid(first) + 0.5 * tf.sigmoid(second)
        return loss(tf.zeros((4, 2)), mean + tf.constant([0.0, 1e-3]))

    loss = dbl_tf.AsymmetricLoss(from_logits=False)
    assert not messages_of(lambda: compiled(loss, tf.zeros((4, 2)), tf.ones((4, 2))))


def test_fit_on_several_replicas_warns_once(mirrored):
    features, labels = batch()
    with mirrored.scope():
        layer = keras.layers.Dense(8, activation="sigmoid", name="probabilities")
        model = keras.Sequential([keras.Input((5,)), layer])
        model.compile("sgd", dbl_tf.AsymmetricLoss())
    (message,) = messages_of(lambda: model.fit(features, labels, batch_size=8, verbose=0))
    assert "probabilities" in message
