"""Lists of labels without images: CSV files with a column `labels`, separated by spaces."""

import csv
import os

import numpy as np
import scipy.sparse


def read(path: str | os.PathLike) -> tuple[tuple[str, ...], scipy.sparse.csr_array]:
    """The C classes, sorted, and the multi-hot labels, bool (N, C).

    Raises:
        ValueError: there is no such column, or no label.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if "labels" not in (reader.fieldnames or ()):
            raise ValueError(f"{path} has no column labels; it has {reader.fieldnames}")
        rows = [row["labels"].split() for row in reader]
    names = tuple(sorted({name for row in rows for name in row}))
    if not names:
        raise ValueError(f"{path} has no row with labels")
    column = {name: i for i, name in enumerate(names)}
    columns = [column[name] for row in rows for name in row]
    starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    values = np.ones(len(columns), bool)
    return names, scipy.sparse.csr_array((values, columns, starts), (len(rows), len(names)))
