"""Collects findings in a file by kind, so that one message reports all of them."""

import copy
import dataclasses
import textwrap
from collections.abc import Callable, Sequence

import numpy as np

from dbl_tf.messages import SHOWN, first_lines, quoted


@dataclasses.dataclass
class _Kind:
    count: int = 0
    shown: list[str] = dataclasses.field(default_factory=list)
    says_rest: bool = True  # whether what is not shown is counted


class Findings:
    """The findings in a file, counted by kind, with the first few of each kind.

    Args:
        path: the file.
        place: what the numbers of findings count, such as "line" or "row".
    """

    def __init__(self, path: str, place: str = "line"):
        self._path, self._place = path, place
        self._kinds: dict[str, _Kind] = {}

    def __bool__(self) -> bool:
        return bool(self._kinds)

    def copy(self) -> "Findings":
        """Returns the same findings, to which others can be added without changing these."""
        made = Findings(self._path, self._place)
        made._kinds = copy.deepcopy(self._kinds)
        return made

    def add(self, kind: str, line: int, found: str) -> None:
        """Counts one more finding of a kind.

        Args:
            kind: a phrase that describes such findings.
            line: the line of the file, counted from 1.
            found: the text of the finding.
        """
        entry = self._kinds.setdefault(kind, _Kind())
        entry.count += 1
        if len(entry.shown) < SHOWN:
            entry.shown.append(f"{self._place} {line}: {found}")

    def add_all(
        self, kind: str, lines: Sequence[int] | np.ndarray, describe: Callable[[int], str]
    ) -> None:
        """Adds all findings of a kind.

        Args:
            kind: a phrase that describes such findings.
            lines: the line of each.
            describe: a function from a position in `lines` to the text of the finding. It is called
                for the findings that are shown.
        """
        shown = [f"{self._place} {line}: {describe(i)}" for i, line in enumerate(lines[:SHOWN])]
        self._set(kind, _Kind(len(lines), shown))

    def add_items(self, kind: str, texts: Sequence[str], count: int) -> None:
        """Adds findings that do not belong to a line.

        Args:
            kind: a phrase that describes such findings.
            texts: the texts of the first of them.
            count: the number of all.
        """
        self._set(kind, _Kind(count, list(texts[:SHOWN])))

    def add_names(self, kind: str, names: Sequence[str]) -> None:
        """Adds names that do not belong to a line."""
        self.add_items(kind, [quoted(name) for name in names[:SHOWN]], len(names))

    def add_count(self, kind: str, count: int) -> None:
        """Adds findings of which only the number matters."""
        self._set(kind, _Kind(count, says_rest=False))

    def add_text(self, kind: str, count: int, text: str) -> None:
        """Adds a description of all findings of a kind, one or more lines, as it stands."""
        self._set(kind, _Kind(count, textwrap.dedent(text).splitlines(), says_rest=False))

    def text(self, title: str) -> str:
        """Returns all findings as one block of lines below a title."""
        return "\n".join([title, *(f"  {line}" for line in self.lines())])

    def lines(self) -> list[str]:
        """Returns a line for each kind, with its number, and below it lines of those shown."""
        lines = []
        for kind, entry in self._kinds.items():
            lines.append(f"{kind}: {entry.count:,}")
            if entry.shown:
                count = entry.count if entry.says_rest else None
                shown = first_lines(entry.shown, limit=len(entry.shown), count=count)
                lines += shown.splitlines()
        return lines

    def raise_if_any(self, error: type[Exception]) -> None:
        """Raises an error of this type with all findings, if there are any."""
        if self:
            raise error(self.text(f"{self._path} cannot be used:"))

    def _set(self, kind: str, entry: _Kind) -> None:
        if entry.count:
            self._kinds[kind] = entry
