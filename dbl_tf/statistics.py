"""Statistics of a multi-label training set: counts, co-occurrence, Eq. 1 and Eq. 2 of the paper.

NumPy and msgspec only, so that a data-preparation job can use it without a deep-learning framework.

Reference: Wu et al., Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
Datasets, ECCV 2020, section 3.1.
"""

import collections
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np

from dbl_tf import label_arrays, label_values, saved_json
from dbl_tf.messages import first_few, quoted

HEAD_MIN_COUNT = 100
TAIL_MAX_COUNT = 20  # exclusive: a class of 20 examples is medium
GROUP_NAMES = ("head", "medium", "tail")

_ROWS_PER_BLOCK = 1 << 16


class _SavedPairs(msgspec.Struct):
    i: list[saved_json.Count]
    j: list[saved_json.Count]
    count: list[saved_json.Count]


class _Saved(msgspec.Struct):
    num_examples: saved_json.Count
    class_names: list[str]
    class_counts: list[saved_json.Count]
    cooccurrence: _SavedPairs
    unknown_counts: list[saved_json.Count] | None = None  # not in files without unknown labels


_FORMAT = saved_json.Format(
    "dbl_tf.LabelStatistics",
    "label statistics",
    _Saved,
    "restore it from a copy, or remove it and start the command that wrote it again",
)


@dataclasses.dataclass(frozen=True, eq=False)
class LabelStatistics:
    """The statistics of the training labels that the loss, the sampler and the evaluation need.

    `from_labels` and `load` make them.

    Attributes:
        class_counts: the numbers n_i of examples that have class i, int64 (C,).
        num_examples: the number N of training examples.
        cooccurrence: the numbers n_(i∩j) of examples that have both i and j, int64 (C, C), with n_i
            on the diagonal.
        class_names: the C distinct names of the classes; "0", "1", … if none were given.
        unknown_counts: the numbers of examples of which it is not known whether they have class i,
            int64 (C,); None if all labels are known. Such examples count neither as having the
            class nor as not having it.

    Raises:
        ValueError: the parts do not describe one set of labels.

    Example:

    >>> statistics = LabelStatistics.from_labels([[1, 0], [1, 1], [1, 0]], ["person", "sheep"])
    >>> statistics.class_counts.tolist(), statistics.num_examples
    ([3, 1], 3)
    >>> statistics.instance_probability([[1, 0], [1, 1]]).round(4).tolist()
    [0.1667, 0.6667]
    """

    class_counts: np.ndarray
    num_examples: int
    cooccurrence: np.ndarray
    class_names: tuple[str, ...]
    unknown_counts: np.ndarray | None = None

    def __post_init__(self) -> None:
        counts, cooccurrence = self.class_counts, self.cooccurrence
        num_classes = len(self.class_names)
        if counts.shape != (num_classes,) or cooccurrence.shape != (num_classes, num_classes):
            raise ValueError(
                f"{num_classes} class names, class_counts of shape {counts.shape} and cooccurrence "
                f"of shape {cooccurrence.shape} do not belong together"
            )
        if not np.array_equal(np.diagonal(cooccurrence), counts):
            raise ValueError("the diagonal of cooccurrence must equal class_counts")
        if len(set(self.class_names)) != num_classes:
            repeated = sorted(n for n, k in collections.Counter(self.class_names).items() if k > 1)
            raise ValueError(
                "class names must be distinct, found more than once: "
                f"{first_few([quoted(name) for name in repeated])}"
            )
        if num_classes and (counts.min() < 0 or counts.max() > self.num_examples):
            raise ValueError(
                f"class_counts must lie in [0, {self.num_examples}], the number of examples; "
                f"found {counts.min()} to {counts.max()}"
            )
        shared_by_more = (cooccurrence < 0) | (cooccurrence > np.minimum(counts, counts[:, None]))
        if shared_by_more.any():
            i, j = np.argwhere(shared_by_more)[0]
            raise ValueError(
                f"cooccurrence of {self.class_names[i]!r} and {self.class_names[j]!r} must lie in "
                f"[0, {min(counts[i], counts[j])}], the examples of the rarer one; found "
                f"{cooccurrence[i, j]}"
            )
        unknown = self.unknown_counts
        if unknown is not None and (
            unknown.shape != (num_classes,)
            or (unknown < 0).any()
            or (counts + unknown > self.num_examples).any()
        ):
            raise ValueError(
                f"unknown_counts must be of shape ({num_classes},), not negative, and with "
                f"class_counts not more than the {self.num_examples} examples; got {unknown}"
            )

    @classmethod
    def from_labels(cls, labels: Any, class_names: Sequence[str] | None = None):
        """Counts the labels of a training set.

        Args:
            labels: the labels, multi-hot (N, C), of any numeric or boolean type, in a container
                that `dbl_tf.label_arrays.label_array` takes. −1 in integers and NaN in
                floating-point numbers stand for labels that are not known.
            class_names: the C distinct names of the classes.

        Raises:
            ValueError: a label is neither 0 nor 1 nor unknown (the message gives its row and
                class), the labels are not of shape (N, C), or the names do not fit the columns.
        """
        labels = label_arrays.label_array(labels)
        num_examples, num_classes = _shape_of(labels)
        if class_names is None:
            class_names = [str(i) for i in range(num_classes)]
        if len(class_names) != num_classes:
            raise ValueError(
                f"labels have {num_classes} columns and {len(class_names)} class names were given"
            )
        names = tuple(str(name) for name in class_names)
        if is_sparse(labels):
            rows, unknown = _checked_sparse(labels, names)
            cooccurrence = np.asarray((rows.T @ rows).todense())
        else:
            # float64 products of zeros and ones are exact up to 2^53 and run on BLAS.
            cooccurrence, unknown = np.zeros((num_classes, num_classes)), np.zeros(num_classes)
            for first_row, block in _row_blocks(labels):
                positive, known = label_values.positive_and_known(
                    block, functools.partial(_place, first_row, names)
                )
                positive = positive.astype(np.float64)
                cooccurrence += positive.T @ positive
                if known is not None:
                    unknown += np.count_nonzero(~known, axis=0)
        cooccurrence = cooccurrence.astype(np.int64)
        return cls(
            np.diagonal(cooccurrence).copy(),
            num_examples,
            cooccurrence,
            names,
            unknown.astype(np.int64) if unknown.any() else None,
        )

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.class_names)

    @property
    def known_counts(self) -> np.ndarray:
        """N_i, int64 (C,): the numbers of examples of which it is known whether they have class i.

        All of them are N if all labels are known.
        """
        of_all = np.full(self.num_classes, self.num_examples, np.int64)
        return of_all if self.unknown_counts is None else of_all - self.unknown_counts

    @property
    def examples_of_classes(self) -> "int | np.ndarray":
        """The `num_examples` of a loss: N if all labels are known, otherwise N_i, int64 (C,)."""
        return self.num_examples if self.unknown_counts is None else self.known_counts

    @property
    def priors(self) -> np.ndarray:
        """p_i = n_i/N_i, float64 (C,); 0 for a class of which nothing is known."""
        return self.class_counts / np.maximum(self.known_counts, 1)

    @functools.cached_property
    def conditional_probability(self) -> np.ndarray:
        """p(i given j) = n_(i∩j)/n_j, float64 (C, C), row i, column j; zero where n_j is zero.

        Fig. 5 of the paper plots its transpose.
        """
        return self.cooccurrence / np.maximum(self.class_counts, 1)

    @functools.cached_property
    def resampled_probability(self) -> np.ndarray:
        """p̂_i, float64 (C,): how often class i is seen after class-aware re-sampling (Eq. 1).

        The mean runs over the classes that have examples.
        """
        return self.conditional_probability.sum(axis=1) / max(self._num_nonempty, 1)

    def instance_probability(self, labels: Any) -> np.ndarray:
        """Computes P^I(x), the share of example x in the draws of class-aware re-sampling (Eq. 2).

        Args:
            labels: the labels of training examples, multi-hot (B, C), as in `from_labels`. Unknown
                ones do not count.

        Returns:
            The probabilities, float64 (B,); zero for an example without labels. They sum to 1 over
            the whole training set.

        Raises:
            ValueError: the labels have another number of classes, or one of them is of a class
                without training examples.
        """
        labels = label_arrays.label_array(labels)
        _, num_classes = _shape_of(labels)
        if num_classes != self.num_classes:
            raise ValueError(
                f"labels have {num_classes} columns, the statistics {self.num_classes} classes"
            )
        share = np.where(self.class_counts == 0, 0.0, 1.0 / np.maximum(self.class_counts, 1))
        share /= max(self._num_nonempty, 1)
        if is_sparse(labels):
            rows = labels
            if label_values.can_hold_unknown(labels.dtype):
                rows, _ = _checked_sparse(labels, self.class_names)
            self._check_not_empty(rows)
            return np.asarray(rows @ share, np.float64)
        parts = [np.zeros(0)]
        for first_row, block in _row_blocks(labels):
            positive, _ = label_values.positive_and_known(
                block, functools.partial(_place, first_row, self.class_names)
            )
            self._check_not_empty(positive)
            parts.append(positive.astype(np.float64) @ share)
        return np.concatenate(parts)

    def _check_not_empty(self, positive: Any) -> None:
        """Refuses positives, (B, C), of classes without training examples."""
        empty = self.class_counts == 0
        if empty.any() and (absent := positive[:, np.flatnonzero(empty)].sum()) != 0:
            raise ValueError(
                f"{int(absent)} labels are of classes without training examples: "
                f"{first_few([quoted(self.class_names[i]) for i in np.flatnonzero(empty)])}"
            )

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """Class indices of "head" (n ≥ 100), "medium" (20 ≤ n < 100) and "tail" (n < 20)."""
        counts = self.class_counts
        members = (
            counts >= HEAD_MIN_COUNT,
            (counts >= TAIL_MAX_COUNT) & (counts < HEAD_MIN_COUNT),
            counts < TAIL_MAX_COUNT,
        )
        return {
            name: np.flatnonzero(member) for name, member in zip(GROUP_NAMES, members, strict=True)
        }

    def save(self, path: str | os.PathLike) -> None:
        """Writes the statistics as JSON, with the non-zero co-occurrences only.

        The file is flushed to the disk, and a process killed at any moment leaves the old file or
        the new one.

        Args:
            path: the file to write or to replace.

        Raises:
            OSError: the file cannot be written; the error names it, and nothing is left of it.
        """
        rows, columns = np.nonzero(np.triu(self.cooccurrence))
        content = {
            "num_examples": self.num_examples,
            "class_names": list(self.class_names),
            "class_counts": self.class_counts.tolist(),
            "cooccurrence": {
                "i": rows.tolist(),
                "j": columns.tolist(),
                "count": self.cooccurrence[rows, columns].tolist(),
            },
        }
        if self.unknown_counts is not None:
            content["unknown_counts"] = self.unknown_counts.tolist()
        _FORMAT.write(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike):
        """Reads a file that `save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file holds something other than label statistics, or was changed. The
                message names the file and the field.
        """
        content = _FORMAT.read(path)
        num_classes, pairs = len(content.class_names), content.cooccurrence
        try:
            if not len(pairs.i) == len(pairs.j) == len(pairs.count):
                raise ValueError("the lists of cooccurrence are not equally long")
            if max([*pairs.i, *pairs.j], default=0) >= num_classes:
                raise ValueError(f"cooccurrence has a position beyond the {num_classes} classes")
            places = list(zip(pairs.i, pairs.j, strict=True))
            if any(i > j for i, j in places) or len(set(places)) < len(places):
                raise ValueError("cooccurrence has a pair of classes twice, or not in their order")
            cooccurrence = np.zeros((num_classes, num_classes), np.int64)
            cooccurrence[pairs.i, pairs.j] = pairs.count
            cooccurrence[pairs.j, pairs.i] = pairs.count
            counts = np.asarray(content.class_counts, np.int64)
            unknown = content.unknown_counts
            return cls(
                counts,
                content.num_examples,
                cooccurrence,
                tuple(content.class_names),
                None if unknown is None else np.asarray(unknown, np.int64),
            )
        except ValueError as error:
            raise _FORMAT.unusable(path, error) from error

    @property
    def _num_nonempty(self) -> int:
        return int(np.count_nonzero(self.class_counts))


def is_sparse(labels: Any) -> bool:
    """Whether `labels` is a `scipy.sparse` matrix or array (told without importing SciPy)."""
    return hasattr(labels, "tocsr")


def _shape_of(labels: Any) -> tuple[int, int]:
    num_examples, num_classes = labels.shape
    return int(num_examples), int(num_classes)


def _row_blocks(labels: Any) -> Iterator[tuple[int, np.ndarray]]:
    """Blocks of rows, so that a wide table of bytes is never held as float64 whole."""
    labels = np.asarray(labels)
    for first_row in range(0, len(labels), _ROWS_PER_BLOCK):
        yield first_row, labels[first_row : first_row + _ROWS_PER_BLOCK]


def _checked_sparse(labels: Any, class_names: Sequence[str]) -> tuple[Any, np.ndarray]:
    """Returns the positives as float64 CSR, and the number of unknown labels of each class."""
    rows = labels.tocsr()
    can_be_unknown = label_values.can_hold_unknown(rows.dtype)
    is_integer = rows.dtype.kind == "i"
    rows = rows.astype(np.float64)
    rows.sum_duplicates()
    unknown = np.zeros(len(class_names), np.int64)
    wrong = (rows.data != 0) & (rows.data != 1)
    if wrong.any() and can_be_unknown:
        is_unknown = rows.data == -1 if is_integer else np.isnan(rows.data)
        wrong &= ~is_unknown
        unknown = np.bincount(rows.indices[is_unknown], minlength=len(class_names))
        rows.data[is_unknown] = 0
    if wrong.any():
        entry = int(np.flatnonzero(wrong)[0])
        row = int(np.searchsorted(rows.indptr, entry, side="right")) - 1
        place = _place(0, class_names, (row, rows.indices[entry]))
        raise label_values.label_error(rows.data[entry], place)
    return rows, unknown


def _place(first_row: int, class_names: Sequence[str], index: Sequence[int]) -> str:
    return f"row {first_row + index[0]}, class {class_names[index[1]]!r}"
