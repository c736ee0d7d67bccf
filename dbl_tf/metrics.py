"""Exact average precision by class and by group, and F1 at thresholds.

NumPy only. The values are those of scikit-learn's `average_precision_score` and
`precision_recall_fscore_support`, for all classes at once.
"""

import concurrent.futures
from collections.abc import Mapping
from typing import Any

import numpy as np

from dbl_tf.cores import usable_cores

# Of which a thread holds a copy, by class; a row of so many scores is a few lines of the cache.
_CLASSES_AT_ONCE = 16


def average_precision(labels: Any, scores: Any) -> np.ndarray:
    """Average precision of each class: the step-wise area under its precision-recall curve.

    `AP = Σ_k (R_k − R_(k−1)) P_k` over the distinct scores in falling order; examples of equal
    score share a threshold.

    Args:
        labels: multi-hot (N, C), zeros and ones.
        scores: (N, C), any numbers that rank, probabilities mostly.

    Returns:
        float64 (C,), NaN for a class without positives.

    Raises:
        ValueError: shapes that differ, labels other than 0 and 1, scores that are NaN.

    Example:

    >>> average_precision([[1], [0], [1]], [[0.9], [0.8], [0.7]]).round(4).tolist()
    [0.8333]
    """
    labels, scores = _checked(labels, scores)
    num_classes = labels.shape[1]
    result = np.empty(num_classes)

    def fill(start: int) -> None:
        # Rows of their own: a column of a wide matrix is far apart in memory, and sorts in place.
        columns = slice(start, start + _CLASSES_AT_ONCE)
        by_class = zip(labels[:, columns].T.copy(), scores[:, columns].T.copy(), strict=True)
        result[columns] = [_average_precision_of_class(*of_class) for of_class in by_class]

    # Sorting leaves the interpreter to other threads.
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as executor:
        for _ in executor.map(fill, range(0, num_classes, _CLASSES_AT_ONCE)):
            pass
    return result


def _average_precision_of_class(labels: np.ndarray, scores: np.ndarray) -> float:
    """Average precision from bool (N,) and scores (N,), which it sorts.

    A positive adds the precision at its own score to the sum, so that only the positives need a
    rank, and the values can be sorted without their order, which is several times faster.
    """
    positives = np.sort(scores[labels])
    if not len(positives):
        return np.nan
    scores.sort()
    # Of the examples and of the positives, those of at least that score.
    accepted = len(scores) - np.searchsorted(scores, positives)
    hits = len(positives) - np.searchsorted(positives, positives)
    return np.mean(hits / accepted)


def mean_average_precision(
    labels: Any, scores: Any, groups: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Mean of `average_precision` over all classes and over each group of classes.

    Args:
        labels: multi-hot (N, C).
        scores: (N, C).
        groups: class indices by name, as `LabelStatistics.groups` gives them.

    Returns:
        "total" and each group, fractions of 1. Classes without positives are left out; NaN where
        nothing is left.

    Raises:
        ValueError: as `average_precision`.
    """
    return mean_by_group(average_precision(labels, scores), groups)


def mean_by_group(per_class: np.ndarray, groups: Mapping[str, Any] | None) -> dict[str, float]:
    """Mean of the values that are not NaN, over all classes ("total") and over each group."""
    members = {"total": np.arange(len(per_class)), **(groups or {})}
    values = {name: per_class[np.asarray(index, int)] for name, index in members.items()}
    return {
        name: float(np.mean(group[~np.isnan(group)])) if (~np.isnan(group)).any() else float("nan")
        for name, group in values.items()
    }


def precision_recall_f1(
    labels: Any, scores: Any, thresholds: float | np.ndarray = 0.5
) -> dict[str, Any]:
    """Precision, recall and F1 of the predictions `scores >= thresholds`.

    Args:
        labels: multi-hot (N, C).
        scores: (N, C).
        thresholds: one for all classes, or (C,).

    Returns:
        "precision", "recall" and "f1", float64 (C,); and the floats "micro_f1", of all decisions
        pooled, and "macro_f1", the mean over the classes that have positives. A ratio without a
        denominator is 0.

    Raises:
        ValueError: as `average_precision`.
    """
    labels, scores = _checked(labels, scores)
    predicted = scores >= np.asarray(thresholds)
    true_positives = (predicted & labels).sum(axis=0)
    num_predicted, num_positives = predicted.sum(axis=0), labels.sum(axis=0)
    f1 = _ratio(2.0 * true_positives, num_predicted + num_positives)
    present = num_positives > 0
    return {
        "precision": _ratio(true_positives, num_predicted),
        "recall": _ratio(true_positives, num_positives),
        "f1": f1,
        "micro_f1": float(
            _ratio(2.0 * true_positives.sum(), num_predicted.sum() + num_positives.sum())
        ),
        "macro_f1": float(f1[present].mean()) if present.any() else 0.0,
    }


def best_f1_thresholds(labels: Any, scores: Any) -> np.ndarray:
    """The threshold of each class at which F1 is largest.

    Args:
        labels: multi-hot (N, C), of examples that the result is not judged on.
        scores: (N, C).

    Returns:
        float64 (C,): midway between the lowest score that is accepted and the next one below it;
        0.5 for a class without positives.

    Raises:
        ValueError: as `average_precision`.
    """
    labels, scores = _checked(labels, scores)
    thresholds = np.full(labels.shape[1], 0.5)
    for i in np.flatnonzero(labels.any(axis=0)):
        order = np.argsort(scores[:, i])[::-1]
        ranked = scores[order, i].astype(np.float64)
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        hits = np.cumsum(labels[order, i])[last]
        best = int(np.argmax(2.0 * hits / (last + 1.0 + hits[-1])))
        accepted = ranked[last[best]]
        below = ranked[last[best] + 1] if last[best] + 1 < len(ranked) else accepted
        thresholds[i] = (accepted + below) / 2.0
    return thresholds


def _checked(labels: Any, scores: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(
            f"labels and scores must both be of shape (N, C), got {labels.shape} and {scores.shape}"
        )
    if labels.dtype != bool:
        wrong = (labels != 0) & (labels != 1)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"labels must be 0 or 1, found {labels[row, column]} in row {row}, column {column}"
            )
    # The least of numbers with a NaN among them is NaN: no array is needed where there is none.
    if scores.size and np.isnan(scores.min()):
        missing = np.isnan(scores)
        row, column = np.argwhere(missing)[0]
        raise ValueError(
            f"scores hold {int(missing.sum())} NaN, the first in row {row}, column {column}: the "
            "model's output is not finite"
        )
    return labels.astype(bool, copy=False), scores


def _ratio(numerator: Any, denominator: Any) -> np.ndarray:
    denominator = np.asarray(denominator)
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)
