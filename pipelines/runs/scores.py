"""The scores of a model on the test split, as `metrics.json` and as a table for the terminal."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from dbl_tf import atomic, metrics, saved_json
from dbl_tf.messages import did_you_mean, first_few
from dbl_tf.statistics import LabelStatistics
from pipelines.examples import Examples
from pipelines.runs import curves


class _SavedThresholds(msgspec.Struct):
    """The thresholds by class; a list in files of versions 1 and 2, which have no names."""

    thresholds: dict[str, saved_json.Probability] | list[saved_json.Probability]
    chosen_on: str


_THRESHOLDS = saved_json.Format(
    "dbl_tf.Thresholds",
    "thresholds",
    _SavedThresholds,
    "restore it from a copy, or start the training command again, which chooses them anew",
    version=3,
    is_edited_by_hand=True,
)


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """For each class, the lowest probability at which an image is given the class.

    Attributes:
        values: the thresholds, float64 (C,).
        chosen_on: the name of the split on which they were chosen.
    """

    values: np.ndarray
    chosen_on: str

    def save(self, path: str | os.PathLike, class_names: Sequence[str]) -> None:
        """Writes the thresholds as JSON, by the names of the C classes."""
        named = dict(zip(class_names, self.values.tolist(), strict=True))
        _THRESHOLDS.write(path, {"chosen_on": self.chosen_on, "thresholds": named}, indent=1)

    @classmethod
    def choose(cls, labels: np.ndarray, probabilities: np.ndarray, chosen_on: str) -> "Thresholds":
        """Chooses the thresholds of the largest F1 of each class; see `best_f1_thresholds`."""
        return cls(metrics.best_f1_thresholds(labels, probabilities), chosen_on)

    @classmethod
    def load(cls, path: str | os.PathLike, class_names: Sequence[str]) -> "Thresholds":
        """Reads a file that `save` wrote. One that was changed since is used with a warning.

        Args:
            path: the file.
            class_names: the C classes of the model, in their order.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file holds no thresholds, or those of other classes; the message names
                it and the field or class.
        """
        content = _THRESHOLDS.read(path)
        try:
            values = _in_order(content.thresholds, class_names)
        except ValueError as error:
            raise _THRESHOLDS.unusable(path, error) from error
        return cls(np.array(values, np.float64), content.chosen_on)


def _in_order(
    thresholds: Mapping[str, float] | Sequence[float], class_names: Sequence[str]
) -> list[float]:
    """Returns thresholds in the order of the classes, and refuses those of other classes."""
    if not isinstance(thresholds, Mapping):
        if len(thresholds) != len(class_names):
            raise ValueError(
                f"it has {len(thresholds)} thresholds, and the model has {len(class_names)} classes"
            )
        return list(thresholds)
    known = set(class_names)
    if other := [name for name in thresholds if name not in known]:
        raise ValueError(
            f"the model has no class {first_few([repr(name) for name in other])}"
            f"{did_you_mean(other[0], class_names)}"
        )
    if absent := [repr(name) for name in class_names if name not in thresholds]:
        raise ValueError(f"it has no threshold of {first_few(absent)}")
    return [thresholds[name] for name in class_names]


class _ScoresOfClass(msgspec.Struct):
    train_count: saved_json.Count
    test_count: saved_json.Count
    group: Literal["head", "medium", "tail"]


class _Scores(msgspec.Struct):
    """What every `metrics.json` has besides the metrics, which tell how they are read."""

    num_test_examples: saved_json.Count
    per_class: dict[str, _ScoresOfClass]


_SCORES = saved_json.Format(
    "dbl_tf.Scores",
    "scores of a run",
    dict[str, Any],
    "restore it from a copy, or remove it and start the command that wrote it again",
)


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """A model's predictions of the test split, and their scores.

    Attributes:
        test: the N examples of the test split.
        class_names: the names of the C classes.
        statistics: the statistics of the training labels.
        probabilities: the probabilities, float32 (N, C).
        thresholds: the thresholds of the decisions.
        scores: the content of `metrics.json`.
    """

    test: Examples
    class_names: tuple[str, ...]
    statistics: LabelStatistics
    probabilities: np.ndarray
    thresholds: Thresholds
    scores: dict[str, Any]


def score(
    labels: Any, probabilities: np.ndarray, statistics: LabelStatistics, thresholds: Thresholds
) -> dict[str, Any]:
    """Returns the content of `metrics.json`: all of `metrics.METRICS`, counts and curves.

    Args:
        labels: the labels of the test split, multi-hot (N, C), with −1 for unknown ones.
        probabilities: the probabilities, (N, C).
        statistics: the statistics of the training labels, which define the groups.
        thresholds: thresholds that were chosen on another split.

    Returns:
        Nested dictionaries of numbers and names; see `curves.points` for "curves". A value that is
        not defined is None, since JSON has no NaN.

    Raises:
        ValueError: see `metrics.Evaluation`.
    """
    evaluation = metrics.Evaluation(labels, probabilities, thresholds.values, statistics)
    measured = metrics.measure(evaluation)
    class_names, per_class = statistics.class_names, measured.pop("per_class")
    test_counts = evaluation.num_positives
    num_known = np.count_nonzero(evaluation.labels >= 0, axis=0)
    points = curves.of_classes(evaluation.labels, evaluation.scores, evaluation.thresholds)
    intervals = [of_class.pop("interval") for of_class in points]
    for group, members in statistics.groups.items():
        for i in members:
            of_class = per_class[class_names[i]]
            of_class["at_threshold"]["threshold"] = float(thresholds.values[i])
            per_class[class_names[i]] = {
                "train_count": int(statistics.class_counts[i]),
                "test_count": int(test_counts[i]),
                "group": group,
                **of_class,
                "ap_interval": intervals[i],
            }
            if num_known[i] < len(evaluation.labels):
                per_class[class_names[i]]["num_known"] = int(num_known[i])
    measured["F1"]["thresholds_from"] = thresholds.chosen_on
    return _without_nan(
        {
            **measured,
            "num_test_examples": len(evaluation.labels),
            "classes_without_test_positives": [
                name for name, count in zip(class_names, test_counts, strict=True) if count == 0
            ],
            "per_class": per_class,
            "curves": dict(zip(class_names, points, strict=True)),
        }
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    return value


def format_table(scores: dict[str, Any]) -> str:
    """Formats scores as a text table with a row for each metric and a column for each group.

    Args:
        scores: the result of `score`.
    """
    tested = metrics.num_classes_by_group(scores)
    rows = [("", list(tested)), ("tested labels", [f"{number:,}" for number in tested.values()])]
    untested = metrics.num_classes_by_group(scores, tested=False)
    if untested["total"]:
        rows.append(("untested labels", [f"{number:,}" for number in untested.values()]))
    rows += [
        (metric.heading_with_unit, [metric.text(value) for value in metric.read(scores)])
        for metric in metrics.METRICS
        if metric.heading and metric.over != "class"
    ]
    width = max(len(heading) for heading, _ in rows)
    lines = [f"{heading:{width}}" + "".join(f"{c:>8}" for c in cells) for heading, cells in rows]
    lines.append(f"Decisions are at thresholds chosen on {scores['F1']['thresholds_from']}.")
    if (compared := scores.get("calibration", {})).get("fitted_on", "none") != "none":
        before, after, alone = (
            compared[name]["log_loss"] for name in ("before", "after", "prevalence")
        )
        lines.append(
            f"Probabilities are fitted on {compared['fitted_on']}: log loss {after:.4f}, where the "
            f"sigmoid has {before:.4f} and the shares of the labels alone {alone:.4f}."
        )
    if scores["classes_without_test_positives"]:
        names = first_few(scores["classes_without_test_positives"])
        lines.append(f"These labels have no test image and are left out of the means: {names}")
    return "\n".join(lines)


def read_scores(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a `metrics.json` of this version or an earlier one, which has fewer metrics.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file holds no scores, or was changed; the message names it.
    """
    scores = _SCORES.read(path)
    try:
        msgspec.convert(scores, _Scores)
        for metric in metrics.METRICS:
            metric.read(scores)
    except (ValueError, TypeError, AttributeError) as error:
        raise _SCORES.unusable(path, error) from error
    return scores


def write_scores(scores: dict[str, Any], path: str | os.PathLike) -> None:
    """Writes scores as JSON, as a whole or not at all, with the curve of a class on one line."""
    document = _SCORES.document(scores)
    others = {name: value for name, value in document.items() if name != "curves"}
    text = json.dumps(others, ensure_ascii=False, indent=1)
    lines = ",\n".join(
        f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(curve)}"
        for name, curve in scores["curves"].items()
    )
    with atomic.replacing(path) as tmp_path, open(tmp_path, "w", encoding="utf-8") as file:
        file.write(f'{text[:-2]},\n "curves": {{\n{lines}\n }}\n}}\n')
