"""Makes a long-tailed table of examples from another one by thinning its train split."""

import csv
import dataclasses
import os
import pathlib

import altair as alt
import numpy as np
import vl_convert

from dbl_tf import atomic
from dbl_tf.messages import first_few
from dbl_tf.statistics import LabelStatistics
from pipelines import longtail
from pipelines.datasets import LoadOptions, table
from pipelines.datasets.options import TableOptions

COUNTS_NAME = "counts.csv"
PICTURE_NAME = "counts.png"

_MAX_TICKS = 100  # more class names would be too small to read
# Colors that color-blind people can tell apart.
_BEFORE, _REFERENCE, _REACHED = "#999999", "#D55E00", "#0072B2"
_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


@dataclasses.dataclass(frozen=True, eq=False)
class ThinnedTable:
    """A long-tailed table, and how it was made.

    Attributes:
        examples: the path of the table.
        before: the statistics of the original train split.
        reached: the statistics of the train split of the table.
        ranking: the classes that had train examples, from head to tail, int64 (K,).
        references: the counts that the construction aimed at, int64 (K,).
        num_unlabeled: the number of train images without labels, which are left out.
    """

    examples: str
    before: LabelStatistics
    reached: LabelStatistics
    ranking: np.ndarray
    references: np.ndarray
    num_unlabeled: int

    def __str__(self) -> str:
        """Formats sizes and counts as publications of data sets do."""
        reached = self.reached.class_counts[self.ranking]
        short = self.before.class_counts[self.ranking] < self.references
        emptied = reached == 0
        ratio = longtail.mean_log_ratio(reached, self.references)
        lines = [
            "         images  maximum  minimum  head  medium  tail",
            _size_line("before", self.before, self.ranking),
            _size_line("reached", self.reached, self.ranking),
            f"mean |log(count / reference)| over {len(reached):,} classes: {ratio:.3f}",
        ]
        if self.num_unlabeled:
            lines.append(f"train images without labels, which are left out: {self.num_unlabeled:,}")
        for what, classes in (
            ("classes with fewer train images than their reference", self.ranking[short]),
            ("classes that are left without train images", self.ranking[emptied]),
            (
                "classes without train images from the start",
                np.flatnonzero(self.before.class_counts == 0),
            ),
        ):
            if len(classes):
                names = first_few([repr(self.before.class_names[c]) for c in classes])
                lines.append(f"{what}: {len(classes):,}: {names}")
        return "\n".join(lines)


def write(
    options: TableOptions,
    load_options: LoadOptions,
    output_dir: str | os.PathLike,
    *,
    max_count: int,
    min_count: int = 1,
    power: float = 6.0,
    seed: int = 0,
    picture: bool = True,
) -> ThinnedTable:
    """Thins the train split of a table by `longtail.pareto_subset`; other splits stay whole.

    The folder appears once everything is written:

    * `examples.csv` or `examples.jsonl`: the rows of the other table without the train images that
      were not chosen; `table.copy_rows` says how paths and labels are written.
    * `counts.csv`: class, group, count_before, reference, count, from head to tail. The group is
      that of the count reached.
    * `counts.png`: a picture of these counts.

    Args:
        options: the table that is thinned.
        load_options: the options that all sources have, such as the check of images. An image that
            does not exist must not count, because nothing can be trained on it.
        output_dir: a folder that does not exist yet.
        max_count: see `longtail.pareto_subset`.
        min_count: see `longtail.pareto_subset`.
        power: see `longtail.pareto_subset`.
        seed: see `longtail.pareto_subset`.
        picture: whether to draw the picture.

    Raises:
        FileExistsError: there is something at `output_dir`.
        ValueError: an argument is out of its range, or the table cannot be used.
    """
    output_dir = os.path.abspath(output_dir)
    if os.path.lexists(output_dir):
        raise FileExistsError(f"{output_dir} exists and is not overwritten; choose a new folder")
    longtail.reference_counts(1, max_count=max_count, min_count=min_count, power=power)
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    data = table.load(options, load_options)

    train = data.splits["train"]
    before = LabelStatistics.from_labels(train.targets, data.class_names)
    ranking, references = longtail.references_of_classes(
        before, max_count=max_count, min_count=min_count, power=power
    )
    chosen = longtail.pareto_subset(
        train.labels, max_count=max_count, min_count=min_count, power=power, seed=seed
    )
    files = {train.files[i] for i in chosen}
    files.update(*(split.files for name, split in data.splits.items() if name != "train"))

    with atomic.temporary_folder(os.path.dirname(output_dir)) as folder:
        written = table.copy_rows(options, folder, files, relative_to=output_dir)
        thinned = ThinnedTable(
            examples=os.path.join(output_dir, os.path.basename(written)),
            before=before,
            reached=LabelStatistics.from_labels(train.targets[chosen], data.class_names),
            ranking=ranking,
            references=references,
            num_unlabeled=train.num_unlabeled,
        )
        _write_counts(thinned, folder / COUNTS_NAME)
        if picture:
            _draw(thinned, folder / PICTURE_NAME)
        atomic.publish(folder, output_dir)
    return thinned


def _size_line(name: str, of: LabelStatistics, classes: np.ndarray) -> str:
    counts = of.class_counts[classes]
    head, medium, tail = (np.isin(group, classes).sum() for group in of.groups.values())
    return (
        f"{name:<8}{of.num_examples:7} {counts.max():8} {counts.min():8} {head:5} {medium:7} "
        f"{tail:5}"
    )


def _write_counts(thinned: ThinnedTable, path: pathlib.Path) -> None:
    group_of = {c: name for name, group in thinned.reached.groups.items() for c in group}
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["class", "group", "count_before", "reference", "count"])
        for c, reference in zip(thinned.ranking, thinned.references, strict=True):
            before, count = thinned.before.class_counts[c], thinned.reached.class_counts[c]
            writer.writerow([thinned.before.class_names[c], group_of[c], before, reference, count])


def _draw(thinned: ThinnedTable, path: pathlib.Path) -> None:
    series = {
        f"before, {thinned.before.num_examples:,} images": thinned.before.class_counts,
        "reference": thinned.references,
        f"reached, {thinned.reached.num_examples:,} images": thinned.reached.class_counts,
    }
    before, reference, reached = series
    rows = [
        {
            "class": thinned.before.class_names[c],
            "rank": rank,
            "series": name,
            "count": int(counts[rank - 1] if name == reference else counts[c]),
        }
        for name, counts in series.items()
        for rank, c in enumerate(thinned.ranking.tolist(), start=1)
    ]
    if len(thinned.ranking) <= _MAX_TICKS:
        axis = alt.Axis(labelAngle=-90, labelLimit=160, labelOverlap=False)
        x = alt.X("class:N", sort=None, title=None, axis=axis)
    else:
        title = f"{len(thinned.ranking):,} classes, from head to tail"
        x = alt.X("rank:O", title=title, axis=alt.Axis(labels=False, ticks=False))
    ticks = [0, *(10**k for k in range(len(str(thinned.before.num_examples))))]
    # Logarithmic, but a class may have no image left.
    scale = alt.Scale(type="symlog")
    y = alt.Y(
        "count:Q", title="train images of the class", scale=scale, axis=alt.Axis(values=ticks)
    )
    colors = alt.Scale(domain=list(series), range=[_BEFORE, _REFERENCE, _REACHED])
    encoded = alt.Chart(alt.Data(values=rows)).encode(
        x=x, y=y, color=alt.Color("series:N", scale=colors, title=None)
    )

    def of(name: str) -> str:
        return f"datum.series == '{name}'"

    drawing = alt.layer(
        encoded.mark_bar(opacity=1).transform_filter(of(before)),
        encoded.mark_line(strokeWidth=3).transform_filter(of(reference)),
        encoded.mark_point(filled=True, size=40, opacity=1).transform_filter(of(reached)),
    ).properties(width=min(max(420, 22 * len(thinned.ranking)), 1600), height=360)
    with alt.data_transformers.enable("default", max_rows=None):
        content = drawing.to_dict()
    path.write_bytes(vl_convert.vegalite_to_png(content, vl_version=_VEGA_LITE, ppi=100))
