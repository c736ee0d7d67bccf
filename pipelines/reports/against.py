"""The page that compares two models on the same images: which labels and which images changed."""

import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dbl_tf import atomic
from pipelines.reports import charts, pages, pictures, text
from pipelines.reports.changes import (
    ALARM,
    CORRECTED,
    FOUND,
    KINDS,
    LOST,
    MIN_IMAGES,
    ChangedDecisions,
    Changes,
    defined,
    gains,
)
from pipelines.reports.pages import Column

PAGE, DATA = "against.html", "against.json"
LABELS, IMAGES = "against_labels.csv", "against_images.csv"
_MODELS = ("old", "new")
# The column of the labels of an image whose decisions changed in each way.
_NAMED = {kind: f"labels {words}" for kind, words in enumerate(KINDS)}
_IMAGES_IN_TABLE = 2000
_IMAGES_IN_GALLERY = 12
_IMAGES_PER_LABEL = 4
_BOTH = {
    "AP %": "average precision",
    "precision %": "share of the images given the label that have it, at the model's threshold",
    "recall %": "share of the images with the label that are given it, at the model's threshold",
    "F1 %": "harmonic mean of precision and recall",
    "given": "images that are given the label",
    "right": "images that are given the label and have it",
    "threshold": "probability from which on the label is given",
}


def write(
    output_dir: str | os.PathLike,
    *,
    title: str,
    models: Mapping[str, str],
    data_name: str,
    class_names: Sequence[str],
    groups: Sequence[str],
    train_counts: Sequence[int],
    labels: np.ndarray,
    probabilities: Sequence[np.ndarray],
    thresholds: Sequence[np.ndarray],
    image_names: Sequence[str],
    read_images: pictures.ReadImages | None,
    only: Mapping[str, Sequence[str]],
    num_resamples: int | None = None,
) -> dict[str, Any]:
    """Compares two models; writes the page, its figures, `against.json` and two CSV files.

    Args:
        output_dir: the directory for the files.
        title: the heading of the page.
        models: where the "old" and the "new" model are.
        data_name: the name of the data.
        class_names: the names of the C labels that both models know.
        groups: the groups of the labels, by the training images of the new model.
        train_counts: the numbers of these.
        labels: the labels of the images, (N, C), with −1 for unknown ones.
        probabilities: those of the old and of the new model, (N, C).
        thresholds: those of the old and of the new model, (C,).
        image_names: the names of the N images.
        read_images: see `pictures.choose`; None if the examples are not images.
        only: the names of the labels that the "old" or the "new" model alone knows, of those of
            the "data" that not both know, and of those that are "untested", known to both but not
            in the data.
        num_resamples: see `Changes.of`.

    Returns:
        The content of `against.json`.
    """
    changes = Changes.of(labels, probabilities, thresholds, num_resamples)
    output = pathlib.Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    rows = _label_rows(class_names, groups, changes, thresholds)
    image_rows = _image_rows(image_names, class_names, changes)
    decision_rows = _decision_rows(image_names, class_names, changes.decisions, thresholds)
    pages.write_csv(rows, output / LABELS, list(rows[0]))
    pages.write_csv(decision_rows, output / IMAGES, _DECISION_COLUMNS)
    content = {
        **models,
        "data": data_name,
        "images": changes.num_images,
        "resamples": changes.num_resamples,
        "mAP": changes.mean.content(),
        "F1": changes.f1.content(),
        "changed decisions": dict(
            zip(KINDS, changes.decisions.by_label().sum(axis=0).tolist(), strict=True)
        ),
        "labels": {row["label"]: {k: v for k, v in row.items() if k != "label"} for row in rows},
        "left out": {name: list(names) for name, names in only.items()},
    }
    with atomic.replacing(output / DATA) as tmp_path:
        tmp_path.write_text(
            json.dumps(content, ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8"
        )

    names = pages.readable_names(class_names)
    page = pages.Page(output / PAGE, None)
    decisions, of_image = changes.decisions, gains(changes.decisions.by_image())
    ranked = np.argsort(-of_image, kind="stable")
    better, worse = ranked[of_image[ranked] > 0], ranked[::-1][of_image[ranked[::-1]] < 0]
    distance = -np.abs(np.diff(decisions.probabilities, axis=0)[0])
    number = _IMAGES_PER_LABEL if len(names) <= 400 else 2
    most = np.argsort(-np.abs(np.nan_to_num(changes.difference)), kind="stable")
    order = [*most[(changes.lost | changes.gained)[most]], *most]
    page.data = {
        "chooser": "against_change",
        "tables": {
            "labels": [column.content() for column in _label_columns(names, rows)],
            "images": [
                column.content() for column in _image_columns(image_rows[:_IMAGES_IN_TABLE])
            ],
        },
        "flags": {
            "gained": changes.gained.tolist(),
            "lost": changes.lost.tolist(),
            "decided": (decisions.by_label().sum(axis=1) > 0).tolist(),
        },
        "headings": [
            "Found now",
            "Lost: given before, rightly",
            "New false alarms",
            "False alarms that are gone",
        ],
        "saying": "what changed",
        "words": [
            ["found now", False],
            ["lost", True],
            ["new false alarm", True],
            ["false alarm gone", False],
        ],
        "thresholds": [
            [float(f"{value:.3g}") for value in of_both] for of_both in np.transpose(thresholds)
        ],
        "facts": [_facts(row, changes.judged[i]) for i, row in enumerate(rows)],
        "first": int(order[0]),
        **pictures.choose(
            decisions,
            [
                decisions.extremes(decisions.kind == kind, number, distance)
                for kind in range(len(KINDS))
            ],
            order=dict.fromkeys(order),
            galleries={
                "better": better[:_IMAGES_IN_GALLERY].tolist(),
                "worse": worse[:_IMAGES_IN_GALLERY].tolist(),
            },
            kind=decisions.kind,
            rank=distance,
            probabilities=decisions.probabilities,
            image_names=image_names,
            read_images=read_images,
        ),
    }
    chart = charts.gain_by_class(
        "against_change",
        "How much better or worse each label is found",
        "Average precision of the new model less that of the old one. A vertical line is the 95 % "
        "interval over draws of the images: where it crosses 0, chance can explain the difference.",
        names,
        groups,
        train_counts,
        100 * changes.difference,
        100 * changes.intervals,
    )
    has_images = changes.test_counts > 0
    page.write(
        "against.html.j2",
        title=title,
        models=models,
        kind="images" if read_images is not None else "examples",
        changes=changes,
        counts=content["changed decisions"],
        in_mean=text.labels_in_mean(
            *(int(np.count_nonzero(chosen)) for chosen in (has_images, ~has_images))
        ),
        **_verdict(names, changes, only),
        min_images=MIN_IMAGES,
        by_chance=0.05 * np.count_nonzero(changes.judged),
        num_better=len(better),
        num_worse=len(worse),
        num_changed=len(image_rows),
        num_listed=min(len(image_rows), _IMAGES_IN_TABLE),
        only={name: pages.readable_names(alone) for name, alone in only.items() if alone},
        files={"labels": LABELS, "images": IMAGES, "data": DATA},
        both=list(_BOTH),
        overview=page.add(chart),
    )
    return content


def _label_rows(
    names: Sequence[str], groups: Sequence[str], changes: Changes, thresholds: Sequence[np.ndarray]
) -> list[dict[str, Any]]:
    """Returns what is known of each label; shares are in percent, and None if not defined."""
    values: dict[str, Sequence[Any] | np.ndarray] = {
        "AP %": 100 * changes.average_precision,
        **{
            f"{shown} %": [100 * of_model[name] for of_model in changes.at_threshold]
            for name, shown in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
        },
        "given": changes.given,
        "right": changes.right,
        "threshold": thresholds,
    }
    by_kind = changes.decisions.by_label()
    rows = []
    for i, name in enumerate(names):
        row: dict[str, Any] = {"label": name, "group": groups[i]}
        row["images"] = int(changes.test_counts[i])
        of_models = {
            f"{heading}, {model}": defined(of_both[k][i])
            for heading, of_both in values.items()
            for k, model in enumerate(_MODELS)
        }
        row |= {key: of_models[key] for key in ("AP %, old", "AP %, new")}
        row["change"] = defined(100 * changes.difference[i])
        row["from"], row["to"] = (defined(100 * end) for end in changes.intervals[i])
        row["verdict"] = "gain" if changes.gained[i] else "loss" if changes.lost[i] else "–"
        row |= dict(zip(KINDS, by_kind[i].tolist(), strict=True))
        rows.append(row | of_models)
    return rows


def _label_columns(names: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Returns the columns of the table of all labels."""
    words = {
        "group": "head, medium or tail, by the training images of the new model",
        "images": "images that have the label",
        "change": "points of AP that the new model adds",
        "from": "lower end of the 95 % interval of the change over draws of the images",
        "to": "upper end of the 95 % interval of the change over draws of the images",
        "verdict": "gain or loss beyond chance",
        KINDS[FOUND]: "images with the label that the new model alone gives it",
        KINDS[LOST]: "images with the label that the old model alone gives it",
        KINDS[ALARM]: "images without the label that the new model alone gives it",
        KINDS[CORRECTED]: "images without the label that the old model alone gives it",
    }
    signed = ("change", "from", "to")
    columns = []
    for heading in rows[0]:
        base, _, model = heading.rpartition(", ")
        values = names if heading == "label" else [row[heading] for row in rows]
        digits = 4 if base == "threshold" else 2 if "%" in heading or heading in signed else 0
        title = f"{_BOTH[base]}, {model} model" if base else words.get(heading, "")
        is_extra = bool(base) and base != "AP %"
        columns.append(Column(heading, values, digits, title, heading in signed, is_extra))
    return columns


def _image_rows(
    image_names: Sequence[str], class_names: Sequence[str], changes: Changes
) -> list[dict[str, Any]]:
    """Returns the images with changed decisions, the most changed first."""
    decisions = changes.decisions
    counts = decisions.by_image()
    changed = np.flatnonzero(counts.any(axis=1))
    balance = gains(counts)
    changed = changed[np.lexsort((balance[changed], -np.abs(balance[changed])))]
    rows = []
    pairs_of = decisions.of_images(changed.tolist(), len(class_names), decisions.label)
    for image, pairs in zip(changed.tolist(), pairs_of, strict=True):
        row: dict[str, Any] = {"image": image_names[image]}
        row |= dict(zip(KINDS, counts[image].tolist(), strict=True))
        row["gain"] = int(balance[image])
        for kind, heading in _NAMED.items():
            own = decisions.label[pairs[decisions.kind[pairs] == kind]]
            row[heading] = "|".join(class_names[i] for i in own)
        rows.append(row)
    return rows


_DECISION_COLUMNS = ("image", "label", "change", "old", "new", "threshold, old", "threshold, new")


def _decision_rows(
    image_names: Sequence[str],
    class_names: Sequence[str],
    decisions: ChangedDecisions,
    thresholds: Sequence[np.ndarray],
) -> Iterator[dict[str, Any]]:
    """Yields a row for each decision that changed, in the order of the images."""
    for k in range(len(decisions.image)):
        label = decisions.label[k]
        numbers = (*decisions.probabilities[:, k], *(t[label] for t in thresholds))
        yield {
            "image": image_names[decisions.image[k]],
            "label": class_names[label],
            "change": KINDS[decisions.kind[k]],
            **{
                column: float(f"{number:.6g}")
                for column, number in zip(_DECISION_COLUMNS[3:], numbers, strict=True)
            },
        }


def _image_columns(rows: Sequence[Mapping[str, Any]]) -> list[Column]:
    """Returns the columns of the table of images that changed."""
    shown = pages.readable_names([row["image"] for row in rows])
    columns = [Column("image", shown)]
    words = {
        FOUND: "labels that the image has and the new model alone gives it",
        LOST: "labels that the image has and the old model alone gives it",
        ALARM: "labels that the image has not and the new model alone gives it",
        CORRECTED: "labels that the image has not and the old model alone gives it",
    }
    columns += [
        Column(kind, [row[kind] for row in rows], 0, f"number of {words[number]}")
        for number, kind in enumerate(KINDS)
    ]
    gain = "decisions that became right, less those that became wrong"
    columns.append(Column("gain", [row["gain"] for row in rows], 0, gain, True))
    return columns + [
        Column(
            heading,
            [text.shortened(text.plain(row[heading]), 120) for row in rows],
            title=words[number],
        )
        for number, heading in _NAMED.items()
    ]


def _facts(row: Mapping[str, Any], is_judged: bool) -> str:
    """Says how one label changed."""
    number = row["images"]
    said = f"{row['group']}: {number:,} {'image has' if number == 1 else 'images have'} it. "
    if row["change"] is None:
        return f"{said}Without such images no ranking can be measured."
    said += f"Average precision {row['AP %, old']:.1f} % → {row['AP %, new']:.1f} %, a change of "
    said += f"{points(row['change'])} (95 % interval {signed(row['from'])} to {signed(row['to'])})."
    if not is_judged:
        return f"{said} With fewer than {MIN_IMAGES} images, no change is told from chance."
    if row["verdict"] == "–":
        return f"{said} Chance can explain it, since the interval contains 0."
    return f"{said} That is a {row['verdict']} beyond chance."


def signed(value: float) -> str:
    """Formats a number of points with its sign."""
    return "–" if math.isnan(value) else f"{value:+.1f}".replace("-", "−")


def points(value: float) -> str:
    """Formats a number of points with its sign and unit."""
    return f"{signed(value)} points"


def _verdict(
    names: Sequence[str], changes: Changes, only: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Returns what the opening text says: the labels that changed, and what speaks for either."""

    def shown(chosen: np.ndarray, sign: int) -> list[tuple[str, str]]:
        order = np.flatnonzero(chosen)
        order = order[np.argsort(-sign * changes.difference[order], kind="stable")]
        return [(names[i], points(100 * changes.difference[i])) for i in order.tolist()]

    gained, lost = shown(changes.gained, 1), shown(changes.lost, -1)
    reasons = {
        "for": [
            ("it ranks images better over all labels", changes.mean.direction > 0),
            ("its decisions are better over all labels", changes.f1.direction > 0),
        ],
        "against": [
            ("it ranks images worse over all labels", changes.mean.direction < 0),
            ("its decisions are worse over all labels", changes.f1.direction < 0),
            ("it finds some labels worse, which are named above", bool(lost)),
            ("it does not know some labels of the old model", bool(only.get("old"))),
        ],
    }
    return {
        "gained": gained,
        "lost": lost,
        "reasons": {
            side: [words for words, holds in given if holds] for side, given in reasons.items()
        },
        "totals": {
            "ranking": _words_of(changes.mean),
            "decisions": _words_of(changes.f1),
        },
    }


def _words_of(total: Any) -> str:
    verdict = {
        1: "better, beyond chance",
        -1: "worse, beyond chance",
        0: "not distinguishable: chance can explain the difference",
    }[total.direction]
    old, new = (text.percent(value) for value in total.values)
    return (
        f"{old} → {new}, {points(100 * total.difference)} (95 % interval "
        f"{signed(100 * total.low)} to {signed(100 * total.high)}): {verdict}"
    )
