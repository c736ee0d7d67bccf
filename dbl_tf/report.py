"""The report: one HTML page that opens from disk, for a run or for a comparison of runs.

The page loads nothing: styles, figures and thumbnails are inside, and it holds no script. All text
that comes from the user is escaped.
"""

import base64
import dataclasses
import datetime
import io
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dbl_tf import figures, methods, published
from dbl_tf.statistics import GROUP_NAMES, LabelStatistics
from dbl_tf.svg import STYLE, Picture, escape, percent

MAX_TABLE_CLASSES = 150
MAX_WORST_IMAGES = 12
_THUMBNAIL = 240
_TAGS_SHOWN = 5
_COLUMNS = ("total", *GROUP_NAMES)
_ROWS_PER_BLOCK = 4096

# Fields of a configuration that do not change what is learned, or number its repetitions.
_NOT_SETTINGS = {
    "seed", "run_dir", "cache_dir", "export", "checkpoint_every", "strategy", "check_images",
    "rebalance_in",
}  # fmt: skip
_SYMBOLS = {"alpha": "α", "beta": "β", "mu": "μ", "lambda_": "λ", "kappa": "κ"}

_CSS = """*{box-sizing:border-box}
body{margin:0 auto;max-width:1160px;padding:16px;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;
overflow-wrap:anywhere}
h1{font-size:1.7rem;line-height:1.2;margin:.4em 0 .2em}
h2{font-size:1.25rem;margin:2.2em 0 .3em;border-top:1px solid var(--grid);padding-top:1em}
h3{font-size:1rem;margin:1.4em 0 .3em}
p,ul{max-width:46rem;margin:.5em 0}
ul{padding-left:1.2em}
.muted,figcaption,small{color:var(--muted)}
figcaption,small,figure p{font-size:.84rem;line-height:1.4}
figure{margin:0}
svg{display:block;width:100%;height:auto}
.panels{display:grid;gap:24px 20px;align-items:start;margin:1em 0;
grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
.cards{display:grid;gap:12px;margin:1em 0;grid-template-columns:repeat(auto-fit,minmax(150px,1fr))}
.card{border:1px solid var(--grid);border-left:5px solid var(--c);border-radius:4px;
padding:8px 12px}
.card b{display:block;font-size:1.7rem;line-height:1.25}
.scroll{overflow-x:auto;max-width:100%;margin:.6em 0}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{padding:3px 10px;border-bottom:1px solid var(--grid);text-align:right;white-space:nowrap}
th{text-align:right;vertical-align:bottom;color:var(--muted);font-weight:600}
th:first-child,td:first-child,.l{text-align:left}
td:first-child{max-width:15rem;overflow:hidden;text-overflow:ellipsis}
td.bar{background:linear-gradient(to right,var(--c) var(--v),transparent 0) left bottom/100% 3px
no-repeat}
tr.of td{color:var(--muted)}
.thumbs{display:grid;gap:16px;grid-template-columns:repeat(auto-fill,minmax(min(100%,220px),1fr))}
.thumbs img{display:block;width:100%;height:170px;object-fit:contain;background:var(--grid)}
.thumbs img.small{image-rendering:pixelated}
details{margin:.8em 0}summary{cursor:pointer}
.no{color:var(--red)}"""

_CSP = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def write_run_report(
    path: str | os.PathLike,
    *,
    title: str,
    statistics: LabelStatistics,
    labels: Any,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    scores: Mapping[str, Any],
    image_names: Sequence[str],
    read_image: Callable[[int], np.ndarray],
    config: Mapping[str, Any] | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    train_labels: Any = None,
    observed_counts: Any = None,
    num_draws: int | None = None,
    figures_dir: str | os.PathLike | None = None,
) -> None:
    """Writes the report of one model on a test split, and its figures as SVG files.

    What is None, because only a training run knows it, is left out, and the page says so.

    Args:
        path: of the HTML file.
        title: its heading.
        statistics: of the training labels.
        labels: multi-hot (N, C) of the test split, dense or `scipy.sparse`.
        probabilities: (N, C).
        thresholds: (C,), where each class counts as present.
        scores: of `dbl_tf.evaluation.score` for these.
        image_names: N names of the test images.
        read_image: position in the test split → uint8 (H, W, 3).
        config: the run's settings by name; "method", "dataset" and "sampler" are used.
        history: of `figures.training_curves`.
        loss: targets and logits, float32 (B, C) → elements (B, C), without weights of examples or
            classes.
        train_labels: multi-hot (M, C) of the training split, dense or `scipy.sparse`.
        observed_counts: (C,), how many of the examples that training drew hold each class.
        num_draws: how many examples it drew.
        figures_dir: folder of the figures; `figures` beside the page if None.

    Raises:
        ValueError: arguments that do not fit each other.
    """
    labels = _dense(labels)
    probabilities, thresholds = np.asarray(probabilities), np.asarray(thresholds, np.float64)
    _check_run(statistics, labels, probabilities, thresholds, scores, image_names)
    if (observed_counts is None) != (num_draws is None):
        raise ValueError("observed_counts and num_draws are given together, or neither")
    if observed_counts is not None and np.shape(observed_counts) != (statistics.num_classes,):
        raise ValueError(
            f"observed_counts must be of shape ({statistics.num_classes},), got "
            f"{np.shape(observed_counts)}"
        )
    config = dict(config or {})
    page = _Page(path, figures_dir)
    page.add(_run_summary(title, config, statistics, scores, labels, probabilities, thresholds))
    if config and statistics.num_classes:
        page.add(_what_the_method_changed(config, statistics, observed_counts, num_draws))
    page.add(_published_of_run(config, scores))

    page.add("<h2>Which tags the model finds, and which it misses</h2>")
    page.add_panels(
        [
            figures.average_precision_by_class(scores),
            *figures.precision_recall(labels, probabilities, thresholds, statistics),
        ]
    )
    page.add("<h3>Every tag in numbers</h3>", _class_table(scores))
    page.add(_worst_images(labels, probabilities, thresholds, statistics, image_names, read_image))

    page.add("<h2>What training saw</h2>")
    panels = [figures.class_shares(statistics, observed_counts, num_draws)]
    if train_labels is not None:
        variance = figures.within_class_variance(statistics, train_labels)
        panels.append(figures.variance_by_class(statistics, variance))
    panels.append(figures.conditional_probability_matrix(statistics))
    page.add_panels(panels)

    learned = []
    if loss is not None:
        name = config.get("method", "the loss")
        learned += figures.loss_gradients(loss, statistics, str(name))
    if history is not None:
        learned += figures.training_curves(history)
    if learned:
        page.add("<h2>How it learned</h2>")
        page.add_panels(learned)
    left_out = [
        what
        for what, given in (
            ("the settings", config),
            ("training curves", history),
            ("the gradient of the loss", loss),
            ("sampling variance", train_labels is not None),
            ("frequencies observed in training", observed_counts is not None),
        )
        if not given
    ]
    if left_out:
        page.add(
            f'<p class="muted">Not shown, since an evaluation without its training run does not '
            f"know it: {', '.join(left_out)}.</p>"
        )
    if config:
        page.add("<h2>Settings</h2>", _settings(config))
    page.write(title)


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
    page = _Page(path, figures_dir)
    page.add(_comparison_summary(title, variants, runs))
    page.add("<h2>All variants</h2>", _comparison_table(variants))
    page.add(_published_rows(str(runs[0][0].get("dataset")), variants))

    sweeps = _sweep_panels(variants, differing)
    if sweeps:
        page.add("<h2>What the value changes</h2>")
        page.add_panels(sweeps)
    if len(variants) > 1:
        first = variants[0]
        page.add(
            f"<h2>Gain and loss by class</h2><p>Bars to the right are tags that a variant finds "
            f"better than {_name(first.label)} does.</p>"
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


def mistakes(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How wrong each image is: how far its probabilities lie on the wrong side of the thresholds.

    The distance is of logits, summed over the classes that are decided wrongly.

    Args:
        labels: multi-hot bool (N, C).
        probabilities: (N, C).
        thresholds: (C,).

    Returns:
        The positions of images with mistakes, the worst first, and the sum of each.
    """
    total = np.zeros(len(labels))
    limits = _logit(np.asarray(thresholds))
    for start in range(0, len(labels), _ROWS_PER_BLOCK):
        rows = slice(start, start + _ROWS_PER_BLOCK)
        wrong = (probabilities[rows] >= thresholds) != labels[rows]
        total[rows] = (np.abs(_logit(probabilities[rows]) - limits) * wrong).sum(axis=1)
        # A probability that lies on the threshold is wrong too, by little.
        total[rows] += 1e-9 * wrong.sum(axis=1)
    order = np.argsort(-total, kind="stable")
    order = order[total[order] > 0]
    return order, total[order]


class _Page:
    """Collects the parts of a page; writes it and the figures in it."""

    def __init__(self, path: str | os.PathLike, figures_dir: str | os.PathLike | None):
        self.path = pathlib.Path(path)
        self.figures_dir = pathlib.Path(figures_dir or self.path.parent / "figures")
        self.parts: list[str] = []
        self.pictures: list[Picture] = []

    def add(self, *parts: str) -> None:
        self.parts.extend(parts)

    def add_panels(self, pictures: Sequence[Picture]) -> None:
        self.pictures.extend(pictures)
        panels = "".join(
            f"<figure>{p.inline()}<figcaption>{escape(p.caption)}</figcaption></figure>"
            for p in pictures
        )
        self.add(f'<div class="panels">{panels}</div>')

    def write(self, title: str) -> None:
        self.figures_dir.mkdir(parents=True, exist_ok=True)
        for picture in self.pictures:
            _write(self.figures_dir / f"{picture.name}.svg", picture.document())
        made = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
        _write(
            self.path,
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_CSP}">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}\n{_CSS}</style></head><body>\n"
            + "\n".join(self.parts)
            + f'\n<p class="muted"><small>Made {escape(made)} by dbl_tf. The figures are also '
            f"files in the folder {_name(self.figures_dir.name)}. Figures follow Wu et al., "
            "Distribution-Balanced Loss, ECCV 2020.</small></p></body></html>\n",
        )


def _write(path: pathlib.Path, text: str) -> None:
    incomplete = pathlib.Path(f"{path}.incomplete")
    incomplete.write_text(text, encoding="utf-8")
    os.replace(incomplete, path)


def _name(value: object) -> str:
    """A name of the user's within a sentence, whatever direction its script runs in."""
    return f"<bdi>{escape(value)}</bdi>"


def _dense(labels: Any) -> np.ndarray:
    return np.asarray(labels.toarray() if hasattr(labels, "tocsr") else labels, bool)


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.log(clipped) - np.log1p(-clipped)


def _value(fraction: float | None) -> float:
    return math.nan if fraction is None else fraction


def _check_run(statistics, labels, probabilities, thresholds, scores, image_names) -> None:
    shape = (len(image_names), statistics.num_classes)
    if labels.shape != shape or probabilities.shape != shape:
        raise ValueError(
            f"{shape[0]} image names and {shape[1]} classes need labels and probabilities of shape "
            f"{shape}, got {labels.shape} and {probabilities.shape}"
        )
    if thresholds.shape != shape[1:]:
        raise ValueError(f"thresholds must be of shape {shape[1:]}, got {thresholds.shape}")
    if tuple(scores["per_class"]) != statistics.class_names:
        raise ValueError("the scores are of other classes than the statistics")


def _run_summary(
    title: str,
    config: Mapping[str, Any],
    statistics: LabelStatistics,
    scores: Mapping[str, Any],
    labels: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
) -> str:
    entries = scores["per_class"]
    tested = {n: e for n, e in entries.items() if e["ap"] is not None}
    chance = {n: e["test_count"] / max(len(labels), 1) for n, e in tested.items()}
    ranked = sorted(tested, key=lambda n: -tested[n]["ap"])
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>The model learned {statistics.num_classes} tags from {statistics.num_examples:,} "
        f"images and was tested on {len(labels):,} images that it had not seen.</p>",
        _cards(scores["mAP"], _group_sizes(scores)),
    ]
    if ranked:
        guessing = sum(chance.values()) / len(chance)
        parts.append(
            "<p><b>Mean average precision</b> (mAP) says how well the images that have a tag are "
            "put before those that have not, on average over tags: 100 % is perfect, guessing "
            f"would reach {percent(guessing)} here. Tags are head, medium or tail by their number "
            "of training images.</p><ul>"
        )
        count = min(5, (len(ranked) + 1) // 2)
        parts.append(f"<li><b>Found best:</b> {_tag_list(ranked[:count], tested)}.</li>")
        worst = ranked[::-1][: min(5, len(ranked) // 2)]
        if worst:
            parts.append(f"<li><b>Found worst:</b> {_tag_list(worst, tested)}.</li>")
        hardly = [n for n in ranked if tested[n]["ap"] < 2 * chance[n]]
        if hardly:
            shown = ", ".join(_name(n) for n in hardly[:10])
            parts.append(
                f"<li><b>Hardly better than guessing</b> (less than twice its value): {shown}"
                f"{_and_more(len(hardly) - 10)}.</li>"
            )
        predicted = probabilities >= thresholds
        hits = int((predicted & labels).sum())
        given, present = int(predicted.sum()), int(labels.sum())
        parts.append(
            f"<li><b>As a tagger</b>, with a threshold of its own for each tag (chosen on "
            f"{escape(scores['F1']['thresholds_from'])}), it gives {given:,} tags to the test "
            f"images, of which {percent(hits / given if given else None)} are right, and finds "
            f"{percent(hits / present if present else None)} of the {present:,} that are there."
        )
        never = [n for i, n in enumerate(entries) if n in tested and not predicted[:, i].any()]
        if never:
            shown = ", ".join(_name(n) for n in never[:10])
            parts.append(f" It never gives: {shown}{_and_more(len(never) - 10)}.")
        parts.append("</li></ul>")
    missing = scores["classes_without_test_positives"]
    if missing:
        shown = ", ".join(_name(n) for n in missing[:10])
        parts.append(
            f"<p>Without test images, so left out of the means: {shown}"
            f"{_and_more(len(missing) - 10)}.</p>"
        )
    return "".join(parts)


def _what_the_method_changed(
    config: Mapping[str, Any],
    statistics: LabelStatistics,
    observed_counts: Any,
    num_draws: int | None,
) -> str:
    method = methods.METHODS.get(config.get("method"))
    parts = ["<p><b>What the method changed.</b> "]
    if method is not None:
        parts.append(f"Trained with {_name(config['method'])}: {escape(method.summary)}. ")
    present = np.flatnonzero(statistics.class_counts)
    if observed_counts is not None and len(present):
        counts = statistics.class_counts[present]
        for words, i in (
            ("The rarest tag", present[np.argmin(counts)]),
            ("The most frequent tag", present[np.argmax(counts)]),
        ):
            seen = np.asarray(observed_counts)[i] / num_draws
            parts.append(
                f"{words}, {_name(statistics.class_names[i])}, is in "
                f"{percent(statistics.priors[i])} of the data and was in {percent(seen)} of the "
                "images that training was shown. "
            )
    return "".join(parts) + "</p>"


def _group_sizes(scores: Mapping[str, Any]) -> dict[str, int]:
    groups = [entry["group"] for entry in scores["per_class"].values()]
    return {"total": len(groups), **{name: groups.count(name) for name in GROUP_NAMES}}


def _cards(mean: Mapping[str, float | None], sizes: Mapping[str, int]) -> str:
    words = {
        "total": "all",
        "head": "head: 100 training images or more",
        "medium": "medium: 20 to 99",
        "tail": "tail: fewer than 20",
    }
    cards = "".join(
        f'<div class="card" style="--c:var({figures.MEAN_COLOURS[name]})">'
        f"<b>{percent(mean[name])}</b>"
        f"<small>mAP, {words[name]} ({sizes[name]} {'tag' if sizes[name] == 1 else 'tags'})"
        "</small></div>"
        for name in _COLUMNS
    )
    return f'<div class="cards">{cards}</div>'


def _tag_list(names: Sequence[str], entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{_name(n)} {percent(entries[n]['ap'])}" for n in names)


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _published_of_run(config: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    row = published.MEAN_AVERAGE_PRECISION.get(config.get("dataset"), {}).get(config.get("method"))
    if row is None:
        return ""
    ours = [_cell(_value(scores["mAP"][name])) for name in _COLUMNS]
    return _table(
        ["mAP in percent", *_COLUMNS],
        [["this run", *ours], ["published, ResNet-50", *(f"{v:.2f}" for v in row)]],
    )


class _Cell(str):
    """The element of a table's cell."""


def _cell(fraction: float, deviation: float = math.nan) -> _Cell:
    """A fraction of 1 in percent, with its standard deviation where there is one."""
    if math.isnan(fraction):
        return _Cell("<td>–</td>")
    spread = "" if math.isnan(deviation) else f" ± {100 * deviation:.2f}"
    return _Cell(f"<td>{100 * fraction:.2f}{spread}</td>")


def _bar_cell(fraction: float, colour: str) -> _Cell:
    if math.isnan(fraction):
        return _Cell("<td>–</td>")
    return _Cell(
        f'<td class="bar" style="--v:{100 * fraction:.1f}%;--c:var({colour})">'
        f"{100 * fraction:.2f}</td>"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls in its box; what is no `_Cell` yet is text."""
    lines = [
        "<tr>"
        + "".join(c if isinstance(c, _Cell) else f"<td>{escape(c)}</td>" for c in row)
        + "</tr>\n"
        for row in rows
    ]
    head = "".join(f"<th>{escape(h)}</th>" for h in heads)
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>\n'
        f"{''.join(lines)}</tbody></table></div>"
    )


def _shown_classes(
    classes: figures.Classes, average_precision: np.ndarray
) -> tuple[list[int], str]:
    """Columns of the classes that a table shows, and what it says of the others."""
    if len(classes) <= MAX_TABLE_CLASSES:
        return [int(i) for i in classes.index], ""
    half = MAX_TABLE_CLASSES // (2 * len(GROUP_NAMES))
    shown: set[int] = set()
    for group in GROUP_NAMES:
        members = classes.index[np.array(classes.groups) == group]
        members = members[~np.isnan(average_precision[members])]
        ranked = members[np.argsort(-average_precision[members], kind="stable")]
        shown.update(int(i) for i in [*ranked[:half], *ranked[-half:]])
    note = (
        f'<p class="muted">Shown are {len(shown)} of {len(classes)} classes: of each group the '
        f"{half} best and the {half} worst. The others are in metrics.json.</p>"
    )
    return [int(i) for i in classes.index if int(i) in shown], note


def _class_table(scores: Mapping[str, Any]) -> str:
    names, entries = list(scores["per_class"]), list(scores["per_class"].values())
    values = np.array([_value(e["ap"]) for e in entries])
    shown, note = _shown_classes(figures.Classes.of_scores(scores), values)
    rows = []
    for i in shown:
        entry, decided = entries[i], entries[i]["at_threshold"]
        tested = entry["test_count"] > 0
        rows.append(
            [
                _name_cell(names[i]),
                _left_cell(entry["group"]),
                f"{entry['train_count']:,}",
                f"{entry['test_count']:,}",
                _bar_cell(_value(entry["ap"]), figures.GROUP_COLOURS[entry["group"]]),
                *(
                    _cell(decided[key] if tested else math.nan)
                    for key in ("precision", "recall", "f1")
                ),
                f"{decided['threshold']:.3f}",
            ]
        )
    heads = ["tag", "group", "train images", "test images", "AP %", "precision %", "recall %",
             "F1 %", "threshold"]  # fmt: skip
    f1 = scores["F1"]
    return (
        "<p class='muted'>Precision, recall and F1 are of the decisions at each tag's threshold, "
        f"chosen on {escape(f1['thresholds_from'])}; over all decisions F1 is "
        f"{percent(f1['micro_at_threshold'], 2)}, on average over tags "
        f"{percent(f1['macro_at_threshold'], 2)}.</p>{note}{_table(heads, rows)}"
    )


def _name_cell(name: str) -> _Cell:
    return _Cell(f'<td title="{escape(name)}">{_name(name)}</td>')


def _left_cell(value: object) -> _Cell:
    return _Cell(f'<td class="l">{escape(value)}</td>')


def _worst_images(
    labels: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    statistics: LabelStatistics,
    image_names: Sequence[str],
    read_image: Callable[[int], np.ndarray],
) -> str:
    worst, _ = mistakes(labels, probabilities, thresholds)
    heading = "<h2>The test images that the model gets most wrong</h2>"
    if not len(worst):
        return f"{heading}<p>Every tag of every test image is right.</p>"
    names = statistics.class_names
    figures_of_images = []
    for position in worst[:MAX_WORST_IMAGES]:
        truth, row = labels[position], probabilities[position]
        predicted = row >= thresholds
        lines = [f"<small>{_name(image_names[position])}</small>"]
        for words, chosen, mark in (
            ("right", truth & predicted, ""),
            ("missed", truth & ~predicted, ' class="no"'),
            ("not there", ~truth & predicted, ' class="no"'),
        ):
            index = np.flatnonzero(chosen)
            # The worst of the missed are the least probable, of the others the most.
            index = index[np.argsort(row[index] if words == "missed" else -row[index])]
            if len(index):
                tags = ", ".join(
                    f"{_name(names[i])} {percent(row[i])}" for i in index[:_TAGS_SHOWN]
                )
                lines.append(f"<b{mark}>{words}:</b> {tags}{_and_more(len(index) - _TAGS_SHOWN)}")
        if not truth.any():
            lines.append("no tag is there")
        figures_of_images.append(
            f"<figure>{_thumbnail(read_image(int(position)), image_names[position])}"
            f"<figcaption>{'<br>'.join(lines)}</figcaption></figure>"
        )
    return (
        f"{heading}<p>{len(worst):,} of {len(labels):,} test images have a wrong tag. These "
        f"{len(figures_of_images)} are the worst: their probabilities lie furthest on the wrong "
        "side of the tags' thresholds. Percentages are the model's probabilities; some images may "
        f'be labelled wrongly.</p><div class="thumbs">{"".join(figures_of_images)}</div>'
    )


def _thumbnail(image: np.ndarray, name: str) -> str:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"read_image must give uint8 (H, W, 3), gave {image.dtype} {image.shape} for {name}"
        )
    picture = Image.fromarray(image)
    small = max(picture.size) <= _THUMBNAIL // 2
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    # A few pixels across, JPEG would blur them.
    kind = "png" if small else "jpeg"
    picture.save(buffer, kind, **({} if small else {"quality": 80}))
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/{kind};base64,{data}" alt="{escape(name)}"'
        f"{' class=small' if small else ''}>"
    )


def _settings(config: Mapping[str, Any]) -> str:
    rows = [[key, _left_cell(value)] for key, value in config.items()]
    return f"<details><summary>All settings</summary>{_table(['setting', 'value'], rows)}</details>"


@dataclasses.dataclass(frozen=True)
class _Variant:
    """Runs that differ in their seed alone."""

    label: str
    config: Mapping[str, Any]
    scores: list[Mapping[str, Any]]

    def means(self, column: str) -> np.ndarray:
        return np.array([_value(scores["mAP"][column]) for scores in self.scores])

    def mean(self, column: str) -> float:
        return float(np.mean(self.means(column)))

    def deviation(self, column: str) -> float:
        """Sample standard deviation over seeds; NaN of one."""
        values = self.means(column)
        return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan

    def average_precision(self) -> np.ndarray:
        """Mean over seeds by class, (C,)."""
        return np.mean(
            [[_value(e["ap"]) for e in scores["per_class"].values()] for scores in self.scores],
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
            str(config[f]) if f == "method" else f"{_SYMBOLS.get(f, f)} = {config.get(f)}"
            for f in naming
        ]
        label = ", ".join(words) or str(config.get("method", "all runs"))
        variants.append(_Variant(label, config, [runs[k][1] for k in members]))
    return variants, differing


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
        f"{scores['num_test_examples']:,} images with {len(scores['per_class'])} tags. Mean "
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
            f"<li><b>Best {words}:</b> {_name(best.label)} with {_plus_minus(best, column)}, then "
            f"{_name(second.label)} with {_plus_minus(second, column)}.</li>"
        )
    names = list(scores["per_class"])
    if len(variants) > 1:
        first = variants[0]
        best = max(variants[1:], key=lambda v: np.nan_to_num(v.mean("total"), nan=-1.0))
        gain = best.average_precision() - first.average_precision()
        defined = np.flatnonzero(~np.isnan(gain))
        ups, downs = defined[gain[defined] > 0], defined[gain[defined] < 0]
        ups, downs = ups[np.argsort(-gain[ups])], downs[np.argsort(gain[downs])]
        parts.append(
            f"<li><b>What {_name(best.label)} changed against {_name(first.label)}:</b> "
            f"{len(ups)} of {len(defined)} tags are found better{_gains(ups, names, gain)}; "
            f"{len(downs)} worse{_gains(downs, names, gain)}.</li>"
        )
    parts.append("</ul>")
    if min(len(v.scores) for v in variants) == 1:
        parts.append(
            "<p>Some variants are single runs: with other seeds their figures move, so that a "
            "difference of a few points is no ranking.</p>"
        )
    return "".join(parts)


def _plus_minus(variant: _Variant, column: str) -> str:
    deviation = variant.deviation(column)
    spread = "" if math.isnan(deviation) else f" ± {100 * deviation:.1f}"
    return f"{100 * variant.mean(column):.1f}{spread} %"


def _gains(index: np.ndarray, names: Sequence[str], gain: np.ndarray) -> str:
    shown = ", ".join(f"{_name(names[i])} {_points(gain[i])}" for i in index[:3])
    return f" (most: {shown})" if shown else ""


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f} points".replace("-", "−")


def _comparison_table(variants: Sequence[_Variant]) -> str:
    table = published.MEAN_AVERAGE_PRECISION.get(variants[0].config.get("dataset"), {})
    best = {c: max((v.mean(c) for v in variants if not math.isnan(v.mean(c))), default=math.nan)
            for c in _COLUMNS}  # fmt: skip
    rows = []
    for variant in variants:
        cells = []
        for column in _COLUMNS:
            cell = _cell(variant.mean(column), variant.deviation(column))
            if variant.mean(column) == best[column] and len(variants) > 1:
                cell = _Cell(cell.replace("<td>", "<td><b>").replace("</td>", "</b></td>"))
            cells.append(cell)
        if table:
            row = table.get(variant.config.get("method"))
            cells += [f"{v:.2f}" for v in row] if row else ["–"] * 4
        rows.append([_name_cell(variant.label), f"{len(variant.scores)}", *cells])
    heads = ["variant", "seeds", *_COLUMNS]
    if table:
        heads += [f"published {c}" for c in _COLUMNS]
    sizes = _group_sizes(variants[0].scores[0])
    count = ", ".join(f"{sizes[name]} {name}" for name in GROUP_NAMES)
    return (
        f'<p class="muted">mAP in percent, mean ± standard deviation over seeds; {sizes["total"]} '
        f"classes, {count}. The best of each column is bold.</p>{_table(heads, rows)}"
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
        f"{_table(['method', *_COLUMNS], rows)}</details>"
    )


def _gain(name: str, before: _Variant, after: _Variant) -> Picture:
    return figures.gain_by_class(
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
            figures.map_by_value(
                f"comparison_map_by_{field.strip('_')}_{len(panels) + 1}",
                f"mAP against {symbol}" + (f", {method}" if method else ""),
                symbol,
                [v.config[field] for v in own],
                {c: [v.mean(c) for v in own] for c in _COLUMNS},
                {c: [v.deviation(c) for v in own] for c in _COLUMNS},
            )
        )
    return panels


def _comparison_classes(variants: Sequence[_Variant]) -> str:
    scores = variants[0].scores[0]
    names, entries = list(scores["per_class"]), list(scores["per_class"].values())
    values = [v.average_precision() for v in variants]
    shown, note = _shown_classes(figures.Classes.of_scores(scores), values[0])
    rows = [
        [
            _name_cell(names[i]),
            _left_cell(entries[i]["group"]),
            f"{entries[i]['train_count']:,}",
            *(_bar_cell(ap[i], figures.GROUP_COLOURS[entries[i]["group"]]) for ap in values),
        ]
        for i in shown
    ]
    heads = ["tag", "group", "train images", *(v.label for v in variants)]
    return f'<p class="muted">In percent, means over seeds.</p>{note}{_table(heads, rows)}'


def _differing_table(variants: Sequence[_Variant], differing: Sequence[str]) -> str:
    rows = [
        [_name_cell(v.label), *(_setting(v.config.get(f)) for f in differing)] for v in variants
    ]
    return _table(["variant", *differing], rows)


def _setting(value: object) -> str:
    """A setting as a cell; a dash for one that is not set."""
    return "–" if value is None else str(value)
