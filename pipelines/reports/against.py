"""The page that compares two models on the same images: which labels and which images change."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.reports import charts, pages, text
from pipelines.reports.pages import Column
from pipelines.reports.pictures import ReadImages, thumbnail

# What becomes of a decision that changes, and how a heading says it.
KINDS = {
    "gained_right": "added, right",
    "gained_wrong": "added, wrong",
    "lost_right": "dropped, right",
    "lost_wrong": "dropped, wrong",
}
_MOST_IMAGES = 5000
_PICTURES = 24
_NAMES = 5
# An image with more changes than this shows the first of them.
_CHANGES_OF_IMAGE = 6

# A sentence in parts: texts, and names that others have chosen, which are marked.
Sentence = Sequence[tuple[str, bool]]


def write_against(
    path: str | os.PathLike,
    *,
    content: Mapping[str, Any],
    changes: Sequence[Mapping[str, Any]],
    files: Sequence[str],
    image_names: Sequence[str],
    read_images: ReadImages | None,
) -> list[str]:
    """Writes the page and its figure.

    Args:
        path: the path of the HTML file.
        content: what differs, as `runs.against.contrast` returns it.
        changes: the decisions that change, as `runs.against.changed_decisions` returns them.
        files: the names of the CSV files of labels and images, next to the page.
        image_names: the names of the N images.
        read_images: see `run.write_run_report`.

    Returns:
        The sentences with which the page begins.
    """
    names = pages.readable_names(list(content["per_label"]))
    entries = list(content["per_label"].values())
    sentences = _sentences(content, names, entries)
    images = _Images(changes, dict(zip(content["per_label"], names, strict=True)))
    page = pages.Page(path, None)
    page.data = {
        "tables": {
            "labels": [column.content() for column in _label_columns(names, entries)],
            "images": [column.content() for column in images.columns()],
        },
        "flags": {
            "better": [_verdict(entry) > 0 for entry in entries],
            "worse": [_verdict(entry) < 0 for entry in entries],
        },
    }
    gains = [100 * _defined(entry["ap_difference"]) for entry in entries]
    page.write(
        "against.html.j2",
        title="What the new model changes",
        content=content,
        sentences=sentences,
        files=files,
        kind="images" if read_images is not None else "examples",
        images=images,
        pictures=images.pictures(image_names, read_images),
        shown=len(images.order[:_MOST_IMAGES]),
        gains=page.add(
            charts.gain_by_class(
                "against_gain",
                "Gain and loss of each label",
                "How much more average precision the new model has than the old one.",
                names,
                [entry["group"] for entry in entries],
                [entry["train_count"] for entry in entries],
                np.array(gains),
            )
        ),
    )
    return ["".join(part for part, _ in sentence) for sentence in sentences]


class _Images:
    """The images on which something changes.

    Attributes:
        order: their positions, those that get worse by most decisions first, and those that get
            better by most last.
    """

    def __init__(self, changes: Sequence[Mapping[str, Any]], shown_names: Mapping[str, str]):
        self._names = shown_names
        self._of: dict[int, list[Mapping[str, Any]]] = {}
        for row in changes:
            self._of.setdefault(row["position"], []).append(row)
        self._harm = {at: sum(row["harm"] for row in rows) for at, rows in self._of.items()}
        self.order = sorted(self._of, key=lambda at: -self._harm[at])

    def columns(self) -> list[Column]:
        """Returns the columns of the table of images."""
        order = self.order[:_MOST_IMAGES]
        rows = [self._of[at] for at in order]

        def labels(change: str) -> list[str]:
            return [
                ", ".join(
                    f"{self._names[row['label']]}{'' if row['harm'] < 0 else ' ✗'}"
                    for row in of_image
                    if row["change"] == change
                )
                for of_image in rows
            ]

        return [
            Column("image", [text.plain(of_image[0]["image"]) for of_image in rows]),
            Column("worse", [sum(r["harm"] > 0 for r in of_image) for of_image in rows]),
            Column("better", [sum(r["harm"] < 0 for r in of_image) for of_image in rows]),
            Column("added", labels("gained"), title="✗: wrong"),
            Column("dropped", labels("lost"), title="✗: it was right"),
        ]

    def pictures(
        self, image_names: Sequence[str], read_images: ReadImages | None
    ) -> list[tuple[str, list[dict[str, Any]]]]:
        """Returns the images that get worse and better by most, with what changes on them."""
        worse = [at for at in self.order if self._harm[at] > 0][:_PICTURES]
        better = [at for at in reversed(self.order) if self._harm[at] < 0][:_PICTURES]
        # A stream of images is read in its own order.
        used = sorted({*worse, *better})
        copies: dict[int, str] = {}
        if read_images is not None and used:
            copies = {
                at: thumbnail(image, image_names[at])
                for at, image in zip(used, read_images(used), strict=True)
            }

        def figure(at: int) -> dict[str, Any]:
            rows = sorted(self._of[at], key=lambda row: -row["harm"])
            return {
                "name": image_names[at],
                "picture": copies.get(at),
                "changes": [
                    {
                        "words": self._words(row),
                        "label": self._names[row["label"]],
                        "bad": row["harm"] > 0,
                        "probabilities": f"{text.percent(row['old_probability'], 0)} → "
                        f"{text.percent(row['new_probability'], 0)}",
                    }
                    for row in rows[:_CHANGES_OF_IMAGE]
                ],
                "more": max(0, len(rows) - _CHANGES_OF_IMAGE),
            }

        return [
            ("That get worse", [figure(at) for at in worse]),
            ("That get better", [figure(at) for at in better]),
        ]

    @staticmethod
    def _words(row: Mapping[str, Any]) -> str:
        if row["change"] == "gained":
            return "wrongly added" if row["harm"] > 0 else "rightly added"
        return "wrongly dropped" if row["harm"] > 0 else "rightly dropped"


def _defined(value: float | None) -> float:
    return math.nan if value is None else value


def _verdict(entry: Mapping[str, Any]) -> int:
    """1 where a label is found better beyond chance, −1 where worse, and 0 otherwise."""
    low, high = entry["interval"] or (0, 0)
    return int(low > 0) - int(high < 0)


def _label_columns(names: Sequence[str], entries: Sequence[Mapping[str, Any]]) -> list[Column]:
    def percent(values: Sequence[float | None]) -> np.ndarray:
        return 100 * np.array([_defined(value) for value in values])

    ends = [entry["interval"] or (None, None) for entry in entries]
    words = "end of the 95 % interval of the change over draws of the test images"
    return [
        Column("label", names),
        Column("group", [entry["group"] for entry in entries]),
        Column("train images", [entry["train_count"] for entry in entries]),
        Column("test images", [entry["test_count"] for entry in entries]),
        Column("old AP %", percent([e["ap"]["old"] for e in entries]), 2, "average precision"),
        Column("new AP %", percent([e["ap"]["new"] for e in entries]), 2, "average precision"),
        Column(
            "change", percent([e["ap_difference"] for e in entries]), 2, "points of AP", signed=True
        ),
        Column("from", percent([low for low, _ in ends]), 1, f"lower {words}", signed=True),
        Column("to", percent([high for _, high in ends]), 1, f"upper {words}", signed=True),
        Column("old F1 %", percent([e["f1"]["old"] for e in entries]), 2, "at its threshold"),
        Column("new F1 %", percent([e["f1"]["new"] for e in entries]), 2, "at its threshold"),
        *(Column(words, [entry[kind] for entry in entries]) for kind, words in KINDS.items()),
    ]


def _sentences(
    content: Mapping[str, Any], names: Sequence[str], entries: Sequence[Mapping[str, Any]]
) -> list[Sentence]:
    tested = [i for i, entry in enumerate(entries) if entry["interval"] is not None]
    change = {i: 100 * entries[i]["ap_difference"] for i in tested}
    better = sorted((i for i in tested if _verdict(entries[i]) > 0), key=lambda i: -change[i])
    worse = sorted((i for i in tested if _verdict(entries[i]) < 0), key=lambda i: change[i])

    def listed(chosen: Sequence[int]) -> list[tuple[str, bool]]:
        parts: list[tuple[str, bool]] = []
        for i in chosen[:_NAMES]:
            parts += [
                (", " if parts else " (", False),
                (names[i], True),
                (f" {_points(change[i])}", False),
            ]
        rest = len(chosen) - _NAMES
        return [*parts, (f" and {rest} more)" if rest > 0 else ")", False)] if parts else []

    new, old = content["decisions"]["new"], content["decisions"]["old"]
    changes = content["changes"]
    added = changes["gained_right"] + changes["gained_wrong"]
    dropped = changes["lost_right"] + changes["lost_wrong"]
    found: list[Sentence] = [[(_ranking(content["mAP"]), False)]]
    if tested:
        expected = 0.025 * len(tested)
        found.append(
            [
                (f"Of {len(tested):,} labels, those found better: {len(better):,}", False),
                *listed(better),
                (f"; worse: {len(worse):,}", False),
                *listed(worse),
                (
                    f". Chance alone would make about {expected:.1f} seem so each.",
                    False,
                ),
            ]
        )
    found.append(
        [
            (
                f"At its own thresholds, the new model gives {new['given']:,} labels, of which "
                f"{_share(new)} are right, and misses {new['missed']:,}. The old one gives "
                f"{old['given']:,}, of which {_share(old)} are right, and misses "
                f"{old['missed']:,}.",
                False,
            )
        ]
    )
    found.append(
        [
            (
                f"Something changes on {changes['images']:,} of {content['num_images']:,} images: "
                f"{added:,} labels are added, {changes['gained_right']:,} of them rightly, and "
                f"{dropped:,} dropped, {changes['lost_wrong']:,} of them rightly.",
                False,
            )
        ]
    )
    return found


def _ranking(of_map: Mapping[str, Any]) -> str:
    if of_map["difference"] is None:
        return "No label has a test image, so that nothing can be measured."
    low, high = of_map["interval"]
    values = (
        f"mAP is {text.percent(of_map['new'], 2)} instead of {text.percent(of_map['old'], 2)}: "
        f"{_points(100 * of_map['difference'])}, with a 95 % interval from {100 * low:+.1f} to "
        f"{100 * high:+.1f}".replace("-", "−")
    )
    if low > 0:
        return f"The new model ranks images better. {values}."
    if high < 0:
        return f"The new model ranks images worse. {values}."
    return f"Which model ranks images better cannot be told. {values}, which contains 0."


def _share(decisions: Mapping[str, Any]) -> str:
    number = decisions["given"]
    return text.percent(decisions["right"] / number if number else math.nan)


def _points(value: float) -> str:
    return f"{value:+.1f} points".replace("-", "−")
