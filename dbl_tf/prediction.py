"""Predicts logits and probabilities in the order of the inputs."""

import keras
import numpy as np
import tensorflow as tf

from dbl_tf.terminal import Counter


def predict(
    model: keras.Model, batches: tf.data.Dataset, verbose: str | int = "auto"
) -> np.ndarray:
    """Predicts the probabilities σ(z) of all examples in batches.

    Args:
        model: a model that returns logits, (B, C), for a batch.
        batches: the batches of inputs.
        verbose: 0 shows no progress, and 2 lines of it on a terminal too.

    Returns:
        The probabilities, float32 (N, C), in the order of the inputs.

    Raises:
        FloatingPointError: some logits are not finite.
    """
    logits = predict_finite_logits(model, batches, verbose=verbose)
    return keras.ops.convert_to_numpy(keras.ops.sigmoid(logits.astype(np.float32)))


def predict_finite_logits(
    model: keras.Model, batches: tf.data.Dataset, verbose: str | int = "auto"
) -> np.ndarray:
    """As `predict_logits`, and refuses logits that are not finite.

    Raises:
        FloatingPointError: some logits are not finite.
    """
    logits = predict_logits(model, batches, verbose=verbose)
    if not np.isfinite(logits).all():
        raise FloatingPointError(
            f"the model's logits are not finite for "
            f"{np.count_nonzero(~np.isfinite(logits).all(axis=1))} of {len(logits)} examples"
        )
    return logits


def predict_logits(
    model: keras.Model, batches: tf.data.Dataset, verbose: str | int = "auto"
) -> np.ndarray:
    """Predicts the logits of all examples in batches, on all devices of this machine.

    Args:
        model: see `predict`.
        batches: see `predict`; at least one.
        verbose: see `predict`.

    Returns:
        The logits, (N, C), in the order of the inputs and of the type of the model.
    """
    count = int(batches.cardinality())
    with Counter("predicting", count if count >= 0 else None, "batches", verbose) as counter:
        return _predict_logits(model, batches, counter)


def _predict_logits(model: keras.Model, batches: tf.data.Dataset, counter: Counter) -> np.ndarray:
    strategy = model.distribute_strategy
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        # Keras would divide the batches among the machines, but only one evaluates.
        function = tf.function(
            lambda data: model(keras.utils.unpack_x_y_sample_weight(data[0])[0], training=False)
        )
    elif strategy.num_replicas_in_sync > 1:
        counting = keras.callbacks.LambdaCallback(
            on_predict_batch_end=lambda batch, logs: counter.show(batch + 1)
        )
        return model.predict(batches, verbose=0, callbacks=[counting])
    else:
        # `model.predict` starts the pipeline again at its end, and so reads images for nothing.
        model.make_predict_function()
        function = model.predict_function
    if not model.run_eagerly:
        # Traced once for all sizes of a batch; the first call would trace it for its own size.
        function = function.get_concrete_function([batches.element_spec])
    logits = []
    for batch in batches:
        logits.append(function([batch]))
        counter.advance(1)
    return np.concatenate([array.numpy() for array in logits])
