r"""Compares time and memory of exact mean average precision with those of scikit-learn.

    python -m benchmarks.evaluation --sizes=5000x80,100000x1203 --cores=1,2 --output=evaluation.json

Scores are float32 probabilities of a model that finds some of the labels, and class counts fall
along a geometric series. The program checks that both give the same average precisions. If there
are more classes than `--scikit_learn_classes`, scikit-learn gets only that many of them, evenly
spaced from frequent to rare, and its time is scaled up, because it treats the classes one by one.
Memory is the peak of a separate process in excess of what it held before.
"""

import functools
import os
import tempfile
from typing import Any

import numpy as np
from absl import flags

from benchmarks import measuring

SIZES = ((5_000, 80), (100_000, 1_203))
_FILES = ("labels.npy", "scores.npy")


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    sizes = [f"{examples}x{classes}" for examples, classes in SIZES]
    return [
        flags.DEFINE_list("sizes", sizes, "Examples and classes, NxC."),
        flags.DEFINE_list("cores", ["1", "2"], "How many cores may be used; those there are."),
        flags.DEFINE_integer("rounds", 5, "Timings of each.", lower_bound=1),
        flags.DEFINE_integer(
            "scikit_learn_classes", 80, "Most classes that scikit-learn is given.", lower_bound=1
        ),
    ]


def measure(
    sizes: list[str], cores: list[str], rounds: int, scikit_learn_classes: int
) -> dict[str, Any]:
    """Times both at every size on every number of cores, and asks for their memory."""
    from dbl_tf.cores import usable_cores

    pairs = [_size(text) for text in sizes]
    times, skipped, memory = {}, [], {}
    for count in map(int, cores):
        if count > usable_cores():
            skipped.append(f"{count} cores: this process may use {usable_cores()}")
            continue
        for pair in pairs:
            name = f"{pair[0]}x{pair[1]}, {count} core{'s' * (count > 1)}"
            times[name] = measuring.in_process_of_its_own(
                measure_time, *pair, count, rounds, scikit_learn_classes
            )
    for examples, classes in pairs:
        with tempfile.TemporaryDirectory() as scratch:
            for name, array in zip(_FILES, make_scores(examples, classes), strict=True):
                np.save(os.path.join(scratch, name), array)
            memory[f"{examples}x{classes}"] = {
                library: measuring.in_process_of_its_own(
                    measure_memory, library, scratch, scikit_learn_classes
                )
                for library in ("dbl_tf", "scikit-learn")
            }
    return {"times": times, "memory": memory, "skipped": skipped}


def make_scores(num_examples: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Makes labels, bool (N, C), and scores, float32 (N, C)."""
    random = np.random.default_rng(0)
    counts = np.geomspace(num_examples // 3, min(5, num_examples // 3), num_classes).astype(int)
    labels = np.zeros((num_examples, num_classes), bool)
    for i, count in enumerate(counts):
        labels[random.integers(num_examples, size=count), i] = True
    scores = random.standard_normal((num_examples, num_classes), np.float32)
    scores -= 2.0
    scores[labels] += 1.5
    np.exp(-scores, out=scores)
    scores += 1.0
    return labels, np.reciprocal(scores, out=scores)


def measure_time(
    num_examples: int, num_classes: int, cores: int, rounds: int, scikit_learn_classes: int
) -> dict[str, Any]:
    """Times both in turns, in this process, and compares their results."""
    from sklearn.metrics import average_precision_score

    from dbl_tf import metrics

    labels, scores = make_scores(num_examples, num_classes)
    chosen = _chosen(num_classes, scikit_learn_classes)
    some_labels, some_scores = labels[:, chosen], scores[:, chosen]
    with measuring.on_cores(cores):
        ours = metrics.average_precision(some_labels, some_scores)
        theirs = average_precision_score(some_labels, some_scores, average=None)
        candidates = {
            "dbl_tf": functools.partial(metrics.average_precision, labels, scores),
            "scikit-learn": functools.partial(
                average_precision_score, some_labels, some_scores, average=None
            ),
        }
        seconds = measuring.in_turns(candidates, rounds=rounds).seconds
    scaled = [value * num_classes / len(chosen) for value in seconds["scikit-learn"]]
    return {
        "dbl_tf": measuring.quartiles(seconds["dbl_tf"]),
        "scikit-learn": measuring.quartiles(scaled),
        "scikit_learn_classes": len(chosen),
        "times_faster": measuring.ratio(scaled, seconds["dbl_tf"]),
        "largest_difference": float(np.max(np.abs(ours - theirs))),
    }


def measure_memory(library: str, folder: str, scikit_learn_classes: int) -> dict[str, float]:
    """Measures the peak memory of one evaluation, in this process, in excess of its input."""
    from sklearn.metrics import average_precision_score

    from dbl_tf import metrics

    labels, scores = (np.load(os.path.join(folder, name)) for name in _FILES)
    evaluate = metrics.average_precision
    if library == "scikit-learn":
        chosen = _chosen(labels.shape[1], scikit_learn_classes)
        labels, scores = labels[:, chosen], scores[:, chosen]
        evaluate = functools.partial(average_precision_score, average=None)
    evaluate(np.eye(2, dtype=bool), np.eye(2, dtype=np.float32))
    given = (labels.nbytes + scores.nbytes) / 2**20
    with measuring.Stage() as stage:
        evaluate(labels, scores)
    figures = stage.figures()
    return {"given_mib": given, "added_mib": figures["mib_peak"] - figures["mib_before"]}


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as tables."""
    times = [
        [
            name,
            measuring.show_seconds(figures["dbl_tf"]["median"]),
            measuring.show_seconds(figures["scikit-learn"]["median"]),
            measuring.show(figures["times_faster"], digits=1),
            f"{figures['largest_difference']:.1g}",
        ]
        for name, figures in result["times"].items()
    ]
    memory = [
        [f"{size}, {library}", f"{figures['given_mib']:.0f}", f"{figures['added_mib']:.0f}"]
        for size, libraries in result["memory"].items()
        for library, figures in libraries.items()
    ]
    header = ["average precision", "dbl_tf", "scikit-learn", "times faster", "difference"]
    return "\n".join(
        [
            measuring.table(header, times),
            *result["skipped"],
            "",
            measuring.table(["peak memory", "given, MiB", "beyond, MiB"], memory),
        ]
    )


def _chosen(num_classes: int, at_most: int) -> np.ndarray:
    return np.unique(np.linspace(0, num_classes - 1, min(at_most, num_classes)).astype(int))


def _size(text: str) -> tuple[int, int]:
    examples, _, classes = text.partition("x")
    if not (examples.isdigit() and classes.isdigit() and int(examples) > 2 and int(classes) > 1):
        raise ValueError(f"--sizes takes NxC, as 5000x80; got {text!r}")
    return int(examples), int(classes)


if __name__ == "__main__":
    measuring.run("evaluation", define_flags, measure, describe)
