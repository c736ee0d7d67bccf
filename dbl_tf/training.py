"""Training a compiled model step by step, with checkpoints from which it continues exactly."""

import csv
import os
import pathlib
import re
import zipfile
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging

STRATEGIES = ("auto", "one_device", "mirrored")


def make_strategy(name: str) -> tf.distribute.Strategy:
    """The distribution strategy of this name.

    Args:
        name: "one_device", the first GPU or else the CPU; "mirrored", every local GPU, or the CPU
            where there is none; "auto", "mirrored" where there are several GPUs, else "one_device".

    Raises:
        ValueError: an unknown name.
    """
    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 else "one_device"
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    if name == "mirrored":
        devices = gpus or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}; got {name!r}")


class Checkpoints:
    """Checkpoints of one training run: everything that changes the next step.

    A checkpoint holds every variable of the model and its optimizer, states of random generators
    included. It is written beside its final name and renamed, so that a process killed at any
    moment leaves whole checkpoints only.

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

    def save(self, model: keras.Model, step: int) -> None:
        """Writes the state after `step` steps, and removes the oldest beyond `keep`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        incomplete = self.directory / f"step-{step:08d}.incomplete"
        with open(incomplete, "wb") as file:
            np.savez(
                file,
                **{str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(_state(model))},
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(incomplete, self.path(step))
        for old in self.steps()[: -self.keep]:
            self.path(old).unlink()

    def restore(self, model: keras.Model) -> int:
        """Brings the model to the newest whole checkpoint.

        Args:
            model: compiled, as the one that was saved.

        Returns:
            The number of steps it has trained; 0 where there is no checkpoint.

        Raises:
            ValueError: there are checkpoints, and none is whole and fits the model.
        """
        steps = self.steps()
        damaged = []
        for step in reversed(steps):
            try:
                self._load(model, self.path(step))
            except (zipfile.BadZipFile, OSError, EOFError, KeyError, ValueError) as error:
                damaged.append(f"{self.path(step)}: {error}")
                logging.warning("checkpoint cannot be used, the one before it is: %s", damaged[-1])
                continue
            return step
        if damaged:
            raise ValueError("no checkpoint can be used: " + "; ".join(damaged))
        return 0

    @staticmethod
    def _load(model: keras.Model, path: pathlib.Path) -> None:
        variables = _state(model)
        with np.load(path) as file:
            values = [file[str(i)] for i in range(len(file.files))]
        shapes = [tuple(v.shape) for v in variables]
        if [v.shape for v in values] != shapes:
            raise ValueError("it is of a model of other shapes")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _state(model: keras.Model) -> list[keras.Variable]:
    if not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
    # `model.weights` leaves out random states, `model.variables` holds those of metrics too.
    seeds = [v for v in model.variables if v.name == "seed_generator_state"]
    return [*model.weights, *seeds, *model.optimizer.variables]


class _CheckpointEvery(keras.callbacks.Callback):
    """Saves at the end of every epoch, and after every so many steps where asked for."""

    def __init__(self, checkpoints: Checkpoints, first_step: int, every: int | None):
        super().__init__()
        self.checkpoints, self.step, self.every = checkpoints, first_step, every

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        self.step += 1
        if not np.isfinite(logs["loss"]):
            raise FloatingPointError(
                f"the loss is {logs['loss']} at step {self.step}: the model's logits are not "
                f"finite. The last checkpoint is of step {max(self.checkpoints.steps(), default=0)}"
                ". A lower learning rate or a longer warm-up may help."
            )
        if self.every and self.step % self.every == 0:
            self.checkpoints.save(self.model, self.step)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.checkpoints.save(self.model, self.step)


def fit(
    model: keras.Model,
    batches: Callable[[int], tf.data.Dataset],
    *,
    steps: int,
    steps_per_epoch: int,
    checkpoints: Checkpoints,
    checkpoint_every: int | None = None,
    history_path: str | os.PathLike | None = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    verbose: str | int = "auto",
) -> None:
    """Trains with `model.fit` from the newest checkpoint on, to the last step.

    Args:
        model: compiled, in the scope of its strategy.
        batches: gives the endless batches from a step on; batch t must be a function of t.
        steps: to train in all.
        steps_per_epoch: after which `callbacks` see an epoch's end; the last epoch may be shorter.
        checkpoints: where the state is kept.
        checkpoint_every: steps between checkpoints inside an epoch; None for its end only.
        history_path: CSV file with a row for each epoch.
        callbacks: of Keras; they run before the history row and the checkpoint are written.
        verbose: as of `model.fit`.

    Raises:
        FloatingPointError: the loss is no longer finite; names the step.
    """
    step = checkpoints.restore(model)
    if step:
        logging.info("continuing from step %d of %d", step, steps)
    if history_path is not None:
        _trim_history(history_path, epochs=step // steps_per_epoch)
    while step < steps:
        epoch, done = divmod(step, steps_per_epoch)
        whole_epochs = steps // steps_per_epoch
        if done or epoch == whole_epochs:  # the rest of an epoch that was cut short
            last_epoch, count = epoch + 1, min(steps - epoch * steps_per_epoch, steps_per_epoch)
            count -= done
        else:
            last_epoch, count = whole_epochs, steps_per_epoch
        history = [keras.callbacks.CSVLogger(str(history_path), append=True)] * bool(history_path)
        model.fit(
            batches(step),
            initial_epoch=epoch,
            epochs=last_epoch,
            steps_per_epoch=count,
            verbose=verbose,
            # A shuffle of its own is what Keras would warn about, not what it does.
            shuffle=False,
            callbacks=[
                *callbacks,
                *history,
                _CheckpointEvery(checkpoints, step, checkpoint_every),
            ],
        )
        step += count * (last_epoch - epoch)


def _trim_history(path: str | os.PathLike, epochs: int) -> None:
    """Drops rows of epochs that are going to be trained again."""
    if not os.path.exists(path):
        return
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if int(row["epoch"]) < epochs]
        columns = reader.fieldnames or []
    if not rows:
        os.remove(path)
        return
    incomplete = f"{path}.incomplete"
    with open(incomplete, "w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(incomplete, path)
