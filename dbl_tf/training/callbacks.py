"""Callbacks: the history and TensorBoard of a run that may be killed, and `val_map`."""

import contextlib
import csv
import os
import pathlib
import time
from typing import Any

import keras
import tensorflow as tf

from dbl_tf import atomic, metrics
from dbl_tf.prediction import predict


class History(keras.callbacks.Callback):
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
        """Appends the row of the epoch and writes the file."""
        self._rows.append({"epoch": epoch, **logs})
        columns = dict.fromkeys(name for row in self._rows for name in row)
        with (
            atomic.replacing(self._path) as beside,
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
        with atomic.replacing(paths[0]) as beside, tf.io.TFRecordWriter(str(beside)) as writer:
            for record in (version.SerializeToString(), *records):
                writer.write(record)
    for path in paths[1 if records else 0 :]:
        path.unlink()


class MeanAveragePrecisionCallback(keras.callbacks.Callback):
    """Puts the exact mAP of a split into the logs of each epoch, as `val_map`.

    Stands before the callbacks that read it (`CSVLogger`, `ModelCheckpoint`, …). Predictions are
    gathered on the host in their order, so it is right under any strategy.

    Args:
        batches: images of the split, in the order of `labels`.
        labels: multi-hot (N, C).
        name: of the log entry.
        verbose: as of `model.predict`.
    """

    def __init__(
        self, batches: tf.data.Dataset, labels: Any, name: str = "val_map", verbose: int = 0
    ):
        super().__init__()
        self.batches, self.labels, self.name, self.verbose = batches, labels, name, verbose

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Predicts the split and adds its mAP to `logs`."""
        probabilities = predict(self.model, self.batches, self.verbose)
        logs[self.name] = metrics.mean_average_precision(self.labels, probabilities)["total"]
