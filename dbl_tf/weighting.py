"""Weights of loss elements, computed from labels: Eq. 3 and 4 of the paper, and earlier schemes.

The functions use array operators and each library's own functions instead of `keras.ops`. A single
implementation thus serves both the loss, on any Keras backend, and the input pipeline, whose
tensors belong to TensorFlow whatever the backend is.

A label that is not known, −1 in integers and NaN in floating-point numbers, counts as absent: the
sums over the labels of an example run over the known positives.
"""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dbl_tf import label_arrays
from dbl_tf.libraries import library_of
from dbl_tf.messages import first_few
from dbl_tf.parameters import DEFAULTS, check_parameters


def rebalanced_weights(
    labels: Any,
    class_counts: Sequence[float] | np.ndarray,
    alpha: float = DEFAULTS.alpha,
    beta: float = DEFAULTS.beta,
    mu: float = DEFAULTS.mu,
    *,
    all_known: bool = False,
) -> Any:
    """Computes the re-balanced weights r̂ for class-aware re-sampling.

    `r_i = (1/n_i) / Σ_j (y_j/n_j)` for every class i, positive or negative (Eq. 3), is smoothed to
    `r̂_i = α + σ(β (r_i − μ))` (Eq. 4).

    Args:
        labels: multi-hot labels or soft targets in [0, 1], shape (B, C): a NumPy array, a nested
            list, or a TensorFlow, JAX or PyTorch tensor, TensorFlow's sparse ones included. Every
            type except float64 is computed in float32. −1 in integers and NaN stand for labels that
            are not known.
        class_counts: the numbers n_i of training examples of each class, shape (C,), positive.
        alpha: the lower bound α ≥ 0 of the weights.
        beta: the slope β > 0 of the smoothing.
        mu: the midpoint μ of the smoothing.
        all_known: whether no label is unknown, so that none needs to be looked for.

    Returns:
        r̂, shape (B, C), within [α, α + 1], as an array of the same library as `labels`. An example
        without known labels has r → ∞ and therefore r̂ = α + 1. An unknown label has the weight of
        its class in the example; its loss is to be left out.

    Raises:
        ValueError: if a class has no examples, `labels` and `class_counts` differ in the number of
            classes, or a parameter is out of range.

    Reference: Wu et al., ECCV 2020, section 3.1.

    Example:

    >>> rebalanced_weights([[1.0, 1.0, 0.0]], [100, 10, 50], mu=0.3).round(4).tolist()
    [[0.21, 1.0977, 0.3347]]
    """
    check_parameters(alpha=alpha, beta=beta, mu=mu)
    labels, inverse_counts = _with_class_values(
        labels, 1.0 / positive_counts(class_counts, "r̂"), all_known
    )
    # An explicit sum of products, because a GPU may round a matrix product to TF32.
    total = _row_sums(labels * inverse_counts)
    with np.errstate(divide="ignore", over="ignore"):  # r → ∞ and its limit are intended
        r = inverse_counts / total
        return alpha + 1.0 / (1.0 + _exp((mu - r) * beta))


def inverse_root_weights(
    labels: Any, class_counts: Sequence[float] | np.ndarray, *, all_known: bool = False
) -> Any:
    """Computes smoothed class weights, √(N/n_i) scaled to a maximum of 1.

    N cancels out: `w_i = √(min_j n_j / n_i)`. Labels do not change the weights, only their shape.

    Args:
        labels: the labels or targets, shape (B, C), as for `rebalanced_weights`.
        class_counts: the numbers n_i of training examples of each class, shape (C,), positive.
        all_known: as for `rebalanced_weights`.

    Returns:
        w, shape (B, C), within (0, 1], as an array of the same library as `labels`. All rows are
        equal.

    Raises:
        ValueError: if a class has no examples, or `labels` and `class_counts` differ in the number
            of classes.

    Reference: Wu et al., ECCV 2020, section 4.2, the method RW.

    Example:

    >>> inverse_root_weights([[1.0, 0.0]], [64, 4]).tolist()
    [[0.25, 1.0]]
    """
    counts = positive_counts(class_counts, "√(N/n)")
    labels, weights = _with_class_values(labels, np.sqrt(counts.min() / counts), all_known)
    return labels * 0.0 + weights


def class_balanced_weights(
    labels: Any,
    class_counts: Sequence[float] | np.ndarray,
    beta: float = DEFAULTS.effective_number_beta,
    *,
    all_known: bool = False,
) -> Any:
    """Computes a weight for each example from the effective number of examples of its classes.

    The weight of a class is `w_i = (1 − β)/(1 − β^n_i)`, not normalized over the classes. The
    weight of an example is the mean of w over its known labels, or 1 if it has none.

    Args:
        labels: the labels or targets, shape (B, C), as for `rebalanced_weights`. Soft targets
            enter the mean in proportion to their value.
        class_counts: the numbers n_i of training examples of each class, shape (C,), positive.
        beta: the base β of the effective number, in [0, 1). Wu et al. compare with 0.9.
        all_known: as for `rebalanced_weights`.

    Returns:
        The weights, shape (B, C), within (1 − β, 1], as an array of the same library as `labels`.
        All columns are equal.

    Raises:
        ValueError: if a class has no examples, `labels` and `class_counts` differ in the number of
            classes, or β is out of range.

    Reference: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019.

    Example:

    >>> class_balanced_weights([[1.0, 1.0], [0.0, 0.0]], [1, 2], beta=0.5).round(4).tolist()
    [[0.8333, 0.8333], [1.0, 1.0]]
    """
    check_parameters(effective_number_beta=beta, arguments={"effective_number_beta": "beta"})
    counts = positive_counts(class_counts, "(1 − β)/(1 − β^n)")
    labels, weights = _with_class_values(labels, (1.0 - beta) / (1.0 - beta**counts), all_known)
    total = _row_sums(labels)
    without_labels = 0.0**total  # 1 where the sum is 0, else 0
    return labels * 0.0 + (_row_sums(labels * weights) + without_labels) / (total + without_labels)


REWEIGHTINGS: dict[str, Callable[..., Any]] = {
    "inverse_root": inverse_root_weights,
    "class_balanced": class_balanced_weights,
}


def positive_counts(class_counts: Sequence[float] | np.ndarray, quantity: str) -> np.ndarray:
    """Returns class counts as float64 (C,), after checking that none of them is zero.

    Args:
        class_counts: the numbers n_i of training examples of each class, shape (C,).
        quantity: the quantity to be computed from the counts, for the message.

    Raises:
        ValueError: if the shape is not (C,), or a class has no examples.
    """
    counts = checked_counts(class_counts)
    undefined = np.flatnonzero(~(counts > 0))
    if undefined.size:
        found = first_few([f"class {i} has {counts[i]:g}" for i in undefined])
        raise ValueError(
            f"{quantity} is not defined for classes without training examples: {found}; leave "
            "these classes out, or pass dbl_tf.weighting.clamp_counts(class_counts, num_examples)"
        )
    return counts


def checked_counts(class_counts: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns class counts as float64 (C,), after checking that they are numbers of examples.

    Args:
        class_counts: the numbers n_i of training examples of each class, shape (C,).

    Raises:
        ValueError: if they are no numbers, are not of shape (C,), or are shares of the examples.
    """
    if hasattr(class_counts, "class_counts"):
        raise ValueError("class_counts must be of shape (C,); pass statistics.class_counts")
    wanted = "class_counts must be the numbers of examples of each class, of shape (C,)"
    try:
        counts = np.asarray(class_counts, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{wanted}; got {class_counts!r:.80}") from None
    if counts.ndim != 1 or counts.size == 0:
        labels = "; LabelStatistics.from_labels(labels).class_counts counts the labels of examples"
        raise ValueError(f"{wanted}; got {counts.shape}{labels if counts.ndim == 2 else ''}")
    if (counts <= 1).all() and (counts % 1 > 0).any():
        raise ValueError(
            f"{wanted}; got shares of the examples, from {counts.min():.3g} to {counts.max():.3g}. "
            "Multiply them by the number of examples"
        )
    return counts


def clamp_counts(
    class_counts: Sequence[float] | np.ndarray, num_examples: int | np.ndarray
) -> np.ndarray:
    """Returns class counts, (C,), clamped to [1, N − 1], where r and ν are defined.

    Args:
        class_counts: the numbers n_i of training examples of each class, shape (C,).
        num_examples: the number N of training examples, or N_i of each class, shape (C,).
    """
    return np.clip(class_counts, 1, np.maximum(np.asarray(num_examples) - 1, 1))


def _with_class_values(labels: Any, values: np.ndarray, all_known: bool) -> tuple[Any, Any]:
    """Labels as floating-point numbers, and values of the classes, (1, C), of the same type.

    Unknown labels become 0.
    """
    labels = label_arrays.batch_labels(labels, len(values))
    can_be_unknown = not all_known and _can_be_unknown(labels)
    labels = _as_floating(labels)
    if len(labels.shape) != 2 or labels.shape[1] != len(values):
        raise ValueError(
            f"labels must be of shape (B, {len(values)}), with a column for each entry of "
            f"class_counts; got {tuple(labels.shape)}"
        )
    if can_be_unknown:
        labels = _without_unknown(labels)
    dtype = np.float64 if "float64" in str(labels.dtype) else np.float32
    return labels, _constant_like(labels, values.astype(dtype)[None, :])


def _dtype_name(labels: Any) -> str:
    return str(getattr(labels.dtype, "name", labels.dtype)).removeprefix("torch.")


def _can_be_unknown(labels: Any) -> bool:
    """Whether the type of labels can hold −1 or NaN."""
    return not hasattr(labels, "dtype") or not _dtype_name(labels).startswith(("bool", "uint"))


def _without_unknown(labels: Any) -> Any:
    """Floating-point labels with 0 in place of −1 and NaN, neither of which is ≥ 0."""
    if library_of(labels) == "tensorflow":
        tf = sys.modules["tensorflow"]
        return tf.where(labels >= 0, labels, tf.zeros_like(labels))
    if library_of(labels) == "torch":
        return labels.where(labels >= 0, labels.new_zeros(()))
    if library_of(labels) == "jax":
        return sys.modules["jax"].numpy.where(labels >= 0, labels, 0)
    return np.where(labels >= 0, labels, labels.dtype.type(0))


def _as_floating(labels: Any) -> Any:
    name = _dtype_name(labels)
    if name in ("float32", "float64"):
        return labels
    if library_of(labels) == "tensorflow":
        return sys.modules["tensorflow"].cast(labels, "float32")
    return labels.float() if library_of(labels) == "torch" else labels.astype(np.float32)


def _constant_like(tensor: Any, constant: np.ndarray) -> Any:
    # PyTorch's operators do not accept NumPy arrays; the other libraries convert them.
    return tensor.new_tensor(constant) if library_of(tensor) == "torch" else constant


def _row_sums(tensor: Any) -> Any:
    if library_of(tensor) == "tensorflow":  # TensorFlow's tensors have no method `sum`
        return sys.modules["tensorflow"].reduce_sum(tensor, axis=1, keepdims=True)
    return tensor.sum(axis=1, keepdims=True)


def _exp(tensor: Any) -> Any:
    # Each library's own exponential is several times faster than a power of e, which is the only
    # exponential that array operators offer.
    if library_of(tensor) == "tensorflow":
        return sys.modules["tensorflow"].exp(tensor)
    if library_of(tensor) == "torch":
        return tensor.exp()
    if library_of(tensor) == "jax":
        return sys.modules["jax"].numpy.exp(tensor)
    return np.exp(tensor)
