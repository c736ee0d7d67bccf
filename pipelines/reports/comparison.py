"""Compares several runs on one data set in an HTML page and in tables."""

import dataclasses
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from dbl_tf import methods, metrics
from dbl_tf.messages import first_few
from dbl_tf.metrics import TOTAL_AND_GROUPS
from dbl_tf.statistics import GROUP_NAMES
from pipelines.differences import SIGNIFICANCE, PairedDifference
from pipelines.folds import VAL
from pipelines.reports import charts, pages, published
from pipelines.reports.svg import Picture, escape, percent

# Settings that do not change what a run learns, or that only number its repetitions.
_NOT_SETTINGS = {
    "seed", "held_out", "run_dir", "cache_dir", "export", "checkpoint_every", "strategy",
    "check_images", "rebalance",
}  # fmt: skip
# Settings that follow from the method, where it was chosen.
_OF_METHOD = ("sampler", "epochs")
# The settings of a run by name, and the content of its `metrics.json`.
Run = tuple[Mapping[str, Any], Mapping[str, Any]]

_SYMBOLS = {"alpha": "α", "beta": "β", "mu": "μ", "lambda_": "λ", "kappa": "κ"}


def write_comparison(
    path: str | os.PathLike,
    *,
    title: str,
    runs: Sequence[Run],
    figures_dir: str | os.PathLike | None = None,
) -> None:
    """Writes the comparison of several runs on one data set, and its figures as SVG files.

    Runs that differ only in their seed, and in the fold or split on which they are judged, form one
    variant, which is shown by mean and standard deviation. If variants differ in one number, such
    as β, mAP is plotted against it.

    Args:
        path: the path of the HTML file.
        title: the heading of the page.
        runs: the settings and the scores of each run. The others are compared with the first
            variant.
        figures_dir: the folder for the figures; `figures` next to the page if None.

    Raises:
        ValueError: there are fewer than two runs, runs have different classes or test images, or
            two runs have the same settings and seed, and are judged on the same.
    """
    _check_comparable(runs)
    variants, differing = _variants(runs)
    page = pages.Page(path, figures_dir)
    page.add(_comparison_summary(title, variants, runs))
    page.add("<h2>All variants</h2>")
    overview = charts.map_by_variant(
        [v.label for v in variants],
        {c.group: [c.mean(v) for v in variants] for c in _MAP_COLUMNS},
        {c.group: [c.deviation(v) for v in variants] for c in _MAP_COLUMNS},
    )
    page.add_panels([overview], extra=f'<div class="wide">{_comparison_table(variants)}</div>')
    page.add(_difference_table(variants))
    page.add(_published_rows(str(runs[0][0].get("dataset")), variants))
    page.add(_method_list(variants))

    sweeps = _sweep_panels(variants, differing)
    if sweeps:
        page.add("<h2>What the setting changes</h2>")
        page.add_panels(sweeps)
    if len(variants) > 1:
        first = variants[0]
        page.add(
            "<h2>Gain and loss by label</h2><p>How much better or worse each variant finds each "
            f"label than {pages.named(first.label)} does.</p>"
        )
        page.add_panels([_gain(f"gain_{k}", first, v) for k, v in enumerate(variants[1:], start=1)])
        if len(variants) > 2:
            page.add("<details><summary>Step by step: each variant against the previous one")
            page.add("</summary>")
            page.add_panels(
                [
                    _gain(f"step_{k + 2}", variants[k + 1], variants[k + 2])
                    for k in range(len(variants) - 2)
                ]
            )
            page.add("</details>")
        page.add("<h3>Average precision of every label</h3>", _comparison_classes(variants))
    if differing:
        page.add("<h2>Settings that differ</h2>", _differing_table(variants, differing))
    page.write(title)


def run_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns a row for each run with its method, seed, directory and metrics.

    Returns:
        Rows with "method", "seed", "held_out" (what took the place of the test split), "run_dir",
        the mAP as "total", "head", "medium" and "tail", and the other metrics by heading and group.
        Values are fractions of 1; None if not defined.
    """
    rows = []
    for config, scores in runs:
        row = {name: config.get(name) for name in ("method", "seed", "held_out", "run_dir")}
        for column in _columns():
            row[column.name] = _none_for_nan(column.read(scores))
        rows.append(row)
    return rows


def variant_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns a row for each variant with its label, its number of runs and its metrics.

    Returns:
        Rows with "variant", "runs", the mAP as "total", "head", "medium" and "tail", and the other
        metrics by heading and group. These columns hold means; their names with " sd" appended hold
        the sample standard deviations over runs and, for mAP, with " published" appended the
        published values. Fractions of 1 are in percent; None if there is no value.
    """
    rows = []
    for variant in _variants(runs)[0]:
        known = variant.published()
        row: dict[str, Any] = {"variant": variant.label, "runs": len(variant.scores)}
        for column in _columns():
            factor = 100 if column.metric.percent else 1
            row[column.name] = _none_for_nan(factor * column.mean(variant))
            row[f"{column.name} sd"] = _none_for_nan(factor * column.deviation(variant))
            if column in _MAP_COLUMNS:
                row[f"{column.name} published"] = known and known[column.position]
        rows.append(row)
    return rows


def format_table(runs: Sequence[Run]) -> str:
    """Formats the metrics of all variants: a table for each metric by group, one for the others.

    A variant for which there are published values is followed by a row of them.
    """
    variants = _variants(runs)[0]
    by_group: dict[str, list[_Column]] = {}
    for column in _columns():
        by_group.setdefault(column.metric.heading_with_unit if column.group else "", []).append(
            column
        )
    width = max(len("  published"), *(len(variant.label) for variant in variants))
    lines = []
    for corner, members in by_group.items():
        heads = [column.group or column.metric.heading_with_unit for column in members]
        lines.append(f"{corner:{width}}  runs" + "".join(f"{head:>16}" for head in heads))
        for variant in variants:
            cells = "".join(f"{column.text(variant):>16}" for column in members)
            lines.append(f"{variant.label:{width}}{len(variant.scores):6}{cells}")
            known = variant.published()
            if known and members[0] in _MAP_COLUMNS:
                cells = "".join(f"{cell:>16}" for cell in pages.published_cells(known))
                lines.append(f"{'  published':{width}}{'':6}{cells}")
    if len(variants) > 1:
        lines += ["", f"{'mAP, points behind the best':{width}}"]
        lines += [f"  {sentence}" for sentence in _sentences(variants)]
    return "\n".join(lines)


def difference_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Returns a row for each variant, but the one of the highest mAP, with its distance from it.

    Returns:
        Rows with "variant", "best", "pairs" (the seeds or folds that both have), and for "total",
        "head", "medium" and "tail" the mean paired difference of mAP to the best in percent, with
        " se" appended its standard error, and with " significant" appended whether a paired t test
        at 5 % tells it from 0. None if not defined.
    """
    variants = _variants(runs)[0]
    best = _best(variants)
    rows = []
    for variant in variants:
        if variant is best:
            continue
        row: dict[str, Any] = {"variant": variant.label, "best": best.label}
        row["pairs"] = _MAP_COLUMNS[0].difference(variant, best).num_pairs
        for column in _MAP_COLUMNS:
            difference = column.difference(variant, best)
            row[column.group] = _none_for_nan(100 * difference.mean)
            row[f"{column.group} se"] = _none_for_nan(100 * difference.standard_error)
            row[f"{column.group} significant"] = difference.is_significant
        rows.append(row)
    return rows


def _none_for_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclasses.dataclass(frozen=True)
class _Variant:
    """Runs that differ only in their seed and in the part of the data on which they are judged.

    Attributes:
        label: the settings that distinguish the variant from the others.
        config: the settings of its first run.
        scores: the scores of each run.
        repetitions: the seed of each run, and what took the place of the test split (None if it is
            judged on that).
    """

    label: str
    config: Mapping[str, Any]
    scores: list[Mapping[str, Any]]
    repetitions: list[tuple[int | None, str | None]]

    def average_precision(self) -> np.ndarray:
        """Returns the mean by class, (C,), over the runs in which the class is tested."""
        values = np.array([metrics.AVERAGE_PRECISION.read(s) for s in self.scores])
        known = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            return np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)

    def published(self) -> tuple[float, float, float, float] | None:
        """Returns the published mAP on the test split, if the runs are judged on it."""
        if self.config.get("held_out") is not None:
            return None
        return published.mean_average_precision(self.config)


@dataclasses.dataclass(frozen=True)
class _Column:
    """One number that a comparison shows for each run and variant.

    Attributes:
        metric: a metric over groups or over the split.
        group: "total" or the name of a group; empty for a metric over the split.
    """

    metric: metrics.Metric
    group: str = ""

    @property
    def position(self) -> int:
        """The position of the number among the values of the metric."""
        return TOTAL_AND_GROUPS.index(self.group) if self.group else 0

    @property
    def name(self) -> str:
        """The name of the column in CSV files, which is just the group for mAP."""
        if self.metric is metrics.MEAN_AVERAGE_PRECISION:
            return self.group
        return f"{self.metric.heading} {self.group}".rstrip()

    def read(self, scores: Mapping[str, Any]) -> float:
        return float(self.metric.read(scores)[self.position])

    def mean(self, variant: _Variant) -> float:
        """Returns the mean over runs."""
        return float(np.mean([self.read(scores) for scores in variant.scores]))

    def difference(self, variant: _Variant, other: _Variant) -> PairedDifference:
        """Compares two variants by fold, or by seed where they are judged on one part alone."""

        def by_pair(of: _Variant) -> dict[Hashable, float]:
            values: dict[Hashable, list[float]] = {}
            for (seed, part), scores in zip(of.repetitions, of.scores, strict=True):
                values.setdefault(part if has_folds else seed, []).append(self.read(scores))
            return {key: float(np.mean(values)) for key, values in values.items()}

        has_folds = len({part for _, part in other.repetitions}) > 1
        return PairedDifference.of(by_pair(variant), by_pair(other))

    def deviation(self, variant: _Variant) -> float:
        """Returns the sample standard deviation over runs; NaN for a single run."""
        values = [self.read(scores) for scores in variant.scores]
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    def text(self, variant: _Variant) -> str:
        return self.metric.text(self.mean(variant), self.deviation(variant))

    def merit(self, variant: _Variant) -> float:
        """Returns the mean, negated if lower values are better."""
        return self.mean(variant) if self.metric.higher_is_better else -self.mean(variant)


_MAP_COLUMNS = [_Column(metrics.MEAN_AVERAGE_PRECISION, group) for group in TOTAL_AND_GROUPS]


def _columns() -> list[_Column]:
    """Returns the columns of all metrics that have a heading and are not by class."""
    return [
        _Column(metric, group)
        for metric in metrics.METRICS
        if metric.heading and metric.over != "class"
        for group in (TOTAL_AND_GROUPS if metric.over == "group" else ("",))
    ]


def _check_comparable(runs: Sequence[Run]) -> None:
    if len(runs) < 2:
        raise ValueError(f"a comparison needs at least two runs, got {len(runs)}")

    def data_of(scores: Mapping[str, Any]) -> dict[str, tuple]:
        return {
            name: (entry["group"], entry["test_count"])
            for name, entry in scores["per_class"].items()
        }

    first, first_scores = runs[0]
    expected = {first.get("held_out"): data_of(first_scores)}
    for config, scores in runs[1:]:
        found, part = data_of(scores), config.get("held_out")
        pair = f"the runs {first.get('run_dir')} and {config.get('run_dir')}"
        if _number_of_parts(part) != _number_of_parts(first.get("held_out")):
            raise ValueError(
                f"{pair} cannot be compared: one is judged on {first.get('held_out') or 'test'}, "
                f"the other on {part or 'test'}"
            )
        if list(found) != list(first_scores["per_class"]):
            raise ValueError(
                f"{pair} cannot be compared: they have different labels, "
                f"{first_few(list(first_scores['per_class']))} in one, {first_few(list(found))} in "
                "the other"
            )
        for name, (group, count) in expected.setdefault(part, found).items():
            if found[name] != (group, count):
                raise ValueError(
                    f"{pair} cannot be compared: the label {name!r} is {group} with {count} test "
                    f"images in one, {found[name][0]} with {found[name][1]} in the other"
                )


def _number_of_parts(held_out: str | None) -> str:
    """What distinguishes "test" (None), "val" and folds, of which all have one number."""
    return str(held_out).rpartition("/")[2]


def _variants(
    runs: Sequence[Run],
) -> tuple[list[_Variant], list[str]]:
    """Returns variants in the order of their first runs, and the settings in which they differ."""
    configs = [_with_choices(config) for config, _ in runs]
    fields = [f for f in dict.fromkeys(f for c in configs for f in c) if f not in _NOT_SETTINGS]
    values = {f: [repr(config.get(f)) for config in configs] for f in fields}
    differing = [f for f in fields if len(set(values[f])) > 1]
    parts = [config.get("held_out") for config in configs]
    differing = [f for f in differing if not _follows_from_part(f, differing, values, parts)]
    naming = differing
    if "method" in differing:
        # A setting that follows from the method, such as its sampler, does not need to be named.
        naming = ["method"] + [
            f
            for f in differing
            if f != "method"
            and len(set(zip(values["method"], values[f], strict=True))) > len(set(values["method"]))
        ]
    grouped: dict[tuple, list[int]] = {}
    for k in range(len(runs)):
        grouped.setdefault(tuple(values[f][k] for f in differing), []).append(k)
    variants = []
    for members in grouped.values():
        repetitions = [(configs[k].get("seed"), parts[k]) for k in members]
        repeated = [each for each in set(repetitions) if repetitions.count(each) > 1]
        if repeated:
            directories = [str(configs[k].get("run_dir")) for k in members]
            raise ValueError(
                f"{', '.join(directories)}: runs of equal settings must have different seeds, but "
                f"seed {repeated[0][0]} occurs more than once"
            )
        config = configs[members[0]]
        words = [
            str(config[f]) if f == "method" else f"{_SYMBOLS.get(f, f)} = {_text(config.get(f))}"
            for f in naming
        ]
        label = ", ".join(words) or str(config.get("method", "all runs"))
        variants.append(_Variant(label, config, [runs[k][1] for k in members], repetitions))
    return variants, differing


def _with_choices(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns settings in which what cross-validation chose for the run is "auto"."""
    chosen = list(config.get("chosen") or ())
    if "method" in chosen:
        chosen += [name for name in _OF_METHOD if config.get(name) is not None]
    return {**config, **dict.fromkeys(chosen, "auto"), "chosen": None}


def _follows_from_part(
    field: str,
    differing: Sequence[str],
    values: Mapping[str, Sequence[str]],
    parts: Sequence[str | None],
) -> bool:
    """Whether runs of equal settings differ in a field because they are judged on other folds.

    The number of steps is such a field, where it follows from the number of training examples.
    """
    others = list(zip(*(values[f] for f in differing if f != field), strict=True)) or [()] * len(
        parts
    )
    own = values[field]
    varies = len(set(zip(others, own, strict=True))) > len(set(others))
    by_part = set(zip(others, parts, strict=True))
    return (
        varies
        and len(set(zip(others, parts, own, strict=True))) == len(by_part)
        and (len(by_part) > len(set(others)))
    )


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _comparison_summary(
    title: str,
    variants: Sequence[_Variant],
    runs: Sequence[Run],
) -> str:
    scores, tested_on = runs[0][1], {part for v in variants for _, part in v.repetitions}
    judged = f"the same {scores['num_test_examples']:,} images"
    if len(tested_on) > 1:
        judged = f"each of the same {len(tested_on)} folds of the training split"
    elif tested_on != {None}:
        judged += f" of {'the val split' if tested_on == {VAL} else 'a fold of the training split'}"
    head, medium, tail = (f"{name} ({charts.GROUP_RANGES[name]})" for name in GROUP_NAMES)
    ranges = f"{head}, {medium} or {tail} by their number of training images"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(runs)} runs of {len(variants)} "
        f"{'variant' if len(variants) == 1 else 'variants'}, each tested on {judged}, with "
        f"{len(scores['per_class']):,} labels. Mean "
        "average precision (mAP) says how well the images with a label are ranked before those "
        f"without it: 100 % is perfect. Labels are {ranges}.</p><ul>",
    ]
    for column in _MAP_COLUMNS:
        ranked = [v for v in variants if not math.isnan(column.mean(v))]
        if len(ranked) < 2:
            continue
        ranked.sort(key=lambda v: -column.mean(v))
        leader, runner_up = (
            f"{pages.named(v.label)} with {percent(column.mean(v), deviation=column.deviation(v))}"
            for v in ranked[:2]
        )
        where = "over all labels" if column.group == "total" else f"on {column.group} labels"
        parts.append(f"<li><b>Best {where}:</b> {leader}, then {runner_up}.</li>")
    names = list(scores["per_class"])
    if len(variants) > 1:
        first = variants[0]
        best = max(variants[1:], key=lambda v: np.nan_to_num(_MAP_COLUMNS[0].mean(v), nan=-1.0))
        gain = best.average_precision() - first.average_precision()
        defined = np.flatnonzero(~np.isnan(gain))
        step = f"{pages.named(best.label)} changed compared with {pages.named(first.label)}"
        ups, downs = defined[gain[defined] > 0], defined[gain[defined] < 0]
        ups, downs = ups[np.argsort(-gain[ups])], downs[np.argsort(gain[downs])]
        parts.append(
            f"<li><b>What {step}:</b> {len(ups)} of {len(defined)} labels are found better"
            f"{_gains(ups, names, gain)}; {len(downs)} worse{_gains(downs, names, gain)}.</li>"
        )
    parts.append("</ul>")
    if min(len(v.scores) for v in variants) == 1:
        parts.append(
            "<p>A variant with a single run would have other results with another seed, so a "
            "difference of a few points does not rank two variants.</p>"
        )
    return "".join(parts)


def _gains(index: np.ndarray, names: Sequence[str], gain: np.ndarray) -> str:
    shown = ", ".join(f"{pages.named(names[i])} {_points(gain[i])}" for i in index[:3])
    return f" (most of all {shown})" if shown else ""


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points".replace("-", "−")


def _comparison_table(variants: Sequence[_Variant]) -> str:
    """Returns a table of all metrics of all variants, and published values of their methods."""
    columns = _columns()
    best = {c: max((c.merit(v) for v in variants if not math.isnan(c.mean(v))), default=math.nan)
            for c in columns}  # fmt: skip
    rows = []
    for variant in variants:
        cells = []
        for column in columns:
            mean, deviation = column.mean(variant), column.deviation(variant)
            cell = pages.value_cell(column.metric, mean, deviation)
            if column.merit(variant) == best[column] and len(variants) > 1:
                cell = pages.Cell(cell.replace("<td>", "<td><b>").replace("</td>", "</b></td>"))
            cells.append(cell)
        rows.append([pages.name_cell(variant.label), f"{len(variant.scores)}", *cells])
    heads = ["variant", "runs", *(_heading(column) for column in columns)]
    for method, known in {v.config.get("method"): v.published() for v in variants}.items():
        if known:
            of_map = dict(zip(_MAP_COLUMNS, pages.published_cells(known), strict=True))
            rows.append([f"{method}, published", "–", *(of_map.get(c, "") for c in columns)])
    sizes = metrics.num_classes_by_group(variants[0].scores[0])
    count = ", ".join(f"{sizes[name]} {name}" for name in GROUP_NAMES)
    meanings = "; ".join(
        f"{metric.heading}: {metric.description}"
        for metric in dict.fromkeys(column.metric for column in columns)
    )
    return (
        f'<p class="muted">Mean ± standard deviation over runs; {sizes["total"]} labels, {count}. '
        f"{escape(meanings)}. The best value of each column is bold.</p>{pages.table(heads, rows)}"
    )


def _best(variants: Sequence[_Variant]) -> _Variant:
    """Returns the variant of the highest mAP."""
    return max(variants, key=lambda v: np.nan_to_num(_MAP_COLUMNS[0].mean(v), nan=-1.0))


def _sentences(variants: Sequence[_Variant]) -> list[str]:
    """Says of each variant how far it is behind the best, and whether that can be told from 0."""
    best = _best(variants)
    sentences = [f"{best.label}: the highest mean"]
    for variant in variants:
        if variant is not best:
            difference = _MAP_COLUMNS[0].difference(variant, best)
            sentences.append(f"{variant.label}: {_distance(difference)}; {_verdict(difference)}")
    return sentences


def _distance(difference: PairedDifference) -> str:
    """Formats a difference to the best, in points, with its standard error."""
    if math.isnan(difference.mean):
        return "–"
    error = difference.standard_error
    return f"{-100 * difference.mean:.2f}" + ("" if math.isnan(error) else f" ± {100 * error:.2f}")


def _verdict(difference: PairedDifference) -> str:
    if difference.num_pairs < 2:
        return "not distinguishable by one run of each"
    return "worse" if difference.is_significant else "not distinguishable"


def _difference_table(variants: Sequence[_Variant]) -> str:
    """Returns a table of how far each variant is behind the best, with standard errors."""
    if len(variants) < 2:
        return ""
    best = _best(variants)
    pairs = "folds" if len({part for _, part in best.repetitions}) > 1 else "seeds"
    rows = []
    for variant in variants:
        if variant is best:
            continue
        differences = [column.difference(variant, best) for column in _MAP_COLUMNS]
        rows.append(
            [
                pages.name_cell(variant.label),
                f"{differences[0].num_pairs}",
                *map(_distance, differences),
                pages.left_cell(_verdict(differences[0])),
            ]
        )
    heads = ["variant", pairs, *TOTAL_AND_GROUPS, "mAP over all labels"]
    return (
        f"<h3>What can be told apart</h3><p>How many points of mAP each variant is behind "
        f"{pages.named(best.label)}, which has the highest mean: means of the differences over the "
        f"same {pairs}, ± their standard errors. The last column is the result of a paired t test "
        f"at {SIGNIFICANCE:.0%}.</p>{pages.table(heads, rows, left=heads[-1:])}"
    )


def _heading(column: _Column) -> str:
    return f"{column.metric.heading_with_unit} {column.group}".rstrip()


def _published_rows(dataset: str, variants: Sequence[_Variant]) -> str:
    table = published.MEAN_AVERAGE_PRECISION.get(dataset)
    if table is None:
        return ""
    rows = [[method, *pages.published_cells(row)] for method, row in table.items()]
    backbones = sorted({str(v.config.get("backbone")) for v in variants})
    return (
        f"<details><summary>All published results on {escape(dataset)}</summary>"
        "<p class='muted'>mAP in percent, of ResNet-50 pre-trained on ImageNet. The runs of this "
        f"comparison use {escape(', '.join(backbones))}; ltml is the best loss or sampler "
        f"published since.</p>{pages.table(['method', *TOTAL_AND_GROUPS], rows)}</details>"
    )


def _gain(name: str, before: _Variant, after: _Variant) -> Picture:
    return charts.gain_by_class(
        f"comparison_{name}",
        f"{after.label} against {before.label}",
        f"How much {after.label} adds to the average precision of each label, compared with "
        f"{before.label}; means over runs (the paper's Fig. 6).",
        before.scores[0],
        after.average_precision() - before.average_precision(),
    )


def _sweep_panels(variants: Sequence[_Variant], differing: Sequence[str]) -> list[Picture]:
    """Draws mAP against the one number in which variants of a method differ, if there is one."""
    panels: list[Picture] = []
    for method in dict.fromkeys(v.config.get("method") for v in variants):
        own = [v for v in variants if v.config.get("method") == method]
        fields = [f for f in differing if len({repr(v.config.get(f)) for v in own}) > 1]
        if len(fields) != 1:
            continue
        field = fields[0]
        if not all(type(v.config.get(field)) in (int, float) for v in own):
            continue
        own.sort(key=lambda v: v.config[field])
        symbol = _SYMBOLS.get(field, field)
        panels.append(
            charts.map_by_value(
                f"comparison_map_by_{field.strip('_')}_{len(panels) + 1}",
                f"mAP against {symbol}" + (f", {method}" if method else ""),
                symbol,
                [v.config[field] for v in own],
                {c.group: [c.mean(v) for v in own] for c in _MAP_COLUMNS},
                {c.group: [c.deviation(v) for v in own] for c in _MAP_COLUMNS},
            )
        )
    return panels


def _comparison_classes(variants: Sequence[_Variant]) -> str:
    scores = variants[0].scores[0]
    names, entries = list(scores["per_class"]), list(scores["per_class"].values())
    values = [v.average_precision() for v in variants]
    shown, note = pages.shown_classes(charts.Classes.of_scores(scores), values[0])
    rows = [
        [
            pages.name_cell(names[i]),
            pages.left_cell(entries[i]["group"]),
            f"{entries[i]['train_count']:,}",
            *(
                pages.bar_cell(
                    metrics.AVERAGE_PRECISION, ap[i], charts.GROUP_COLORS[entries[i]["group"]]
                )
                for ap in values
            ),
        ]
        for i in shown
    ]
    heads = ["label", "group", "train images", *(v.label for v in variants)]
    table = pages.table(heads, rows)
    return f'<p class="muted">In percent, means over runs.</p>{note}{table}'


def _method_list(variants: Sequence[_Variant]) -> str:
    """Explains the names of the methods."""
    names = dict.fromkeys(str(v.config.get("method")) for v in variants)
    items = [
        f"<li>{pages.named(name)}: {escape(methods.METHODS[name].summary)}</li>"
        for name in names
        if name in methods.METHODS
    ]
    return f"<h3>What the methods are</h3><ul>{''.join(items)}</ul>" if items else ""


def _differing_table(variants: Sequence[_Variant], differing: Sequence[str]) -> str:
    rows = []
    for variant in variants:
        values = [variant.config.get(field) for field in differing]
        cells = [pages.left_cell("–" if value is None else _text(value)) for value in values]
        rows.append([pages.name_cell(variant.label), *cells])
    return pages.table(["variant", *differing], rows, left=differing)
