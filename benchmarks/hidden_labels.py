"""mAP where some training labels are hidden: taken as unknown, or as negative.

    python -m benchmarks.hidden_labels --output_dir=DIR --examples=FILE.npz

Each seed hides a share of the training labels at random, positive and negative ones alike, and
trains a head on features with every method at its default rate: on all labels, with the hidden ones
left out as unknown, and with the hidden ones as negative, as data have it in which only what was
seen was written down. The test split is untouched. Started again, the program goes on behind the
last row of `hidden_labels.csv`, which has the scores by group too.
"""

import dataclasses
import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from absl import flags

from benchmarks.scoring import Scores, difference_cell, head_config, mean_cell, score
from dbl_tf.statistics import LabelStatistics
from pipelines.examples import Examples, LabelledData
from pipelines.runs import flags as run_flags
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
    config = head_config(asked.with_settings(method=method, seed=seed), data)
    found = score(config, dataclasses.replace(data, splits=splits), groups)
    scores.add(**keys, **found)


def table(scores: Scores, share: float, methods: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Returns a line for each method: its total mAP by treatment, and differences at equal seeds.

    The first method, with hidden labels as unknown, is compared with each of them, with hidden
    labels as negative.
    """

    def totals(method: str, treatment: str) -> dict[int, float]:
        found = scores.of(method=method, hidden=treatment, share=share)
        return {int(row["seed"]): float(row["total"]) for row in found if int(row["seed"]) in seeds}

    headings = [*TREATMENTS, f"{UNKNOWN} − {NEGATIVE}", f"`{methods[0]}`, {UNKNOWN} − {NEGATIVE}"]
    lines = [f"| method | {' | '.join(headings)} |", "|---|" + "---|" * len(headings)]
    for method in methods:
        by_treatment = {treatment: totals(method, treatment) for treatment in TREATMENTS}
        cells = [mean_cell(of_treatment.values()) for of_treatment in by_treatment.values()]
        cells.append(difference_cell(by_treatment[UNKNOWN], by_treatment[NEGATIVE]))
        cells.append(difference_cell(totals(methods[0], UNKNOWN), by_treatment[NEGATIVE]))
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
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
    seeds = [int(seed) for seed in _SEEDS.value]
    for seed in seeds:
        for method in _METHODS.value:
            for treatment in TREATMENTS:
                train(asked, data, scores, _SHARE.value, (method, treatment, seed))
    print("\n".join(table(scores, _SHARE.value, _METHODS.value, seeds)))


if __name__ == "__main__":
    run_flags.run(main)
