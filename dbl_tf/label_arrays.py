"""Labels in the containers that people have them in, as multi-hot arrays.

Imports no library of tensors: a tensor of TensorFlow is one only where TensorFlow is imported.
"""

import numbers
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from dbl_tf.libraries import library_of
from dbl_tf.messages import SHOWN, first_few

_WANTED = "labels must be of shape (N, C), with 0 or 1 for each example and class"
# What to do with lists of class ids, for messages.
OF_IDS = (
    "sklearn.preprocessing.MultiLabelBinarizer(classes=CLASSES).fit_transform(labels) makes such "
    "labels of lists of classes"
)


def label_array(labels: Any) -> Any:
    """Returns labels as an array of numbers or booleans, or as a `scipy.sparse` matrix.

    Args:
        labels: the labels, multi-hot (N, C): an array, a nested list, a data frame, a tensor, a
            sparse tensor, or a ragged one whose rows are equally long; or a `scipy.sparse` matrix.

    Raises:
        ValueError: the labels are no numbers, or have rows of different lengths, such as lists of
            class ids. The message says how to convert them.

    Example:

    >>> label_array([[0, 2], [1]])
    Traceback (most recent call last):
    ValueError: labels must be of shape (N, C), with 0 or 1 for each example and class; got \
rows of 1 to 2 entries. sklearn.preprocessing.MultiLabelBinarizer(classes=CLASSES)\
.fit_transform(labels) makes such labels of lists of classes
    """
    if hasattr(labels, "tocsr"):
        return labels
    if _is_sparse_tensor(labels):
        import scipy.sparse

        row, column = labels.indices.numpy().T
        shape = tuple(labels.dense_shape.numpy())
        return scipy.sparse.coo_array((labels.values.numpy(), (row, column)), shape).tocsr()
    if _is_ragged_tensor(labels):
        labels = _dense_of_ragged(labels)
    if library_of(labels) == "torch":
        labels = labels.detach().cpu().numpy()
    if isinstance(labels, list | tuple):
        lengths = {len(row) for row in labels if hasattr(row, "__len__")}
        if len(lengths) > 1:
            raise _not_multi_hot(f"rows of {min(lengths)} to {max(lengths)} entries")
    array = np.asarray(labels)
    if array.dtype.kind in "OUS":
        if array.ndim == 2 and hasattr(labels, "columns"):
            _check_columns(array, [str(name) for name in labels.columns])
        array = _numbers_of(array)
    if array.ndim == 1 and len(array) and array.dtype.kind in "iu":
        raise ValueError(
            f"{_WANTED}; got {array.shape}. Of the one class of each example, numpy.eye(C)[labels] "
            "makes such labels"
        )
    if array.ndim != 2:
        raise ValueError(f"{_WANTED}; got {array.shape}")
    return array


def batch_labels(labels: Any, num_classes: int | None = None) -> Any:
    """Returns the labels of a batch as a dense tensor or an array, without converting tensors.

    Args:
        labels: the labels, (B, C): a tensor of any library, or what `label_array` takes.
        num_classes: C, which a sparse tensor does not know while a function is traced.

    Raises:
        ValueError: see `label_array`; or a ragged tensor is the input of a function that is being
            traced, where the lengths of its rows are not known.
    """
    if _is_sparse_tensor(labels):
        dense = sys.modules["tensorflow"].sparse.to_dense(labels)
        if dense.shape[1:].is_fully_defined():
            return dense
        return sys.modules["tensorflow"].ensure_shape(dense, (None, num_classes))
    if _is_ragged_tensor(labels):
        return _dense_of_ragged(labels)
    is_array = hasattr(labels, "dtype") and not hasattr(labels, "tocsr")
    if is_array and not (isinstance(labels, np.ndarray) and labels.dtype.kind in "OUS"):
        return labels
    labels = label_array(labels)
    return labels.toarray() if hasattr(labels, "tocsr") else labels


def _dense_of_ragged(labels: Any) -> Any:
    if labels.ragged_rank != 1:
        raise _not_multi_hot(f"a ragged tensor of shape {tuple(labels.shape)}")
    if sys.modules["tensorflow"].is_symbolic_tensor(labels.flat_values):
        raise ValueError(
            f"{_WANTED}; got a ragged tensor. If its rows are equally long, convert it in the "
            f"input pipeline by labels.to_tensor(); otherwise, {OF_IDS}"
        )
    lengths = labels.row_lengths().numpy()
    if lengths.size and lengths.min() != lengths.max():
        raise _not_multi_hot(f"rows of {lengths.min()} to {lengths.max()} entries")
    return labels.to_tensor()


def _check_columns(array: np.ndarray, names: Sequence[str]) -> None:
    """Refuses columns of a data frame that hold text or lists, and says which ones to pass."""
    kinds = (str, bytes, list, tuple, set)
    first = {}
    for c in range(len(names)):
        found = [entry for entry in array[:, c] if isinstance(entry, kinds)]
        if found:
            first[c] = found[0]
    others = [repr(name) for c, name in enumerate(names) if c not in first]
    if not first or (not others and set(map(str, array.flat)) <= {"0", "1"}):
        return
    column = min(first)
    more = ", …" if len(others) > SHOWN else ""
    of_classes = f"table[[{', '.join(others[:SHOWN])}{more}]]"
    remedy = f"Pass the columns of the classes alone, such as {of_classes}; or, " if others else ""
    raise ValueError(
        f"{_WANTED}; got a data frame whose column {names[column]!r} holds {_kind(first[column])}, "
        f"such as {first[column]!r}; its columns are {first_few([*map(repr, names)])}. "
        f"{remedy}{OF_IDS}"
    )


def _numbers_of(array: np.ndarray) -> np.ndarray:
    """An array of objects or texts as numbers, if all of its entries are some."""
    if array.ndim == 1 and len(array) and isinstance(array[0], str | bytes | set | list | tuple):
        raise _not_multi_hot(f"for each example {_kind(array[0])}")
    if array.ndim != 2:
        raise _not_multi_hot(f"an array of shape {array.shape} of {array.dtype}")
    for (row, column), entry in np.ndenumerate(array):
        if isinstance(entry, numbers.Real | np.bool_):
            continue
        shown = str(entry) if isinstance(entry, str) else entry
        got = f"{shown!r} in row {row}, column {column}"
        if isinstance(entry, str | bytes):
            if set(np.unique(array.astype(str))) <= {"0", "1"}:
                raise ValueError(
                    f"{_WANTED}; got the text {got}. Convert them by "
                    "numpy.asarray(labels).astype(int)"
                )
            raise _not_multi_hot(f"the text {got}")
        raise ValueError(
            f"{_WANTED}; got {got}. Of a pandas data frame, table.to_numpy(float, na_value=0) "
            "makes missing entries labels that are absent, and na_value=numpy.nan unknown ones"
        )
    are_whole = all(isinstance(entry, numbers.Integral | np.bool_) for entry in array.flat)
    return array.astype(np.int64 if are_whole else np.float64)


def _kind(entry: Any) -> str:
    return f"a {'text' if isinstance(entry, str | bytes) else type(entry).__name__}"


def _not_multi_hot(got: str) -> ValueError:
    return ValueError(f"{_WANTED}; got {got}. {OF_IDS}")


def _is_sparse_tensor(labels: Any) -> bool:
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(labels, tf.SparseTensor)


def _is_ragged_tensor(labels: Any) -> bool:
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(labels, tf.RaggedTensor)
