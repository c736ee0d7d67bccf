"""The file `predictions.csv`: what a model predicts for each image."""

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
    """Writes a CSV file with a row for each image and a column for each class, whole or not at all.

    Probabilities have nine digits, with which a float32 reads back as the same number.

    Args:
        names: N names of images, the column `image`.
        probabilities: float32 (N, C).
        class_names: C names, the headings of the columns.
        path: of the file.
        errors: why an image could not be read, empty for one that could; N texts. With them a
            column `error` follows the image, and an image with an error has no probabilities.
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
