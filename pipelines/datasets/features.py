"""Your own features: embeddings of images, text or sound, on which a head is trained."""

import dataclasses
import os
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse
from absl import logging

from dbl_tf import models
from dbl_tf.messages import first_few
from dbl_tf.settings import setting
from pipelines.datasets import table
from pipelines.datasets.source import Defaults, LoadOptions, Source
from pipelines.examples import Examples, FeatureRows, LabelledData
from pipelines.findings import Findings

ARRAYS = ("features", "labels", "split", "class_names")
_SUFFIX = ".npz"
# Enough rows at once for NumPy, and few enough to leave a memory map on the disk.
_ROWS_AT_ONCE = 8192


class FeaturesError(ValueError):
    """A file of features cannot be used."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(table.Options):
    """Options of features.

    Raises:
        ValueError: the options of a table go with an `.npz` file, or those of images with features.
    """

    features: str | None = setting(
        None,
        "File of features, .npy (N, F), with a row for each row of the table of --examples. It is "
        "memory-mapped. An .npz file of --examples holds the features itself.",
        is_path=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        of_table = ("class_names", "label_separator", "features")
        if self.is_archive:
            for name in of_table:
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} goes with a table, and {self.examples} holds arrays")
        elif self.features is None:
            raise ValueError(
                f"features must name the .npy file of the rows of {self.examples}; or examples "
                f"must be an {_SUFFIX} file with the arrays {', '.join(ARRAYS)}"
            )
        if self.images_dir is not None:
            raise ValueError("images_dir goes with images; these examples are features")

    @property
    def is_archive(self) -> bool:
        """Whether `examples` is an archive of arrays and not a table."""
        return self.examples.lower().endswith(_SUFFIX)

    @property
    def data_name(self) -> str:
        """The name of the file of examples, without its suffix."""
        return os.path.splitext(os.path.basename(self.examples))[0]


def load(
    options: Options, load_options: LoadOptions, splits: Sequence[str] | None = None
) -> LabelledData:
    """Reads features with their labels, and checks them.

    An `.npz` archive holds `features` (N, F), numbers; `labels` (N, C), 0 or 1; `split` (N,),
    train, val or test; `class_names` (C,); and, if the examples have names, `names` (N,). Otherwise
    `examples` is a table as `pipelines.datasets.table` reads it, whose column `image` holds the
    names, and `features` is an array of its rows. Pickled objects are never read.

    Args:
        options: the options of features.
        load_options: the options that all sources have, of which these data need none.
        splits: the splits to load. None loads all splits, which must include train and test.

    Raises:
        FeaturesError: an array is missing, or has another shape or other values than it must; the
            message gives the file, the first rows and what would be right.
        table.TableError: the table cannot be used.
    """
    if options.is_archive:
        path = table.existing_file(options.examples, "the archive of examples")
        rows = _read_archive(path)
    else:
        rows = _read_table(options)
    needed = splits or ("train", "test")
    counts = {name: int(np.count_nonzero(rows.split == name)) for name in table.SPLITS}
    if absent := [name for name in needed if not counts[name]]:
        found = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        raise FeaturesError(
            f"{options.examples} has no {' and no '.join(absent)} examples; "
            f"{' and '.join(needed)} are needed, and it has {found or 'none'}"
        )
    kept = [name for name in table.SPLITS if counts[name] and (splits is None or name in splits)]
    features = FeatureRows.of(rows.features)
    data = {}
    for name in kept:
        positions = np.flatnonzero(rows.split == name)
        data[name] = Examples(
            names=[rows.names[i] for i in positions.tolist()],
            labels=rows.labels[positions],
            features=features.take(positions),
        )
    sizes = ", ".join(f"{len(examples)} {name}" for name, examples in data.items())
    logging.info(
        "%s: %s examples of %d features; %d classes",
        options.examples,
        sizes,
        features.num_features,
        len(rows.class_names),
    )
    return LabelledData(class_names=rows.class_names, splits=data, flip_probability=0.0)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """All rows of a file: features (N, F), labels (N, C), splits (N,) and names (N,)."""

    class_names: tuple[str, ...]
    features: np.ndarray
    labels: scipy.sparse.csr_array
    split: np.ndarray
    names: Sequence[str]


def _read_archive(path: str) -> _Rows:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: _array(file, name, path) for name in file.files}
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        if isinstance(error, FeaturesError):
            raise
        raise FeaturesError(
            f"{path} is not an archive of arrays, as np.savez writes it: {error}"
        ) from error
    if missing := [name for name in ARRAYS if name not in arrays]:
        raise FeaturesError(
            f"{path} has no array {' and no '.join(missing)}; it must hold {', '.join(ARRAYS)}, "
            f"and holds {', '.join(arrays) or 'none'}"
        )
    features, labels = arrays["features"], arrays["labels"]
    class_names = _texts(arrays["class_names"], "class_names", path)
    split = np.array(_texts(arrays["split"], "split", path), dtype=str)
    _check_shapes(path, arrays)
    names = (
        _texts(arrays["names"], "names", path)
        if "names" in arrays
        else tuple(f"row {i}" for i in range(len(features)))
    )
    _check_class_names(path, class_names)
    problems = Findings(path, "row")
    unknown = np.flatnonzero(~np.isin(split, table.SPLITS))
    problems.add_all(
        f"rows of a split that is none of {', '.join(table.SPLITS)}",
        unknown,
        lambda i: repr(str(split[unknown[i]])),
    )
    _check_labels(labels, class_names, problems)
    _check_features(features, problems)
    problems.raise_if_any(FeaturesError)
    return _Rows(class_names, features, scipy.sparse.csr_array(labels != 0), split, names)


def _read_table(options: Options) -> _Rows:
    assert options.features is not None
    path = table.existing_file(options.features, "the file of features")
    rows = table.read_rows(options)
    try:
        features = np.load(path, mmap_mode="r", allow_pickle=False)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise FeaturesError(
            f"{path} is not an array of numbers, as np.save writes it: {error}"
        ) from error
    if not isinstance(features, np.ndarray):
        features.close()
        raise FeaturesError(f"{path} holds several arrays; it must be an .npy file of one")
    _check_shapes(path, {"features": features})
    if len(features) != len(rows.names):
        raise FeaturesError(
            f"{path} has {len(features)} rows, and {options.examples} has {len(rows.names)}; there "
            "must be a row of features for each row of the table, in the same order"
        )
    problems = Findings(path, "row")
    _check_features(features, problems)
    problems.raise_if_any(FeaturesError)
    return _Rows(rows.class_names, features, rows.labels, rows.splits, rows.names)


def _array(file: Mapping[str, np.ndarray], name: str, path: str) -> np.ndarray:
    try:
        return file[name]
    except ValueError as error:
        if "pickle" not in str(error):
            raise
        raise FeaturesError(
            f"array {name} of {path} holds Python objects, which are not read because they could "
            "run a program; save it as numbers or text, such as array.astype(str)"
        ) from None


def _texts(array: np.ndarray, name: str, path: str) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind not in "US":
        raise FeaturesError(
            f"array {name} of {path} must be one line of text values; it is {array.dtype} "
            f"{array.shape}"
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
    of_rows = ("features", "labels", "split", "names")
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
    repeated = sorted({name for name in class_names if class_names.count(name) > 1})
    if repeated:
        raise FeaturesError(f"class_names of {path} repeats {first_few(repeated)}")
    if blank := [i for i, name in enumerate(class_names) if not name.strip()]:
        raise FeaturesError(f"class_names of {path} is blank at {first_few(blank)}")


def _check_labels(labels: np.ndarray, class_names: Sequence[str], problems: Findings) -> None:
    rows, columns = np.nonzero((labels != 0) & (labels != 1))
    problems.add_all(
        "labels that are neither 0 nor 1",
        rows,
        lambda i: f"{labels[rows[i], columns[i]]} for {class_names[columns[i]]}",
    )


def _check_features(features: np.ndarray, problems: Findings) -> None:
    if features.dtype.kind != "f":
        return
    found: list[tuple[int, int]] = []
    for start in range(0, len(features), _ROWS_AT_ONCE):
        rows, columns = np.nonzero(~np.isfinite(features[start : start + _ROWS_AT_ONCE]))
        _, first = np.unique(rows, return_index=True)
        found += zip((start + rows[first]).tolist(), columns[first].tolist(), strict=True)
    problems.add_all(
        "rows with features that are not finite numbers",
        [row for row, _ in found],
        lambda i: f"{features[found[i]]} in column {found[i][1]}",
    )


SOURCE = Source(
    options=Options,
    defaults=Defaults(
        backbone=models.NO_BACKBONE, backbone_weights="none", image_size=None, freeze_backbone=True
    ),
    load=load,
)
