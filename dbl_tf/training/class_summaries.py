"""The average precision of single labels and of their groups in TensorBoard, epoch by epoch."""

import os
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dbl_tf.statistics import LabelStatistics
from dbl_tf.training.callbacks import MeanAveragePrecisionCallback

MAX_CLASSES = 50


def spread_over_counts(class_counts: np.ndarray, number: int) -> np.ndarray:
    """Chooses classes from the most frequent to the rarest, evenly spaced by rank.

    Args:
        class_counts: the numbers of examples, (C,).
        number: the most classes to choose.

    Returns:
        The indices of the classes, the most frequent first, (min(C, number),).

    Example:

    >>> spread_over_counts(np.array([5, 50, 1, 20, 10]), 3).tolist()
    [1, 4, 2]
    """
    by_count = np.argsort(-np.asarray(class_counts), kind="stable")
    ranks = np.linspace(0, len(by_count) - 1, min(len(by_count), number))
    return by_count[ranks.round().astype(int)]


class ClassSummaries(keras.callbacks.Callback):
    """Logs the AP of single classes and the mean AP of head, medium and tail for TensorBoard.

    Place it behind the callback that computes the AP, and behind `TensorBoard` with the same folder
    if the training may be killed: that one drops the epochs that are trained again.

    Args:
        log_dir: the folder of the log; the events are written to `classes/` in it.
        scores: the callback that computes the AP of each epoch.
        statistics: the statistics of the training labels, with names and groups of the classes.
        max_classes: the most classes to log one by one. Of more, it is so many, evenly spaced from
            the most frequent to the rarest.
    """

    def __init__(
        self,
        log_dir: str | os.PathLike,
        scores: MeanAveragePrecisionCallback,
        statistics: LabelStatistics,
        max_classes: int = MAX_CLASSES,
    ):
        super().__init__()
        self._folder = pathlib.Path(log_dir, "classes")
        self._scores, self._statistics = scores, statistics
        self._shown = spread_over_counts(statistics.class_counts, max_classes)
        self._writer: tf.summary.SummaryWriter | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the AP of the epoch to disk. A class without positives has none."""
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self._folder))
        per_class, names = self._scores.average_precision, self._statistics.class_names
        values = {
            f"AP of groups/{group}": value
            for group, value in self._scores.means(self._statistics.groups).items()
        }
        values |= {f"AP of labels/{names[i]}": per_class[i] for i in self._shown}
        with self._writer.as_default(step=epoch):
            for tag, value in values.items():
                if not np.isnan(value):
                    tf.summary.scalar(tag, value)
        self._writer.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
