r"""How the labels of a cell are separated, decided from all cells of a table.

A mark such as a comma may separate labels or belong to a name. In a list of labels, labels come in
other company elsewhere; a name stays as it is. Therefore:

* `|` separates wherever it occurs, because names do not have it.
* Of tab, `;`, `,` and `/`, one that occurs separates if in every cell that has it some part also
  occurs in another cell, alone or with others. A cell of which no part does could be one name: the
  table is refused, and both readings are shown. It is also refused if two of these marks could
  separate.
* Where none of these marks occurs, blanks separate. The table is refused if words look like those
  of names: if all words of a repeated cell occur in it alone, as with "traffic light"; or if half
  of the cells with blanks are repeated and have a word that no other cell has; or if three
  or more of them have two or three words, none of which stands in a cell alone, as with "polar
  bear", "black bear" and "polar fox"; or if three words of sentences occur, such as "the" and "of".
  It is also refused if a mark stands between blanks, as in "cat & dog".
* A list of classes decides instead, if exactly one of these readings gives its classes only.
* A name that consists of other names and a further mark, such as `+`, shows that this mark
  separates labels too, and the table is refused; between blanks or in a table of bars, there is a
  warning, as there is for one of which a part is a name, as with "cat+dog" and "cat".

`--label_separator` decides in all cases; its value `none` says that each cell is one label.
"""

import collections
import dataclasses
import unicodedata
from collections.abc import Collection, Mapping, Sequence

from pipelines.findings import Findings
from pipelines.tables import text
from pipelines.tables.cells import show_names
from pipelines.tables.rows import Places
from pipelines.tables.text import TableError

NONE = "none"
BAR, SPACE = "|", " "
MARKS = ("\t", ";", ",", "/")

_FURTHER_MARKS = (*MARKS, "|", "\n", "+", "&", ":", "#", "~", "_", "-", "、", "，", "；", SPACE)
# Marks that hardly any name has. Others, such as "-", divide "hot-dog" where "dog" is a label.
_RARE_IN_NAMES = ("+", "&", "、", "，", "；")
_WORDS_OF_SENTENCES = frozenset(("a", "an", "the", "of", "in", "on", "and", "is", "are", "with"))
_WORDS_OF_CAPTION = 8
# Names of more words are rare; labels come in any number.
_MOST_WORDS = 3
_FEW_CELLS = 3  # fewer show nothing
_ESCAPES = {r"\t": "\t", r"\n": "\n", "tab": "\t", "space": " "}


def from_flag(given: str | None) -> str | None:
    r"""Returns the separator that a flag means: `\t` and `tab` are a tab."""
    return None if given is None else _ESCAPES.get(given, given)


def split(cell: str, separator: str) -> list[str]:
    """Returns the labels of a cell without blanks at their ends; empty ones do not count."""
    if separator == NONE:
        return [" ".join(cell.split())] if "\n" in cell else [cell.strip()]
    if separator == SPACE:
        return cell.split()
    return [name for part in cell.split(separator) if (name := part.strip())]


@dataclasses.dataclass(frozen=True)
class Cell:
    """A text that cells of the column of labels hold.

    Attributes:
        count: the number of rows that have it.
        row: the first of them.
    """

    count: int
    row: int


@dataclasses.dataclass(frozen=True)
class Decision:
    """The separator of a table, and why.

    Attributes:
        separator: the text, or `NONE`.
        description: the separator and the reason, for people.
    """

    separator: str
    description: str


class Chooser:
    """Decides how the labels in the cells of one table are separated.

    Args:
        path: the table, for messages.
        column: the name of the column of labels.
        cells: the different texts of its cells.
        places: where the rows stand.
        place: what places count.
        known: the classes, if a list of them is given.
    """

    def __init__(
        self,
        path: str,
        column: str,
        cells: Mapping[str, Cell],
        places: Places,
        place: str,
        known: Collection[str] | None,
    ):
        self._path, self._column, self._cells = path, column, cells
        self._places, self._place = places, place
        self._known = None if known is None else frozenset(known)
        self._classes = self._known or frozenset()

    def choose(self, given: str | None, findings: Findings) -> Decision:
        """Returns the separator.

        Args:
            given: what the flag says, as `from_flag` gives it; None to decide from the cells.
            findings: receives cells that are read as several labels for want of other evidence, and
                labels that consist of others.

        Raises:
            TableError: the given one occurs nowhere, or two readings are possible.
        """
        if given is not None:
            self._check_given(given)
            how = "each cell is one label" if given == NONE else f"separated by {given!r}"
            return Decision(given, f"{how} as --label_separator says")
        if any(BAR in cell for cell in self._cells):
            return self._checked(BAR, f"separated by {BAR!r}, which occurs in cells", findings)
        present = [mark for mark in MARKS if any(mark in cell for cell in self._cells)]
        if decided := self._by_classes(present):
            return decided
        if present:
            return self._by_marks(present, findings)
        if not any(len(cell.split()) > 1 for cell in self._cells):
            return self._checked(SPACE, "one in each cell", findings)
        self._check_spaces(findings)
        return self._checked(SPACE, "separated by ' ', as no other separator occurs", findings)

    def _check_given(self, given: str) -> None:
        if given == NONE or not self._cells or any(given in cell for cell in self._cells):
            return
        cell = max(self._cells, key=lambda text: sum(mark in text for mark in (*MARKS, SPACE)))
        present = [mark for mark in (BAR, *MARKS, SPACE) if mark in cell]
        others = [f"{_flag(mark)} reads {show_names(split(cell, mark))}" for mark in present]
        others.append(f"{_flag(NONE)} takes each cell as one label")
        raise TableError(
            f"{self._path}: {_flag(given)} occurs in no cell of {self._column!r}; "
            f"{self._place} {self._place_of(cell)} has {cell!r}, of which {', '.join(others)}"
        )

    def _by_classes(self, present: Sequence[str]) -> Decision | None:
        """Decides by the list of classes, if just one reading has no labels outside of it."""
        if self._known is None:
            return None
        readings = {
            mark: [split(cell, mark) for cell in self._cells] for mark in (*present, SPACE, NONE)
        }
        fitting = [
            mark
            for mark, labels in readings.items()
            if all(self._known.issuperset(names) for names in labels)
        ]
        if not fitting or any(readings[mark] != readings[fitting[0]] for mark in fitting):
            return None
        mark = fitting[0]
        how = "each cell is one label" if mark == NONE else f"separated by {mark!r}"
        return Decision(mark, f"{how}, which gives the classes of --class_names")

    def _by_marks(self, present: Sequence[str], findings: Findings) -> Decision:
        opposed = {mark: self._opposed(mark) for mark in present}
        fitting = [mark for mark in present if not opposed[mark]]
        if len(fitting) == 1:
            mark = fitting[0]
            why = f"separated by {mark!r}, as their parts recur in other cells"
            return self._checked(mark, why, findings)
        if fitting:
            cell = max(self._cells, key=lambda cell: sum(mark in cell for mark in fitting))
            raise self._two_readings(
                cell, fitting, "Both marks divide cells into parts that other cells have."
            )
        mark = present[0]
        raise self._two_readings(
            opposed[mark][0],
            [m for m in present if m in opposed[mark][0]],
            "No part of it occurs in any other cell, which would show that it is a list.",
        )

    def _opposed(self, mark: str) -> list[str]:
        """Returns the cells of several parts none of which occurs in another cell."""
        parts = {cell: split(cell, mark) for cell in self._cells}
        cells_with = _count_cells(parts)
        return [
            cell
            for cell, names in parts.items()
            if len(names) > 1 and all(cells_with[name] == 1 for name in names)
        ]

    def _check_spaces(self, findings: Findings) -> None:
        words = {cell: cell.split() for cell in self._cells}
        cells_with = _count_cells(words)
        several = [cell for cell, found in words.items() if len(found) > 1]
        for cell in several:
            marks = [word for word in words[cell] if _is_mark(word) and word not in self._classes]
            if marks:
                raise self._two_readings(
                    cell, [SPACE, marks[0]], f"{marks[0]!r} between blanks may be a separator."
                )
        of_sentences = _WORDS_OF_SENTENCES.intersection(cells_with) - self._classes
        if len(of_sentences) >= _FEW_CELLS:
            cell = max(several, key=lambda cell: len(of_sentences.intersection(words[cell])))
            raise self._two_readings(
                cell,
                [SPACE],
                f"Sentences are made of words such as {text.show(sorted(of_sentences))}, and "
                "labels are not.",
            )
        opposed = [cell for cell in several if all(cells_with[w] == 1 for w in words[cell])]
        for cell in opposed:
            if self._cells[cell].count > 1:
                raise self._two_readings(
                    cell,
                    [SPACE],
                    f"{self._cells[cell].count} rows have it, and no other cell has one of its "
                    "words.",
                )
        like_names = [
            cell
            for cell in several
            if self._cells[cell].count > 1 and any(cells_with[w] == 1 for w in words[cell])
        ]
        if 2 * len(like_names) > len(several):
            raise self._two_readings(
                like_names[0],
                [SPACE],
                f"{len(like_names)} of {len(several)} different cells with blanks are repeated and "
                "have a word that no other cell has, as names of several words would.",
            )
        alone = {found[0] for found in words.values() if len(found) == 1}
        may_be_names = len(several) >= _FEW_CELLS and not any(
            len(words[cell]) > _MOST_WORDS or alone.intersection(words[cell]) for cell in several
        )
        if may_be_names:
            raise self._two_readings(
                several[0],
                [SPACE],
                f"No word of the {len(several)} different cells with blanks stands in a cell "
                "alone, as labels do somewhere.",
            )
        findings.add_all(
            f"cells read as several labels although no other cell has one of their words "
            f"({_flag(NONE)} takes each cell as one label)",
            [self._place_of(cell) for cell in opposed],
            lambda i: f"{opposed[i]!r} as {show_names(words[opposed[i]])}",
        )

    def _checked(self, separator: str, description: str, findings: Findings) -> Decision:
        """Refuses names that consist of other names and a further mark, or remarks on them.

        A bar is written on purpose, and blanks stand in many names, so that these are remarks.
        """
        names: dict[str, str] = {}
        for cell in self._cells:
            for name in split(cell, separator):
                names.setdefault(name, cell)
        composed = []
        for name, cell in names.items():
            mark = self._mark_between(name, names, separator)
            if mark is not None and (mark == SPACE or separator == BAR):
                composed.append(name)
            elif mark is not None:
                raise self._two_readings(
                    cell, [separator, mark], f"All parts of {name!r} are labels elsewhere."
                )
        findings.add_names("labels that consist of other labels", composed)
        findings.add_names(
            "labels of which a part is a label elsewhere; --label_separator may divide them",
            [name for name in names if self._has_known_part(name, names)],
        )
        marks = [name for name in names if _is_mark(name) and name not in self._classes]
        findings.add_names("labels without a letter or a digit", marks)
        return Decision(separator, description)

    def _has_known_part(self, name: str, names: Collection[str]) -> bool:
        """Returns whether a mark that is rare in names divides one into names and others."""
        if name in self._classes:
            return False
        for mark in _RARE_IN_NAMES:
            parts = split(name, mark) if mark in name else []
            known = [part in names for part in parts]
            if any(known) and not all(known):
                return True
        return False

    def _mark_between(self, name: str, names: Collection[str], separator: str) -> str | None:
        """Returns a mark that divides a name into other names."""
        if name in self._classes:
            return None
        for mark in _FURTHER_MARKS:
            if mark in name and mark != separator:
                parts = split(name, mark)
                if len(parts) > 1 and all(part in names for part in parts):
                    return mark
        return None

    def _two_readings(self, cell: str, marks: Sequence[str], reason: str) -> TableError:
        hint = ""
        if len(cell.split()) >= _WORDS_OF_CAPTION:
            hint = "; or name another column by --labels_column, if these are captions"
        return text.two_readings(
            f"{self._path}, {self._place} {self._place_of(cell)}: {cell!r} in column "
            f"{self._column!r}",
            [(_flag(mark), show_names(split(cell, mark))) for mark in (*marks, NONE)],
            f"{reason} Give one of these flags{hint}.",
        )

    def _place_of(self, cell: str):
        return self._places[self._cells[cell].row]


def _count_cells(parts: Mapping[str, Sequence[str]]) -> collections.Counter[str]:
    """Returns in how many different cells each part occurs."""
    counts: collections.Counter[str] = collections.Counter()
    for names in parts.values():
        counts.update(set(names))
    return counts


def _is_mark(word: str) -> bool:
    """Returns whether a word is punctuation and signs alone; pictures such as emojis are none."""
    return all(
        unicodedata.category(character)[0] == "P"
        or unicodedata.category(character) in ("Sm", "Sc", "Sk")
        for character in word
    )


def _flag(separator: str) -> str:
    if separator == "\t":
        return r"--label_separator='\t'"
    return f"--label_separator={separator if separator.isalnum() else repr(separator)}"
