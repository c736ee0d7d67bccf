"""Your own data: image files with splits and labels, in a layout that is recognized."""

import collections
import csv
import dataclasses
import json
import os
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import scipy.sparse
from absl import logging

from dbl_tf.messages import nearest, quoted
from pipelines import doubles, locations
from pipelines.datasets import assembly, image_checks, spellings
from pipelines.datasets.image_checks import BadImage
from pipelines.datasets.options import UNKNOWN, TableOptions
from pipelines.datasets.source import LoadOptions
from pipelines.examples import LabelledData
from pipelines.findings import Findings
from pipelines.tables import json_records, reading, text
from pipelines.tables.columns import IMAGE, LABELS, SPLIT
from pipelines.tables.delimited import DelimitedTable
from pipelines.tables.rows import Places, Rows
from pipelines.tables.separators import BAR, NONE, from_flag
from pipelines.tables.splits import CODES as _SPLIT_CODES
from pipelines.tables.splits import SPLITS as SPLITS
from pipelines.tables.text import TableError as TableError

COLUMNS = (IMAGE, SPLIT, LABELS)
# What empty cells of classes can say.
WITHOUT_SPLIT = "without a split, --test_fraction=0.2 sets a fifth of the images aside as test"


def load(
    options: TableOptions, load_options: LoadOptions, splits: Sequence[str] | None = None
) -> LabelledData:
    """Reads a table of examples and checks it, down to the image files, before any work is done.

    `pipelines.tables.reading` lists the layouts that are recognized, `pipelines.tables.columns`
    says how columns are, and `pipelines.tables.separators` how labels are separated. Where no
    column and no name of a file tells the split, all rows are train. With `test_fraction`, there
    are no test examples and a share of the train examples takes their place.

    An image is the path of a file, absolute or relative to `images_dir`, or a URL of a file system
    that TensorFlow knows, such as `gs://bucket/a.jpg`. A path that means one file in another
    spelling, as `pipelines.datasets.spellings` describes it, is that of this file.

    An image that is in two splits is refused, because the model would be tested on an image that it
    was trained on. Rows that name an image again within a split are merged into one example with
    the labels of all of them. Separately, they would count twice in N and n_i, and in a table with
    one row per label, each row would deny the labels of the others. A label is unknown if it is so
    in each of the rows. Two paths are the same image if
    they are equal after normalization; the contents are not compared.

    One message at the end logs the findings: sizes, unused columns, merged rows, images that are
    left out or have no labels, and classes without images in a split. It is a warning if the data
    are not used exactly as they are written.

    Args:
        options: the options of the table.
        load_options: the options that all sources have. The cache folder remembers files that
            passed the check, and gets a list of the bad ones if they are too many for a message.
        splits: the splits to load. None loads all splits, which must include train and test.

    Raises:
        TableError: the table cannot be used; the message gives the file, the lines as an editor
            counts them, what was found and what would be right.
        image_checks.BadImagesError: images were not found or failed the check.
        ValueError: `images_dir` is not a folder.
    """
    path = text.existing(options.examples, "the table of examples")
    cache_dir = load_options.cache_path
    images_dir = path if os.path.isdir(path) else os.path.dirname(path)
    if options.images_dir is not None:
        locations.check_schemes([options.images_dir], "images_dir")
        images_dir = locations.absolute(options.images_dir)
        if not locations.is_folder(images_dir):
            raise ValueError(f"images_dir must be a folder; found no folder at {images_dir}")
    classes = None if options.class_names is None else read_class_names(options.class_names)

    of_table = Findings(path)
    rows = _read(path, options, classes, of_table)
    needed = load_options.needed(splits)
    _check_splits(path, rows.splits, needed, "has no {} rows")
    load_options.check_no_test(path, int(np.count_nonzero(rows.splits == _SPLIT_CODES["test"])))
    classes, labels_of_rows = _labels_of_rows(path, rows, classes, options.class_names)
    num_repeated_labels = len(rows.label_codes) - labels_of_rows.positive.nnz
    locations.check_schemes(rows.images, f"images of {path}")
    paths = [locations.join(images_dir, name) for name in rows.images]

    def prepared() -> tuple[Findings, _Images, _Labels, list[BadImage]]:
        """Returns the images to load with their labels, and those of them that cannot be used."""
        findings = of_table.copy()
        add_doubles(findings, classes)
        images, labels = _merge_repeated_images(path, rows, labels_of_rows, paths, findings)
        if load_options.test_fraction:
            train = np.flatnonzero(images.splits == _SPLIT_CODES["train"])
            split_of = images.splits.copy()
            split_of[train[load_options.test_share(labels.positive[train])]] = _SPLIT_CODES["test"]
            images = dataclasses.replace(images, splits=split_of)
        if splits:
            kept = np.flatnonzero(np.isin(images.splits, [_SPLIT_CODES[name] for name in splits]))
            images, labels = images.take(kept), labels.take(kept)
        bad = image_checks.check_images(
            images.paths, level=load_options.check_images, cache_dir=cache_dir
        )
        return findings, images, labels, bad

    respelled: dict[str, spellings.Found] = {}
    if load_options.test_fraction:
        # The choice must not depend on which splits are loaded, and so looked at.
        respelled = _respelled(
            image_checks.check_images([*dict.fromkeys(paths)], level="exists", cache_dir=cache_dir)
        )
        paths = [respelled[each].path if each in respelled else each for each in paths]
    findings, images, labels, bad = prepared()
    if not load_options.test_fraction and (respelled := _respelled(bad)):
        # Two rows may name one file in two spellings, so that rows are merged again.
        paths = [respelled[each].path if each in respelled else each for each in paths]
        findings, images, labels, bad = prepared()
    written = [locations.join(images_dir, name) for name in images.names] if respelled else []
    other = [i for i, each in enumerate(written) if each in respelled]
    findings.add_all(
        "paths of no file that mean one file in another spelling, which is taken",
        images.lines[other],
        lambda i: (
            f"{quoted(images.names[other[i]])}: {quoted(images.paths[other[i]])} "
            f"({respelled[written[other[i]]].differences})"
        ),
    )
    if bad:
        if not load_options.skip_bad_images:
            raise image_checks.bad_images_error(
                bad,
                num_images=len(images.paths),
                examples=path,
                lines=images.lines if rows.place == "line" else None,
                images_dir=images_dir,
                cache_dir=cache_dir,
                data=_labeled_data(classes, images, labels, rows.layout),
            )
        kind = f"images of {len(images.paths):,} that cannot be used and are left out"
        findings.add_text(
            kind,
            len(bad),
            image_checks.describe(
                bad,
                examples=path,
                lines=images.lines if rows.place == "line" else None,
                images_dir=images_dir,
                cache_dir=cache_dir,
            ),
        )
        kept = np.delete(np.arange(len(images.paths)), [image.position for image in bad])
        images, labels = images.take(kept), labels.take(kept)
        absence = "has no {} rows with an image that can be used"
        _check_splits(path, images.splits, splits or ("train", "test"), absence)

    data = _labeled_data(classes, images, labels, rows.layout)
    level = logging.WARNING if findings else logging.INFO
    unlabeled = np.flatnonzero(np.diff(labels.positive.indptr) == 0)
    findings.add_all(
        "images without labels",
        images.lines[unlabeled],
        lambda i: f"{images.names[unlabeled[i]]} ({SPLITS[images.splits[unlabeled[i]]]})",
    )
    findings.add_count("labels repeated within a row, which count once", num_repeated_labels)
    if labels.unknown is not None:
        findings.add_count("labels that are not known, and are left out", labels.unknown.nnz)
    for name, split in data.splits.items():
        absent = np.flatnonzero(split.labels.sum(axis=0) == 0)
        findings.add_names(f"classes without {name} images", [classes[c] for c in absent])
    sizes = ", ".join(f"{len(split):,} {name}" for name, split in data.splits.items())
    title = (
        f"{path}: {rows.layout} ({rows.reading}); {len(rows.images):,} rows; {sizes} images; "
        f"{len(classes):,} classes"
    )
    logging.log(level, "%s", findings.text(title))
    return data


@dataclasses.dataclass(frozen=True)
class TableRows:
    """The rows of a table whose examples are not image files.

    Attributes:
        class_names: the C classes.
        names: the N values of the column `image`, which are all different.
        splits: the names of the splits, (N,).
        labels: bool (N, C), CSR.
        unknown: the labels that are not known, bool (N, C), CSR; None if all are.
    """

    class_names: tuple[str, ...]
    names: list[str]
    splits: np.ndarray
    labels: scipy.sparse.csr_array
    unknown: scipy.sparse.csr_array | None


def read_rows(options: TableOptions, findings: Findings) -> TableRows:
    """Reads a table whose column `image` holds names of any kind, row by row.

    Args:
        options: the options of the table, of which `images_dir` is not used.
        findings: receives what is not used as it is written.

    Raises:
        TableError: the table cannot be used, or a name is repeated.
    """
    path = text.existing(options.examples, "the table of examples")
    classes = None if options.class_names is None else read_class_names(options.class_names)
    rows = _read(path, options, classes, findings)
    classes, labels = _labels_of_rows(path, rows, classes, options.class_names)
    first_row: dict[str, int] = {}
    again = [i for i, name in enumerate(rows.images) if first_row.setdefault(name, i) != i]
    problems = Findings(path)
    problems.add_all(
        "rows whose name another row has (each row is an example of its own here)",
        rows.places[again],
        lambda i: (
            f"{rows.images[again[i]]}, as line {rows.places[first_row[rows.images[again[i]]]]}"
        ),
    )
    problems.raise_if_any(TableError)
    split_of = np.array(SPLITS)[rows.splits]
    return TableRows(classes, rows.images, split_of, labels.positive, labels.unknown)


def copy_rows(
    options: TableOptions,
    folder: str | os.PathLike,
    files: Collection[str],
    *,
    relative_to: str | os.PathLike | None = None,
) -> str:
    """Writes a table with some of the rows of another table, which `load` has accepted.

    The rows keep their order. Those of a table with the columns image, split and labels keep all
    columns and their labels as they are written; tables of other layouts become JSON lines with
    these fields and lists of labels or, where labels are unknown, a field for each class. Relative
    image paths are rewritten to start at the new table's folder, so that it needs no `images_dir`;
    absolute paths stay. The new table is read with the `class_names` and `label_separator` of the
    other one.

    Args:
        options: the options of the other table.
        folder: the folder where `examples.csv`, or `examples.jsonl` for JSON lines, is written.
        files: the images whose rows are copied, as in `Examples.files` of the other table.
        relative_to: the folder that relative paths start at, where the new table is going to be
            moved there; `folder` if None.

    Returns:
        The path of the new table.
    """
    path, folder = locations.absolute(options.examples), os.path.abspath(folder)
    is_folder = os.path.isdir(path)
    images_dir = locations.absolute(
        options.images_dir or (path if is_folder else os.path.dirname(path))
    )
    start = relative_to or folder
    table = None if is_folder or options.column_flags else reading.open_table(path)
    if not isinstance(table, DelimitedTable | json_records.JsonTable) or not set(COLUMNS) <= set(
        table.names
    ):
        return _write_rows(options, folder, files, images_dir, start)
    rows = [list(values) for _, values in table.rows(Findings(path))]
    image, labels = (table.names.index(name) for name in (IMAGE, LABELS))
    kept = []
    names = _names_in(start, images_dir, [row[image] for row in rows], files)
    for row, name in zip(rows, names, strict=True):
        if name is not None:
            row[image] = name
            kept.append(row)
    separator = from_flag(options.label_separator) or BAR

    def has_separator(rows: Sequence[list]) -> bool:
        return any(separator in row[labels] for row in rows if isinstance(row[labels], str))

    if separator != NONE and has_separator(rows) and not has_separator(kept):
        # Nothing is left to show how labels are separated, although names may have spaces.
        for row in kept:
            if isinstance(row[labels], str) and row[labels].strip():
                row[labels] += separator
                break

    is_json = isinstance(table, json_records.JsonTable)
    written = os.path.join(folder, f"examples.{'jsonl' if is_json else 'csv'}")
    with open(written, "w", encoding="utf-8", newline="") as file:
        if isinstance(table, DelimitedTable):
            writer = csv.writer(file, lineterminator="\n", delimiter=table.delimiter)
            writer.writerows([table.names, *kept])
        else:
            file.writelines(
                _json_line({
                    name: value
                    for name, value in zip(table.names, row, strict=True)
                    if value is not json_records.ABSENT
                })
                for row in kept
            )  # fmt: skip
    return written


def _write_rows(
    options: TableOptions,
    folder: str,
    files: Collection[str],
    images_dir: str,
    start: str | os.PathLike,
) -> str:
    """Writes the chosen rows of a table of any layout as JSON lines."""
    path = locations.absolute(options.examples)
    classes = None if options.class_names is None else read_class_names(options.class_names)
    rows = _read(path, options, classes, Findings(path))
    classes, labels = _labels_of_rows(path, rows, classes, options.class_names)
    written = os.path.join(folder, "examples.jsonl")
    with open(written, "w", encoding="utf-8") as file:
        for i, name in enumerate(_names_in(start, images_dir, rows.images, files)):
            if name is not None:
                fields = label_fields(labels.positive, labels.unknown, i, classes)
                file.write(_json_line({IMAGE: name, SPLIT: SPLITS[rows.splits[i]], **fields}))
    if labels.unknown is not None:
        check_classes(written, classes)
    return written


def label_fields(
    labels: scipy.sparse.csr_array,
    unknown: scipy.sparse.csr_array | None,
    i: int,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Returns the labels of one example as fields of JSON lines, which a table is read from.

    Args:
        labels: the labels of the examples, bool (N, C), CSR.
        unknown: those that are not known, bool (N, C), CSR; None if all are.
        i: the position of the example.
        class_names: the C class names.

    Returns:
        A list of labels; or, where labels are unknown, 0, 1 or −1 for each class.
    """

    def of_example(matrix: scipy.sparse.csr_array) -> np.ndarray:
        return matrix.indices[matrix.indptr[i] : matrix.indptr[i + 1]]

    if unknown is None:
        return {LABELS: [class_names[c] for c in of_example(labels)]}
    values = np.zeros(len(class_names), int)
    values[of_example(labels)], values[of_example(unknown)] = 1, -1
    return dict(zip(class_names, values.tolist(), strict=True))


def check_classes(path: str, class_names: Sequence[str]) -> None:
    """Refuses a table that was written with a column for each class, and is not read as such.

    Raises:
        TableError: the name of a class means something else in a table, such as its images.
    """
    found = reading.read(path, Findings(path)).class_names
    if found != tuple(class_names):
        lost = [name for name in class_names if name not in (found or ())]
        raise TableError(
            "labels that are not known need a table with a column for each class, and a column of "
            f"the name {text.show(lost)} would be taken for something else: rename the class"
        )


def _names_in(
    start: str | os.PathLike, images_dir: str, names: Sequence[str], files: Collection[str]
) -> list[str | None]:
    """Returns the names of images for a table in another folder; None where one is not copied."""
    paths = [locations.join(images_dir, name) for name in names]
    respelled = spellings.find_all({each for each in paths if each not in files})
    found: list[str | None] = []
    for name, path in zip(names, paths, strict=True):
        path = respelled[path].path if path in respelled else path
        is_absolute = os.path.isabs(name) or locations.scheme_of(name)
        if path not in files:
            found.append(None)
        else:
            found.append(path if is_absolute else locations.relative(path, start))
    return found


def _json_line(row: dict) -> str:
    return f"{json.dumps(row, ensure_ascii=False)}\n"


def add_doubles(findings: Findings, class_names: Sequence[str]) -> None:
    """Adds the class names that look like doubles of each other."""
    groups = doubles.similar_names(class_names)
    texts = [" and ".join(map(quoted, group)) for group in groups]
    findings.add_items("classes whose names look like doubles", texts, len(groups))


def read_class_names(path: str | os.PathLike) -> tuple[str, ...]:
    """Reads a text file with one class name on each line; empty lines are skipped.

    Raises:
        TableError: there is no such file, no name in it, or a name twice.
    """
    path = text.existing_file(path, "the list of class names")
    first_line: dict[str, int] = {}
    problems = Findings(path)
    for line, name in enumerate(text.text_lines(path), start=1):
        if not (name := name.strip()):
            continue
        if name in first_line:
            problems.add("class names given twice", line, f"{name!r}, as line {first_line[name]}")
        first_line.setdefault(name, line)
    problems.raise_if_any(TableError)
    if not first_line:
        raise TableError(f"{path} is empty; it must hold one class name on each line")
    return tuple(first_line)


def _read(
    path: str, options: TableOptions, classes: tuple[str, ...] | None, findings: Findings
) -> Rows:
    return reading.read(
        path,
        findings,
        flags=options.column_flags,
        label_separator=options.label_separator,
        known=classes,
        has_images_dir=options.images_dir is not None,
        empty_is_unknown=options.empty_labels == UNKNOWN,
    )


@dataclasses.dataclass(frozen=True)
class _Labels:
    """Labels of N rows or images, bool (N, C): those they have, and those that are not known."""

    positive: scipy.sparse.csr_array
    unknown: scipy.sparse.csr_array | None

    def take(self, positions: np.ndarray) -> "_Labels":
        unknown = None if self.unknown is None else self.unknown[positions]
        return _Labels(self.positive[positions], unknown)


@dataclasses.dataclass
class _Images:
    """The distinct images of a table: their names in the file, paths, splits and lines."""

    names: Sequence[str]
    paths: Sequence[str]
    splits: np.ndarray
    lines: Places

    def take(self, positions: np.ndarray) -> "_Images":
        return _Images(
            [self.names[i] for i in positions],
            [self.paths[i] for i in positions],
            self.splits[positions],
            self.lines[positions],
        )


def _check_splits(path: str, splits: np.ndarray, needed: Sequence[str], absence: str) -> None:
    counts = np.bincount(splits, minlength=len(SPLITS))
    if absent := [name for name in needed if not counts[_SPLIT_CODES[name]]]:
        found = ", ".join(f"{n} {name}" for name, n in zip(SPLITS, counts, strict=True) if n)
        hint = (
            "; --test_fraction=0.2 sets a fifth of train aside as test" if "test" in absent else ""
        )
        raise TableError(
            f"{path} {absence.format(' and no '.join(absent))}; {' and '.join(needed)} rows are "
            f"needed, and it has {found or 'none'}{hint}"
        )


def _labels_of_rows(
    path: str,
    rows: Rows,
    classes: tuple[str, ...] | None,
    classes_path: str | os.PathLike | None,
) -> tuple[tuple[str, ...], _Labels]:
    """Returns the classes, and the labels of every row of the table, bool (rows, C)."""
    if classes is None:
        classes = rows.class_names or tuple(sorted(rows.label_names))
    if not len(rows.label_codes):
        raise TableError(f"{path} has no label in any of its {len(rows.images):,} rows")
    index = {name: i for i, name in enumerate(classes)}
    column_of_code = np.array([index.get(name, -1) for name in rows.label_names])
    columns = column_of_code[rows.label_codes]
    if (unknown := np.flatnonzero(columns < 0)).size:
        codes, counts = np.unique(rows.label_codes[unknown], return_counts=True)
        first_rows = np.full(len(rows.label_names), len(rows.images))
        np.minimum.at(first_rows, rows.label_codes[unknown], rows.label_rows[unknown])
        order = np.argsort(first_rows[codes], kind="stable")

        def describe(i: int) -> str:
            name = rows.label_names[codes[order[i]]]
            near = nearest(name, classes)
            hint = "" if near is None else f", near {near!r}"
            return f"{name!r}{hint} (rows with it: {counts[order[i]]})"

        problems = Findings(path, rows.place)
        problems.add_all(
            f"labels that are not in {classes_path} ({rows.reading}; --label_separator changes "
            "how labels are separated)",
            rows.places[first_rows[codes[order]]],
            describe,
        )
        problems.raise_if_any(TableError)
    shape = (len(rows.images), len(classes))
    positive = assembly.sparse_labels(rows.label_rows, columns, shape)
    if not len(rows.unknown_codes):
        return classes, _Labels(positive, None)
    columns = column_of_code[rows.unknown_codes]
    of_class = columns >= 0
    return classes, _Labels(
        positive,
        assembly.sparse_labels(rows.unknown_rows[of_class], columns[of_class], shape),
    )


def _row_of_entry(labels: scipy.sparse.csr_array) -> np.ndarray:
    return np.repeat(np.arange(labels.shape[0]), np.diff(labels.indptr))


def _respelled(bad: Sequence[BadImage]) -> dict[str, spellings.Found]:
    """Returns the files of those images that were not found under the spelling of their paths."""
    return spellings.find_all(
        {image.path for image in bad if image.reason == image_checks.NOT_FOUND}
    )


def _merge_repeated_images(
    path: str,
    rows: Rows,
    labels_of_rows: _Labels,
    paths_of_rows: Sequence[str],
    findings: Findings,
) -> tuple[_Images, _Labels]:
    """Returns the distinct images, and the labels of all rows of each."""
    positions: collections.defaultdict[str, int] = collections.defaultdict()
    positions.default_factory = positions.__len__
    position_of_row = np.fromiter(
        map(positions.__getitem__, paths_of_rows), np.int64, len(rows.images)
    )
    paths = list(positions)
    if len(paths) == len(rows.images):
        return _Images(rows.images, paths, rows.splits, rows.places), labels_of_rows

    labels, unknown = labels_of_rows.positive, labels_of_rows.unknown
    _, first_row = np.unique(position_of_row, return_index=True)
    first_of_row = first_row[position_of_row]
    leaks = np.flatnonzero(rows.splits != rows.splits[first_of_row])

    def describe_leak(i: int) -> str:
        row, first = leaks[i], first_of_row[leaks[i]]
        return (
            f"{rows.images[row]} in {SPLITS[rows.splits[row]]}; line {rows.places[first]} has it "
            f"in {SPLITS[rows.splits[first]]}"
        )

    if leaks.size:
        problems = Findings(path)
        problems.add_all(
            "images in more than one split, so that training images would be tested on",
            rows.places[leaks],
            describe_leak,
        )
        problems.raise_if_any(TableError)

    merged = assembly.sparse_labels(
        position_of_row[_row_of_entry(labels)], labels.indices, (len(paths), labels.shape[1])
    )
    if unknown is not None:
        cells = (position_of_row[_row_of_entry(unknown)], unknown.indices)
        times = scipy.sparse.coo_array((np.ones(unknown.nnz, int), cells), merged.shape).tocsr()
        num_rows = np.bincount(position_of_row)[_row_of_entry(times)]
        times.data[times.data < num_rows] = 0
        times.eliminate_zeros()
        unknown = times.astype(bool)
    again = np.flatnonzero(first_of_row != np.arange(len(first_of_row)))
    of_repeated = np.isin(position_of_row, position_of_row[again])
    grown = np.diff(labels.indptr) < np.diff(merged.indptr)[position_of_row]
    num_grown = len(np.unique(position_of_row[of_repeated & grown]))
    findings.add_all(
        "rows that name an image again within its split, merged with the first that does "
        f"({num_grown:,} of the images have rows with different labels, and get all of them)",
        rows.places[again],
        lambda i: f"{rows.images[again[i]]}, as line {rows.places[first_of_row[again[i]]]}",
    )
    names = [rows.images[row] for row in first_row]
    images = _Images(names, paths, rows.splits[first_row], rows.places[first_row])
    return images, _Labels(merged, unknown)


def _labeled_data(
    classes: tuple[str, ...], images: _Images, labels: _Labels, origin: str
) -> LabelledData:
    splits = {}
    for code, name in enumerate(SPLITS):
        positions = np.flatnonzero(images.splits == code)
        if len(positions):
            part = images.take(positions)
            of_part = labels.take(positions)
            splits[name] = assembly.file_examples(
                part.names, part.paths, of_part.positive, of_part.unknown
            )
    return LabelledData(class_names=classes, splits=splits, origin=origin)
