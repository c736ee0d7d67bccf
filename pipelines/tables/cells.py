"""What the cell of one row says about its labels: none, a list in Python or JSON, or plain text."""

import ast
import csv
import json
import re
import warnings
from collections.abc import Sequence
from typing import Any

from dbl_tf.messages import first_few

# Cells by which programs write that there is nothing.
NO_LABEL = frozenset(("nan", "none", "null", "<na>", "n/a", "#n/a", "nat"))
MAX_LIST = 1 << 17  # characters of a list in a cell, which is also the limit of CSV cells

_PAIRS = {"[": "]", "(": ")", "{": "}"}
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_BARE = re.compile(r"""[^,'"\[\](){}:]+""")
# A list as Python shows an array of NumPy or a set that cannot be changed.
_WRAPPED = re.compile(
    r"(?:(?:np\.|numpy\.)?array|frozenset)\(\s*([\[{].*[\]}])\s*(?:,\s*dtype=[^\[\](){}]*)?\)",
    re.DOTALL,
)
_DIGITS_AND_MARKS = re.compile(r"[01\s,;|/]*")
_INTEGER = re.compile(r"[+-]?\d{1,18}\.?")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


class CellError(ValueError):
    """A cell cannot be read; the message says why, without the cell."""


def is_no_label(cell: str) -> bool:
    """Returns whether a cell is empty or says that there is no label, as "nan" and "None" do."""
    return not cell or cell.isspace() or cell.strip().casefold() in NO_LABEL


def parse_list(cell: str) -> list[str] | None:
    r"""Reads a list that Python, NumPy or JSON has written into a cell.

    Elements are divided by commas; those in quotes, also by blanks, as NumPy writes them.
    Parentheses and braces make a list only around quotes, because names may have them. Nothing is
    evaluated but the text of a single string.

    Args:
        cell: the cell.

    Returns:
        The elements without blanks at their ends, integers as their digits; None if the cell is no
        list.

    Raises:
        CellError: the list is not closed, too long, or holds something else than names.

    Example:

    >>> parse_list("['person', \"sheep\"]"), parse_list("(person)"), parse_list("[]")
    (['person', 'sheep'], None, [])
    """
    cell = cell.strip()
    if wrapped := _WRAPPED.fullmatch(cell):
        cell = wrapped[1]
    if cell in ("set()", "frozenset()"):
        return []
    closing = _PAIRS.get(cell[:1])
    if closing is None:
        return None
    inner = cell[1:].lstrip()
    if cell[0] != "[" and not inner.startswith(("'", '"')):
        return None if inner != closing else []
    if len(cell) > MAX_LIST:
        raise CellError(f"a list of {len(cell)} characters, more than the {MAX_LIST} of a cell")
    if not inner.endswith(closing):
        raise CellError(f"a list that is not closed by {closing}")
    return _elements(inner[:-1].strip())


def _elements(inner: str) -> list[str]:
    names: list[str] = []
    numbers = 0
    position, after_comma = 0, True
    while position < len(inner):
        if inner[position].isspace():
            position += 1
            continue
        if inner[position] == ",":
            if after_comma:
                raise CellError("a list with an empty element")
            position, after_comma = position + 1, True
            continue
        if quoted := _QUOTED.match(inner, position):
            name = _unquote(quoted[0]).strip()
            if not name:
                raise CellError("a list with an empty name")
            names.append(name)
            position = quoted.end()
        elif bare := _BARE.match(inner, position):
            element = bare[0].strip()
            if not after_comma or (" " in element and not _is_numbers(element)):
                raise CellError("a list whose elements have neither quotes nor commas")
            for part in element.split():
                if part.casefold() in NO_LABEL:
                    continue
                numbers += _check_number(part)
                names.append(part.rstrip(".") if _INTEGER.fullmatch(part) else part)
            position = bare.end()
        else:
            raise CellError(_wrong_mark(inner[position]))
        after_comma = False
    if numbers and numbers != len(names):
        raise CellError("a list of numbers and names")
    return names


def is_in_braces(cell: str) -> bool:
    """Whether a cell is an array as PostgreSQL writes it, if all cells of its column are."""
    cell = cell.strip()
    return len(cell) > 1 and (cell[0], cell[-1]) == ("{", "}")


def parse_braces(cell: str) -> list[str]:
    r"""Reads an array that PostgreSQL has written.

    Args:
        cell: the cell, of which `is_in_braces` holds.

    Raises:
        CellError: it is an array within an array, or malformed.

    Example:

    >>> parse_braces(r'{cat,"traffic light",NULL}')
    ['cat', 'traffic light']
    """
    inner = cell.strip()[1:-1]
    try:
        lines = list(csv.reader([inner], strict=True, doublequote=False, escapechar="\\"))
    except csv.Error as error:
        raise CellError(f"an array that is malformed: {error}") from None
    names = [name.strip() for line in lines for name in line]
    if any(name.startswith("{") for name in names):
        raise CellError("an array within an array")
    if any(not name for name in names):
        raise CellError("an array with an empty element")
    return [name for name in names if name.casefold() not in NO_LABEL]


def _is_numbers(element: str) -> bool:
    return all(_NUMBER.fullmatch(part) for part in element.split())


def _check_number(part: str) -> bool:
    """Returns whether an element is an integer; refuses other numbers."""
    if _INTEGER.fullmatch(part):
        return True
    if _NUMBER.fullmatch(part):
        raise CellError(f"a list with the number {part} in place of a name")
    return False


def _wrong_mark(mark: str) -> str:
    if mark == ":":
        return "an object with keys and values in place of a list of names"
    if mark in "[({":
        return "a list within a list"
    return f"a list with {mark!r} that does not belong there"


def _unquote(quoted: str) -> str:
    if "\\" not in quoted:
        return quoted[1:-1]
    if quoted[0] == '"':
        try:
            return str(json.loads(quoted))
        except ValueError:
            pass  # an escape of Python that JSON does not have
    try:
        with warnings.catch_warnings(action="ignore"):
            return str(ast.literal_eval(quoted))
    except (ValueError, SyntaxError) as error:
        raise CellError(f"a list with a string that cannot be read: {error.args[0]}") from None


def names_of_value(value: Any) -> list[str] | str:
    """Reads labels that JSON holds.

    Args:
        value: the value of the field of labels.

    Returns:
        The names of a list, integers as their digits, or the text of one cell.

    Raises:
        CellError: it is neither a list of names nor a string.
    """
    if isinstance(value, str):
        return value
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if not isinstance(value, list):
        raise CellError(json.dumps(value, ensure_ascii=False)[:80])
    elements = [name for name in value if name is not None and name == name]
    if all(isinstance(name, str) and name.strip() for name in elements):
        return [name.strip() for name in elements]
    if all(isinstance(name, int) and not isinstance(name, bool) for name in elements):
        return [str(name) for name in elements]
    raise CellError(json.dumps(value, ensure_ascii=False)[:80])


def looks_like_indicators(lists: Sequence[Sequence[str]]) -> bool:
    """Returns whether lists are zeros and ones, one for each class, and not names of classes."""
    return (
        len(lists) > 1
        and len(lists[0]) > 1
        and all(len(names) == len(lists[0]) for names in lists)
        and {name for names in lists for name in names} <= {"0", "1"}
    )


def are_digits_of_indicators(texts: Sequence[str]) -> bool:
    """Returns whether cells without brackets are zeros and ones, as "0110" or "0,1,1,0"."""
    # Most tables are told by their first cell, and may have a million of them.
    if not all(map(_DIGITS_AND_MARKS.fullmatch, texts)):
        return False
    return looks_like_indicators([re.findall("[01]", cell) for cell in texts])


def show_names(names: Sequence[str]) -> str:
    """Returns labels for a message, as in "2 labels, 'person' and 'sheep'"."""
    if len(names) == 2:
        return f"2 labels, {names[0]!r} and {names[1]!r}"
    shown = first_few([repr(name) for name in names])
    return f"{len(names)} label{'s' if len(names) != 1 else ''}, {shown}"
