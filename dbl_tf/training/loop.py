"""Training a compiled model step by step, on one device, several, or several machines."""

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from dbl_tf.training.callbacks import History
from dbl_tf.training.checkpoints import Checkpoints
from dbl_tf.training.distribution import check_same_on_all, is_chief, reraise_lost_worker

_DEFAULT = type(tf.distribute.get_strategy())  # outside of any scope


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of every global batch that one input pipeline makes: the index-th of `count` parts.

    Several machines have a pipeline each; the replicas of one machine have one in common.
    """

    index: int
    count: int


ALL_ROWS = Share(0, 1)
# The endless batches from a step on, of which the rows of the share are made. Batch t must be a
# function of t.
Batches = Callable[[int, Share], tf.data.Dataset]


def fit(
    model: keras.Model,
    batches: Batches,
    *,
    steps: int,
    steps_per_epoch: int,
    checkpoints: Checkpoints,
    checkpoint_every: int | None = None,
    history_path: str | os.PathLike | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: str | int = "auto",
) -> None:
    """Trains from the newest checkpoint on, to the last step, under the model's strategy.

    One loop for one device, several, and several machines, on which `model.fit` does not run. Of
    several machines, the chief alone calls the callbacks and writes; all read the checkpoints, so
    they must have one file system in common.

    Args:
        model: compiled, in the scope of its strategy.
        batches: makes (inputs, labels) or (inputs, labels, weights).
        steps: to train in all.
        steps_per_epoch: after which `callbacks` see an epoch's end; the last epoch may be shorter.
        checkpoints: where the state is kept.
        checkpoint_every: steps between checkpoints inside an epoch; None for its end only.
        history_path: CSV file with a row for each epoch: its number, its mean loss and what the
            callbacks put into the logs.
        callbacks: of Keras; they run before the history row and the checkpoint are written.
        verbose: as of `model.fit`.

    Raises:
        FloatingPointError: the loss is no longer finite; names the step.
        LostWorkerError: another machine was lost. The same program, started again on all of them,
            continues from the last checkpoint.
        OSError: a checkpoint or the history cannot be written; names the file.
        ValueError: there are checkpoints and none can be used, or not all machines see the same.
    """
    strategy = model.distribute_strategy
    if model.jit_compile and not isinstance(strategy, (tf.distribute.OneDeviceStrategy, _DEFAULT)):
        raise ValueError(
            "a model with jit_compile=True trains on one device, not under "
            f"{type(strategy).__name__}; compile it with jit_compile=False"
        )
    if not model.optimizer.built:
        with strategy.scope():
            model.optimizer.build(model.trainable_variables)
    step, loss_sum = checkpoints.restore(model)
    check_same_on_all(
        strategy,
        step,
        f"not all machines see the same checkpoints in {checkpoints.directory}; they need one file "
        "system in common. Their steps",
    )
    if step:
        logging.info("continuing from step %d of %d", step, steps)
    if step >= steps:
        return
    writes = is_chief(strategy)
    callbacks = list(callbacks) if writes else []
    if writes and history_path is not None:
        callbacks.append(History(history_path, epochs=step // steps_per_epoch))
    iterator = iter(distributed_batches(strategy, batches, step))
    train_step = make_train_step(model, strategy)
    listeners = keras.callbacks.CallbackList(
        callbacks,
        add_progbar=writes and verbose != 0,
        model=model,
        verbose=verbose,
        epochs=-(-steps // steps_per_epoch),
        steps=steps_per_epoch,
        initial_epoch=step // steps_per_epoch,
    )

    def where() -> str:
        last = max(checkpoints.steps(), default=0)
        return f"after step {step}; the last checkpoint is of step {last}"

    model.stop_training = False
    listeners.on_train_begin()
    listeners.on_epoch_begin(step // steps_per_epoch)
    while step < steps and not model.stop_training:
        epoch, done = divmod(step, steps_per_epoch)
        listeners.on_train_batch_begin(done)
        with reraise_lost_worker(strategy, where):
            loss = float(train_step(iterator))
        step, done, loss_sum = step + 1, done + 1, loss_sum + loss
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at step {step}: the model's logits are not finite. The last "
                f"checkpoint is of step {max(checkpoints.steps(), default=0)}. A lower learning "
                "rate or a longer warm-up may help."
            )
        logs = {"loss": loss_sum / done}
        listeners.on_train_batch_end(done - 1, logs)
        if done == steps_per_epoch or step == steps:
            listeners.on_epoch_end(epoch, logs)
            if writes:
                checkpoints.save(model, step, 0.0 if done == steps_per_epoch else loss_sum)
            loss_sum = 0.0
            if step < steps:
                listeners.on_epoch_begin(epoch + 1)
        elif writes and checkpoint_every and step % checkpoint_every == 0:
            checkpoints.save(model, step, loss_sum)
    listeners.on_train_end()


def distributed_batches(strategy: tf.distribute.Strategy, batches: Batches, step: int) -> Any:
    """The batches from a step on, cut for the replicas in their order."""

    def of_pipeline(context: tf.distribute.InputContext) -> tf.data.Dataset:
        share = Share(context.input_pipeline_id, context.num_input_pipelines)
        rows = batches(step, share)
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        if replicas == 1:
            return rows

        def cut(tensor: tf.Tensor) -> tf.Tensor:
            return tf.reshape(tensor, [replicas, tensor.shape[0] // replicas, *tensor.shape[1:]])

        return rows.map(lambda *batch: tf.nest.map_structure(cut, batch)).unbatch()

    return strategy.distribute_datasets_from_function(of_pipeline)


def make_train_step(
    model: keras.Model, strategy: tf.distribute.Strategy
) -> Callable[[Any], tf.Tensor]:
    """A compiled function from the iterator to the loss of one step, which it makes."""

    def on_replica(inputs: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor | None = None):
        with tf.GradientTape() as tape:
            logits = model(inputs, training=True)
            # Keras divides by the number of replicas, so that their sum is the batch's loss.
            loss = model.compute_loss(inputs, labels, logits, weights)
            scaled = model.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_weights)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
        return loss

    if model.jit_compile:
        on_replica = tf.function(on_replica, jit_compile=True)

    @tf.function
    def step(iterator: Any) -> tf.Tensor:
        losses = strategy.run(on_replica, args=next(iterator))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    return step
