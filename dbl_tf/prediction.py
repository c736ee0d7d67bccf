"""Logits and probabilities of a network, in the order of its inputs."""

import keras
import numpy as np
import tensorflow as tf


def predict(
    model: keras.Model, batches: tf.data.Dataset, verbose: str | int = "auto"
) -> np.ndarray:
    """Probabilities σ(z), float32 (N, C), of batches of images, in their order.

    Raises:
        FloatingPointError: logits that are not finite.
    """
    logits = predict_logits(model, batches, verbose=verbose)
    if not np.isfinite(logits).all():
        raise FloatingPointError(
            f"{np.count_nonzero(~np.isfinite(logits).all(axis=1))} of {len(logits)} examples have "
            "logits that are not finite"
        )
    return keras.ops.convert_to_numpy(keras.ops.sigmoid(logits.astype(np.float32)))


def predict_logits(
    model: keras.Model, batches: tf.data.Dataset, verbose: str | int = "auto"
) -> np.ndarray:
    """What the model gives for batches, in their order, on every device of this machine."""
    if isinstance(model.distribute_strategy, tf.distribute.MultiWorkerMirroredStrategy):
        # `predict` would share the batches out among the machines, of which one alone evaluates.
        call = tf.function(lambda batch: model(batch, training=False))
        return np.concatenate([call(batch).numpy() for batch in batches])
    return model.predict(batches, verbose=verbose)
