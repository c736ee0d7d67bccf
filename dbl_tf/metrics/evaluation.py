"""The list of all metrics, and what several of them share."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from dbl_tf.metrics.arrays import (
    checked,
    over_classes,
    over_decisions,
    over_ranked_classes,
)
from dbl_tf.metrics.precision import (
    TOP,
    TOTAL_AND_GROUPS,
    average_precision_of_ranked,
    mean_by_group,
    precision_recall_f1,
    top_k_scores,
)
from dbl_tf.metrics.probabilities import (
    brier_score_of_classes,
    checked_probabilities,
    log_loss_of_classes,
    mean_excess_of_classes,
    pooled_calibration_error,
)
from dbl_tf.metrics.ranking import (
    area_under_roc_of_ranked,
    micro_area_under_roc,
    ranking_scores,
)
from dbl_tf.statistics import GROUP_NAMES, LabelStatistics


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
        labels, scores, known = checked(self.labels, self.scores)
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
        functions = average_precision_of_ranked, area_under_roc_of_ranked
        return over_ranked_classes(self.labels, self.scores, *functions)

    @functools.cached_property
    def ranking(self) -> dict[str, float]:
        """The "ranking_loss" and the "coverage"."""
        return ranking_scores(self.labels, self.scores)

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
        functions = log_loss_of_classes, brier_score_of_classes, mean_excess_of_classes

        def of_classes(*blocks: Any) -> np.ndarray:
            return np.column_stack([compute(*blocks) for compute in functions])

        return over_classes(of_classes, *checked_probabilities(self.labels, self.scores))

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
        return float(over_decisions(per_class, self.labels))


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
        spread = "" if math.isnan(deviation) else f" ± {factor * deviation:,.{self.digits}f}"
        return f"{factor * value:,.{self.digits}f}{spread}"


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
CALIBRATION_ERROR = Metric(
    ("calibration_error",),
    "class",
    lambda e: e.calibration_error,
    "expected calibration error, the distance of probabilities from the share that comes true",
    heading="ECE",
    percent=False,
    digits=4,
    higher_is_better=False,
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
    f"top_{TOP}": (f"the {TOP} highest labels of each image", lambda e: e.at_top),
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
        lambda e: pooled_calibration_error(e.mean_excess_by_bin, e.labels),
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
    CALIBRATION_ERROR,
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


def num_classes_by_group(scores: Mapping[str, Any], *, tested: bool = True) -> dict[str, int]:
    """Counts the classes in "total" and in each group, those with test examples or those without.

    Means by group are over the classes with test examples.

    Args:
        scores: the content of a `metrics.json`.
        tested: whether to count the classes with test examples, or those without.
    """
    entries = scores["per_class"].values()
    groups = [entry["group"] for entry in entries if (entry["test_count"] > 0) == tested]
    return {"total": len(groups), **{name: groups.count(name) for name in GROUP_NAMES}}


def _put(content: dict[str, Any], key: Sequence[str], value: Any) -> None:
    for name in key[:-1]:
        content = content.setdefault(name, {})
    content[key[-1]] = value


def _look_up(content: Mapping[str, Any], key: Sequence[str]) -> Any:
    for name in key[:-1]:
        content = content.get(name, {})
    return content.get(key[-1])
