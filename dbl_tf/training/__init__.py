"""Training that continues exactly where it stopped, on one or more devices. Requires TensorFlow."""

from dbl_tf.training.averaging import averaged_weights, use_averages
from dbl_tf.training.callbacks import (
    KeepBest,
    MeanAveragePrecisionCallback,
    TensorBoard,
    read_history,
)
from dbl_tf.training.checkpoints import Checkpoints
from dbl_tf.training.class_summaries import ClassSummaries
from dbl_tf.training.cluster import LostWorkerError, preparing_together, wait_for_all
from dbl_tf.training.distribution import (
    check_same_on_all,
    is_chief,
    make_strategy,
)
from dbl_tf.training.loop import ALL_ROWS, Batches, Share, fit
from dbl_tf.training.stopping import StoppedError, exiting_when_stopped

__all__ = [
    "ALL_ROWS",
    "Batches",
    "Checkpoints",
    "ClassSummaries",
    "KeepBest",
    "LostWorkerError",
    "MeanAveragePrecisionCallback",
    "Share",
    "StoppedError",
    "TensorBoard",
    "averaged_weights",
    "check_same_on_all",
    "exiting_when_stopped",
    "fit",
    "is_chief",
    "make_strategy",
    "preparing_together",
    "read_history",
    "use_averages",
    "wait_for_all",
]
