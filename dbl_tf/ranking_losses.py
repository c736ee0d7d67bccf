"""Losses that compare the labels of an example with one another: two-way loss and ZLPR."""

from typing import Any

import keras
from keras import ops

from dbl_tf import replicas
from dbl_tf.losses import MultiLabelLoss
from dbl_tf.parameters import DEFAULTS, check_parameters

# Stands for log 0, finite so that no gradient becomes NaN.
_LOG_ZERO = -1e30


def _log_sum_exp(weights: Any, values: Any, axis: int) -> Any:
    """`log Σ w e^v` along an axis; `_LOG_ZERO` where no weight is positive."""
    kept = ops.where(weights > 0, values, ops.full_like(values, _LOG_ZERO))
    highest = ops.stop_gradient(ops.max(kept, axis=axis, keepdims=True))
    total = ops.sum(weights * ops.exp(kept - highest), axis=axis)
    some = total > 0
    found = ops.log(ops.where(some, total, ops.ones_like(total))) + ops.squeeze(highest, axis)
    return ops.where(some, found, ops.full_like(found, _LOG_ZERO))


def _negatives(y_true: Any, is_known: Any) -> Any:
    """1 − y, and 0 for labels that are not known."""
    negatives = 1.0 - y_true
    return negatives if is_known is None else ops.where(is_known, negatives, 0.0)


class RowLoss(MultiLabelLoss):
    """Base class of losses that have a value for each example, (B,), and none for each element.

    Subclasses compute the values in `_values`.

    Args:
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`. "mean" is the mean over the B examples.
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.
    """

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Returns the reduced loss; the class documents the arguments."""
        if sample_weight is not None:
            sample_weight = ops.convert_to_tensor(sample_weight, dtype=self.dtype)
            shape = tuple(sample_weight.shape)
            if len(shape) == 2 and shape[1] == 1:
                sample_weight = ops.squeeze(sample_weight, -1)
            elif len(shape) != 1:
                raise ValueError(
                    f"{type(self).__name__} compares the labels of an example with one another and "
                    "has no loss of elements that could be weighted: sample_weight must be of "
                    f"shape (B,) or (B, 1); got {shape}"
                )
        return super().__call__(y_true, y_pred, sample_weight)


@keras.saving.register_keras_serializable(package="dbl_tf")
class ZLPRLoss(RowLoss):
    """Zero-bounded log-sum-exp and pairwise rank-based loss (ZLPR).

    For each example, with its positives P and negatives N,

    `ℓ = log(1 + Σ_(i∈N) e^(z_i)) + log(1 + Σ_(i∈P) e^(−z_i))`,

    and L is the mean over the B examples. It ranks each positive above each negative, and both on
    their side of 0: a label is given where z > 0. Soft labels y weigh the sums, e^(z_i) by 1 − y_i
    and e^(−z_i) by y_i, as in the soft form of the publication.

    Args:
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`. "mean" is the mean over the B examples.
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.

    Call arguments:
        y_true: the labels, multi-hot or soft in [0, 1], shape (B, C). Unknown ones, −1 in integers
            and NaN in floating-point numbers, are in neither sum.
        y_pred: the logits, shape (B, C).
        sample_weight: weights of examples, (B,) or (B, 1).

    Raises:
        ValueError: if `y_true` and `y_pred` differ in shape, or weights of elements are passed.

    Reference: Su et al., ZLPR: A Novel Loss for Multi-label Classification, arXiv 2208.02955.

    Example:

    >>> round(float(ZLPRLoss()([[1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]])), 4)  # log 2 + log 3
    1.7918
    """

    def __init__(
        self,
        *,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "zlpr_loss",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)

    def _values(self, y_true: Any, logits: Any, is_known: Any) -> Any:
        negative = _log_sum_exp(_negatives(y_true, is_known), logits, axis=1)
        positive = _log_sum_exp(y_true, -logits, axis=1)
        return ops.softplus(negative) + ops.softplus(positive)


@keras.saving.register_keras_serializable(package="dbl_tf")
class TwoWayLoss(RowLoss):
    """Two-way loss, which ranks the labels of each example and the examples of each label.

    For a set of positives P and negatives N,

    `ℓ(P, N) = softplus(T₋ log Σ_(i∈N) e^(z_i/T₋) + T₊ log Σ_(i∈P) e^(−z_i/T₊))`,

    which is 0 where one of them is empty. L is the mean of ℓ over the rows of the batch (examples)
    that have a positive, plus the mean over the columns (labels) that have one. Soft labels y weigh
    the sums, by 1 − y_i and y_i.

    The columns are those of the whole batch. Under a strategy of TensorFlow with several replicas
    they are put together from all of them, so that L and its gradient are those of one device.

    The formula is that of the authors' released program, which takes both means over the same
    temperatures; the printed article was not at hand.

    Args:
        ways: "both", or "samples" for the rows alone.
        temperature_positive: the temperature T₊ > 0 of the positives.
        temperature_negative: the temperature T₋ > 0 of the negatives.
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`. "mean" gives L. None gives values (B,)
            whose mean is L: a row's share of the first mean, plus the second.
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.

    Call arguments:
        y_true: the labels, multi-hot or soft in [0, 1], shape (B, C). Unknown ones, −1 in integers
            and NaN in floating-point numbers, are in neither sum.
        y_pred: the logits, shape (B, C).
        sample_weight: with ways="samples", weights of examples, (B,) or (B, 1). With "both", the
            examples share the loss of a column, and there can be none.

    Raises:
        ValueError: if an argument is out of range; if `y_true` and `y_pred` differ in shape; if
            weights are passed that the loss cannot apply.

    Reference: Kobayashi, Two-Way Multi-Label Loss, CVPR 2023.

    Example:

    >>> loss = TwoWayLoss(ways="samples")
    >>> round(float(loss([[1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0]])), 4)  # log(1 + 2)
    1.0986
    """

    def __init__(
        self,
        *,
        ways: str = DEFAULTS.ways,
        temperature_positive: float = DEFAULTS.temperature_positive,
        temperature_negative: float = DEFAULTS.temperature_negative,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "two_way_loss",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)
        self.ways = ways
        self.temperature_positive = float(temperature_positive)
        self.temperature_negative = float(temperature_negative)
        check_parameters(
            ways=self.ways,
            temperature_positive=self.temperature_positive,
            temperature_negative=self.temperature_negative,
        )

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Returns the reduced loss; the class documents the arguments."""
        if sample_weight is not None and self.ways == "both":
            raise ValueError(
                'TwoWayLoss(ways="both") takes no sample_weight, since the examples of a batch '
                'share the loss of each label; use ways="samples" with weights of examples'
            )
        return super().__call__(y_true, y_pred, sample_weight)

    def _values(self, y_true: Any, logits: Any, is_known: Any) -> Any:
        rows = self._softplus(*self._log_sums(y_true, logits, is_known, axis=1))
        _, num_replicas = replicas.this_replica()
        has_positive = ops.cast(ops.any(y_true > 0, axis=1), rows.dtype)
        num_rows = ops.sum(replicas.gather(ops.sum(has_positive)))
        # The mean over the batch, of which each replica takes its part, divides by all rows.
        num_rows_here = ops.cast(ops.shape(y_true)[0], rows.dtype)
        values = rows * (num_rows_here * num_replicas / ops.maximum(num_rows, 1.0))
        if self.ways == "samples":
            return values
        # log Σ e^z over the batch is that over the replicas of what each of them has found.
        found = replicas.gather(ops.stack(self._log_sums(y_true, logits, is_known, axis=0)))
        negative, positive = ops.unstack(
            _log_sum_exp(ops.ones_like(found), found, axis=0), num=2, axis=0
        )
        present = ops.cast(positive > _LOG_ZERO / 2, rows.dtype)
        columns = self._softplus(negative, positive)
        return values + ops.sum(columns) / ops.maximum(ops.sum(present), 1.0)

    def _log_sums(self, y_true: Any, logits: Any, is_known: Any, axis: int) -> tuple[Any, Any]:
        """`log Σ e^(z/T₋)` over the negatives and `log Σ e^(−z/T₊)` over the positives."""
        negatives = _negatives(y_true, is_known)
        negative = _log_sum_exp(negatives, logits / self.temperature_negative, axis)
        positive = _log_sum_exp(y_true, -logits / self.temperature_positive, axis)
        return negative, positive

    def _softplus(self, negative: Any, positive: Any) -> Any:
        return ops.softplus(
            self.temperature_negative * negative + self.temperature_positive * positive
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal loss."""
        return {
            **super().get_config(),
            "ways": self.ways,
            "temperature_positive": self.temperature_positive,
            "temperature_negative": self.temperature_negative,
        }
