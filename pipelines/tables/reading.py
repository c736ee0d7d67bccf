"""Recognizes the layout of a table of labeled images, and reads its rows.

| layout | known by |
|---|---|
| list | a column of labels |
| wide | a column of zeros and ones for each class |
| metadata | a list in `metadata.jsonl` or `metadata.csv`, or whose images are in `file_name` |
| COCO | JSON with the lists images, annotations and categories, alone or in `annotations/` |
| folders | a folder of folders of images |

Each but the last may come as a file for each split. Where a folder holds tables of splits, or
metadata, these are read, and folders of images are what they speak of.
"""

import dataclasses
import json
import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from dbl_tf.messages import first_few
from pipelines.findings import Findings
from pipelines.tables import cells, coco, columns, folders, json_records, separators, splits, text
from pipelines.tables.columns import ColumnFlags, Columns
from pipelines.tables.delimited import DelimitedTable
from pipelines.tables.json_records import JsonTable
from pipelines.tables.rows import Rows, RowsBuilder
from pipelines.tables.text import TableError
from pipelines.tables.wide import WideReader

_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
_METADATA = ("metadata.jsonl", "metadata.csv", "_classes.csv", "_annotations.coco.json")
_ANNOTATIONS, _INSTANCES = "annotations", "instances"
_MULTI_HOT = (
    "zeros and ones in one cell, which may stand for one class each; name the labels, or write a "
    "column of zeros and ones for each class"
)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A file of a table: its path, its split if the name says it, and the folder of its images."""

    path: str
    split: str | None
    folder: str


def read(
    path: str,
    findings: Findings,
    *,
    flags: ColumnFlags | None = None,
    label_separator: str | None = None,
    known: Collection[str] | None = None,
    has_images_dir: bool = False,
    empty_is_unknown: bool = False,
) -> Rows:
    """Reads all rows of a table.

    Args:
        path: an absolute path of a file or a folder.
        findings: receives what is not used as it is written.
        flags: the columns that are named by flags.
        label_separator: the separator of labels; None to decide from the cells.
        known: the classes, if a list of them is given.
        has_images_dir: whether images start from another folder than that of the table.
        empty_is_unknown: whether an empty cell of a class in a wide table is a label that is not
            known, and not 0.

    Raises:
        TableError: the table cannot be used; the message lists what is wrong by kind, and says
            what to do.
    """
    flags = flags or ColumnFlags()
    if os.path.isdir(path):
        parts = _parts_of_folder(path)
        if not parts:
            rows = _read_folders(path)
            _check_is_unicode(path, rows)
            return rows
        if has_images_dir:
            parts = [dataclasses.replace(part, folder="") for part in parts]
    else:
        parts = [_Part(path, None, "")]
    tables = [open_table(part.path) for part in parts]
    names = [os.path.relpath(part.path, path) for part in parts] if len(parts) > 1 else [path]
    builder = RowsBuilder(names)
    if all(isinstance(table, Mapping) for table in tables):
        rows = _read_coco(parts, tables, builder, findings)
    elif any(isinstance(table, Mapping) for table in tables):
        raise TableError(f"{path} holds COCO documents and other tables: {text.show(names)}")
    else:
        reader = _TableReader(
            path, parts, tables, builder, flags, known, findings, empty_is_unknown
        )
        rows = reader.read(separators.from_flag(label_separator))
    if not rows.images:
        raise TableError(f"{path} has no rows; it must have train and test examples")
    _check_is_unicode(path, rows)
    if any(part.split for part in parts):
        rows.layout += " by split"
        rows.reading = f"splits by files {first_few(names)}; {rows.reading}"
    return rows


def open_table(path: str) -> DelimitedTable | JsonTable | Mapping[str, Any]:
    """Opens one file: delimited text, JSON, or a COCO document as it stands."""
    text.check_is_text(path)
    return json_records.open_json(path) if json_records.is_json(path) else DelimitedTable(path)


def _parts_of_folder(path: str) -> list[_Part]:
    """Returns the tables in a folder: one for each split, or one of metadata, if there are any.

    Raises:
        TableError: several may be meant.
    """
    by_split: dict[str, list[_Part]] = {}
    metadata, others = [], []
    for part in _coco_parts(path):
        by_split.setdefault(str(part.split), []).append(part)
    for name in sorted(os.listdir(path)):
        entry = os.path.join(path, name)
        if os.path.isdir(entry):
            split = splits.split_of(name)
            inside = [n for n in _METADATA if split and os.path.isfile(os.path.join(entry, n))]
            if split and inside:
                found = [_Part(os.path.join(entry, n), split, name) for n in inside]
                by_split.setdefault(split, []).extend(found)
        elif name.lower().endswith(_SUFFIXES):
            split = splits.split_in_name(os.path.splitext(name)[0])
            if split:
                by_split.setdefault(split, []).append(_Part(entry, split, ""))
            elif name in _METADATA:
                metadata.append(_Part(entry, None, ""))
            else:
                others.append(name)
    for split, found in by_split.items():
        if len(found) > 1:
            names = [os.path.relpath(part.path, path) for part in found]
            raise TableError(
                f"{path} holds {len(found)} tables for {split}: {text.show(names)}; leave one there"
            )
    if by_split and metadata:
        names = [os.path.basename(part.path) for part in metadata]
        raise TableError(
            f"{path} holds {text.show(names)} and a table for each split; give --examples the "
            "one file, or move it elsewhere"
        )
    if len(metadata) > 1:
        names = [os.path.basename(part.path) for part in metadata]
        raise TableError(f"{path} holds {text.show(names)}; give --examples one of them")
    if by_split:
        return [by_split[split][0] for split in splits.SPLITS if split in by_split]
    if not metadata and others:
        raise TableError(
            f"{path} is a folder; give --examples the file that lists the images, such as "
            f"{os.path.join(path, others[0])}. A folder may hold train.csv, val.csv and test.csv, "
            "metadata.jsonl, or folders of images named after their labels"
        )
    return metadata


def _coco_parts(path: str) -> list[_Part]:
    """Returns the tables of a folder laid out as COCO is: annotations/instances_train2017.json.

    Its images are in train2017 or images/train2017, or in the folders train or images.
    """
    folder = os.path.join(path, _ANNOTATIONS)
    if not os.path.isdir(folder):
        return []
    parts = []
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        split = splits.split_in_name(stem)
        if suffix.lower() != ".json" or split is None or not stem.startswith(_INSTANCES):
            continue
        own = stem.removeprefix(_INSTANCES).strip("_-")
        candidates = [os.path.join(*up, down) for down in (own, split) for up in ((), ("images",))]
        candidates.append("images")
        images = next((c for c in candidates if c and os.path.isdir(os.path.join(path, c))), "")
        parts.append(_Part(os.path.join(folder, name), split, images))
    return parts


def _read_folders(path: str) -> Rows:
    if not folders.has_images(path):
        raise TableError(
            f"{path} is a folder without images or tables; it may hold train.csv, val.csv and "
            "test.csv, metadata.jsonl, or folders of images named after their labels"
        )
    images, split_names, labels = folders.read(path)
    names = sorted({name for of_image in labels for name in of_image})
    code = {name: i for i, name in enumerate(names)}
    return Rows(
        images=images,
        splits=np.array([splits.CODES[split] for split in split_names], np.int8),
        places=_entries(len(images)),
        place="image",
        label_rows=np.repeat(np.arange(len(images)), [len(of_image) for of_image in labels]),
        label_codes=np.array([code[name] for of_image in labels for name in of_image], np.int64),
        label_names=names,
        class_names=tuple(names),
        layout="folders",
        reading="labels are the names of folders",
    )


def _entries(number: int):
    builder = RowsBuilder([""])
    for entry in range(1, number + 1):
        builder.add("", 0, entry)
    return builder.places


def _read_coco(
    parts: Sequence[_Part], documents: Sequence[Any], builder: RowsBuilder, findings: Findings
) -> Rows:
    reader = coco.CocoReader(builder)
    for file, (part, document) in enumerate(zip(parts, documents, strict=True)):
        reader.read(part.path, document, part.split, file, part.folder)
    findings.add_names(
        "supercategories that no annotation has, left out", reader.leave_out_supercategories()
    )
    label_rows, label_codes = reader.labels()
    return Rows(
        images=builder.images,
        splits=builder.splits,
        places=builder.places,
        place="entry",
        label_rows=label_rows,
        label_codes=label_codes,
        label_names=list(reader.class_names),
        class_names=reader.class_names,
        layout="COCO",
        reading="lists images, annotations and categories",
    )


class _TableReader:
    """Reads tables with columns, of one file or of one for each split."""

    def __init__(
        self,
        path: str,
        parts: Sequence[_Part],
        tables: Sequence[Any],
        builder: RowsBuilder,
        flags: ColumnFlags,
        known: Collection[str] | None,
        findings: Findings,
        empty_is_unknown: bool,
    ):
        self._empty_is_unknown = empty_is_unknown
        self._path, self._parts, self._tables = path, parts, tables
        self._builder, self._findings, self._known = builder, findings, known
        for table in tables:
            if not table.names:
                raise TableError(f"{table.path} has no rows; it must have train and test examples")
        self._columns = [
            columns.recognize(
                _where(table),
                table.names,
                table.sample(),
                flags,
                is_metadata=os.path.basename(table.path) in _METADATA,
            )
            for table in tables
        ]
        if len({found.labels is None for found in self._columns}) > 1:
            raise TableError(
                f"{path}: some of its files have a column for each class, and others a list of "
                "labels; write all in one way"
            )

    def read(self, separator: str | None) -> Rows:
        first = self._columns[0]
        rows = self._read_wide() if first.labels is None else self._read_list(separator)
        unused = dict.fromkeys(name for found in self._columns for name in found.unused)
        for table in self._tables:
            unused |= dict.fromkeys(getattr(table, "further_names", ()))
        self._findings.add_names("columns not used", list(unused))
        return rows

    def _read_list(self, separator: str | None) -> Rows:
        texts: dict[str, separators.Cell] = {}
        text_of_row: list[str | None] = []
        lists: list[tuple[int, list[str]]] = []
        for file, (table, found) in enumerate(zip(self._tables, self._columns, strict=True)):
            problems = Findings(table.path, table.place)
            row_reader = _RowReader(table, found, self._parts[file], file, self._builder, problems)
            for number, values in table.rows(problems):
                value = values[found.labels]
                if isinstance(table, JsonTable):
                    value = _json_labels(value, number, problems, table.names, values)
                    if value is None:
                        continue
                row = row_reader.add(number, values)
                if row is None:
                    continue
                if isinstance(value, list):
                    lists.append((row, value))
                    text_of_row.append(None)
                    continue
                text_of_row.append(value)
                known = texts.get(value)
                texts[value] = separators.Cell(
                    known.count + 1 if known else 1, known.row if known else row
                )
            problems.raise_if_any(TableError)
        return self._split_cells(separator, texts, text_of_row, lists)

    def _split_cells(
        self,
        separator: str | None,
        texts: Mapping[str, separators.Cell],
        text_of_row: Sequence[str | None],
        lists: Sequence[tuple[int, list[str]]],
    ) -> Rows:
        table, found = self._tables[0], self._columns[0]
        places, place = self._builder.places, table.place
        name = table.names[found.labels]
        problems = Findings(self._path, place)
        known = frozenset(self._known or ())
        names_of: dict[str, list[str]] = {}
        plain: dict[str, separators.Cell] = {}
        says_none, lists_in_cells = [], []
        for cell, seen in texts.items():
            if cell.strip() not in known and cells.is_no_label(cell):
                names_of[cell] = []
                if cell.strip():
                    says_none.append(cell)
                continue
            try:
                parsed = None if cell.strip() in known else cells.parse_list(cell)
            except cells.CellError as error:
                problems.add(
                    f"cells of {name!r} that are no list of names",
                    places[seen.row],
                    f"{_shortened(cell)}: {error}",
                )
                continue
            if parsed is None:
                plain[cell] = seen
            else:
                names_of[cell] = parsed
                lists_in_cells.append(cell)
        if plain and known.isdisjoint(plain) and all(map(cells.is_in_braces, plain)):
            for cell, seen in plain.items():
                try:
                    names_of[cell] = cells.parse_braces(cell)
                except cells.CellError as error:
                    problems.add(
                        f"cells of {name!r} that are no list of names",
                        places[seen.row],
                        f"{_shortened(cell)}: {error}",
                    )
            lists_in_cells += plain
            plain = {}
        problems.raise_if_any(TableError)
        if lists_in_cells and plain:
            cell = next(iter(plain))
            problems.add(
                "cells that are no list where others are, such as "
                f"{lists_in_cells[0]!r}; write all in one way",
                places[plain[cell].row],
                repr(cell),
            )
        all_lists = [*(names for _, names in lists), *(names_of[cell] for cell in lists_in_cells)]
        if cells.looks_like_indicators(all_lists):
            row = lists[0][0] if lists else texts[lists_in_cells[0]].row
            problems.add(_MULTI_HOT, places[row], str([*map(int, all_lists[0])]))
        if not known.issuperset(plain) and cells.are_digits_of_indicators(list(plain)):
            cell = next(iter(plain))
            problems.add(_MULTI_HOT, places[plain[cell].row], repr(cell))
        _check_numbers(plain, places, name, problems)
        problems.raise_if_any(TableError)
        if plain:
            chooser = separators.Chooser(self._path, name, plain, places, place, self._known)
            decision = chooser.choose(separator, self._findings)
            names_of |= {cell: separators.split(cell, decision.separator) for cell in plain}
            how = decision.description
        else:
            how = "written as lists" if all_lists else "none"
        self._findings.add_all(
            "cells that say there is no label",
            [places[texts[cell].row] for cell in says_none],
            lambda i: f"{says_none[i]!r} (rows with it: {texts[says_none[i]].count})",
        )
        code: dict[str, int] = {}
        list_of_row = dict(lists)
        codes_of = {
            cell: [code.setdefault(label, len(code)) for label in names]
            for cell, names in names_of.items()
        }
        counts, label_codes = [], []
        for row, text_of_cell in enumerate(text_of_row):
            codes = (
                [code.setdefault(label, len(code)) for label in list_of_row[row]]
                if text_of_cell is None
                else codes_of[text_of_cell]
            )
            counts.append(len(codes))
            label_codes.extend(codes)
        layout = f"{found.layout} layout" if found.layout == columns.LIST else found.layout
        return Rows(
            images=self._builder.images,
            splits=self._builder.splits,
            places=places,
            place=place,
            label_rows=np.repeat(np.arange(len(counts)), counts),
            label_codes=np.array(label_codes, np.int64),
            label_names=list(code),
            class_names=None,
            layout=layout,
            reading=f"{self._description(found)}, labels in {name!r}, {how}",
        )

    def _read_wide(self) -> Rows:
        names = [self._tables[0].names[c] for c in self._columns[0].classes]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise TableError(f"{self._path}: more than one column {text.show(repeated)}")
        code = {name: i for i, name in enumerate(names)}
        label_rows, label_codes = [], []
        unknown_rows, unknown_codes, num_empty = [], [], 0
        for file, (table, found) in enumerate(zip(self._tables, self._columns, strict=True)):
            own = [table.names[c] for c in found.classes]
            if set(own) != set(names) or len(own) != len(names):
                different = sorted(set(own) ^ set(names))
                raise TableError(
                    f"{self._path}: {table.path} has not the columns of classes of "
                    f"{self._tables[0].path}; only one of them has {text.show(different)}"
                )
            problems = Findings(table.path, table.place)
            row_reader = _RowReader(table, found, self._parts[file], file, self._builder, problems)
            reader = WideReader(
                found,
                table.names,
                row_reader.add,
                problems,
                empty_is_unknown=self._empty_is_unknown,
            )
            reader.read(table)
            problems.raise_if_any(TableError)
            code_of_own = np.array([code[name] for name in own])
            rows, codes = reader.labels()
            label_rows.append(rows)
            label_codes.append(code_of_own[codes])
            rows, codes = reader.unknown_labels()
            unknown_rows.append(rows)
            unknown_codes.append(code_of_own[codes])
            num_empty += reader.num_empty
        if not self._empty_is_unknown:
            self._findings.add_count(
                "empty cells of classes, which are taken as 0 (--empty_labels=unknown if it is not "
                "known whether the images have the labels)",
                num_empty,
            )
        found = self._columns[0]
        return Rows(
            images=self._builder.images,
            splits=self._builder.splits,
            places=self._builder.places,
            place=self._tables[0].place,
            label_rows=np.concatenate(label_rows),
            label_codes=np.concatenate(label_codes),
            label_names=names,
            class_names=tuple(names),
            layout="wide layout",
            reading=f"{self._description(found)}, a column of 0 and 1 for each class, from "
            f"{names[0]!r} to {names[-1]!r}",
            unknown_rows=np.concatenate(unknown_rows),
            unknown_codes=np.concatenate(unknown_codes),
        )

    def _description(self, found: Columns) -> str:
        table = self._tables[0]
        images = f"images in {table.names[found.image]!r}"
        if found.split is not None:
            return f"{images}, {found.split.description}"
        return images if self._parts[0].split else f"{images}, no column of splits"


class _RowReader:
    """Adds the image and the split of rows of one table, and reports those that have none."""

    def __init__(
        self,
        table: DelimitedTable | JsonTable,
        found: Columns,
        part: _Part,
        file: int,
        builder: RowsBuilder,
        problems: Findings,
    ):
        self._names, self._image, self._rule = table.names, found.image, found.split
        self._part, self._file, self._builder, self._problems = part, file, builder, problems
        self._is_json = isinstance(table, JsonTable)

    def add(self, number: int, values: Any) -> int | None:
        """Returns the position of the row that is added; None if it cannot be used."""
        image = values[self._image]
        if self._is_json and not self._are_strings(number, values):
            return None
        if not image.strip():
            self._problems.add("rows without an image", number, f"{image!r} in place of its path")
        code = self._split(number, values)
        if code is None:
            return None
        if self._part.folder and "://" not in image:
            image = os.path.join(self._part.folder, image)
        return self._builder.add(image, code, number, self._file)

    def _are_strings(self, number: int, values: Any) -> bool:
        of_words = self._rule.columns if self._rule and not self._rule.of_true else ()
        used = [self._image, *of_words]
        if all(isinstance(values[c], str) for c in used):
            return True
        found = ", ".join(f"{self._names[c]} {_shown(values[c])}" for c in used)
        self._problems.add("image and split must be strings", number, found)
        return False

    def _split(self, number: int, values: Any) -> int | None:
        of_file = None if self._part.split is None else splits.CODES[self._part.split]
        if self._rule is None:
            return 0 if of_file is None else of_file
        if self._rule.of_true and self._is_json:
            values = {c: json_records.as_text(values[c]) for c in self._rule.columns}
        code = self._rule.code(values)
        if code is None:
            found = ", ".join(repr(values[c]) for c in self._rule.columns)
            self._problems.add(self._rule.kind_of_problem, number, found)
        elif of_file is not None and code != of_file:
            self._problems.add(
                f"rows of another split than that of the file, which is {self._part.split}",
                number,
                splits.SPLITS[code],
            )
        return code


def _json_labels(
    value: Any, number: int, problems: Findings, all_names: Sequence[str], values: Sequence[Any]
) -> list[str] | str | None:
    """Returns the labels of an object, or the text of a cell; None after a problem."""
    if value is json_records.ABSENT:
        fields = [name for name, v in zip(all_names, values, strict=True) if v is not value]
        names = [n for n, v in zip(all_names, values, strict=True) if v is value]
        found = f"no {', '.join(names)}; its fields are {text.show(fields) or 'none'}"
        problems.add("objects without all of the fields that others have", number, found)
        return None
    try:
        return cells.names_of_value(value)
    except cells.CellError as error:
        problems.add("labels must be a list of names, or one string", number, str(error))
        return None


def _shortened(cell: str) -> str:
    return repr(cell if len(cell) < 80 else f"{cell[:77]}…")


def _check_is_unicode(path: str, rows: Rows) -> None:
    """Refuses names that no text file can hold, before any is written."""

    def is_wrong(name: str) -> bool:
        return not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name)

    problems = Findings(path, rows.place)
    wrong = [i for i, name in enumerate(rows.images) if is_wrong(name)]
    problems.add_all(
        "images whose names hold bytes that are not UTF-8, or halves of a character; rename them",
        rows.places[wrong],
        lambda i: text.show([rows.images[wrong[i]]]),
    )
    problems.add_names(
        "labels that hold bytes that are not UTF-8, or halves of a character; rename them",
        [name for name in rows.label_names if is_wrong(name)],
    )
    problems.raise_if_any(TableError)


def _shown(value: Any) -> str:
    if value is json_records.ABSENT:
        return "absent"
    return json.dumps(value, ensure_ascii=False)[:80]


def _check_numbers(
    plain: Mapping[str, separators.Cell], places: Any, name: str, problems: Findings
) -> None:
    """Refuses a column of labels that holds numbers of which some cannot be names of classes."""
    numbers = {}
    for cell in plain:
        try:
            numbers[cell] = float(cell)
        except ValueError:
            return
    wrong = [cell for cell, number in numbers.items() if number < 0 or number != int(number)]
    problems.add_all(
        f"numbers in column {name!r} that are no classes, such as -1 for unknown; leave the cell "
        "empty if the image has no label, or write a column for each class, with -1 where it is "
        "not known",
        [places[plain[cell].row] for cell in wrong],
        lambda i: repr(wrong[i]),
    )


def _where(table: DelimitedTable | JsonTable) -> str:
    if isinstance(table, DelimitedTable):
        return f"{table.path}, line {table.header_end}"
    return table.path
