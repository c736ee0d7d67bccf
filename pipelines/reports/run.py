"""The report of one model on a test split, as one HTML page that opens from disk."""

import base64
import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from dbl_tf import methods
from dbl_tf.statistics import LabelStatistics, is_sparse
from pipelines.reports import charts, pages, published
from pipelines.reports.svg import Picture, escape, percent

MAX_WORST_IMAGES = 12
_THUMBNAIL = 240
_TAGS_SHOWN = 5
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
    page = pages.Page(path, figures_dir)
    page.add(_run_summary(title, statistics, scores, labels, probabilities, thresholds))
    page.add(_what_the_method_changed(config, statistics, loss, observed_counts, num_draws))
    page.add(_published_of_run(config, scores))

    page.add("<h2>Which tags the model finds, and which it misses</h2>")
    page.add_panels(
        [charts.average_precision_by_class(scores)],
        beside=f'<div class="wide"><h3>Every tag in numbers</h3>{_class_table(scores)}</div>',
    )
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
        raise ValueError("the scores are of other classes than the statistics")


def _run_summary(
    title: str,
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
        f"<p>The model learned {statistics.num_classes:,} tags from {statistics.num_examples:,} "
        f"images and was tested on {len(labels):,} images that it had not seen.</p>",
        _cards(scores["mAP"], pages.group_sizes(scores)),
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
        hardly = [n for n in ranked if tested[n]["ap"] - chance[n] < 0.1 * (1 - chance[n])]
        if hardly:
            shown = ", ".join(pages.named(n) for n in hardly[:10])
            parts.append(
                f"<li><b>Hardly better than guessing</b> (less than a tenth of the way to "
                f"perfect): {shown}{pages.and_more(len(hardly) - 10)}.</li>"
            )
        chosen_on = scores["F1"]["thresholds_from"]
        where = (
            "the training images themselves, for want of others"
            if chosen_on == "train"
            else f"the split {escape(chosen_on)}"
        )
        predicted = probabilities >= thresholds
        hits = int((predicted & labels).sum())
        given, present = int(predicted.sum()), int(labels.sum())
        parts.append(
            f"<li><b>As a tagger</b>, with a threshold of its own for each tag (chosen on "
            f"{where}), it gives {given:,} tags to the test "
            f"images, of which {percent(hits / given if given else None)} are right, and finds "
            f"{percent(hits / present if present else None)} of the {present:,} that are there."
        )
        given_ever = predicted.any(axis=0)
        never = [n for n, ever in zip(entries, given_ever, strict=True) if n in tested and not ever]
        if never:
            shown = ", ".join(pages.named(n) for n in never[:10])
            parts.append(f" It never gives: {shown}{pages.and_more(len(never) - 10)}.")
        parts.append("</li></ul>")
    missing = scores["classes_without_test_positives"]
    if missing:
        shown = ", ".join(pages.named(n) for n in missing[:10])
        parts.append(
            f"<p>Without test images, so left out of the means: {shown}"
            f"{pages.and_more(len(missing) - 10)}.</p>"
        )
    return "".join(parts)


def _what_the_method_changed(
    config: Mapping[str, Any],
    statistics: LabelStatistics,
    loss: Callable[[Any, Any], Any] | None,
    observed_counts: Any,
    num_draws: int | None,
) -> str:
    method = methods.METHODS.get(config.get("method"))
    parts = []
    if method is not None:
        parts.append(f"Trained with {pages.named(config['method'])}: {escape(method.summary)}. ")
    present = np.flatnonzero(statistics.class_counts)
    if observed_counts is not None and len(present):
        counts = statistics.class_counts[present]
        for words, i in (
            ("The rarest tag", present[np.argmin(counts)]),
            ("The most frequent tag", present[np.argmax(counts)]),
        ):
            seen = np.asarray(observed_counts)[i] / num_draws
            parts.append(
                f"{words}, {pages.named(statistics.class_names[i])}, is in "
                f"{percent(statistics.priors[i])} of the data and was in {percent(seen)} of the "
                "images that training was shown. "
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
                "Where an image does not hold the rarest tag and the model gives it 10 % already, "
                f"the loss pushes it further down with {percent(force, 0)} of the force that "
                "binary cross-entropy has there. "
            )
    return f"<p><b>What the method changed.</b> {''.join(parts)}</p>" if parts else ""


def _cards(mean: Mapping[str, float | None], sizes: Mapping[str, int]) -> str:
    words = {
        "total": "all",
        "head": "head: 100 training images or more",
        "medium": "medium: 20 to 99",
        "tail": "tail: fewer than 20",
    }
    cards = "".join(
        f'<div class="card" style="--c:var({charts.MEAN_COLOURS[name]})">'
        f"<b>{percent(mean[name])}</b>"
        f"<small>mAP, {words[name]} ({sizes[name]:,} {'tag' if sizes[name] == 1 else 'tags'})"
        "</small></div>"
        for name in pages.COLUMNS
    )
    return f'<div class="cards">{cards}</div>'


def _tag_list(names: Sequence[str], entries: Mapping[str, Any]) -> str:
    return ", ".join(f"{pages.named(n)} {percent(entries[n]['ap'])}" for n in names)


def _published_of_run(config: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    row = published.MEAN_AVERAGE_PRECISION.get(config.get("dataset"), {}).get(config.get("method"))
    if row is None:
        return ""
    ours = [pages.percent_cell(pages.number(scores["mAP"][name])) for name in pages.COLUMNS]
    return pages.table(
        ["mAP in percent", *pages.COLUMNS],
        [["this run", *ours], ["published, ResNet-50", *(f"{v:.2f}" for v in row)]],
    )


def _class_table(scores: Mapping[str, Any]) -> str:
    names, entries = list(scores["per_class"]), list(scores["per_class"].values())
    values = np.array([pages.number(e["ap"]) for e in entries])
    shown, note = pages.shown_classes(charts.Classes.of_scores(scores), values)
    rows = []
    for i in shown:
        entry, decided = entries[i], entries[i]["at_threshold"]
        tested = entry["test_count"] > 0
        rows.append(
            [
                pages.name_cell(names[i]),
                pages.left_cell(entry["group"]),
                f"{entry['train_count']:,}",
                f"{entry['test_count']:,}",
                pages.bar_cell(pages.number(entry["ap"]), charts.GROUP_COLOURS[entry["group"]]),
                *(
                    pages.percent_cell(decided[key] if tested else math.nan)
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
        f"{percent(f1['macro_at_threshold'], 2)}.</p>{note}{pages.table(heads, rows)}"
    )


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
        lines = [f"<small>{pages.named(image_names[position])}</small>"]
        for words, chosen, mark in (
            ("right", truth & predicted, ""),
            ("missed", truth & ~predicted, ' class="no"'),
            ("wrongly given", ~truth & predicted, ' class="no"'),
        ):
            index = np.flatnonzero(chosen)
            # The worst of the missed are the least probable, of the others the most.
            index = index[np.argsort(row[index] if words == "missed" else -row[index])]
            if len(index):
                tags = ", ".join(
                    f"{pages.named(names[i])} {percent(row[i], 0)} ({percent(thresholds[i], 0)})"
                    for i in index[:_TAGS_SHOWN]
                )
                lines.append(
                    f"<b{mark}>{words}:</b> {tags}{pages.and_more(len(index) - _TAGS_SHOWN)}"
                )
        if not truth.any():
            lines.append("no tag is there")
        figures_of_images.append(
            f"<figure>{_thumbnail(read_image(int(position)), image_names[position])}"
            f"<figcaption>{'<br>'.join(lines)}</figcaption></figure>"
        )
    return (
        f"{heading}<p>{len(worst):,} of {len(labels):,} test images have a wrong tag. These "
        f"{len(figures_of_images)} are the worst: their probabilities lie furthest on the wrong "
        "side of the tags' thresholds. With each tag stand the model's probability and, in "
        "brackets, the threshold from which on the tag is given. Some images may be labelled "
        f'wrongly.</p><div class="thumbs">{"".join(figures_of_images)}</div>'
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
    rows = [[key, pages.left_cell(value)] for key, value in config.items()]
    table = pages.table(["setting", "value"], rows, left=["value"])
    return f"<details><summary>All settings</summary>{table}</details>"


def _dense(labels: Any) -> np.ndarray:
    return np.asarray(labels.toarray() if is_sparse(labels) else labels, bool)


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.log(clipped) - np.log1p(-clipped)
