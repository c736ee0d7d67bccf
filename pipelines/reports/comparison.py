"""The comparison of several runs on one data set, methods by seeds, as one HTML page."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dbl_tf import methods
from dbl_tf.statistics import GROUP_NAMES
from pipelines.reports import charts, pages, published
from pipelines.reports.svg import Picture, escape

# Fields of a configuration that do not change what is learned, or number its repetitions.
_NOT_SETTINGS = {
    "seed", "run_dir", "cache_dir", "export", "checkpoint_every", "strategy", "check_images",
    "rebalance",
}  # fmt: skip
_SYMBOLS = {"alpha": "α", "beta": "β", "mu": "μ", "lambda_": "λ", "kappa": "κ"}


def write_comparison(
    path: str | os.PathLike,
    *,
    title: str,
    runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
    figures_dir: str | os.PathLike | None = None,
) -> None:
    """Writes the comparison of several runs on one data set, and its figures as SVG files.

    Runs that differ in their seed alone are one variant, of which mean and standard deviation are
    shown. Where variants differ in one number, such as β, mAP is plotted against it.

    Args:
        path: of the HTML file.
        title: its heading.
        runs: (config, scores) of each run, its settings by name and what `dbl_tf.evaluation.score`
            gives. The first variant is the one that the others are compared with.
        figures_dir: folder of the figures; `figures` beside the page if None.

    Raises:
        ValueError: fewer than two runs, runs whose classes or test images differ, or one that is
            given twice.
    """
    _check_comparable(runs)
    variants, differing = _variants(runs)
    page = pages.Page(path, figures_dir)
    page.add(_comparison_summary(title, variants, runs))
    page.add("<h2>All variants</h2>")
    overview = charts.map_by_variant(
        [v.label for v in variants],
        {c: [v.mean(c) for v in variants] for c in pages.COLUMNS},
        {c: [v.deviation(c) for v in variants] for c in pages.COLUMNS},
    )
    table = _comparison_table(variants)
    page.add_panels([overview], beside=f'<div class="wide">{table}</div>')
    page.add(_published_rows(str(runs[0][0].get("dataset")), variants))
    page.add(_method_list(variants))

    sweeps = _sweep_panels(variants, differing)
    if sweeps:
        page.add("<h2>What the value changes</h2>")
        page.add_panels(sweeps)
    if len(variants) > 1:
        first = variants[0]
        page.add(
            f"<h2>Gain and loss by class</h2><p>Bars to the right are tags that a variant finds "
            f"better than {pages.named(first.label)} does.</p>"
        )
        page.add_panels([_gain(f"gain_{k}", first, v) for k, v in enumerate(variants[1:], start=1)])
        if len(variants) > 2:
            page.add("<details><summary>Step by step: each variant against the one before it")
            page.add("</summary>")
            page.add_panels(
                [
                    _gain(f"step_{k + 2}", variants[k + 1], variants[k + 2])
                    for k in range(len(variants) - 2)
                ]
            )
            page.add("</details>")
        page.add("<h3>Average precision of every tag</h3>", _comparison_classes(variants))
    if differing:
        page.add("<h2>Settings that differ</h2>", _differing_table(variants, differing))
    page.write(title)


def table(
    runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> list[dict[str, Any]]:
    """A row for each variant: its label, number of runs, and mAP in percent.

    Args:
        runs: as of `write_comparison`.

    Returns:
        Rows of "variant", "runs", and of each of total, head, medium and tail the mean under its
        name, the sample standard deviation over seeds with " sd" behind it, and the published
        figure with " published" behind it. NaN where there is none.
    """
    rows = []
    for variant in _variants(runs)[0]:
        dataset, method = (str(variant.config.get(name)) for name in ("dataset", "method"))
        known = published.MEAN_AVERAGE_PRECISION.get(dataset, {}).get(method)
        row: dict[str, Any] = {"variant": variant.label, "runs": len(variant.scores)}
        for i, column in enumerate(published.GROUPS):
            row[column] = 100 * variant.mean(column)
            row[f"{column} sd"] = 100 * variant.deviation(column)
            row[f"{column} published"] = known[i] if known else math.nan
        rows.append(row)
    return rows


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `table` as text, published figures below those of a variant that has them."""
    width = max(len("published"), *(len(row["variant"]) for row in rows))
    columns = published.GROUPS
    lines = [f"{'mAP %':{width}}  runs" + "".join(f"{column:>16}" for column in columns)]
    for row in rows:
        cells = [
            f"{row[c]:.2f}" + ("" if math.isnan(row[f"{c} sd"]) else f" ± {row[f'{c} sd']:.2f}")
            for c in columns
        ]
        lines.append(
            f"{row['variant']:{width}}{row['runs']:6}" + "".join(f"{cell:>16}" for cell in cells)
        )
        if not math.isnan(row["total published"]):
            known = "".join(f"{row[f'{c} published']:>16.2f}" for c in columns)
            lines.append(f"{'  published':{width}}{'':6}{known}")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class _Variant:
    """Runs that differ in their seed alone."""

    label: str
    config: Mapping[str, Any]
    scores: list[Mapping[str, Any]]

    def means(self, column: str) -> np.ndarray:
        return np.array([pages.number(scores["mAP"][column]) for scores in self.scores])

    def mean(self, column: str) -> float:
        return float(np.mean(self.means(column)))

    def deviation(self, column: str) -> float:
        """Sample standard deviation over seeds; NaN of one."""
        values = self.means(column)
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    def average_precision(self) -> np.ndarray:
        """Mean over seeds by class, (C,)."""
        return np.mean(
            [
                [pages.number(e["ap"]) for e in scores["per_class"].values()]
                for scores in self.scores
            ],
            axis=0,
        )


def _check_comparable(runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    if len(runs) < 2:
        raise ValueError(f"a comparison needs at least two runs, got {len(runs)}")

    def data_of(scores: Mapping[str, Any]) -> dict[str, tuple]:
        return {
            name: (entry["group"], entry["test_count"])
            for name, entry in scores["per_class"].items()
        }

    expected = data_of(runs[0][1])
    for config, scores in runs[1:]:
        found = data_of(scores)
        pair = f"the runs {runs[0][0].get('run_dir')} and {config.get('run_dir')}"
        if list(found) != list(expected):
            raise ValueError(f"{pair} cannot be compared: they have different classes")
        for name in expected:
            if found[name] != expected[name]:
                raise ValueError(
                    f"{pair} cannot be compared: class {name!r} is {expected[name][0]} with "
                    f"{expected[name][1]} test images in one, {found[name][0]} with "
                    f"{found[name][1]} in the other"
                )


def _variants(
    runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> tuple[list[_Variant], list[str]]:
    """Variants in the order of their first runs, and the settings in which they differ."""
    fields = [f for f in dict.fromkeys(f for c, _ in runs for f in c) if f not in _NOT_SETTINGS]
    values = {f: [repr(config.get(f)) for config, _ in runs] for f in fields}
    differing = [f for f in fields if len(set(values[f])) > 1]
    naming = differing
    if "method" in differing:
        # What follows from the method, such as its sampler, need not be said beside it.
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
        seeds = [runs[k][0].get("seed") for k in members]
        repeated = [seed for seed in set(seeds) if seeds.count(seed) > 1]
        if repeated:
            directories = [str(runs[k][0].get("run_dir")) for k in members]
            raise ValueError(
                f"{', '.join(directories)}: runs of equal settings must have different seeds, "
                f"found seed {repeated[0]} more than once"
            )
        config = runs[members[0]][0]
        words = [
            str(config[f]) if f == "method" else f"{_SYMBOLS.get(f, f)} = {_text(config.get(f))}"
            for f in naming
        ]
        label = ", ".join(words) or str(config.get("method", "all runs"))
        variants.append(_Variant(label, config, [runs[k][1] for k in members]))
    return variants, differing


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _comparison_summary(
    title: str,
    variants: Sequence[_Variant],
    runs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]],
) -> str:
    scores = runs[0][1]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(runs)} runs of {len(variants)} "
        f"{'variant' if len(variants) == 1 else 'variants'}, each tested on the same "
        f"{scores['num_test_examples']:,} images with {len(scores['per_class']):,} tags. Mean "
        "average precision (mAP) says how well the images that have a tag are put before those "
        "that have not: 100 % is perfect. Tags are head (100 training images or more), medium (20 "
        "to 99) or tail (fewer than 20).</p><ul>",
    ]
    for column, words in (
        ("total", "over all tags"),
        ("head", "on head tags"),
        ("medium", "on medium tags"),
        ("tail", "on tail tags"),
    ):
        ranked = [v for v in variants if not math.isnan(v.mean(column))]
        if len(ranked) < 2:
            continue
        ranked.sort(key=lambda v: -v.mean(column))
        best, second = ranked[:2]
        parts.append(
            f"<li><b>Best {words}:</b> {pages.named(best.label)} with "
            f"{_plus_minus(best, column)}, then "
            f"{pages.named(second.label)} with {_plus_minus(second, column)}.</li>"
        )
    names = list(scores["per_class"])
    if len(variants) > 1:
        first = variants[0]
        best = max(variants[1:], key=lambda v: np.nan_to_num(v.mean("total"), nan=-1.0))
        gain = best.average_precision() - first.average_precision()
        defined = np.flatnonzero(~np.isnan(gain))
        step = f"{pages.named(best.label)} changed against {pages.named(first.label)}"
        ups, downs = defined[gain[defined] > 0], defined[gain[defined] < 0]
        ups, downs = ups[np.argsort(-gain[ups])], downs[np.argsort(gain[downs])]
        parts.append(
            f"<li><b>What {step}:</b> {len(ups)} of {len(defined)} tags are found better"
            f"{_gains(ups, names, gain)}; {len(downs)} worse{_gains(downs, names, gain)}.</li>"
        )
    parts.append("</ul>")
    if min(len(v.scores) for v in variants) == 1:
        parts.append(
            "<p>A variant of one seed is a single run: with another seed its figures move, so that "
            "a difference of a few points is no ranking.</p>"
        )
    return "".join(parts)


def _plus_minus(variant: _Variant, column: str) -> str:
    deviation = variant.deviation(column)
    spread = "" if math.isnan(deviation) else f" ± {100 * deviation:.1f}"
    return f"{100 * variant.mean(column):.1f}{spread}\u00a0%"


def _gains(index: np.ndarray, names: Sequence[str], gain: np.ndarray) -> str:
    shown = ", ".join(f"{pages.named(names[i])} {_points(gain[i])}" for i in index[:3])
    return f" (most: {shown})" if shown else ""


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points".replace("-", "−")


def _comparison_table(variants: Sequence[_Variant]) -> str:
    table = published.MEAN_AVERAGE_PRECISION.get(variants[0].config.get("dataset"), {})
    best = {c: max((v.mean(c) for v in variants if not math.isnan(v.mean(c))), default=math.nan)
            for c in pages.COLUMNS}  # fmt: skip
    rows = []
    for variant in variants:
        cells = []
        for column in pages.COLUMNS:
            cell = pages.percent_cell(variant.mean(column), variant.deviation(column))
            if variant.mean(column) == best[column] and len(variants) > 1:
                cell = pages.Cell(cell.replace("<td>", "<td><b>").replace("</td>", "</b></td>"))
            cells.append(cell)
        rows.append([pages.name_cell(variant.label), f"{len(variant.scores)}", *cells])
    heads = ["variant", "seeds", *pages.COLUMNS]
    for method in dict.fromkeys(v.config.get("method") for v in variants):
        if method in table:
            rows.append([f"{method}, published", "–", *(f"{v:.2f}" for v in table[method])])
    sizes = pages.group_sizes(variants[0].scores[0])
    count = ", ".join(f"{sizes[name]} {name}" for name in GROUP_NAMES)
    return (
        f'<p class="muted">mAP in percent, mean ± standard deviation over seeds; {sizes["total"]} '
        f"classes, {count}. The best of each column is bold.</p>{pages.table(heads, rows)}"
    )


def _published_rows(dataset: str, variants: Sequence[_Variant]) -> str:
    table = published.MEAN_AVERAGE_PRECISION.get(dataset)
    if table is None:
        return ""
    rows = [[m, *(f"{v:.2f}" for v in row)] for m, row in table.items()]
    backbones = sorted({str(v.config.get("backbone")) for v in variants})
    return (
        f"<details><summary>All published figures of {escape(dataset)}</summary>"
        "<p class='muted'>mAP in percent, ResNet-50 pre-trained on ImageNet. The runs here have "
        f"{escape(', '.join(backbones))}; ltml is the best published loss or sampler since.</p>"
        f"{pages.table(['method', *pages.COLUMNS], rows)}</details>"
    )


def _gain(name: str, before: _Variant, after: _Variant) -> Picture:
    return charts.gain_by_class(
        f"comparison_{name}",
        f"{after.label} against {before.label}",
        f"What {after.label} adds to the average precision of each class that {before.label} "
        "reaches, means over seeds (the paper's Fig. 6). Bars to the left are losses.",
        before.scores[0],
        after.average_precision() - before.average_precision(),
    )


def _sweep_panels(variants: Sequence[_Variant], differing: Sequence[str]) -> list[Picture]:
    """mAP against the one number in which variants of a method differ, if there is one."""
    panels = []
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
                {c: [v.mean(c) for v in own] for c in pages.COLUMNS},
                {c: [v.deviation(c) for v in own] for c in pages.COLUMNS},
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
            *(pages.bar_cell(ap[i], charts.GROUP_COLOURS[entries[i]["group"]]) for ap in values),
        ]
        for i in shown
    ]
    heads = ["tag", "group", "train images", *(v.label for v in variants)]
    table = pages.table(heads, rows)
    return f'<p class="muted">In percent, means over seeds.</p>{note}{table}'


def _method_list(variants: Sequence[_Variant]) -> str:
    """What the names of the methods stand for."""
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
