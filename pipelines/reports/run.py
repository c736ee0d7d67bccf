"""Reports on one model and a test split in an HTML page that opens from disk."""

import base64
import functools
import io
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dbl_tf import label_values, methods, metrics
from dbl_tf.messages import first_few
from dbl_tf.statistics import GROUP_NAMES, LabelStatistics, is_sparse
from pipelines.reports import charts, pages, published
from pipelines.reports.svg import Picture, escape, percent

MAX_WORST_IMAGES = 12
_THUMBNAIL = 240
_LABELS_SHOWN = 5
_ROWS_PER_BLOCK = 4096


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
    read_image: Callable[[int], np.ndarray] | None,
    config: Mapping[str, Any] | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    train_labels: Any = None,
    observed_counts: Any = None,
    num_draws: int | None = None,
    cautions: Sequence[str] = (),
    figures_dir: str | os.PathLike | None = None,
) -> None:
    """Writes the report of one model on a test split, and its figures as SVG files.

    Arguments that only a training run knows may be None. The page says what it leaves out because
    of them.

    Args:
        path: the path of the HTML file.
        title: the heading of the page.
        statistics: the statistics of the training labels.
        labels: the labels of the test split, multi-hot (N, C), dense or `scipy.sparse`, with −1
            for unknown ones.
        probabilities: the probabilities, (N, C).
        thresholds: the thresholds of the decisions, (C,).
        scores: the content of the `metrics.json` of these predictions.
        image_names: the names of the N test images.
        read_image: a function from a position in the test split to the image, uint8 (H, W, 3);
            None if the examples are not images, so that no picture is shown.
        config: the settings of the run by name, of which "method" and "dataset" are interpreted.
        history: see `charts.training_curves`.
        loss: see `charts.loss_gradients`.
        train_labels: the labels of the training split, multi-hot (M, C), dense or `scipy.sparse`.
        observed_counts: see `charts.class_shares`.
        num_draws: see `charts.class_shares`.
        cautions: sentences that a reader of the scores must know.
        figures_dir: the folder for the figures; `figures` next to the page if None.

    Raises:
        ValueError: the shapes or classes of arguments do not agree.
    """
    labels = _dense(labels)
    probabilities, thresholds = np.asarray(probabilities), np.asarray(thresholds, np.float64)
    _check_run(statistics, labels, probabilities, thresholds, scores, image_names)
    if (observed_counts is None) != (num_draws is None):
        raise ValueError("observed_counts and num_draws must be given together")
    if observed_counts is not None and np.shape(observed_counts) != (statistics.num_classes,):
        raise ValueError(
            f"observed_counts must be of shape ({statistics.num_classes},), got "
            f"{np.shape(observed_counts)}"
        )
    config = dict(config or {})
    page = pages.Page(path, figures_dir)
    page.add(_run_summary(title, statistics, scores, labels, probabilities, thresholds))
    page.add(*(f"<p><strong>Caution:</strong> {escape(caution)}</p>" for caution in cautions))
    page.add(_what_the_method_changed(config, statistics, loss, observed_counts, num_draws))
    page.add(_published_of_run(config, scores))

    page.add("<h2>Which labels the model finds, and which it misses</h2>")
    page.add_panels(
        [charts.average_precision_by_class(scores)],
        extra=f'<div class="wide"><h3>Every label in numbers</h3>{_class_table(scores)}</div>',
    )
    page.add(_further_scores(scores))
    page.add_panels(charts.precision_recall(labels, probabilities, thresholds, statistics, scores))
    page.add(_worst_images(labels, probabilities, thresholds, statistics, image_names, read_image))

    page.add("<h2>What training saw</h2>")
    panels = [charts.class_shares(statistics, observed_counts, num_draws)]
    if train_labels is not None:
        variance = charts.within_class_variance(statistics, train_labels)
        panels.append(charts.variance_by_class(statistics, variance))
    panels.append(charts.conditional_probability_matrix(statistics))
    page.add_panels(panels)

    learned: list[Picture] = []
    if loss is not None:
        name = config.get("method", "the loss")
        learned += charts.loss_gradients(loss, statistics, str(name))
    if history is not None:
        learned += charts.training_curves(history)
    if learned:
        page.add("<h2>How it learned</h2>")
        page.add_panels(learned)
    method = methods.METHODS.get(str(config.get("method")))
    is_of_examples = method is not None and not method.loss.is_mean_over_classes
    if is_of_examples:
        page.add(
            '<p class="muted">The loss of this method compares the labels of an image with one '
            "another. It has no gradient by the logit of a label alone that could be drawn.</p>"
        )
    left_out = [
        part
        for part, given in (
            ("the settings", config),
            ("training curves", history),
            ("the gradient of the loss", loss or is_of_examples),
            ("the variance of draws", train_labels is not None),
            ("how often training drew each label", observed_counts is not None),
        )
        if not given
    ]
    if left_out:
        page.add(
            f'<p class="muted">Not shown, because only the training run knows it: '
            f"{', '.join(left_out)}.</p>"
        )
    if config:
        page.add("<h2>Settings</h2>", _settings(config))
    page.write(title)


def mistakes(
    labels: np.ndarray, probabilities: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks images by how far their probabilities are on the wrong side of the thresholds.

    The distance between logits is summed over the classes with a wrong decision.

    Args:
        labels: the labels, multi-hot (N, C), bool, or int8 with −1 for unknown ones, whose
            decisions are not judged.
        probabilities: the probabilities, (N, C).
        thresholds: the thresholds of the decisions, (C,).

    Returns:
        The positions of the images with a wrong decision, the worst first, and their distances.
    """
    total = np.zeros(len(labels))
    limits = _logit(np.asarray(thresholds))
    for start in range(0, len(labels), _ROWS_PER_BLOCK):
        rows = slice(start, start + _ROWS_PER_BLOCK)
        wrong = (probabilities[rows] >= thresholds) != (labels[rows] == 1)
        wrong &= labels[rows] != -1
        total[rows] = (np.abs(_logit(probabilities[rows]) - limits) * wrong).sum(axis=1)
        # A wrong decision counts even where the probability equals the threshold.
        total[rows] += 1e-9 * wrong.sum(axis=1)
    order = np.argsort(-total, kind="stable")
    order = order[total[order] > 0]
    return order, total[order]


def _check_run(
    statistics: LabelStatistics,
    labels: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    scores: Mapping[str, Any],
    image_names: Sequence[str],
) -> None:
    shape = (len(image_names), statistics.num_classes)
    if labels.shape != shape or probabilities.shape != shape:
        raise ValueError(
            f"{shape[0]} image names and {shape[1]} classes need labels and probabilities of shape "
            f"{shape}, got {labels.shape} and {probabilities.shape}"
        )
    if thresholds.shape != shape[1:]:
        raise ValueError(f"thresholds must be of shape {shape[1:]}, got {thresholds.shape}")
    if tuple(scores["per_class"]) != statistics.class_names:
        raise ValueError(
            f"the scores are of the classes {first_few(list(scores['per_class']))}; the statistics "
            f"are of {first_few(statistics.class_names)}"
        )


def _run_summary(
    title: str,
    statistics: LabelStatistics,
    scores: Mapping[str, Any],
    labels: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
) -> str:
    values = metrics.AVERAGE_PRECISION.read(scores)
    found = {
        name: float(value)
        for name, value in zip(statistics.class_names, values, strict=True)
        if not math.isnan(value)
    }
    counts = {name: scores["per_class"][name]["test_count"] for name in found}
    num_known = dict(
        zip(statistics.class_names, np.count_nonzero(labels != -1, axis=0), strict=True)
    )
    chance = {name: count / num_known[name] for name, count in counts.items()}
    ranked = sorted(found, key=lambda name: -found[name])
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>The model learned {statistics.num_classes:,} labels from {statistics.num_examples:,} "
        f"images and was tested on {len(labels):,} images that it had not seen.</p>",
        _cards(scores),
    ]
    if num_unknown := int(np.count_nonzero(labels == -1)):
        parts.append(
            f"<p>Of {num_unknown:,} labels of the test images it is not known whether the images "
            "have them. They are left out of all scores.</p>"
        )
    if ranked:
        guessing = sum(chance.values()) / len(chance)
        parts.append(
            "<p><b>Mean average precision</b> (mAP) says how well the images with a label are "
            "ranked before those without it, on average over labels: 100 % is perfect, guessing "
            f"would reach {percent(guessing)} here. Labels are head, medium or tail by their "
            "number of training images.</p><ul>"
        )
        count = min(5, (len(ranked) + 1) // 2)
        parts.append(f"<li><b>Found best:</b> {_with_values(ranked[:count], found)}.</li>")
        worst = ranked[::-1][: min(5, len(ranked) // 2)]
        if worst:
            parts.append(f"<li><b>Found worst:</b> {_with_values(worst, found)}.</li>")
        hardly = [n for n in ranked if found[n] - chance[n] < 0.1 * (1 - chance[n])]
        if hardly:
            parts.append(
                "<li><b>Hardly better than guessing</b> (less than a tenth of the way to "
                f"perfect): {_first_names(hardly)}.</li>"
            )
        chosen_on = scores["F1"]["thresholds_from"]
        origin = (
            "the training images, since there were no others"
            if chosen_on == "train"
            else f"the split {escape(chosen_on)}"
        )
        given = (probabilities >= thresholds) & (labels != -1)
        num_given, num_present = int(given.sum()), int(np.count_nonzero(labels == 1))
        num_right = int((given & (labels == 1)).sum())
        right = num_right / num_given if num_given else math.nan
        parts.append(
            "<li><b>Decisions:</b> with a threshold for each label, chosen on "
            f"{origin}, the model gives {num_given:,} labels to the test images, of which "
            f"{percent(right)} are right. It finds {percent(num_right / num_present)} of the "
            f"{num_present:,} labels that the images have."
        )
        num_given_of = dict(zip(statistics.class_names, given.sum(axis=0), strict=True))
        never = [name for name in scores["per_class"] if name in found and not num_given_of[name]]
        if never:
            parts.append(f" It never gives: {_first_names(never)}.")
        parts.append("</li></ul>")
    missing = scores["classes_without_test_positives"]
    if missing:
        parts.append(
            "<p>Labels without test images, which are left out of the means: "
            f"{_first_names(missing)}.</p>"
        )
    return "".join(parts)


def _what_the_method_changed(
    config: Mapping[str, Any],
    statistics: LabelStatistics,
    loss: Callable[[Any, Any], Any] | None,
    observed_counts: Any,
    num_draws: int | None,
) -> str:
    method = methods.METHODS.get(str(config.get("method")))
    parts = []
    if method is not None:
        parts.append(f"Trained with {pages.named(config['method'])}: {escape(method.summary)}. ")
    present = np.flatnonzero(statistics.class_counts)
    if observed_counts is not None and len(present):
        counts = statistics.class_counts[present]
        for words, i in (
            ("The rarest label", present[np.argmin(counts)]),
            ("The most frequent label", present[np.argmax(counts)]),
        ):
            seen = np.asarray(observed_counts)[i] / num_draws
            parts.append(
                f"{words}, {pages.named(statistics.class_names[i])}, is on "
                f"{percent(statistics.priors[i])} of the training images and was on "
                f"{percent(seen)} of the images that training drew. "
            )
    if loss is not None and len(present):
        rarest = int(present[np.argmin(statistics.class_counts[present])])
        logit = math.log(0.1 / 0.9)
        pull = charts.gradient_by_logit(
            loss, statistics.num_classes, rarest, 0.0, np.array([logit])
        )
        force = float(pull[0]) / 0.1
        if abs(force - 1) > 0.02:
            parts.append(
                "Where an image does not have the rarest label and its probability is already as "
                f"low as 10 %, the loss pushes it further down with {percent(force, 0)} of the "
                "force of binary cross-entropy. "
            )
    return f"<p><b>What the method changed.</b> {''.join(parts)}</p>" if parts else ""


def _cards(scores: Mapping[str, Any]) -> str:
    """Returns a row of cards for each metric by group, and a row for those of the whole split."""
    ranges = {name: f"{name}: {charts.GROUP_RANGES[name]} training images" for name in GROUP_NAMES}
    words = {"total": "all", **ranges}
    sizes = metrics.num_classes_by_group(scores)
    rows, others = [], []
    for metric in metrics.METRICS:
        if not metric.heading or metric.over == "class":
            continue
        values = metric.read(scores)
        if metric.over == "split":
            others.append(_card("--ink", metric, values[0], f": {metric.description}"))
            continue
        row = []
        for name, value in zip(metrics.TOTAL_AND_GROUPS, values, strict=True):
            unit = "label" if sizes[name] == 1 else "labels"
            rest = f", {words[name]} ({sizes[name]:,} {unit})"
            row.append(_card(charts.MEAN_COLORS[name], metric, value, rest))
        rows.append(row)
    return "".join(f'<div class="cards">{"".join(row)}</div>' for row in (*rows, others) if row)


def _card(color: str, metric: metrics.Metric, value: float, rest: str) -> str:
    shown = percent(value) if metric.percent else metric.text(value)
    return (
        f'<div class="card" style="--c:var({color})"><b>{shown}</b>'
        f"<small>{escape(metric.heading)}{escape(rest)}</small></div>"
    )


def _first_names(names: Sequence[str]) -> str:
    return first_few([pages.named(name) for name in names], limit=10)


def _with_values(names: Sequence[str], values: Mapping[str, float]) -> str:
    return ", ".join(f"{pages.named(name)} {percent(values[name])}" for name in names)


def _published_of_run(config: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    row = published.mean_average_precision(config)
    if row is None:
        return ""
    metric = metrics.MEAN_AVERAGE_PRECISION
    ours = [pages.value_cell(metric, value) for value in metric.read(scores)]
    return pages.table(
        ["mAP in percent", *metrics.TOTAL_AND_GROUPS],
        [["this run", *ours], ["published, ResNet-50", *pages.published_cells(row)]],
    )


def _further_scores(scores: Mapping[str, Any]) -> str:
    """Returns the metrics that have a cell in small tables, rows of the same columns in one."""
    rows: dict[str, dict[str, pages.Cell]] = {}
    meanings = {}
    for metric in metrics.METRICS:
        if metric.cell is None:
            continue
        row, column = metric.cell
        columns = metrics.TOTAL_AND_GROUPS if metric.over == "group" else (column,)
        unit = " %" if metric.percent else ""
        cells = map(functools.partial(pages.value_cell, metric), metric.read(scores))
        rows.setdefault(row, {}).update(
            zip((f"{name}{unit}" for name in columns), cells, strict=True)
        )
        meanings[column or row] = metric.description
    tables = [
        pages.table(["", *columns], [[name, *cells.values()] for name, cells in alike])
        for columns, alike in itertools.groupby(rows.items(), key=lambda item: tuple(item[1]))
    ]
    explained = "; ".join(f"{name}: {meaning}" for name, meaning in meanings.items())
    return f"<h3>Further scores</h3>{''.join(tables)}<p class='muted'>{escape(explained)}.</p>"


def _class_table(scores: Mapping[str, Any]) -> str:
    """Returns a table of all metrics of each class."""
    shown_metrics = [m for m in metrics.METRICS if m.heading and m.over == "class"]
    values = {metric: metric.read(scores) for metric in shown_metrics}
    names, entries = list(scores["per_class"]), list(scores["per_class"].values())
    shown, note = pages.shown_classes(
        charts.Classes.of_scores(scores), metrics.AVERAGE_PRECISION.read(scores)
    )
    rows = []
    for i in shown:
        entry = entries[i]
        cells = []
        for metric in shown_metrics:
            # Without test images there is nothing that a metric could measure.
            value = values[metric][i] if entry["test_count"] else math.nan
            if metric is metrics.AVERAGE_PRECISION:
                color = charts.GROUP_COLORS[entry["group"]]
                cells.append(pages.bar_cell(metric, value, color))
            else:
                cells.append(pages.value_cell(metric, value))
        rows.append(
            [
                pages.name_cell(names[i]),
                pages.left_cell(entry["group"]),
                f"{entry['train_count']:,}",
                f"{entry['test_count']:,}",
                *cells,
                f"{entry['at_threshold']['threshold']:.3f}",
            ]
        )
    headings = [metric.heading_with_unit for metric in shown_metrics]
    heads = ["label", "group", "train images", "test images", *headings, "threshold"]
    meanings = "; ".join(f"{m.heading}: {m.description}" for m in shown_metrics)
    return (
        f"<p class='muted'>{escape(meanings)}. Thresholds were chosen on "
        f"{escape(scores['F1']['thresholds_from'])}.</p>{note}{pages.table(heads, rows)}"
    )


def _worst_images(
    labels: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    statistics: LabelStatistics,
    image_names: Sequence[str],
    read_image: Callable[[int], np.ndarray] | None,
) -> str:
    kind = "images" if read_image is not None else "examples"
    worst, _ = mistakes(labels, probabilities, thresholds)
    heading = f"<h2>The test {kind} that the model gets most wrong</h2>"
    if not len(worst):
        return f"{heading}<p>All labels of all test {kind} are right.</p>"
    names = statistics.class_names
    figures_of_images = []
    for position in worst[:MAX_WORST_IMAGES]:
        truth, row = labels[position] == 1, probabilities[position]
        given = (row >= thresholds) & (labels[position] != -1)
        lines = [f"<small>{pages.named(image_names[position])}</small>"]
        for words, chosen, mark in (
            ("right", truth & given, ""),
            ("missed", truth & ~given, ' class="no"'),
            ("wrongly given", ~truth & given, ' class="no"'),
        ):
            index = np.flatnonzero(chosen)
            # Of the missed labels the least probable comes first, of the others the most probable.
            index = index[np.argsort(row[index] if words == "missed" else -row[index])]
            if len(index):
                items = [
                    f"{pages.named(names[i])} {percent(row[i], 0)} ({percent(thresholds[i], 0)})"
                    for i in index
                ]
                lines.append(f"<b{mark}>{words}:</b> {first_few(items, limit=_LABELS_SHOWN)}")
        if not truth.any():
            lines.append(f"the {kind[:-1]} has no label")
        picture = ""
        if read_image is not None:
            picture = _thumbnail(read_image(int(position)), image_names[position])
        figures_of_images.append(
            f"<figure>{picture}<figcaption>{'<br>'.join(lines)}</figcaption></figure>"
        )
    return (
        f"{heading}<p>{len(worst):,} of {len(labels):,} test {kind} have a wrong or missing label. "
        f"The {len(figures_of_images)} worst are shown, whose probabilities are furthest on the "
        "wrong side of the thresholds. Each label is followed by the model's probability and, in "
        f"parentheses, the threshold from which on the label is given. Some of these {kind} may be "
        f'labeled wrongly in the data.</p><div class="thumbs">{"".join(figures_of_images)}</div>'
    )


def _thumbnail(image: np.ndarray, name: str) -> str:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"read_image must return uint8 (H, W, 3), returned {image.dtype} {image.shape} for "
            f"{name}"
        )
    picture = Image.fromarray(image)
    small = max(picture.size) <= _THUMBNAIL // 2
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    # JPEG would blur an image of few pixels.
    kind = "png" if small else "jpeg"
    picture.save(buffer, kind, **({} if small else {"quality": 80}))
    data = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img src="data:image/{kind};base64,{data}" alt="{escape(name)}"'
        f"{' class=small' if small else ''}>"
    )


def _settings(config: Mapping[str, Any]) -> str:
    rows = [[key, pages.left_cell(value)] for key, value in config.items()]
    table = pages.table(["setting", "value"], rows, left=["value"])
    return f"<details><summary>All settings</summary>{table}</details>"


def _dense(labels: Any) -> np.ndarray:
    """Labels as an array, (N, C): bool, or int8 with −1 where some are unknown."""
    labels = np.asarray(labels.toarray() if is_sparse(labels) else labels)
    unknown = label_values.is_unknown(labels)
    if not unknown.any():
        return labels.astype(bool, copy=False)
    return np.where(unknown, np.int8(-1), labels.astype(np.int8))


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.log(clipped) - np.log1p(-clipped)
