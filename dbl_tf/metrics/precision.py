"""Average precision, precision-recall curves, and decisions at thresholds and at top k."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from dbl_tf.metrics.arrays import checked, over_examples, over_ranked_classes, ratio
from dbl_tf.statistics import GROUP_NAMES

# The means that are reported, in the order shown.
TOTAL_AND_GROUPS = ("total", *GROUP_NAMES)
# The number of labels that are given to each example in the usual scores "at top 3".
TOP = 3


def average_precision(labels: Any, scores: Any) -> np.ndarray:
    """Computes average precision, the step-wise area under the precision-recall curve of a class.

    `AP = Σ_k (R_k − R_(k−1)) P_k` over the distinct scores in falling order; examples with the same
    score share a threshold.

    Args:
        labels: the labels, multi-hot (N, C), with −1 or NaN for those that are not known.
        scores: numbers that rank the examples, (N, C), usually probabilities.

    Returns:
        The average precision of each class, float64 (C,); NaN for a class without positives.

    Raises:
        ValueError: the shapes differ, a label is neither 0 nor 1 nor unknown, or a score is NaN.

    Example:

    >>> average_precision([[1], [0], [1]], [[0.9], [0.8], [0.7]]).round(4).tolist()
    [0.8333]
    """
    return over_ranked_classes(labels, scores, average_precision_of_ranked)[:, 0]


def average_precision_of_ranked(positives: np.ndarray, scores: np.ndarray) -> float:
    """Computes average precision, to which each positive adds the precision at its own score."""
    if not len(positives):
        return math.nan
    # How many examples, and how many positives, score at least as high as each positive.
    accepted = len(scores) - np.searchsorted(scores, positives)
    hits = len(positives) - np.searchsorted(positives, positives)
    return float(np.mean(hits / accepted))


def mean_average_precision(
    labels: Any, scores: Any, groups: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Computes the mean of `average_precision` over all classes and over each group of classes.

    Args:
        labels: see `average_precision`.
        scores: see `average_precision`.
        groups: the indices of classes by group, such as `LabelStatistics.groups`.

    Returns:
        The means as fractions of 1, for "total" and each group. Classes without positives are left
        out; a mean over no class is NaN.

    Raises:
        ValueError: see `average_precision`.
    """
    return mean_by_group(average_precision(labels, scores), groups)


def mean_by_group(per_class: np.ndarray, groups: Mapping[str, Any] | None) -> dict[str, float]:
    """Computes the means of the values except NaN, over all classes ("total") and each group."""
    members = {"total": np.arange(len(per_class)), **(groups or {})}
    values = {name: per_class[np.asarray(index, int)] for name, index in members.items()}
    return {
        name: float(np.mean(group[~np.isnan(group)])) if (~np.isnan(group)).any() else math.nan
        for name, group in values.items()
    }


@dataclasses.dataclass(frozen=True, eq=False)
class PrecisionRecallCurve:
    """The precision-recall curve of one class.

    It has K points, one for each distinct score, from the highest score to the lowest.

    Attributes:
        thresholds: the thresholds, float64 (K,), falling; the decision is `score >= threshold`.
        num_accepted: the numbers of examples that score at least the threshold, int (K,).
        num_hits: the numbers of positives among these, int (K,).
    """

    thresholds: np.ndarray
    num_accepted: np.ndarray
    num_hits: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """The share of the accepted examples that are positives, float64 (K,)."""
        return self.num_hits / self.num_accepted

    @property
    def recall(self) -> np.ndarray:
        """The share of the positives that are accepted, float64 (K,); it ends at 1."""
        return self.num_hits / self.num_hits[-1]

    @property
    def f1(self) -> np.ndarray:
        """The harmonic mean of precision and recall, float64 (K,)."""
        return 2.0 * self.num_hits / (self.num_accepted + self.num_hits[-1])


def precision_recall_curve(labels: Any, scores: Any) -> PrecisionRecallCurve:
    """Computes the precision-recall curve of one class.

    The area under the steps that end at its points, `Σ_k (R_k − R_(k−1)) P_k`, is the
    `average_precision`. Unlike scikit-learn's function of the same name, the points go from the
    highest score to the lowest, without an extra point at recall 0.

    Args:
        labels: the labels, zeros and ones (N,), of which at least one is 1. Unknown ones are left
            out.
        scores: numbers that rank the examples, (N,).

    Raises:
        ValueError: the shapes differ, a label is neither 0 nor 1, there are no positives, or a
            score is NaN.

    Example:

    >>> curve = precision_recall_curve([1, 0, 1, 0], [0.9, 0.7, 0.7, 0.2])
    >>> curve.thresholds.tolist(), curve.recall.tolist()
    ([0.9, 0.7, 0.2], [0.5, 1.0, 1.0])
    """
    labels, scores, known = checked(labels, scores, num_dimensions=1)
    if known is not None:
        labels, scores = labels[known], scores[known]
    if not labels.any():
        raise ValueError("a class without positives has no precision-recall curve")
    # Sorting without the order is several times faster, and only the positives need a place.
    ordered = np.sort(scores)
    first = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    thresholds = ordered[first]
    num_hits = np.bincount(np.searchsorted(thresholds, scores[labels]), minlength=len(first))
    return PrecisionRecallCurve(
        thresholds[::-1].astype(np.float64),
        len(ordered) - first[::-1],
        np.cumsum(num_hits[::-1]),
    )


def precision_recall_f1(
    labels: Any, scores: Any, thresholds: float | np.ndarray = 0.5
) -> dict[str, Any]:
    """Computes precision, recall and F1 of the decisions `scores >= thresholds`.

    Args:
        labels: see `average_precision`.
        scores: see `average_precision`.
        thresholds: one threshold for all classes, or one for each, (C,).

    Returns:
        "precision", "recall" and "f1", float64 (C,); "micro_f1", a float over all decisions pooled;
        and "macro_f1", the mean over the classes with positives. A ratio whose denominator is zero
        is 0. Also the six numbers of `top_k_scores`.

    Raises:
        ValueError: see `average_precision`.
    """
    labels, scores, known = checked(labels, scores)
    accepted = scores >= np.asarray(thresholds)
    if known is not None:
        accepted &= known
    num_hits = (accepted & labels).sum(axis=0)
    num_accepted, num_positives = accepted.sum(axis=0), labels.sum(axis=0)
    f1 = ratio(2.0 * num_hits, num_accepted + num_positives)
    present = num_positives > 0
    return {
        "precision": ratio(num_hits, num_accepted),
        "recall": ratio(num_hits, num_positives),
        "f1": f1,
        "micro_f1": float(ratio(2.0 * num_hits.sum(), num_accepted.sum() + num_positives.sum())),
        "macro_f1": float(f1[present].mean()) if present.any() else 0.0,
        **_class_and_overall(num_hits, num_accepted, num_positives),
    }


def top_k_scores(labels: Any, scores: Any, k: int = TOP) -> dict[str, float]:
    """Computes precision, recall and F1 if each example is given the k labels that score highest.

    Of equal scores, those of the first classes are taken. If there are no more than k classes, an
    example is given all of them.

    Args:
        labels: see `average_precision`.
        scores: see `average_precision`.
        k: the number of labels, at least 1.

    Returns:
        "CP" and "CR", the means of the classes' precision and recall, and "CF1", the harmonic mean
        of both; "OP", "OR" and "OF1", which are of all decisions together. Classes without
        positives are left out of CP and CR. A ratio whose denominator is zero is 0.

    Raises:
        ValueError: see `average_precision`; or k is less than 1.

    Example:

    >>> found = top_k_scores([[1, 0, 0], [0, 1, 0]], [[0.9, 0.5, 0.1], [0.9, 0.8, 0.1]], k=1)
    >>> {name: round(value, 4) for name, value in found.items()}
    {'CP': 0.25, 'CR': 0.5, 'CF1': 0.3333, 'OP': 0.5, 'OR': 0.5, 'OF1': 0.5}
    """
    labels, scores, known = checked(labels, scores)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    num_classes = labels.shape[1]

    def of_rows(labels: np.ndarray, scores: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        if k >= num_classes:
            given = np.ones_like(labels)
        else:
            lowest = np.partition(scores, num_classes - k, axis=1)[:, num_classes - k, None]
            above, ties = scores > lowest, scores == lowest
            remaining = k - above.sum(axis=1, keepdims=True)
            given = above | (ties & (np.cumsum(ties, axis=1) <= remaining))
        if known is not None:
            given &= known
        return np.stack([(given & labels).sum(axis=0), given.sum(axis=0)])[None]

    num_hits, num_given = over_examples(of_rows, labels, scores, known).sum(axis=0)
    return _class_and_overall(num_hits, num_given, labels.sum(axis=0))


def _class_and_overall(
    num_hits: np.ndarray, num_given: np.ndarray, num_positives: np.ndarray
) -> dict[str, float]:
    """CP, CR, CF1, OP, OR and OF1 from counts of each class, int (C,)."""

    def with_f1(prefix: str, precision: float, recall: float) -> dict[str, float]:
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return {f"{prefix}P": precision, f"{prefix}R": recall, f"{prefix}F1": f1}

    present = num_positives > 0
    of_classes = [ratio(num_hits, n)[present] for n in (num_given, num_positives)]
    overall = [float(ratio(num_hits.sum(), n.sum())) for n in (num_given, num_positives)]
    return {
        **with_f1("C", *(float(v.mean()) if present.any() else 0.0 for v in of_classes)),
        **with_f1("O", *overall),
    }


def best_f1_thresholds(labels: Any, scores: Any) -> np.ndarray:
    """Finds the threshold of each class at which its F1 is largest.

    Args:
        labels: the labels of examples on which the decisions are not tested, multi-hot (N, C).
        scores: the scores of these examples, (N, C).

    Returns:
        The thresholds, float64 (C,), midway between the lowest accepted score and the next lower
        one; 0.5 for a class without positives.

    Raises:
        ValueError: see `average_precision`.
    """
    labels, scores, known = checked(labels, scores)
    thresholds = np.full(labels.shape[1], 0.5)
    for i in np.flatnonzero(labels.any(axis=0)):
        rows = slice(None) if known is None else known[:, i]
        curve = precision_recall_curve(labels[rows, i], scores[rows, i])
        best = int(np.argmax(curve.f1))
        # The slice holds only the best threshold if no example scores lower.
        thresholds[i] = curve.thresholds[best : best + 2].mean()
    return thresholds
