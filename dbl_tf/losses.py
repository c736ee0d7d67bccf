"""Distribution-Balanced Loss: elementwise functions, and the `keras.losses.Loss` over them."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dbl_tf import weighting

MARGINS = ("paper", "released")
REBALANCE_MODES = ("labels", "sample_weight", None)


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
        nu: ν, a number or (C,).
        lambda_: λ > 0, how fast the loss of a negative falls once its logit is below ν.
        focal_gamma: γ ≥ 0; 0 switches the focusing factor and the scale off.
        focal_scale: s.

    Returns:
        ℓ, (B, C); finite, with a finite gradient, for |z| up to 1e4.

    References: Wu et al., ECCV 2020, section 3.2; Lin et al., Focal Loss for Dense Object
    Detection, ICCV 2017.
    """
    q = logits - nu
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


@keras.saving.register_keras_serializable(package="dbl_tf")
class DistributionBalancedLoss(keras.losses.Loss):
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
        y_true: (B, C), multi-hot or soft targets in [0, 1].
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
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if self._dtype in ("float16", "bfloat16"):
            self._dtype = "float32"
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
        self.from_logits = bool(from_logits)
        self._check_arguments()
        counts = np.asarray(self.class_counts, np.float64)
        if self.clamp_counts:
            counts = weighting.clamp_counts(counts, self.num_examples)
        self._check_counts(counts)
        self._counts = counts
        nu = class_margins(counts, self.num_examples, self.kappa)
        self._nu = nu / self.lambda_ if margin == "released" else nu

    def _check_arguments(self) -> None:
        weighting.check_smoothing(self.alpha, self.beta, self.mu)
        if not (math.isfinite(self.lambda_) and self.lambda_ > 0):
            raise ValueError(f"lambda_ must be greater than 0, got {self.lambda_}")
        if not math.isfinite(self.kappa):
            raise ValueError(f"kappa must be finite, got {self.kappa}")
        if not (math.isfinite(self.focal_gamma) and self.focal_gamma >= 0):
            raise ValueError(f"focal_gamma must be at least 0, got {self.focal_gamma}")
        if not (math.isfinite(self.focal_scale) and self.focal_scale > 0):
            raise ValueError(f"focal_scale must be greater than 0, got {self.focal_scale}")
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

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """The reduced loss; see the class for the arguments."""
        if sample_weight is None:
            if self.rebalance == "sample_weight":
                raise ValueError(
                    'rebalance="sample_weight" takes r̂ from the input pipeline, and the batch '
                    "came without weights: let the data set yield (images, labels, weights) with "
                    'weights = dbl_tf.weighting.rebalanced_weights(labels, …), or use "labels"'
                )
        else:
            sample_weight = ops.convert_to_tensor(sample_weight, dtype=self.dtype)
            if len(sample_weight.shape) == 1:
                # Against a (B, C) loss it would weigh columns wherever B = C.
                sample_weight = ops.expand_dims(sample_weight, -1)
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Elementwise loss (B, C), r̂ included with `rebalance="labels"`."""
        y_true = ops.convert_to_tensor(y_true, dtype=self.dtype)
        logits = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        num_classes = len(self.class_counts)
        for name, array in (("y_true", y_true), ("y_pred", logits)):
            if len(array.shape) != 2 or array.shape[1] not in (None, num_classes):
                raise ValueError(
                    f"{name} must be of shape (B, {num_classes}), a column for each entry of "
                    f"class_counts; got {tuple(array.shape)}"
                )
        if not self.from_logits:
            epsilon = keras.config.epsilon()
            probabilities = ops.clip(logits, epsilon, 1.0 - epsilon)
            logits = ops.log(probabilities) - ops.log1p(-probabilities)
        loss = negative_tolerant_crossentropy(
            y_true,
            logits,
            nu=ops.convert_to_tensor(self._nu, dtype=self.dtype),
            lambda_=self.lambda_,
            focal_gamma=self.focal_gamma,
            focal_scale=self.focal_scale,
        )
        if self.rebalance == "labels":
            loss = loss * weighting.rebalanced_weights(
                y_true, self._counts, self.alpha, self.beta, self.mu
            )
        return loss

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
            "from_logits": self.from_logits,
            "dtype": self.dtype,
        }
