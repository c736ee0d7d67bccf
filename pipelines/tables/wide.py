"""Wide tables: a column of zeros and ones for each class.

A cell that holds −1, or a word for a missing value such as NaN, says that the label is not known.
An empty cell is 0, unless the caller says otherwise.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines import locations
from pipelines.findings import Findings
from pipelines.tables import splits
from pipelines.tables.columns import UNKNOWN, Columns
from pipelines.tables.delimited import DelimitedTable
from pipelines.tables.json_records import JsonTable, as_text

_BLOCK = 1 << 23  # bytes read at once
# Other words for 1 and 0 of which a cell of one character is made before it is compared.
_WORDS = (
    (b"True", b"1"),
    (b"False", b"0"),
    (b"true", b"1"),
    (b"false", b"0"),
    (b"TRUE", b"1"),
    (b"FALSE", b"0"),
    (b"1.0", b"1"),
    (b"0.0", b"0"),
)
_NOT_BINARY = "cells of classes that are neither 0 nor 1 nor, where it is not known, -1"
# A label that is not known.
_UNKNOWN = -1

# From the number of a row and its cells by column, without those of classes, to its position; None
# if the row cannot be used.
AddRow = Callable[[int, Mapping[int, str]], int | None]


class WideReader:
    """Reads the labels of wide tables, and hands all other cells over row by row.

    Args:
        columns: the parts that the columns play.
        names: the names of the columns.
        add_row: takes a row without its labels, and returns its position.
        problems: receives cells that are neither 0 nor 1 nor unknown.
        empty_is_unknown: whether an empty cell is a label that is not known, and not 0.

    Attributes:
        num_empty: the number of empty cells that have been read.
    """

    def __init__(
        self,
        columns: Columns,
        names: Sequence[str],
        add_row: AddRow,
        problems: Findings,
        *,
        empty_is_unknown: bool = False,
    ):
        self.num_empty = 0
        self._value_of_empty = _UNKNOWN if empty_is_unknown else 0
        self._classes, self._names = columns.classes, names
        self._others = (columns.image, *(columns.split.columns if columns.split else ()))
        self._add_row, self._problems = add_row, problems
        self._rows: list[np.ndarray] = []
        self._codes: list[np.ndarray] = []
        self._unknown_rows: list[int] = []
        self._unknown_codes: list[int] = []

    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the row of each label and the position of its class, int64 (M,) each."""
        if not self._rows:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.concatenate(self._rows), np.concatenate(self._codes)

    def unknown_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the same of the labels that are not known, int64 (U,) each."""
        return np.array(self._unknown_rows, np.int64), np.array(self._unknown_codes, np.int64)

    def read(self, table: DelimitedTable | JsonTable) -> None:
        """Reads all rows of a table."""
        if isinstance(table, JsonTable):
            self._read_rows(
                (line, self._cells_of_values(values)) for line, values in table.rows(self._problems)
            )
        elif self._classes == tuple(range(self._classes[0], self._classes[-1] + 1)):
            self._read_lines(table)
        else:
            self._read_rows(table.rows(self._problems))

    def _read_rows(self, rows: Iterable[tuple[int, Sequence[str]]]) -> None:
        for line, cells in rows:
            position = self._add_row(line, {c: cells[c] for c in self._others})
            self._add_labels(position, line, [cells[c] for c in self._classes])

    def _add_labels(self, position: int | None, line: int, cells: Sequence[str]) -> None:
        codes: list[int] = []
        unknown: list[int] = []
        for code, cell in enumerate(cells):
            if cell == "0":
                continue
            value = 1 if cell == "1" else self._value(line, code, cell)
            if value:
                (codes if value == 1 else unknown).append(code)
        if position is not None:
            self._rows.append(np.full(len(codes), position))
            self._codes.append(np.array(codes, np.int64))
            self._unknown_rows += [position] * len(unknown)
            self._unknown_codes += unknown

    def _value(self, line: int, code: int, cell: str) -> int:
        """Returns 1, 0 or `_UNKNOWN`; 0 after a problem."""
        word = cell.strip().casefold()
        if not word:
            self.num_empty += 1
            return self._value_of_empty
        if word in splits.TRUE:
            return 1
        if word in UNKNOWN:
            return _UNKNOWN
        if word not in splits.FALSE:
            name = self._names[self._classes[code]]
            self._problems.add(_NOT_BINARY, line, f"{cell!r} in column {name!r}")
        return 0

    def _cells_of_values(self, values: Sequence[Any]) -> list[str]:
        """Returns values of JSON as cells; null of a class says that the label is not known."""
        cells = [as_text(value) for value in values]
        for column in self._classes:
            if values[column] is None:
                cells[column] = "null"
        return cells

    def _read_lines(self, table: DelimitedTable) -> None:
        """Reads many lines at once, because cells one by one take ten times as long.

        From a line on that ends within quotes, or is divided by something else than a line feed,
        the rest is read by `DelimitedTable.rows`, which knows all that CSV can hold.
        """
        block = _Block(table, self._classes)
        start, before = 0, 0  # the bytes and lines that have been read
        for lines in _blocks_of_lines(table.path):
            num_whole = next((i for i, text in enumerate(lines) if not _is_whole(text)), len(lines))
            first = max(0, table.header_end - before)
            if first <= num_whole:
                self._read_block(block, lines[first:num_whole], before + first + 1)
            if num_whole < len(lines):
                num_whole = num_whole if first <= num_whole else 0
                start += sum(map(len, lines[:num_whole])) + num_whole
                self._read_rows(table.rows(self._problems, start, before + num_whole))
                return
            start += sum(map(len, lines)) + len(lines)
            before += len(lines)

    def _read_block(self, block: "_Block", lines: Sequence[bytes], first_line: int) -> None:
        indicators, divided = block.divide(lines)
        positions = np.full(len(lines), -1)
        for i, cells in enumerate(divided):
            if cells is not None:
                position = self._add_row(first_line + i, cells)
                positions[i] = -1 if position is None else position
            elif lines[i].strip():
                # A row of another size is a problem that the table knows how to report.
                for line, row in block.table.rows_of_line(lines[i], first_line + i, self._problems):
                    self._read_rows([(line, row)])
        rows, codes = np.nonzero(indicators)
        is_used = positions[rows] >= 0
        self._rows.append(positions[rows[is_used]])
        self._codes.append(codes[is_used])


class _Block:
    """Divides lines whose cells of classes are one character each, many at a time.

    Args:
        table: the table.
        classes: the positions of the columns of classes, which are adjacent.
    """

    def __init__(self, table: DelimitedTable, classes: Sequence[int]):
        self.table = table
        self._num_before = classes[0]
        self._columns_after = range(classes[-1] + 1, len(table.names))
        self._num_classes = len(classes)
        self._width = 2 * len(classes) - 1
        self._mark = table.delimiter.encode()
        # A cell and the mark after it are compared as one number of two bytes.
        self._zero = np.frombuffer(b"0" + self._mark, "<u2")[0]
        self._one = np.frombuffer(b"1" + self._mark, "<u2")[0]

    def divide(self, lines: Sequence[bytes]) -> tuple[np.ndarray, list[dict[int, str] | None]]:
        """Divides N lines.

        Returns:
            Whether a class is 1, bool (N, C), False in lines that are not of this kind, and for
            each line its other cells by column; None if it is not of this kind.
        """
        parts = [self._parts(line) for line in lines]
        indicators, is_regular = self._indicators([of_classes for _, of_classes, _ in parts])
        again = [i for i in np.flatnonzero(~is_regular).tolist() if b'"' not in lines[i]]
        if again:
            for i in again:
                parts[i] = self._parts_of_words(lines[i])
            found, regular = self._indicators([parts[i][1] for i in again])
            indicators[again], is_regular[again] = found, regular
        others = [
            self._others(before, after) if is_regular[i] else None
            for i, (before, _, after) in enumerate(parts)
        ]
        indicators[[i for i, cells in enumerate(others) if cells is None]] = False
        return indicators, others

    def _parts(self, line: bytes) -> tuple[bytes, bytes, list[bytes]]:
        """Returns a line's bytes before the classes, those of the classes, and the cells after."""
        line = line.rstrip(b"\r")
        after: list[bytes] = []
        if self._columns_after:
            line, *after = line.rsplit(self._mark, len(self._columns_after))
        return line[: -self._width], line[-self._width :], after

    def _parts_of_words(self, line: bytes) -> tuple[bytes, bytes, list[bytes]]:
        """Returns the same of a line without quotes whose classes are words for 0 and 1."""
        line = line.rstrip(b"\r")
        after: list[bytes] = []
        if self._columns_after:
            line, *after = line.rsplit(self._mark, len(self._columns_after))
        *before, of_classes = line.split(self._mark, self._num_before)
        for word, digit in _WORDS:
            of_classes = of_classes.replace(word, digit)
        return b"".join(cell + self._mark for cell in before), of_classes, after

    def _indicators(self, of_classes: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Returns whether cells are 1, bool (N, C), and whether lines have 0 and 1 only, (N,)."""
        filler = bytes(self._width)
        cells = self._mark.join(part if len(part) == self._width else filler for part in of_classes)
        pairs = np.frombuffer(cells + self._mark, "<u2").reshape(len(of_classes), self._num_classes)
        indicators = pairs == self._one
        is_regular = np.all(indicators | (pairs == self._zero), axis=1)
        return indicators, is_regular

    def _others(self, before: bytes, after: Sequence[bytes]) -> dict[int, str] | None:
        """Returns the cells around those of the classes by column; None if they are irregular."""
        if any(b'"' in cell for cell in after) or len(after) != len(self._columns_after):
            return None
        text = before.decode()
        if '"' in text:
            try:
                cells = self.table.cells_of_line(text)
            except csv.Error:
                return None
        else:
            cells = [cell.lstrip(" ") for cell in text.split(self.table.delimiter)]
        if len(cells) != self._num_before + 1 or cells[-1]:
            return None
        others = dict(enumerate(cells[:-1]))
        for column, cell in zip(self._columns_after, after, strict=True):
            others[column] = cell.decode().lstrip(" ")
        return others


def _is_whole(line: bytes) -> bool:
    """Returns whether a line is a row by itself, in UTF-8."""
    if b'"' in line and line.count(b'"') % 2:
        return False
    if b"\r" in line and b"\r" in line.rstrip(b"\r"):
        return False
    if line.isascii():
        return True
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _blocks_of_lines(path: str) -> Iterator[list[bytes]]:
    """Yields the lines of a file without their line feeds, many at a time."""
    with locations.open_binary(path) as file:
        rest = b""
        while block := file.read(_BLOCK):
            text, newline, rest = (rest + block).rpartition(b"\n")
            if newline:
                yield text.split(b"\n")
        if rest:
            yield [rest]
