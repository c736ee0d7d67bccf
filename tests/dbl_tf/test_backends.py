"""Keras on JAX and on PyTorch, without TensorFlow, against Keras on TensorFlow."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import backend_values
import keras
import numpy as np
import pytest

import dbl_tf

ROOT = pathlib.Path(__file__).resolve().parents[2]


# As where TensorFlow is not installed.
PROGRAM = """
import importlib.abc, importlib.machinery, pathlib, sys

class NoTensorFlow(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "tensorflow":
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise ImportError(f"{spec.name} is not to be imported")

sys.meta_path.insert(0, NoTensorFlow())
import backend_values, numpy as np

directory = pathlib.Path(sys.argv[1])
values = backend_values.compute(np.load(directory / "inputs.npz"), directory)
np.savez(directory / "values.npz", **values)
"""


@pytest.fixture(scope="module")
def inputs():
    """Soft and hard targets, some rows without any, and moderate and extreme logits."""
    rng = np.random.default_rng(0)
    labels = (rng.random((64, 6)) < 0.3).astype(np.float32)
    labels[:8] *= rng.random((8, 6), np.float32)
    labels[8:12] = 0
    logits = (3 * rng.standard_normal((64, 6))).astype(np.float32)
    logits[-12:] = np.repeat(np.float32([1e4, -1e4, 90, -90, 0, 1e-30]), 2)[:, None]
    features = rng.standard_normal((64, 5)).astype(np.float32)
    features[0] = 0
    size = backend_values.IMAGE_SIZE
    arrays = {
        "labels": labels,
        "logits": logits,
        "features": features,
        "images": rng.uniform(0, 255, (24, size, size, 3)).astype(np.float32),
    }
    for name, (make, *_) in backend_values.NETWORKS.items():
        keras.utils.set_random_seed(0)
        arrays |= {f"{name}/{i}": w for i, w in enumerate(make().get_weights())}
    return arrays


@pytest.fixture(scope="module")
def expected(inputs, tmp_path_factory):
    return backend_values.compute(inputs, tmp_path_factory.mktemp("tensorflow"))


@pytest.fixture(scope="module", params=("jax", "torch"))
def computed(request, inputs, tmp_path_factory):
    """The directory of trained networks, and the values, of another backend."""
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    directory = tmp_path_factory.mktemp(request.param)
    np.savez(directory / "inputs.npz", **inputs)
    environment = {
        "KERAS_BACKEND": request.param,
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "helpers"))),
        # PyTorch's threads wait for one another by spinning, at the cost of other tests.
        "OMP_NUM_THREADS": "1",
        # Most of JAX's time is compiling. test_losses.py has it optimise.
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    subprocess.run(
        [sys.executable, "-c", PROGRAM, directory], env={**os.environ, **environment}, check=True
    )
    return directory, dict(np.load(directory / "values.npz"))


@pytest.mark.parametrize(
    "part",
    [
        *("loss", "unknown", "weighting", "classifier"),
        *("network", "warmup", "metric", "preprocessing"),
    ],
)
def test_values_and_gradients_are_those_on_tensorflow(part, computed, expected):
    _, values = computed
    names = [name for name in expected if name.startswith(f"{part}/")]
    assert names and set(values) == set(expected)
    for name in names:
        value, other = np.asarray(values[name], float), np.asarray(expected[name], float)
        assert np.isfinite(other).all(), name
        # Rounding is relative to the largest number of an example's row; what should be zero, as
        # the gradient of a bias below BatchNorm, is left with some of its terms.
        scale = np.abs(other).max(axis=-1 if other.ndim else None, keepdims=True)
        error = np.abs(value - other) - 2e-5 * scale
        assert error.shape == other.shape and error.max() < 1e-9, (name, error.max())


def test_dropout_masks_are_functions_of_seed_and_step(computed):
    _, values = computed
    first, second, restarted, other, inference, steps = (
        values[f"dropout/{name}"]
        for name in ("first", "second", "restarted", "other", "inference", "steps_of_fit")
    )
    assert set(np.unique(first)) == {0.0, 2.0}
    # 8 192 units at rate 0.5: four standard deviations are 181.
    assert abs((first == 0).sum() - 4096) < 181
    assert not np.array_equal(first, second) and not np.array_equal(first, other)
    np.testing.assert_array_equal(restarted, second)
    assert (inference == 1).all()
    assert steps == 8  # 64 examples in batches of 8, one epoch


def test_networks_trained_elsewhere_load_on_tensorflow(computed, inputs):
    directory, values = computed
    for name, (_, input_name, _) in backend_values.NETWORKS.items():
        network = keras.models.load_model(directory / f"{name}.keras")
        assert isinstance(network.loss, dbl_tf.losses.ElementwiseLoss)
        logits = network.predict(inputs[input_name][:24], verbose=0)
        np.testing.assert_allclose(logits, values[f"network/{name}/logits"], rtol=1e-4, atol=1e-5)
        assert int(network.optimizer.iterations) == 3
