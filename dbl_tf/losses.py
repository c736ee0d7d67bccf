"""Multi-label losses: Distribution-Balanced Loss and the losses that it is compared with.

Elementwise functions come first, followed by the `keras.losses.Loss` classes that use them.

The classes take labels that are not known: −1 in integers and NaN in floating-point numbers. The
loss of such an element and its gradient are 0, and it has no part in the weights of the others. A
reduction by "mean" still divides by all elements. Labels of any other value outside [0, 1] are
refused where the values can be seen: in calls outside compiled functions, on labels in the memory
of the host. Inside a compiled function there is no check; every label below 0 is unknown there,
and one above 1 gives a loss without meaning.
"""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from dbl_tf import label_arrays, label_values, output_checks, weighting
from dbl_tf.libraries import is_traced, library_of
from dbl_tf.messages import first_few
from dbl_tf.parameters import DEFAULTS, check_parameters
from dbl_tf.weighting import REWEIGHTINGS

REBALANCE_MODES = ("labels", "sample_weight", None)


def class_margins(
    class_counts: Sequence[float] | np.ndarray,
    num_examples: int | Sequence[int] | np.ndarray,
    kappa: float,
) -> np.ndarray:
    """Computes the class margins ν_i = κ log(1/p_i − 1), with class priors p_i = n_i/N (Eq. 9).

    Args:
        class_counts: the numbers n_i of training examples of each class, shape (C,), each within
            (0, N).
        num_examples: the number N of training examples; or, where labels are unknown, the number
            N_i of those of which it is known whether they have class i, shape (C,).
        kappa: the scale κ of the margins. Zero gives margins of zero for any counts.

    Returns:
        ν, float64 (C,).
    """
    counts = np.asarray(class_counts, np.float64)
    if kappa == 0:
        return np.zeros_like(counts)
    return kappa * np.log(np.asarray(num_examples) / counts - 1.0)


def negative_tolerant_crossentropy(
    targets: Any,
    logits: Any,
    nu: Any = 0.0,
    lambda_: float = 1.0,
    focal_gamma: float = 0.0,
    focal_scale: float = DEFAULTS.focal_scale,
    hard_targets: bool = False,
    *,
    multi_hot: bool | None = None,
) -> Any:
    """Computes negative-tolerant binary cross-entropy per element, optionally with focusing.

    With q = z − ν, and with the sign in Eq. 7 and 10 of the paper corrected,

    `ℓ = y softplus(−q) + (1 − y) softplus(λq)/λ`.

    For γ > 0 the loss is

    `ℓ = s [y (1 − σ(q))^γ softplus(−q) + (1 − y) σ(λq)^γ softplus(λq)/λ]`,

    and the gradient includes the focusing factors. With ν = 0 and λ = 1, these are plain binary
    cross-entropy and focal loss.

    Args:
        targets: the targets y in [0, 1], floating-point, shape (B, C).
        logits: the logits z, floating-point, shape (B, C).
        nu: the margins ν: a number, or an array of shape (C,) or (B, C).
        lambda_: the scale λ > 0 of the negatives. The larger it is, the faster the loss of a
            negative falls once its logit is below ν.
        focal_gamma: the focusing exponent γ ≥ 0. Zero disables the focusing factors and the scale.
        focal_scale: the factor s of the focal loss.
        hard_targets: whether every target is known to be 0 or 1. Only one of the two terms is then
            computed for each element, which gives the same loss for half the work.
        multi_hot: the deprecated name of `hard_targets`.

    Returns:
        ℓ, shape (B, C). Values and gradients are finite for |z| up to 1e4.

    References: Wu et al., ECCV 2020, section 3.2; Lin et al., Focal Loss for Dense Object
    Detection, ICCV 2017.

    Example:

    >>> targets, logits = np.float32([[1, 0]]), np.float32([[2, 2]])
    >>> loss = negative_tolerant_crossentropy(targets, logits, nu=2.0, lambda_=4.0)
    >>> [round(float(element), 4) for element in loss[0]]  # log 2 and log 2 / 4
    [0.6931, 0.1733]
    """
    if multi_hot is not None:
        warnings.warn(
            "the argument multi_hot has been renamed to hard_targets",
            DeprecationWarning,
            stacklevel=2,
        )
        hard_targets = multi_hot
    q = logits - nu
    if hard_targets:
        u = q * (lambda_ - (1.0 + lambda_) * targets)  # −q for a positive, λq for a negative
        loss = ops.softplus(u)
        if focal_gamma:
            loss = ops.exp(focal_gamma * (u - loss)) * loss
        loss = (1.0 / lambda_ + (1.0 - 1.0 / lambda_) * targets) * loss
    else:
        scaled = lambda_ * q
        positive = ops.softplus(-q)
        negative = ops.softplus(scaled)
        if focal_gamma:
            # (1 − σ(q))^γ = exp(−γ softplus(q)) avoids the power of a number that may round to
            # zero, and softplus(q) = q + softplus(−q) saves a second logarithm.
            positive = ops.exp(-focal_gamma * (q + positive)) * positive
            negative = ops.exp(-focal_gamma * (negative - scaled)) * negative
        loss = targets * positive + (1.0 - targets) * (negative / lambda_)
    return focal_scale * loss if focal_gamma else loss


def ldam_margins(
    class_counts: Sequence[float] | np.ndarray, max_margin: float = DEFAULTS.max_margin
) -> np.ndarray:
    """Computes the margins Δ_i ∝ n_i^(−1/4) of LDAM, scaled so that the largest is `max_margin`.

    Args:
        class_counts: the numbers n_i of training examples of each class, shape (C,), positive.
        max_margin: the largest margin, on the scale of cos θ.

    Returns:
        Δ, float64 (C,).

    Raises:
        ValueError: if a class has no examples.

    Reference: Cao et al., Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss,
    NeurIPS 2019.
    """
    counts = weighting.positive_counts(class_counts, "Δ")
    return max_margin * (counts.min() / counts) ** 0.25


def asymmetric_crossentropy(
    targets: Any,
    logits: Any,
    gamma_negative: float = DEFAULTS.gamma_negative,
    gamma_positive: float = DEFAULTS.gamma_positive,
    clip: float = DEFAULTS.clip,
) -> Any:
    """Computes the asymmetric loss per element.

    With p = σ(z) and the shifted probability p_m = max(p − m, 0) of the negatives,

    `ℓ = −y (1 − p)^γ₊ log p − (1 − y) p_m^γ₋ log(1 − p_m)`.

    The gradient includes the focusing factors, as in the analysis of the publication.

    Args:
        targets: the targets y in [0, 1], floating-point, shape (B, C).
        logits: the logits z, floating-point, shape (B, C).
        gamma_negative: the focusing exponent γ₋ ≥ 0 of the negatives.
        gamma_positive: the focusing exponent γ₊ ≥ 0 of the positives.
        clip: the shift m in [0, 1). Negatives with a lower probability have a loss of zero.

    Returns:
        ℓ, shape (B, C). Values and gradients are finite for |z| up to 1e4.

    Reference: Ridnik et al., Asymmetric Loss for Multi-Label Classification, ICCV 2021.
    """
    positive = ops.softplus(-logits)
    if gamma_positive:
        positive = ops.exp(-gamma_positive * (logits + positive)) * positive
    negative = asymmetric_negatives(logits, gamma_negative, clip)
    return targets * positive + (1.0 - targets) * negative


def asymmetric_negatives(
    logits: Any,
    gamma_negative: float = DEFAULTS.gamma_negative,
    clip: float = DEFAULTS.clip,
) -> Any:
    """Computes the part of `asymmetric_crossentropy` for negatives, `−p_m^γ₋ log(1 − p_m)`.

    Args:
        logits: see `asymmetric_crossentropy`.
        gamma_negative: see `asymmetric_crossentropy`.
        clip: see `asymmetric_crossentropy`.

    Returns:
        The loss that each element has as a negative, shape (B, C).
    """
    if clip:
        probabilities = ops.maximum(ops.sigmoid(logits) - clip, 0.0)
        negative = -ops.log1p(-probabilities)
        if gamma_negative:
            # The base stays above zero, where a power below 1 has no finite derivative.
            negative = ops.power(ops.maximum(probabilities, 1e-30), gamma_negative) * negative
    else:  # softplus, because 1 − p may round to zero
        negative = ops.softplus(logits)
        if gamma_negative:
            negative = ops.exp(-gamma_negative * (negative - logits)) * negative
    return negative


class MultiLabelLoss(keras.losses.Loss):
    """Base class of losses of logits (B, C) and multi-hot or soft labels (B, C).

    Subclasses compute the loss in `_values`.

    Args:
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`.
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.
    """

    # Whether every target of the current call is exactly 0 or 1, or unknown.
    _hard_targets = False
    # Whether no target of the current call is unknown.
    _all_known = False
    # C, if the loss depends on the number of classes.
    num_classes: int | None = None
    # The number of steps at the beginning of a training in which the loss is another one.
    warmup_steps = 0

    def __init__(
        self,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = None,
        dtype: Any = None,
    ):
        policy = keras.dtype_policies.get(dtype or keras.config.floatx())
        if policy.compute_dtype in ("float16", "bfloat16"):
            dtype = "float32"
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.from_logits = bool(from_logits)
        self._check_outputs = output_checks.OutputCheck(type(self).__name__, self.from_logits)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Returns the reduced loss; the class documents the arguments."""
        # Before Keras converts the outputs, which hides what they come from.
        self._check_outputs(y_pred)
        y_true = label_arrays.batch_labels(y_true, getattr(y_pred, "shape", (None,))[-1])
        # Keras converts the targets before `call` can see their type. The flags are set on a copy,
        # because the threads of several replicas may call this object at once. A copy by `copy` is
        # made by Keras from the configuration, which takes long and loses state.
        loss = object.__new__(type(self))
        loss.__dict__.update(
            self.__dict__, _hard_targets=_are_hard(y_true), _all_known=_are_known(y_true)
        )
        return keras.losses.Loss.__call__(loss, y_true, y_pred, sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Returns the loss before the reduction; the class documents its shape."""
        y_true = ops.convert_to_tensor(y_true, dtype=self.dtype)
        logits = ops.convert_to_tensor(y_pred, dtype=self.dtype)
        self._check_shapes(y_true, logits)
        if not self.from_logits:
            epsilon = keras.config.epsilon()
            probabilities = ops.clip(logits, epsilon, 1.0 - epsilon)
            logits = ops.log(probabilities) - ops.log1p(-probabilities)
        if self._all_known:
            return self._values(y_true, logits, None)
        is_known = y_true >= 0  # false for NaN too
        return self._values(ops.where(is_known, y_true, 0.0), logits, is_known)

    def _values(self, y_true: Any, logits: Any, is_known: Any) -> Any:
        """The loss before the reduction, from tensors of the type of the loss.

        Args:
            y_true: the targets, 0 where they are unknown.
            logits: the logits.
            is_known: whether targets are known, bool (B, C); None if all are.
        """
        raise NotImplementedError

    def at_step(self, step: int) -> bool:
        """Tells the loss how many steps have been trained.

        Returns:
            Whether the loss is another one from now on, so that what was compiled with it must be
            compiled again.
        """
        return False

    def _check_shapes(self, y_true: Any, logits: Any) -> None:
        arrays = {"y_true": tuple(y_true.shape), "y_pred": tuple(logits.shape)}
        if self.num_classes is None:
            shapes = list(arrays.values())
            if any(len(shape) != 2 for shape in shapes) or any(
                a != b and None not in (a, b) for a, b in zip(*shapes, strict=True)
            ):
                raise ValueError(f"y_true and y_pred must have the same shape (B, C); got {arrays}")
            return
        for name, shape in arrays.items():
            if len(shape) != 2 or shape[1] not in (None, self.num_classes):
                raise ValueError(
                    f"{name} must be of shape (B, {self.num_classes}), with a column for each "
                    f"entry of class_counts; got {shape}"
                )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal loss."""
        return {**super().get_config(), "from_logits": self.from_logits, "dtype": self.dtype}


class ElementwiseLoss(MultiLabelLoss):
    """Base class of losses that keep the shape (B, C) until the reduction.

    Subclasses compute the loss of each element in `_elements`. Those with element weights set
    `rebalance` and `_weight_function`, and compute the weights in `_weights`.

    Args:
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`. "mean" is the mean over all B·C elements.
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.
    """

    # The source of the element weights, one of REBALANCE_MODES, and the function that makes them.
    rebalance: str | None = None
    _weight_function: Callable[..., Any]

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Returns the reduced loss; the class documents the arguments."""
        if sample_weight is None:
            if self.rebalance == "sample_weight":
                raise ValueError(
                    'with rebalance="sample_weight" the input pipeline provides the weights, but '
                    "this batch came without weights: let the data set yield (images, labels, "
                    f"weights) with weights = dbl_tf.weighting.{self._weight_function.__name__}"
                    '(labels, …), or use rebalance="labels"'
                )
        else:
            sample_weight = ops.convert_to_tensor(sample_weight, dtype=self.dtype)
            if len(sample_weight.shape) == 1:
                # Broadcast against (B, C), it would weight columns whenever B = C.
                sample_weight = ops.expand_dims(sample_weight, -1)
        return super().__call__(y_true, y_pred, sample_weight)

    def _values(self, y_true: Any, logits: Any, is_known: Any) -> Any:
        loss = self._elements(y_true, logits)
        if self.rebalance == "labels":
            loss = loss * self._weights(y_true)
        return loss if is_known is None else ops.where(is_known, loss, 0.0)

    def _elements(self, y_true: Any, logits: Any) -> Any:
        """ℓ, (B, C), from tensors of the type of the loss."""
        raise NotImplementedError

    def _weights(self, y_true: Any) -> Any:
        """Element weights, (B, C), for `rebalance="labels"`, from targets that are known or 0."""
        raise NotImplementedError


def _are_hard(targets: Any) -> bool:
    """Whether targets are integers or booleans, so that each target in [0, 1] is 0 or 1."""
    name = _dtype_name(targets)
    return name == "bool" or "int" in name


def _are_known(targets: Any) -> bool:
    """Whether no target is unknown, as far as their values, or else their type, can tell.

    Raises:
        ValueError: the values can be seen, and one is outside [0, 1] and not unknown.
    """
    values = _host_values(targets)
    if values is not None:
        return label_values.check_soft(values)
    return _dtype_name(targets).startswith(("bool", "uint"))


def _dtype_name(targets: Any) -> str:
    dtype = targets.dtype if hasattr(targets, "dtype") else np.asarray(targets).dtype
    return keras.backend.standardize_dtype(dtype)


def _host_values(array: Any) -> np.ndarray | None:
    """An array of any library as NumPy's, if its values are there and in the memory of the host.

    To look at the values of a tensor on an accelerator would mean to wait for it.
    """
    if isinstance(array, keras.KerasTensor) or is_traced(array):
        return None
    library = library_of(array)
    if library == "tensorflow":
        is_in_host = isinstance(array, sys.modules["tensorflow"].Tensor) and "CPU" in array.device
        return array.numpy() if is_in_host else None
    if library == "jax":
        is_in_host = (
            isinstance(array, sys.modules["jax"].Array)
            and array.is_fully_addressable
            and all(device.platform == "cpu" for device in array.devices())
        )
        return np.asarray(array) if is_in_host else None
    if library == "torch":
        if array.device.type != "cpu":
            return None
        values = array.detach()  # of the types of PyTorch, NumPy does not have this one
        is_bfloat16 = values.dtype == sys.modules["torch"].bfloat16
        return (values.float() if is_bfloat16 else values).numpy()
    return np.asarray(array)


@keras.saving.register_keras_serializable(package="dbl_tf")
class DistributionBalancedLoss(ElementwiseLoss):
    """Distribution-Balanced Loss for long-tailed multi-label classification (Eq. 10).

    `L = 1/(B·C) Σ r̂_i ℓ_i` is the product of re-balanced weights r̂
    (`dbl_tf.weighting.rebalanced_weights`) and the negative-tolerant loss ℓ
    (`negative_tolerant_crossentropy`), for batches drawn by class-aware re-sampling. The margin
    applies only to training: predictions are σ(z).

    Each part can be switched off: r̂ with `rebalance=None`, the negative tolerance with
    `lambda_=1, kappa=0`, and focusing with `focal_gamma=0`. Without all three parts, the loss is
    binary cross-entropy.

    Args:
        class_counts: the numbers n_i of training examples of each class before re-sampling, shape
            (C,).
        num_examples: the number N of training examples before re-sampling; or, where labels are
            unknown, the number N_i of those of which it is known whether they have class i, shape
            (C,). `LabelStatistics.examples_of_classes` is the one or the other.
        alpha: the lower bound α ≥ 0 of the weights in Eq. 4. The paper uses 0.1.
        beta: the slope β > 0 of the weights in Eq. 4. The paper uses 10.
        mu: the midpoint μ of the weights in Eq. 4. The paper uses 0.3 for VOC-MLT and 0.2 for
            COCO-MLT.
        lambda_: the scale λ > 0 of the negatives in Eq. 7. The paper uses 5 for VOC-MLT and 2 for
            COCO-MLT.
        kappa: the scale κ of the class margins in Eq. 9. The paper uses 0.05.
        margin: "paper" shifts the logits by ν, as printed. "released" shifts them by ν/λ, as in the
            authors' released code, which produced Table 1 of the paper.
        focal_gamma: the focusing exponent γ ≥ 0. Zero disables the focusing factors and the scale.
        focal_scale: the factor s of the focal loss.
        rebalance: the source of r̂. With "labels", the loss computes r̂ from `y_true`. With
            "sample_weight", the input pipeline passes r̂ as a `sample_weight` of shape (B, C). With
            None, there are no weights.
        clamp_counts: whether counts outside [1, N − 1] are clamped to that range instead of being
            refused.
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`. "mean" is Σ r̂ℓ/(B·C).
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.

    Call arguments:
        y_true: the labels, multi-hot or soft in [0, 1], shape (B, C); −1 in integers and NaN in
            floating-point numbers for a label that is not known, whose loss is 0. Pass integer or
            boolean labels when you can: the loss is about twice as fast as with float (soft)
            labels.
        y_pred: the logits, shape (B, C).
        sample_weight: weights of examples, (B,) or (B, 1), which are multiplied into r̂, or weights
            of elements, (B, C).

    Raises:
        ValueError: if an argument is out of range; if a class has no examples and r̂ or ν is used;
            if all examples have a class and ν is used; if `y_pred` and `class_counts` differ in the
            number of classes; if a call passes no weights with `rebalance="sample_weight"`; if
            labels whose values can be seen are outside [0, 1] and not unknown.

    Reference: Wu et al., Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
    Datasets, ECCV 2020.

    Example:

    >>> loss = DistributionBalancedLoss(class_counts=[100, 10], num_examples=200)
    >>> round(float(loss([[1.0, 0.0]], [[2.0, -1.0]])), 4)
    0.0024
    """

    _weight_function = staticmethod(weighting.rebalanced_weights)

    def __init__(
        self,
        class_counts: Sequence[float] | np.ndarray,
        num_examples: int | Sequence[int] | np.ndarray,
        *,
        alpha: float = DEFAULTS.alpha,
        beta: float = DEFAULTS.beta,
        mu: float = DEFAULTS.mu,
        lambda_: float = DEFAULTS.lambda_,
        kappa: float = DEFAULTS.kappa,
        margin: str = DEFAULTS.margin,
        focal_gamma: float = DEFAULTS.focal_gamma,
        focal_scale: float = DEFAULTS.focal_scale,
        rebalance: str | None = "labels",
        clamp_counts: bool = False,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "distribution_balanced_loss",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)
        _check_num_examples(num_examples, class_counts)
        weighting.checked_counts(class_counts)
        # A list, because an array in the configuration does not survive a `.keras` file.
        self.class_counts = np.asarray(class_counts).tolist()
        of_class = np.asarray(num_examples).astype(np.int64)
        self.num_examples: int | list[int] = of_class.tolist()
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
        check_parameters(
            alpha=self.alpha,
            beta=self.beta,
            mu=self.mu,
            lambda_=self.lambda_,
            kappa=self.kappa,
            margin=self.margin,
            focal_gamma=self.focal_gamma,
            focal_scale=self.focal_scale,
        )
        _check_rebalance(rebalance, REBALANCE_MODES)
        counts = np.asarray(self.class_counts, np.float64)
        if self.clamp_counts:
            of_class = np.maximum(of_class, 2)  # so that [1, N − 1] is not empty
            counts = weighting.clamp_counts(counts, of_class)
        self._check_counts(counts, of_class)
        self.num_classes = len(counts)
        self._counts = counts
        nu = class_margins(counts, of_class, self.kappa)
        self._nu = nu / self.lambda_ if margin == "released" else nu
        limit = float(np.finfo(self.dtype).max)
        if not (abs(self._nu) <= limit).all():
            raise ValueError(
                f"kappa={self.kappa} makes the margin ν (Eq. 9) infinite in {self.dtype}; the "
                f"paper uses {DEFAULTS.kappa}"
            )

    def _check_counts(self, counts: np.ndarray, num_examples: np.ndarray) -> None:
        if num_examples.shape not in ((), counts.shape):
            raise ValueError(
                f"num_examples must be a number, or one for each of {len(counts)} classes, got "
                f"shape {num_examples.shape}"
            )
        of_class = np.broadcast_to(num_examples, counts.shape)
        wrong = ~((counts >= 0) & (counts <= of_class))
        if wrong.any():
            i = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"class_counts must lie in [0, num_examples = {of_class[i]}], but class {i} "
                f"has {counts[i]}"
            )
        remedy = "; leave these classes out, or pass clamp_counts=True"
        if self.kappa != 0 or self.rebalance is not None:
            empty = np.flatnonzero(counts == 0).tolist()
            if empty:
                raise ValueError(
                    f"classes [{first_few(empty)}] have no training examples, so "
                    f"neither ν (Eq. 9) nor r̂ (Eq. 3) is defined for them{remedy}"
                )
        if self.kappa != 0:
            full = np.flatnonzero(counts == of_class).tolist()
            if full:
                raise ValueError(
                    f"classes [{first_few(full)}] are in every one of the {of_class[full[0]]} "
                    f"training examples, so ν (Eq. 9) is not finite for them{remedy}, or kappa=0"
                )

    def _elements(self, y_true: Any, logits: Any) -> Any:
        return negative_tolerant_crossentropy(
            y_true,
            logits,
            nu=ops.convert_to_tensor(self._nu, dtype=self.dtype),
            lambda_=self.lambda_,
            focal_gamma=self.focal_gamma,
            focal_scale=self.focal_scale,
            hard_targets=self._hard_targets,
        )

    def _weights(self, y_true: Any) -> Any:
        return self._weight_function(
            y_true, self._counts, self.alpha, self.beta, self.mu, all_known=True
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal loss."""
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
    """Binary cross-entropy or focal loss, with weights that depend on the class counts.

    `L = 1/(B·C) Σ w_i ℓ_i`, where ℓ is `negative_tolerant_crossentropy` at ν = 0 and λ = 1.

    Args:
        class_counts: the numbers n_i of training examples of each class, shape (C,), positive.
        weighting: "inverse_root" for √(N/n_i), scaled to a maximum of 1
            (`dbl_tf.weighting.inverse_root_weights`), or "class_balanced" for (1 − β)/(1 − β^n_i),
            averaged over the labels of the example (`dbl_tf.weighting.class_balanced_weights`).
        beta: the base β in [0, 1) of the effective number in "class_balanced".
        focal_gamma: the focusing exponent γ ≥ 0. Zero disables the focusing factors and the scale;
            2 with "class_balanced" gives the class-balanced focal loss.
        focal_scale: the factor s of the focal loss.
        rebalance: the source of w. With "labels", the loss computes w from `y_true`. With
            "sample_weight", the input pipeline passes w as a `sample_weight` of shape (B, C).
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`. "mean" is Σ wℓ/(B·C).
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.

    Call arguments:
        y_true: the labels, multi-hot or soft in [0, 1], shape (B, C).
        y_pred: the logits, shape (B, C).
        sample_weight: weights of examples, (B,) or (B, 1), which are multiplied into w, or weights
            of elements, (B, C).

    Raises:
        ValueError: if an argument is out of range; if a class has no examples; if `y_pred` and
            `class_counts` differ in the number of classes; if a call passes no weights with
            `rebalance="sample_weight"`.

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
        beta: float = DEFAULTS.effective_number_beta,
        focal_gamma: float = 0.0,
        focal_scale: float = DEFAULTS.focal_scale,
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
        _check_rebalance(rebalance, REBALANCE_MODES[:2])
        check_parameters(
            effective_number_beta=self.beta,
            focal_gamma=self.focal_gamma,
            focal_scale=self.focal_scale,
            arguments={"effective_number_beta": "beta"},
        )
        self._weight_function = REWEIGHTINGS[weighting]
        # Computing weights once refuses bad counts here instead of at the first batch.
        self.num_classes = np.size(class_counts)
        self._weights(np.zeros((1, self.num_classes), np.float32))

    def _elements(self, y_true: Any, logits: Any) -> Any:
        return negative_tolerant_crossentropy(
            y_true,
            logits,
            focal_gamma=self.focal_gamma,
            focal_scale=self.focal_scale,
            hard_targets=self._hard_targets,
        )

    def _weights(self, y_true: Any) -> Any:
        arguments = {"beta": self.beta} if self.weighting == "class_balanced" else {}
        return self._weight_function(y_true, self.class_counts, **arguments, all_known=True)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal loss."""
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

    Positives of rarer classes have to clear larger margins. With `z = s (cos θ − y Δ)`,

    `ℓ = y softplus(−z) + (1 − y) softplus(z)`, `Δ_i ∝ n_i^(−1/4)`, the largest `max_margin`.

    `y_pred` is `s cos θ`, which `dbl_tf.CosineClassifier(C, scale=s)` computes. The margin applies
    only to training: predictions are σ(s cos θ).

    Args:
        class_counts: the numbers n_i of training examples of each class, shape (C,), positive.
        max_margin: the largest Δ, at least 0, on the scale of cos θ.
        scale: the scale s > 0 of the classifier.
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`. "mean" is the mean over all B·C elements.
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.

    Call arguments:
        y_true: the labels, multi-hot or soft in [0, 1], shape (B, C).
        y_pred: the logits, shape (B, C).
        sample_weight: weights of examples, (B,) or (B, 1), or weights of elements, (B, C).

    Raises:
        ValueError: if an argument is out of range; if a class has no examples; if `y_pred` and
            `class_counts` differ in the number of classes.

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
        max_margin: float = DEFAULTS.max_margin,
        scale: float = DEFAULTS.cosine_scale,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "ldam_loss",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)
        self.class_counts = np.asarray(class_counts).tolist()
        self.max_margin = float(max_margin)
        self.scale = float(scale)
        check_parameters(
            max_margin=self.max_margin,
            cosine_scale=self.scale,
            arguments={"cosine_scale": "scale"},
        )
        self._margins = self.scale * ldam_margins(self.class_counts, self.max_margin)
        self.num_classes = len(self._margins)

    def _elements(self, y_true: Any, logits: Any) -> Any:
        margins = ops.convert_to_tensor(self._margins, dtype=self.dtype)
        return negative_tolerant_crossentropy(
            y_true, logits, nu=y_true * margins, hard_targets=self._hard_targets
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal loss."""
        return {
            **super().get_config(),
            "class_counts": self.class_counts,
            "max_margin": self.max_margin,
            "scale": self.scale,
        }


@keras.saving.register_keras_serializable(package="dbl_tf")
class AsymmetricLoss(ElementwiseLoss):
    """Asymmetric Loss for multi-label classification, which down-weights easy negatives most.

    With p = σ(z) and p_m = max(p − m, 0),

    `ℓ = −y (1 − p)^γ₊ log p − (1 − y) p_m^γ₋ log(1 − p_m)`.

    The reduction "mean" averages over all B·C elements, whereas the publication sums over classes.

    Args:
        gamma_negative: the focusing exponent γ₋ ≥ 0 of the negatives.
        gamma_positive: the focusing exponent γ₊ ≥ 0 of the positives.
        clip: the shift m in [0, 1). Negatives with a lower probability have a loss of zero.
        from_logits: whether `y_pred` contains logits; otherwise it contains probabilities.
        reduction: the reduction of `keras.losses.Loss`.
        name: the name of the loss.
        dtype: the type of the computation. Half precision is computed in float32.

    Call arguments:
        y_true: the labels, multi-hot or soft in [0, 1], shape (B, C).
        y_pred: the logits, shape (B, C).
        sample_weight: weights of examples, (B,) or (B, 1), or weights of elements, (B, C).

    Raises:
        ValueError: if an argument is out of range, or `y_true` and `y_pred` differ in shape.

    Reference: Ridnik et al., Asymmetric Loss for Multi-Label Classification, ICCV 2021.

    Example:

    >>> loss = AsymmetricLoss()
    >>> round(float(loss([[1.0, 0.0]], [[0.0, -3.0]])), 4)  # log 2 / 2 / 2; σ(−3) < 0.05
    0.1733
    """

    def __init__(
        self,
        *,
        gamma_negative: float = DEFAULTS.gamma_negative,
        gamma_positive: float = DEFAULTS.gamma_positive,
        clip: float = DEFAULTS.clip,
        from_logits: bool = True,
        reduction: str | None = "mean",
        name: str | None = "asymmetric_loss",
        dtype: Any = None,
    ):
        super().__init__(from_logits, reduction, name, dtype)
        self.gamma_negative = float(gamma_negative)
        self.gamma_positive = float(gamma_positive)
        self.clip = float(clip)
        check_parameters(
            gamma_negative=self.gamma_negative, gamma_positive=self.gamma_positive, clip=self.clip
        )

    def _elements(self, y_true: Any, logits: Any) -> Any:
        return asymmetric_crossentropy(
            y_true, logits, self.gamma_negative, self.gamma_positive, self.clip
        )

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal loss."""
        return {
            **super().get_config(),
            "gamma_negative": self.gamma_negative,
            "gamma_positive": self.gamma_positive,
            "clip": self.clip,
        }


def _check_num_examples(num_examples: Any, class_counts: Any) -> None:
    number = np.asarray(num_examples)
    are_exchanged = np.ndim(class_counts) == 0 and number.ndim == 1
    lowest = 1 if number.ndim == 0 else 0  # of a class, all labels may be unknown
    is_whole = number.dtype.kind in "iuf" and bool(((number >= lowest) & (number % 1 == 0)).all())
    if are_exchanged or not is_whole:
        raise ValueError(
            "num_examples must be the number of training examples, a whole number of at least 1; "
            f"got {num_examples!r:.80}{'. class_counts comes first' if are_exchanged else ''}"
        )


def _check_rebalance(rebalance: str | None, modes: Sequence[str | None]) -> None:
    if rebalance not in modes:
        raise ValueError(f"rebalance must be one of {modes}, got {rebalance!r}")
