"""Tables of delimited text: CSV, and the same with semicolons or tabs."""

import csv
import itertools
import re
from collections.abc import Iterator

from dbl_tf.messages import first_few
from pipelines.findings import Findings
from pipelines.tables import text
from pipelines.tables.text import TableError

DELIMITERS = (",", ";", "\t", "|")
_SAMPLE = 1000  # rows by which columns are recognized
# The line above the header by which Excel is told the delimiter.
_SEPARATOR_LINE = re.compile(
    rf"\"?sep=([{re.escape(''.join(DELIMITERS))}])\"?\r?\n?", re.IGNORECASE
)


class DelimitedTable:
    """A file of delimited text with a header; rows are read when they are asked for.

    Args:
        path: the file.

    Attributes:
        path: the file.
        place: what the numbers of rows count: "line".
        names: the names of the columns, without blanks at their ends.
        delimiter: the one of `DELIMITERS` that a line `sep=;` above the header names; otherwise the
            one that divides the header into most cells.
        header_end: the line on which the header ends, counted from 1.

    Raises:
        TableError: the file has no header, or is not UTF-8.
    """

    place = "line"

    def __init__(self, path: str):
        self.path = path
        lines = (
            (number, line)
            for number, line in enumerate(text.text_lines(path), start=1)
            if line.strip()
        )
        first = next(lines, None)
        if first is None:
            raise TableError(
                f"{path} is empty; its first line must be a header: image,split,labels"
            )
        number, line = first
        if named := _SEPARATOR_LINE.fullmatch(line):
            self.delimiter = named[1]
            number, line = next(lines, (number + 1, "\n"))
        else:
            self.delimiter = max(DELIMITERS, key=lambda mark: len(_cells_of_line(line, mark)))
        reader = self._reader(itertools.chain([line], (line for _, line in lines)))
        try:
            self.names = [name.strip() for name in next(reader)]
        except csv.Error as error:
            raise self._malformed(number, error) from None
        self.header_end = number + reader.line_num - 1
        if any(map(text.is_image_name, self.names)):
            raise TableError(
                f"{path}, line {number}: {first_few([repr(name) for name in self.names])} names an "
                "image and is no header; write a line such as image,split,labels above it"
            )

    def sample(self) -> list[list[str]]:
        """Returns the first complete rows, by which columns are recognized."""
        rows = self.rows(Findings(self.path))
        return [cells for _, cells in itertools.islice(rows, _SAMPLE)]

    def rows(
        self, problems: Findings, start: int = 0, lines_before: int = 0
    ) -> Iterator[tuple[int, list[str]]]:
        """Yields the line on which each row begins, and its cells.

        Args:
            problems: receives the rows that have not as many cells as the header; they are left
                out.
            start: the byte at which a row begins from which to read; 0 for the header.
            lines_before: the number of lines before `start`.

        Raises:
            TableError: the text is malformed.
        """
        reader = self._reader(text.text_lines(self.path, start))
        line = lines_before  # the last line of the row before: a cell in quotes may hold breaks
        try:
            for cells in reader:
                first_line, line = line + 1, lines_before + reader.line_num
                if not cells or line <= self.header_end:
                    continue
                if len(cells) == len(self.names):
                    yield first_line, cells
                else:
                    self._add_wrong_size(problems, first_line, cells)
        except csv.Error as error:
            raise self._malformed(line + 1, error) from None

    def rows_of_line(
        self, line: bytes, number: int, problems: Findings
    ) -> Iterator[tuple[int, list[str]]]:
        """Yields the row of a line that ends outside of quotes, as `rows` does."""
        try:
            cells = self.cells_of_line(line.decode())
        except csv.Error as error:
            raise self._malformed(number, error) from None
        if len(cells) == len(self.names):
            yield number, cells
        elif cells:
            self._add_wrong_size(problems, number, cells)

    def cells_of_line(self, line: str) -> list[str]:
        """Returns the cells of a line.

        Raises:
            csv.Error: the line is malformed.
        """
        return next(self._reader(iter([line])))

    def _add_wrong_size(self, problems: Findings, line: int, cells: list[str]) -> None:
        kind = f"rows without exactly {len(self.names)} cells, as the header has"
        hint = ""
        if len(cells) > len(self.names):
            mark = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
            hint = f"; {mark[self.delimiter]} within a cell needs double quotes around the cell"
        problems.add(kind, line, f"{len(cells)} cells{hint}")

    def _reader(self, lines: Iterator[str]):  # the type of csv.reader has no public name
        return csv.reader(lines, strict=True, skipinitialspace=True, delimiter=self.delimiter)

    def _malformed(self, line: int, error: csv.Error) -> TableError:
        return TableError(
            f"{self.path}, line {line}: malformed CSV, {error}; a double quote opens a cell, which "
            "the next double quote closes, and within the cell it is written twice"
        )


def _cells_of_line(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], skipinitialspace=True, delimiter=delimiter))
    except csv.Error:
        return []
