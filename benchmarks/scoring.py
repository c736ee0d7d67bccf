"""What the programs on accuracy share: heads that are trained and scored, rows and tables."""

import csv
import dataclasses
import pathlib
import time
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from dbl_tf import atomic, metrics
from pipelines.differences import PairedDifference, mean_and_error
from pipelines.examples import LabelledData
from pipelines.runs import heads, resolution
from pipelines.runs.config import ResolvedConfig, RunConfig


class Scores:
    """The rows of a CSV file: what was trained, what it was judged on, and its mAP by group."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))

    def of(self, **keys: Any) -> list[dict[str, Any]]:
        """Returns the rows with these values."""
        return [
            row
            for row in self.rows
            if all(str(row.get(name)) == str(value) for name, value in keys.items())
        ]

    def add(self, **row: Any) -> None:
        """Adds a row and writes the file."""
        self.rows.append(row)
        atomic.write_csv(self.rows, self._path)
        print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def head_config(asked: RunConfig, data: LabelledData) -> ResolvedConfig:
    """Returns the configuration of a head on features that is trained to its last step."""
    config = resolution.head_alone(resolution.resolve(asked, data), len(data.splits["train"]))
    return dataclasses.replace(config, keep="last", patience=None)


def score(
    config: ResolvedConfig, data: LabelledData, groups: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Trains a head on "train" and returns the mAP on "test", by group, in percent."""
    started = time.monotonic()
    two = {name: data.splits[name] for name in ("train", "test")}
    logits = heads.logits_of_splits(config, dataclasses.replace(data, splits=two))["test"]
    precision = metrics.average_precision(two["test"].labels.toarray(), logits)
    means = metrics.mean_by_group(precision, groups)
    seconds = time.monotonic() - started
    return {name: 100 * value for name, value in means.items()} | {"seconds": seconds}


def mean_cell(values: Iterable[float]) -> str:
    """Returns the mean of values with its standard error, or the only value alone."""
    mean, error = mean_and_error(np.array([*values]))
    return f"{mean:.2f}" if np.isnan(error) else f"{mean:.2f} ± {error:.2f}"


def difference_cell(ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float]) -> str:
    """Returns the mean difference of scores by seed, with its standard error."""
    paired = PairedDifference.of(ours, theirs)
    return f"{paired.mean:+.2f} ± {paired.standard_error:.2f}".replace("-", "−")
