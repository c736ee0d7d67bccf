r"""Measures images per second of a training step on Keras's JAX backend, and the matrix rate.

    python -m benchmarks.jax_training --backbone=ResNet50 --image_size=224 --batch_size=256

Needs JAX (`pip install jax`, or `'jax[cuda13]'` for a GPU), and no TensorFlow. A batch stays in the
memory of the device. The program measures the network, forward and backward, the loss and the
optimizer, for `float32` and `mixed_bfloat16`, with DB-Focal (r̂ given) and with
binary cross-entropy, in turns. In the same turns the device multiplies square matrices of the
same precision. The share is of that rate; the operations of a step are counted by XLA before it
optimizes the step. Each precision runs in a separate process.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import flags

from benchmarks import losses, measuring

PRECISIONS = ("float32", "mixed_bfloat16")
_LOSSES = {"db_focal": "db_focal, pipeline", "bce": "bce"}  # their names in `benchmarks.losses`
_PRODUCT = "matrix product"


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    return [
        flags.DEFINE_string("backbone", "ResNet50", "The network below the head."),
        flags.DEFINE_integer("image_size", 224, "Side of the images.", lower_bound=1),
        flags.DEFINE_integer("batch_size", 256, "Images in a batch.", lower_bound=2),
        flags.DEFINE_integer("classes", 80, "Classes.", lower_bound=2),
        flags.DEFINE_integer("matrix_size", 8192, "Rows of the matrices.", lower_bound=1),
        flags.DEFINE_integer("steps", 10, "Steps of a timing.", lower_bound=1),
        flags.DEFINE_integer("rounds", 5, "Timings of each.", lower_bound=1),
        flags.DEFINE_multi_enum("precisions", PRECISIONS, PRECISIONS, "Precisions."),
    ]


def measure(precisions: list[str], **settings: Any) -> dict[str, Any]:
    """Times every precision."""
    if importlib.util.find_spec("jax") is None:
        raise ValueError("jax is not installed; pip install jax")
    return {
        "precisions": {
            precision: measuring.in_process_of_its_own(
                measure_precision, precision, environ={"KERAS_BACKEND": "jax"}, **settings
            )
            for precision in precisions
        }
    }


def measure_precision(
    precision: str,
    *,
    backbone: str,
    image_size: int,
    batch_size: int,
    classes: int,
    matrix_size: int,
    steps: int,
    rounds: int,
) -> dict[str, Any]:
    """Times one precision in this process, whose Keras backend is JAX."""
    import jax
    import keras

    keras.config.set_dtype_policy(precision)
    candidates: dict[str, Callable[[], Any]] = {}
    operations = {}
    for name in _LOSSES:
        step = _Step(name, backbone, image_size, batch_size, classes)
        operations[name] = step.operations
        candidates[name] = functools.partial(step.take, steps)
    dtype = keras.config.dtype_policy().compute_dtype
    candidates[_PRODUCT] = _matrix_products(matrix_size, dtype, steps)
    operations[_PRODUCT] = 2 * matrix_size**3
    seconds = measuring.in_turns(candidates, rounds=rounds).seconds
    rates = {
        name: np.array([steps * operations[name] / value for value in values])
        for name, values in seconds.items()
    }
    return {
        "device": jax.devices()[0].device_kind,
        "operations_per_second": {
            name: measuring.quartiles(values) for name, values in rates.items()
        },
        "images_per_second": {
            name: measuring.quartiles([steps * batch_size / value for value in seconds[name]])
            for name in _LOSSES
        },
        "share_of_matrix_rate": {
            name: measuring.ratio(rates[name], rates[_PRODUCT]) for name in _LOSSES
        },
        "db_focal_time_beside_bce": measuring.ratio(seconds["db_focal"], seconds["bce"]),
    }


class _Step:
    """A compiled step of the whole network on one batch, and what it trains.

    Attributes:
        operations: of a step, additions and multiplications, as XLA counts them.
    """

    def __init__(self, loss: str, backbone: str, image_size: int, batch_size: int, classes: int):
        import jax
        import keras

        from dbl_tf import models, optimizers

        keras.utils.set_random_seed(0)
        base = models.build_backbone(backbone, image_size)
        model = models.join(base, models.build_head(base.output_shape[-1], classes))
        optimizer = optimizers.CoupledDecaySGD()
        optimizer.build(model.trainable_variables)
        _, labels, weights, counts, num_examples = losses.make_data(batch_size, classes)
        of_logits = losses.keras_losses(counts, num_examples)[_LOSSES[loss]]
        images = np.random.default_rng(0).uniform(0, 255, (batch_size, image_size, image_size, 3))
        batch = (images.astype(np.float32), labels, labels.astype(np.uint8), weights)
        self._batch = jax.device_put(batch)
        variables = (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        )
        # Copies, since each step gives the memory of its state to the next.
        self._state = jax.tree.map(lambda v: jax.numpy.array(v.value, copy=True), variables)

        def objective(trainable, rest, images, *targets):
            logits, rest = model.stateless_call(trainable, rest, images, training=True)
            return of_logits(logits, *targets), rest

        def step(state, batch):
            trainable, rest, of_optimizer = state
            with_gradient = jax.value_and_grad(objective, has_aux=True)
            (value, rest), gradients = with_gradient(trainable, rest, *batch)
            trainable, of_optimizer = optimizer.stateless_apply(of_optimizer, gradients, trainable)
            return (trainable, rest, of_optimizer), value

        lowered = jax.jit(step, donate_argnums=0).lower(self._state, self._batch)
        self.operations = lowered.cost_analysis()["flops"]
        self._step = lowered.compile()

    def take(self, steps: int) -> None:
        """Trains so many steps."""
        for _ in range(steps):
            self._state, value = self._step(self._state, self._batch)
        if not np.isfinite(float(value)):
            raise ValueError(f"the loss is {value}: the figures would be of no training")


def _matrix_products(size: int, dtype: str, count: int) -> Callable[[], Any]:
    import jax

    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.random.normal(key, (size, size), dtype) / size**0.5 for key in keys)
    product = jax.jit(jax.numpy.matmul)

    def multiply() -> None:
        result = left
        for _ in range(count):
            result = product(result, right)
        jax.block_until_ready(result)

    return multiply


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as a table."""
    rows = []
    for precision, figures in result["precisions"].items():
        for name, rate in figures["operations_per_second"].items():
            is_step = name in _LOSSES
            tera = {key: value / 1e12 for key, value in rate.items()}
            rows.append(
                [
                    f"{precision}, {name}",
                    measuring.show(figures["images_per_second"][name], 1) if is_step else "",
                    measuring.show(tera),
                    measuring.show(figures["share_of_matrix_rate"][name]) if is_step else "",
                ]
            )
    header = ["", "images/s", "10¹² operations/s", "share of the matrix rate"]
    lines = [measuring.table(header, rows), ""]
    for precision, figures in result["precisions"].items():
        ratio = measuring.show(figures["db_focal_time_beside_bce"])
        lines.append(f"{precision} on {figures['device']}: db_focal takes {ratio} of bce's time")
    return "\n".join(lines)


if __name__ == "__main__":
    measuring.run("jax_training", define_flags, measure, describe)
