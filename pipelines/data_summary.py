"""Describes how data were understood, for a person who has never trained on them."""

from collections.abc import Iterator, Mapping

import numpy as np

from dbl_tf.messages import first_few, first_lines, quoted
from dbl_tf.statistics import LabelStatistics
from pipelines import doubles
from pipelines.examples import Examples, LabelledData
from pipelines.tables.splits import SPLITS

NUM_PAIRS = 10
NUM_ROWS = 5
# Of more classes, only the most and the least frequent ones are listed.
MOST_CLASSES = 100
_NUM_ENDS = 20


def summarize(data: LabelledData, *, compare_images: bool = True) -> str:
    """Describes data in a first line and in sections, of which those that do not apply are missing.

    The first line is `ORIGIN: N train, N val, N test images; C classes`, also where the examples
    are features. The sections are: the classes with their counts in each split; the pairs of
    classes that come together most in train; some rows as they were understood; names that look
    like doubles; images with the same bytes in different splits; and what class-aware re-sampling
    changes.

    Args:
        data: the data, with a train split.
        compare_images: whether to look for images with the same bytes, which must then all exist.

    Raises:
        OSError: an image that should be compared cannot be read.
    """
    statistics = LabelStatistics.from_labels(data.splits["train"].targets, data.class_names)
    # The form of the first line is fixed for scripts: its numbers have no separators.
    sizes = ", ".join(f"{len(data.splits.get(name, ()))} {name}" for name in SPLITS)
    return "\n".join(
        [
            f"{data.origin}: {sizes} images; {len(data.class_names)} classes",
            *_classes(data, statistics),
            *_pairs(statistics),
            *_rows(data),
            *_similar_names(data),
            *(_same_images(data.splits) if compare_images else ()),
            *_resampling(data.splits["train"], statistics),
        ]
    )


def _classes(data: LabelledData, statistics: LabelStatistics) -> Iterator[str]:
    splits = [name for name in SPLITS if name in data.splits]
    counts = {name: data.splits[name].labels.sum(axis=0, dtype=np.int64) for name in splits}
    order = np.argsort(-statistics.class_counts, kind="stable")
    groups = ", ".join(f"{len(index):,} {name}" for name, index in statistics.groups.items())
    yield f"Classes, by their train examples ({groups}):"
    columns = counts | (
        {"unknown": sum(data.splits[name].unknown_counts for name in splits)}
        if any(data.splits[name].num_unknown for name in splits)
        else {}
    )
    yield "".join(f"{name:>8}" for name in columns) + "  class"

    def lines(classes: np.ndarray) -> Iterator[str]:
        for c in classes:
            numbers = "".join(f"{column[c]:8,}" for column in columns.values())
            yield f"{numbers}  {_shown(data.class_names[c])}"

    if len(order) <= MOST_CLASSES:
        yield from lines(order)
    else:
        yield from lines(order[:_NUM_ENDS])
        yield f"     ... {len(order) - 2 * _NUM_ENDS:,} more"
        yield from lines(order[-_NUM_ENDS:])
    unlabeled = [(name, data.splits[name].num_unlabeled) for name in splits]
    if any(count for _, count in unlabeled):
        counted = ", ".join(f"{count:,} {name}" for name, count in unlabeled)
        yield f"Without any label: {counted}"
    unknown = [(name, data.splits[name].num_unknown) for name in splits]
    if any(count for _, count in unknown):
        counted = ", ".join(f"{count:,} {name}" for name, count in unknown)
        yield f"Labels that are not known, and are left out: {counted}"


def _pairs(statistics: LabelStatistics) -> Iterator[str]:
    together = np.triu(statistics.cooccurrence, k=1)
    first, second = np.nonzero(together)
    if not len(first):
        return
    counts = together[first, second]
    order = np.lexsort((second, first, -counts))[:NUM_PAIRS]
    yield "Pairs of classes that come together most in train:"
    for i in order:
        names = (statistics.class_names[c] for c in (first[i], second[i]))
        yield f"{counts[i]:8,}  {' and '.join(map(_shown, names))}"


def _rows(data: LabelledData) -> Iterator[str]:
    splits = data.splits
    yield "Rows as they were understood:"
    names = [name for name in SPLITS if name in splits]
    places = [(i, name) for i in range(NUM_ROWS) for name in names if i < len(splits[name])]
    for i, name in sorted(places[:NUM_ROWS], key=lambda place: (SPLITS.index(place[1]), place[0])):
        labels = [quoted(data.class_names[c]) for c in splits[name].labels[[i]].indices]
        found = first_few(labels) if labels else "no label"
        yield f"  {name:5}  {quoted(splits[name].names[i])}: {found}"


def _similar_names(data: LabelledData) -> Iterator[str]:
    if groups := doubles.similar_names(data.class_names):
        yield f"Names of classes that look like doubles: {len(groups):,}"
        yield first_lines([" and ".join(map(quoted, group)) for group in groups])


def _same_images(splits: Mapping[str, Examples]) -> Iterator[str]:
    if not doubles.is_in_files(splits):
        return
    if groups := doubles.same_images(splits):
        yield f"Images with the same bytes in different splits: {len(groups):,}"
        yield first_lines(
            [
                first_few([f"{quoted(splits[name].names[i])} ({name})" for name, i in group], " = ")
                for group in groups
            ]
        )


def _resampling(train: Examples, statistics: LabelStatistics) -> Iterator[str]:
    counts = statistics.class_counts
    if not counts.any():
        return
    present = np.flatnonzero(counts)
    most, least = present[np.argmax(counts[present])], present[np.argmin(counts[present])]
    before, after = statistics.priors, statistics.resampled_probability
    yield "Class-aware re-sampling changes how often a drawn example has a class:"
    for what, c in (("most frequent", most), ("least frequent", least)):
        yield (
            f"  {what}, {_shown(statistics.class_names[c])}: p = {before[c]:.4g}, "
            f"p̂ = {after[c]:.4g} (Eq. 1)"
        )
    draws = statistics.num_examples * statistics.instance_probability(train.labels)
    yield (
        f"  an example is drawn {draws.min():.3g} to {draws.max():.3g} times as often as by "
        "uniform sampling (Eq. 2)"
    )


def _shown(name: str) -> str:
    """Returns a name, in quotes where its ends or its characters could be mistaken."""
    shown = quoted(name)
    return name if shown[1:-1] == name and name == name.strip() else shown
