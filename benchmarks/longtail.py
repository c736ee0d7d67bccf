r"""Draws new VOC-MLT training sets by the project's construction, and compares them with the list.

    python -m benchmarks.longtail --labels=voc2012_trainval.csv

The file lists the labels of VOC 2012 train-val (columns image_id and labels, the labels separated
by spaces). The program takes seconds. The draws cannot equal the authors' list, because they
published the images that they drew, not the draw.
"""

import os
from collections.abc import Sequence

import numpy as np
from absl import app, flags

from benchmarks import label_lists
from dbl_tf.messages import first_few
from dbl_tf.statistics import LabelStatistics
from pipelines import longtail

MAX_COUNT, POWER = 800, 6.0

# Of the list of 1 142 images that the authors published.
PUBLISHED_NUM_IMAGES = 1142
PUBLISHED_COUNTS = {
    "person": 775,
    "chair": 479,
    "car": 249,
    "diningtable": 240,
    "bottle": 154,
    "pottedplant": 100,
    "sofa": 82,
    "tvmonitor": 64,
    "dog": 48,
    "bicycle": 34,
    "cat": 29,
    "motorbike": 20,
    "bus": 17,
    "boat": 14,
    "horse": 11,
    "bird": 8,
    "train": 7,
    "aeroplane": 6,
    "sheep": 5,
    "cow": 4,
}

_LABELS = flags.DEFINE_string("labels", None, "CSV of image_id and labels.", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 20, "How many draws.", lower_bound=2)


def main(argv: list[str]) -> None:
    """Draws the sets and prints their counts."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        names, labels = read_labels(_LABELS.value)
    except (ValueError, OSError) as error:
        raise SystemExit(f"benchmarks.longtail: {error}") from error
    print(compare(names, labels, _SEEDS.value))


def read_labels(path: str | os.PathLike) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes, sorted, and the multi-hot labels, bool (N, C), of a list of labels.

    Raises:
        ValueError: no column of labels, or other classes than those of VOC.
    """
    names, labels = label_lists.read(path)
    if different := set(names) ^ set(PUBLISHED_COUNTS):
        raise ValueError(
            f"{path} must list the 20 classes of VOC; these are missing or others: "
            f"{first_few(sorted(different), limit=20)}"
        )
    return names, labels.toarray()


def compare(names: Sequence[str], labels: np.ndarray, num_seeds: int) -> str:
    """Makes a table of the draws with seeds 0, 1, … and of the authors' list.

    Args:
        names: C classes.
        labels: multi-hot (N, C).
        num_seeds: draws.
    """
    of_all = LabelStatistics.from_labels(labels, names)
    ranking, references = longtail.references_of_classes(of_all, max_count=MAX_COUNT, power=POWER)
    subsets = [
        labels[longtail.pareto_subset(labels, max_count=MAX_COUNT, power=POWER, seed=seed)]
        for seed in range(num_seeds)
    ]
    drawn = np.array([_figures(len(subset), subset.sum(axis=0)) for subset in subsets])
    counts = np.array([subset.sum(axis=0)[ranking] for subset in subsets])
    ratios = [longtail.mean_log_ratio(of_subset, references) for of_subset in counts]
    authors = np.array([PUBLISHED_COUNTS[names[c]] for c in ranking])
    authors_ratio = longtail.mean_log_ratio(authors, references)

    header = "seed       images  maximum  minimum  head  medium  tail  |log(count/reference)|"
    widths = (7, 8, 8, 5, 7, 5)

    def line(name: str, figures: Sequence[float], ratio: float, digits: int = 0) -> str:
        cells = " ".join(f"{x:{w}.{digits}f}" for x, w in zip(figures, widths, strict=True))
        return f"{name:<9} {cells}  {ratio:21.3f}"

    lines = [f"{len(labels)} images, {len(names)} classes; maximum {MAX_COUNT}, power {POWER:g}"]
    lines += ["", header]
    lines += [line(str(i), *of_draw) for i, of_draw in enumerate(zip(drawn, ratios, strict=True))]
    lines.append(line("mean", drawn.mean(axis=0), np.mean(ratios), digits=1))
    lines.append(line("± sd", drawn.std(axis=0, ddof=1), np.std(ratios, ddof=1), digits=1))
    published = _figures(PUBLISHED_NUM_IMAGES, authors)
    lines.append(line("authors'", published, authors_ratio))

    by_place = np.sort(counts, axis=1)[:, ::-1]
    lines += ["", "sorted counts: place, mean ± sd of the draws, the authors'"]
    for place, authors_count in enumerate(np.sort(authors)[::-1]):
        mean, deviation = by_place[:, place].mean(), by_place[:, place].std(ddof=1)
        lines.append(f"{place + 1:5} {mean:8.1f} ± {deviation:5.1f} {authors_count:7}")
    lines += ["", "by class, from head to tail: reference, mean ± sd of the draws, the authors'"]
    for i, c in enumerate(ranking):
        mean, deviation = counts[:, i].mean(), counts[:, i].std(ddof=1)
        lines.append(
            f"{names[c]:<12} {references[i]:5} {mean:8.1f} ± {deviation:5.1f} {authors[i]:7}"
        )
    return "\n".join(lines)


def _figures(num_images: int, counts: np.ndarray) -> list[int]:
    """Images, largest and smallest count, classes in head, medium and tail."""
    no_cooccurrence = np.diag(counts)
    names = tuple(map(str, range(len(counts))))
    groups = LabelStatistics(counts, num_images, no_cooccurrence, names).groups
    return [num_images, counts.max(), counts.min(), *map(len, groups.values())]


if __name__ == "__main__":
    app.run(main)
