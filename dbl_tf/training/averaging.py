"""The moving average of a model's weights, in place of the weights for as long as it is judged."""

import contextlib
from collections.abc import Iterator

import keras

from dbl_tf import keras_internals


def averages(model: keras.Model) -> list[keras.Variable] | None:
    """Returns the moving averages that the optimizer keeps of the trainable weights.

    Args:
        model: a compiled model.

    Returns:
        The averages in the order of `model.trainable_variables`; None if the optimizer keeps none
        (`use_ema=False`) or has not made a step yet.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema or not optimizer.built or not int(optimizer.iterations):
        return None
    return keras_internals.weight_averages(optimizer)


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Gives a model the moving averages of its weights inside the block, if there are any."""
    values = averages(model)
    if values is None:
        yield
        return
    trained = [keras.ops.convert_to_numpy(variable) for variable in model.trainable_variables]
    use_averages(model)
    try:
        yield
    finally:
        for variable, value in zip(model.trainable_variables, trained, strict=True):
            variable.assign(value)


def use_averages(model: keras.Model) -> None:
    """Replaces the trainable weights by their moving averages, if there are any."""
    for variable, average in zip(model.trainable_variables, averages(model) or (), strict=False):
        variable.assign(keras.ops.convert_to_numpy(average))
