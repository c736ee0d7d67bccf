"""Average precision, F1, ranking, ROC and scores of probabilities, and the list of all metrics.

The module needs NumPy only. Its values are those of scikit-learn's `average_precision_score`,
`precision_recall_curve`, `precision_recall_fscore_support`, `roc_auc_score`, `label_ranking_loss`,
`coverage_error`, `log_loss` and `brier_score_loss`, for all classes at once.

Labels that are not known, −1 in integers and NaN in floating-point numbers, are left out: what is
measured of a class is measured on the examples of which it is known, and what is measured of an
example, on the labels that are known of it. The k labels of a top-k decision are taken from all of
them; those that are not known count neither as right nor as wrong.

`METRICS` lists everything that an evaluation measures. The file `metrics.json`, the table in the
terminal, the report of a run and the comparison of several runs all iterate over it: a new metric
is a function of an `Evaluation` and a row of that list.
"""

import concurrent.futures
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from dbl_tf import label_arrays, label_values
from dbl_tf.cores import usable_cores
from dbl_tf.statistics import GROUP_NAMES, LabelStatistics, is_sparse

# The means that are reported, in the order shown.
TOTAL_AND_GROUPS = ("total", *GROUP_NAMES)

# A thread copies this many columns at a time; one row of so many scores spans a few cache lines.
_CLASSES_PER_BLOCK = 16
# A thread works on rows of so many scores at a time.
_SCORES_PER_BLOCK = 1_000_000
# The number of labels that are given to each example in the usual scores "at top 3".
_TOP = 3
# The usual number of bins of an expected calibration error.
_CALIBRATION_BINS = 15


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
    return _over_ranked_classes(labels, scores, _average_precision_of_ranked)[:, 0]


def _over_ranked_classes(
    labels: Any, scores: Any, *of_ranked: Callable[[np.ndarray, np.ndarray], float]
) -> np.ndarray:
    """Computes functions of the results of `_ranked` for each class, float64 (C, n)."""

    def of_classes(labels: np.ndarray, scores: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        found = np.empty((len(labels), len(of_ranked)))
        for i in range(len(labels)):
            rows = slice(None) if known is None else known[i]
            ranked = _ranked(labels[i, rows], scores[i, rows])
            found[i] = [compute(*ranked) for compute in of_ranked]
        return found

    return _over_classes(of_classes, *_checked(labels, scores))


def _ranked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of the positives, and all scores (N,), which it sorts in place.

    Only the positives need a rank, so the scores can be sorted without their order, which is
    several times faster.
    """
    positives = np.sort(scores[labels])
    scores.sort()
    return positives, scores


def _over_classes(
    of_classes: Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray],
    labels: np.ndarray,
    values: np.ndarray,
    known: np.ndarray | None,
) -> np.ndarray:
    """Computes `of_classes` on blocks of classes, in threads, and joins its results.

    The blocks are copies (block, N), a class per row, since a column of a wide matrix is scattered
    in memory. `of_classes` may write to them, and returns an array (block, …).
    """

    def compute(start: int) -> np.ndarray:
        columns = slice(start, start + _CLASSES_PER_BLOCK)
        of_block = None if known is None else known[:, columns].T.copy()
        return of_classes(labels[:, columns].T.copy(), values[:, columns].T.copy(), of_block)

    # NumPy releases the interpreter lock while it sorts and calculates. No classes are a block too.
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as executor:
        starts = range(0, max(labels.shape[1], 1), _CLASSES_PER_BLOCK)
        return np.concatenate(list(executor.map(compute, starts)))


def _mean_of_known(values: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """The mean of each row, over its known labels; NaN where there are none."""
    if known is None:
        return values.mean(axis=1)
    with np.errstate(invalid="ignore"):
        return values.sum(axis=1, where=known) / np.count_nonzero(known, axis=1)


def _over_decisions(per_class: np.ndarray, labels: Any) -> Any:
    """The mean over all known decisions, from means (C, …) over those of each class."""
    labels = _dense(labels)
    if not label_values.can_hold_unknown(labels.dtype):
        return per_class.mean(axis=0)
    unknown = label_values.is_unknown(labels)
    if not unknown.any():
        return per_class.mean(axis=0)
    num_known = np.count_nonzero(~unknown, axis=0)
    some = num_known > 0
    return np.average(per_class[some], axis=0, weights=num_known[some]) if some.any() else math.nan


def _average_precision_of_ranked(positives: np.ndarray, scores: np.ndarray) -> float:
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
    labels, scores, known = _checked(labels, scores, num_dimensions=1)
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
    labels, scores, known = _checked(labels, scores)
    accepted = scores >= np.asarray(thresholds)
    if known is not None:
        accepted &= known
    num_hits = (accepted & labels).sum(axis=0)
    num_accepted, num_positives = accepted.sum(axis=0), labels.sum(axis=0)
    f1 = _ratio(2.0 * num_hits, num_accepted + num_positives)
    present = num_positives > 0
    return {
        "precision": _ratio(num_hits, num_accepted),
        "recall": _ratio(num_hits, num_positives),
        "f1": f1,
        "micro_f1": float(_ratio(2.0 * num_hits.sum(), num_accepted.sum() + num_positives.sum())),
        "macro_f1": float(f1[present].mean()) if present.any() else 0.0,
        **_class_and_overall(num_hits, num_accepted, num_positives),
    }


def top_k_scores(labels: Any, scores: Any, k: int = _TOP) -> dict[str, float]:
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
    labels, scores, known = _checked(labels, scores)
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

    num_hits, num_given = _over_examples(of_rows, labels, scores, known).sum(axis=0)
    return _class_and_overall(num_hits, num_given, labels.sum(axis=0))


def _class_and_overall(
    num_hits: np.ndarray, num_given: np.ndarray, num_positives: np.ndarray
) -> dict[str, float]:
    """CP, CR, CF1, OP, OR and OF1 from counts of each class, int (C,)."""

    def with_f1(prefix: str, precision: float, recall: float) -> dict[str, float]:
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return {f"{prefix}P": precision, f"{prefix}R": recall, f"{prefix}F1": f1}

    present = num_positives > 0
    of_classes = [_ratio(num_hits, n)[present] for n in (num_given, num_positives)]
    overall = [float(_ratio(num_hits.sum(), n.sum())) for n in (num_given, num_positives)]
    return {
        **with_f1("C", *(float(v.mean()) if present.any() else 0.0 for v in of_classes)),
        **with_f1("O", *overall),
    }


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
    return _over_ranked_classes(labels, scores, _area_under_roc_of_ranked)[:, 0]


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
    labels, scores, known = _checked(labels, scores)
    if known is not None:
        return _area_under_roc_of_ranked(*_ranked(labels[known], scores[known]))
    return _area_under_roc_of_ranked(*_ranked(labels.ravel(), scores.flatten()))


def _area_under_roc_of_ranked(positives: np.ndarray, scores: np.ndarray) -> float:
    """Computes the area under the ROC curve from the results of `_ranked`."""
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
    return _ranking(labels, scores)["ranking_loss"]


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
    return _ranking(labels, scores)["coverage"]


def _ranking(labels: Any, scores: Any) -> dict[str, float]:
    """The ranking loss and the coverage, which need the ranks of the same positives."""
    labels, scores, known = _checked(labels, scores)
    if not len(labels):
        return {"ranking_loss": math.nan, "coverage": math.nan}
    loss, depth = _over_examples(_ranking_of_rows, labels, scores, known).mean(axis=0)
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
    return np.stack([_ratio(wrong, num_pairs), depth], axis=1)


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


def _over_examples(
    of_rows: Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray],
    labels: np.ndarray,
    scores: np.ndarray,
    known: np.ndarray | None,
) -> np.ndarray:
    """Computes `of_rows` on blocks of examples, in threads, and joins its results."""
    size = max(_SCORES_PER_BLOCK // max(labels.shape[1], 1), 1)

    def compute(start: int) -> np.ndarray:
        rows = slice(start, start + size)
        return of_rows(labels[rows], scores[rows], None if known is None else known[rows])

    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as executor:
        starts = range(0, max(len(labels), 1), size)
        return np.concatenate(list(executor.map(compute, starts)))


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
    labels, scores, known = _checked(labels, scores)
    thresholds = np.full(labels.shape[1], 0.5)
    for i in np.flatnonzero(labels.any(axis=0)):
        rows = slice(None) if known is None else known[:, i]
        curve = precision_recall_curve(labels[rows, i], scores[rows, i])
        best = int(np.argmax(curve.f1))
        # The slice holds only the best threshold if no example scores lower.
        thresholds[i] = curve.thresholds[best : best + 2].mean()
    return thresholds


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
    return float(_over_decisions(log_loss_by_class(labels, probabilities), labels))


def log_loss_by_class(labels: Any, probabilities: Any) -> np.ndarray:
    """Computes the `log_loss` of each class, over its N decisions, float64 (C,)."""

    return _over_classes(_log_loss_of_classes, *_checked_probabilities(labels, probabilities))


def _log_loss_of_classes(
    labels: np.ndarray, probabilities: np.ndarray, known: np.ndarray | None
) -> np.ndarray:
    of_truth = np.where(labels, probabilities, 1 - probabilities.astype(np.float64))
    smallest = np.finfo(np.float64).eps
    return _mean_of_known(-np.log(of_truth.clip(smallest, 1 - smallest)), known)


def brier_score(labels: Any, probabilities: Any) -> float:
    """Computes the mean squared difference of probability and label, over all N·C decisions.

    Args:
        labels: see `log_loss`.
        probabilities: see `log_loss`.

    Raises:
        ValueError: see `log_loss`.
    """
    return float(_over_decisions(brier_score_by_class(labels, probabilities), labels))


def brier_score_by_class(labels: Any, probabilities: Any) -> np.ndarray:
    """Computes the `brier_score` of each class, over its N decisions, float64 (C,)."""

    return _over_classes(_brier_score_of_classes, *_checked_probabilities(labels, probabilities))


def _brier_score_of_classes(
    labels: np.ndarray, probabilities: np.ndarray, known: np.ndarray | None
) -> np.ndarray:
    return _mean_of_known((probabilities.astype(np.float64) - labels) ** 2, known)


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
    return _pooled_calibration_error(_mean_excess_by_bin(labels, probabilities, num_bins), labels)


def expected_calibration_error_by_class(
    labels: Any, probabilities: Any, num_bins: int = _CALIBRATION_BINS
) -> np.ndarray:
    """Computes the `expected_calibration_error` of each class, float64 (C,).

    Each class has bins of its own. Errors of opposite signs, which cancel out in a bin of all
    classes, do not cancel out here.
    """
    return np.abs(_mean_excess_by_bin(labels, probabilities, num_bins)).sum(axis=1)


def _pooled_calibration_error(mean_excess: np.ndarray, labels: Any) -> float:
    return float(np.abs(_over_decisions(mean_excess, labels)).sum())


def _mean_excess_by_bin(labels: Any, probabilities: Any, num_bins: int) -> np.ndarray:
    """The sum over each bin of `probability − label`, per example, float64 (C, num_bins)."""

    of_classes = functools.partial(_mean_excess_of_classes, num_bins=num_bins)
    return _over_classes(of_classes, *_checked_probabilities(labels, probabilities))


def _mean_excess_of_classes(
    labels: np.ndarray,
    probabilities: np.ndarray,
    known: np.ndarray | None,
    num_bins: int = _CALIBRATION_BINS,
) -> np.ndarray:
    probabilities = probabilities.astype(np.float64)
    bins = np.minimum((probabilities * num_bins).astype(np.int64), num_bins - 1)
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


def _checked_probabilities(
    labels: Any, probabilities: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    labels, probabilities, known = _checked(labels, probabilities)
    if probabilities.size and (probabilities.min() < 0 or probabilities.max() > 1):
        index = tuple(np.argwhere((probabilities < 0) | (probabilities > 1))[0])
        raise ValueError(
            f"probabilities must be in [0, 1], got {probabilities[index]} in {_place(index)}"
        )
    return labels, probabilities, known


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The labels and scores of a split, with results that several metrics share.

    Shared results are properties that are computed when the first metric asks for them. Those of
    probabilities refuse scores outside [0, 1], and so does `measure`.

    Attributes:
        labels: the labels, bool (N, C); or int8 with −1 for those that are not known.
        scores: the scores, (N, C), usually probabilities.
        thresholds: the thresholds of the decisions `scores[:, i] >= thresholds[i]`, float64 (C,).
        statistics: the statistics of the training labels, which define the groups.

    Raises:
        ValueError: see `average_precision`; or the thresholds or the statistics have another number
            of classes.
    """

    labels: np.ndarray
    scores: np.ndarray
    thresholds: np.ndarray
    statistics: LabelStatistics

    def __post_init__(self) -> None:
        labels, scores, known = _checked(self.labels, self.scores)
        if known is not None:
            labels = np.where(known, labels.astype(np.int8), np.int8(-1))
        thresholds = np.asarray(self.thresholds, np.float64)
        num_classes = labels.shape[1]
        if thresholds.shape != (num_classes,) or self.statistics.num_classes != num_classes:
            raise ValueError(
                f"labels of {num_classes} classes need as many thresholds and statistics of as "
                f"many classes, got thresholds of shape {thresholds.shape} and statistics of "
                f"{self.statistics.num_classes} classes"
            )
        for name, value in (("labels", labels), ("scores", scores), ("thresholds", thresholds)):
            object.__setattr__(self, name, value)

    @functools.cached_property
    def num_positives(self) -> np.ndarray:
        """The numbers of examples that are known to have each class, int (C,)."""
        return np.count_nonzero(self.labels == 1, axis=0)

    @functools.cached_property
    def average_precision(self) -> np.ndarray:
        """The average precision of each class, float64 (C,)."""
        return self._ranked[:, 0]

    @functools.cached_property
    def at_half(self) -> dict[str, Any]:
        """The result of `precision_recall_f1` at threshold 0.5."""
        return precision_recall_f1(self.labels, self.scores, 0.5)

    @functools.cached_property
    def at_threshold(self) -> dict[str, Any]:
        """The result of `precision_recall_f1` at the thresholds of the classes."""
        return precision_recall_f1(self.labels, self.scores, self.thresholds)

    @functools.cached_property
    def at_top(self) -> dict[str, float]:
        """The result of `top_k_scores` at 3 labels."""
        return top_k_scores(self.labels, self.scores)

    @functools.cached_property
    def area_under_roc(self) -> np.ndarray:
        """The area under the ROC curve of each class, float64 (C,)."""
        return self._ranked[:, 1]

    @functools.cached_property
    def _ranked(self) -> np.ndarray:
        """Average precision and area under the ROC curve, which need the same ranks, (C, 2)."""
        functions = _average_precision_of_ranked, _area_under_roc_of_ranked
        return _over_ranked_classes(self.labels, self.scores, *functions)

    @functools.cached_property
    def ranking(self) -> dict[str, float]:
        """The "ranking_loss" and the "coverage"."""
        return _ranking(self.labels, self.scores)

    @functools.cached_property
    def log_loss(self) -> np.ndarray:
        """The log loss of each class, float64 (C,)."""
        return self._of_probabilities[:, 0]

    @functools.cached_property
    def brier_score(self) -> np.ndarray:
        """The Brier score of each class, float64 (C,)."""
        return self._of_probabilities[:, 1]

    @functools.cached_property
    def mean_excess_by_bin(self) -> np.ndarray:
        """The sum over each of 15 bins of `score − label`, per example, float64 (C, 15)."""
        return self._of_probabilities[:, 2:]

    @functools.cached_property
    def _of_probabilities(self) -> np.ndarray:
        """Log loss, Brier score and the excess of each bin, from one copy of the scores."""
        functions = _log_loss_of_classes, _brier_score_of_classes, _mean_excess_of_classes

        def of_classes(*blocks: Any) -> np.ndarray:
            return np.column_stack([compute(*blocks) for compute in functions])

        return _over_classes(of_classes, *_checked_probabilities(self.labels, self.scores))

    @property
    def calibration_error(self) -> np.ndarray:
        """The expected calibration error of each class, float64 (C,)."""
        return np.abs(self.mean_excess_by_bin).sum(axis=1)

    def mean_by_group(self, per_class: np.ndarray) -> dict[str, float]:
        """Computes the means over all classes and over head, medium and tail."""
        return mean_by_group(per_class, self.statistics.groups)

    def mean_by_group_of_present(self, per_class: np.ndarray) -> dict[str, float]:
        """Computes the means over the classes with positives, as those of average precision."""
        return self.mean_by_group(np.where(self.num_positives > 0, per_class, math.nan))

    def mean_over_decisions(self, per_class: np.ndarray) -> float:
        """Computes the mean over all known decisions from the means over those of each class."""
        return float(_over_decisions(per_class, self.labels))


@dataclasses.dataclass(frozen=True)
class Metric:
    """A row of `METRICS`: how a metric is computed, stored and shown.

    Attributes:
        key: the keys that lead to the value in `metrics.json`, from the entry of a class if `over`
            is "class", otherwise from the top.
        over: "class" for a value of each class, (C,); "group" for the means that `mean_by_group`
            returns; "split" for one number.
        compute: the function that computes the value. A value that is not defined is NaN, and null
            in `metrics.json`.
        description: a phrase that explains the heading to a reader.
        heading: the short name of a row or column, without its unit; empty for a metric that only
            `metrics.json` contains.
        cell: the names of a row and a column in the tables of further scores, which the report of
            a run shows in one place; empty for a metric that is not in them. A metric by group has
            a row of its own, and no name of a column.
        percent: whether the value is a fraction of 1 that is shown in percent.
        digits: the number of decimal places in tables.
        higher_is_better: whether a higher value is better than a lower one.
    """

    key: tuple[str, ...]
    over: Literal["class", "group", "split"]
    compute: Callable[[Evaluation], Any]
    description: str
    heading: str = ""
    cell: tuple[str, str] | None = None
    percent: bool = True
    digits: int = 2
    higher_is_better: bool = True

    @property
    def heading_with_unit(self) -> str:
        """The heading of a table whose cells are those of `text`."""
        return f"{self.heading} %" if self.percent else self.heading

    def read(self, scores: Mapping[str, Any]) -> np.ndarray:
        """Reads the values of this metric from the content of a `metrics.json`.

        Args:
            scores: the content of the file.

        Returns:
            The values, float64: (C,) for "class", (4,) in the order of `TOTAL_AND_GROUPS` for
            "group", and (1,) for "split". They are NaN for null, and if the file is older than the
            metric.
        """
        if self.over == "class":
            values = [_look_up(entry, self.key) for entry in scores["per_class"].values()]
        elif self.over == "group":
            means = _look_up(scores, self.key) or {}
            values = [means.get(name) for name in TOTAL_AND_GROUPS]
        else:
            values = [_look_up(scores, self.key)]
        return np.array(values, np.float64)  # turns None into NaN

    def text(self, value: float, deviation: float = math.nan) -> str:
        """Formats a value for a cell of a table, such as "54.32 ± 0.21"; NaN becomes a dash.

        Args:
            value: a value that `read` returned.
            deviation: the standard deviation of the value; NaN if there is none.
        """
        if math.isnan(value):
            return "–"
        factor = 100 if self.percent else 1
        spread = "" if math.isnan(deviation) else f" ± {factor * deviation:.{self.digits}f}"
        return f"{factor * value:.{self.digits}f}{spread}"


AVERAGE_PRECISION = Metric(
    ("ap",),
    "class",
    lambda e: e.average_precision,
    "average precision, the area under the precision-recall curve",
    heading="AP",
)
MEAN_AVERAGE_PRECISION = Metric(
    ("mAP",),
    "group",
    lambda e: e.mean_by_group(e.average_precision),
    "mean of the labels' average precision",
    heading="mAP",
)

_OF_DECISIONS = {
    "CP": "mean of the labels' precision",
    "CR": "mean of the labels' recall",
    "CF1": "harmonic mean of CP and CR",
    "OP": "precision of all decisions together",
    "OR": "recall of all decisions together",
    "OF1": "F1 of all decisions together",
}
# Where the six numbers of decisions are stored, how their row is named, and how they are found.
_DECISIONS: Mapping[str, tuple[str, Callable[[Evaluation], Mapping[str, Any]]]] = {
    "at_0.5": ("at threshold 0.5", lambda e: e.at_half),
    "at_threshold": ("at each label's threshold", lambda e: e.at_threshold),
    f"top_{_TOP}": (f"the {_TOP} highest labels of each image", lambda e: e.at_top),
}


def _decision_metrics() -> list[Metric]:
    def value(of_decisions: Callable[[Evaluation], Mapping[str, Any]], name: str) -> Callable:
        return lambda evaluation: of_decisions(evaluation)[name]

    return [
        Metric(
            ("decisions", key, name),
            "split",
            value(of_decisions, name),
            description,
            cell=(row, name),
        )
        for key, (row, of_decisions) in _DECISIONS.items()
        for name, description in _OF_DECISIONS.items()
    ]


# The metrics in the order in which they are shown.
METRICS: Sequence[Metric] = (
    MEAN_AVERAGE_PRECISION,
    Metric(
        ("F1", "micro_at_0.5"),
        "split",
        lambda e: e.at_half["micro_f1"],
        "F1 of all decisions together, at threshold 0.5",
    ),
    Metric(
        ("F1", "macro_at_0.5"),
        "split",
        lambda e: e.at_half["macro_f1"],
        "mean of the labels' F1 at threshold 0.5",
    ),
    Metric(
        ("F1", "micro_at_threshold"),
        "split",
        lambda e: e.at_threshold["micro_f1"],
        "F1 of all decisions together, at each label's threshold",
        heading="micro F1",
    ),
    Metric(
        ("F1", "macro_at_threshold"),
        "split",
        lambda e: e.at_threshold["macro_f1"],
        "mean of the labels' F1, at each label's threshold",
        heading="macro F1",
    ),
    Metric(
        ("probabilities", "log_loss"),
        "split",
        lambda e: e.mean_over_decisions(e.log_loss),
        "mean of −log of the probability of what is true, over all decisions",
        percent=False,
        digits=4,
        higher_is_better=False,
    ),
    Metric(
        ("probabilities", "brier_score"),
        "split",
        lambda e: e.mean_over_decisions(e.brier_score),
        "mean squared difference of probability and label, over all decisions",
        percent=False,
        digits=4,
        higher_is_better=False,
    ),
    Metric(
        ("probabilities", "calibration_error"),
        "split",
        lambda e: _pooled_calibration_error(e.mean_excess_by_bin, e.labels),
        "expected calibration error of all decisions together",
        percent=False,
        digits=4,
        higher_is_better=False,
    ),
    Metric(
        ("log_loss",),
        "group",
        lambda e: e.mean_by_group_of_present(e.log_loss),
        "mean of the labels' log loss",
        percent=False,
        digits=4,
        higher_is_better=False,
    ),
    Metric(
        ("brier_score",),
        "group",
        lambda e: e.mean_by_group_of_present(e.brier_score),
        "mean of the labels' Brier score",
        percent=False,
        digits=4,
        higher_is_better=False,
    ),
    Metric(
        ("calibration_error",),
        "group",
        lambda e: e.mean_by_group_of_present(e.calibration_error),
        "mean of the labels' expected calibration error",
        percent=False,
        digits=4,
        higher_is_better=False,
    ),
    *_decision_metrics(),
    Metric(
        ("ranking", "ranking_loss"),
        "split",
        lambda e: e.ranking["ranking_loss"],
        "share of an image's pairs of a label that it has and one that it has not, in which the "
        "former does not score higher",
        cell=("ranking", "ranking loss"),
        percent=False,
        digits=4,
        higher_is_better=False,
    ),
    Metric(
        ("ranking", "coverage"),
        "split",
        lambda e: e.ranking["coverage"],
        "number of an image's highest labels that contain all that it has",
        cell=("ranking", "coverage"),
        percent=False,
        higher_is_better=False,
    ),
    Metric(
        ("ranking", "micro_AUC"),
        "split",
        lambda e: micro_area_under_roc(e.labels, e.scores),
        "area under the ROC curve of all decisions together",
        cell=("ranking", "micro AUC"),
        percent=False,
        digits=4,
    ),
    Metric(
        ("AUC",),
        "group",
        lambda e: e.mean_by_group(e.area_under_roc),
        "mean of the labels' area under the ROC curve",
        cell=("macro AUC", ""),
        percent=False,
        digits=4,
    ),
    AVERAGE_PRECISION,
    Metric(
        ("AUC",),
        "class",
        lambda e: e.area_under_roc,
        "area under the ROC curve",
    ),
    Metric(
        ("at_0.5", "precision"),
        "class",
        lambda e: e.at_half["precision"],
        "share of the images given the label that have it, at threshold 0.5",
    ),
    Metric(
        ("at_0.5", "recall"),
        "class",
        lambda e: e.at_half["recall"],
        "share of the images with the label that are given it, at threshold 0.5",
    ),
    Metric(
        ("at_0.5", "f1"),
        "class",
        lambda e: e.at_half["f1"],
        "harmonic mean of precision and recall, at threshold 0.5",
    ),
    Metric(
        ("at_threshold", "precision"),
        "class",
        lambda e: e.at_threshold["precision"],
        "share of the images given the label that have it, at the label's threshold",
        heading="precision",
    ),
    Metric(
        ("at_threshold", "recall"),
        "class",
        lambda e: e.at_threshold["recall"],
        "share of the images with the label that are given it, at the label's threshold",
        heading="recall",
    ),
    Metric(
        ("at_threshold", "f1"),
        "class",
        lambda e: e.at_threshold["f1"],
        "harmonic mean of precision and recall, at the label's threshold",
        heading="F1",
    ),
    Metric(
        ("log_loss",),
        "class",
        lambda e: e.log_loss,
        "mean of −log of the probability of what is true",
        heading="log loss",
        percent=False,
        digits=4,
        higher_is_better=False,
    ),
    Metric(
        ("brier_score",),
        "class",
        lambda e: e.brier_score,
        "mean squared difference of probability and label",
        heading="Brier score",
        percent=False,
        digits=4,
        higher_is_better=False,
    ),
    Metric(
        ("calibration_error",),
        "class",
        lambda e: e.calibration_error,
        "expected calibration error, the distance of probabilities from the share that comes true",
        heading="ECE",
        percent=False,
        digits=4,
        higher_is_better=False,
    ),
)


def measure(evaluation: Evaluation) -> dict[str, Any]:
    """Computes the values of all `METRICS`, in the layout of `metrics.json`.

    Returns:
        Nested dictionaries by `Metric.key`; values over "class" are under "per_class" and the name
        of the class. Values that are not defined are NaN.

    Raises:
        ValueError: a score is outside [0, 1].
    """
    content: dict[str, Any] = {}
    per_class: dict[str, dict] = {name: {} for name in evaluation.statistics.class_names}
    for metric in METRICS:
        value = metric.compute(evaluation)
        if metric.over == "class":
            for entry, of_class in zip(per_class.values(), value, strict=True):
                _put(entry, metric.key, float(of_class))
        else:
            _put(content, metric.key, value)
    return {**content, "per_class": per_class}


def num_classes_by_group(scores: Mapping[str, Any]) -> dict[str, int]:
    """Counts the classes in "total" and in each group.

    Args:
        scores: the content of a `metrics.json`.
    """
    groups = [entry["group"] for entry in scores["per_class"].values()]
    return {"total": len(groups), **{name: groups.count(name) for name in GROUP_NAMES}}


def _put(content: dict[str, Any], key: Sequence[str], value: Any) -> None:
    for name in key[:-1]:
        content = content.setdefault(name, {})
    content[key[-1]] = value


def _look_up(content: Mapping[str, Any], key: Sequence[str]) -> Any:
    for name in key[:-1]:
        content = content.get(name, {})
    return content.get(key[-1])


def _checked(
    labels: Any, scores: Any, num_dimensions: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns which labels are 1, bool, the scores, and which labels are known; None if all are."""
    if num_dimensions == 2:
        labels = _dense(labels)
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != num_dimensions or labels.shape != scores.shape:
        shape = "(N, C)" if num_dimensions == 2 else "(N,)"
        raise ValueError(
            f"labels and scores must both be of shape {shape}, got {labels.shape} and "
            f"{scores.shape}"
        )
    positive, known = label_values.positive_and_known(labels, _place)
    # The minimum of numbers with a NaN among them is NaN, and needs no array of its own.
    if scores.size and np.isnan(scores.min()):
        missing = np.isnan(scores)
        raise ValueError(
            f"scores hold {int(missing.sum())} NaN, the first in "
            f"{_place(np.argwhere(missing)[0])}: the model's output is not finite"
        )
    return positive, scores, known


def _dense(labels: Any) -> np.ndarray:
    """Labels (N, C) in any container as an array."""
    labels = label_arrays.label_array(labels)
    return labels.toarray() if is_sparse(labels) else labels


def _place(index: Sequence[int]) -> str:
    names = ("row", "column")
    return ", ".join(f"{name} {i}" for name, i in zip(names, index, strict=False))


def _ratio(numerator: Any, denominator: Any) -> np.ndarray:
    denominator = np.asarray(denominator)
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)
