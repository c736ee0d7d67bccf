"""Two-way, ZLPR, Hill, SPLC, robust asymmetric and poly-1 loss against their formulas."""

import inspect
import json
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from training_batches import make_batches

import dbl_tf
from dbl_tf import (
    HillLoss,
    Poly1Loss,
    RobustAsymmetricLoss,
    SPLCLoss,
    TwoWayLoss,
    ZLPRLoss,
    training,
)

# Losses with a value for each element, and for each example.
OF_ELEMENTS = {
    "hill": HillLoss,
    "hill_plain": lambda **a: HillLoss(logit_margin=0, focal_gamma=0, hill_lambda=2, **a),
    "splc": SPLCLoss,
    "splc_half": lambda **a: SPLCLoss(
        correction_threshold=0.4, logit_margin=0.5, focal_gamma=0.5, **a
    ),
    "splc_warming_up": lambda **a: SPLCLoss(warmup_steps=9, corrects=False, **a),
    "ral": RobustAsymmetricLoss,
    "ral_half": lambda **a: RobustAsymmetricLoss(
        gamma_negative=0.5, gamma_positive=0.5, clip=0, hill_lambda=1, linear=0.5, quadratic=0, **a
    ),
    "poly1": Poly1Loss,
    "poly1_negative": lambda **a: Poly1Loss(poly_epsilon=-1, **a),
}
OF_EXAMPLES = {
    "zlpr": ZLPRLoss,
    "two_way": TwoWayLoss,
    "two_way_warm": lambda **a: TwoWayLoss(temperature_positive=0.5, temperature_negative=3, **a),
    "two_way_samples": lambda **a: TwoWayLoss(ways="samples", **a),
}
ALL = {**OF_ELEMENTS, **OF_EXAMPLES}


def make_batch(batch_size=24, num_classes=5, scale=2.0):
    """Multi-hot labels, with rows and a column without positives and without negatives."""
    rng = np.random.default_rng(0)
    labels = (rng.random((batch_size, num_classes)) < 0.4).astype(np.float32)
    labels[:, 0], labels[0], labels[1] = 0, 0, 1
    return labels, (scale * rng.standard_normal(labels.shape)).astype(np.float32)


# The printed formulas, for one label y and one logit z, with numbers of Python.
def sigmoid(z):
    return 1 / (1 + math.exp(-z))


def hill(y, z, m=1.0, gamma=2.0, lambda_=1.5):
    shifted = sigmoid(z - m)
    positive = -((1 - shifted) ** gamma) * math.log(shifted)
    return y * positive + (1 - y) * (lambda_ - sigmoid(z)) * sigmoid(z) ** 2


def splc(y, z, tau=0.6, m=1.0, gamma=2.0):
    p, shifted = sigmoid(z), sigmoid(z - m)
    positive = -((1 - shifted) ** gamma) * math.log(shifted)
    negative = positive if p > tau else -(p**gamma) * math.log(1 - p)
    return y * positive + (1 - y) * negative


def ral(y, z, gammas=(4.0, 0.0), clip=0.05, lambda_=1.5, linear=1.0, quadratic=-1.25):
    p, clipped = sigmoid(z), max(sigmoid(z) - clip, 0)
    polynomial = math.log(p) + linear * (1 - p) + quadratic * (1 - p) ** 2
    positive = -((1 - p) ** gammas[1]) * polynomial
    negative = -(clipped ** gammas[0]) * math.log(1 - clipped) * (lambda_ - p)
    return y * positive + (1 - y) * negative


def poly1(y, z, epsilon=2.0):
    def of(p):
        return -math.log(p) + epsilon * (1 - p)

    return y * of(sigmoid(z)) + (1 - y) * of(1 - sigmoid(z))


ELEMENTS = {
    "hill": hill,
    "hill_plain": lambda y, z: hill(y, z, 0, 0, 2),
    "splc": splc,
    "splc_half": lambda y, z: splc(y, z, 0.4, 0.5, 0.5),
    "splc_warming_up": lambda y, z: splc(y, z, tau=2),
    "ral": ral,
    "ral_half": lambda y, z: ral(y, z, (0.5, 0.5), 0, 1, 0.5, 0),
    "poly1": poly1,
    "poly1_negative": lambda y, z: poly1(y, z, -1),
}


def zlpr_of(labels, logits):
    negatives = sum((1 - y) * math.exp(z) for y, z in zip(labels, logits, strict=True))
    positives = sum(y * math.exp(-z) for y, z in zip(labels, logits, strict=True))
    return math.log(1 + negatives) + math.log(1 + positives)


def two_way_of(labels, logits, warm, cold):
    pairs = list(zip(labels, logits, strict=True))
    negatives, positives = (
        sum((1 - y) * math.exp(z / cold) for y, z in pairs),
        sum(y * math.exp(-z / warm) for y, z in pairs),
    )
    return math.log(1 + negatives**cold * positives**warm)


def two_way(labels, logits, ways="both", warm=4.0, cold=1.0):
    def mean(labels, logits):
        losses = [
            two_way_of(y, z, warm, cold) for y, z in zip(labels, logits, strict=True) if y.any()
        ]
        return sum(losses) / max(len(losses), 1)

    return mean(labels, logits) + (mean(labels.T, logits.T) if ways == "both" else 0)


def reference_mean(name, labels, logits):
    """The reduced loss in float64."""
    labels, logits = labels.astype(np.float64), logits.astype(np.float64)
    if name in ELEMENTS:
        return float(np.mean(np.vectorize(ELEMENTS[name])(labels, logits)))
    if name == "zlpr":
        return float(np.mean([zlpr_of(y, z) for y, z in zip(labels, logits, strict=True)]))
    if name == "two_way_warm":
        return two_way(labels, logits, "both", 0.5, 3.0)
    return two_way(labels, logits, "samples" if name == "two_way_samples" else "both")


KINDS = ("multi-hot", "integers", "soft")


def labels_of(kind):
    labels, logits = make_batch()
    if kind == "soft":
        labels = labels * np.random.default_rng(1).random(labels.shape).astype(np.float32)
    return labels.astype(np.int32) if kind == "integers" else labels, logits


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", KINDS)
def test_means_equal_the_printed_formulas(name, kind):
    labels, logits = labels_of(kind)
    expected = reference_mean(name, labels, logits)
    assert float(ALL[name]()(labels, logits)) == pytest.approx(expected, rel=2e-6)
    values = ALL[name](reduction=None)(labels, logits)
    assert values.dtype == tf.float32
    assert values.shape == (labels.shape if name in OF_ELEMENTS else labels.shape[:1])
    assert float(np.mean(values)) == pytest.approx(expected, rel=2e-6)
    precise = ALL[name](dtype="float64")(labels, logits.astype(np.float64))
    assert float(precise) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", OF_ELEMENTS)
@pytest.mark.parametrize("kind", KINDS)
def test_elements_equal_the_printed_formulas(name, kind):
    labels, logits = labels_of(kind)
    elements = OF_ELEMENTS[name](reduction=None)(labels, logits)
    expected = np.vectorize(ELEMENTS[name])(labels.astype(float), logits.astype(float))
    np.testing.assert_allclose(elements, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_values_of_examples_by_hand(name):
    labels, logits = make_batch()
    values = OF_EXAMPLES[name](reduction=None)(labels, logits).numpy()
    if name == "zlpr":
        expected = [zlpr_of(y, z) for y, z in zip(labels, logits.astype(float), strict=True)]
        np.testing.assert_allclose(values, expected, rtol=1e-5)
    else:
        # Row 0 has no positive, and row 1 no negative: both cost no more than the columns do.
        of_columns = 0.0 if name == "two_way_samples" else values[0]
        has_both = labels.any(axis=1) & ~labels.all(axis=1)
        assert values[0] == values[1] == of_columns
        np.testing.assert_array_equal(values > of_columns, has_both)


def gradient(loss, labels, logits):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits)
    return value, tape.gradient(value, logits).numpy()


@pytest.mark.parametrize("name", ALL)
def test_gradients_equal_central_differences(name):
    labels, logits = make_batch(batch_size=6)
    logits = logits.astype(np.float64)
    _, found = gradient(ALL[name](dtype="float64"), labels, logits)
    h, expected = 1e-6, np.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[index] = h
        higher, lower = (reference_mean(name, labels, logits + s) for s in (step, -step))
        expected[index] = (higher - lower) / (2 * h)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("xla", [False, True])
def test_values_and_gradients_are_finite_at_extreme_logits(name, xla):
    extremes = np.float32([1e4, -1e4, 0.0, 1e-30, 90, -90])
    logits = np.stack(
        [extremes, -extremes, np.full(6, 1e4), np.full(6, -1e4), np.roll(extremes, 1)]
    )
    logits = np.repeat(logits, 4, axis=0).astype(np.float32)
    labels = np.tile([[1, 0, 1, 0, 1, 0], [0] * 6, [1] * 6, [0, 1, 0, 1, 0, 1]], (5, 1))
    function = tf.function(
        lambda z: gradient_of(ALL[name](), labels.astype(np.float32), z), jit_compile=xla
    )
    value, found = function(tf.constant(logits))
    assert np.isfinite(value) and np.isfinite(found).all()
    # A positive at −10⁴ costs about 10⁴, or twice that with negatives at 10⁴ beside it.
    of_one = ALL[name]()(np.float32([[1, 0]]), np.float32([[-1e4, 0]]))
    assert 4e3 < float(of_one) < 2.1e4


def gradient_of(loss, labels, logits):
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits)
    return value, tape.gradient(value, logits)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("labels", [[[0.0], [1.0], [1.0]], [[0.0]], [[1.0]]])
def test_one_class(name, labels):
    labels = np.float32(labels)
    logits = np.linspace(-1, 2, len(labels), dtype=np.float32)[:, None]
    expected = reference_mean(name, labels, logits)
    value, found = gradient(ALL[name](), labels, logits)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ["two_way", "two_way_samples"])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_two_way_loss_is_zero_without_positives_or_negatives(name, label):
    value, found = gradient(ALL[name](), np.full((3, 4), label), np.ones((3, 4), np.float32))
    assert float(value) == 0 and not found.any()


@pytest.mark.parametrize("name", ALL)
def test_half_precision_and_probabilities(name):
    labels, logits = make_batch()
    half = tf.cast(logits, tf.bfloat16)
    expected = float(ALL[name]()(labels, tf.cast(half, tf.float32)))
    result = ALL[name](dtype="bfloat16")(labels, half)
    assert result.dtype == tf.float32 and float(result) == pytest.approx(expected, rel=1e-6)
    result = ALL[name](from_logits=False)(labels, keras.ops.sigmoid(logits))
    assert float(result) == pytest.approx(float(ALL[name]()(labels, logits)), rel=2e-5)


@pytest.mark.parametrize("name", OF_ELEMENTS)
def test_weights_of_elements_and_examples(name):
    labels, logits = make_batch(batch_size=5)  # as many examples as classes
    elements = OF_ELEMENTS[name](reduction=None)(labels, logits).numpy()
    weights = np.random.default_rng(2).random(labels.shape).astype(np.float32)
    result = OF_ELEMENTS[name]()(labels, logits, weights)
    assert float(result) == pytest.approx((elements * weights).mean(), rel=1e-6)
    result = OF_ELEMENTS[name]()(labels, logits, weights[:, 0])
    assert float(result) == pytest.approx((elements * weights[:, :1]).mean(), rel=1e-6)


@pytest.mark.parametrize("name", ["zlpr", "two_way_samples"])
def test_losses_of_examples_take_weights_of_examples(name):
    labels, logits = make_batch(batch_size=5)
    values = ALL[name](reduction=None)(labels, logits).numpy()
    weights = np.arange(5, dtype=np.float32)
    for given in (weights, weights[:, None]):
        result = float(ALL[name]()(labels, logits, given))
        assert result == pytest.approx((values * weights).mean(), rel=1e-6)
    message = r"no loss of elements.*shape \(B,\) or \(B, 1\); got \(5, 5\)"
    with pytest.raises(ValueError, match=message):
        ALL[name]()(labels, logits, np.ones((5, 5)))


def test_two_way_loss_over_columns_takes_no_weights():
    labels, logits = make_batch()
    with pytest.raises(ValueError, match=r'ways="both"\) takes no sample_weight.*"samples"'):
        TwoWayLoss()(labels, logits, np.ones(len(labels)))


@pytest.mark.parametrize("name", ALL)
def test_config_round_trip(name):
    loss = ALL[name](dtype="float64")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    restored = keras.saving.deserialize_keras_object(config)
    assert type(restored) is type(loss)
    if name == "splc_warming_up":  # it has to be told the step again
        assert restored.get_config() == loss.get_config() and restored.corrects is None
        restored.at_step(0)
    assert vars(restored).keys() == vars(loss).keys()
    labels, logits = make_batch()
    assert float(restored(labels, logits)) == float(loss(labels, logits))
    assert config["registered_name"] == f"dbl_tf>{type(loss).__name__}"


@pytest.mark.parametrize("name", ["hill", "splc", "ral", "poly1", "zlpr", "two_way"])
def test_a_compiled_model_loads_with_its_loss(name, tmp_path):
    labels, features = make_batch()
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5)])
    model.compile("sgd", ALL[name]())
    model.fit(features, labels, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.loss) is type(model.loss)
    expected = model.evaluate(features, labels, verbose=0)
    assert loaded.evaluate(features, labels, verbose=0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "trainer"),
    [
        *((name, "fit") for name in ("hill", "splc", "ral", "poly1", *OF_EXAMPLES)),
        ("two_way", "loop"),
        ("two_way_samples", "loop"),
    ],
)
def test_one_and_two_replicas_train_to_the_same_weights(name, trainer, mirrored):
    labels, features = make_batch(batch_size=48)
    labels[8:13] = 0  # the replicas hold different numbers of rows with a positive
    labels[:, 3] = np.arange(48) % 16 < 8  # and in each batch one of them alone has this class
    data = tf.data.Dataset.from_tensor_slices((features, labels))
    batches = data.batch(16, drop_remainder=True)

    def trained(strategy):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(5)])
            model.compile(keras.optimizers.SGD(0.5), ALL[name](), jit_compile=False)
        if trainer == "fit":
            losses = model.fit(batches, epochs=2, verbose=0).history["loss"]
        else:
            losses = []
            record = keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: losses.append(logs["loss"])
            )
            training.fit(
                model,
                lambda step, share: batches.repeat().skip(step),
                steps=6,
                steps_per_epoch=3,
                checkpoints=None,
                callbacks=[record],
                verbose=0,
            )
        return model.get_weights(), losses

    one, one_losses = trained(tf.distribute.OneDeviceStrategy("CPU:0"))
    two, two_losses = trained(mirrored)
    np.testing.assert_allclose(one_losses, two_losses, rtol=2e-6)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_hill_pulls_less_on_negatives_that_may_be_positives():
    _, found = gradient(HillLoss(), np.zeros((1, 3)), np.float32([[-2.0, 0.5, 12.0]]))
    assert found[0, 1] > found[0, 0] > 0 and found[0, 2] == pytest.approx(0, abs=1e-5)


def test_splc_counts_confident_negatives_as_positives():
    logits = np.float32([[math.log(0.61 / 0.39), math.log(0.59 / 0.41)]])
    corrected, kept = SPLCLoss(reduction=None)([[0.0, 0.0]], logits).numpy()[0]
    of_positives = SPLCLoss(reduction=None)([[1.0, 1.0]], logits).numpy()[0]
    assert corrected == of_positives[0] and kept != of_positives[1]


def test_a_loss_with_a_warm_up_must_know_the_step():
    loss = SPLCLoss(warmup_steps=5)
    with pytest.raises(ValueError, match=r"not been told the step: pass callbacks=\[dbl_tf\.Loss"):
        loss([[0.0]], [[0.0]])
    assert [loss.at_step(step) for step in (0, 4, 5, 6)] == [True, False, True, False]
    assert keras.losses.deserialize(keras.losses.serialize(loss)).corrects is True
    assert SPLCLoss().corrects is True


def paced_model(warmup_steps, dropout=0.1):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((6,)), keras.layers.Dense(3), keras.layers.Dropout(dropout, seed=3)]
    model = keras.Sequential(layers)
    loss = SPLCLoss(warmup_steps=warmup_steps, correction_threshold=0.5)
    model.compile(keras.optimizers.SGD(0.5, momentum=0.9), loss, jit_compile=False)
    return model


def losses_by_hand(warmup_steps, steps):
    """The weights of training step by step, with the formula of the loss of each step."""
    model = paced_model(0)
    for step, (features, labels) in enumerate(make_batches(0).take(steps)):
        with tf.GradientTape() as tape:
            logits = model(features, training=True)
            p, shifted = tf.sigmoid(logits), tf.sigmoid(logits - 1)
            positive = -((1 - shifted) ** 2) * tf.math.log(shifted)
            negative = -(p**2) * tf.math.log(1 - p)
            if step >= warmup_steps:
                negative = tf.where(p > 0.5, positive, negative)
            loss = tf.reduce_mean(labels * positive + (1 - labels) * negative)
        variables = model.trainable_variables
        model.optimizer.apply(tape.gradient(loss, variables), variables)
    return model.get_weights()


def assert_close(weights, expected):
    for a, b in zip(weights, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("warmup_steps", [0, 3, 4, 20])
@pytest.mark.parametrize("steps_per_call", [1, 50])
def test_the_training_loop_ends_the_warm_up_at_its_step(warmup_steps, steps_per_call):
    model = paced_model(warmup_steps)
    arguments = {"steps_per_epoch": 4, "checkpoints": None, "verbose": 0}
    training.fit(model, make_batches, steps=9, steps_per_call=steps_per_call, **arguments)
    assert_close(model.get_weights(), losses_by_hand(warmup_steps, 9))
    assert not np.allclose(model.get_weights()[0], losses_by_hand(5, 9)[0], atol=1e-3)


@pytest.mark.parametrize("stop", [2, 3, 5])
def test_a_warm_up_that_was_interrupted_ends_exactly(stop, tmp_path):
    def fit(directory, steps):
        model = paced_model(3)
        checkpoints = training.Checkpoints(directory)
        arguments = {"steps_per_epoch": 4, "checkpoint_every": 1, "verbose": 0}
        training.fit(model, make_batches, steps=steps, checkpoints=checkpoints, **arguments)
        return model.get_weights()

    whole = fit(tmp_path / "whole", 7)
    fit(tmp_path / "parts", stop)
    for a, b in zip(fit(tmp_path / "parts", 7), whole, strict=True):
        np.testing.assert_array_equal(a, b)


def model_fit(model, epochs=2, initial_epoch=0, first_step=None, callbacks=()):
    return model.fit(
        make_batches(4 * initial_epoch if first_step is None else first_step),
        steps_per_epoch=4,
        epochs=epochs,
        initial_epoch=initial_epoch,
        validation_data=make_batches(100).take(1),
        callbacks=[dbl_tf.LossWarmup(model.loss), *callbacks],
        verbose=0,
    )


@pytest.mark.parametrize("warmup_steps", [3, 4])
def test_the_callback_ends_the_warm_up_of_fit(warmup_steps):
    model = paced_model(warmup_steps)
    history = model_fit(model)
    assert_close(model.get_weights(), losses_by_hand(warmup_steps, 8))
    # The loss of the validation changes with it.
    features, labels = next(iter(make_batches(100)))
    expected = SPLCLoss(correction_threshold=0.5)(labels, model(features))
    assert history.history["val_loss"][-1] == pytest.approx(float(expected), rel=1e-5)


def test_the_callback_ends_the_warm_up_on_several_replicas(mirrored):
    with mirrored.scope():
        model = paced_model(3, dropout=0.0)
    alone = paced_model(3, dropout=0.0)
    model_fit(model)
    model_fit(alone)
    assert_close(model.get_weights(), alone.get_weights())


@pytest.mark.parametrize("warmup_steps", [2, 6])
def test_a_model_that_is_loaded_goes_on_with_its_warm_up(warmup_steps, tmp_path):
    model = paced_model(warmup_steps, dropout=0.0)
    model_fit(model, epochs=1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.loss.corrects is (True if warmup_steps == 2 else None)
    model_fit(loaded, initial_epoch=1)
    model_fit(model, initial_epoch=1)
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


class StopError(Exception):
    pass


class StopInSecondEpoch(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise StopError


@pytest.mark.parametrize("warmup_steps", [2, 6])
def test_a_fit_that_was_stopped_goes_on_with_its_warm_up(warmup_steps, tmp_path):
    whole = paced_model(warmup_steps, dropout=0.0)
    model_fit(whole, epochs=3)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    with pytest.raises(StopError):
        stopped = paced_model(warmup_steps, dropout=0.0)
        model_fit(stopped, epochs=3, callbacks=[backup, StopInSecondEpoch()])
    resumed = paced_model(warmup_steps, dropout=0.0)
    backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
    model_fit(resumed, epochs=3, first_step=4, callbacks=[backup])
    for a, b in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_callback_belongs_to_the_loss_of_the_model():
    model = paced_model(3)
    with pytest.raises(ValueError, match="LossWarmup was made for the loss 'splc_loss', but"):
        model.fit(
            make_batches(0), steps_per_epoch=1, verbose=0, callbacks=[dbl_tf.LossWarmup(SPLCLoss())]
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HillLoss(hill_lambda=0.5), "hill_lambda must be at least 1; got 0.5"),
        (lambda: HillLoss(focal_gamma=-1), "focal_gamma must be at least 0"),
        (lambda: SPLCLoss(correction_threshold=1.5), r"correction_threshold must be in \[0, 1\]"),
        (lambda: SPLCLoss(warmup_steps=-1), "warmup_steps must be at least 0; got -1"),
        (lambda: RobustAsymmetricLoss(gamma_positive=-1), "^gamma_positive must be at least 0"),
        (lambda: RobustAsymmetricLoss(linear=math.nan), "^linear must be a finite number; got nan"),
        (lambda: Poly1Loss(poly_epsilon=-2), "poly_epsilon must be at least -1; got -2"),
        (lambda: TwoWayLoss(ways="classes"), "ways must be one of both, samples; got 'classes'"),
        (lambda: TwoWayLoss(temperature_positive=0), "temperature_positive must be greater than 0"),
        (lambda: ZLPRLoss()([[1.0, 0.0]], [[1.0]]), r"same shape \(B, C\); got .*\(1, 1\)"),
        (lambda: TwoWayLoss()([1.0, 0.0], [1.0, 0.0]), r"labels must be of shape.*got \(2,\)"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("function", "published"),
    [
        (HillLoss, {"logit_margin": 1.0, "focal_gamma": 2.0, "hill_lambda": 1.5}),
        (SPLCLoss, {"correction_threshold": 0.6, "logit_margin": 1.0, "focal_gamma": 2.0}),
        (
            RobustAsymmetricLoss,
            {"gamma_negative": 4.0, "gamma_positive": 0.0, "clip": 0.05, "hill_lambda": 1.5,
             "linear": 1.0, "quadratic": -1.25},
        ),
        (Poly1Loss, {"poly_epsilon": 2.0}),
        (TwoWayLoss, {"ways": "both", "temperature_positive": 4.0, "temperature_negative": 1.0}),
    ],
)  # fmt: skip
def test_defaults_are_the_published_values(function, published):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in published} == published
