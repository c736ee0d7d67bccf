"""Which columns of a table hold the images, the splits and the labels.

A column is known by a flag, by its name, or by its cells, in this order. Where two columns may be
meant and the result would differ, the table is refused, and the error shows both with the flag that
decides. The cells are those of the first rows.
"""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from dbl_tf.messages import nearest
from pipelines.tables import splits, text
from pipelines.tables.json_records import as_text
from pipelines.tables.text import TableError

IMAGE, SPLIT, LABELS = "image", "split", "labels"
LIST, WIDE, METADATA = "list", "wide", "metadata"

_FILE_NAMES = (
    *("image_path", "image_file", "image_filename", "image_name", "images", "photo", "picture"),
    *("img_path", "img_file", "img_name", "img", "file_name", "filename", "fname", "filepath"),
    *("file_path", "path", "file"),
)
_IDS = ("image_id", "img_id", "id", "name", "key")
_SPLIT_NAMES = (
    *("set", "subset", "partition", "phase", "data_split", "dataset_split", "split_name", "fold"),
    "usage",
)
_LABEL_NAMES = (
    *("label", "label_names", "tags", "tag", "classes", "class", "class_names", "class_name"),
    *("categories", "category", "keywords", "targets", "target", "objects.categories"),
    *("objects.category", "objects.labels", "objects.label"),
)
_INDEX_NAMES = ("", "unnamed: 0", "index")
_RANGE = ".."
# Cells of a column of a class by which programs write that it is not known.
UNKNOWN = frozenset(("-1", "-1.0", "nan", "none", "null", "na", "n/a", "<na>"))
_NOT_BINARY = UNKNOWN | {""}


@dataclasses.dataclass(frozen=True)
class ColumnFlags:
    """The columns that flags name; None for those to be recognized.

    Attributes:
        image: the column of images.
        labels: the column of labels; or the columns of classes, separated by commas, where
            FIRST..LAST stands for all from one to another.
        split: the column of splits.
    """

    image: str | None = None
    labels: str | None = None
    split: str | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in dataclasses.fields(self))


@dataclasses.dataclass(frozen=True)
class Columns:
    """The parts that columns play, by their positions.

    Attributes:
        layout: "list", "wide" or "metadata".
        image: the column of images.
        split: how the split of a row is found; None if no column tells, so that all are train.
        labels: the column of labels; None in a wide table.
        classes: the columns of classes of a wide table.
        unused: the names of the other columns.
    """

    layout: str
    image: int
    split: splits.SplitRule | None
    labels: int | None
    classes: tuple[int, ...]
    unused: tuple[str, ...]


def recognize(
    where: str,
    names: Sequence[str],
    sample: Sequence[Sequence[Any]],
    flags: ColumnFlags,
    *,
    is_metadata: bool = False,
) -> Columns:
    """Finds the parts that the columns of a table play.

    Args:
        where: the file, and where its columns are named, for messages.
        names: the names of the columns.
        sample: the values of the first rows.
        flags: what flags say about columns.
        is_metadata: whether the file is one of metadata by its name.

    Raises:
        TableError: a column is missing, is named twice, or two may be meant.
    """
    return _Recognition(where, names, sample, flags, is_metadata).columns()


class _Recognition:
    def __init__(
        self,
        where: str,
        names: Sequence[str],
        sample: Sequence[Sequence[Any]],
        flags: ColumnFlags,
        is_metadata: bool,
    ):
        self._where, self._names, self._flags = where, names, flags
        self._is_metadata = is_metadata
        self._keys = [splits.normalized(name) for name in names]
        self._values = [[row[c] for row in sample] for c in range(len(names))]
        self._kinds = [_kind(values) for values in self._values]

    def columns(self) -> Columns:
        labels: int | None = None
        classes: tuple[int, ...] = ()
        if self._flags.labels is not None:
            labels, classes = self._flagged_labels(self._flags.labels)
        taken = {*classes, *([] if labels is None else [labels])}
        image = self._image(taken)
        taken.add(image)
        split = self._split(taken)
        taken.update(split.columns if split else ())
        if self._flags.labels is None:
            labels, classes = self._labels(taken)
            taken.update(classes if labels is None else [labels])
        if split is None:
            self._check_no_split_left(taken)
        is_metadata = self._is_metadata or self._keys[image] == "file_name"
        return Columns(
            layout=WIDE if labels is None else METADATA if is_metadata else LIST,
            image=image,
            split=split,
            labels=labels,
            classes=classes,
            unused=tuple(name for c, name in enumerate(self._names) if c not in taken),
        )

    def _image(self, taken: set[int]) -> int:
        if self._flags.image is not None:
            return self._named(self._flags.image, "image_column")
        free = [c for c in range(len(self._names)) if c not in taken]
        # A class may be called "picture"; its cells of zeros and ones name no images.
        named = [c for c in free if self._kinds[c] != "binary"]
        exact = [c for c in named if self._keys[c] == IMAGE]
        if exact:
            return self._only(exact)
        by_name = [c for c in named if self._keys[c] in _FILE_NAMES]
        with_suffix = [c for c in by_name or named if _all_images(self._values[c])]
        candidates = with_suffix or by_name
        if not candidates:
            for key in _IDS:
                candidates = [c for c in named if self._keys[c] == key]
                if candidates:
                    break
        if not candidates:
            raise self._missing("of images", "image", "image_column")
        if len({tuple(map(as_text, self._values[c])) for c in candidates}) > 1:
            raise self._ambiguous("the images", "image_column", candidates)
        return candidates[0]

    def _split(self, taken: set[int]) -> splits.SplitRule | None:
        free = [c for c in range(len(self._names)) if c not in taken]
        if self._flags.split is not None:
            column = self._named(self._flags.split, "split_column")
            means = splits.true_means(self._names[column])
            of_true: tuple[str, ...] = (means,) if means and self._kinds[column] == "binary" else ()
            return splits.SplitRule((column,), (self._names[column],), of_true)
        exact = [c for c in free if self._keys[c] == SPLIT]
        if exact:
            column = self._only(exact)
            return splits.SplitRule((column,), (self._names[column],))
        words = [c for c in free if self._keys[c] in _SPLIT_NAMES and _all_splits(self._values[c])]
        truth = [
            c for c in free if splits.true_means(self._names[c]) and self._kinds[c] == "binary"
        ]
        if len(words) + bool(truth) > 1:
            raise self._ambiguous("the splits", "split_column", words + truth)
        if words:
            return splits.SplitRule((words[0],), (self._names[words[0]],))
        if truth:
            names = tuple(self._names[c] for c in truth)
            of_true = tuple(str(splits.true_means(name)) for name in names)
            return splits.SplitRule(tuple(truth), names, of_true)
        return None

    def _labels(self, taken: set[int]) -> tuple[int | None, tuple[int, ...]]:
        free = [c for c in range(len(self._names)) if c not in taken]
        if reason := self._numbered(free):
            raise TableError(f"{self._where}: {reason}")
        exact = [c for c in free if self._keys[c] == LABELS]
        if exact:
            return self._only(exact), ()
        index = [c for c in free if self._is_index(c)]
        wide = [c for c in free if self._kinds[c] in ("binary", "unknown") and c not in index]
        named = [c for c in free if self._keys[c] in _LABEL_NAMES]
        as_list = [c for c in named if c not in wide or len(wide) == 1]
        wide = [c for c in wide if c not in as_list]
        self._check_no_split_among(wide)
        if len(as_list) > 1:
            raise self._ambiguous("the labels", "labels_column", as_list)
        if as_list and len(wide) > 1:
            first, last = self._names[wide[0]], self._names[wide[-1]]
            cells = text.show(list(dict.fromkeys(map(as_text, self._values[as_list[0]]))))
            raise text.two_readings(
                f"{self._where}: the labels",
                [
                    (f"--labels_column={self._names[as_list[0]]}", f"labels such as {cells}"),
                    (
                        f"--labels_column={first}{_RANGE}{last}",
                        f"the columns of zeros and ones between them as {len(wide)} classes",
                    ),
                ],
                "Give one of these flags.",
            )
        if as_list:
            return as_list[0], ()
        if not wide:
            raise self._missing("of labels", "labels", "labels_column", free)
        doubtful = [c for c in free if self._kinds[c] == "numbers" and c not in index]
        if doubtful:
            shown = [
                f"{self._names[c]!r} ({text.show(_different(self._values[c]))})" for c in doubtful
            ]
            others = f" and {len(shown) - 5} more" if len(shown) > 5 else ""
            raise TableError(
                f"{self._where}: columns of numbers of which some are 0 or 1 and others are not: "
                f"{', '.join(shown[:5])}{others}. A column of a class holds 0 and 1; where these "
                f"are none, --labels_column={self._names[wide[0]]}{_RANGE}{self._names[wide[-1]]} "
                "or --labels_column=A,B,C names the columns of classes"
            )
        return None, tuple(wide)

    def _flagged_labels(self, given: str) -> tuple[int | None, tuple[int, ...]]:
        if given in self._names:
            return self._named(given, "labels_column"), ()
        if "," not in given and _RANGE not in given:
            return self._named(given, "labels_column"), ()
        classes: list[int] = []
        for part in given.split(","):
            part = part.strip()
            first, is_range, last = part.partition(_RANGE)
            if part in self._names or not is_range:
                classes.append(self._named(part, "labels_column"))
                continue
            start, end = (self._named(name.strip(), "labels_column") for name in (first, last))
            if start > end:
                raise TableError(
                    f"{self._where}: --labels_column={given}: {last.strip()!r} stands before "
                    f"{first.strip()!r}"
                )
            classes.extend(range(start, end + 1))
        return None, tuple(dict.fromkeys(classes))

    def _named(self, name: str, flag: str) -> int:
        found = [c for c, other in enumerate(self._names) if other == name.strip()]
        if found:
            return self._only(found)
        near = nearest(name, self._names)
        hint = "" if near is None else f"; did you mean --{flag}={near}?"
        raise TableError(
            f"{self._where}: --{flag} names {name!r}, and there is no such column; the columns are "
            f"{text.show(self._names)}{hint}"
        )

    def _only(self, columns: Sequence[int]) -> int:
        if len(columns) > 1:
            name = self._names[columns[0]]
            raise TableError(
                f"{self._where}: more than one column {name}; rename or remove the others"
            )
        return columns[0]

    def _ambiguous(self, what: str, flag: str, columns: Sequence[int]) -> TableError:
        of_name = {
            self._names[c]: [d for d in columns if self._names[d] == self._names[c]]
            for c in columns
        }
        for same in of_name.values():
            self._only(same)  # no flag tells columns of one name apart
        return text.two_readings(
            f"{self._where}: {what}",
            [
                (f"--{flag}={self._names[c]}", text.show(_different(self._values[c])))
                for c in columns
            ],
            "Give one of these flags.",
        )

    def _missing(
        self, what: str, name: str, flag: str, free: Sequence[int] | None = None
    ) -> TableError:
        candidates = [] if free is None else [self._names[c] for c in free]
        if free is not None and (reason := self._no_labels(free)):
            raise TableError(f"{self._where}: no column {what} was recognized; {reason}")
        example = next((name for name in candidates if name), "NAME")
        if len(self._names) == 1:
            raise TableError(
                f"{self._where}: {text.show(self._names)} is no header; the first line must name "
                "columns, as image,split,labels does, with nothing above it"
            )
        if all(map(text.is_image_name, self._names)):
            raise TableError(
                f"{self._where}: {text.show(self._names)} are images in place of fields; write an "
                'object for each image, such as {"image": "0001.jpg", "labels": ["dog"]}'
            )
        return TableError(
            f"{self._where}: no column {what} was recognized; the columns are "
            f"{text.show(self._names) or 'none'}. Call it {name!r}, or name it by --{flag}="
            f"{example}"
        )

    def _numbered(self, free: Sequence[int]) -> str:
        """Returns that columns such as label_1 and label_2 hold a label each; "" if none do."""
        first_of: dict[str, int] = {}
        for c in free:
            stem = re.sub(r"[_.]?\d+$", "", self._keys[c])
            if self._kinds[c] == "other" and (stem == LABELS or stem in _LABEL_NAMES):
                first = first_of.setdefault(stem, c)
                if self._keys[first] != self._keys[c]:
                    return (
                        f"columns {self._names[first]!r} and {self._names[c]!r} seem to hold one "
                        "label each; write all labels of an image into one column, as 'cat|dog', "
                        f"or take one of them by --labels_column={self._names[first]}"
                    )
        return ""

    def _no_labels(self, free: Sequence[int]) -> str:
        """Returns why columns that look like those of labels are none; "" if none does."""
        texts = [_different(self._values[c]) for c in free]
        numbers = [i for i, cells in enumerate(texts) if cells and all(map(_is_number, cells))]
        marks = [i for i, cells in enumerate(texts) if len(cells) == 2 and "" in cells]
        pairs = collections.Counter(frozenset(cells) for cells in texts if len(cells) == 2)
        pair = max(pairs, key=lambda cells: pairs[cells], default=frozenset())
        words = [i for i, cells in enumerate(texts) if pair and pair.issuperset(cells)]
        for found, kind in (
            (numbers, "numbers other than 0 and 1"),
            (marks, "marks and nothing"),
            (words, "the same two words"),
        ):
            if len(found) > 1:
                shown = [f"{self._names[free[i]]!r} ({text.show(texts[i])})" for i in found[:2]]
                return (
                    f"{len(found)} columns hold {kind}, such as {' and '.join(shown)}; if each is "
                    "a class, write 1 where it is given and 0 where it is not"
                )
        return ""

    def _check_no_split_among(self, classes: Sequence[int]) -> None:
        """Refuses to take a column for a class whose name says that it tells the splits."""
        for c in classes:
            if self._keys[c] in _SPLIT_NAMES:
                name = self._names[c]
                raise TableError(
                    f"{self._where}: column {name!r} holds {text.show(_different(self._values[c]))}"
                    f", and may tell the split or be a class; write {splits.CHOICES} into it if it "
                    "tells the split, and name the classes by --labels_column=A,B,C if it does not"
                )

    def _check_no_split_left(self, taken: set[int]) -> None:
        """Refuses to overlook a column whose cells are splits, though its name does not say so."""
        for c, name in enumerate(self._names):
            if c not in taken and _all_splits(self._values[c]):
                raise TableError(
                    f"{self._where}: column {name!r} holds {text.show(_different(self._values[c]))}"
                    f", which are names of splits; --split_column={name} takes it, and without "
                    "it every row would be train. Remove the column if it is none"
                )

    def _is_index(self, column: int) -> bool:
        """Returns whether a column numbers the rows, or is named as such columns are."""
        if self._names[column].strip().casefold() in _INDEX_NAMES:
            return True
        values = [as_text(value) for value in self._values[column]]
        if self._keys[column] in _IDS or self._keys[column].endswith("_id"):
            return True
        return (
            len(values) > 2
            and len(set(values)) == len(values)
            and all(value.strip().isdecimal() for value in values)
        )


def _kind(values: Sequence[Any]) -> str:
    """Returns what the cells of a column look like.

    Returns:
        "binary" for zeros and ones, "unknown" for these with others that are -1 or empty,
        "numbers" for numbers of which some are 0 or 1, "other" for everything else.
    """
    found = {as_text(value).strip().casefold() for value in values if not isinstance(value, list)}
    if not found or any(isinstance(value, list) for value in values):
        return "other"
    truth = found & (splits.TRUE | splits.FALSE)
    rest = found - truth
    if not truth:
        return "unknown" if rest <= _NOT_BINARY and "-1" in rest else "other"
    if not rest:
        return "binary"
    if rest <= _NOT_BINARY:
        return "unknown"
    return "numbers" if all(map(_is_number, rest - _NOT_BINARY)) else "other"


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _different(values: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(map(as_text, values)))


def _all_images(values: Sequence[Any]) -> bool:
    return bool(values) and all(map(text.is_image_name, values))


def _all_splits(values: Sequence[Any]) -> bool:
    return bool(values) and all(
        isinstance(value, str) and splits.split_of(value) is not None for value in values
    )
