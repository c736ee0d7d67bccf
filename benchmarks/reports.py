r"""Measures time and size of the page of a run, by the number of labels.

    python -m benchmarks.reports --classes=20,80,1203,5000 --examples=100000

Labels are drawn at rates that fall by a factor of 10⁴, with a mean of three for each example, and
the probabilities of those that an example has are higher on average. "first" is the first page of a
process, which makes the script of the charts, and "page" another. "scores" are the scores of
`metrics.json` with the curves and intervals. The size is that of the page without pictures of
images, and the number of pictures that it would have is limited. Each number of labels runs in a
separate process.
"""

import json
import pathlib
import tempfile
from typing import Any

import numpy as np
import scipy.sparse
from absl import flags

from benchmarks import measuring

_LABELS_PER_EXAMPLE = 3


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    return [
        flags.DEFINE_list("classes", ["20", "80", "1203", "5000"], "Numbers of labels."),
        flags.DEFINE_integer("examples", 100_000, "Test examples.", lower_bound=100),
    ]


def measure(classes: list[str], examples: int) -> dict[str, Any]:
    """Measures each number of labels in a process of its own."""
    results = {
        number: measuring.in_process_of_its_own(of_labels, int(number), examples)
        for number in classes
    }
    return {"examples": examples, "pages": results}


def of_labels(num_classes: int, num_examples: int) -> dict[str, Any]:
    """Scores predictions, and writes the page twice."""
    from dbl_tf.statistics import LabelStatistics
    from pipelines.reports import run as run_page
    from pipelines.runs import scores as run_scores

    random = np.random.default_rng(0)
    rates = np.geomspace(1, 1e-4, num_classes)
    rates = np.minimum(rates * _LABELS_PER_EXAMPLE / rates.sum(), 0.5)
    shape = (num_examples, num_classes)
    labels = random.random(shape, np.float32) < rates
    train = scipy.sparse.csr_array(random.random(shape, np.float32) < rates)
    test = scipy.sparse.csr_array(labels)
    logits = random.standard_normal(shape, np.float32)
    logits += np.where(labels, 1.5, -4.0).astype(np.float32)
    probabilities = 1 / (1 + np.exp(-logits))
    del logits
    statistics = LabelStatistics.from_labels(train, [f"label {i}" for i in range(num_classes)])
    thresholds = run_scores.Thresholds(np.full(num_classes, 0.4), "val")
    with measuring.Stage() as scoring:
        scores = run_scores.score(labels, probabilities, statistics, thresholds)
    figures = {"scores": scoring.figures()}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "report.html")
        for name in ("first", "page"):
            with measuring.Stage() as stage:
                run_page.write_run_report(
                    path,
                    title="A run",
                    statistics=statistics,
                    labels=test,
                    probabilities=probabilities,
                    thresholds=thresholds.values,
                    scores=scores,
                    image_names=[f"images/{i:06}.jpg" for i in range(num_examples)],
                    read_images=None,
                    train_labels=train,
                )
            figures[name] = stage.figures()
        run_scores.write_scores(scores, path.with_name("metrics.json"))
        sizes = {
            file: path.with_name(file).stat().st_size
            for file in ("report.html", "metrics.json", run_page.SUSPECTS)
        }
        assert len(json.loads(path.with_name("metrics.json").read_text())["curves"]) == num_classes
    return {"stages": figures, "bytes": sizes}


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as a table."""
    lines = [
        f"{result['examples']} test examples",
        "",
        f"{'labels':>6}{'scores, s':>11}{'first, s':>10}{'page, s':>9}{'page, CPU s':>13}"
        f"{'peak, MiB':>11}"
        f"{'page, MB':>10}{'metrics.json, MB':>18}{'suspects, MB':>14}",
    ]
    for number, found in result["pages"].items():
        scores, first, page = (found["stages"][name] for name in ("scores", "first", "page"))
        sizes = "".join(
            f"{size / 1e6:{width}.2f}"
            for size, width in zip(found["bytes"].values(), (10, 18, 14), strict=True)
        )
        lines.append(
            f"{number:>6}{scores['seconds']:11.2f}{first['seconds']:10.2f}{page['seconds']:9.2f}"
            f"{page['cpu_seconds']:13.2f}{page['mib_peak']:11.0f}{sizes}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    measuring.run("reports", define_flags, measure, describe)
