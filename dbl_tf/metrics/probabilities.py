"""Scores of probabilities: log loss, Brier score and expected calibration error."""

import functools
from typing import Any

import numpy as np

from dbl_tf.metrics.arrays import checked, mean_of_known, over_classes, over_decisions, place

# The usual number of bins of an expected calibration error.
_CALIBRATION_BINS = 15


def log_loss(labels: Any, probabilities: Any) -> float:
    """Computes the mean of −log of the probability of what is true, over all N·C decisions.

    Probabilities of 0 and 1 are moved into (0, 1) by the spacing of float64, so that a certain
    error costs about 36 and not infinitely much.

    Args:
        labels: see `average_precision`.
        probabilities: probabilities (N, C), in [0, 1].

    Raises:
        ValueError: see `average_precision`; or a probability is outside [0, 1].
    """
    return float(over_decisions(log_loss_by_class(labels, probabilities), labels))


def log_loss_by_class(labels: Any, probabilities: Any) -> np.ndarray:
    """Computes the `log_loss` of each class, over its N decisions, float64 (C,)."""
    return over_classes(log_loss_of_classes, *checked_probabilities(labels, probabilities))


def log_loss_of_classes(
    labels: np.ndarray, probabilities: np.ndarray, known: np.ndarray | None
) -> np.ndarray:
    """Computes the log loss of each row of a block (block, N); see `arrays.over_classes`."""
    of_truth = np.where(labels, probabilities, 1 - probabilities.astype(np.float64))
    smallest = np.finfo(np.float64).eps
    return mean_of_known(-np.log(of_truth.clip(smallest, 1 - smallest)), known)


def brier_score(labels: Any, probabilities: Any) -> float:
    """Computes the mean squared difference of probability and label, over all N·C decisions.

    Args:
        labels: see `log_loss`.
        probabilities: see `log_loss`.

    Raises:
        ValueError: see `log_loss`.
    """
    return float(over_decisions(brier_score_by_class(labels, probabilities), labels))


def brier_score_by_class(labels: Any, probabilities: Any) -> np.ndarray:
    """Computes the `brier_score` of each class, over its N decisions, float64 (C,)."""
    return over_classes(brier_score_of_classes, *checked_probabilities(labels, probabilities))


def brier_score_of_classes(
    labels: np.ndarray, probabilities: np.ndarray, known: np.ndarray | None
) -> np.ndarray:
    """Computes the Brier score of each row of a block (block, N); see `arrays.over_classes`."""
    return mean_of_known((probabilities.astype(np.float64) - labels) ** 2, known)


def expected_calibration_error(
    labels: Any, probabilities: Any, num_bins: int = _CALIBRATION_BINS
) -> float:
    """Computes how far probabilities are from the shares of labels that come true.

    All N·C decisions are put into bins of equal width by their probability (Naeini et al., AAAI
    2015); 15 of them are usual (Guo et al., ICML 2017). A bin holds its lower end, and the last one
    holds 1 too. The error is the mean over the decisions of |mean probability − share of positives|
    of their bin.

    Args:
        labels: see `log_loss`.
        probabilities: see `log_loss`.
        num_bins: the number of bins.

    Raises:
        ValueError: see `log_loss`.
    """
    return pooled_calibration_error(_mean_excess_by_bin(labels, probabilities, num_bins), labels)


def expected_calibration_error_by_class(
    labels: Any, probabilities: Any, num_bins: int = _CALIBRATION_BINS
) -> np.ndarray:
    """Computes the `expected_calibration_error` of each class, float64 (C,).

    Each class has bins of its own. Errors of opposite signs, which cancel out in a bin of all
    classes, do not cancel out here.
    """
    return np.abs(_mean_excess_by_bin(labels, probabilities, num_bins)).sum(axis=1)


def pooled_calibration_error(mean_excess: np.ndarray, labels: Any) -> float:
    """Computes the calibration error of all decisions from the means of each class (C, bins)."""
    return float(np.abs(over_decisions(mean_excess, labels)).sum())


def _mean_excess_by_bin(labels: Any, probabilities: Any, num_bins: int) -> np.ndarray:
    """The sum over each bin of `probability − label`, per example, float64 (C, num_bins)."""

    of_classes = functools.partial(mean_excess_of_classes, num_bins=num_bins)
    return over_classes(of_classes, *checked_probabilities(labels, probabilities))


def calibration_bins(probabilities: np.ndarray, num_bins: int = _CALIBRATION_BINS) -> np.ndarray:
    """Returns the position of the bin of each probability; see `expected_calibration_error`."""
    return np.minimum((probabilities * num_bins).astype(np.int64), num_bins - 1)


def mean_excess_of_classes(
    labels: np.ndarray,
    probabilities: np.ndarray,
    known: np.ndarray | None,
    num_bins: int = _CALIBRATION_BINS,
) -> np.ndarray:
    """Computes the sum over each bin of `probability − label`, per example, of each row."""
    probabilities = probabilities.astype(np.float64)
    bins = calibration_bins(probabilities, num_bins)
    bins += num_bins * np.arange(len(labels))[:, None]
    excess, num_known = probabilities - labels, labels.shape[1]
    if known is not None:
        excess, num_known = excess * known, np.count_nonzero(known, axis=1)[:, None]
    sums = np.bincount(bins.ravel(), excess.ravel(), minlength=num_bins * len(labels))
    with np.errstate(invalid="ignore"):
        return sums.reshape(len(labels), num_bins) / num_known


def probability_scores(labels: Any, probabilities: Any) -> dict[str, float]:
    """Computes the three scores of probabilities, by the names that they have in `metrics.json`.

    Args:
        labels: see `log_loss`.
        probabilities: see `log_loss`.

    Raises:
        ValueError: see `log_loss`.
    """
    return {
        "log_loss": log_loss(labels, probabilities),
        "brier_score": brier_score(labels, probabilities),
        "calibration_error": expected_calibration_error(labels, probabilities),
    }


def checked_probabilities(
    labels: Any, probabilities: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns what `arrays.checked` does, for scores that must lie in [0, 1]."""
    labels, probabilities, known = checked(labels, probabilities)
    if probabilities.size and (probabilities.min() < 0 or probabilities.max() > 1):
        index = tuple(np.argwhere((probabilities < 0) | (probabilities > 1))[0])
        raise ValueError(
            f"probabilities must be in [0, 1], got {probabilities[index]} in {place(index)}"
        )
    return labels, probabilities, known
