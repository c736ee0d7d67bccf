"""Predicts logits and probabilities in the order of the inputs."""

import keras
import numpy as np
import tensorflow as tf


def predict(
    model: keras.Model, batches: tf.data.Dataset, verbose: str | int = "auto"
) -> np.ndarray:
    """Predicts the probabilities σ(z) of all examples in batches.

    Args:
        model: a model that returns logits, (B, C), for a batch.
        batches: the batches of inputs.
        verbose: see `model.predict`.

    Returns:
        The probabilities, float32 (N, C), in the order of the inputs.

    Raises:
        FloatingPointError: some logits are not finite.
    """
    logits = predict_logits(model, batches, verbose=verbose)
    if not np.isfinite(logits).all():
        raise FloatingPointError(
            f"the model's logits are not finite for "
            f"{np.count_nonzero(~np.isfinite(logits).all(axis=1))} of {len(logits)} examples"
        )
    return keras.ops.convert_to_numpy(keras.ops.sigmoid(logits.astype(np.float32)))


def predict_logits(
    model: keras.Model, batches: tf.data.Dataset, verbose: str | int = "auto"
) -> np.ndarray:
    """Predicts the logits of all examples in batches, on all devices of this machine.

    Args:
        model: see `predict`.
        batches: see `predict`.
        verbose: see `predict`.

    Returns:
        The logits, (N, C), in the order of the inputs and of the type of the model.
    """
    if isinstance(model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
        # `model.predict` would divide the batches among the machines, but only one evaluates.
        call = tf.function(lambda batch: model(batch, training=False))
        return np.concatenate([call(batch).numpy() for batch in batches])
    return model.predict(batches, verbose=verbose)
