import inspect
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import dbl_tf
from dbl_tf import AsymmetricLoss, DistributionBalancedLoss, LabelStatistics, LDAMLoss
from dbl_tf import ReweightedCrossentropy as Reweighted
from dbl_tf import losses as dbl_losses
from dbl_tf.losses import class_margins, negative_tolerant_crossentropy
from dbl_tf.weighting import class_balanced_weights, inverse_root_weights, rebalanced_weights

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
    """The loss per element, (B, C), by its definition in float64 NumPy."""
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


# Integers and booleans take another branch of the code.
LABEL_TYPES = [np.float32, np.uint8, bool]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0, 1e4])
@pytest.mark.parametrize("label_type", LABEL_TYPES)
def test_float32_loss_equals_float64_reference(name, scale, label_type):
    labels, logits = make_batch(scale=scale)
    expected = reference(labels, logits, **METHODS[name])
    labels = labels.astype(label_type)
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
@pytest.mark.parametrize("label_type", LABEL_TYPES)
def test_value_and_gradient_are_finite_at_extreme_logits(name, label_type):
    labels = np.tile(np.eye(6, dtype=label_type), (4, 1))
    logits = np.repeat(np.float32([1e4, -1e4, 0.0, 1e-30]), 6)[:, None] * np.ones((1, 6))
    logits = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = make_loss(name)(labels, logits)
    assert np.isfinite(loss.numpy())
    assert np.isfinite(tape.gradient(loss, logits).numpy()).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("label_type", LABEL_TYPES)
def test_gradient_equals_central_differences_in_float64(name, label_type):
    labels, logits = make_batch(batch_size=16)
    logits = tf.constant(logits, tf.float64)
    loss = make_loss(name, dtype="float64", reduction="sum")
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels.astype(label_type), logits)
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
    # The logit of a positive of a rare class has to exceed ν, so its loss at z = 0 is larger.
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
def test_rank_1_weights_apply_to_examples_even_when_b_equals_c(rebalance):
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
    # A new process knows the loss only from the file and the import.
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
def test_one_and_two_replicas_train_to_the_same_weights(rebalance, mirrored):
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
            raise ImportError(f"{name} must not be imported")

sys.meta_path.insert(0, NoTensorFlow())
import jax, numpy as np
import dbl_tf
from dbl_tf import methods, parameters, settings

batch = np.load(sys.argv[1])
results = {}
for name, arguments in json.loads(sys.argv[2]).items():
    loss = getattr(dbl_tf, arguments.pop("class"))(**arguments)
    function = jax.jit(jax.value_and_grad(lambda logits: loss(batch["labels"], logits)))
    value, gradient = function(batch["logits"])
    results[name + "/value"], results[name + "/gradient"] = value, gradient
for layer in (
    dbl_tf.CosineClassifier(3, kernel_initializer="ones"),
    dbl_tf.GraphClassifier(np.eye(3), hidden_units=4),
):
    features = np.float32([[3, 4], [0, 0]])
    layer(features)
    layer.set_weights([np.cos(np.arange(w.size)).reshape(w.shape) for w in layer.get_weights()])
    results[type(layer).__name__] = jax.jit(layer)(features)
np.savez(sys.argv[3], **results)
"""


def test_jax_backend_without_tensorflow_gives_the_same_loss_and_gradient(tmp_path):
    pytest.importorskip("jax")
    labels, logits = make_batch()
    np.savez(tmp_path / "batch.npz", labels=labels, logits=logits)
    losses = {name: make_loss(name) for name in METHODS}
    losses |= {name: COMPARED[name]() for name in ("rw_focal", "cb_focal", "ldam", "asl")}
    arguments = {
        name: {**loss.get_config(), "class": type(loss).__name__} for name, loss in losses.items()
    }
    subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "batch.npz", json.dumps(arguments),
         tmp_path / "jax.npz"],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        check=True,
    )  # fmt: skip
    results = np.load(tmp_path / "jax.npz")
    for name, loss in losses.items():
        tensor = tf.constant(logits)
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            value = loss(labels, tensor)
        assert float(results[f"{name}/value"]) == pytest.approx(float(value), rel=2e-6)
        np.testing.assert_allclose(
            results[f"{name}/gradient"], tape.gradient(value, tensor), rtol=2e-5, atol=1e-9
        )
    features = np.float32([[3, 4], [0, 0]])
    for layer in (
        dbl_tf.CosineClassifier(3),
        dbl_tf.GraphClassifier(np.eye(3), hidden_units=4),
    ):
        layer(features)
        values = [np.cos(np.arange(w.size)).reshape(w.shape) for w in layer.get_weights()]
        layer.set_weights(values)
        np.testing.assert_allclose(
            results[type(layer).__name__], layer(features), rtol=1e-5, atol=1e-6
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


def test_clamped_counts_move_to_the_nearest_defined_count():
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
        ({"lambda_": 0}, "lambda_ must be greater than 0; got 0"),
        ({"kappa": float("nan")}, "kappa must be a finite number; got nan"),
        ({"focal_gamma": -1}, "focal_gamma must be at least 0"),
        ({"focal_scale": 0}, "focal_scale must be greater than 0"),
        ({"margin": "printed"}, "margin must be one of paper, released; got 'printed'"),
        ({"margin": None}, "margin must be one of paper, released; got None"),
        ({"rebalance": "pipeline"}, "rebalance must be one of"),
        ({"reduction": "average"}, "reduction"),
        ({"class_counts": [5, 11]}, "class 1 has 11"),
        ({"class_counts": [5, float("nan")]}, "class 1 has nan"),
        ({"class_counts": [[5, 5]]}, r"shape \(C,\); got \(1, 2\).*from_labels\(labels\)"),
        ({"class_counts": [0.2, 0.6]}, "got shares of the examples, from 0.2 to 0.6"),
        ({"class_counts": [0.2, 1.0], "num_examples": 1}, "got shares of the examples"),
        ({"class_counts": ["cat", "dog"]}, r"got \['cat', 'dog'\]"),
        ({"class_counts": {"cat": 5}}, r"of shape \(C,\); got \{'cat': 5\}"),
        ({"class_counts": LabelStatistics.from_labels([[1]])}, "pass statistics.class_counts"),
        ({"class_counts": 10, "num_examples": [5, 3]}, r"\[5, 3\]. class_counts comes first"),
        ({"num_examples": 10.5}, "a whole number of at least 1; got 10.5"),
        ({"num_examples": "10"}, "a whole number of at least 1; got '10'"),
        ({"num_examples": 0, "class_counts": [0]}, "a whole number of at least 1; got 0"),
        ({"kappa": 1e300}, r"kappa=1e\+300 makes the margin ν \(Eq. 9\) infinite in float32"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        DistributionBalancedLoss(**{"class_counts": [5, 3], "num_examples": 10, **arguments})


def test_counts_may_be_of_soft_labels():
    loss = DistributionBalancedLoss([0.5, 3.25], 10)
    assert np.isfinite(loss(np.eye(2), np.zeros((2, 2))))


def test_class_weight_of_keras_weighs_an_example_by_its_first_label():
    """As the guide warns; the labels of the last example are the classes 1 and 2."""
    labels = np.array([[1, 0, 0], [0, 0, 1], [0, 1, 1]])

    def kernel(**weights):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
        model.compile(keras.optimizers.SGD(1.0), AsymmetricLoss())
        model.fit(np.eye(3), labels, batch_size=3, verbose=0, **weights)
        return model.get_weights()[0]

    given = kernel(class_weight={0: 1.0, 1: 10.0, 2: 100.0})
    of_examples = kernel(sample_weight=np.array([1.0, 100.0, 10.0]))
    np.testing.assert_allclose(given, of_examples, rtol=1e-6)


def test_what_is_passed_already_is_not_advised():
    loss = DistributionBalancedLoss([0, 1], 1, clamp_counts=True)
    assert np.isfinite(loss(np.eye(2), np.zeros((2, 2))))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DistributionBalancedLoss([0] * 5712, 100),
        lambda: DistributionBalancedLoss([100] * 5712, 100),
        lambda: Reweighted([0] * 5712, "inverse_root"),
        lambda: LDAMLoss([0] * 5712),
        lambda: LabelStatistics.from_labels(
            np.zeros((2, 5712), int), [f"class {i // 2}" for i in range(5712)]
        ),
        lambda: LabelStatistics.from_labels(np.eye(1, 5712)).instance_probability(
            np.ones((1, 5712))
        ),
    ],
)
def test_of_many_classes_a_message_names_a_few(make):
    with pytest.raises(ValueError, match=r"and \d+ more") as error:
        make()
    assert len(str(error.value)) < 400


def test_logits_and_labels_with_a_wrong_number_of_classes_are_refused():
    loss = make_loss("db")
    labels, logits = make_batch()
    with pytest.raises(ValueError, match=r"y_pred must be of shape \(B, 6\).*got \(64, 5\)"):
        loss(labels, logits[:, :5])
    with pytest.raises(ValueError, match=r"y_true must be of shape \(B, 6\).*got \(64, 5\)"):
        loss(labels[:, :5], logits)


def test_elementwise_function_by_hand():
    # At z = ν a positive has the loss log 2, and a negative log 2 / λ.
    result = negative_tolerant_crossentropy(np.float32([[1, 0]]), np.float32([[2, 2]]), 2.0, 4.0)
    np.testing.assert_allclose(result, [[np.log(2), np.log(2) / 4]], rtol=1e-6)


def test_statistics_fit_the_loss(voc_mlt_labels):
    statistics = LabelStatistics.from_labels(voc_mlt_labels)
    loss = DistributionBalancedLoss(statistics.class_counts, statistics.num_examples)
    value = loss(voc_mlt_labels, np.zeros(voc_mlt_labels.shape, np.float32))
    assert 0 < float(value) < 1


# The losses that Distribution-Balanced Loss is compared with; their definitions follow in float64.
COMPARED = {
    "rw": lambda **a: Reweighted(COUNTS, "inverse_root", **a),
    "rw_focal": lambda **a: Reweighted(COUNTS, "inverse_root", focal_gamma=2, **a),
    "cb_focal": lambda **a: Reweighted(COUNTS, "class_balanced", focal_gamma=2, **a),
    "ldam": lambda **a: LDAMLoss(COUNTS, **a),
    "asl": lambda **a: AsymmetricLoss(**a),
    "asl_unclipped": lambda **a: AsymmetricLoss(gamma_negative=0.5, gamma_positive=0, clip=0, **a),
    "asl_half": lambda **a: AsymmetricLoss(gamma_negative=0.5, gamma_positive=0.5, clip=0.2, **a),
}


def binary_crossentropy(y, z, gamma=0, scale=1):
    """The printed formula, which is accurate for moderate logits only."""
    p = 1 / (1 + np.exp(-z))
    return -scale * (y * (1 - p) ** gamma * np.log(p) + (1 - y) * p**gamma * np.log(1 - p))


def inverse_root_reference(y, z, **focal):
    w = np.sqrt(NUM_EXAMPLES / np.array(COUNTS))
    return w / w.max() * binary_crossentropy(y, z, **focal)


def class_balanced_reference(y, z):
    w = (1 - 0.9) / (1 - 0.9 ** np.array(COUNTS, float))
    weights = [np.average(w, weights=row) if row.any() else 1.0 for row in y]
    return np.array(weights)[:, None] * binary_crossentropy(y, z, gamma=2, scale=2)


def ldam_reference(y, z):
    delta = np.array(COUNTS, float) ** -0.25
    delta *= 0.5 / delta.max()
    return binary_crossentropy(y, 30 * (z / 30 - y * delta))


def asymmetric_reference(y, z, gamma_negative=4, gamma_positive=1, clip=0.05):
    p = 1 / (1 + np.exp(-z))
    p_m = np.maximum(p - clip, 0)
    positive = (1 - p) ** gamma_positive * np.log(p)
    negative = p_m**gamma_negative * np.log(1 - p_m)
    return -y * positive - (1 - y) * negative


COMPARED_REFERENCES = {
    "rw": inverse_root_reference,
    "rw_focal": lambda y, z: inverse_root_reference(y, z, gamma=2, scale=2),
    "cb_focal": class_balanced_reference,
    "ldam": ldam_reference,
    "asl": asymmetric_reference,
    "asl_unclipped": lambda y, z: asymmetric_reference(y, z, 0.5, 0, 0),
    "asl_half": lambda y, z: asymmetric_reference(y, z, 0.5, 0.5, 0.2),
}


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("kind", ["multi-hot", "integers", "soft"])
def test_compared_losses_equal_their_printed_formulas(name, kind):
    labels, logits = make_batch()
    if kind == "soft":
        labels = np.random.default_rng(1).random(labels.shape).astype(np.float32)
    expected = COMPARED_REFERENCES[name](labels.astype(np.float64), logits.astype(np.float64))
    if kind == "integers":
        labels = labels.astype(np.int64)
    elements = COMPARED[name](reduction=None)(labels, logits).numpy()
    assert elements.dtype == np.float32
    np.testing.assert_allclose(elements, expected, rtol=1e-5, atol=1e-6)
    mean = float(COMPARED[name]()(labels, logits))
    assert mean == pytest.approx(expected.mean(), rel=1e-6)


@pytest.mark.parametrize("name", COMPARED)
def test_gradients_of_compared_losses_equal_central_differences(name):
    labels, logits = make_batch(batch_size=16)
    labels, logits = labels.astype(np.float64), tf.constant(logits, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = COMPARED[name](dtype="float64", reduction="sum")(labels, logits)
    h, reference = 1e-6, COMPARED_REFERENCES[name]
    slope = (reference(labels, logits.numpy() + h) - reference(labels, logits.numpy() - h)) / 2 / h
    np.testing.assert_allclose(tape.gradient(value, logits), slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", COMPARED)
@pytest.mark.parametrize("xla", [False, True])
def test_compared_losses_are_finite_at_extreme_logits(name, xla):
    labels = np.tile(np.eye(6, dtype=np.float32), (5, 1))
    logits = np.repeat(np.float32([1e4, -1e4, 0.0, 1e-30, -90]), 6)[:, None] * np.ones((1, 6))
    loss = COMPARED[name](reduction="sum")

    @tf.function(jit_compile=xla)
    def value_and_gradient(logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(labels, logits)
        return value, tape.gradient(value, logits)

    value, gradient = value_and_gradient(tf.constant(logits, tf.float32))
    assert np.isfinite(value) and np.isfinite(gradient).all()
    # Positives at −10⁴ have a loss of about 10⁴ times their weight, so the sum exceeds 10⁴.
    assert float(loss(np.ones((1, 6)), np.full((1, 6), -1e4))) > 1e4


@pytest.mark.parametrize("name", COMPARED)
def test_half_precision_and_probabilities_of_compared_losses(name):
    labels, logits = make_batch(scale=2)
    half = tf.cast(logits, tf.bfloat16)
    expected = float(COMPARED[name]()(labels, tf.cast(half, tf.float32)))
    result = COMPARED[name](dtype="bfloat16")(labels, half)
    assert result.dtype == tf.float32 and float(result) == pytest.approx(expected, rel=1e-6)
    result = COMPARED[name](from_logits=False)(labels, keras.ops.sigmoid(logits))
    assert float(result) == pytest.approx(float(COMPARED[name]()(labels, logits)), rel=1e-5)


@pytest.mark.parametrize("name", COMPARED)
def test_example_weights_of_compared_losses(name):
    labels, logits = make_batch(batch_size=6)
    weights = np.arange(6, dtype=np.float32)
    elements = COMPARED[name](reduction=None)(labels, logits).numpy()
    result = COMPARED[name]()(labels, logits, weights)
    assert float(result) == pytest.approx((elements * weights[:, None]).mean(), rel=1e-6)


@pytest.mark.parametrize("name", COMPARED)
def test_config_round_trip_of_compared_losses(name):
    loss = COMPARED[name](dtype="float64")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    restored = keras.saving.deserialize_keras_object(config)
    assert type(restored) is type(loss) and restored.get_config() == loss.get_config()
    labels, logits = make_batch()
    assert float(restored(labels, logits)) == float(loss(labels, logits))


@pytest.mark.parametrize(
    ("name", "weights_of"),
    [
        ("rw", inverse_root_weights),
        ("rw_focal", inverse_root_weights),
        ("cb_focal", class_balanced_weights),
    ],
)
def test_reweighting_in_the_pipeline_gives_the_same_loss_and_gradient(name, weights_of):
    labels, logits = make_batch()
    outside = COMPARED[name](rebalance="sample_weight")
    batches = tf.data.Dataset.from_tensors(labels).map(lambda y: weights_of(y, COUNTS))
    weights = next(iter(batches))
    assert weights.shape == labels.shape
    tensor = tf.constant(logits)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(tensor)
        first, second = COMPARED[name]()(labels, tensor), outside(labels, tensor, weights)
    assert float(first) == pytest.approx(float(second), rel=1e-7)
    np.testing.assert_allclose(
        tape.gradient(first, tensor), tape.gradient(second, tensor), rtol=1e-6, atol=1e-10
    )
    with pytest.raises(ValueError, match=rf"came without weights.*{weights_of.__name__}"):
        outside(labels, logits)


def test_ldam_penalizes_positives_of_rarer_classes_more():
    labels = np.ones((1, 6), np.float32)
    cost = LDAMLoss(COUNTS, reduction=None)(labels, np.full((1, 6), 10.0)).numpy()[0]
    assert (np.diff(cost) > 0).all()
    # The rarest class has Δ = 0.5, so a positive with 30 cos θ = 15 is at log 2.
    cost = LDAMLoss(COUNTS, reduction=None)(labels, np.full((1, 6), 15.0)).numpy()[0, 5]
    assert cost == pytest.approx(np.log(2), rel=1e-6)


def test_asymmetric_loss_without_its_parts_is_binary_crossentropy():
    labels, logits = make_batch()
    plain = AsymmetricLoss(gamma_negative=0, gamma_positive=0, clip=0)
    expected = keras.losses.BinaryCrossentropy(from_logits=True)(labels, logits)
    assert float(plain(labels, logits)) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Reweighted([5, 0], "inverse_root"),
            r"√\(N/n\) is not defined for.*: class 1 has 0;",
        ),
        (
            lambda: Reweighted([5, 0], "class_balanced"),
            r"without training examples: class 1 has 0;",
        ),
        (lambda: Reweighted([5], "inverse"), r"weighting must be one of \('inverse_root', 'cl"),
        (lambda: Reweighted([5], "inverse_root", rebalance=None), "rebalance must be one of"),
        (lambda: Reweighted([5], "class_balanced", beta=1), r"^beta must be in \[0, 1\); got 1"),
        (lambda: Reweighted([5], "inverse_root", focal_gamma=-1), "focal_gamma must be at least 0"),
        (lambda: LDAMLoss([5, 0]), r"Δ is not defined for classes without.*: class 1 has 0;"),
        (lambda: LDAMLoss([[5]]), r"shape \(C,\); got \(1, 1\)"),
        (lambda: LDAMLoss([5], max_margin=-1), "max_margin must be at least 0"),
        (lambda: LDAMLoss([5], scale=0), "^scale must be greater than 0; got 0"),
        (lambda: AsymmetricLoss(gamma_negative=-1), "gamma_negative must be at least 0"),
        (lambda: AsymmetricLoss(clip=1), r"clip must be in \[0, 1\); got 1"),
        (lambda: AsymmetricLoss()([[1.0, 0.0]], [[1.0]]), r"same shape \(B, C\); got .*\(1, 1\)"),
        (lambda: AsymmetricLoss()([1.0, 0.0], [1.0, 0.0]), r"labels must be of shape.*got \(2,\)"),
        (lambda: AsymmetricLoss()(np.ones(2), np.ones(2)), r"the same shape \(B, C\)"),
        (lambda: LDAMLoss([5, 3])([[1.0]], [[1.0]]), r"shape \(B, 2\).*got \(1, 1\)"),
    ],
)
def test_bad_arguments_of_compared_losses_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_signature_of_distribution_balanced_loss_is_that_of_the_specification():
    parameters = inspect.signature(DistributionBalancedLoss).parameters
    assert list(parameters)[:2] == ["class_counts", "num_examples"]
    keywords = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert keywords == {
        "alpha": 0.1,
        "beta": 10.0,
        "mu": 0.2,
        "lambda_": 2.0,
        "kappa": 0.05,
        "margin": "paper",
        "focal_gamma": 2.0,
        "focal_scale": 2.0,
        "rebalance": "labels",
        "clamp_counts": False,
        "from_logits": True,
        "reduction": "mean",
        "name": "distribution_balanced_loss",
        "dtype": None,
    }


@pytest.mark.parametrize(
    ("function", "published"),
    [
        (Reweighted, {"beta": 0.9, "focal_gamma": 0.0, "focal_scale": 2.0}),
        (LDAMLoss, {"max_margin": 0.5, "scale": 30.0}),
        (AsymmetricLoss, {"gamma_negative": 4.0, "gamma_positive": 1.0, "clip": 0.05}),
        (dbl_tf.CosineClassifier, {"scale": 30.0}),
        (dbl_losses.ldam_margins, {"max_margin": 0.5}),
        (
            dbl_losses.asymmetric_crossentropy,
            {"gamma_negative": 4.0, "gamma_positive": 1.0, "clip": 0.05},
        ),
        (
            negative_tolerant_crossentropy,
            {"nu": 0.0, "lambda_": 1.0, "focal_gamma": 0.0, "focal_scale": 2.0},
        ),
        (rebalanced_weights, {"alpha": 0.1, "beta": 10.0, "mu": 0.2}),
        (class_balanced_weights, {"beta": 0.9}),
    ],
)
def test_defaults_are_the_published_values(function, published):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in published} == published


def test_renamed_argument_is_accepted_with_a_warning():
    labels, logits = map(tf.constant, make_batch())
    arguments = {"lambda_": 3.0, "focal_gamma": 2.0}
    expected = negative_tolerant_crossentropy(labels, logits, hard_targets=True, **arguments)
    with pytest.warns(DeprecationWarning, match="multi_hot has been renamed to hard_targets"):
        old = negative_tolerant_crossentropy(labels, logits, multi_hot=True, **arguments)
    np.testing.assert_array_equal(old, expected)


# Configurations as earlier versions wrote them, each with the loss of SAVED_BATCH.
SAVED_BATCH = [[1.0, 0, 0, 1], [0, 1, 1, 0]], [[1.0, -2, 0.5, 0], [0, 3, -1, 2]]
SAVED = {
    "DistributionBalancedLoss": (
        {
            "name": "distribution_balanced_loss",
            "reduction": "mean",
            "from_logits": True,
            "dtype": "float32",
            "class_counts": [3, 5, 0, 8],
            "num_examples": 10,
            "alpha": 0.2,
            "beta": 8.0,
            "mu": 0.3,
            "lambda_": 5.0,
            "kappa": 0.1,
            "margin": "released",
            "focal_gamma": 1.5,
            "focal_scale": 3.0,
            "rebalance": "labels",
            "clamp_counts": True,
        },
        0.9364378452301025,
    ),
    "ReweightedCrossentropy": (
        {
            "name": "reweighted_crossentropy",
            "reduction": "mean",
            "from_logits": True,
            "dtype": "float32",
            "class_counts": [3, 5, 1, 8],
            "weighting": "class_balanced",
            "beta": 0.7,
            "focal_gamma": 2.0,
            "focal_scale": 2.0,
            "rebalance": "labels",
        },
        0.4852166175842285,
    ),
    "LDAMLoss": (
        {
            "name": "ldam_loss",
            "reduction": "mean",
            "from_logits": True,
            "dtype": "float32",
            "class_counts": [3, 5, 1, 8],
            "max_margin": 0.4,
            "scale": 20.0,
        },
        3.1515629291534424,
    ),
    "AsymmetricLoss": (
        {
            "name": "asymmetric_loss",
            "reduction": "mean",
            "from_logits": True,
            "dtype": "float32",
            "gamma_negative": 3.0,
            "gamma_positive": 1.0,
            "clip": 0.1,
        },
        0.28172022104263306,
    ),
}


@pytest.mark.parametrize("name", SAVED)
def test_saved_configurations_of_earlier_versions_load(name):
    config, value = SAVED[name]
    saved = {
        "module": "dbl_tf.losses",
        "class_name": name,
        "config": config,
        "registered_name": f"dbl_tf>{name}",
    }
    loss = keras.saving.deserialize_keras_object(saved)
    assert type(loss) is getattr(dbl_tf, name)
    assert keras.saving.serialize_keras_object(loss) == saved
    assert float(loss(*map(np.float32, SAVED_BATCH))) == pytest.approx(value, rel=1e-6)
