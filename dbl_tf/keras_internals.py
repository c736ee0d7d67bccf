"""The private names of Keras and TensorFlow that this package depends on, each with the reason.

Nothing else in the package uses a private name of Keras or TensorFlow, so a new version of either
can be checked here. `setup.cfg` admits only the minor versions that were checked.
"""

import os
import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


class SumClippingOptimizer(keras.optimizers.Optimizer):
    """An optimizer that clips the sum of the gradients over all replicas.

    Wraps `Optimizer._clip_gradients` and, on TensorFlow, `Optimizer._all_reduce_sum_gradients`.
    Keras clips the gradients of each replica before it adds them up, so two replicas train
    differently from one. The public `apply` does both, and offers nothing in between.
    """

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        if keras.backend.backend() == "tensorflow":
            return grads  # one replica's share alone is not what is to be clipped
        return super()._clip_gradients(grads)

    def _all_reduce_sum_gradients(
        self, grads_and_vars: list[tuple[Any, Any]]
    ) -> list[tuple[Any, Any]]:
        reduced = super()._all_reduce_sum_gradients(grads_and_vars)
        clipped = super()._clip_gradients([gradient for gradient, _ in reduced])
        return [(gradient, pair[1]) for gradient, pair in zip(clipped, reduced, strict=True)]


def variable_index(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """Returns the position of a variable among those that the optimizer was built with.

    Wraps `Optimizer._get_variable_index`. `update_step` is given the backend's variable, under a
    strategy the one of a replica, from which no public name leads back to the Keras variable.

    Args:
        optimizer: an optimizer that has been built.
        variable: the variable that `update_step` receives, or the Keras variable.
    """
    return optimizer._get_variable_index(variable)


def weight_averages(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """The moving averages of the variables that an optimizer with `use_ema` was built with.

    Wraps `Optimizer._model_variables_moving_average`. The public `finalize_variable_values` writes
    the averages over the weights, and nothing public lets training go on with the weights after.
    """
    return optimizer._model_variables_moving_average


def fused_adam_step(
    optimizer: keras.optimizers.Adam, gradient: Any, variable: Any, rate: Any
) -> None:
    """Applies one step of Adam to a variable by TensorFlow's kernel for it.

    Uses `Adam._momentums` and `Adam._velocities`. Keras composes the step of some twenty
    operations for each variable, which take longer than the network of a head.

    Args:
        optimizer: an optimizer that has been built, without `amsgrad`.
        gradient: of the variable, dense or of some rows.
        variable: TensorFlow's variable, as `update_step` receives it.
        rate: the learning rate, a scalar.
    """
    import tensorflow as tf

    index = variable_index(optimizer, variable)
    dtype = variable.dtype
    beta_1, beta_2 = tf.cast(optimizer.beta_1, dtype), tf.cast(optimizer.beta_2, dtype)
    step = tf.cast(optimizer.iterations.value + 1, dtype)
    tf.raw_ops.ResourceApplyAdam(
        var=variable.handle,
        m=optimizer._momentums[index].value.handle,
        v=optimizer._velocities[index].value.handle,
        beta1_power=beta_1**step,
        beta2_power=beta_2**step,
        lr=tf.cast(rate, dtype),
        beta1=beta_1,
        beta2=beta_2,
        epsilon=tf.cast(optimizer.epsilon, dtype),
        grad=tf.cast(tf.convert_to_tensor(gradient), dtype),
        use_locking=True,
    )


class ComputedSeed(keras.random.SeedGenerator):
    """A seed for `keras.random` that was computed in the graph.

    `keras.random` takes a number that Python knows, or a generator whose state is a variable, which
    the layer and its checkpoints would then hold. Wraps `draw_seed`, which takes the seed from the
    generator's `next` alone; the constructor of the base class, which makes the variable, is left
    out.

    Args:
        words: two integers or integer tensors; `SeedGenerator(a)` hands out (a, 0), (a, 1), ….
    """

    def __init__(self, words: Sequence[Any]):
        self._words = tuple(words)

    def next(self, ordered: bool = True) -> Any:
        """Returns the seed, integer (2,), in the type that the backend's random functions take."""
        dtype = "uint32" if keras.backend.backend() == "jax" else "int32"
        return ops.stack([ops.cast(word, dtype) for word in self._words])


def flush_event_files(callback: keras.callbacks.TensorBoard) -> None:
    """Writes to disk what a TensorBoard callback has logged so far.

    Wraps `TensorBoard._writers`. The callback keeps its writers to itself and closes them at the
    end of the training, which a killed process never reaches.
    """
    for writer in callback._writers.values():
        writer.flush()


def load_weights(network: keras.Model, path: str | os.PathLike) -> None:
    """Calls `network.load_weights(path)`, and reports weights that do not fit only by its error.

    Wraps `Functional._operations_by_depth`: Keras 3.15.1 looks for each layer that it could not
    load a second time, in this list, and warns of the list that "affected layers will retain their
    freshly-initialized weights" before it raises the error. No argument of the public method turns
    the second look off.

    Raises:
        ValueError, OSError, KeyError: the file does not hold the network's weights.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipping nested container at '_operations_by_depth")
        network.load_weights(path)


def tell_cluster(key: str, value: str) -> None:
    """Stores a text where all processes of a TensorFlow cluster can read it.

    Wraps `Context.set_config_key_value`. The strategy starts a coordination service with such a
    store, and nothing public writes to it; a collective operation would exchange numbers alone, and
    would wait for a process that has been refused.
    """
    from tensorflow.python.eager import context

    context.context().set_config_key_value(key, value)


def heard_in_cluster(key: str, seconds: float) -> str | None:
    """Returns the text that a process of the cluster has stored; None if it has not in that time.

    Wraps `Context.get_config_key_value`; see `tell_cluster`.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    try:
        return context.context().get_config_key_value(key, timeout_in_ms=int(1000 * seconds))
    except tf.errors.DeadlineExceededError:
        return None


def check_in_cluster(kind: str, index: int, count: int) -> None:
    """Checks that a process of the cluster is still known to live.

    Wraps `Context.get_task_states`. Waiting for a key does not end with the process that would
    store it, and the coordination service misses the heartbeats of a process that was killed.

    Args:
        kind: "chief" or "worker".
        index: its number among those of its kind.
        count: how many processes there are of its kind.

    Raises:
        tf.errors.OpError: it has ended, or cannot be reached.
    """
    from tensorflow.python.eager import context

    error = context.context().get_task_states([(kind, count)])[index]
    if error is not None:
        raise error
