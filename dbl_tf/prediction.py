"""Logits and probabilities that a model predicts, in the order of its inputs."""

import keras
import numpy as np
import tensorflow as tf


def predict(
    model: keras.Model, batches: tf.data.Dataset, verbose: str | int = "auto"
) -> np.ndarray:
    """Probabilities σ(z) of all examples in batches, in their order.

    Args:
        model: gives logits (B, C) for a batch.
        batches: inputs of the model.
        verbose: as for `model.predict`.

    Returns:
        float32 (N, C).

    Raises:
        FloatingPointError: logits that are not finite.
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
    """Logits of all examples in batches, in their order, computed on all devices of this machine.

    Args:
        model: gives logits (B, C) for a batch.
        batches: inputs of the model.
        verbose: as for `model.predict`.

    Returns:
        (N, C), of the model's type.
    """
    if isinstance(model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
        # `model.predict` would divide the batches among the machines, but only one evaluates.
        call = tf.function(lambda batch: model(batch, training=False))
        return np.concatenate([call(batch).numpy() for batch in batches])
    return model.predict(batches, verbose=verbose)
