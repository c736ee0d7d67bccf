"""Labels and scores as arrays, and computations over classes or examples in threads."""

import concurrent.futures
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dbl_tf import label_arrays, label_values
from dbl_tf.cores import usable_cores
from dbl_tf.statistics import is_sparse

# A thread copies this many columns at a time; one row of so many scores spans a few cache lines.
_CLASSES_PER_BLOCK = 16
# A thread works on rows of so many scores at a time.
_SCORES_PER_BLOCK = 1_000_000


def checked(
    labels: Any, scores: Any, num_dimensions: int = 2
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns which labels are 1, bool, the scores, and which labels are known; None if all are."""
    if num_dimensions == 2:
        labels = _dense(labels)
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != num_dimensions or labels.shape != scores.shape:
        shape = "(N, C)" if num_dimensions == 2 else "(N,)"
        raise ValueError(
            f"labels and scores must both be of shape {shape}, got {labels.shape} and "
            f"{scores.shape}"
        )
    positive, known = label_values.positive_and_known(labels, place)
    # The minimum of numbers with a NaN among them is NaN, and needs no array of its own.
    if scores.size and np.isnan(scores.min()):
        missing = np.isnan(scores)
        raise ValueError(
            f"scores hold {int(missing.sum())} NaN, the first in "
            f"{place(np.argwhere(missing)[0])}: the model's output is not finite"
        )
    return positive, scores, known


def _dense(labels: Any) -> np.ndarray:
    """Labels (N, C) in any container as an array."""
    labels = label_arrays.label_array(labels)
    return labels.toarray() if is_sparse(labels) else labels


def place(index: Sequence[int]) -> str:
    """Returns the words for a place in an array, such as "row 3, column 1"."""
    names = ("row", "column")
    return ", ".join(f"{name} {i}" for name, i in zip(names, index, strict=False))


def ratio(numerator: Any, denominator: Any) -> np.ndarray:
    """Returns ratios of counts; 0 where the denominator is."""
    denominator = np.asarray(denominator)
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), 0.0)


def over_classes(
    of_classes: Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray],
    labels: np.ndarray,
    values: np.ndarray,
    known: np.ndarray | None,
) -> np.ndarray:
    """Computes `of_classes` on blocks of classes, in threads, and joins its results.

    The blocks are copies (block, N), a class per row, since a column of a wide matrix is scattered
    in memory. `of_classes` may write to them, and returns an array (block, …).
    """

    def compute(start: int) -> np.ndarray:
        columns = slice(start, start + _CLASSES_PER_BLOCK)
        of_block = None if known is None else known[:, columns].T.copy()
        return of_classes(labels[:, columns].T.copy(), values[:, columns].T.copy(), of_block)

    # NumPy releases the interpreter lock while it sorts and calculates. No classes are a block too.
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as executor:
        starts = range(0, max(labels.shape[1], 1), _CLASSES_PER_BLOCK)
        return np.concatenate(list(executor.map(compute, starts)))


def over_ranked_classes(
    labels: Any, scores: Any, *of_ranked: Callable[[np.ndarray, np.ndarray], float]
) -> np.ndarray:
    """Computes functions of the results of `rank_scores` for each class, float64 (C, n)."""

    def of_classes(labels: np.ndarray, scores: np.ndarray, known: np.ndarray | None) -> np.ndarray:
        found = np.empty((len(labels), len(of_ranked)))
        for i in range(len(labels)):
            rows = slice(None) if known is None else known[i]
            ranked = rank_scores(labels[i, rows], scores[i, rows])
            found[i] = [compute(*ranked) for compute in of_ranked]
        return found

    return over_classes(of_classes, *checked(labels, scores))


def rank_scores(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the scores of the positives, and all scores (N,), which it sorts in place.

    Only the positives need a rank, so the scores can be sorted without their order, which is
    several times faster.
    """
    positives = np.sort(scores[labels])
    scores.sort()
    return positives, scores


def over_examples(
    of_rows: Callable[[np.ndarray, np.ndarray, np.ndarray | None], np.ndarray],
    labels: np.ndarray,
    scores: np.ndarray,
    known: np.ndarray | None,
) -> np.ndarray:
    """Computes `of_rows` on blocks of examples, in threads, and joins its results."""
    size = max(_SCORES_PER_BLOCK // max(labels.shape[1], 1), 1)

    def compute(start: int) -> np.ndarray:
        rows = slice(start, start + size)
        return of_rows(labels[rows], scores[rows], None if known is None else known[rows])

    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as executor:
        starts = range(0, max(len(labels), 1), size)
        return np.concatenate(list(executor.map(compute, starts)))


def mean_of_known(values: np.ndarray, known: np.ndarray | None) -> np.ndarray:
    """The mean of each row, over its known labels; NaN where there are none."""
    if known is None:
        return values.mean(axis=1)
    with np.errstate(invalid="ignore"):
        return values.sum(axis=1, where=known) / np.count_nonzero(known, axis=1)


def over_decisions(per_class: np.ndarray, labels: Any) -> Any:
    """The mean over all known decisions, from means (C, …) over those of each class."""
    labels = _dense(labels)
    if not label_values.can_hold_unknown(labels.dtype):
        return per_class.mean(axis=0)
    unknown = label_values.is_unknown(labels)
    if not unknown.any():
        return per_class.mean(axis=0)
    num_known = np.count_nonzero(~unknown, axis=0)
    some = num_known > 0
    return np.average(per_class[some], axis=0, weights=num_known[some]) if some.any() else math.nan
