"""Elementwise losses for labels that are missing or wrong, and poly-1 cross-entropy.

Functions of labels and logits come first, followed by the Keras classes over them.
"""

from typing import Any

import keras
from keras import ops

from dbl_tf.losses import ElementwiseLoss, MultiLabelLoss, asymmetric_negatives
from dbl_tf.parameters import DEFAULTS, check_parameters


def _focal_margin(logits: Any, margin: float, focal_gamma: float) -> Any:
    """`−(1 − p_m)^γ log p_m` with p_m = σ(z − m), the positives of Hill and SPLC."""
    q = logits - margin
    positive = ops.softplus(-q)
    # (1 − σ(q))^γ = exp(−γ softplus(q)), and softplus(q) = q + softplus(−q).
    return ops.exp(-focal_gamma * (q + positive)) * positive if focal_gamma else positive


def hill_crossentropy(
    targets: Any,
    logits: Any,
    logit_margin: float = DEFAULTS.logit_margin,
    focal_gamma: float = DEFAULTS.focal_gamma,
    hill_lambda: float = DEFAULTS.hill_lambda,
) -> Any:
    """Computes the Hill loss per element.

    With p = σ(z) and p_m = σ(z − m),

    `ℓ = −y (1 − p_m)^γ log p_m + (1 − y) (λ − p) p²`.

    Args:
        targets: the targets y in [0, 1], floating-point, shape (B, C).
        logits: the logits z, floating-point, shape (B, C).
        logit_margin: the margin m of the positives.
        focal_gamma: the focusing exponent γ ≥ 0 of the positives.
        hill_lambda: λ ≥ 1. At 1.5, the gradient of a negative vanishes as p approaches 1.

    Returns:
        ℓ, shape (B, C). Values and gradients are finite for |z| up to 1e4.

    Reference: see `HillLoss`.
    """
    p = ops.sigmoid(logits)
    positive = _focal_margin(logits, logit_margin, focal_gamma)
    return targets * positive + (1.0 - targets) * (hill_lambda - p) * p * p


def splc_crossentropy(
    targets: Any,
    logits: Any,
    correction_threshold: float = DEFAULTS.correction_threshold,
    logit_margin: float = DEFAULTS.logit_margin,
    focal_gamma: float = DEFAULTS.focal_gamma,
    corrects: bool = True,
) -> Any:
    """Computes the loss of self-paced loss correction (SPLC) per element.

    With p = σ(z), p_m = σ(z − m), `ℓ₊ = −(1 − p_m)^γ log p_m` and `ℓ₋ = −p^γ log(1 − p)`,

    `ℓ = y ℓ₊ + (1 − y) (ℓ₋ if p ≤ τ else ℓ₊)`.

    Args:
        targets: the targets y in [0, 1], floating-point, shape (B, C).
        logits: the logits z, floating-point, shape (B, C).
        correction_threshold: the probability τ above which a negative counts as a positive.
        logit_margin: the margin m of the positives.
        focal_gamma: the focusing exponent γ ≥ 0.
        corrects: whether negatives above τ count as positives.

    Returns:
        ℓ, shape (B, C). Values and gradients are finite for |z| up to 1e4.

    Reference: see `SPLCLoss`.
    """
    positive = _focal_margin(logits, logit_margin, focal_gamma)
    negative = ops.softplus(logits)
    if focal_gamma:
        negative = ops.exp(-focal_gamma * (negative - logits)) * negative
    if corrects:
        is_missing = ops.sigmoid(logits) > correction_threshold
        negative = ops.where(is_missing, positive, negative)
    return targets * positive + (1.0 - targets) * negative


def robust_asymmetric_crossentropy(
    targets: Any,
    logits: Any,
    gamma_negative: float = DEFAULTS.gamma_negative,
    gamma_positive: float = DEFAULTS.robust_gamma_positive,
    clip: float = DEFAULTS.clip,
    hill_lambda: float = DEFAULTS.hill_lambda,
    linear: float = DEFAULTS.robust_linear,
    quadratic: float = DEFAULTS.robust_quadratic,
) -> Any:
    """Computes the robust asymmetric loss per element.

    With p = σ(z) and p_c = max(p − c, 0),

    `ℓ₊ = −(1 − p)^γ₊ (log p + a₁ (1 − p) + a₂ (1 − p)²)`,
    `ℓ₋ = −(λ − p) p_c^γ₋ log(1 − p_c)`, and `ℓ = y ℓ₊ + (1 − y) ℓ₋`.

    Args:
        targets: the targets y in [0, 1], floating-point, shape (B, C).
        logits: the logits z, floating-point, shape (B, C).
        gamma_negative: the focusing exponent γ₋ ≥ 0 of the negatives.
        gamma_positive: the focusing exponent γ₊ ≥ 0 of the positives.
        clip: the shift c in [0, 1). Negatives with a lower probability have a loss of zero.
        hill_lambda: λ ≥ 1 of the factor of the negatives.
        linear: the coefficient a₁.
        quadratic: the coefficient a₂.

    Returns:
        ℓ, shape (B, C). Values and gradients are finite for |z| up to 1e4.

    Reference: see `RobustAsymmetricLoss`.
    """
    p, rest = ops.sigmoid(logits), ops.sigmoid(-logits)
    positive = ops.softplus(-logits)
    factor = ops.exp(-gamma_positive * (logits + positive)) if gamma_positive else 1.0
    positive = factor * (positive - linear * rest - quadratic * rest * rest)
    negative = (hill_lambda - p) * asymmetric_negatives(logits, gamma_negative, clip)
    return targets * positive + (1.0 - targets) * negative


def poly1_crossentropy(
    targets: Any, logits: Any, poly_epsilon: float = DEFAULTS.poly_epsilon
) -> Any:
    """Computes binary cross-entropy plus ε (1 − p_t) per element.

    p_t is the probability σ(z) of a positive, and 1 − σ(z) of a negative; a soft target takes the
    mean of both.

    Args:
        targets: the targets y in [0, 1], floating-point, shape (B, C).
        logits: the logits z, floating-point, shape (B, C).
        poly_epsilon: the coefficient ε ≥ −1.

    Returns:
        ℓ, shape (B, C). Values and gradients are finite for |z| up to 1e4.

    Reference: see `Poly1Loss`.
    """
    positive = ops.softplus(-logits) + poly_epsilon * ops.sigmoid(-logits)
    negative = ops.softplus(logits) + poly_epsilon * ops.sigmoid(logits)
    return targets * positive + (1.0 - targets) * negative


@keras.saving.register_keras_serializable(package="dbl_tf")
class HillLoss(ElementwiseLoss):
    """Hill loss, which pulls less on negatives that may be positives without a label.

    `L = 1/(B·C) Σ ℓ` with the elements of `hill_crossentropy`: positives have a focal loss with a
    margin, and the loss of a negative flattens out as its probability approaches 1.

    Formula and defaults are those of the authors' released program, which sums over the elements;
    the printed article was not at hand.

    Args:
        logit_margin: the margin m of the logits of positives.
        focal_gamma: the focusing exponent γ ≥ 0 of the positives.
        hill_lambda: λ ≥ 1 of the factor λ − p of the negatives.
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`. "mean" is the mean over all B·C elements.
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.

    Call arguments:
        y_true: the labels, multi-hot or soft in [0, 1], shape (B, C).
        y_pred: the logits, shape (B, C).
        sample_weight: weights of examples, (B,) or (B, 1), or weights of elements, (B, C).

    Raises:
        ValueError: if an argument is out of range, or `y_true` and `y_pred` differ in shape.

    Reference: Zhang et al., Simple and Robust Loss Design for Multi-Label Learning with Missing
    Labels, arXiv 2112.07368.

    Example:

    >>> round(float(HillLoss()([[1.0, 0.0]], [[1.0, 0.0]])), 4)  # log 2 / 4 and 1/4, halved
    0.2116
    """

    def __init__(
        self,
        *,
        logit_margin: float = DEFAULTS.logit_margin,
        focal_gamma: float = DEFAULTS.focal_gamma,
        hill_lambda: float = DEFAULTS.hill_lambda,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "hill_loss",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)
        self.logit_margin = float(logit_margin)
        self.focal_gamma = float(focal_gamma)
        self.hill_lambda = float(hill_lambda)
        check_parameters(
            logit_margin=self.logit_margin,
            focal_gamma=self.focal_gamma,
            hill_lambda=self.hill_lambda,
        )

    def _elements(self, y_true: Any, logits: Any) -> Any:
        return hill_crossentropy(
            y_true, logits, self.logit_margin, self.focal_gamma, self.hill_lambda
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal loss."""
        return {
            **super().get_config(),
            "logit_margin": self.logit_margin,
            "focal_gamma": self.focal_gamma,
            "hill_lambda": self.hill_lambda,
        }


@keras.saving.register_keras_serializable(package="dbl_tf")
class SPLCLoss(ElementwiseLoss):
    """Self-paced loss correction (SPLC), for training labels of which positives are missing.

    `L = 1/(B·C) Σ ℓ` with the elements of `splc_crossentropy`: once the model gives a negative a
    probability above τ, it counts as a positive that was not labeled.

    A network that has hardly been trained finds few missing labels, so that the publication
    corrects only after the first epoch. A loss is a function of labels and logits and does not know
    the step; `warmup_steps` says how long it takes the labels as they are, and whoever runs the
    steps tells it when that is over. `dbl_tf.training.fit` does so by itself, and `Model.fit` with
    the callback `dbl_tf.LossWarmup(loss)`, on every backend; both go on with the count of steps of
    a checkpoint, so that a training that was stopped switches at the same step as one that never
    was. In a loop of your own, call `at_step`. A loss with a warm-up that nobody has told a step
    refuses to be computed. Without a warm-up it corrects from the first step.

    Two differences from the authors' released program: it sums over the elements, and it leaves out
    the margin for negatives that count as positives. The docstring of that program gives both the
    same ℓ₊, as here; the printed article was not at hand.

    Args:
        correction_threshold: the probability τ in [0, 1] above which a negative counts as a
            positive.
        logit_margin: the margin m of the logits of positives.
        focal_gamma: the focusing exponent γ ≥ 0.
        warmup_steps: the number of training steps in which the labels are taken as they are.
        corrects: whether the loss corrects now; None if nobody has told it a step yet. Without a
            warm-up it does.
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`. "mean" is the mean over all B·C elements.
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.

    Call arguments:
        y_true: the labels, multi-hot or soft in [0, 1], shape (B, C).
        y_pred: the logits, shape (B, C).
        sample_weight: weights of examples, (B,) or (B, 1), or weights of elements, (B, C).

    Raises:
        ValueError: if an argument is out of range; if `y_true` and `y_pred` differ in shape; if a
            loss with a warm-up is called that does not know the step.

    Reference: Zhang et al., Simple and Robust Loss Design for Multi-Label Learning with Missing
    Labels, arXiv 2112.07368.

    Example:

    >>> loss = SPLCLoss(logit_margin=0, warmup_steps=100)
    >>> [loss.at_step(step) for step in (0, 99, 100)]  # whether it has changed
    [True, False, True]
    >>> round(float(loss([[0.0]], [[2.0]])), 4)  # σ(2) = 0.88: as a positive
    0.0018
    """

    def __init__(
        self,
        *,
        correction_threshold: float = DEFAULTS.correction_threshold,
        logit_margin: float = DEFAULTS.logit_margin,
        focal_gamma: float = DEFAULTS.focal_gamma,
        warmup_steps: int = 0,
        corrects: bool | None = None,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "splc_loss",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)
        self.correction_threshold = float(correction_threshold)
        self.logit_margin = float(logit_margin)
        self.focal_gamma = float(focal_gamma)
        self.warmup_steps = int(warmup_steps)
        check_parameters(
            correction_threshold=self.correction_threshold,
            logit_margin=self.logit_margin,
            focal_gamma=self.focal_gamma,
        )
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps must be at least 0; got {warmup_steps}")
        self.corrects = True if corrects is None and self.warmup_steps == 0 else corrects

    def at_step(self, step: int) -> bool:
        """Corrects from now on if the warm-up is over after this number of steps.

        Args:
            step: the number of steps that have been trained.

        Returns:
            Whether that has changed, so that what was compiled with the loss must be compiled
            again.
        """
        before, self.corrects = self.corrects, step >= self.warmup_steps
        return self.corrects != before

    def _elements(self, y_true: Any, logits: Any) -> Any:
        if self.corrects is None:
            raise ValueError(
                f"SPLCLoss(warmup_steps={self.warmup_steps}) has not been told the step: pass "
                "callbacks=[dbl_tf.LossWarmup(loss)] to Model.fit, or call loss.at_step(step)"
            )
        return splc_crossentropy(
            y_true,
            logits,
            self.correction_threshold,
            self.logit_margin,
            self.focal_gamma,
            self.corrects,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal loss.

        A loss in its warm-up does not know the step after it has been loaded.
        """
        return {
            **super().get_config(),
            "correction_threshold": self.correction_threshold,
            "logit_margin": self.logit_margin,
            "focal_gamma": self.focal_gamma,
            "warmup_steps": self.warmup_steps,
            "corrects": self.corrects or None,
        }


@keras.saving.register_keras_serializable(package="dbl_tf")
class RobustAsymmetricLoss(ElementwiseLoss):
    """Robust asymmetric loss: asymmetric loss with a polynomial for positives and Hill's factor.

    `L = 1/(B·C) Σ ℓ` with the elements of `robust_asymmetric_crossentropy`.

    The polynomial and all defaults are those of the authors' released program; the printed article
    was not at hand. The negatives could not be reconciled with that program, which multiplies them
    by further factors, p² (λ − 1 + p), and exchanges p and 1 − p in their focusing factor.

    Args:
        gamma_negative: the focusing exponent γ₋ ≥ 0 of the negatives.
        gamma_positive: the focusing exponent γ₊ ≥ 0 of the positives.
        clip: the shift c in [0, 1). Negatives with a lower probability have a loss of zero.
        hill_lambda: λ ≥ 1 of the factor λ − p of the negatives.
        linear: the coefficient a₁ of 1 − p.
        quadratic: the coefficient a₂ of (1 − p)².
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`. "mean" is the mean over all B·C elements.
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.

    Call arguments:
        y_true: the labels, multi-hot or soft in [0, 1], shape (B, C).
        y_pred: the logits, shape (B, C).
        sample_weight: weights of examples, (B,) or (B, 1), or weights of elements, (B, C).

    Raises:
        ValueError: if an argument is out of range, or `y_true` and `y_pred` differ in shape.

    Reference: Park et al., Robust Asymmetric Loss for Multi-Label Long-Tailed Learning, ICCV
    Workshops 2023.

    Example:

    >>> loss = RobustAsymmetricLoss()
    >>> round(float(loss([[1.0, 0.0]], [[0.0, -3.0]])), 4)  # (log 2 − 1/2 + 1.25/4)/2
    0.2528
    """

    def __init__(
        self,
        *,
        gamma_negative: float = DEFAULTS.gamma_negative,
        gamma_positive: float = DEFAULTS.robust_gamma_positive,
        clip: float = DEFAULTS.clip,
        hill_lambda: float = DEFAULTS.hill_lambda,
        linear: float = DEFAULTS.robust_linear,
        quadratic: float = DEFAULTS.robust_quadratic,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "robust_asymmetric_loss",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)
        self.gamma_negative = float(gamma_negative)
        self.gamma_positive = float(gamma_positive)
        self.clip = float(clip)
        self.hill_lambda = float(hill_lambda)
        self.linear = float(linear)
        self.quadratic = float(quadratic)
        check_parameters(
            gamma_negative=self.gamma_negative,
            robust_gamma_positive=self.gamma_positive,
            clip=self.clip,
            hill_lambda=self.hill_lambda,
            robust_linear=self.linear,
            robust_quadratic=self.quadratic,
            arguments={
                "robust_gamma_positive": "gamma_positive",
                "robust_linear": "linear",
                "robust_quadratic": "quadratic",
            },
        )

    def _elements(self, y_true: Any, logits: Any) -> Any:
        return robust_asymmetric_crossentropy(
            y_true,
            logits,
            self.gamma_negative,
            self.gamma_positive,
            self.clip,
            self.hill_lambda,
            self.linear,
            self.quadratic,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal loss."""
        return {
            **super().get_config(),
            "gamma_negative": self.gamma_negative,
            "gamma_positive": self.gamma_positive,
            "clip": self.clip,
            "hill_lambda": self.hill_lambda,
            "linear": self.linear,
            "quadratic": self.quadratic,
        }


@keras.saving.register_keras_serializable(package="dbl_tf")
class Poly1Loss(ElementwiseLoss):
    """Poly-1 loss: binary cross-entropy with another first term in its expansion by 1 − p_t.

    `L = 1/(B·C) Σ ℓ` with the elements of `poly1_crossentropy`. The publication defines the loss
    for the softmax, with ε ≥ −1, and uses ε = 2 on ImageNet; here each label has its own sigmoid.

    Args:
        poly_epsilon: the coefficient ε ≥ −1.
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`. "mean" is the mean over all B·C elements.
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.

    Call arguments:
        y_true: the labels, multi-hot or soft in [0, 1], shape (B, C).
        y_pred: the logits, shape (B, C).
        sample_weight: weights of examples, (B,) or (B, 1), or weights of elements, (B, C).

    Raises:
        ValueError: if ε is out of range, or `y_true` and `y_pred` differ in shape.

    Reference: Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss
    Functions, ICLR 2022.

    Example:

    >>> round(float(Poly1Loss()([[1.0, 0.0]], [[0.0, 0.0]])), 4)  # log 2 + 2/2
    1.6931
    """

    def __init__(
        self,
        *,
        poly_epsilon: float = DEFAULTS.poly_epsilon,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "poly1_loss",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)
        self.poly_epsilon = float(poly_epsilon)
        check_parameters(poly_epsilon=self.poly_epsilon)

    def _elements(self, y_true: Any, logits: Any) -> Any:
        return poly1_crossentropy(y_true, logits, self.poly_epsilon)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal loss."""
        return {**super().get_config(), "poly_epsilon": self.poly_epsilon}


class LossWarmup(keras.callbacks.Callback):
    """Tells a loss with `warmup_steps`, such as `SPLCLoss`, when they are over.

    The steps are counted by the optimizer, whose count is saved with the model and restored by
    `keras.callbacks.BackupAndRestore`. The training and test functions are compiled again when the
    loss changes, once. With `steps_per_execution`, the loss changes at the first execution that
    begins after the warm-up.

    Args:
        loss: the loss with which the model was compiled; `model.loss` of a model that was loaded.

    Example:

    ```python
    loss = dbl_tf.SPLCLoss(warmup_steps=steps_per_epoch)
    model.compile("adam", loss)
    model.fit(batches, epochs=10, callbacks=[dbl_tf.LossWarmup(loss)])
    ```
    """

    def __init__(self, loss: MultiLabelLoss) -> None:
        super().__init__()
        self.loss = loss
        self._first_step = 0
        # Some backends trace the loss before the first method of a callback is called.
        loss.at_step(0)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reads how many steps have been trained.

        Raises:
            ValueError: the model was compiled with another loss.
        """
        if self.model.loss is not self.loss:
            raise ValueError(
                f"LossWarmup was made for the loss {self.loss.name!r}, but the model was compiled "
                f"with {self.model.loss!r}; pass the same object to both"
            )
        self._first_step = int(ops.convert_to_numpy(self.model.optimizer.iterations.value))

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Lets the loss change before the step for which it does."""
        if self.loss.at_step(self._first_step + batch):
            self.model.make_train_function(force=True)
            self.model.make_test_function(force=True)
