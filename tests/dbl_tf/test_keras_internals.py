"""Each private name of Keras that is used still means what the package relies on."""

import importlib
import inspect
import pathlib
import pkgutil
import re
import warnings

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import dbl_tf
from dbl_tf import keras_internals
from dbl_tf.keras_internals import (
    ComputedSeed,
    SumClippingOptimizer,
    flush_event_files,
    load_weights,
    variable_index,
)

ROOT = pathlib.Path(__file__).parents[2]
RATE = 0.5
START = [np.float32([[1, -2], [3, 4]]), np.float32([5, -6, 7])]
GRADIENTS = [np.float32([[3, 0], [-1, 2]]), np.float32([4, -5, 6])]


class Descent(SumClippingOptimizer):
    """Plain gradient descent; a variable's rate is multiplied by its number, counted from 1."""

    def update_step(self, gradient, variable, learning_rate):
        factor = 1 + variable_index(self, variable)
        self.assign_sub(variable, factor * learning_rate * gradient)


def norm(arrays):
    return np.sqrt(sum(np.sum(np.float64(a) ** 2) for a in arrays))


def clipped(gradients, kind, limit):
    """Keras's three ways of clipping, in float64."""
    if kind == "global_clipnorm":
        return [g * min(1.0, limit / norm(gradients)) for g in gradients]
    if kind == "clipnorm":
        return [g * min(1.0, limit / norm([g])) for g in gradients]
    return [np.clip(g, -limit, limit) for g in gradients]


@pytest.mark.parametrize("limit", [2.0, 100.0])
@pytest.mark.parametrize("kind", ["global_clipnorm", "clipnorm", "clipvalue"])
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_sum_over_replicas_is_clipped_once(replicas, kind, limit, request):
    strategy = request.getfixturevalue("mirrored")
    if replicas == 1:
        strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    with strategy.scope():
        variables = [keras.Variable(w) for w in START]
        optimizer = Descent(RATE, **{kind: limit})
        optimizer.build(variables)
    # Shares that are far from each other, so that each would be clipped otherwise than their sum.
    noise = [50 * np.float32(np.ones_like(g)) for g in GRADIENTS]
    shares = [
        tf.stack([g / 2 + n, g / 2 - n] if replicas == 2 else [g])
        for g, n in zip(GRADIENTS, noise, strict=True)
    ]

    @tf.function
    def step():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply([tf.gather(share, replica) for share in shares], variables)

    strategy.run(step)
    for i, gradient in enumerate(clipped(GRADIENTS, kind, limit)):
        expected = START[i] - (i + 1) * RATE * gradient
        np.testing.assert_allclose(variables[i].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_accumulated_gradients_are_clipped_as_one():
    variables = [keras.Variable(w) for w in START]
    optimizer = Descent(RATE, global_clipnorm=2.0, gradient_accumulation_steps=2)
    first, second = ([g + sign * 50 for g in GRADIENTS] for sign in (1, -1))
    optimizer.apply([tf.constant(g) for g in first], variables)
    np.testing.assert_array_equal(variables[0].numpy(), START[0])
    optimizer.apply([tf.constant(g) for g in second], variables)
    for i, gradient in enumerate(clipped(GRADIENTS, "global_clipnorm", 2.0)):
        expected = START[i] - (i + 1) * RATE * gradient
        np.testing.assert_allclose(variables[i].numpy(), expected, rtol=1e-5, atol=1e-5)


def test_a_computed_seed_draws_what_a_generator_of_keras_draws():
    generator = keras.random.SeedGenerator(7)
    for count in range(4):
        expected = keras.random.uniform((3, 5), seed=generator)
        step = tf.constant(count)
        drawn = tf.function(lambda step: keras.random.uniform((3, 5), seed=ComputedSeed([7, step])))
        np.testing.assert_array_equal(drawn(step), expected)
        np.testing.assert_array_equal(
            keras.random.uniform((3, 5), seed=ComputedSeed([7, count])), expected
        )


def test_logged_values_are_on_disk_once_they_are_flushed(tmp_path):
    callback = keras.callbacks.TensorBoard(str(tmp_path), write_graph=False)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    callback.set_model(model)
    callback.set_params({"epochs": 1})
    callback.on_train_begin()
    callback.on_epoch_end(3, {"loss": 0.25, "val_loss": 0.5})
    flush_event_files(callback)
    logged = {}
    for path in tmp_path.rglob("*tfevents*"):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            for value in event.summary.value:
                logged[path.parent.name, value.tag] = event.step, tf.make_ndarray(value.tensor)
    assert logged["train", "epoch_loss"] == (3, 0.25)
    assert logged["validation", "epoch_loss"] == (3, 0.5)
    callback.on_train_end()


def make_network(units=3):
    inputs = keras.Input((4,))
    return keras.Model(inputs, keras.layers.Dense(units, name="dense")(inputs))


def test_weights_that_do_not_fit_are_an_error_and_no_warning(tmp_path):
    network, path = make_network(), tmp_path / "dense.weights.h5"
    network.save_weights(path)
    loaded = make_network()
    load_weights(loaded, path)
    for a, b in zip(network.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(ValueError, match="could not be loaded"):
            load_weights(make_network(units=5), path)
        with h5py.File(path, "r+") as file:
            del file["layers"]["dense"]
        with pytest.raises(ValueError, match="dense"):
            load_weights(make_network(), path)


def classes_on_keras():
    """The classes of the package that inherit from one of Keras, each with those of Keras."""
    found = []
    for info in pkgutil.walk_packages(dbl_tf.__path__, "dbl_tf."):
        if info.name in (keras_internals.__name__, "dbl_tf.losses"):
            continue
        for _, each in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
            bases = [base for base in each.__mro__[1:] if base.__module__.startswith("keras.")]
            if each.__module__ == info.name and bases:
                found.append(pytest.param(each, bases, id=each.__qualname__))
    return found


@pytest.mark.parametrize(("own", "bases"), classes_on_keras())
def test_no_other_class_uses_a_private_attribute_of_its_keras_base(own, bases):
    private = re.compile(r"\bself\.(_[a-z]\w*)|def (_[a-z]\w*)|super\(\)\.(_[a-z]\w*)")

    def names_in(each):
        return {name for match in private.findall(inspect.getsource(each)) for name in match}

    assert names_in(own) & set().union(*map(names_in, bases)) <= {""}


@pytest.mark.parametrize("folder", ["dbl_tf", "pipelines", "benchmarks"])
def test_no_other_file_names_a_private_module(folder):
    private = re.compile(r"keras\.src|tensorflow\.python|__internal__|_pywrap|tf_keras")
    own = pathlib.Path(keras_internals.__file__).name
    files = sorted(path for path in (ROOT / folder).rglob("*.py") if path.name != own)
    assert files
    found = {str(p): private.findall(p.read_text(encoding="utf-8")) for p in files}
    assert not {path: names for path, names in found.items() if names}
