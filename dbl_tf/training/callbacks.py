"""Callbacks: history and TensorBoard logs that survive a killed process, and `val_map`."""

import contextlib
import csv
import os
import pathlib
import time
from typing import Any

import keras
import tensorflow as tf

from dbl_tf import atomic, keras_internals, metrics
from dbl_tf.prediction import predict


class History(keras.callbacks.Callback):
    """Writes a CSV file with a row for each epoch.

    Args:
        path: the file. If it exists, it is continued.
        epochs: the number of epochs that are finished. Rows of later ones are dropped, since these
            epochs are trained again.
    """

    def __init__(self, path: str | os.PathLike, epochs: int):
        super().__init__()
        self._path = path
        self._rows: list[dict[str, Any]] = []
        if os.path.exists(path):
            with open(path, newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            self._rows = [row for row in rows if int(row["epoch"]) < epochs]

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Appends the row of an epoch and writes the file."""
        self._rows.append({"epoch": epoch, **logs})
        columns = dict.fromkeys(name for row in self._rows for name in row)
        with (
            atomic.replacing(self._path) as tmp_path,
            open(tmp_path, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self._rows)


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's TensorBoard callback, whose log holds every epoch once even if the run is killed."""

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        """Drops the epochs that will be trained again."""
        for folder in pathlib.Path(self.log_dir).glob("*/"):
            _keep_epochs_before(self.params["initial_epoch"], folder)
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
    any strategy.

    Args:
        batches: the inputs of the split, in the order of `labels`.
        labels: multi-hot labels (N, C).
        name: the name of the log entry.
        verbose: as in `model.predict`.
    """

    def __init__(
        self, batches: tf.data.Dataset, labels: Any, name: str = "val_map", verbose: int = 0
    ):
        super().__init__()
        self.batches, self.labels, self.name, self.verbose = batches, labels, name, verbose

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Predicts the split and adds its mAP to `logs`."""
        probabilities = predict(self.model, self.batches, self.verbose)
        logs[self.name] = metrics.mean_average_precision(self.labels, probabilities)["total"]
