"""What a model answered on the test split, and what that is worth."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from dbl_tf import files
from dbl_tf.statistics import LabelStatistics
from pipelines.datasets import Examples


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Where each class counts as present, and the split on which that was chosen."""

    values: np.ndarray
    chosen_on: str

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON."""
        content = {"thresholds": self.values.tolist(), "chosen_on": self.chosen_on}
        with files.replacing(path) as beside:
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
