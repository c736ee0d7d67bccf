r"""Compares the time of value and gradient of DB-Focal with that of binary cross-entropy.

    python -m benchmarks.losses --output=losses.json

Each engine runs in a separate process: TensorFlow's `tf.function`, the same with XLA
(`jit_compile`), JAX's `jit` on Keras's JAX backend, and, where PyTorch is installed, the loss as
one writes it there, eager, from the equations. Within one, everything is timed in turns:

* `bce`: the mean over the elements of `keras.ops.binary_crossentropy(…, from_logits=True)`;
* `db_focal, pipeline`: `DistributionBalancedLoss` with the weights r̂ given (`sample_weight`),
  the labels 8-bit integers as `pipelines.inputs` makes them;
* `db_focal, labels`: the same, which makes r̂ from the labels;
* `db_focal, pipeline, by hand`, in TensorFlow alone: value and gradient without differentiation,
  the least that Eq. 7 to 10 ask of an element: with `γ = 2`, one exponential, one logarithm and one
  division, as `bce`; otherwise a second exponential;
* `db_focal, …, soft`: both with labels of floating numbers, which may lie between 0 and 1;
* `copy`: NumPy copies, on one core, an array as large as logits and labels are together, which
  reads and writes as much memory as a loss does that reads logits, labels and weights once and
  writes the gradient once.

Ratios are computed within each round; the tables show the median and the quartiles of the rounds.
Next to the ratio of wall-clock times is that of the CPU times of all threads, "CPU", on which other
work on the machine has less influence.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from benchmarks import measuring

SHAPES = ((32, 20), (32, 80), (256, 1203), (4096, 1203))
ENGINES = ("tf.function", "tf.function, XLA", "jax.jit", "torch, eager")
_BACKENDS = dict(zip(ENGINES, ("tensorflow", "tensorflow", "jax", "torch"), strict=True))
_LABEL_SHARE = 0.02
_PARAMETERS = {"alpha": 0.1, "beta": 10.0, "mu": 0.2, "lambda_": 2.0, "kappa": 0.05}
_GAMMA = _SCALE = 2.0


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    shapes = [f"{batch}x{classes}" for batch, classes in SHAPES]
    return [
        flags.DEFINE_list("shapes", shapes, "Batches and classes, BxC."),
        flags.DEFINE_multi_enum("engines", ENGINES, ENGINES, "What computes."),
        flags.DEFINE_integer("rounds", 15, "Timings of each.", lower_bound=1),
        flags.DEFINE_float("min_seconds", 0.05, "Of a timing.", lower_bound=0.0),
    ]


def measure(
    shapes: list[str], engines: list[str], rounds: int, min_seconds: float
) -> dict[str, Any]:
    """Times every engine at every shape."""
    pairs = [_shape(text) for text in shapes]
    results, skipped = {}, {}
    for engine in engines:
        library = _BACKENDS[engine]
        if importlib.util.find_spec(library) is None:
            skipped[engine] = f"{library} is not installed"
            continue
        results[engine] = measuring.in_process_of_its_own(
            measure_engine,
            engine,
            pairs,
            rounds,
            min_seconds,
            environ={"KERAS_BACKEND": library, "TF_CPP_MIN_LOG_LEVEL": "2"},
        )
    return {"engines": results, "skipped": skipped}


def measure_engine(
    engine: str, shapes: list[tuple[int, int]], rounds: int, min_seconds: float
) -> dict[str, Any]:
    """Times one engine in this process, whose Keras backend is that of the engine."""
    result = {}
    for batch, classes in shapes:
        data = make_data(batch, classes)
        candidates = _MAKERS[engine](*data)
        logits, labels, _, _, _ = data
        source = np.stack([logits, labels])
        target = np.empty_like(source)
        candidates["copy"] = functools.partial(np.copyto, target, source)
        timings = measuring.in_turns(candidates, rounds=rounds, min_seconds=min_seconds)
        seconds, cpu_seconds = timings.seconds, timings.cpu_seconds
        result[f"{batch}x{classes}"] = {
            name: {
                "seconds": measuring.quartiles(seconds[name]),
                "times_bce": measuring.ratio(seconds[name], seconds["bce"]),
                "times_bce_of_cpu": measuring.ratio(cpu_seconds[name], cpu_seconds["bce"]),
                "times_copy": measuring.ratio(seconds[name], seconds["copy"]),
            }
            for name in candidates
        }
    return result


def make_data(batch: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list, int]:
    """Logits, labels and weights (B, C) float32, class counts and number of examples."""
    from dbl_tf import weighting

    random = np.random.default_rng(0)
    num_examples = 100_000
    counts = np.geomspace(num_examples // 2, 4, classes).astype(int)
    labels = (random.random((batch, classes)) < _LABEL_SHARE).astype(np.float32)
    labels[np.arange(batch), random.integers(classes, size=batch)] = 1.0
    logits = random.normal(-2.0, 2.0, (batch, classes)).astype(np.float32)
    parameters = {name: _PARAMETERS[name] for name in ("alpha", "beta", "mu")}
    weights = weighting.rebalanced_weights(labels, counts, **parameters)
    return logits, labels, weights, counts.tolist(), num_examples


def keras_losses(counts: list[int], num_examples: int) -> dict[str, Callable[..., Any]]:
    """The losses as functions of logits, labels as floating numbers and as integers, weights."""
    from keras import ops

    from dbl_tf.losses import DistributionBalancedLoss

    make = functools.partial(
        DistributionBalancedLoss,
        counts,
        num_examples,
        focal_gamma=_GAMMA,
        focal_scale=_SCALE,
        **_PARAMETERS,
    )
    given, own = make(rebalance="sample_weight"), make(rebalance="labels")
    return {
        "bce": lambda z, y, i, w: ops.mean(ops.binary_crossentropy(y, z, from_logits=True)),
        "db_focal, pipeline": lambda z, y, i, w: given(i, z, sample_weight=w),
        "db_focal, labels": lambda z, y, i, w: own(i, z),
        "db_focal, pipeline, soft": lambda z, y, i, w: given(y, z, sample_weight=w),
        "db_focal, labels, soft": lambda z, y, i, w: own(y, z),
    }


def _with_tensorflow(logits, labels, weights, counts, num_examples, *, jit_compile):
    import tensorflow as tf

    integers = labels.astype(np.uint8)
    arrays = [tf.constant(array) for array in (logits, labels, integers, weights)]

    def compiled(loss):
        @tf.function(jit_compile=jit_compile)
        def value_and_gradient(z, y, i, w):
            with tf.GradientTape() as tape:
                tape.watch(z)
                value = loss(z, y, i, w)
            return value, tape.gradient(value, z)

        return functools.partial(value_and_gradient, *arrays)

    losses = keras_losses(counts, num_examples)
    candidates = {name: compiled(loss) for name, loss in losses.items()}
    for name, is_square in (("by hand", False), ("by hand, γ = 2", True)):
        function = functools.partial(_by_hand, counts, num_examples, is_square)
        with_options = tf.function(function, jit_compile=jit_compile)
        candidates[f"db_focal, pipeline, {name}"] = functools.partial(with_options, *arrays)
    return candidates


def _by_hand(counts, num_examples, is_square, logits, labels, integers, weights):
    """Mean and gradient of DB-Focal for labels of 0 and 1, with the fewest operations."""
    import tensorflow as tf

    nu = (_PARAMETERS["kappa"] * np.log(num_examples / np.array(counts) - 1)).astype(np.float32)
    lambda_ = _PARAMETERS["lambda_"]
    is_positive = tf.cast(integers, tf.bool)
    slope = tf.where(is_positive, -1.0, lambda_)
    u = slope * (logits - nu)
    small = tf.exp(-tf.abs(u))
    softplus = tf.maximum(u, 0.0) + tf.math.log1p(small)
    sigmoid = tf.where(u >= 0, 1.0, small) / (1.0 + small)
    focus = sigmoid * sigmoid if is_square else tf.exp(_GAMMA * (u - softplus))
    factor = (_SCALE / len(counts) / logits.shape[0]) * weights * focus
    value = tf.reduce_sum(factor * softplus * tf.where(is_positive, 1.0, 1 / lambda_))
    direction = tf.where(is_positive, -1.0, 1.0)  # the slope, divided by λ for a negative
    return value, direction * factor * (_GAMMA * (1.0 - sigmoid) * softplus + sigmoid)


def _with_jax(logits, labels, weights, counts, num_examples):
    import jax

    integers = labels.astype(np.uint8)
    arrays = [jax.numpy.asarray(array) for array in (logits, labels, integers, weights)]

    def compiled(loss):
        value_and_gradient = jax.jit(jax.value_and_grad(loss))
        return lambda: jax.block_until_ready(value_and_gradient(*arrays))

    losses = keras_losses(counts, num_examples)
    return {name: compiled(loss) for name, loss in losses.items()}


def _with_torch(logits, labels, weights, counts, num_examples):
    """Eq. 3 to 10 with the corrected sign, as one writes them in PyTorch."""
    import torch
    from torch.nn import functional

    labels, weights = torch.from_numpy(labels), torch.from_numpy(weights)
    logits = torch.from_numpy(logits).requires_grad_()
    counts = torch.tensor(counts, dtype=torch.float32)
    nu = _PARAMETERS["kappa"] * torch.log(num_examples / counts - 1)
    lambda_ = _PARAMETERS["lambda_"]

    def rebalanced():
        r = (1 / counts) / (labels / counts).sum(1, keepdim=True)
        return _PARAMETERS["alpha"] + torch.sigmoid(_PARAMETERS["beta"] * (r - _PARAMETERS["mu"]))

    def db_focal(weights):
        q = logits - nu
        positive = (1 - torch.sigmoid(q)) ** _GAMMA * functional.softplus(-q)
        scaled = lambda_ * q
        negative = torch.sigmoid(scaled) ** _GAMMA * functional.softplus(scaled) / lambda_
        return (weights * _SCALE * (labels * positive + (1 - labels) * negative)).mean()

    losses = {
        "bce": lambda: functional.binary_cross_entropy_with_logits(logits, labels),
        "db_focal, pipeline, soft": lambda: db_focal(weights),
        "db_focal, labels, soft": lambda: db_focal(rebalanced()),
    }

    def value_and_gradient(loss):
        logits.grad = None
        value = loss()
        value.backward()
        return value.detach(), logits.grad

    return {name: functools.partial(value_and_gradient, loss) for name, loss in losses.items()}


_MAKERS: dict[str, Callable[..., dict[str, Callable[[], Any]]]] = {
    "tf.function": functools.partial(_with_tensorflow, jit_compile=False),
    "tf.function, XLA": functools.partial(_with_tensorflow, jit_compile=True),
    "jax.jit": _with_jax,
    "torch, eager": _with_torch,
}


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as a table."""
    rows = [
        [
            f"{engine}, {shape}, {name}",
            measuring.show_seconds(figures["seconds"]["median"]),
            measuring.show(figures["times_bce"]),
            measuring.show(figures["times_bce_of_cpu"]),
            measuring.show(figures["times_copy"], digits=1),
        ]
        for engine, shapes in result["engines"].items()
        for shape, candidates in shapes.items()
        for name, figures in candidates.items()
    ]
    lines = [measuring.table(["value and gradient", "time", "× bce", "× bce, CPU", "× copy"], rows)]
    lines += [f"{engine}: left out, {reason}" for engine, reason in result["skipped"].items()]
    return "\n".join(lines)


def _shape(text: str) -> tuple[int, int]:
    batch, _, classes = text.partition("x")
    if not (batch.isdigit() and classes.isdigit() and int(batch) and int(classes) > 1):
        raise ValueError(f"--shapes takes BxC, as 256x1203; got {text!r}")
    return int(batch), int(classes)


if __name__ == "__main__":
    measuring.run("losses", define_flags, measure, describe)
