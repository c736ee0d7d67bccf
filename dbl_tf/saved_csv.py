"""Writing and reading the CSV files that a stopped run goes on with.

The last column of each row is a digest of the names of the columns and of the values, so that none
of them is used in silence if it has changed. Files of earlier versions have no such column.
"""

import csv
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from dbl_tf import atomic

DIGEST = "digest"


def write(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Writes a CSV file with a line for each row, as a whole or not at all.

    Args:
        rows: values by the names of their columns, in the order of their first appearance. A row
            without a value for a column has an empty cell there.
        path: the file.

    Raises:
        OSError: the file cannot be written.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    texts = [["" if row.get(name) is None else str(row[name]) for name in columns] for row in rows]
    atomic.write_csv(
        [
            {**dict(zip(columns, values, strict=True)), DIGEST: _digest(columns, values)}
            for values in texts
        ],
        path,
    )


def read(path: str | os.PathLike, columns: Sequence[str]) -> list[dict[str, str]]:
    """Reads the rows that `write` wrote, as text by the names of their columns.

    Someone who changes such a file on purpose removes its column of digests.

    Args:
        path: the file.
        columns: columns that it must have.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else, or was changed. The message gives the line.
    """
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if missing := [name for name in columns if name not in header]:
                raise ValueError(f"line 1 does not name columns, among them {missing[0]!r}")
            if len(set(header)) < len(header):
                raise ValueError("line 1 names a column twice")
            rows = []
            for values in reader:
                if len(values) != len(header):
                    raise ValueError(
                        f"line {reader.line_num} has {len(values)} values for {len(header)} columns"
                    )
                row = dict(zip(header, values, strict=True))
                digest = row.pop(DIGEST, None)
                if digest is not None and digest != _digest([*row], [*row.values()]):
                    raise ValueError(
                        f"line {reader.line_num} was changed since it was written: its {DIGEST} is "
                        "not that of its values"
                    )
                rows.append(row)
            return rows
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error


def _digest(columns: Sequence[str], values: Sequence[str]) -> str:
    """A digest that no program takes for a number."""
    content = json.dumps([columns, values]).encode("ascii")
    return f"#{hashlib.blake2b(content, digest_size=4).hexdigest()}"
