"""Multi-label losses: elementwise functions, and the `keras.losses.Loss` classes over them.

Distribution-Balanced Loss, and those that it is compared with.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dbl_tf import weighting

MARGINS = ("paper", "released")
REBALANCE_MODES = ("labels", "sample_weight", None)
REWEIGHTINGS = {
    "inverse_root": weighting.inverse_root_weights,
    "class_balanced": weighting.class_balanced_weights,
}


def class_margins(
    class_counts: Sequence[float] | np.ndarray, num_examples: int, kappa: float
) -> np.ndarray:
    """ν_i = κ log(1/p_i − 1) with the class prior p_i = n_i/N (Eq. 9).

    Args:
        class_counts: n_i, (C,), each within (0, N).
        num_examples: N.
        kappa: κ. Zero gives zeros, whatever the counts.

    Returns:
        float64 (C,).
    """
    counts = np.asarray(class_counts, np.float64)
    if kappa == 0:
        return np.zeros_like(counts)
    return kappa * np.log(num_examples / counts - 1.0)


def negative_tolerant_crossentropy(
    targets: Any,
    logits: Any,
    nu: Any = 0.0,
    lambda_: float = 1.0,
    focal_gamma: float = 0.0,
    focal_scale: float = 2.0,
    multi_hot: bool = False,
) -> Any:
    """Elementwise negative-tolerant binary cross-entropy, with or without a focusing factor.

    With q = z − ν, the sign of Eq. 7 and 10 of the paper corrected:

    `ℓ = y softplus(−q) + (1 − y) softplus(λq)/λ`,

    and for γ > 0, the gradient running through the factors,

    `ℓ = s [y (1 − σ(q))^γ softplus(−q) + (1 − y) σ(λq)^γ softplus(λq)/λ]`.

    ν = 0 and λ = 1 make it plain binary cross-entropy or focal loss.

    Args:
        targets: y in [0, 1], (B, C), floating.
        logits: z, (B, C), floating.
        nu: ν, a number, (C,) or (B, C).
        lambda_: λ > 0, how fast the loss of a negative falls once its logit is below ν.
        focal_gamma: γ ≥ 0; 0 switches the focusing factor and the scale off.
        focal_scale: s.
        multi_hot: whether every target is 0 or 1, so that one of the two terms is all there is:
            the same loss for half the work.

    Returns:
        ℓ, (B, C); finite, with a finite gradient, for |z| up to 1e4.

    References: Wu et al., ECCV 2020, section 3.2; Lin et al., Focal Loss for Dense Object
    Detection, ICCV 2017.
    """
    q = logits - nu
    if multi_hot:
        u = q * (lambda_ - (1.0 + lambda_) * targets)  # −q of a positive, λq of a negative
        loss = ops.softplus(u)
        if focal_gamma:
            loss = ops.exp(focal_gamma * (u - loss)) * loss
        loss = (1.0 / lambda_ + (1.0 - 1.0 / lambda_) * targets) * loss
    else:
        scaled = lambda_ * q
        positive = ops.softplus(-q)
        negative = ops.softplus(scaled)
        if focal_gamma:
            # (1 − σ(q))^γ = exp(−γ softplus(q)): no power of a number that rounds to zero, and
            # softplus(q) = q + softplus(−q) spares a second logarithm.
            positive = ops.exp(-focal_gamma * (q + positive)) * positive
            negative = ops.exp(-focal_gamma * (negative - scaled)) * negative
        loss = targets * positive + (1.0 - targets) * (negative / lambda_)
    return focal_scale * loss if focal_gamma else loss


def ldam_margins(class_counts: Sequence[float] | np.ndarray, max_margin: float = 0.5) -> np.ndarray:
    """Δ_i ∝ n_i^(−1/4), of which the largest is `max_margin`: float64 (C,).

    Raises:
        ValueError: a class without examples.

    Reference: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss,
    NeurIPS 2019.
    """
    counts = weighting.positive_counts(class_counts, "Δ")
    return max_margin * (counts.min() / counts) ** 0.25


def asymmetric_crossentropy(
    targets: Any,
    logits: Any,
    gamma_negative: float = 4.0,
    gamma_positive: float = 1.0,
    clip: float = 0.05,
) -> Any:
    """Elementwise asymmetric loss.

    With p = σ(z) and the shifted probability p_m = max(p − m, 0) of the negatives,

    `ℓ = −y (1 − p)^γ₊ log p − (1 − y) p_m^γ₋ log(1 − p_m)`,

    the gradient running through the focusing factors, as in the publication's analysis.

    Args:
        targets: y in [0, 1], (B, C), floating.
        logits: z, (B, C), floating.
        gamma_negative: γ₋ ≥ 0.
        gamma_positive: γ₊ ≥ 0.
        clip: m in [0, 1); negatives of a lower probability cost nothing.

    Returns:
        ℓ, (B, C); finite, with a finite gradient, for |z| up to 1e4.

    Reference: Ridnik et al., Asymmetric Loss for Multi-Label Classification, ICCV 2021.
    """
    positive = ops.softplus(-logits)
    if gamma_positive:
        positive = ops.exp(-gamma_positive * (logits + positive)) * positive
    if clip:
        probabilities = ops.maximum(ops.sigmoid(logits) - clip, 0.0)
        negative = -ops.log1p(-probabilities)
        if gamma_negative:
            # Kept above zero, where a power below 1 has no gradient.
            negative = ops.power(ops.maximum(probabilities, 1e-30), gamma_negative) * negative
    else:  # 1 − p rounds to zero
        negative = ops.softplus(logits)
        if gamma_negative:
            negative = ops.exp(-gamma_negative * (negative - logits)) * negative
    return targets * positive + (1.0 - targets) * negative


class ElementwiseLoss(keras.losses.Loss):
    """What the losses of this module share: they keep the shape (B, C) until they are reduced.

    Args:
        from_logits: whether `y_pred` holds logits; if not, probabilities.
        reduction: as of `keras.losses.Loss`. "mean" is over all B·C elements.
        name: of the loss.
        dtype: of the computation; half precision is computed in float32.
    """

    # C, where the loss knows it.
    num_classes: int | None = None
    # Where element weights come from, one of REBALANCE_MODES, and the function they are made by.
    rebalance: str | None = None
    _weights_of: Callable[..., Any]
    # Whether the targets of this call are 0 or 1, and nothing between.
    _multi_hot = False

    def __init__(
        self,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = None,
        dtype: Any = None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if self._dtype in ("float16", "bfloat16"):
            self._dtype = "float32"
        self.from_logits = bool(from_logits)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The reduced loss; see the class for the arguments."""
        if sample_weight is None:
            if self.rebalance == "sample_weight":
                raise ValueError(
                    'rebalance="sample_weight" takes the weights from the input pipeline, and the '
                    "batch came without weights: let the data set yield (images, labels, weights) "
                    f"with weights = dbl_tf.weighting.{self._weights_of.__name__}(labels, …), or "
                    'use "labels"'
                )
        else:
            sample_weight = ops.convert_to_tensor(sample_weight, dtype=self.dtype)
            if len(sample_weight.shape) == 1:
                # Against a (B, C) loss it would weigh columns wherever B = C.
                sample_weight = ops.expand_dims(sample_weight, -1)
        loss = self
        if _are_discrete(y_true):
            # Keras converts the targets before `call` can see their type. Said to a copy, since
            # threads of several replicas may call this object.
            loss = copy.copy(self)
            loss._multi_hot = True
        return keras.losses.Loss.__call__(loss, y_true, y_pred, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Elementwise loss (B, C), weights included with `rebalance="labels"`."""
        y_true = ops.convert_to_tensor(y_true, dtype=self.dtype)
        logits = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        self._check_shapes(y_true, logits)
        if not self.from_logits:
            epsilon = keras.config.epsilon()
            probabilities = ops.clip(logits, epsilon, 1.0 - epsilon)
            logits = ops.log(probabilities) - ops.log1p(-probabilities)
        loss = self._elements(y_true, logits)
        return loss * self._weights(y_true) if self.rebalance == "labels" else loss

    def _elements(self, y_true: Any, logits: Any) -> Any:
        """ℓ, (B, C), of tensors of the loss's type."""
        raise NotImplementedError

    def _weights(self, y_true: Any) -> Any:
        """Weights (B, C) with `rebalance="labels"`."""
        raise NotImplementedError

    def _check_shapes(self, y_true: Any, logits: Any) -> None:
        arrays = {"y_true": tuple(y_true.shape), "y_pred": tuple(logits.shape)}
        if self.num_classes is None:
            shapes = list(arrays.values())
            if any(len(shape) != 2 for shape in shapes) or any(
                a != b and None not in (a, b) for a, b in zip(*shapes, strict=True)
            ):
                raise ValueError(f"y_true and y_pred must be of one shape (B, C), got {arrays}")
            return
        for name, shape in arrays.items():
            if len(shape) != 2 or shape[1] not in (None, self.num_classes):
                raise ValueError(
                    f"{name} must be of shape (B, {self.num_classes}), a column for each entry of "
                    f"class_counts; got {shape}"
                )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {**super().get_config(), "from_logits": self.from_logits, "dtype": self.dtype}


def _are_discrete(targets: Any) -> bool:
    """Whether targets are integers or booleans, of which there are two in [0, 1]."""
    dtype = targets.dtype if hasattr(targets, "dtype") else np.asarray(targets).dtype
    name = keras.backend.standardize_dtype(dtype)
    return name == "bool" or "int" in name


@keras.saving.register_keras_serializable(package="dbl_tf")
class DistributionBalancedLoss(ElementwiseLoss):
    """Distribution-Balanced Loss for long-tailed multi-label classification (Eq. 10).

    `L = 1/(B·C) Σ r̂_i ℓ_i`: re-balanced weights r̂ (`dbl_tf.weighting.rebalanced_weights`) times
    the negative-tolerant loss ℓ (`negative_tolerant_crossentropy`), for batches that come from
    class-aware re-sampling. The margin acts in training only: predictions are σ(z).

    The parts can be used alone: `rebalance=None` leaves r̂ out, `lambda_=1, kappa=0` the negative
    tolerance, `focal_gamma=0` the focusing factor. All three together are binary cross-entropy.

    Args:
        class_counts: n_i, (C,), training examples that hold class i, before re-sampling.
        num_examples: N, training examples before re-sampling.
        alpha: α ≥ 0 of Eq. 4. The paper uses 0.1.
        beta: β > 0 of Eq. 4. The paper uses 10.
        mu: μ of Eq. 4. The paper uses 0.3 for VOC-MLT, 0.2 for COCO-MLT.
        lambda_: λ > 0 of Eq. 7. The paper uses 5 for VOC-MLT, 2 for COCO-MLT.
        kappa: κ of Eq. 9. The paper uses 0.05.
        margin: "paper" shifts logits by ν as printed; "released" by ν/λ, as the authors' released
            code does, with which Table 1 of the paper was made.
        focal_gamma: γ ≥ 0; 0 switches the focusing factor and the scale off.
        focal_scale: s.
        rebalance: where r̂ comes from. "labels": computed here from `y_true`. "sample_weight":
            passed by the input pipeline as (B, C) `sample_weight`. None: no r̂.
        clamp_counts: whether counts outside [1, N − 1] are moved to its ends, instead of refused.
        from_logits: whether `y_pred` holds logits; if not, probabilities.
        reduction: as of `keras.losses.Loss`. "mean" is Σ r̂ℓ/(B·C).
        name: of the loss.
        dtype: of the computation; half precision is computed in float32.

    Call arguments:
        y_true: (B, C), multi-hot or soft targets in [0, 1]. Integers and booleans, which are known
            to be multi-hot, take half the time of floating numbers; the loss is the same.
        y_pred: (B, C).
        sample_weight: (B,) or (B, 1) weighs examples and multiplies into r̂; (B, C) weighs elements.

    Raises:
        ValueError: an argument out of range; a class without examples where r̂ or ν is used, or one
            that every example holds where ν is; `y_pred` of another width than `class_counts`;
            with `rebalance="sample_weight"`, a call without weights.

    Reference: Wu et al., Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
    Datasets, ECCV 2020.

    Example:

    >>> loss = DistributionBalancedLoss(class_counts=[100, 10], num_examples=200)
    >>> round(float(loss([[1.0, 0.0]], [[2.0, -1.0]])), 4)
    0.0024
    """

    _weights_of = staticmethod(weighting.rebalanced_weights)

    def __init__(
        self,
        class_counts: Sequence[float] | np.ndarray,
        num_examples: int,
        *,
        alpha: float = 0.1,
        beta: float = 10.0,
        mu: float = 0.2,
        lambda_: float = 2.0,
        kappa: float = 0.05,
        margin: str = "paper",
        focal_gamma: float = 2.0,
        focal_scale: float = 2.0,
        rebalance: str | None = "labels",
        clamp_counts: bool = False,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "distribution_balanced_loss",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)
        # Lists, since an array in the configuration does not survive a `.keras` file.
        self.class_counts = np.asarray(class_counts).tolist()
        self.num_examples = int(num_examples)
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.mu = float(mu)
        self.lambda_ = float(lambda_)
        self.kappa = float(kappa)
        self.margin = margin
        self.focal_gamma = float(focal_gamma)
        self.focal_scale = float(focal_scale)
        self.rebalance = rebalance
        self.clamp_counts = bool(clamp_counts)
        self._check_arguments()
        counts = np.asarray(self.class_counts, np.float64)
        if self.clamp_counts:
            counts = weighting.clamp_counts(counts, self.num_examples)
        self._check_counts(counts)
        self.num_classes = len(counts)
        self._counts = counts
        nu = class_margins(counts, self.num_examples, self.kappa)
        self._nu = nu / self.lambda_ if margin == "released" else nu

    def _check_arguments(self) -> None:
        weighting.check_smoothing(self.alpha, self.beta, self.mu)
        _check_positive(lambda_=self.lambda_)
        if not math.isfinite(self.kappa):
            raise ValueError(f"kappa must be finite, got {self.kappa}")
        _check_at_least_zero(focal_gamma=self.focal_gamma)
        _check_positive(focal_scale=self.focal_scale)
        if self.margin not in MARGINS:
            raise ValueError(f"margin must be one of {MARGINS}, got {self.margin!r}")
        if self.rebalance not in REBALANCE_MODES:
            raise ValueError(f"rebalance must be one of {REBALANCE_MODES}, got {self.rebalance!r}")

    def _check_counts(self, counts: np.ndarray) -> None:
        if counts.ndim != 1 or counts.size == 0:
            raise ValueError(f"class_counts must be of shape (C,), got {counts.shape}")
        wrong = ~((counts >= 0) & (counts <= self.num_examples))
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"class_counts must lie in [0, num_examples = {self.num_examples}], "
                f"class {i} has {counts[i]}"
            )
        remedy = "; leave the class out, or pass clamp_counts=True"
        if self.kappa != 0 or self.rebalance is not None:
            empty = np.flatnonzero(counts == 0).tolist()
            if empty:
                raise ValueError(
                    f"classes {empty} have no training example, so neither ν (Eq. 9) nor r̂ "
                    f"(Eq. 3) is defined for them{remedy}"
                )
        if self.kappa != 0:
            full = np.flatnonzero(counts == self.num_examples).tolist()
            if full:
                raise ValueError(
                    f"classes {full} are in every one of the {self.num_examples} training "
                    f"examples, so ν (Eq. 9) is not finite for them{remedy}, or kappa=0"
                )

    def _elements(self, y_true: Any, logits: Any) -> Any:
        return negative_tolerant_crossentropy(
            y_true,
            logits,
            nu=ops.convert_to_tensor(self._nu, dtype=self.dtype),
            lambda_=self.lambda_,
            focal_gamma=self.focal_gamma,
            focal_scale=self.focal_scale,
            multi_hot=self._multi_hot,
        )

    def _weights(self, y_true: Any) -> Any:
        return self._weights_of(y_true, self._counts, self.alpha, self.beta, self.mu)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "class_counts": self.class_counts,
            "num_examples": self.num_examples,
            "alpha": self.alpha,
            "beta": self.beta,
            "mu": self.mu,
            "lambda_": self.lambda_,
            "kappa": self.kappa,
            "margin": self.margin,
            "focal_gamma": self.focal_gamma,
            "focal_scale": self.focal_scale,
            "rebalance": self.rebalance,
            "clamp_counts": self.clamp_counts,
        }


@keras.saving.register_keras_serializable(package="dbl_tf")
class ReweightedCrossentropy(ElementwiseLoss):
    """Binary cross-entropy or focal loss, weighted by how rare the classes are.

    `L = 1/(B·C) Σ w_i ℓ_i` with ℓ of `negative_tolerant_crossentropy` at ν = 0, λ = 1.

    Args:
        class_counts: n_i, (C,), positive, training examples that hold class i.
        weighting: "inverse_root", √(N/n_i) scaled to a maximum of 1
            (`dbl_tf.weighting.inverse_root_weights`); or "class_balanced", (1 − β)/(1 − β^n_i)
            averaged over the example's labels (`dbl_tf.weighting.class_balanced_weights`).
        beta: β in [0, 1) of "class_balanced".
        focal_gamma: γ ≥ 0; 0 switches the focusing factor and the scale off. With 2 and
            "class_balanced" it is the class-balanced focal loss.
        focal_scale: s.
        rebalance: where w comes from. "labels": computed here from `y_true`. "sample_weight":
            passed by the input pipeline as (B, C) `sample_weight`.
        from_logits: whether `y_pred` holds logits; if not, probabilities.
        reduction: as of `keras.losses.Loss`. "mean" is Σ wℓ/(B·C).
        name: of the loss.
        dtype: of the computation; half precision is computed in float32.

    Call arguments:
        y_true: (B, C), multi-hot or soft targets in [0, 1].
        y_pred: (B, C).
        sample_weight: (B,) or (B, 1) weighs examples and multiplies into w; (B, C) weighs elements.

    Raises:
        ValueError: an argument out of range; a class without examples; `y_pred` of another width
            than `class_counts`; with `rebalance="sample_weight"`, a call without weights.

    References: Wu et al., ECCV 2020, section 4.2; Cui et al., Class-Balanced Loss Based on
    Effective Number of Samples, CVPR 2019.

    Example:

    >>> loss = ReweightedCrossentropy([64, 4], "inverse_root")
    >>> round(float(loss([[1.0, 0.0]], [[0.0, 0.0]])), 4)  # log 2 · (1/4 + 1)/2
    0.4332
    """

    def __init__(
        self,
        class_counts: Sequence[float] | np.ndarray,
        weighting: str,
        *,
        beta: float = 0.9,
        focal_gamma: float = 0.0,
        focal_scale: float = 2.0,
        rebalance: str = "labels",
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "reweighted_crossentropy",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)
        self.class_counts = np.asarray(class_counts).tolist()
        self.weighting = weighting
        self.beta = float(beta)
        self.focal_gamma = float(focal_gamma)
        self.focal_scale = float(focal_scale)
        self.rebalance = rebalance
        if weighting not in REWEIGHTINGS:
            raise ValueError(f"weighting must be one of {(*REWEIGHTINGS,)}, got {weighting!r}")
        if rebalance not in REBALANCE_MODES[:2]:
            raise ValueError(f"rebalance must be one of {REBALANCE_MODES[:2]}, got {rebalance!r}")
        _check_at_least_zero(focal_gamma=self.focal_gamma)
        _check_positive(focal_scale=self.focal_scale)
        self._weights_of = REWEIGHTINGS[weighting]
        # Refuses what no weights can be made of now, and not at the first batch.
        self.num_classes = np.size(class_counts)
        self._weights(np.zeros((1, self.num_classes), np.float32))

    def _elements(self, y_true: Any, logits: Any) -> Any:
        return negative_tolerant_crossentropy(
            y_true,
            logits,
            focal_gamma=self.focal_gamma,
            focal_scale=self.focal_scale,
            multi_hot=self._multi_hot,
        )

    def _weights(self, y_true: Any) -> Any:
        arguments = {"beta": self.beta} if self.weighting == "class_balanced" else {}
        return self._weights_of(y_true, self.class_counts, **arguments)

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "class_counts": self.class_counts,
            "weighting": self.weighting,
            "beta": self.beta,
            "focal_gamma": self.focal_gamma,
            "focal_scale": self.focal_scale,
            "rebalance": self.rebalance,
        }


@keras.saving.register_keras_serializable(package="dbl_tf")
class LDAMLoss(ElementwiseLoss):
    """Label-distribution-aware margin loss in its sigmoid form, for a cosine classifier.

    A positive of a rare class has to clear a margin: with `z = s (cos θ − y Δ)`,

    `ℓ = y softplus(−z) + (1 − y) softplus(z)`, `Δ_i ∝ n_i^(−1/4)`, the largest `max_margin`.

    `y_pred` is `s cos θ`, what `dbl_tf.CosineClassifier(C, scale=s)` gives; the margin acts in
    training only, so predictions are σ(s cos θ).

    Args:
        class_counts: n_i, (C,), positive, training examples that hold class i.
        max_margin: the largest Δ, on the scale of cos θ, at least 0.
        scale: s > 0; that of the classifier.
        from_logits: whether `y_pred` holds logits; if not, probabilities.
        reduction: as of `keras.losses.Loss`. "mean" is over all B·C elements.
        name: of the loss.
        dtype: of the computation; half precision is computed in float32.

    Call arguments:
        y_true: (B, C), multi-hot or soft targets in [0, 1].
        y_pred: (B, C).
        sample_weight: (B,) or (B, 1) weighs examples; (B, C) weighs elements.

    Raises:
        ValueError: an argument out of range; a class without examples; `y_pred` of another width
            than `class_counts`.

    Reference: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss,
    NeurIPS 2019.

    Example:

    >>> loss = LDAMLoss([1600, 100])  # Δ = 0.25, 0.5
    >>> round(float(loss([[1.0, 0.0]], [[7.5, 0.0]])), 4)  # both z are 0
    0.6931
    """

    def __init__(
        self,
        class_counts: Sequence[float] | np.ndarray,
        *,
        max_margin: float = 0.5,
        scale: float = 30.0,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "ldam_loss",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)
        self.class_counts = np.asarray(class_counts).tolist()
        self.max_margin = float(max_margin)
        self.scale = float(scale)
        _check_at_least_zero(max_margin=self.max_margin)
        _check_positive(scale=self.scale)
        self._margins = self.scale * ldam_margins(self.class_counts, self.max_margin)
        self.num_classes = len(self._margins)

    def _elements(self, y_true: Any, logits: Any) -> Any:
        margins = ops.convert_to_tensor(self._margins, dtype=self.dtype)
        return negative_tolerant_crossentropy(
            y_true, logits, nu=y_true * margins, multi_hot=self._multi_hot
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "class_counts": self.class_counts,
            "max_margin": self.max_margin,
            "scale": self.scale,
        }


@keras.saving.register_keras_serializable(package="dbl_tf")
class AsymmetricLoss(ElementwiseLoss):
    """Asymmetric Loss for multi-label classification: easy negatives count less than positives.

    With p = σ(z) and p_m = max(p − m, 0),

    `ℓ = −y (1 − p)^γ₊ log p − (1 − y) p_m^γ₋ log(1 − p_m)`.

    "mean" is over all B·C elements, where the publication sums over the classes.

    Args:
        gamma_negative: γ₋ ≥ 0.
        gamma_positive: γ₊ ≥ 0.
        clip: m in [0, 1), the probability below which negatives cost nothing.
        from_logits: whether `y_pred` holds logits; if not, probabilities.
        reduction: as of `keras.losses.Loss`.
        name: of the loss.
        dtype: of the computation; half precision is computed in float32.

    Call arguments:
        y_true: (B, C), multi-hot or soft targets in [0, 1].
        y_pred: (B, C).
        sample_weight: (B,) or (B, 1) weighs examples; (B, C) weighs elements.

    Raises:
        ValueError: an argument out of range; `y_true` and `y_pred` of different shapes.

    Reference: Ridnik et al., Asymmetric Loss for Multi-Label Classification, ICCV 2021.

    Example:

    >>> loss = AsymmetricLoss()
    >>> round(float(loss([[1.0, 0.0]], [[0.0, -3.0]])), 4)  # log 2 / 2 / 2; σ(−3) < 0.05
    0.1733
    """

    def __init__(
        self,
        *,
        gamma_negative: float = 4.0,
        gamma_positive: float = 1.0,
        clip: float = 0.05,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "asymmetric_loss",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)
        self.gamma_negative = float(gamma_negative)
        self.gamma_positive = float(gamma_positive)
        self.clip = float(clip)
        _check_at_least_zero(gamma_negative=self.gamma_negative, gamma_positive=self.gamma_positive)
        if not 0 <= self.clip < 1:
            raise ValueError(f"clip must lie in [0, 1), got {self.clip}")

    def _elements(self, y_true: Any, logits: Any) -> Any:
        return asymmetric_crossentropy(
            y_true, logits, self.gamma_negative, self.gamma_positive, self.clip
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal loss."""
        return {
            **super().get_config(),
            "gamma_negative": self.gamma_negative,
            "gamma_positive": self.gamma_positive,
            "clip": self.clip,
        }


def _check_at_least_zero(**arguments: float) -> None:
    for name, value in arguments.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be at least 0, got {value}")


def _check_positive(**arguments: float) -> None:
    for name, value in arguments.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be greater than 0, got {value}")
