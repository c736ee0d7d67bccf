"""Training a compiled model step by step, on one device, several, or several machines."""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from dbl_tf.losses import MultiLabelLoss
from dbl_tf.messages import counted
from dbl_tf.terminal import Progress
from dbl_tf.training.callbacks import History, read_history
from dbl_tf.training.checkpoints import Checkpoints
from dbl_tf.training.cluster import reraise_lost_worker, wait_for_all
from dbl_tf.training.distribution import CommonStop, check_same_on_all, is_chief
from dbl_tf.training.progress import TrainingProgress
from dbl_tf.training.stopping import Notice, StoppedError, noticing_signals

# Reading a loss waits for the device, which then idles until the next step is dispatched. Losses
# are read after this time, which is long compared with that pause and short for people.
_SECONDS_BETWEEN_READINGS = 0.1
# Losses that are read together are stacked first, and TensorFlow keeps a kernel for every number of
# them that it has stacked.
_MOST_UNREAD = 64


@dataclasses.dataclass(frozen=True)
class Share:
    """The rows of every global batch that one input pipeline makes: part `index` of `count`.

    Each machine has a pipeline of its own, which all its replicas share.
    """

    index: int
    count: int


ALL_ROWS = Share(0, 1)
# Makes the endless batches from a step on, each reduced to the rows of the share. Batch t must be a
# pure function of t.
Batches = Callable[[int, Share], tf.data.Dataset]


def fit(
    model: keras.Model,
    batches: Batches,
    *,
    steps: int,
    steps_per_epoch: int,
    checkpoints: Checkpoints | None,
    checkpoint_every: int | None = None,
    steps_per_call: int = 1,
    history_path: str | os.PathLike | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    batch_size: int | None = None,
    verbose: str | int = "auto",
    name: str = "",
) -> None:
    """Trains from the newest checkpoint to the last step, under the model's strategy.

    The same loop serves one device, several devices, and several machines, on which `model.fit`
    does not run. With several machines, only the chief calls the callbacks and writes files. All of
    them read the checkpoints, so they need a shared file system.

    A loss of `dbl_tf` is told the step, so that one with `warmup_steps` needs no callback.

    Losses stay on the device until they are needed: for an epoch's end, for a checkpoint, and about
    ten times a second for the callbacks. What is trained and recorded does not depend on when they
    are read.

    With checkpoints, SIGINT and SIGTERM end the training after the step that is under way, with a
    checkpoint from which it continues exactly. A second signal ends the process at once. All
    machines of a cluster stop after the same step, whichever of them received the signal.

    Args:
        model: a compiled model that was built in the scope of its strategy.
        batches: makes the (inputs, labels) or (inputs, labels, weights) of each step.
        steps: the total number of training steps.
        steps_per_epoch: the number of steps after which `callbacks` see the end of an epoch. The
            last epoch may be shorter.
        checkpoints: the checkpoints of this run; None for a short one that starts again if it is
            killed.
        checkpoint_every: the number of steps between checkpoints inside an epoch. None writes
            them only at the end of each epoch.
        steps_per_call: the most steps that are dispatched at once, on one device. Small networks on
            features take a step in less time than it takes to dispatch one. The callbacks see the
            last step of each call. What is trained does not depend on it.
        history_path: a CSV file with a row for each epoch: its number, its mean loss, the learning
            rate after its last step, `images_per_second` and what the callbacks add to the logs.
        callbacks: Keras callbacks. They run before the history row and the checkpoint are written.
            The logs at the end of a batch hold the mean loss of the epoch up to the last step whose
            loss was read; those at the end of an epoch include all its steps, `learning_rate` and
            `images_per_second`.
        batch_size: the number of examples of a step over all replicas, from which
            `images_per_second` follows: that of the steps of an epoch, without its val split. It
            alone is measured and depends on the machine. None leaves it out.
        verbose: what is shown: "auto" and 1 for a bar on a terminal, and lines elsewhere; 2 for
            lines; 0 for nothing.
        name: what is trained, for the lines, if there are several trainings.

    Raises:
        FloatingPointError: the loss or the state is no longer finite. The message names the step.
        LostWorkerError: another machine was lost. The same program, started again on all of them,
            continues from the last checkpoint.
        OSError: a checkpoint or the history cannot be written. The message names the file.
        StoppedError: a signal has ended the training. The message names the step.
        ValueError: there are checkpoints but none can be used, or not all machines see the same
            ones.
    """
    strategy = model.distribute_strategy
    if model.jit_compile and _is_distributed(strategy):
        raise ValueError(
            "a model with jit_compile=True trains on one device, not under "
            f"{type(strategy).__name__}; compile it with jit_compile=False"
        )
    if not model.optimizer.built:
        with strategy.scope():
            model.optimizer.build(model.trainable_variables)
    step, loss_sum = 0, 0.0
    if checkpoints is not None:
        step, loss_sum = checkpoints.restore(model)
        check_same_on_all(
            strategy,
            step,
            f"not all machines see the same checkpoints in {checkpoints.directory}, which must be "
            "on a file system that they share. Steps of the newest ones",
        )
    if step:
        logging.info("continuing from step %s of %s", f"{step:,}", f"{steps:,}")
    elif checkpoints is not None and history_path is not None and is_chief(strategy):
        _warn_of_start_again(checkpoints, history_path)
    if step >= steps:
        return
    writes = is_chief(strategy)
    callbacks = list(callbacks) if writes else []
    shown = Progress(steps, verbose if writes else 0)
    callbacks.append(
        TrainingProgress(
            shown, steps=steps, steps_per_epoch=steps_per_epoch, batch_size=batch_size, name=name
        )
    )
    if writes and history_path is not None:
        callbacks.append(History(history_path, epochs=step // steps_per_epoch))
    iterator = iter(distributed_batches(strategy, batches, step))
    listeners = keras.callbacks.CallbackList(
        callbacks,
        model=model,
        epochs=-(-steps // steps_per_epoch),
        steps=steps_per_epoch,
        initial_epoch=step // steps_per_epoch,
    )

    def progress() -> str:
        return f"after step {step}{_last_checkpoint(checkpoints)}"

    @contextlib.contextmanager
    def together() -> Iterator[None]:
        with reraise_lost_worker(strategy, progress):
            try:
                yield
            except tf.errors.OpError:
                losses.read()  # a loss that was not finite comes first, and may be the cause
                raise

    def is_stopping() -> bool:
        with together():
            return stop.is_due(step, notice.signal, is_last=step >= steps)

    if _is_distributed(strategy):
        steps_per_call = 1

    losses = _EpochLosses(checkpoints, step, loss_sum, steps_per_epoch)
    loss = model.loss if isinstance(model.loss, MultiLabelLoss) else None
    if loss is not None:
        loss.at_step(step)
    train_step = make_train_step(model, strategy, iterator)
    model.stop_training = False
    listeners.on_train_begin()
    listeners.on_epoch_begin(step // steps_per_epoch)
    saved_step = step
    epoch_began = step, time.monotonic()
    stop = CommonStop(strategy)
    can_stop = checkpoints is not None
    noticing = noticing_signals() if can_stop else contextlib.nullcontext(Notice())
    with shown, noticing as notice:
        while not is_stopping() and step < steps and not model.stop_training:
            epoch, done = divmod(step, steps_per_epoch)
            num_steps = min(steps_per_call, steps_per_epoch - done, steps - step)
            if checkpoint_every:
                num_steps = min(num_steps, checkpoint_every - step % checkpoint_every)
            if loss is not None:
                if step < loss.warmup_steps:  # the steps of a call have the same loss
                    num_steps = min(num_steps, loss.warmup_steps - step)
                if loss.at_step(step):
                    train_step = make_train_step(model, strategy, iterator)
            listeners.on_train_batch_begin(done)
            with together():
                losses.append(train_step(iterator, num_steps))
                step, done = step + num_steps, done + num_steps
                epoch_ends = done == steps_per_epoch or step == steps
                saves = step % checkpoint_every == 0 if checkpoint_every else False
                if epoch_ends or saves or losses.is_reading_due():
                    losses.read()
            logs = {"loss": losses.mean}
            listeners.on_train_batch_end(done - 1, logs)
            if epoch_ends:
                # Under a strategy it is a variable of each replica.
                logs["learning_rate"] = float(tf.convert_to_tensor(model.optimizer.learning_rate))
                if batch_size is not None:
                    num_examples = batch_size * (step - epoch_began[0])
                    logs["images_per_second"] = num_examples / (time.monotonic() - epoch_began[1])
                listeners.on_epoch_end(epoch, logs)
                if writes and checkpoints is not None:
                    checkpoints.save(model, step, 0.0 if done == steps_per_epoch else losses.sum)
                    saved_step = step
                losses = _EpochLosses(checkpoints, step, 0.0, steps_per_epoch)
                epoch_began = step, time.monotonic()
                if step < steps:
                    listeners.on_epoch_begin(epoch + 1)
            elif writes and saves and checkpoints is not None:
                checkpoints.save(model, step, losses.sum)
                saved_step = step
        losses.read()  # the training may have been stopped between two readings
        if stop.signal is not None and step != saved_step and writes and checkpoints is not None:
            checkpoints.save(model, step, losses.sum)
    listeners.on_train_end()
    if stop.signal is not None:
        wait_for_all(strategy)  # for the checkpoint, which one of them writes
        raise StoppedError(stop.signal, f" at step {step} of {steps}")


class _EpochLosses:
    """The sum of the losses of an epoch's steps, of which the newest are still on the device.

    The sum is taken in float64 and in the order of the steps, so that it does not depend on when
    the losses are read.

    Args:
        checkpoints: the checkpoints of the run, for the message of an error.
        step: the number of steps that are trained.
        loss_sum: the sum of the losses of those of them that belong to the epoch.
        steps_per_epoch: the number of steps in an epoch.
    """

    def __init__(
        self, checkpoints: Checkpoints | None, step: int, loss_sum: float, steps_per_epoch: int
    ):
        self.sum = loss_sum
        self._checkpoints = checkpoints
        self._step, self._num_summed = step, step % steps_per_epoch
        self._unread: list[tf.Tensor] = []
        # The first loss is read at once, so that the logs of every batch hold a mean.
        self._due_at = 0.0

    @property
    def mean(self) -> float:
        """The mean loss of the epoch up to the last step that was read."""
        return self.sum / self._num_summed

    def append(self, losses: tf.Tensor) -> None:
        """Adds the losses of the next steps, (n,), without waiting for them."""
        self._unread.append(losses)

    def is_reading_due(self) -> bool:
        """Whether the losses should be read for the sake of the callbacks, or are too many."""
        return time.monotonic() >= self._due_at or len(self._unread) >= _MOST_UNREAD

    def read(self) -> None:
        """Waits for all steps and adds up their losses.

        Raises:
            FloatingPointError: a loss is not finite. The message names the first such step.
        """
        unread, self._unread = self._unread, []
        if unread:
            for loss in tf.concat(unread, axis=0).numpy().astype(np.float64).tolist():
                self._step += 1
                if not np.isfinite(loss):
                    raise FloatingPointError(
                        f"the loss is {loss} at step {self._step}: the model's logits are not "
                        f"finite{_last_checkpoint(self._checkpoints)}. A lower learning rate or a "
                        "longer warm-up may help."
                    )
                self.sum += loss
                self._num_summed += 1
        self._due_at = time.monotonic() + _SECONDS_BETWEEN_READINGS


def _warn_of_start_again(checkpoints: Checkpoints, history_path: str | os.PathLike) -> None:
    """Says that a training begins anew whose history has epochs, since no checkpoint is left."""
    if os.path.exists(history_path) and (rows := read_history(history_path)):
        logging.warning(
            "%s has %s, but there is no checkpoint in %s to continue from: the training starts "
            "again from step 0",
            history_path,
            counted(len(rows), "epoch"),
            checkpoints.directory,
        )


def _last_checkpoint(checkpoints: Checkpoints | None) -> str:
    if checkpoints is None:
        return ""
    return f"; the last checkpoint is of step {max(checkpoints.steps(), default=0)}"


def _is_distributed(strategy: tf.distribute.Strategy) -> bool:
    """Whether replicas run in threads or processes of their own, even if there is only one."""
    threads = (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy)
    return strategy.num_replicas_in_sync > 1 or isinstance(strategy, threads)


def distributed_batches(strategy: tf.distribute.Strategy, batches: Batches, step: int) -> Any:
    """The batches from a step on, split among the replicas in their order."""

    def make_share(context: tf.distribute.InputContext) -> tf.data.Dataset:
        share = Share(context.input_pipeline_id, context.num_input_pipelines)
        rows = batches(step, share)
        replicas = context.num_replicas_in_sync // context.num_input_pipelines
        if replicas == 1:
            return rows

        def split(tensor: tf.Tensor) -> tf.Tensor:
            return tf.reshape(tensor, [replicas, tensor.shape[0] // replicas, *tensor.shape[1:]])

        return rows.map(lambda *batch: tf.nest.map_structure(split, batch)).unbatch()

    return strategy.distribute_datasets_from_function(make_share)


def make_train_step(
    model: keras.Model, strategy: tf.distribute.Strategy, iterator: Any
) -> Callable[[Any, int], tf.Tensor]:
    """Compiles a function that trains a number of steps on the next batches of an iterator.

    It takes the iterator and the number n of steps, and returns their losses, (n,). On a GPU it
    returns before the steps are finished.

    Args:
        model: a compiled model, whose optimizer is built.
        strategy: the strategy of the model.
        iterator: an iterator over `distributed_batches`. The function is traced for it, which reads
            no batch, and takes any other iterator over batches of the same shapes.
    """

    def on_replica(
        inputs: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor | None = None
    ) -> tf.Tensor:
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

    def one_step(iterator: Any) -> tf.Tensor:
        losses = strategy.run(on_replica, args=next(iterator))
        return strategy.reduce(tf.distribute.ReduceOp.SUM, losses, axis=None)

    def step(iterator: Any) -> tf.Tensor:
        return one_step(iterator)[None]

    def several_steps(iterator: Any, num_steps: tf.Tensor) -> tf.Tensor:
        losses = tf.TensorArray(tf.float32, num_steps)
        for i in tf.range(num_steps):
            losses = losses.write(i, one_step(iterator))
        return losses.stack()

    # Each network needs a trace of its own. TensorFlow takes first calls that trace, in one process
    # after another network's, for a function that is traced again and again, and warns of it.
    @functools.cache
    def traced(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
        number = [tf.constant(0)] if function is several_steps else []
        return tf.function(function).get_concrete_function(iterator, *number)

    def call(iterator: Any, num_steps: int) -> tf.Tensor:
        if num_steps == 1:
            return traced(step)(iterator)
        return traced(several_steps)(iterator, tf.constant(num_steps))

    return call
