"""What the values of labels mean: 0, 1, or unknown, which is −1 in integers and NaN in floats.

NumPy only.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from dbl_tf.label_arrays import OF_IDS

UNKNOWN_HINT = "an unknown label is −1 in integers and NaN in floating-point numbers"


def can_hold_unknown(dtype: Any) -> bool:
    """Whether numbers of a NumPy type can be unknown labels; booleans and unsigned ones cannot."""
    return np.dtype(dtype).kind in "if"


def is_unknown(labels: np.ndarray) -> np.ndarray:
    """Tells which labels are unknown.

    Args:
        labels: labels of any shape and numeric or boolean type.

    Returns:
        Whether each is −1 of a signed integer type or NaN of a floating-point one, bool.
    """
    labels = np.asarray(labels)
    if labels.dtype.kind == "i":
        return labels == -1
    return np.isnan(labels) if labels.dtype.kind == "f" else np.zeros(labels.shape, bool)


def positive_and_known(
    labels: np.ndarray, place: Callable[[tuple[int, ...]], str]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Separates multi-hot labels, some of which may be unknown.

    Args:
        labels: labels 0, 1 or unknown, of any shape and numeric or boolean type.
        place: a function from an index in `labels` to words for it, for the message.

    Returns:
        positive: whether each label is 1, bool.
        known: whether each label is known, bool; None if all are.

    Raises:
        ValueError: a label is neither 0 nor 1 nor unknown; the message says where.
    """
    labels = np.asarray(labels)
    if labels.dtype == bool:
        return labels, None
    positive = labels == 1
    known = positive | (labels == 0)
    if known.all():
        return positive, None
    wrong = ~(known | is_unknown(labels))
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise label_error(labels[index], place(index))
    return positive, known


def check_soft(labels: np.ndarray) -> bool:
    """Checks labels or soft targets, and tells whether all of them are known.

    Args:
        labels: numbers in [0, 1], or unknown, of any shape and numeric or boolean type.

    Raises:
        ValueError: a number is outside [0, 1] and not unknown; the message says where.
    """
    if labels.dtype.kind not in "biuf":
        labels = labels.astype(np.float32)
    # The extremes of numbers with a NaN among them are NaN, and compare as false.
    if not labels.size or (labels.min() >= 0 and labels.max() <= 1):
        return True
    wrong = ~((labels >= 0) & (labels <= 1) | is_unknown(labels))
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"labels must be in [0, 1], found {labels[index]} at {list(index)}; {UNKNOWN_HINT}"
        )
    return False


def label_error(value: Any, place: str) -> ValueError:
    """Returns the error for a label that is neither 0 nor 1 nor unknown."""
    hint = f". {OF_IDS}" if 1 < value < np.inf and value % 1 == 0 else ""
    return ValueError(f"labels must be 0 or 1, found {value} in {place}; {UNKNOWN_HINT}{hint}")
