"""Callbacks: `val_map`, the best weights, and histories that survive a killed process."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from dbl_tf import atomic, keras_internals, metrics, saved_csv
from dbl_tf.prediction import predict
from dbl_tf.training.averaging import averaged_weights
from dbl_tf.training.checkpoints import load_arrays, load_numbers, save_arrays


class History(keras.callbacks.Callback):
    """Writes a CSV file with a row for each epoch.

    Args:
        path: the file. If it exists, it is continued.
        epochs: the number of epochs that are finished. Rows of later ones are dropped, since these
            epochs are trained again.

    Raises:
        ValueError: the file is no such history, or lacks a finished epoch. The message names it.
    """

    def __init__(self, path: str | os.PathLike, epochs: int):
        super().__init__()
        self._path = path
        self._rows: list[dict[str, Any]] = []
        if os.path.exists(path):
            self._rows = [row for row in read_history(path) if int(row["epoch"]) < epochs]
            if len(self._rows) < epochs:
                raise ValueError(
                    f"{os.fspath(path)} has {len(self._rows)} rows of the {epochs} epochs that are "
                    "finished; restore it, or remove it to continue without them"
                )
        elif epochs:
            logging.warning(
                "there is no %s; its rows of the %s epochs that are finished will be empty",
                path,
                f"{epochs:,}",
            )
            self._rows = [{"epoch": epoch} for epoch in range(epochs)]

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Appends the row of an epoch and writes the file."""
        self._rows.append({"epoch": epoch, **logs})
        saved_csv.write(self._rows, self._path)


def read_history(path: str | os.PathLike) -> list[dict[str, str]]:
    """Reads the rows that `History` wrote, as text by the names of their columns.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else, or was changed. The message names file and line.
    """
    try:
        rows = saved_csv.read(path, ["epoch"])
        for epoch, row in enumerate(rows):
            for name, value in row.items():
                _check_number(value, f"line {epoch + 2}, column {name}")
            if row["epoch"] != str(epoch):
                raise ValueError(
                    f"line {epoch + 2} is of epoch {row['epoch']!r} where {epoch} should follow"
                )
        return rows
    except ValueError as error:
        raise ValueError(
            f"{os.fspath(path)} is no history of a training: {error}; restore or remove it"
        ) from error


def _check_number(text: str, place: str) -> None:
    try:
        float(text or "nan")
    except ValueError:
        raise ValueError(f"{place}: {text!r} is no number") from None


# The folders of a log that have summaries of epochs: two of Keras, and that of `ClassSummaries`.
_EPOCH_FOLDERS = ("train", "validation", "classes")


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's TensorBoard callback, whose log holds every epoch once even if the run is killed."""

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Drops the epochs that will be trained again."""
        for name in _EPOCH_FOLDERS:
            _keep_epochs_before(self.params["initial_epoch"], pathlib.Path(self.log_dir, name))
        super().on_train_begin(logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Logs the batch, if `update_freq` asks for batches."""
        # Keras prepares the summary of every batch, and drops it where epochs alone are logged.
        super().on_train_batch_end(batch, None if self.update_freq == "epoch" else logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Writes the epoch to disk before a checkpoint records it as done."""
        super().on_epoch_end(epoch, logs)
        keras_internals.flush_event_files(self)


def _keep_epochs_before(epoch: int, folder: pathlib.Path) -> None:
    """Merges the event files of a folder into one, without the epochs from this one on."""
    paths = sorted(folder.glob("*tfevents*"))
    # A process that was killed in this function leaves records in two files; they are kept once.
    records: dict[bytes, None] = {}
    for path in paths:
        with contextlib.suppress(tf.errors.DataLossError):  # cut off when a process was killed
            for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
                event = tf.compat.v1.Event.FromString(record)
                if event.HasField("summary") and event.step < epoch:
                    records[record] = None
    if records:
        version = tf.compat.v1.Event(wall_time=time.time(), file_version="brain.Event:2")
        with atomic.replacing(paths[0]) as tmp_path, tf.io.TFRecordWriter(str(tmp_path)) as writer:
            for record in (version.SerializeToString(), *records):
                writer.write(record)
    for path in paths[1 if records else 0 :]:
        path.unlink()


class MeanAveragePrecisionCallback(keras.callbacks.Callback):
    """Adds the exact mAP of a split to the logs of each epoch, as `val_map`.

    Place it before the callbacks that read `val_map` (`CSVLogger`, `ModelCheckpoint`, …). The
    predictions are collected on the host in the order of the examples, so the value is right under
    any strategy. Where the optimizer keeps a moving average of the weights, it is the average that
    is judged.

    Args:
        batches: the inputs of the split, in the order of `labels`.
        labels: multi-hot labels (N, C), with −1 or NaN for those that are not known.
        name: the name of the log entry.
        verbose: as in `model.predict`.

    Attributes:
        average_precision: the AP of each class (C,) in the epoch that ended last, NaN for classes
            without positives; all NaN before.
    """

    def __init__(
        self, batches: tf.data.Dataset, labels: Any, name: str = "val_map", verbose: int = 0
    ):
        super().__init__()
        self.batches, self.labels, self.name, self.verbose = batches, labels, name, verbose
        self.average_precision = np.full(np.shape(labels)[1], np.nan)

    def means(self, groups: Mapping[str, Any] | None = None) -> dict[str, float]:
        """Returns the mean AP of the epoch over all classes ("total") and over each group."""
        return metrics.mean_by_group(self.average_precision, groups)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Predicts the split and adds its mAP to `logs`."""
        with averaged_weights(self.model):
            probabilities = predict(self.model, self.batches, self.verbose)
        self.average_precision = metrics.average_precision(self.labels, probabilities)
        logs[self.name] = self.means()["total"]


class KeepBest(keras.callbacks.Callback):
    """Keeps the weights of the epoch with the highest score in a file, and may stop the training.

    Of epochs with equal scores the first is kept. Place it behind the callback that adds the score
    to the logs. Where the optimizer keeps a moving average of the weights, the average is kept. A
    training that was killed goes on with the file that it left, and ends with the same weights as
    one that was not.

    Args:
        path: the `.npz` file of the best weights.
        monitor: the name of the score in the logs; larger is better.
        patience: the number of epochs without a higher score after which the training stops; None
            does not stop it.
    """

    def __init__(
        self, path: str | os.PathLike, monitor: str = "val_map", patience: int | None = None
    ):
        super().__init__()
        self.path, self.monitor, self.patience = pathlib.Path(path), monitor, patience
        self.best_score, self.best_epoch = -np.inf, -1

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Reads which epoch is the best so far, and stops if that was too long ago."""
        if self.path.exists() or self.params["initial_epoch"]:
            with self._naming_remedy():
                best = load_numbers(self.path, ["score", "epoch"])
                self.best_score, self.best_epoch = best["score"], int(best["epoch"])
        self._stop_if_over(self.params["initial_epoch"] - 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Writes the weights if their score is the highest, and may stop the training."""
        score = logs[self.monitor]
        # A score is not a number where no class has a positive; any other is better than that.
        if score > self.best_score or self.best_score == -np.inf:
            self.best_score = -np.inf if np.isnan(score) else float(score)
            self.best_epoch = epoch
            with averaged_weights(self.model):
                values = self.model.get_weights()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_arrays(self.path, values, score=self.best_score, epoch=epoch)
        self._stop_if_over(epoch)

    def _stop_if_over(self, epoch: int) -> None:
        if self.patience and self.best_epoch >= 0 and epoch - self.best_epoch >= self.patience:
            self.model.stop_training = True

    def restore(self, model: keras.Model) -> int:
        """Gives a model the weights that were kept.

        Args:
            model: a model of the same structure as the one that was trained.

        Returns:
            The epoch that they are of, counted from 0.

        Raises:
            ValueError: the file is not there, damaged, or of another model.
        """
        with self._naming_remedy():
            best = load_numbers(self.path, ["epoch"])
            model.set_weights(load_arrays(self.path))
        return int(best["epoch"])

    @contextlib.contextmanager
    def _naming_remedy(self) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, OverflowError, ValueError) as error:
            raise ValueError(
                f"the best weights, {self.path}, cannot be read: {error}. Remove the checkpoints "
                "of the run to train it again"
            ) from error
