"""Your own data: a table of image files, splits and labels, as CSV or JSON lines."""

import array
import collections
import csv
import dataclasses
import difflib
import io
import json
import os
from collections.abc import Collection, Iterator, Sequence

import numpy as np
import scipy.sparse
from absl import logging

from dbl_tf.messages import quoted
from dbl_tf.settings import REQUIRED, setting
from pipelines import doubles, locations
from pipelines.datasets import assembly, image_checks, spellings
from pipelines.datasets.image_checks import BadImage
from pipelines.datasets.source import PHOTOGRAPHS, LoadOptions, Source, SourceOptions
from pipelines.examples import LabelledData
from pipelines.findings import Findings

COLUMNS = ("image", "split", "labels")
SPLITS = ("train", "val", "test")

_SPLIT_CODES = {split: code for code, split in enumerate(SPLITS)}
WITHOUT_SPLIT = "without a split, --test_fraction=0.2 sets a fifth of the images aside as test"
_NUM_NEAR = 5  # file names like one that was not found


class TableError(ValueError):
    """A table of examples or a list of classes cannot be used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(SourceOptions):
    """Options of a table of examples.

    Raises:
        ValueError: the separator is empty.
    """

    examples: str = setting(
        REQUIRED,
        "CSV or JSON lines with the columns image, split and labels; for features also an .npz "
        "file with the arrays features, labels, split and class_names.",
        is_path=True,
        required_as="a CSV or JSON-lines file, or an .npz file of features",
    )
    images_dir: str | None = setting(
        None,
        "Folder that relative image paths start from. The default is the folder of --examples.",
        is_path=True,
    )
    class_names: str | None = setting(
        None,
        "Text file with one class per line, which sets the order of the classes and the labels "
        "allowed. By default, the classes are the labels found, sorted.",
        is_path=True,
    )
    label_separator: str | None = setting(
        None, "Separator of labels. The default is | if the labels contain one, otherwise spaces."
    )

    def __post_init__(self) -> None:
        if self.label_separator == "":
            raise ValueError("label_separator must not be empty")

    @property
    def data_name(self) -> str:
        """The name of the table's folder."""
        return os.path.basename(os.path.dirname(locations.absolute(self.examples)))


def load(
    options: Options, load_options: LoadOptions, splits: Sequence[str] | None = None
) -> LabelledData:
    """Reads a table of examples and checks it, down to the image files, before any work is done.

    The table is a CSV file with a header, or JSON lines (a name that ends in `.jsonl` or `.json`,
    or `{` as the first character), in UTF-8. Its columns or fields:

    * `image`: the path of the file, absolute or relative to `images_dir`, or a URL of a file system
      that TensorFlow knows, such as `gs://bucket/a.jpg`. A path that means one file in another
      spelling, as `pipelines.datasets.spellings` describes it, is that of this file.
    * `split`: train, val or test. There must be train and test examples. With `test_fraction`,
      there are no test examples and a share of the train examples takes their place; without this
      column, all examples are train.
    * `labels`: the names of classes, separated by `|` if any cell of the column contains one,
      otherwise by spaces. In JSON, a list of names is possible too. It may be empty.

    An image that is in two splits is refused, because the model would be tested on an image that it
    was trained on. Rows that name an image again within a split are merged into one example with
    the labels of all of them. Separately, they would count twice in N and n_i, and in a table with
    one row per label, each row would deny the labels of the others. Two paths are the same image if
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
    path = existing_file(options.examples, "the table of examples")
    cache_dir = load_options.cache_path
    images_dir = os.path.dirname(path)
    if options.images_dir is not None:
        locations.check_schemes([options.images_dir], "images_dir")
        images_dir = locations.absolute(options.images_dir)
        if not locations.is_folder(images_dir):
            raise ValueError(f"images_dir must be a folder; found no folder at {images_dir}")
    classes = None if options.class_names is None else read_class_names(options.class_names)

    rows = _read_rows(path, options.label_separator, needs_split=not load_options.test_fraction)
    needed = load_options.needed(splits)
    _check_splits(path, rows.splits, needed, "has no {} rows")
    load_options.check_no_test(path, int(np.count_nonzero(rows.splits == _SPLIT_CODES["test"])))
    classes, labels_of_rows = _label_matrix(path, rows, classes, options.class_names)
    num_repeated_labels = len(rows.label_codes) - labels_of_rows.nnz
    locations.check_schemes(rows.images, f"images of {path}")
    paths = [locations.join(images_dir, name) for name in rows.images]

    def prepared() -> tuple[Findings, _Images, scipy.sparse.csr_array, list[BadImage]]:
        """Returns the images to load with their labels, and those of them that cannot be used."""
        findings = Findings(path)
        findings.add_names("columns not used", rows.unused_columns)
        add_doubles(findings, classes)
        images, labels = _merge_repeated_images(path, rows, labels_of_rows, paths, findings)
        if load_options.test_fraction:
            train = np.flatnonzero(images.splits == _SPLIT_CODES["train"])
            split_of = images.splits.copy()
            split_of[train[load_options.test_share(labels[train])]] = _SPLIT_CODES["test"]
            images = dataclasses.replace(images, splits=split_of)
        if splits:
            kept = np.flatnonzero(np.isin(images.splits, [_SPLIT_CODES[name] for name in splits]))
            images, labels = images.take(kept), labels[kept]
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
                lines=images.lines,
                images_dir=images_dir,
                cache_dir=cache_dir,
                data=_labeled_data(classes, images, labels),
            )
        kind = f"images of {len(images.paths)} that cannot be used and are left out"
        findings.add_text(
            kind,
            len(bad),
            image_checks.describe(
                bad,
                examples=path,
                lines=images.lines,
                images_dir=images_dir,
                cache_dir=cache_dir,
            ),
        )
        kept = np.delete(np.arange(len(images.paths)), [image.position for image in bad])
        images, labels = images.take(kept), labels[kept]
        absence = "has no {} rows with an image that can be used"
        _check_splits(path, images.splits, splits or ("train", "test"), absence)

    data = _labeled_data(classes, images, labels)
    level = logging.WARNING if findings else logging.INFO
    unlabeled = np.flatnonzero(np.diff(labels.indptr) == 0)
    findings.add_all(
        "images without labels",
        images.lines[unlabeled],
        lambda i: f"{images.names[unlabeled[i]]} ({SPLITS[images.splits[unlabeled[i]]]})",
    )
    findings.add_count("labels repeated within a row, which count once", num_repeated_labels)
    for name, split in data.splits.items():
        absent = np.flatnonzero(split.labels.sum(axis=0) == 0)
        findings.add_names(f"classes without {name} images", [classes[c] for c in absent])
    sizes = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    title = (
        f"{path}: {len(rows.images)} rows; {sizes} images; {len(classes)} classes; labels "
        f"separated by {rows.separator!r}"
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
    """

    class_names: tuple[str, ...]
    names: list[str]
    splits: np.ndarray
    labels: scipy.sparse.csr_array


def read_rows(options: Options, findings: Findings, *, needs_split: bool = True) -> TableRows:
    """Reads a table whose column `image` holds names of any kind, row by row.

    Args:
        options: the options of the table, of which `images_dir` is not used.
        findings: receives the columns that are not used.
        needs_split: whether there must be a column `split`; without one, all rows are train.

    Raises:
        TableError: the table cannot be used, or a name is repeated.
    """
    path = existing_file(options.examples, "the table of examples")
    classes = None if options.class_names is None else read_class_names(options.class_names)
    rows = _read_rows(path, options.label_separator, needs_split=needs_split)
    classes, labels = _label_matrix(path, rows, classes, options.class_names)
    first_row: dict[str, int] = {}
    again = [i for i, name in enumerate(rows.images) if first_row.setdefault(name, i) != i]
    problems = Findings(path)
    problems.add_all(
        "rows whose name another row has (each row is an example of its own here)",
        rows.lines[again],
        lambda i: (
            f"{rows.images[again[i]]}, as line {rows.lines[first_row[rows.images[again[i]]]]}"
        ),
    )
    problems.raise_if_any(TableError)
    findings.add_names("columns not used", rows.unused_columns)
    return TableRows(classes, rows.images, np.array(SPLITS)[rows.splits], labels)


def copy_rows(
    options: Options,
    folder: str | os.PathLike,
    files: Collection[str],
    *,
    relative_to: str | os.PathLike | None = None,
) -> str:
    """Writes a table with some of the rows of another table, which `load` has accepted.

    The rows keep their order, their columns and their labels as they are written. Relative image
    paths are rewritten to start at the new table's folder, so that it needs no `images_dir`;
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
    images_dir = locations.absolute(options.images_dir or os.path.dirname(path))
    is_json = _is_json(path)
    image: str | int
    labels: str | int
    if is_json:
        rows = [json.loads(text) for text in _text_lines(path) if not text.isspace()]
        image, labels = "image", "labels"
    else:
        reader = csv.reader(_text_lines(path), strict=True, skipinitialspace=True)
        header, *rows = [cells for cells in reader if cells]
        image, labels = (
            [cell.strip() for cell in header].index(name) for name in ("image", "labels")
        )

    def cells(rows: Sequence) -> Iterator[tuple[int, str]]:
        return ((i, row[labels]) for i, row in enumerate(rows) if isinstance(row[labels], str))

    had_bar = any("|" in cell for _, cell in cells(rows))
    paths = [locations.join(images_dir, row[image]) for row in rows]
    respelled = spellings.find_all({each for each in paths if each not in files})
    kept = []
    for row, image_file in zip(rows, paths, strict=True):
        if image_file in respelled:
            image_file = respelled[image_file].path
        if image_file in files:
            is_relative = not os.path.isabs(row[image]) and not locations.scheme_of(row[image])
            row[image] = image_file
            if is_relative:
                row[image] = locations.relative(image_file, relative_to or folder)
            kept.append(row)
    if (
        options.label_separator is None
        and had_bar
        and not any("|" in cell for _, cell in cells(kept))
    ):
        # No bar is left to show how labels are separated, so names with spaces need another one.
        for i, cell in cells(kept):
            if len(cell.split()) > 1:
                kept[i][labels] = f"{cell}|"
                break

    written = os.path.join(folder, f"examples.{'jsonl' if is_json else 'csv'}")
    with open(written, "w", encoding="utf-8", newline="") as file:
        if is_json:
            file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in kept)
        else:
            csv.writer(file, lineterminator="\n").writerows([header, *kept])
    return written


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
    path = existing_file(path, "the list of class names")
    first_line: dict[str, int] = {}
    problems = Findings(path)
    for line, name in enumerate(_text_lines(path), start=1):
        if not (name := name.strip()):
            continue
        if name in first_line:
            problems.add("class names given twice", line, f"{name!r}, as line {first_line[name]}")
        first_line.setdefault(name, line)
    problems.raise_if_any(TableError)
    if not first_line:
        raise TableError(f"{path} is empty; it must hold one class name on each line")
    return tuple(first_line)


@dataclasses.dataclass
class _Rows:
    """The rows of a table as they are written; label r is (label_rows[r], label_codes[r])."""

    images: list[str]
    splits: np.ndarray
    lines: np.ndarray
    label_rows: np.ndarray
    label_codes: np.ndarray
    label_names: list[str]
    separator: str
    unused_columns: list[str]


@dataclasses.dataclass
class _Images:
    """The distinct images of a table: their names in the file, paths, splits and lines."""

    names: Sequence[str]
    paths: Sequence[str]
    splits: np.ndarray
    lines: np.ndarray

    def take(self, positions: np.ndarray) -> "_Images":
        return _Images(
            [self.names[i] for i in positions],
            [self.paths[i] for i in positions],
            self.splits[positions],
            self.lines[positions],
        )


def existing_file(path: str | os.PathLike, what: str) -> str:
    """Returns the absolute path of a file.

    Raises:
        TableError: there is no such file; the message gives similar names.
    """
    locations.check_schemes([path], what)
    path = locations.absolute(path)
    if locations.scheme_of(path):
        try:
            is_file = locations.status(path).is_file
        except OSError as error:
            raise TableError(f"{what} {path} was not found: {error}") from error
        if is_file:
            return path
        raise TableError(f"{path} is not a file; {what} must be one")
    if os.path.isfile(path):
        return path
    if os.path.exists(path):
        raise TableError(f"{path} is not a file; {what} must be one")
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        raise TableError(f"{what} {path} was not found, and neither was its folder")
    near = difflib.get_close_matches(name, os.listdir(folder), n=_NUM_NEAR)
    hint = f"; similar names there: {', '.join(near)}" if near else ""
    raise TableError(f"{what} {path} was not found{hint}")


def _text_lines(path: str) -> Iterator[str]:
    """Yields the lines of a UTF-8 file with their ends; a byte order mark is skipped."""
    try:
        with (
            locations.open_binary(path) as binary,
            io.TextIOWrapper(binary, encoding="utf-8-sig", newline="") as file,
        ):
            yield from file
    except UnicodeDecodeError:
        with locations.open_binary(path) as file:
            for line, encoded in enumerate(file, start=1):
                try:
                    encoded.decode()
                except UnicodeDecodeError as error:
                    raise TableError(
                        f"{path}, line {line}: byte {encoded[error.start]:#04x} is not UTF-8; "
                        "save the file as UTF-8"
                    ) from None
        raise


def _read_rows(path: str, label_separator: str | None, *, needs_split: bool) -> _Rows:
    """Reads all rows; raises one error that lists everything that is wrong with them."""
    problems = Findings(path)
    reader = _json_rows if _is_json(path) else _csv_rows
    images: list[str] = []
    splits, lines = array.array("b"), array.array("q")
    codes: collections.defaultdict[str, int] = collections.defaultdict()
    codes.default_factory = codes.__len__
    labeled_rows, labels_in_row, label_codes = array.array("q"), array.array("q"), array.array("i")
    cells, cell_rows = [], array.array("q")  # these are split once the separator is known

    def add_labels(row: int, names: list[str]):
        labeled_rows.append(row)
        labels_in_row.append(len(names))
        label_codes.extend(map(codes.__getitem__, names))

    unused: dict[str, None] = {}
    for line, image, split, labels in reader(path, needs_split, problems, unused):
        if not image.strip():
            problems.add("rows without an image", line, f"{image!r} in place of its path")
        split_code = _SPLIT_CODES.get(split.strip())
        if split_code is None:
            choices = ", ".join(SPLITS)
            problems.add(f"unknown splits (the choices are {choices})", line, f"{split!r}")
            continue
        if isinstance(labels, str):
            cells.append(labels)
            cell_rows.append(len(images))
        else:
            add_labels(len(images), labels)
        images.append(image)
        splits.append(split_code)
        lines.append(line)
    problems.raise_if_any(TableError)
    if not images:
        raise TableError(f"{path} has no rows; it must have train and test examples")

    if label_separator is None and any("|" in cell for cell in cells):
        label_separator = "|"
    if label_separator is None:
        for row, cell in zip(cell_rows, cells, strict=True):
            add_labels(row, cell.split())
    else:
        for row, cell in zip(cell_rows, cells, strict=True):
            names = map(str.strip, cell.split(label_separator))
            add_labels(row, [name for name in names if name])
    return _Rows(
        images=images,
        splits=np.asarray(splits),
        lines=np.asarray(lines),
        label_rows=np.repeat(np.asarray(labeled_rows), np.asarray(labels_in_row)),
        label_codes=np.asarray(label_codes),
        label_names=list(codes),
        separator=label_separator or " ",
        unused_columns=list(unused),
    )


def _is_json(path: str) -> bool:
    if path.lower().endswith((".jsonl", ".json")):
        return True
    with locations.open_binary(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{")


def _csv_rows(
    path: str, needs_split: bool, problems: Findings, unused: dict[str, None]
) -> Iterator[tuple[int, str, str, str]]:
    """Yields line, image, split and labels of every row that has as many cells as the header."""
    reader = csv.reader(_text_lines(path), strict=True, skipinitialspace=True)
    line = 0  # the last line of the row before: a quoted cell may hold line breaks
    columns: list[str] = []
    try:
        for cells in reader:
            first_line, line = line + 1, reader.line_num
            if not cells:
                continue
            if not columns:
                columns = [cell.strip() for cell in cells]
                image, split, labels = _column_indices(path, first_line, columns, needs_split)
                unused |= dict.fromkeys(name for name in columns if name not in COLUMNS)
            elif len(cells) == len(columns):
                yield (
                    first_line,
                    cells[image],
                    SPLITS[0] if split is None else cells[split],
                    cells[labels],
                )
            else:
                kind = f"rows without exactly {len(columns)} cells, as the header has"
                hint = "; a comma within a cell needs double quotes around the cell"
                found = f"{len(cells)} cells{hint if len(cells) > len(columns) else ''}"
                problems.add(kind, first_line, found)
    except csv.Error as error:
        raise TableError(
            f"{path}, line {line + 1}: malformed CSV, {error}; a double quote opens a cell, which "
            "the next double quote closes, and within the cell it is written twice"
        ) from None
    if not columns:
        raise TableError(f"{path} is empty; its first line must be {','.join(COLUMNS)}")


def _column_indices(
    path: str, line: int, columns: list[str], needs_split: bool
) -> tuple[int, int | None, int]:
    missing = [name for name in COLUMNS if name not in columns]
    if not needs_split and "split" in missing:
        missing.remove("split")
    if missing:
        hint = "; " + WITHOUT_SPLIT if "split" in missing else ""
        if len(columns) == 1 and any(mark in columns[0] for mark in ";\t"):
            hint = "; columns are separated by commas"
        raise TableError(
            f"{path}, line {line}: no column {', '.join(missing)}; the header has "
            f"{', '.join(map(repr, columns))}{hint}"
        )
    if repeated := [name for name in COLUMNS if columns.count(name) > 1]:
        raise TableError(f"{path}, line {line}: more than one column {', '.join(repeated)}")
    split = columns.index("split") if "split" in columns else None
    return columns.index("image"), split, columns.index("labels")


def _json_rows(
    path: str, needs_split: bool, problems: Findings, unused: dict[str, None]
) -> Iterator[tuple[int, str, str, str | list[str]]]:
    """Yields line, image, split and labels of every line that is an object with these fields."""
    needed = COLUMNS if needs_split else [name for name in COLUMNS if name != "split"]
    for line, text in enumerate(_text_lines(path), start=1):
        if text.isspace():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            found = f"column {error.colno}: {error.msg}"
            problems.add("lines that are not one JSON object each", line, found)
            continue
        if not isinstance(row, dict):
            found = f"a JSON {'array' if isinstance(row, list) else 'value'}, {text.strip()[:40]}"
            problems.add("lines that are not one JSON object each", line, found)
            continue
        if missing := [name for name in needed if name not in row]:
            found = f"no {', '.join(missing)}; its fields are {', '.join(map(repr, row)) or 'none'}"
            hint = f" ({WITHOUT_SPLIT})" if missing == ["split"] else ""
            kind = f"objects without all of the fields {', '.join(COLUMNS)}{hint}"
            problems.add(kind, line, found)
            continue
        if len(row) > len(COLUMNS):
            unused |= dict.fromkeys(name for name in row if name not in COLUMNS)
        image, split, labels = row["image"], row.get("split", SPLITS[0]), row["labels"]
        if not isinstance(image, str) or not isinstance(split, str):
            found = f"image {json.dumps(image)}, split {json.dumps(split)}"
            problems.add("image and split must be strings", line, found)
            continue
        if isinstance(labels, list):
            valid = all(isinstance(name, str) and name.strip() for name in labels)
        else:
            valid = isinstance(labels, str)
        if not valid:
            found = json.dumps(labels, ensure_ascii=False)[:80]
            problems.add("labels must be a list of names, or one string", line, found)
            continue
        if isinstance(labels, list):
            labels = [name.strip() for name in labels]
        yield line, image, split, labels


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


def _label_matrix(
    path: str,
    rows: _Rows,
    classes: tuple[str, ...] | None,
    classes_path: str | os.PathLike | None,
) -> tuple[tuple[str, ...], scipy.sparse.csr_array]:
    """Returns the classes, and the labels of every row of the table, bool (rows, C)."""
    if classes is None:
        classes = tuple(sorted(rows.label_names))
    if not rows.label_names:
        raise TableError(f"{path} has no label in any of its {len(rows.images)} rows")
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
            near = difflib.get_close_matches(name, classes, n=1)
            hint = f", near {near[0]!r}" if near else ""
            return f"{name!r}{hint} (rows with it: {counts[order[i]]})"

        problems = Findings(path)
        problems.add_all(
            f"labels that are not in {classes_path} (labels are separated by "
            f"{rows.separator!r}; --label_separator changes that)",
            rows.lines[first_rows[codes[order]]],
            describe,
        )
        problems.raise_if_any(TableError)
    shape = (len(rows.images), len(classes))
    return classes, assembly.sparse_labels(rows.label_rows, columns, shape)


def _row_of_entry(labels: scipy.sparse.csr_array) -> np.ndarray:
    return np.repeat(np.arange(labels.shape[0]), np.diff(labels.indptr))


def _respelled(bad: Sequence[BadImage]) -> dict[str, spellings.Found]:
    """Returns the files of those images that were not found under the spelling of their paths."""
    return spellings.find_all(
        {image.path for image in bad if image.reason == image_checks.NOT_FOUND}
    )


def _merge_repeated_images(
    path: str,
    rows: _Rows,
    labels: scipy.sparse.csr_array,
    paths_of_rows: Sequence[str],
    findings: Findings,
) -> tuple[_Images, scipy.sparse.csr_array]:
    """Returns the distinct images, and the labels of all rows of each."""
    positions: collections.defaultdict[str, int] = collections.defaultdict()
    positions.default_factory = positions.__len__
    position_of_row = np.fromiter(
        map(positions.__getitem__, paths_of_rows), np.int64, len(rows.images)
    )
    paths = list(positions)
    if len(paths) == len(rows.images):
        return _Images(rows.images, paths, rows.splits, rows.lines), labels

    _, first_row = np.unique(position_of_row, return_index=True)
    first_of_row = first_row[position_of_row]
    leaks = np.flatnonzero(rows.splits != rows.splits[first_of_row])

    def describe_leak(i: int) -> str:
        row, first = leaks[i], first_of_row[leaks[i]]
        return (
            f"{rows.images[row]} in {SPLITS[rows.splits[row]]}; line {rows.lines[first]} has it "
            f"in {SPLITS[rows.splits[first]]}"
        )

    if leaks.size:
        problems = Findings(path)
        problems.add_all(
            "images in more than one split, so that training images would be tested on",
            rows.lines[leaks],
            describe_leak,
        )
        problems.raise_if_any(TableError)

    merged = assembly.sparse_labels(
        position_of_row[_row_of_entry(labels)], labels.indices, (len(paths), labels.shape[1])
    )
    again = np.flatnonzero(first_of_row != np.arange(len(first_of_row)))
    of_repeated = np.isin(position_of_row, position_of_row[again])
    grown = np.diff(labels.indptr) < np.diff(merged.indptr)[position_of_row]
    num_grown = len(np.unique(position_of_row[of_repeated & grown]))
    findings.add_all(
        "rows that name an image again within its split, merged with the first that does "
        f"({num_grown} of the images have rows with different labels, and get all of them)",
        rows.lines[again],
        lambda i: f"{rows.images[again[i]]}, as line {rows.lines[first_of_row[again[i]]]}",
    )
    names = [rows.images[row] for row in first_row]
    return _Images(names, paths, rows.splits[first_row], rows.lines[first_row]), merged


def _labeled_data(
    classes: tuple[str, ...], images: _Images, labels: scipy.sparse.csr_array
) -> LabelledData:
    splits = {}
    for code, name in enumerate(SPLITS):
        positions = np.flatnonzero(images.splits == code)
        if len(positions):
            part = images.take(positions)
            splits[name] = assembly.file_examples(part.names, part.paths, labels[positions])
    return LabelledData(class_names=classes, splits=splits, origin="list layout")


SOURCE = Source(options=Options, defaults=PHOTOGRAPHS, load=load)
