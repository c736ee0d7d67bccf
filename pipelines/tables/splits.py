"""Splits: the words by which people call them, and the columns that hold them."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

SPLITS = ("train", "val", "test")
CODES = {split: code for code, split in enumerate(SPLITS)}
CHOICES = ", ".join(SPLITS)

_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "devel", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
# Columns of truth values by their name, and what is meant where it is true.
_TRUE_MEANS = {
    **dict.fromkeys(("is_train", "is_training", "is_training_image"), "train"),
    **dict.fromkeys(("is_valid", "is_val", "is_validation", "is_dev"), "val"),
    **dict.fromkeys(("is_test", "is_testing"), "test"),
}
_YEAR = re.compile(r"[-_ ]?(?:19|20)\d\d$")
TRUE = frozenset(("1", "1.0", "true", "yes"))
FALSE = frozenset(("0", "0.0", "false", "no"))


def split_of(word: str) -> str | None:
    """Returns the split that a word calls; None if it calls none.

    Example:

    >>> split_of("Validation"), split_of("train2017"), split_of("trainval")
    ('val', 'train', None)
    """
    return _WORDS.get(_YEAR.sub("", word.strip().casefold()))


def split_in_name(name: str) -> str | None:
    """Returns the split that one of the words in a file's name calls; None if not exactly one.

    Example:

    >>> split_in_name("instances_train2017"), split_in_name("train-or-test")
    ('train', None)
    """
    found = {_WORDS[word] for word in re.split(r"[\W\d_]+", name.casefold()) if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def normalized(name: str) -> str:
    """Returns a column's name in lower case with one underscore for blanks and hyphens."""
    return re.sub(r"[\s_-]+", "_", name.strip()).casefold()


def true_means(name: str) -> str | None:
    """Returns the split of the rows in which a column of this name is true; None if unknown."""
    return _TRUE_MEANS.get(normalized(name))


@dataclasses.dataclass(frozen=True)
class SplitRule:
    """Finds the split of a row from one column of words, or from columns of truth values.

    Attributes:
        columns: the positions of the columns.
        names: the names of the columns.
        of_true: for columns of truth values, the split where each is true; empty for words.
    """

    columns: tuple[int, ...]
    names: tuple[str, ...]
    of_true: tuple[str, ...] = ()

    @property
    def kind_of_problem(self) -> str:
        """A phrase for cells that call no split."""
        if self.of_true:
            return f"cells that are not true or false in {', '.join(map(repr, self.names))}"
        return f"unknown splits (the choices are {CHOICES})"

    @property
    def description(self) -> str:
        """Where the splits are, for people."""
        names = ", ".join(map(repr, self.names))
        if not self.of_true:
            return f"splits in {names}"
        return f"splits in {names}, where false is {self._otherwise or 'refused'}"

    def code(self, values: Sequence[Any]) -> int | None:
        """Returns the position in `SPLITS` that a row's cells call; None if they call none."""
        if not self.of_true:
            split = split_of(values[self.columns[0]])
            return None if split is None else CODES[split]
        found = {
            split
            for column, split in zip(self.columns, self.of_true, strict=True)
            if values[column].strip().casefold() in TRUE
        }
        others = (values[column].strip().casefold() for column in self.columns)
        if len(found) > 1 or not all(other in TRUE or other in FALSE for other in others):
            return None
        split = found.pop() if found else self._otherwise
        return None if split is None else CODES[split]

    @property
    def _otherwise(self) -> str | None:
        """The split where no column is true: train, or what is left for those outside of it."""
        for split in ("train", "test", "val"):
            if split not in self.of_true:
                return split
        return None
