"""Training a compiled model step by step, with checkpoints from which it continues exactly."""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from dbl_tf import files

_DEFAULT = type(tf.distribute.get_strategy())  # outside of any scope
STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The distribution strategy of this name.

    Args:
        name: "one_device", the first GPU or else the CPU; "mirrored", every local GPU, or the CPU
            where there is none; "multi_worker", every GPU of the machines that `TF_CONFIG` names,
            of which each runs the same program; "auto", "mirrored" where there are several GPUs,
            else "one_device".

    Raises:
        ValueError: an unknown name, or "multi_worker" without a cluster in `TF_CONFIG`.
    """
    if name == "multi_worker":
        try:
            cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")
        except json.JSONDecodeError as error:
            raise ValueError(f"TF_CONFIG is no JSON: {error}") from None
        if not (isinstance(cluster, dict) and {"cluster", "task"} <= set(cluster)):
            raise ValueError(
                "strategy multi_worker needs TF_CONFIG, which names all machines and which of them "
                'this is: {"cluster": {"worker": ["host0:port", "host1:port"]}, "task": {"type": '
                f'"worker", "index": 0}}}}; found {os.environ.get("TF_CONFIG")!r}'
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 else "one_device"
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    if name == "mirrored":
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}; got {name!r}")


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one of its cluster that writes files; true where it is alone."""
    resolver = strategy.cluster_resolver
    if resolver is None or not resolver.task_type:
        return True
    if "chief" in resolver.cluster_spec().as_dict():
        return resolver.task_type == "chief"
    return resolver.task_id == 0


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns once every process of the cluster has come here.

    A process that ended while another still works would be taken for a lost one.
    """

    def one_each() -> Any:
        context = tf.distribute.get_replica_context()
        return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones(()))

    with _naming_lost(strategy, lambda: "while it was waited for"):
        strategy.run(tf.function(one_each))


def check_same_on_all(strategy: tf.distribute.Strategy, number: int, message: str) -> None:
    """Refuses machines of a cluster of which one has another number.

    Args:
        strategy: of the training; nothing is done where it has one machine alone.
        number: of this machine, below 2^53.
        message: what is wrong where they differ.

    Raises:
        ValueError: the message and all numbers.
        LostWorkerError: another machine cannot be reached.
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return

    def of_each() -> tf.Tensor:
        context = tf.distribute.get_replica_context()
        own = tf.one_hot(
            context.replica_id_in_sync_group,
            context.num_replicas_in_sync,
            on_value=tf.constant(number, tf.float64),
            dtype=tf.float64,
        )
        return context.all_reduce(tf.distribute.ReduceOp.SUM, own)

    with _naming_lost(strategy, lambda: "before the first step"):
        of_all = strategy.run(tf.function(of_each))
    numbers = strategy.experimental_local_results(of_all)[0].numpy()
    if (numbers != number).any():
        found = sorted({int(other) for other in numbers})
        raise ValueError(f"{message}: this one has {number}, all have {found}")


class LostWorkerError(RuntimeError):
    """Another process of the cluster has ended or cannot be reached."""


@contextlib.contextmanager
def _naming_lost(strategy: tf.distribute.Strategy, when: Callable[[], str]) -> Iterator[None]:
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError) as error:
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            raise
        raise LostWorkerError(
            f"another machine of the cluster was lost {when()}. Start the same command on all "
            f"machines to continue ({error.message.splitlines()[0]})"
        ) from error


class Checkpoints:
    """Checkpoints of one training run: everything that changes the next step.

    A checkpoint holds every variable of the model and its optimizer, states of random generators
    included. A process killed at any moment leaves whole checkpoints only.

    Args:
        directory: where they lie; made when the first is written.
        keep: how many of the newest are kept.
    """

    _NAME = re.compile(r"step-(\d{8})\.npz")

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        self.directory = pathlib.Path(directory)
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, rising."""
        matches = (self._NAME.fullmatch(path.name) for path in self.directory.glob("*.npz"))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> pathlib.Path:
        """The file of a step."""
        return self.directory / f"step-{step:08d}.npz"

    def save(self, model: keras.Model, step: int, loss_sum: float = 0.0) -> None:
        """Writes the state after `step` steps, and removes the oldest beyond `keep`.

        Args:
            model: compiled.
            step: steps trained.
            loss_sum: of the steps of the epoch that is not at its end.

        Raises:
            OSError: it cannot be written; those before it are as they were.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with files.replacing(self.path(step)) as beside:
            np.savez(
                beside,
                loss_sum=loss_sum,
                **{str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(_state(model))},
            )
        # One of a later step was passed over as damaged, or training would not be here.
        kept = [other for other in self.steps() if other <= step][-self.keep :]
        for other in set(self.steps()) - set(kept):
            self.path(other).unlink()

    def restore(self, model: keras.Model) -> tuple[int, float]:
        """Brings the model to the newest whole checkpoint.

        Args:
            model: compiled, as the one that was saved.

        Returns:
            The number of steps it has trained, 0 where there is no checkpoint; and `loss_sum`.

        Raises:
            ValueError: there are checkpoints, and none is whole and fits the model.
        """
        steps = self.steps()
        damaged = []
        for step in reversed(steps):
            try:
                return step, self._load(model, self.path(step))
            except (zipfile.BadZipFile, OSError, EOFError, KeyError, ValueError) as error:
                damaged.append(f"{self.path(step)}: {error}")
                logging.warning("checkpoint cannot be used, the one before it is: %s", damaged[-1])
        if damaged:
            raise ValueError("no checkpoint can be used: " + "; ".join(damaged))
        return 0, 0.0

    @staticmethod
    def _load(model: keras.Model, path: pathlib.Path) -> float:
        variables = _state(model)
        with np.load(path) as file:
            loss_sum = float(file["loss_sum"])
            values = [file[str(i)] for i in range(len(file.files) - 1)]
        shapes = [tuple(v.shape) for v in variables]
        if [v.shape for v in values] != shapes:
            raise ValueError("it is of a model of other shapes")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return loss_sum


def _state(model: keras.Model) -> list[keras.Variable]:
    # `model.weights` leaves out random states, `model.variables` holds those of metrics too.
    seeds = [v for v in model.variables if v.name == "seed_generator_state"]
    return [*model.weights, *seeds, *model.optimizer.variables]


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
        callbacks.append(_History(history_path, epochs=step // steps_per_epoch))
    iterator = iter(_distributed(strategy, batches, step))
    train_step = _train_step(model, strategy)
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
        with _naming_lost(strategy, where):
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


def _distributed(strategy: tf.distribute.Strategy, batches: Batches, step: int) -> Any:
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


def _train_step(model: keras.Model, strategy: tf.distribute.Strategy) -> Callable[[Any], tf.Tensor]:
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


class _History(keras.callbacks.Callback):
    """The file with a row for each epoch; rows of epochs that are trained again are dropped."""

    def __init__(self, path: str | os.PathLike, epochs: int):
        super().__init__()
        self._path = path
        self._rows: list[dict[str, Any]] = []
        if os.path.exists(path):
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self._rows = [row for row in rows if int(row["epoch"]) < epochs]

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._rows.append({"epoch": epoch, **logs})
        columns = dict.fromkeys(name for row in self._rows for name in row)
        with (
            files.replacing(self._path) as beside,
            open(beside, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self._rows)


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's, with every epoch once in its log also after a run was killed."""

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Drops what is going to be trained again."""
        for folder in pathlib.Path(self.log_dir).glob("*/"):
            _keep_epochs_before(self.params["initial_epoch"], folder)
        super().on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Writes the epoch to disk, before a checkpoint says that it is done."""
        super().on_epoch_end(epoch, logs)
        for writer in self._writers.values():
            writer.flush()


def _keep_epochs_before(epoch: int, folder: pathlib.Path) -> None:
    """Brings the event files of a folder into one, without the epochs from this one on."""
    paths = sorted(folder.glob("*tfevents*"))
    records: dict[bytes, None] = {}  # what two files hold, as after a kill right here, is kept once
    for path in paths:
        with contextlib.suppress(tf.errors.DataLossError):  # cut off where the process was killed
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = tf.compat.v1.Event.FromString(record)
                if event.HasField("summary") and event.step < epoch:
                    records[record] = None
    if records:
        version = tf.compat.v1.Event(wall_time=time.time(), file_version="brain.Event:2")
        with files.replacing(paths[0]) as beside, tf.io.TFRecordWriter(str(beside)) as writer:
            for record in (version.SerializeToString(), *records):
                writer.write(record)
    for path in paths[1 if records else 0 :]:
        path.unlink()
