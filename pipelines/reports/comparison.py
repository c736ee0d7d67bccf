"""The page that compares several runs on one data set."""

import math
import os
import pathlib
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dbl_tf import methods, metrics
from dbl_tf.statistics import GROUP_NAMES
from pipelines.differences import SIGNIFICANCE
from pipelines.folds import VAL
from pipelines.reports import charts, pages, published, text, variants
from pipelines.reports.pages import Column
from pipelines.reports.variants import MAP_COLUMNS, Run, Variant


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
    variants.check_comparable(runs)
    compared, differing = variants.variants_of(runs)
    scores = runs[0][1]
    first, best = compared[0], variants.best_of(compared)
    values = [v.average_precision() for v in compared]
    gains = [100 * (ap - values[0]) for ap in values[1:]]
    entries = list(scores["per_class"].values())
    classes = _Classes(
        pages.readable_names(list(scores["per_class"])),
        [entry["group"] for entry in entries],
        [entry["train_count"] for entry in entries],
    )
    page = pages.Page(path, figures_dir)
    page.data = {
        "tables": {
            "gains": [
                column.content() for column in _gain_columns(classes, compared, values, gains)
            ]
        },
        "flags": {},
    }
    configs = [config for config, _ in runs]
    page.write(
        "comparison.html.j2",
        title=title,
        num_runs=len(runs),
        compared=compared,
        judged=_judged(scores, compared),
        num_labels=len(entries),
        ranges={name: charts.GROUP_RANGES[name] for name in GROUP_NAMES},
        leaders=_leaders(compared),
        changed=_changed(classes, compared, gains),
        single=min(len(v.scores) for v in compared) == 1,
        scores_table=_scores_table(compared),
        in_means=_numbers_of_labels(runs, tested=True),
        left_out=_numbers_of_labels(runs, tested=False)["total"],
        meanings=_meanings(),
        best=best,
        verdicts=variants.sentences(compared),
        pairs="folds" if len({part for _, part in best.repetitions}) > 1 else "seeds",
        significance=SIGNIFICANCE,
        differences=_differences(compared, best),
        published=[
            [method, *(f"{value:.2f}" for value in row)]
            for method, row in published.MEAN_AVERAGE_PRECISION.get(
                str(configs[0].get("dataset")), {}
            ).items()
        ],
        backbones=sorted({str(config.get("backbone")) for config in configs}),
        method_list={
            name: methods.METHODS[name].summary
            for name in dict.fromkeys(str(v.config.get("method")) for v in compared)
            if name in methods.METHODS
        },
        differing=[
            [v.label, *(_shown(v.config.get(field)) for field in differing)] for v in compared
        ],
        differing_heads=["variant", *differing],
        common=[
            [field, _shown(value)]
            for field, value in first.config.items()
            if all(config.get(field) == value for config in configs)
        ],
        run_links=_run_links(runs, pathlib.Path(path)),
        overview=page.add(_overview(compared)),
        sweeps=page.add(*_sweeps(compared, differing)),
        gains=page.add(*_gain_charts(classes, compared, gains)),
    )


class _Classes:
    """The names, groups and numbers of training examples of C classes."""

    def __init__(self, names: Sequence[str], groups: Sequence[str], train_counts: Sequence[int]):
        self.names, self.groups, self.train_counts = names, groups, train_counts


def _judged(scores: Mapping[str, Any], compared: Sequence[Variant]) -> str:
    parts = {part for variant in compared for _, part in variant.repetitions}
    same = f"the same {scores['num_test_examples']:,} images"
    if len(parts) > 1:
        return f"each of the same {len(parts):,} folds of the training split"
    if parts == {None}:
        return same
    return f"{same} of {'the val split' if parts == {VAL} else 'a fold of the training split'}"


def _numbers_of_labels(runs: Sequence[Run], *, tested: bool) -> dict[str, str]:
    """Returns how many labels are in the means of "total" and each group, or are left out of them.

    Runs that are judged on different folds can differ in it.
    """
    of_runs = [metrics.num_classes_by_group(scores, tested=tested) for _, scores in runs]
    return {
        name: text.span(*(pick(counts[name] for counts in of_runs) for pick in (min, max)))
        for name in metrics.TOTAL_AND_GROUPS
    }


def _leaders(compared: Sequence[Variant]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns, for all labels and each group, the best two variants with their mAP."""
    found = []
    for column in MAP_COLUMNS:
        ranked = [v for v in compared if not math.isnan(column.mean(v))]
        if len(ranked) < 2:
            continue
        ranked.sort(key=lambda v: -column.mean(v))
        where = "over all labels" if column.group == "total" else f"on {column.group} labels"
        shown = [
            (v.label, text.percent(column.mean(v), deviation=column.deviation(v)))
            for v in ranked[:2]
        ]
        found.append((where, shown))
    return found


def _changed(
    classes: _Classes, compared: Sequence[Variant], gains: Sequence[np.ndarray]
) -> dict[str, Any] | None:
    """Returns what the best variant but the first changed compared with the first."""
    if len(compared) < 2:
        return None
    best = variants.best_of(compared[1:])
    gain = gains[list(compared[1:]).index(best)]
    defined = np.flatnonzero(~np.isnan(gain))
    ups, downs = defined[gain[defined] > 0], defined[gain[defined] < 0]

    def shown(index: np.ndarray) -> list[tuple[str, str]]:
        return [(classes.names[i], f"{gain[i]:+.1f} points".replace("-", "−")) for i in index[:3]]

    return {
        "best": best.label,
        "num_labels": len(defined),
        "num_better": len(ups),
        "better": shown(ups[np.argsort(-gain[ups])]),
        "num_worse": len(downs),
        "worse": shown(downs[np.argsort(gain[downs])]),
    }


def _scores_table(compared: Sequence[Variant]) -> tuple[list[str], list[list[str]]]:
    """Returns the metrics of all variants, and published values of their methods."""
    columns = variants.columns()
    heads = [f"{column.metric.heading_with_unit} {column.group}".rstrip() for column in columns]
    rows = [
        [v.label, f"{len(v.scores):,}", *(column.text(v) for column in columns)] for v in compared
    ]
    for method, known in {v.config.get("method"): v.published() for v in compared}.items():
        if known:
            of_map = dict(zip(MAP_COLUMNS, (f"{value:.2f}" for value in known), strict=True))
            rows.append([f"{method}, published", "–", *(of_map.get(c, "") for c in columns)])
    return ["variant", "runs", *heads], rows


def _meanings() -> str:
    shown = dict.fromkeys(column.metric for column in variants.columns())
    return "; ".join(f"{metric.heading}: {metric.description}" for metric in shown)


def _differences(compared: Sequence[Variant], best: Variant) -> list[list[str]]:
    """Returns how far each variant is behind the best, with standard errors, and the verdict."""
    rows = []
    for variant in compared:
        if variant is not best:
            found = [column.difference(variant, best) for column in MAP_COLUMNS]
            distances = map(variants.distance, found)
            pairs = f"{found[0].num_pairs:,}"
            rows.append([variant.label, pairs, *distances, variants.verdict(found[0])])
    return rows


def _shown(value: object) -> str:
    return "–" if value is None else variants.text_of(value)


def _gain_columns(
    classes: _Classes,
    compared: Sequence[Variant],
    values: Sequence[np.ndarray],
    gains: Sequence[np.ndarray],
) -> list[Column]:
    first = compared[0].label
    return [
        Column("label", classes.names),
        Column("group", classes.groups, 0, "head, medium or tail, by the number of train images"),
        Column("train images", classes.train_counts, 0, "training images that have the label"),
        *(
            Column(f"{v.label}: AP %", 100 * ap, 2, "average precision, mean over runs")
            for v, ap in zip(compared, values, strict=True)
        ),
        *(
            Column(f"{v.label}: gain", gain, 2, f"points of AP more than {first}", signed=True)
            for v, gain in zip(compared[1:], gains, strict=True)
        ),
    ]


def _run_links(runs: Sequence[Run], path: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the runs with the addresses of their pages, relative to this one where they exist."""
    links = []
    for config, scores in runs:
        report = pathlib.Path(str(config.get("run_dir")), "report.html")
        address = None
        if report.exists():
            relative = os.path.relpath(report, path.parent)
            address = urllib.parse.quote(pathlib.PurePath(relative).as_posix())
            # "a:b" would be an address of the scheme "a".
            address = address if address.startswith(".") else f"./{address}"
        mean = float(metrics.MEAN_AVERAGE_PRECISION.read(scores)[0])
        judged = config.get("held_out") or "test"
        links.append({**config, "address": address, "map": text.percent(mean, 2), "on": judged})
    return links


def _overview(compared: Sequence[Variant]) -> charts.Chart:
    return charts.map_by_variant([v.label for v in compared], *_means(compared))


def _means(
    compared: Sequence[Variant],
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Returns means and deviations of mAP of the variants, in total and by group."""
    return (
        {c.group: [c.mean(v) for v in compared] for c in MAP_COLUMNS},
        {c.group: [c.deviation(v) for v in compared] for c in MAP_COLUMNS},
    )


def _gain_charts(
    classes: _Classes, compared: Sequence[Variant], gains: Sequence[np.ndarray]
) -> list[charts.Chart]:
    return [
        charts.gain_by_class(
            f"comparison_gain_{number}",
            f"{variant.label} against {compared[0].label}",
            f"How much {variant.label} adds to the average precision of each label, compared with "
            f"{compared[0].label}; means over runs (the paper's Fig. 6).",
            classes.names,
            classes.groups,
            classes.train_counts,
            gain,
        )
        for number, (variant, gain) in enumerate(zip(compared[1:], gains, strict=True), start=1)
    ]


def _sweeps(compared: Sequence[Variant], differing: Sequence[str]) -> list[charts.Chart]:
    """Draws mAP against the one number in which variants of a method differ, if there is one."""
    drawn: list[charts.Chart] = []
    for method in dict.fromkeys(v.config.get("method") for v in compared):
        own = [v for v in compared if v.config.get("method") == method]
        fields = [f for f in differing if len({repr(v.config.get(f)) for v in own}) > 1]
        if len(fields) != 1:
            continue
        field = fields[0]
        if not all(type(v.config.get(field)) in (int, float) for v in own):
            continue
        own.sort(key=lambda v: v.config[field])
        symbol = variants.SYMBOLS.get(field, field)
        drawn.append(
            charts.map_by_value(
                f"comparison_map_by_{field.strip('_')}_{len(drawn) + 1}",
                f"mAP against {symbol}" + (f", {method}" if method else ""),
                symbol,
                [v.config[field] for v in own],
                *_means(own),
            )
        )
    return drawn
