"""Your own features: embeddings of images, text or sound, on which a head is trained."""

import collections
import dataclasses
import zipfile
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse
from absl import logging

from dbl_tf import label_values
from dbl_tf.messages import first_few
from pipelines import locations
from pipelines.datasets import table
from pipelines.datasets.options import FEATURES_ARRAYS, FeaturesOptions
from pipelines.datasets.source import LoadOptions
from pipelines.examples import Examples, FeatureRows, LabelledData
from pipelines.findings import Findings
from pipelines.tables import text

_OPTIONAL = "names"
# Enough numbers at once for NumPy, and few enough to leave a memory map on the disk.
_NUMBERS_AT_ONCE = 1 << 22
# What `numpy.load` raises for files that are damaged, encrypted or of another kind.
_UNREADABLE = (
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


class FeaturesError(ValueError):
    """A file of features cannot be used."""


def load(
    options: FeaturesOptions, load_options: LoadOptions, splits: Sequence[str] | None = None
) -> LabelledData:
    """Reads features with their labels, and checks them.

    An `.npz` archive holds `features` (N, F), numbers; `labels` (N, C), 0 or 1, or unknown, which
    is -1 in integers and NaN in floating-point numbers; `split` (N,), train, val or test;
    `class_names` (C,); and, if the examples have names, `names` (N,). Otherwise
    `examples` is a table as `pipelines.datasets.table` reads it, whose column `image` holds the
    names, and `features` is an array of its rows. Names are all different, because a repeated one
    would be one example in two rows, perhaps in two splits. Pickled objects are never read.

    One message at the end logs sizes, arrays and columns that are not used, examples without
    labels, and classes without examples in a split.

    Args:
        options: the options of features.
        load_options: the options that all sources have, of which these data need none.
        splits: the splits to load. None loads all splits, which must include train and test.

    Raises:
        FeaturesError: an array is missing, or has another shape or other values than it must; the
            message gives the file, the first rows and what would be right.
        table.TableError: the table cannot be used.
    """
    findings = Findings(options.examples, "row")
    if options.is_archive:
        path = text.existing_file(options.examples, "the archive of examples")
        rows = _read_archive(path, findings, needs_split=not load_options.test_fraction)
    else:
        rows = _read_table(options, findings)
    needed = load_options.needed(splits)
    counts = _count(rows.split)
    if absent := [name for name in needed if not counts[name]]:
        found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        hint = "; --test_fraction=0.2 sets a fifth of train aside" if "test" in absent else ""
        raise FeaturesError(
            f"{options.examples} has no {' and no '.join(absent)} examples; "
            f"{' and '.join(needed)} are needed, and it has {found or 'none'}{hint}"
        )
    if load_options.test_fraction:
        load_options.check_no_test(options.examples, counts["test"])
        train = np.flatnonzero(rows.split == "train")
        split = rows.split.astype(f"<U{max(map(len, table.SPLITS))}")
        split[train[load_options.test_share(rows.labels[train])]] = "test"
        rows = dataclasses.replace(rows, split=split)
        counts = _count(split)
    kept = [name for name in table.SPLITS if counts[name] and (splits is None or name in splits)]
    features = FeatureRows.of(rows.features)
    data = {}
    for name in kept:
        positions = np.flatnonzero(rows.split == name)
        data[name] = Examples(
            names=[rows.names[i] for i in positions.tolist()],
            labels=rows.labels[positions],
            unknown=None if rows.unknown is None else rows.unknown[positions],
            features=features.take(positions),
        )
    _log(options.examples, rows, data, findings)
    return LabelledData(
        class_names=rows.class_names,
        splits=data,
        flip_probability=0.0,
        origin="archive of features" if options.is_archive else "features of a table",
    )


def _count(split: np.ndarray) -> dict[str, int]:
    return {name: int(np.count_nonzero(split == name)) for name in table.SPLITS}


@dataclasses.dataclass(frozen=True)
class _Rows:
    """All rows of a file: features (N, F), labels (N, C), splits (N,) and names (N,).

    `unknown` are the labels that are not known, (N, C), or None.
    """

    class_names: tuple[str, ...]
    features: np.ndarray
    labels: scipy.sparse.csr_array
    split: np.ndarray
    names: Sequence[str]
    unknown: scipy.sparse.csr_array | None


def _log(path: str, rows: _Rows, splits: Mapping[str, Examples], findings: Findings) -> None:
    table.add_doubles(findings, rows.class_names)
    level = logging.WARNING if findings else logging.INFO
    unlabeled = np.flatnonzero(np.diff(rows.labels.indptr) == 0)
    findings.add_all(
        "examples without labels",
        unlabeled,
        lambda i: f"{rows.names[unlabeled[i]]} ({rows.split[unlabeled[i]]})",
    )
    if rows.unknown is not None:
        findings.add_count("labels that are not known, and are left out", rows.unknown.nnz)
    for name, examples in splits.items():
        absent = np.flatnonzero(examples.labels.sum(axis=0) == 0)
        findings.add_names(
            f"classes without {name} examples", [rows.class_names[c] for c in absent]
        )
    sizes = ", ".join(f"{len(examples):,} {name}" for name, examples in splits.items())
    title = (
        f"{path}: {sizes} examples of {rows.features.shape[1]:,} features; "
        f"{len(rows.class_names):,} classes"
    )
    logging.log(level, "%s", findings.text(title))


def _read_archive(path: str, findings: Findings, *, needs_split: bool) -> _Rows:
    with locations.open_binary(path) as binary:
        is_archive = zipfile.is_zipfile(binary)
    if not is_archive:
        raise FeaturesError(
            f"{path} is not an archive of arrays, as np.savez writes it: {_kind_of_file(path)}"
        )
    try:
        with (
            locations.open_binary(path) as binary,
            np.load(binary, allow_pickle=False) as file,
        ):
            missing = [name for name in FEATURES_ARRAYS if name not in file.files]
            if not needs_split and "split" in missing:
                missing.remove("split")
            if missing:
                hint = f" ({table.WITHOUT_SPLIT})" if "split" in missing else ""
                raise FeaturesError(
                    f"{path} has no array {' and no '.join(missing)}; it must hold "
                    f"{', '.join(FEATURES_ARRAYS)}, and holds "
                    f"{', '.join(file.files) or 'none'}{hint}"
                )
            known = [name for name in (*FEATURES_ARRAYS, _OPTIONAL) if name in file.files]
            arrays = {name: _array(file, name, path) for name in known}
            findings.add_names(
                "arrays not used", [name for name in file.files if name not in known]
            )
    except FeaturesError:
        raise
    except MemoryError as error:
        raise FeaturesError(
            f"the arrays of {path} do not fit into the memory: {error}; write the features with "
            "np.save to a file of their own, which --features memory-maps"
        ) from error
    except _UNREADABLE as error:
        raise FeaturesError(
            f"{path} is not an archive of arrays, as np.savez writes it: {error}"
        ) from error
    class_names = _texts(arrays["class_names"], "class_names", path)
    split = None
    if "split" in arrays:
        split = np.array(_texts(arrays["split"], "split", path), dtype=str)
    given_names = _texts(arrays[_OPTIONAL], _OPTIONAL, path) if _OPTIONAL in arrays else None
    _check_shapes(path, arrays)
    features, labels = arrays["features"], arrays["labels"]
    if split is None:
        split = np.full(len(features), table.SPLITS[0])
    names = given_names or tuple(f"row {i}" for i in range(len(features)))
    _check_class_names(path, class_names)
    problems = Findings(path, "row")
    unknown = np.flatnonzero(~np.isin(split, table.SPLITS))
    problems.add_all(
        f"rows of a split that is none of {', '.join(table.SPLITS)}",
        unknown,
        lambda i: repr(str(split[unknown[i]])),
    )
    _check_names(names, problems)
    _check_labels(labels, class_names, problems)
    _check_features(features, problems)
    problems.raise_if_any(FeaturesError)
    unknown = label_values.is_unknown(labels)
    positive = labels == 1
    if not positive.any():
        raise FeaturesError(f"{path} has no label in any of its {len(labels)} rows")
    if features.dtype.kind == "f" and features.dtype.itemsize > 4:
        features = features.astype(np.float32)
    return _Rows(
        class_names,
        features,
        scipy.sparse.csr_array(positive),
        split,
        names,
        scipy.sparse.csr_array(unknown) if unknown.any() else None,
    )


def _read_table(options: FeaturesOptions, findings: Findings) -> _Rows:
    assert options.features is not None
    path = text.existing_file(options.features, "the file of features")
    rows = table.read_rows(options, findings)
    features = _memory_map(path)
    _check_shapes(path, {"features": features})
    if len(features) != len(rows.names):
        raise FeaturesError(
            f"{path} has {len(features)} rows, and {options.examples} has {len(rows.names)}; there "
            "must be a row of features for each row of the table, in the same order"
        )
    problems = Findings(path, "row")
    _check_features(features, problems)
    problems.raise_if_any(FeaturesError)
    return _Rows(rows.class_names, features, rows.labels, rows.splits, rows.names, rows.unknown)


def _memory_map(path: str) -> np.ndarray:
    with open(path, "rb") as file:
        is_array = file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX
    if not is_array:
        raise FeaturesError(
            f"{path} is not an array of numbers, as np.save writes it: {_kind_of_file(path)}"
        )
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        if "Python objects" in str(error):
            raise _objects_error(f"the array of {path}") from None
        raise FeaturesError(
            f"{path} is not an array of numbers, as np.save writes it: {error}"
        ) from error


def _kind_of_file(path: str) -> str:
    with locations.open_binary(path) as file:
        start = file.read(len(np.lib.format.MAGIC_PREFIX))
        is_archive = zipfile.is_zipfile(file)
    if not start:
        return "it is empty"
    if start == np.lib.format.MAGIC_PREFIX:
        return "it holds one array, as np.save writes it"
    if is_archive:
        return "it is an archive of arrays, as np.savez writes it"
    if start.startswith(b"PK"):
        return "it is an archive of which the end is missing"
    return f"it is a file of another kind, which starts with {start!r}"


def _array(file: Mapping[str, np.ndarray], name: str, path: str) -> np.ndarray:
    try:
        array = file[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise _objects_error(f"array {name} of {path}") from None
    if not isinstance(array, np.ndarray):  # NumPy returns the bytes of other files in an archive
        raise FeaturesError(f"{name} in {path} is not an array, as np.savez writes it")
    return array


def _objects_error(what: str) -> FeaturesError:
    return FeaturesError(
        f"{what} holds Python objects, which are not read because they could run a program; save "
        "it as numbers or text, such as array.astype(str)"
    )


def _texts(array: np.ndarray, name: str, path: str) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise FeaturesError(
            f"array {name} of {path} must be a list of texts, such as array.astype(str) of one "
            f"dimension; it is {array.dtype} {array.shape}"
        )
    if array.dtype.kind == "S":
        try:
            return tuple(value.decode() for value in array.tolist())
        except UnicodeDecodeError as error:
            raise FeaturesError(f"array {name} of {path} is not UTF-8: {error}") from error
    return tuple(array.tolist())


def _check_shapes(path: str, arrays: Mapping[str, np.ndarray]) -> None:
    features = arrays["features"]
    for name in ("features", "labels"):
        array = arrays.get(name)
        if array is not None and (array.ndim != 2 or array.dtype.kind not in "biuf"):
            raise FeaturesError(
                f"array {name} of {path} must be a matrix of numbers, with a row for each example; "
                f"it is {array.dtype} {array.shape}"
            )
    if not features.size:
        raise FeaturesError(f"array features of {path} is empty: {features.shape}")
    of_rows = ("features", "labels", "split", _OPTIONAL)
    known = {name: len(arrays[name]) for name in of_rows if name in arrays}
    if len(set(known.values())) > 1:
        sizes = ", ".join(f"{name} {n}" for name, n in known.items())
        raise FeaturesError(
            f"the arrays of {path} must have as many rows as there are examples, and have {sizes}"
        )
    if "labels" in arrays and arrays["labels"].shape[1] != len(arrays["class_names"]):
        raise FeaturesError(
            f"array labels of {path} has {arrays['labels'].shape[1]} columns, and class_names has "
            f"{len(arrays['class_names'])} names; there must be a column for each class"
        )


def _check_class_names(path: str, class_names: Sequence[str]) -> None:
    if not class_names:
        raise FeaturesError(f"class_names of {path} is empty; there must be at least one class")
    repeated = [name for name, count in collections.Counter(class_names).items() if count > 1]
    if repeated:
        raise FeaturesError(f"class_names of {path} repeats {first_few(repeated)}")
    if blank := [i for i, name in enumerate(class_names) if not name.strip()]:
        raise FeaturesError(f"class_names of {path} is blank at {first_few(blank)}")


def _check_names(names: Sequence[str], problems: Findings) -> None:
    first_row: dict[str, int] = {}
    again = [i for i, name in enumerate(names) if first_row.setdefault(name, i) != i]
    problems.add_all(
        "rows whose name another row has",
        again,
        lambda i: f"{names[again[i]]}, as row {first_row[names[again[i]]]}",
    )


def _check_labels(labels: np.ndarray, class_names: Sequence[str], problems: Findings) -> None:
    rows, columns = np.nonzero((labels != 0) & (labels != 1) & ~label_values.is_unknown(labels))
    problems.add_all(
        f"labels that are neither 0 nor 1 ({label_values.UNKNOWN_HINT})",
        rows,
        lambda i: f"{labels[rows[i], columns[i]]} for {class_names[columns[i]]}",
    )


def _check_features(features: np.ndarray, problems: Findings) -> None:
    if features.dtype.kind != "f":
        return
    found: list[tuple[int, int]] = []
    rows_at_once = max(1, _NUMBERS_AT_ONCE // features.shape[1])
    for start in range(0, len(features), rows_at_once):
        magnitudes = np.abs(features[start : start + rows_at_once])
        # This is false for NaN too.
        rows, columns = np.nonzero(~(magnitudes <= np.finfo(np.float32).max))
        _, first = np.unique(rows, return_index=True)
        found += zip((start + rows[first]).tolist(), columns[first].tolist(), strict=True)
    problems.add_all(
        "rows with features that are not finite numbers in float32",
        [row for row, _ in found],
        lambda i: f"{features[found[i]]} in column {found[i][1]}",
    )
