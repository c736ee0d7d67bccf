"""Areas under ROC curves, the ranking loss and the coverage."""

import math
from typing import Any

import numpy as np

from dbl_tf.metrics.arrays import checked, over_examples, over_ranked_classes, rank_scores, ratio


def area_under_roc(labels: Any, scores: Any) -> np.ndarray:
    """Computes the area under the ROC curve of each class.

    That is the probability that a positive scores higher than a negative, where equal scores count
    half.

    Args:
        labels: see `average_precision`.
        scores: see `average_precision`.

    Returns:
        The areas, float64 (C,); NaN for a class without positives or without negatives.

    Raises:
        ValueError: see `average_precision`.

    Example:

    >>> area_under_roc([[1], [0], [1]], [[0.9], [0.8], [0.7]]).tolist()
    [0.5]
    """
    return over_ranked_classes(labels, scores, area_under_roc_of_ranked)[:, 0]


def micro_area_under_roc(labels: Any, scores: Any) -> float:
    """Computes the area under the ROC curve of all N·C decisions together.

    Args:
        labels: see `average_precision`.
        scores: see `average_precision`.

    Returns:
        The area; NaN if all labels are equal.

    Raises:
        ValueError: see `average_precision`.
    """
    labels, scores, known = checked(labels, scores)
    if known is not None:
        return area_under_roc_of_ranked(*rank_scores(labels[known], scores[known]))
    return area_under_roc_of_ranked(*rank_scores(labels.ravel(), scores.flatten()))


def area_under_roc_of_ranked(positives: np.ndarray, scores: np.ndarray) -> float:
    """Computes the area under the ROC curve from the results of `rank_scores`."""
    num_positives, num_negatives = len(positives), len(scores) - len(positives)
    if not (num_positives and num_negatives):
        return math.nan
    # Twice the number of examples below each positive, with half of those that are equal. Pairs of
    # two positives add up to the square of their number.
    below = np.searchsorted(scores, positives) + np.searchsorted(scores, positives, side="right")
    twice = int(below.sum()) - num_positives**2
    return twice / (2 * num_positives * num_negatives)


def ranking_loss(labels: Any, scores: Any) -> float:
    """Computes the share of pairs of labels of an example that are ranked wrongly, on average.

    A pair of a positive and a negative is wrong unless the positive scores higher. An example
    without positives or without negatives has no pairs and counts as 0.

    Args:
        labels: see `average_precision`.
        scores: see `average_precision`.

    Returns:
        The mean over the N examples; NaN if there are none.

    Raises:
        ValueError: see `average_precision`.

    Example:

    >>> ranking_loss([[1, 0, 0], [0, 0, 1]], [[0.9, 0.5, 0.1], [0.5, 0.9, 0.5]])
    0.5
    """
    return ranking_scores(labels, scores)["ranking_loss"]


def coverage(labels: Any, scores: Any) -> float:
    """Computes how many of the highest labels contain all that an example has, on average.

    Labels that score as high as the lowest positive are counted. An example without positives
    counts as 0.

    Args:
        labels: see `average_precision`.
        scores: see `average_precision`.

    Returns:
        The mean over the N examples, at most C; NaN if there are none.

    Raises:
        ValueError: see `average_precision`.

    Example:

    >>> coverage([[1, 0, 0], [1, 0, 1]], [[0.9, 0.5, 0.1], [0.5, 0.9, 0.3]])
    2.0
    """
    return ranking_scores(labels, scores)["coverage"]


def ranking_scores(labels: Any, scores: Any) -> dict[str, float]:
    """The ranking loss and the coverage, which need the ranks of the same positives."""
    labels, scores, known = checked(labels, scores)
    if not len(labels):
        return {"ranking_loss": math.nan, "coverage": math.nan}
    loss, depth = over_examples(_ranking_of_rows, labels, scores, known).mean(axis=0)
    return {"ranking_loss": float(loss), "coverage": float(depth)}


def _ranking_of_rows(
    labels: np.ndarray, scores: np.ndarray, known: np.ndarray | None
) -> np.ndarray:
    """The ranking loss and the coverage of each example, float64 (n, 2)."""
    num_rows, num_classes = labels.shape
    num_known: Any = num_classes
    row = np.nonzero(labels)[0]
    values = scores[labels]
    if known is not None:  # the unknown labels come first, where no search begins
        num_known = np.count_nonzero(known, axis=1)
        scores = np.where(known, scores, -np.inf)
    # How many labels of the row score at least as high as each positive, and how many positives.
    ends = num_classes * (1 + row)
    starts = ends - (num_known if known is None else num_known[row])
    ordered = np.sort(scores, axis=1).ravel()
    accepted = ends - _first_at_least(ordered, starts, ends, values)
    num_positives = labels.sum(axis=1)
    last = np.cumsum(num_positives)
    ordered = values[np.lexsort((values, row))]
    hits = last[row] - _first_at_least(ordered, (last - num_positives)[row], last[row], values)
    wrong = np.bincount(row, accepted - hits, minlength=num_rows)
    num_pairs = num_positives * (num_known - num_positives)
    depth = np.zeros(num_rows)
    has_positive = num_positives > 0
    if has_positive.any():
        depth[has_positive] = np.maximum.reduceat(accepted, (last - num_positives)[has_positive])
    return np.stack([ratio(wrong, num_pairs), depth], axis=1)


def _first_at_least(
    ordered: np.ndarray, start: np.ndarray, end: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """The first position in `ordered[start:end]`, which rises, that is at least the value.

    `np.searchsorted` for many arrays at once, which lie one behind the other.
    """
    low, high = start.copy(), end.copy()
    while (is_open := low < high).any():
        middle = np.where(is_open, (low + high) // 2, 0)
        is_below = ordered[middle] < values
        low = np.where(is_open & is_below, middle + 1, low)
        high = np.where(is_open & ~is_below, middle, high)
    return low
