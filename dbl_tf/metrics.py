"""Exact average precision, precision-recall curves and F1, and the list of all metrics.

NumPy only. The values are those of scikit-learn's `average_precision_score`,
`precision_recall_curve` and `precision_recall_fscore_support`, for all classes at once.

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

from dbl_tf.cores import usable_cores
from dbl_tf.statistics import GROUP_NAMES, LabelStatistics

# The means that are reported, in the order shown.
TOTAL_AND_GROUPS = ("total", *GROUP_NAMES)

# A thread copies this many columns at a time; one row of so many scores spans a few cache lines.
_CLASSES_PER_BLOCK = 16


def average_precision(labels: Any, scores: Any) -> np.ndarray:
    """Average precision of each class: the step-wise area under its precision-recall curve.

    `AP = Σ_k (R_k − R_(k−1)) P_k` over the distinct scores in falling order; examples of equal
    score share a threshold.

    Args:
        labels: multi-hot (N, C), zeros and ones.
        scores: (N, C), any numbers that rank the examples, usually probabilities.

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
        # The copies hold a class per row: a column of a wide matrix is scattered in memory, and
        # the scores are sorted in place.
        columns = slice(start, start + _CLASSES_PER_BLOCK)
        by_class = zip(labels[:, columns].T.copy(), scores[:, columns].T.copy(), strict=True)
        result[columns] = [_average_precision_of_class(*of_class) for of_class in by_class]

    # NumPy releases the interpreter lock while it sorts.
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as executor:
        for _ in executor.map(fill, range(0, num_classes, _CLASSES_PER_BLOCK)):
            pass
    return result


def _average_precision_of_class(labels: np.ndarray, scores: np.ndarray) -> float:
    """Average precision from bool (N,) and scores (N,), which are sorted in place.

    Each positive adds the precision at its own score to the sum. Only the positives need a rank,
    so the scores can be sorted without their order, which is several times faster.
    """
    positives = np.sort(scores[labels])
    if not len(positives):
        return math.nan
    scores.sort()
    # How many examples, and how many positives, score at least as high as each positive.
    accepted = len(scores) - np.searchsorted(scores, positives)
    hits = len(positives) - np.searchsorted(positives, positives)
    return float(np.mean(hits / accepted))


def mean_average_precision(
    labels: Any, scores: Any, groups: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """Mean of `average_precision` over all classes and over each group of classes.

    Args:
        labels: multi-hot (N, C).
        scores: (N, C).
        groups: class indices by name, as `LabelStatistics.groups` gives them.

    Returns:
        "total" and each group, fractions of 1. Classes without positives are left out; a mean
        over no class is NaN.

    Raises:
        ValueError: as `average_precision`.
    """
    return mean_by_group(average_precision(labels, scores), groups)


def mean_by_group(per_class: np.ndarray, groups: Mapping[str, Any] | None) -> dict[str, float]:
    """Mean of the values that are not NaN, over all classes ("total") and over each group."""
    members = {"total": np.arange(len(per_class)), **(groups or {})}
    values = {name: per_class[np.asarray(index, int)] for name, index in members.items()}
    return {
        name: float(np.mean(group[~np.isnan(group)])) if (~np.isnan(group)).any() else math.nan
        for name, group in values.items()
    }


@dataclasses.dataclass(frozen=True, eq=False)
class PrecisionRecallCurve:
    """How precision falls and recall rises as the threshold of one class is lowered.

    There are K points, one for each distinct score, from the highest score on.

    Attributes:
        thresholds: float64 (K,), falling; the decision is `score >= threshold`.
        num_accepted: int (K,), examples that score at least the threshold.
        num_hits: int (K,), positives among these.
    """

    thresholds: np.ndarray
    num_accepted: np.ndarray
    num_hits: np.ndarray

    @property
    def precision(self) -> np.ndarray:
        """Share of the accepted examples that are positives, float64 (K,)."""
        return self.num_hits / self.num_accepted

    @property
    def recall(self) -> np.ndarray:
        """Share of the positives that are accepted, float64 (K,); it ends at 1."""
        return self.num_hits / self.num_hits[-1]

    @property
    def f1(self) -> np.ndarray:
        """Harmonic mean of precision and recall, float64 (K,)."""
        return 2.0 * self.num_hits / (self.num_accepted + self.num_hits[-1])


def precision_recall_curve(labels: Any, scores: Any) -> PrecisionRecallCurve:
    """The precision-recall curve of one class.

    The area under the steps that end at its points, `Σ_k (R_k − R_(k−1)) P_k`, is the
    `average_precision`. Unlike scikit-learn's function of the same name, the points go from the
    highest score to the lowest, without an extra point at recall 0.

    Args:
        labels: zeros and ones, (N,), at least one of them 1.
        scores: (N,).

    Raises:
        ValueError: shapes that differ, labels other than 0 and 1, no positive, scores that are
            NaN.

    Example:

    >>> curve = precision_recall_curve([1, 0, 1, 0], [0.9, 0.7, 0.7, 0.2])
    >>> curve.thresholds.tolist(), curve.recall.tolist()
    ([0.9, 0.7, 0.2], [0.5, 1.0, 1.0])
    """
    labels, scores = _checked(labels, scores, num_dimensions=1)
    if not labels.any():
        raise ValueError("a class without positives has no precision-recall curve")
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    # The last of each run of equal scores.
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    return PrecisionRecallCurve(
        ranked[last].astype(np.float64), last + 1, np.cumsum(labels[order])[last]
    )


def precision_recall_f1(
    labels: Any, scores: Any, thresholds: float | np.ndarray = 0.5
) -> dict[str, Any]:
    """Precision, recall and F1 of the decisions `scores >= thresholds`.

    Args:
        labels: multi-hot (N, C).
        scores: (N, C).
        thresholds: one for all classes, or (C,).

    Returns:
        "precision", "recall" and "f1", float64 (C,); and the floats "micro_f1", over all decisions
        pooled, and "macro_f1", the mean over the classes that have positives. A ratio without a
        denominator is 0.

    Raises:
        ValueError: as `average_precision`.
    """
    labels, scores = _checked(labels, scores)
    accepted = scores >= np.asarray(thresholds)
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
    }


def best_f1_thresholds(labels: Any, scores: Any) -> np.ndarray:
    """The threshold of each class at which its F1 is largest.

    Args:
        labels: multi-hot (N, C), of examples other than those that the decisions are tested on.
        scores: (N, C).

    Returns:
        float64 (C,): midway between the lowest accepted score and the next lower one; 0.5 for a
        class without positives.

    Raises:
        ValueError: as `average_precision`.
    """
    labels, scores = _checked(labels, scores)
    thresholds = np.full(labels.shape[1], 0.5)
    for i in np.flatnonzero(labels.any(axis=0)):
        curve = precision_recall_curve(labels[:, i], scores[:, i])
        best = int(np.argmax(curve.f1))
        # The best threshold alone where no example scores lower.
        thresholds[i] = curve.thresholds[best : best + 2].mean()
    return thresholds


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
    """The labels and scores of a split, and what several metrics have in common.

    Shared results are properties that are computed once, when the first metric asks for them.

    Attributes:
        labels: bool (N, C).
        scores: (N, C), usually probabilities.
        thresholds: float64 (C,); class i is given to an example where `scores[:, i] >=
            thresholds[i]`.
        statistics: of the training labels, which decide the groups.

    Raises:
        ValueError: as `average_precision`; thresholds or statistics of another number of classes.
    """

    labels: np.ndarray
    scores: np.ndarray
    thresholds: np.ndarray
    statistics: LabelStatistics

    def __post_init__(self) -> None:
        labels, scores = _checked(self.labels, self.scores)
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
    def average_precision(self) -> np.ndarray:
        """The function of this name, float64 (C,)."""
        return average_precision(self.labels, self.scores)

    @functools.cached_property
    def at_half(self) -> dict[str, Any]:
        """`precision_recall_f1` at threshold 0.5."""
        return precision_recall_f1(self.labels, self.scores, 0.5)

    @functools.cached_property
    def at_threshold(self) -> dict[str, Any]:
        """`precision_recall_f1` at the thresholds of the classes."""
        return precision_recall_f1(self.labels, self.scores, self.thresholds)

    def mean_by_group(self, per_class: np.ndarray) -> dict[str, float]:
        """The function of this name, over head, medium and tail."""
        return mean_by_group(per_class, self.statistics.groups)


@dataclasses.dataclass(frozen=True)
class Metric:
    """A row of `METRICS`: what is measured, where `metrics.json` holds it, how people see it.

    Attributes:
        key: the fields that lead to the value in `metrics.json`, from the entry of a class where
            `over` is "class", else from the top.
        over: "class" for a value of each class, (C,); "group" for the means by name that
            `mean_by_group` gives; "split" for one number.
        compute: gives this value. NaN where it is not defined, which `metrics.json` holds as null.
        description: a phrase that explains the heading to a reader.
        heading: short name of a row or column, without its unit; empty for a metric that only
            `metrics.json` holds.
        percent: whether the value is a fraction of 1 that is shown in percent.
        digits: decimal places shown in tables.
        higher_is_better: which of two values is the better one.
    """

    key: tuple[str, ...]
    over: Literal["class", "group", "split"]
    compute: Callable[[Evaluation], Any]
    description: str
    heading: str = ""
    percent: bool = True
    digits: int = 2
    higher_is_better: bool = True

    @property
    def heading_with_unit(self) -> str:
        """The heading of a table whose cells are those of `text`."""
        return f"{self.heading} %" if self.percent else self.heading

    def read(self, scores: Mapping[str, Any]) -> np.ndarray:
        """The values of this metric in the content of a `metrics.json`.

        Args:
            scores: the content. Where it was written before the metric existed, the values are
                NaN, as they are where it holds null.

        Returns:
            float64: (C,) over "class", (4,) in the order of `TOTAL_AND_GROUPS` over "group", (1,)
            over "split".
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
        """A value as a cell of a table shows it, such as "54.32 ± 0.21"; a dash for NaN.

        Args:
            value: as `read` gives it.
            deviation: its standard deviation, NaN where there is none.
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

# In the order shown.
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
    AVERAGE_PRECISION,
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
)


def measure(evaluation: Evaluation) -> dict[str, Any]:
    """The values of all `METRICS`, in the layout of `metrics.json`; NaN where one is not defined.

    Returns:
        Nested dictionaries by `Metric.key`; those over "class" are under "per_class" and the name
        of the class.
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
    """How many classes there are, "total" and in each group.

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


def _checked(labels: Any, scores: Any, num_dimensions: int = 2) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != num_dimensions or labels.shape != scores.shape:
        shape = "(N, C)" if num_dimensions == 2 else "(N,)"
        raise ValueError(
            f"labels and scores must both be of shape {shape}, got {labels.shape} and "
            f"{scores.shape}"
        )
    if labels.dtype != bool:
        wrong = (labels != 0) & (labels != 1)
        if wrong.any():
            index = tuple(np.argwhere(wrong)[0])
            raise ValueError(f"labels must be 0 or 1, found {labels[index]} in {_place(index)}")
    # The minimum of numbers with a NaN among them is NaN, and needs no array of its own.
    if scores.size and np.isnan(scores.min()):
        missing = np.isnan(scores)
        raise ValueError(
            f"scores hold {int(missing.sum())} NaN, the first in "
            f"{_place(np.argwhere(missing)[0])}: the model's output is not finite"
        )
    return labels.astype(bool, copy=False), scores


def _place(index: Sequence[int]) -> str:
    names = ("row", "column")
    return ", ".join(f"{name} {i}" for name, i in zip(names, index, strict=False))


def _ratio(numerator: Any, denominator: Any) -> np.ndarray:
    denominator = np.asarray(denominator)
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)
