import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import DistributionBalancedLoss, LabelStatistics
from dbl_tf.losses import class_margins, negative_tolerant_crossentropy
from dbl_tf.weighting import rebalanced_weights

COUNTS = [775, 310, 95, 40, 12, 4]
NUM_EXAMPLES = 1142
METHODS = {
    "bce": {"rebalance": None, "lambda_": 1, "kappa": 0, "focal_gamma": 0},
    "focal": {"rebalance": None, "lambda_": 1, "kappa": 0},
    "r_bce": {"lambda_": 1, "kappa": 0, "focal_gamma": 0},
    "nt_bce_focal": {"rebalance": None, "lambda_": 5},
    "db": {"focal_gamma": 0, "lambda_": 5, "mu": 0.3},
    "db_focal": {"lambda_": 5, "mu": 0.3},
    "db_released": {"focal_gamma": 0, "lambda_": 5, "margin": "released", "kappa": 0.2},
    "db_focal_released": {"lambda_": 2, "margin": "released", "kappa": 0.2},
    "gamma_half": {"lambda_": 2, "focal_gamma": 0.5, "focal_scale": 3},
}


def reference(
    y,
    z,
    alpha=0.1,
    beta=10.0,
    mu=0.2,
    lambda_=2.0,
    kappa=0.05,
    margin="paper",
    focal_gamma=2.0,
    focal_scale=2.0,
    rebalance="labels",
):
    """The loss by its definition in float64 NumPy: (B, C)."""
    y, z, n = np.asarray(y, np.float64), np.asarray(z, np.float64), np.asarray(COUNTS, np.float64)

    def softplus(x):
        return np.logaddexp(0, x)

    nu = kappa * np.log(NUM_EXAMPLES / n - 1)
    q = z - (nu / lambda_ if margin == "released" else nu)
    positive, negative = softplus(-q), softplus(lambda_ * q) / lambda_
    if focal_gamma > 0:
        positive *= focal_scale * np.exp(-focal_gamma * softplus(q))
        negative *= focal_scale * np.exp(-focal_gamma * softplus(-lambda_ * q))
    loss = y * positive + (1 - y) * negative
    if rebalance == "labels":
        with np.errstate(divide="ignore", over="ignore"):
            r = (1 / n) / (y / n).sum(axis=1, keepdims=True)
            loss *= alpha + 1 / (1 + np.exp(-beta * (r - mu)))
    return loss


def make_batch(batch_size=64, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((batch_size, 6)) < 0.3).astype(np.float32)
    labels[0] = 0
    return labels, (scale * rng.standard_normal((batch_size, 6))).astype(np.float32)


def make_loss(name, **arguments):
    return DistributionBalancedLoss(COUNTS, NUM_EXAMPLES, **{**METHODS[name], **arguments})


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1e4])
def test_float32_loss_equals_float64_reference(name, scale):
    labels, logits = make_batch(scale=scale)
    expected = reference(labels, logits, **METHODS[name])
    elements = make_loss(name, reduction=None)(labels, logits).numpy()
    np.testing.assert_allclose(elements, expected, rtol=1e-5, atol=1e-8)
    mean = float(make_loss(name)(labels, logits))
    assert mean == pytest.approx(expected.mean(), rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_soft_targets(name):
    labels, logits = make_batch()
    labels = np.random.default_rng(1).random(labels.shape).astype(np.float32)
    elements = make_loss(name, reduction=None)(labels, logits).numpy()
    expected = reference(labels, logits, **METHODS[name])
    np.testing.assert_allclose(elements, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", METHODS)
def test_value_and_gradient_are_finite_at_extreme_logits(name):
    labels = np.tile(np.eye(6, dtype=np.float32), (4, 1))
    logits = np.repeat(np.float32([1e4, -1e4, 0.0, 1e-30]), 6)[:, None] * np.ones((1, 6))
    logits = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = make_loss(name)(labels, logits)
    assert np.isfinite(loss.numpy())
    assert np.isfinite(tape.gradient(loss, logits).numpy()).all()


@pytest.mark.parametrize("name", METHODS)
def test_gradient_equals_central_differences_in_float64(name):
    labels, logits = make_batch(batch_size=16)
    logits = tf.constant(logits, tf.float64)
    loss = make_loss(name, dtype="float64", reduction="sum")
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits)
    assert value.dtype == tf.float64
    h = 1e-6
    higher = reference(labels, logits.numpy() + h, **METHODS[name])
    lower = reference(labels, logits.numpy() - h, **METHODS[name])
    np.testing.assert_allclose(
        tape.gradient(value, logits), (higher - lower) / (2 * h), rtol=1e-6, atol=1e-8
    )


def test_plain_settings_are_keras_binary_crossentropy():
    labels, logits = make_batch()
    expected = keras.losses.BinaryCrossentropy(from_logits=True)(labels, logits)
    assert float(make_loss("bce")(labels, logits)) == pytest.approx(float(expected), rel=1e-6)


def test_focal_settings_are_keras_focal_crossentropy():
    labels, logits = make_batch()
    expected = keras.losses.BinaryFocalCrossentropy(gamma=2.0, from_logits=True)(labels, logits)
    result = make_loss("focal", focal_scale=1.0)(labels, logits)
    assert float(result) == pytest.approx(float(expected), rel=1e-5)


def test_margin_is_positive_for_rare_classes_and_smaller_as_released():
    nu = class_margins([571, 4], NUM_EXAMPLES, 0.05)
    np.testing.assert_allclose(nu, [0, 0.05 * np.log(1138 / 4)], atol=1e-15)
    # A positive of a rare class is asked for a logit above ν, so at z = 0 it costs more.
    labels, logits = np.zeros((1, 6), np.float32), np.zeros((1, 6), np.float32)
    labels[0, 5] = 1
    arguments = {"rebalance": None, "reduction": None, "focal_gamma": 0}
    paper = make_loss("db", **arguments)(labels, logits).numpy()[0, 5]
    released = make_loss("db", margin="released", **arguments)(labels, logits).numpy()[0, 5]
    assert paper > released > np.log(2)


@pytest.mark.parametrize("name", ["r_bce", "db", "db_focal"])
def test_weights_from_the_pipeline_give_the_same_loss_and_gradient(name):
    labels, logits = make_batch()
    inside, outside = make_loss(name), make_loss(name, rebalance="sample_weight")
    weights = rebalanced_weights(labels, COUNTS, inside.alpha, inside.beta, inside.mu)
    logits = tf.constant(logits)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(logits)
        first, second = inside(labels, logits), outside(labels, logits, weights)
    assert float(first) == pytest.approx(float(second), rel=1e-7)
    np.testing.assert_allclose(
        tape.gradient(first, logits), tape.gradient(second, logits), rtol=1e-6, atol=1e-10
    )


def test_pipeline_mode_without_weights_raises():
    labels, logits = make_batch()
    with pytest.raises(ValueError, match="came without weights"):
        make_loss("db", rebalance="sample_weight")(labels, logits)


@pytest.mark.parametrize("rebalance", ["labels", "sample_weight", None])
def test_rank_1_weights_weigh_examples_also_when_b_equals_c(rebalance):
    labels, logits = make_batch(batch_size=6)
    weights = np.arange(6, dtype=np.float32)
    result = make_loss("db", rebalance=rebalance)(labels, logits, weights)
    elements = reference(labels, logits, **{**METHODS["db"], "rebalance": rebalance})
    assert float(result) == pytest.approx((elements * weights[:, None]).mean(), rel=1e-6)


def test_mean_is_over_elements_and_not_over_weights():
    labels, logits = make_batch()
    loss = make_loss("bce")
    weights = np.full(labels.shape, 3.0, np.float32)
    assert float(loss(labels, logits, weights)) == pytest.approx(
        3 * float(loss(labels, logits)), rel=1e-6
    )


def test_half_precision_logits_are_computed_in_float32():
    labels, logits = make_batch()
    half = tf.cast(logits, tf.bfloat16)
    expected = reference(labels, tf.cast(half, tf.float32).numpy(), **METHODS["db_focal"]).mean()
    for dtype in (None, "bfloat16", "float16"):
        result = make_loss("db_focal", dtype=dtype)(labels, half)
        assert result.dtype == tf.float32
        assert float(result) == pytest.approx(expected, rel=1e-6)


def test_probabilities_instead_of_logits():
    labels, logits = make_batch(scale=2)
    result = make_loss("db_focal", from_logits=False)(labels, keras.ops.sigmoid(logits))
    assert float(result) == pytest.approx(float(make_loss("db_focal")(labels, logits)), rel=1e-5)


def test_nan_logits_give_nan_and_are_not_hidden():
    labels, logits = make_batch()
    logits[3, 2] = np.nan
    assert np.isnan(float(make_loss("db_focal")(labels, logits)))


def test_compiled_with_xla_equals_eager():
    labels, logits = make_batch()
    loss = make_loss("db_focal")
    compiled = tf.function(loss, jit_compile=True)
    assert float(compiled(labels, logits)) == pytest.approx(float(loss(labels, logits)), rel=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_config_round_trip_through_json(name):
    loss = make_loss(name, dtype="float64")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    restored = keras.saving.deserialize_keras_object(config)
    assert restored.get_config() == loss.get_config()
    labels, logits = make_batch()
    assert float(restored(labels, logits)) == float(loss(labels, logits))


def test_compiled_model_loads_from_a_keras_file_with_its_loss(tmp_path):
    labels, _ = make_batch()
    features = np.random.default_rng(5).standard_normal((64, 8)).astype(np.float32)
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6)])
    loss = DistributionBalancedLoss(np.array(COUNTS), NUM_EXAMPLES, mu=0.3, lambda_=5)
    model.compile(optimizer="sgd", loss=loss)
    model.fit(features, labels, batch_size=16, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    # In a process of its own, so that nothing but the file and the import tells it of the loss.
    np.savez(tmp_path / "batch.npz", features=features, labels=labels)
    program = (
        "import sys, keras, numpy as np, dbl_tf\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "batch = np.load(sys.argv[2])\n"
        "assert isinstance(model.loss, dbl_tf.DistributionBalancedLoss), model.loss\n"
        "print(repr(float(model.evaluate(batch['features'], batch['labels'], verbose=0))))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "model.keras", tmp_path / "batch.npz"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    expected = model.evaluate(features, labels, verbose=0)
    assert float(output.split()[-1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rebalance", ["labels", "sample_weight"])
def test_one_and_two_replicas_train_alike(rebalance, mirrored):
    labels, _ = make_batch()
    features = np.random.default_rng(6).standard_normal((64, 8)).astype(np.float32)
    weights = rebalanced_weights(labels, COUNTS)
    parts = (features, labels, weights) if rebalance == "sample_weight" else (features, labels)
    batches = tf.data.Dataset.from_tensor_slices(parts).batch(16, drop_remainder=True)
    devices = tf.config.list_logical_devices("CPU")
    assert len(devices) == 2, devices

    def trained_weights(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6)])
            loss = make_loss("db_focal", rebalance=rebalance)
            model.compile(optimizer=keras.optimizers.SGD(0.5), loss=loss)
        history = model.fit(batches, epochs=2, verbose=0)
        return model.get_weights(), history.history["loss"]

    one, one_loss = trained_weights(tf.distribute.OneDeviceStrategy("CPU:0"))
    two, two_loss = trained_weights(mirrored)
    np.testing.assert_allclose(one_loss, two_loss, rtol=1e-6)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


PROGRAM = """
import importlib.abc, json, sys

class NoTensorFlow(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            raise ImportError(f"{name} is not to be imported")

sys.meta_path.insert(0, NoTensorFlow())
import jax, numpy as np
import dbl_tf

batch = np.load(sys.argv[1])
results = {}
for name, arguments in json.loads(sys.argv[2]).items():
    loss = dbl_tf.DistributionBalancedLoss(**arguments)
    function = jax.jit(jax.value_and_grad(lambda logits: loss(batch["labels"], logits)))
    value, gradient = function(batch["logits"])
    results[name + "/value"], results[name + "/gradient"] = value, gradient
np.savez(sys.argv[3], **results)
"""


def test_jax_backend_without_tensorflow_gives_the_same_loss_and_gradient(tmp_path):
    pytest.importorskip("jax")
    labels, logits = make_batch()
    np.savez(tmp_path / "batch.npz", labels=labels, logits=logits)
    arguments = {
        name: {"class_counts": COUNTS, "num_examples": NUM_EXAMPLES, **METHODS[name]}
        for name in METHODS
    }
    subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "batch.npz", json.dumps(arguments),
         tmp_path / "jax.npz"],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        check=True,
    )  # fmt: skip
    results = np.load(tmp_path / "jax.npz")
    for name in METHODS:
        tensor = tf.constant(logits)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            value = make_loss(name)(labels, tensor)
        assert float(results[f"{name}/value"]) == pytest.approx(float(value), rel=1e-6)
        np.testing.assert_allclose(
            results[f"{name}/gradient"], tape.gradient(value, tensor), rtol=2e-5, atol=1e-9
        )


def test_class_without_examples_is_named():
    with pytest.raises(ValueError, match=r"classes \[1\] have no training example"):
        DistributionBalancedLoss([5, 0], 10)
    with pytest.raises(ValueError, match=r"classes \[1\] have no training example"):
        DistributionBalancedLoss([5, 0], 10, kappa=0)
    DistributionBalancedLoss([5, 0], 10, kappa=0, rebalance=None)


def test_class_in_every_example_is_named():
    with pytest.raises(ValueError, match=r"classes \[0\] are in every one of the 10"):
        DistributionBalancedLoss([10, 5], 10)
    DistributionBalancedLoss([10, 5], 10, kappa=0)


def test_clamped_counts_are_those_of_the_nearest_class_that_is_defined():
    labels, logits = make_batch()
    clamped = DistributionBalancedLoss(
        [0, 310, 95, 40, 12, NUM_EXAMPLES], NUM_EXAMPLES, clamp_counts=True
    )
    moved = DistributionBalancedLoss([1, 310, 95, 40, 12, NUM_EXAMPLES - 1], NUM_EXAMPLES)
    assert float(clamped(labels, logits)) == float(moved(labels, logits))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -1}, "alpha must be at least 0"),
        ({"beta": -1}, "beta must be greater than 0"),
        ({"lambda_": 0}, "lambda_ must be greater than 0, got 0"),
        ({"kappa": float("nan")}, "kappa must be finite"),
        ({"focal_gamma": -1}, "focal_gamma must be at least 0"),
        ({"focal_scale": 0}, "focal_scale must be greater than 0"),
        ({"margin": "printed"}, r"margin must be one of \('paper', 'released'\), got 'printed'"),
        ({"rebalance": "pipeline"}, "rebalance must be one of"),
        ({"reduction": "average"}, "reduction"),
        ({"class_counts": [5, 11]}, "class 1 has 11"),
        ({"class_counts": [5, float("nan")]}, "class 1 has nan"),
        ({"class_counts": [[5, 5]]}, r"shape \(C,\), got \(1, 2\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DistributionBalancedLoss(**{"class_counts": [5, 3], "num_examples": 10, **arguments})


def test_logits_and_labels_of_another_width_are_refused():
    loss = make_loss("db")
    labels, logits = make_batch()
    with pytest.raises(ValueError, match=r"y_pred must be of shape \(B, 6\).*got \(64, 5\)"):
        loss(labels, logits[:, :5])
    with pytest.raises(ValueError, match=r"y_true must be of shape \(B, 6\).*got \(64, 5\)"):
        loss(labels[:, :5], logits)


def test_elementwise_function_by_hand():
    # At z = ν both halves are log 2, the negative one over λ.
    result = negative_tolerant_crossentropy(np.float32([[1, 0]]), np.float32([[2, 2]]), 2.0, 4.0)
    np.testing.assert_allclose(result, [[np.log(2), np.log(2) / 4]], rtol=1e-6)


def test_statistics_fit_the_loss(voc_mlt_labels):
    statistics = LabelStatistics.from_labels(voc_mlt_labels)
    loss = DistributionBalancedLoss(statistics.class_counts, statistics.num_examples)
    value = loss(voc_mlt_labels, np.zeros(voc_mlt_labels.shape, np.float32))
    assert 0 < float(value) < 1
