"""mAP where some training labels are hidden: taken as unknown, or as negative.

    python -m benchmarks.hidden_labels --output_dir=DIR --examples=FILE.npz

Each seed hides a share of the training labels at random, positive and negative ones alike, and
trains a head on features with every method at its default rate: on all labels, with the hidden ones
left out as unknown, and with the hidden ones as negative, as data have it in which only what was
seen was written down. The test split is untouched. Differences are those at the same seed to the
first method with hidden labels as negative. Started again, the program goes on behind the last row
of `hidden_labels.csv`.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from absl import app, flags

from benchmarks.scoring import Scores, score
from dbl_tf import metrics
from dbl_tf.statistics import LabelStatistics
from pipelines.differences import PairedDifference, mean_and_error
from pipelines.examples import Examples, LabelledData
from pipelines.runs import flags as run_flags
from pipelines.runs import resolution
from pipelines.runs.config import RunConfig

# What becomes of the hidden labels.
SHOWN, UNKNOWN, NEGATIVE = "shown", "unknown", "negative"
TREATMENTS = (SHOWN, UNKNOWN, NEGATIVE)


def hide(examples: Examples, share: float, treatment: str, seed: int) -> Examples:
    """Returns examples of which a share of the labels is hidden.

    Args:
        examples: the N examples, of which all labels are known.
        share: the share of the N·C labels, in [0, 1).
        treatment: what becomes of the hidden labels, one of `TREATMENTS`.
        seed: the seed of the choice, which does not depend on the treatment.
    """
    if treatment == SHOWN:
        return examples
    hidden = np.random.default_rng(seed).random(examples.labels.shape) < share
    labels = scipy.sparse.csr_array(examples.labels.toarray() & ~hidden)
    unknown = scipy.sparse.csr_array(hidden) if treatment == UNKNOWN else None
    return dataclasses.replace(examples, labels=labels, unknown=unknown)


def train(
    asked: RunConfig, data: LabelledData, scores: Scores, share: float, row: tuple[str, str, int]
) -> None:
    """Trains the head of a row that is not there yet, and adds the row."""
    method, treatment, seed = row
    keys = {"method": method, "hidden": treatment, "share": share, "seed": seed}
    if scores.of(**keys):
        return
    train_split = data.splits["train"]
    groups = LabelStatistics.from_labels(train_split.labels, data.class_names).groups
    splits = {**data.splits, "train": hide(train_split, share, treatment, seed)}
    config = resolution.resolve(asked.with_settings(method=method, seed=seed), data)
    config = resolution.head_alone(config, 1)
    config = dataclasses.replace(config, keep="last", patience=None)
    found = score(config, dataclasses.replace(data, splits=splits), groups)
    scores.add(**keys, **found)


def table(
    scores: Scores, share: float, rows: Sequence[tuple[str, str]], seeds: Sequence[int]
) -> list[str]:
    """Returns a line for each method and treatment: mAP by group, and the paired difference."""

    def values(row: tuple[str, str], group: str) -> dict[int, float]:
        method, treatment = row
        found = scores.of(method=method, hidden=treatment, share=share)
        return {int(r["seed"]): float(r[group]) for r in found if int(r["seed"]) in seeds}

    reference = next(row for row in rows if row[1] == NEGATIVE)
    heading = f"total − `{reference[0]}`, {reference[1]}"
    lines = [f"| method | hidden | {' | '.join(metrics.TOTAL_AND_GROUPS)} | {heading} |"]
    lines.append("|---|---|" + "---|" * 5)
    for row in rows:
        cells = []
        for group in metrics.TOTAL_AND_GROUPS:
            mean, error = mean_and_error(np.array(list(values(row, group).values())))
            cells.append(f"{mean:.2f} ± {error:.2f}")
        paired = PairedDifference.of(values(row, "total"), values(reference, "total"))
        mark = "" if row == reference else f"{paired.mean:+.2f} ± {paired.standard_error:.2f}"
        line = f"| `{row[0]}` | {row[1]} | {' | '.join(cells)} | {mark} |"
        lines.append(line.replace("-", "−"))
    return lines


_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the results.", required=True)
_METHODS = flags.DEFINE_list("methods", ["erm", "db", "splc", "hill"], "Methods to compare.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds of each method.")
_SHARE = flags.DEFINE_float("share", 0.3, "Share of the training labels that is hidden.")
run_flags.define(
    RunConfig,
    without=("method", "seed", "run_dir", "held_out"),
    defaults={"dataset": "features"},
)


def main(argv: list[str]) -> None:
    """Trains what is missing and prints the table."""
    del argv
    output_dir = pathlib.Path(_OUTPUT_DIR.value)
    output_dir.mkdir(parents=True, exist_ok=True)
    scores = Scores(output_dir / "hidden_labels.csv")
    asked = run_flags.read(RunConfig)
    data = asked.load_data()
    rows = [(method, treatment) for method in _METHODS.value for treatment in TREATMENTS]
    seeds = [int(seed) for seed in _SEEDS.value]
    for seed in seeds:
        for method, treatment in rows:
            train(asked, data, scores, _SHARE.value, (method, treatment, seed))
    print("\n".join(table(scores, _SHARE.value, rows, seeds)))


if __name__ == "__main__":
    app.run(main, flags_parser=run_flags.parse)
