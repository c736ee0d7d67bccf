"""mAP of every method, at its default learning rate and at the best one by cross-validation.

    python -m benchmarks.methods --output_dir=DIR --examples=FILE.npz

Heads are trained on features, such as `python -m pipelines.write_features` makes of images. `auto`
chooses among methods as `--method=auto` does, anew for every seed. The learning rates are chosen on
folds of the training split; the test split is read once for each row of `methods.csv`. Started
again, the program goes on behind the last row.
"""

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from benchmarks.scoring import Scores, difference_cell, head_config, mean_cell, score
from dbl_tf import methods, metrics
from dbl_tf.statistics import LabelStatistics
from pipelines import folds
from pipelines.examples import LabelledData
from pipelines.runs import flags as run_flags
from pipelines.runs import select
from pipelines.runs.config import AUTO, ResolvedConfig, RunConfig

_DEFAULT_RATE, _BEST_RATE = "default", "cross-validated"


class Comparison:
    """Trains heads on one data set and keeps their scores.

    Args:
        asked: the settings that all have in common.
        output_dir: the folder of the results.
        num_folds: the number of folds on which learning rates are compared.
    """

    def __init__(self, asked: RunConfig, output_dir: pathlib.Path, num_folds: int):
        self.asked, self.output_dir = asked, output_dir
        self.data = asked.load_data()
        train = self.data.splits["train"]
        self.groups = LabelStatistics.from_labels(train.labels, self.data.class_names).groups
        self.folds = folds.stratified_folds(train.labels, num_folds)
        self.scores = Scores(output_dir / "methods.csv")

    def config_of(self, method: str, factor: float, seed: int) -> ResolvedConfig:
        """Returns the configuration of a head at a multiple of its default rate."""
        config = head_config(self.asked.with_settings(method=method, seed=seed), self.data)
        return dataclasses.replace(config, learning_rate=factor * config.learning_rate)

    def on_test(self, method: str, factor: float, seed: int) -> dict[str, Any]:
        """Returns the row of a head that is trained on the whole training split."""
        return self._row(method, factor, seed, "test", self.data)

    def best_factor(self, method: str, factors: Sequence[float]) -> float:
        """Returns the factor with the highest mean over the folds."""
        means = []
        for factor in factors:
            totals = []
            for fold in range(int(self.folds.max()) + 1):
                part = folds.held_out(self.data, self.folds, fold)
                row = self._row(method, factor, 0, f"fold {fold}", part)
                totals.append(float(row["total"]))
            means.append(np.mean(totals))
        return factors[int(np.argmax(means))]

    def choose(self, seed: int) -> tuple[str, float]:
        """Returns the method that `--method=auto` takes, and the seconds that it needed."""
        rows = self.scores.of(method=AUTO, seed=seed)
        if not rows:
            asked = self.asked.with_settings(
                method=AUTO,
                seed=seed,
                data_seed=seed,
                run_dir=str(self.output_dir / f"auto-{seed}"),
            )
            started = time.monotonic()
            method = select.choose(asked, self.data).method
            seconds = time.monotonic() - started
            self.scores.add(
                method=AUTO, factor=method, seed=seed, judged_on="choice", seconds=seconds
            )
            rows = self.scores.of(method=AUTO, seed=seed)
        return rows[0]["factor"], float(rows[0]["seconds"])

    def _row(
        self, method: str, factor: float, seed: int, judged_on: str, data: LabelledData
    ) -> dict[str, Any]:
        keys = {"method": method, "factor": round(factor, 4), "seed": seed, "judged_on": judged_on}
        if not self.scores.of(**keys):
            config = self.config_of(method, factor, seed)
            try:
                found = score(config, data, self.groups)
            except FloatingPointError:
                found = dict.fromkeys((*metrics.TOTAL_AND_GROUPS, "seconds"), 0.0)
            self.scores.add(**keys, **found)
        return self.scores.of(**keys)[0]


def table(rows_of: dict[str, list[dict[str, Any]]], reference: str) -> list[str]:
    """Returns a line for each method: its mAP by group, and what it adds to the reference."""

    def values(method: str, group: str) -> dict[int, float]:
        return {seed: float(row[group]) for seed, row in enumerate(rows_of[method])}

    lines = [f"| method | {' | '.join(metrics.TOTAL_AND_GROUPS)} | total − {reference} |"]
    lines.append("|---|" + "---|" * 5)
    for method in rows_of:
        cells = [mean_cell(values(method, group).values()) for group in metrics.TOTAL_AND_GROUPS]
        totals = values(method, "total"), values(reference, "total")
        cells.append("" if method == reference else difference_cell(*totals))
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return lines


_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the results.", required=True)
_METHODS = flags.DEFINE_list(
    "methods",
    [name for name in methods.METHODS if name != "ml_gcn"],
    "Methods to compare. ml_gcn is left out, whose rate is that of another classifier.",
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds of each method.")
_FACTORS = flags.DEFINE_list(
    "rate_factors",
    ["0.3333", "1", "3"],
    "Multiples of the default rate to choose from.",
)
_RATE_FOLDS = flags.DEFINE_integer("rate_folds", 3, "Folds on which learning rates are compared.")
_WITH_AUTO = flags.DEFINE_boolean("auto", True, f"Choose by --method={AUTO} too.")
run_flags.define(
    RunConfig,
    without=("method", "seed", "run_dir", "held_out"),
    defaults={"dataset": "features"},
)


def main(argv: list[str]) -> None:
    """Trains what is missing and prints the tables."""
    del argv
    output_dir = pathlib.Path(_OUTPUT_DIR.value)
    output_dir.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(run_flags.read(RunConfig), output_dir, _RATE_FOLDS.value)
    seeds = [int(seed) for seed in _SEEDS.value]
    factors = [float(factor) for factor in _FACTORS.value]
    at_default: dict[str, list[dict[str, Any]]] = {name: [] for name in _METHODS.value}
    for seed in seeds:
        for name, rows in at_default.items():
            rows.append(comparison.on_test(name, 1.0, seed))
    if _WITH_AUTO.value:
        choices = [comparison.choose(seed) for seed in seeds]
        at_default[AUTO] = [
            comparison.on_test(method, 1.0, seed)
            for seed, (method, _) in zip(seeds, choices, strict=True)
        ]
        for seed, (method, seconds) in zip(seeds, choices, strict=True):
            print(f"auto, seed {seed}: {method} in {seconds:.0f} s")
    at_best: dict[str, list[dict[str, Any]]] = {}
    for name in _METHODS.value:
        factor = comparison.best_factor(name, factors)
        print(f"{name}: the best rate is {factor} × the default")
        at_best[name] = [comparison.on_test(name, factor, seed) for seed in seeds]
    for title, rows_of in ((_DEFAULT_RATE, at_default), (_BEST_RATE, at_best)):
        print("\n".join(["", f"{title} learning rates:", *table(rows_of, _METHODS.value[0])]))


if __name__ == "__main__":
    run_flags.run(main)
