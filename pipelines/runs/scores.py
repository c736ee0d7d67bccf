"""What a model answered on the test split, and what that is worth: `metrics.json` and its table."""

import csv
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from dbl_tf import atomic, metrics
from dbl_tf.statistics import GROUP_NAMES, LabelStatistics
from pipelines.examples import Examples


def score(
    labels: Any,
    probabilities: np.ndarray,
    statistics: LabelStatistics,
    thresholds: np.ndarray,
    thresholds_from: str,
) -> dict[str, Any]:
    """What `metrics.json` holds; NaN, which JSON lacks, as None.

    Args:
        labels: multi-hot (N, C) of the test split.
        probabilities: (N, C).
        statistics: of the training labels, which decide the groups.
        thresholds: (C,), chosen on another split.
        thresholds_from: name of that split.
    """
    labels = np.asarray(labels, bool)
    class_names, groups = statistics.class_names, statistics.groups
    group_of = {int(i): name for name in GROUP_NAMES for i in groups[name]}
    average_precision = metrics.average_precision(labels, probabilities)
    at_half = metrics.precision_recall_f1(labels, probabilities, 0.5)
    at_threshold = metrics.precision_recall_f1(labels, probabilities, thresholds)
    test_counts = labels.sum(axis=0)
    per_class = {
        name: {
            "ap": average_precision[i],
            "train_count": int(statistics.class_counts[i]),
            "test_count": int(test_counts[i]),
            "group": group_of[i],
            "at_0.5": {key: at_half[key][i] for key in ("precision", "recall", "f1")},
            "at_threshold": {
                "threshold": thresholds[i],
                **{key: at_threshold[key][i] for key in ("precision", "recall", "f1")},
            },
        }
        for i, name in enumerate(class_names)
    }
    return _without_nan(
        {
            "mAP": metrics.mean_by_group(average_precision, groups),
            "F1": {
                "micro_at_0.5": at_half["micro_f1"],
                "macro_at_0.5": at_half["macro_f1"],
                "micro_at_threshold": at_threshold["micro_f1"],
                "macro_at_threshold": at_threshold["macro_f1"],
                "thresholds_from": thresholds_from,
            },
            "num_test_examples": len(labels),
            "classes_without_test_positives": [
                name for name, count in zip(class_names, test_counts, strict=True) if count == 0
            ],
            "per_class": per_class,
        }
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, float | np.floating):
        return None if math.isnan(value) else float(value)
    return value


def format_table(scores: dict[str, Any]) -> str:
    """The scores of `score` as a table of text, mAP in percent by group."""
    counts = {name: 0 for name in ("total", *GROUP_NAMES)}
    for entry in scores["per_class"].values():
        counts["total"] += 1
        counts[entry["group"]] += 1
    lines = [f"{'':8}{'total':>8}" + "".join(f"{name:>8}" for name in GROUP_NAMES)]
    lines.append(f"{'classes':8}" + "".join(f"{counts[name]:8}" for name in counts))
    cells = (scores["mAP"][name] for name in counts)
    lines.append(
        f"{'mAP %':8}" + "".join(f"{'–':>8}" if v is None else f"{100 * v:8.2f}" for v in cells)
    )
    f1 = scores["F1"]
    lines.append(
        f"micro F1 {100 * f1['micro_at_threshold']:.2f} %, macro F1 "
        f"{100 * f1['macro_at_threshold']:.2f} % at thresholds chosen on {f1['thresholds_from']}"
    )
    if scores["classes_without_test_positives"]:
        names = ", ".join(scores["classes_without_test_positives"])
        lines.append(f"without positives in test, so left out of the means: {names}")
    return "\n".join(lines)


def write_scores(scores: dict[str, Any], path: str | os.PathLike) -> None:
    """Writes the scores as JSON, whole or not at all."""
    with atomic.replacing(path) as beside, open(beside, "w", encoding="utf-8") as file:
        json.dump(scores, file, ensure_ascii=False, indent=1, allow_nan=False)


def write_predictions(
    names: Sequence[str],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    path: str | os.PathLike,
    errors: Sequence[str] | None = None,
) -> None:
    """Writes a CSV file: a row for each image, a column of probabilities for each class.

    Nine digits, which float32 needs to come back as it was. With `errors` a column `error` follows
    the image, and a row that has one holds no probabilities.
    """
    with atomic.replacing(path) as beside, open(beside, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *([] if errors is None else ["error"]), *class_names])
        for i, (name, row) in enumerate(zip(names, probabilities, strict=True)):
            cells = [f"{p:.9g}" for p in row]
            if errors is not None:
                cells = [errors[i], *([""] * len(cells) if errors[i] else cells)]
            writer.writerow([name, *cells])


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Where each class counts as present, and the split on which that was chosen."""

    values: np.ndarray
    chosen_on: str

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON."""
        content = {"thresholds": self.values.tolist(), "chosen_on": self.chosen_on}
        with atomic.replacing(path) as beside:
            beside.write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Thresholds":
        """Reads what `save` wrote."""
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        return cls(np.array(content["thresholds"]), content["chosen_on"])


@dataclasses.dataclass(frozen=True)
class Scored:
    """A model's answers on the test split, and what they are worth.

    Attributes:
        test: the examples.
        class_names: C names.
        statistics: of the training labels.
        probabilities: float32 (N, C).
        thresholds: from which on a class counts as present.
        scores: what `metrics.json` holds.
    """

    test: Examples
    class_names: tuple[str, ...]
    statistics: LabelStatistics
    probabilities: np.ndarray
    thresholds: Thresholds
    scores: dict[str, Any]
