"""mAP at multiples of the default learning rate, with classes dropped and doubled.

    python -m benchmarks.learning_rates --output_dir=DIR --examples=FILE.npz

A default that suits every number of classes is near the best of its multiples at each. Classes are
dropped at random; they are doubled by giving each example of a class to one of two halves of it.
A few classes have few test examples, so that their mAP is mostly chance: `--draws` averages it over
several choices of the classes.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator

import numpy as np
import scipy.sparse
from absl import flags

from benchmarks.scoring import Scores, head_config, mean_cell, score
from dbl_tf.statistics import LabelStatistics
from pipelines.examples import LabelledData
from pipelines.runs import flags as run_flags
from pipelines.runs.config import RunConfig

FACTORS = (1 / 9, 1 / 3, 1, 3, 9)


def with_classes(data: LabelledData, num_classes: int, seed: int = 0) -> LabelledData:
    """Returns data with some of the classes, or with halves of some or all of them."""
    random = np.random.default_rng(seed)
    before = len(data.class_names)
    kept = np.sort(random.permutation(before)[: min(num_classes, before)])
    doubled = np.sort(random.permutation(before)[: max(num_classes - before, 0)])

    def labels_of(labels: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
        dense = labels.toarray()
        in_first = random.random(dense.shape) < 0.5
        halves = dense[:, doubled] & ~in_first[:, doubled]
        dense[:, doubled] &= in_first[:, doubled]
        return scipy.sparse.csr_array(np.hstack([dense[:, kept], halves]))

    splits = {
        name: dataclasses.replace(examples, labels=labels_of(examples.labels))
        for name, examples in data.splits.items()
    }
    names = [data.class_names[i] for i in kept] + [f"{data.class_names[i]}, half" for i in doubled]
    return dataclasses.replace(data, class_names=tuple(names), splits=splits)


def table(scores: Scores) -> Iterator[str]:
    """Yields a line for each method and number of classes."""
    yield f"| method | C | {' | '.join(f'{factor:.3g} ×' for factor in FACTORS)} |"
    yield "|---|---|" + "---|" * len(FACTORS)
    for method, num_classes in dict.fromkeys(
        (row["method"], row["classes"]) for row in scores.rows
    ):
        cells = []
        for factor in FACTORS:
            rows = scores.of(method=method, classes=num_classes, factor=round(factor, 4))
            cells.append(mean_cell(float(row["total"]) for row in rows))
        yield f"| `{method}` | {num_classes} | {' | '.join(cells)} |"


_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the results.", required=True)
_METHODS = flags.DEFINE_list("methods", ["erm", "db_focal"], "Methods to train.")
_CLASSES = flags.DEFINE_list("classes", None, "Numbers of classes.", required=True)
_DRAWS = flags.DEFINE_integer("draws", 1, "Choices of the classes.", lower_bound=1)
run_flags.define(
    RunConfig,
    without=("method", "run_dir", "held_out"),
    defaults={"dataset": "features", "clamp_counts": True},
)


def main(argv: list[str]) -> None:
    """Trains what is missing and prints the table."""
    del argv
    asked = run_flags.read(RunConfig)
    original = asked.load_data()
    output_dir = pathlib.Path(_OUTPUT_DIR.value)
    output_dir.mkdir(parents=True, exist_ok=True)
    scores = Scores(output_dir / "learning_rates.csv")
    for num_classes, draw in itertools.product(map(int, _CLASSES.value), range(_DRAWS.value)):
        data = with_classes(original, num_classes, seed=draw)
        train = data.splits["train"]
        groups = LabelStatistics.from_labels(train.labels, data.class_names).groups
        for method in _METHODS.value:
            config = head_config(asked.with_settings(method=method), data)
            for factor in FACTORS:
                keys = dict(method=method, classes=num_classes, draw=draw, factor=round(factor, 4))
                if not scores.of(**keys):
                    rate = factor * config.learning_rate
                    scaled = dataclasses.replace(config, learning_rate=rate)
                    scores.add(**keys, **score(scaled, data, groups))
    print("\n".join(table(scores)))


if __name__ == "__main__":
    run_flags.run(main)
