"""Writes the file `predictions.csv`, which holds what a model predicts for each image."""

import csv
import os
from collections.abc import Sequence

import numpy as np

from dbl_tf import atomic


def write_predictions(
    names: Sequence[str],
    probabilities: np.ndarray,
    class_names: Sequence[str],
    path: str | os.PathLike,
    errors: Sequence[str] | None = None,
) -> None:
    """Writes a CSV file with a row for each image and a column for each class.

    The file is written as a whole or not at all. Probabilities have nine digits, which is enough to
    read back the same float32.

    Args:
        names: the names of N images, for the column `image`.
        probabilities: the probabilities, float32 (N, C).
        class_names: the C headings of the other columns.
        path: the path of the file.
        errors: for each image the reason why it could not be read, or an empty string. If given,
            the file has a column `error`, and the probabilities of images with an error are empty.
    """
    with (
        atomic.replacing(path) as tmp_path,
        open(tmp_path, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["image", *([] if errors is None else ["error"]), *class_names])
        for i, (name, row) in enumerate(zip(names, probabilities, strict=True)):
            cells = [f"{p:.9g}" for p in row]
            if errors is not None:
                cells = [errors[i], *([""] * len(cells) if errors[i] else cells)]
            writer.writerow([name, *cells])
