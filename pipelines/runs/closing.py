"""What training and evaluation print at their end: scores, the best and worst labels, and files."""

import os
import pathlib
import shlex
from typing import Any

from dbl_tf.messages import printable
from dbl_tf.terminal import link
from pipelines.reports.text import shortened
from pipelines.runs.scores import format_table

# So many labels at either end of the order of average precision are shown.
_SHOWN = 5
_MOST_CHARACTERS = 32
_FILES = (
    ("report.html", "report"),
    ("predictions.csv", "predictions"),
    ("suspected_label_errors.csv", "suspected label errors"),
)


def describe(
    scores: dict[str, Any], directory: str | os.PathLike, *, has_images: bool = False
) -> str:
    """Returns the last lines of a command, with paths as links where the output is a terminal.

    Args:
        scores: the result of `scores.score`.
        directory: the directory that has the files.
        has_images: whether the model that it exports takes images.
    """
    directory = pathlib.Path(directory)
    lines = [format_table(scores), *_format_labels(scores)]
    lines += [
        f"{name}: {link(directory / file)}" for file, name in _FILES if (directory / file).exists()
    ]
    steps = ["open the report in a browser: it shows why, label by label"]
    exported = directory / "saved_model"
    if exported.is_dir():
        lines.append(f"exported model: {link(exported)}")
        if has_images:
            command = f"python -m pipelines.tag --model={shlex.quote(str(directory))} IMAGES"
            steps.append(f"{command} labels new images")
    return "\n".join([*lines, f"next: {'; '.join(steps)}"])


def _format_labels(scores: dict[str, Any]) -> list[str]:
    """Formats the labels of the lowest and the highest average precision, or all if few."""
    judged = [
        (name, of_class)
        for name, of_class in scores["per_class"].items()
        if of_class["ap"] is not None
    ]
    judged.sort(key=lambda item: item[1]["ap"])
    if not judged:
        return []
    if len(judged) <= 2 * _SHOWN:
        parts = [("labels, from the worst", judged)]
    else:
        parts = [("the worst labels", judged[:_SHOWN]), ("the best labels", judged[-_SHOWN:])]
    shown = {name: _short(name) for _, part in parts for name, _ in part}
    width = max(map(len, [*shown.values(), *(heading for heading, _ in parts)]))
    lines = []
    for heading, part in parts:
        columns = "".join(f"{text:>11}" for text in ("test", "AP %", "guessing %", "F1 %"))
        lines.append(f"{heading:{width}}{columns}")
        lines += [_row(f"{shown[name]:{width}}", of_class, scores) for name, of_class in part]
    return lines


def _row(name: str, of_class: dict[str, Any], scores: dict[str, Any]) -> str:
    num_known = of_class.get("num_known", scores["num_test_examples"])
    chance = of_class["test_count"] / num_known  # the AP of examples in random order
    percentages = (of_class["ap"], chance, of_class["at_threshold"]["f1"])
    cells = [f"{of_class['test_count']:,}"]
    cells += ["-" if value is None else f"{100 * value:.2f}" for value in percentages]
    return name + "".join(f"{cell:>11}" for cell in cells)


def _short(name: str) -> str:
    """Cuts a name to the width of the table, without what a terminal would obey."""
    return shortened(printable(name), _MOST_CHARACTERS)
