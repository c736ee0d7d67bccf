"""Weights of the loss elements, made from labels: Eq. 3 and 4 of the paper, and older ways.

Written on array operators and the libraries' own functions, not on `keras.ops`, so that one
implementation serves the loss on any Keras backend and the input pipeline, whose tensors are
TensorFlow's whatever the backend.
"""

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def rebalanced_weights(
    labels: Any,
    class_counts: Sequence[float] | np.ndarray,
    alpha: float = 0.1,
    beta: float = 10.0,
    mu: float = 0.2,
) -> Any:
    """Re-balanced weights r̂ of class-aware re-sampling.

    `r_i = (1/n_i) / Σ_j (y_j/n_j)` for every class i, positive or negative (Eq. 3), smoothed to
    `r̂_i = α + σ(β (r_i − μ))` (Eq. 4).

    Args:
        labels: (B, C) multi-hot, or soft targets in [0, 1]: a NumPy array or nested list, or a
            TensorFlow, JAX or PyTorch tensor. Anything but float64 is computed in float32.
        class_counts: n_i, (C,), positive.
        alpha: α ≥ 0, an overall lift.
        beta: β > 0, the slope of the smoothing.
        mu: μ, where the smoothing is half way.

    Returns:
        r̂, (B, C), of the kind of `labels`, within [α, α + 1]. An example without labels has
        r → ∞, so r̂ = α + 1.

    Raises:
        ValueError: a class without examples, labels of another width, α or β out of range.

    Reference: Wu et al., ECCV 2020, section 3.1.

    Example:

    >>> rebalanced_weights([[1.0, 1.0, 0.0]], [100, 10, 50], mu=0.3).round(4).tolist()
    [[0.21, 1.0977, 0.3347]]
    """
    check_smoothing(alpha, beta, mu)
    labels, inverse_counts = _with_class_values(labels, 1.0 / positive_counts(class_counts, "r̂"))
    # Multiplied and summed, since a matrix product may be rounded to TF32 on a GPU.
    total = _row_sums(labels * inverse_counts)
    with np.errstate(divide="ignore", over="ignore"):  # r → ∞ and its limit are meant
        r = inverse_counts / total
        return alpha + 1.0 / (1.0 + _exp((mu - r) * beta))


def inverse_root_weights(labels: Any, class_counts: Sequence[float] | np.ndarray) -> Any:
    """Weights of smoothed re-weighting, √(N/n_i) scaled to a maximum of 1; the same for all labels.

    That is `w_i = √(min_j n_j / n_i)`, in which N no longer stands.

    Args:
        labels: (B, C), as of `rebalanced_weights`.
        class_counts: n_i, (C,), positive.

    Returns:
        w, (B, C), of the kind of `labels`, within (0, 1]; its rows are equal.

    Raises:
        ValueError: a class without examples, labels of another width.

    Reference: Wu et al., ECCV 2020, section 4.2, the method RW.

    Example:

    >>> inverse_root_weights([[1.0, 0.0]], [64, 4]).tolist()
    [[0.25, 1.0]]
    """
    counts = positive_counts(class_counts, "√(N/n)")
    labels, weights = _with_class_values(labels, np.sqrt(counts.min() / counts))
    return labels * 0.0 + weights


def class_balanced_weights(
    labels: Any, class_counts: Sequence[float] | np.ndarray, beta: float = 0.9
) -> Any:
    """Weights by the effective number of examples, one for each example.

    `w_i = (1 − β)/(1 − β^n_i)`, not normalised over the classes; an example has the mean of w over
    its labels, and 1 where it has none.

    Args:
        labels: (B, C), as of `rebalanced_weights`; a soft target counts as much as it holds.
        class_counts: n_i, (C,), positive.
        beta: β in [0, 1). The paper on Distribution-Balanced Loss compares with 0.9.

    Returns:
        (B, C), of the kind of `labels`, within (1 − β, 1]; its columns are equal.

    Raises:
        ValueError: a class without examples, labels of another width, β out of range.

    Reference: Cui et al., Class-Balanced Loss Based on Effective Number of Samples, CVPR 2019.

    Example:

    >>> class_balanced_weights([[1.0, 1.0], [0.0, 0.0]], [1, 2], beta=0.5).round(4).tolist()
    [[0.8333, 0.8333], [1.0, 1.0]]
    """
    if not 0 <= beta < 1:
        raise ValueError(f"beta must lie in [0, 1), got {beta}")
    counts = positive_counts(class_counts, "(1 − β)/(1 − β^n)")
    labels, weights = _with_class_values(labels, (1.0 - beta) / (1.0 - beta**counts))
    total = _row_sums(labels)
    without_labels = 0.0**total  # 1 where the sum is 0, else 0
    return labels * 0.0 + (_row_sums(labels * weights) + without_labels) / (total + without_labels)


def positive_counts(class_counts: Sequence[float] | np.ndarray, quantity: str) -> np.ndarray:
    """Class counts as float64 (C,), of which none is zero.

    Args:
        class_counts: n_i, (C,).
        quantity: what is made from them, for the message.

    Raises:
        ValueError: another shape, or a class without examples.
    """
    counts = np.asarray(class_counts, np.float64)
    if counts.ndim != 1 or counts.size == 0:
        raise ValueError(f"class_counts must be of shape (C,), got {counts.shape}")
    if not (counts > 0).all():
        raise ValueError(
            f"{quantity} is not defined for classes without training examples: class_counts is "
            f"{counts[~(counts > 0)].tolist()} at {np.flatnonzero(~(counts > 0)).tolist()}; leave "
            "them out, or pass dbl_tf.weighting.clamp_counts(class_counts, num_examples)"
        )
    return counts


def clamp_counts(class_counts: Sequence[float] | np.ndarray, num_examples: int) -> np.ndarray:
    """Class counts moved into [1, N − 1], where r and ν are defined; (C,)."""
    return np.clip(class_counts, 1, max(num_examples - 1, 1))


def check_smoothing(alpha: float, beta: float, mu: float) -> None:
    """Refuses values of α, β, μ for which Eq. 4 is no weight, with a ValueError."""
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta must be greater than 0, got {beta}")
    if not math.isfinite(mu):
        raise ValueError(f"mu must be finite, got {mu}")


def _with_class_values(labels: Any, values: np.ndarray) -> tuple[Any, Any]:
    """Labels as floating numbers, and values of the classes, (1, C), of their type."""
    labels = _as_floating(labels)
    if len(labels.shape) != 2 or labels.shape[1] != len(values):
        raise ValueError(
            f"labels must be of shape (B, {len(values)}), a column for each entry of "
            f"class_counts; got {tuple(labels.shape)}"
        )
    dtype = np.float64 if "float64" in str(labels.dtype) else np.float32
    return labels, _constant_like(labels, values.astype(dtype)[None, :])


def _as_floating(labels: Any) -> Any:
    if not hasattr(labels, "shape"):
        labels = np.asarray(labels)
    name = str(getattr(labels.dtype, "name", labels.dtype)).removeprefix("torch.")
    if name in ("float32", "float64"):
        return labels
    if _is_from("tensorflow", labels):
        return sys.modules["tensorflow"].cast(labels, "float32")
    return labels.float() if _is_from("torch", labels) else labels.astype(np.float32)


def _constant_like(tensor: Any, constant: np.ndarray) -> Any:
    # PyTorch's operators do not take NumPy arrays; the other kinds convert them.
    return tensor.new_tensor(constant) if _is_from("torch", tensor) else constant


def _row_sums(tensor: Any) -> Any:
    if _is_from("tensorflow", tensor):  # whose tensors have no such method
        return sys.modules["tensorflow"].reduce_sum(tensor, axis=1, keepdims=True)
    return tensor.sum(axis=1, keepdims=True)


def _exp(tensor: Any) -> Any:
    # Each library's own is several times faster than a power, the one exponential of operators.
    if _is_from("tensorflow", tensor):
        return sys.modules["tensorflow"].exp(tensor)
    if _is_from("torch", tensor):
        return tensor.exp()
    if _is_from("jax", tensor) or _is_from("jaxlib", tensor):
        return sys.modules["jax"].numpy.exp(tensor)
    return np.exp(tensor)


def _is_from(library: str, tensor: Any) -> bool:
    return type(tensor).__module__.partition(".")[0] == library
