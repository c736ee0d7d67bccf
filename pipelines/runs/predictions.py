"""Writes what a model predicts for each image: `predictions.csv`, and lines of JSON."""

import contextlib
import csv
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import numpy as np

from dbl_tf import atomic

# Between the labels of an image, as in a table of images.
LABEL_SEPARATOR = "|"


@dataclasses.dataclass(frozen=True)
class UnlabeledPrediction:
    """What a model predicts for an image whose labels are not known.

    Attributes:
        name: the name of the image.
        error: the reason why there is no prediction; empty if there is one.
        labels: the labels whose probabilities reach their thresholds, in the order of the classes.
        probabilities: the probabilities, float32 (C,); None where there is an error.
    """

    name: str
    error: str = ""
    labels: tuple[str, ...] = ()
    probabilities: np.ndarray | None = None


WriteRow = Callable[[UnlabeledPrediction], None]


def write_predictions(
    names: Sequence[str],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    path: str | os.PathLike,
) -> None:
    """Writes a CSV file with a row for each image and a column for each class.

    The file is written as a whole or not at all. Probabilities have nine digits, which is enough to
    read back the same float32.

    Args:
        names: the names of N images, for the column `image`.
        probabilities: the probabilities, float32 (N, C).
        class_names: the C headings of the other columns.
        path: the path of the file.
    """
    with (
        atomic.replacing(path) as tmp_path,
        open(tmp_path, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["image", *class_names])
        for name, row in zip(names, probabilities, strict=True):
            writer.writerow([name, *_texts(row)])


@contextlib.contextmanager
def unlabeled_writer(
    paths: Sequence[str | os.PathLike], class_names: Sequence[str]
) -> Iterator[WriteRow]:
    """Gives a function that writes a row to each of some files, which are complete at the end.

    Each file is written as a whole or not at all. One whose name ends in `.csv` has the columns
    `image`, `error`, `labels`, with `|` between two labels, and one for the probability of each
    class. In one that ends in `.jsonl`, each line is an object with the keys `image` and `error`,
    or `image`, `labels` and `probabilities`, an object of a number for each class.

    Args:
        paths: the files, in folders that exist.
        class_names: the names of the C classes.

    Raises:
        ValueError: a name ends otherwise.
        OSError: a file cannot be written.
    """
    formats = {".csv": _csv_writer, ".jsonl": _json_writer}
    with contextlib.ExitStack() as stack:
        writers = []
        for path in paths:
            suffix = pathlib.PurePath(path).suffix
            if suffix not in formats:
                raise ValueError(
                    f"predictions are written to files that end in {' or '.join(formats)}; got "
                    f"{os.fspath(path)}"
                )
            tmp_path = stack.enter_context(atomic.replacing(path))
            file = stack.enter_context(open(tmp_path, "w", newline="", encoding="utf-8"))
            writers.append(formats[suffix](file, class_names))

        def write(row: UnlabeledPrediction) -> None:
            for write_row in writers:
                write_row(row)

        yield write


def _csv_writer(file: IO[str], class_names: Sequence[str]) -> WriteRow:
    writer = csv.writer(file)
    writer.writerow(["image", "error", "labels", *class_names])

    def write(row: UnlabeledPrediction) -> None:
        cells = [""] * len(class_names) if row.probabilities is None else _texts(row.probabilities)
        writer.writerow([row.name, row.error, LABEL_SEPARATOR.join(row.labels), *cells])

    return write


def _json_writer(file: IO[str], class_names: Sequence[str]) -> WriteRow:
    def write(row: UnlabeledPrediction) -> None:
        content: dict[str, object] = {"image": row.name}
        if row.probabilities is None:
            content["error"] = row.error
        else:
            content["labels"] = row.labels
            numbers = map(float, _texts(row.probabilities))
            content["probabilities"] = dict(zip(class_names, numbers, strict=True))
        file.write(json.dumps(content, ensure_ascii=False) + "\n")

    return write


def _texts(probabilities: np.ndarray) -> list[str]:
    return [f"{p:.9g}" for p in probabilities]
