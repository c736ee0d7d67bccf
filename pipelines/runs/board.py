"""What TensorBoard shows of the end of a run: curves, the worst images, settings and scores."""

import pathlib
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.hparams import api as hparams
from tensorboard.plugins.hparams import summary as hparams_summary
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.pr_curve import summary as pr_curves

from dbl_tf import label_values
from dbl_tf.training.class_summaries import MAX_CLASSES, spread_over_counts
from pipelines.runs import report
from pipelines.runs.config import ResolvedConfig
from pipelines.runs.scores import EvaluationResult
from pipelines.runs.tracking import flat_scores

NUM_WORST = 16
# The plugin places them evenly in [0, 1], where the decisions on rare classes are close to 0.
_NUM_THRESHOLDS = 1001
_LARGEST_LOSS = 100.0


def write(result: EvaluationResult, config: ResolvedConfig, log_dir: pathlib.Path) -> None:
    """Writes the test split's part of the log, `test/`, in place of an earlier one.

    It has the precision-recall curves of at most `MAX_CLASSES` classes; the `NUM_WORST` images with
    the highest log loss, with their labels; and, for the page of hyper-parameters, the settings of
    the run with its scores. The curves count decisions at thresholds 0.001 apart; `metrics.json`
    has exact ones.

    Args:
        result: the predictions of the test split and their scores.
        config: the configuration of the run.
        log_dir: the `tensorboard/` of the run.
    """
    folder = log_dir / "test"
    for path in folder.glob("*tfevents*"):
        path.unlink()
    writer = tf.summary.create_file_writer(str(folder))
    labels = result.test.targets.toarray()
    with writer.as_default(step=0):
        _write_settings(config, result.scores)
        _write_curves(labels, result)
        if result.test.features is None:
            _write_worst_images(labels, result)
    writer.close()


def _write_settings(config: ResolvedConfig, scores: dict[str, Any]) -> None:
    values = {
        name: value if isinstance(value, bool | int | float | str) else str(value)
        for name, value in config.flat().items()
        if value is not None
    }
    hparams.hparams(values, trial_id=pathlib.Path(config.run_dir).name)
    for name, value in flat_scores(scores):
        tf.summary.scalar(name, value)
    _write_proto(hparams_summary.session_end_pb(Status.STATUS_SUCCESS))


def _write_curves(labels: np.ndarray, result: EvaluationResult) -> None:
    statistics = result.statistics
    for i in spread_over_counts(statistics.class_counts, MAX_CLASSES):
        known = ~label_values.is_unknown(labels[:, i])
        if (labels[known, i] == 1).any():
            curve = pr_curves.pb(
                f"labels/{statistics.class_names[i]}",
                labels[known, i] == 1,
                result.probabilities[known, i],
                num_thresholds=_NUM_THRESHOLDS,
            )
            _write_proto(curve)


def _write_worst_images(labels: np.ndarray, result: EvaluationResult) -> None:
    loss = image_losses(labels, result.probabilities)
    worst = np.argsort(-loss, kind="stable")[:NUM_WORST]
    names = np.array(result.class_names, object)
    read_images = report.images_reader(result.test)
    assert read_images is not None  # the examples are images
    in_order = np.sort(worst).tolist()  # a stream of images is read in its own order
    pictures = dict(zip(in_order, read_images(in_order), strict=True))
    for rank, position in enumerate(worst.tolist(), start=1):
        given = result.probabilities[position] >= result.thresholds.values
        has = labels[position] == 1
        tf.summary.image(
            f"worst images/{rank:02d}",
            pictures[position][None],
            description=(
                f"{result.test.names[position]}: log loss {loss[position]:.3f}; labels "
                f"{', '.join(names[has]) or 'none'}; given {', '.join(names[given]) or 'none'}"
            ),
        )


def image_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns the mean log loss of each image over the labels that are known of it, (N,).

    Args:
        labels: multi-hot labels (N, C), with −1 or NaN for unknown ones.
        probabilities: the probabilities, (N, C).
    """
    known = ~label_values.is_unknown(labels)
    of_truth = np.where(labels == 1, probabilities, 1 - probabilities.astype(np.float64))
    with np.errstate(divide="ignore"):
        loss = np.minimum(-np.log(of_truth), _LARGEST_LOSS)
    return np.where(known, loss, 0).sum(1) / np.maximum(known.sum(1), 1)


def _write_proto(summary: Any) -> None:
    tf.summary.experimental.write_raw_pb(summary.SerializeToString())
