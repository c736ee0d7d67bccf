"""The optimizers, whose rates may differ between variables, and the learning-rate schedules."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from dbl_tf.keras_internals import SumClippingOptimizer, fused_adam_step, variable_index


class _RateFactorOptimizer(SumClippingOptimizer):
    """An optimizer whose learning rate has a factor for each variable, in the order of `build`."""

    def __init__(self, *, rate_factors: Sequence[float] | None, **kwargs: Any):
        super().__init__(**kwargs)
        if rate_factors is not None:
            for factor in rate_factors:
                if not 0 <= factor < math.inf:
                    raise ValueError(f"rate_factors must be finite and at least 0, got {factor}")
            rate_factors = [float(factor) for factor in rate_factors]
        self.rate_factors = rate_factors

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the variables of the optimizer."""
        if (
            not self.built
            and self.rate_factors is not None
            and len(self.rate_factors) != len(variables)
        ):
            raise ValueError(
                f"rate_factors holds {len(self.rate_factors)} numbers for {len(variables)} "
                "variables"
            )
        super().build(variables)

    def rate_of(self, variable: Any, learning_rate: Any) -> Any:
        """Returns the learning rate of a variable."""
        if self.rate_factors is None:
            return learning_rate
        return learning_rate * self.rate_factors[variable_index(self, variable)]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal optimizer."""
        config = super().get_config()
        config.pop("weight_decay", None)  # of Keras, in place of which each optimizer has its own
        return {**config, "rate_factors": self.rate_factors}


@keras.saving.register_keras_serializable(package="dbl_tf")
class CoupledDecaySGD(_RateFactorOptimizer):
    """SGD with momentum whose weight decay is part of the gradient, as in the paper's training.

    With the gradient g of the whole batch, clipped to the global norm:

    `g ← g + d·w;  v ← m·v + g;  w ← w − lr·v`.

    Keras's own `SGD` multiplies the learning rate into v, which differs once the rate changes, and
    decays the weights separately from v.

    Args:
        learning_rate: the rate lr, a number or a `LearningRateSchedule`.
        momentum: the momentum m in [0, 1).
        coupled_weight_decay: the decay d ≥ 0 of every trainable variable.
        global_clipnorm: the largest norm of all gradients together, after they are summed over the
            replicas. None does not clip.
        rate_factors: a factor of the learning rate for each variable, in the order of the
            variables that the optimizer is built with. None uses the same rate for all.
        name: the name of the optimizer.
        **kwargs: further arguments of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        learning_rate: Any = 0.02,
        momentum: float = 0.9,
        coupled_weight_decay: float = 1e-4,
        global_clipnorm: float | None = 35.0,
        rate_factors: Sequence[float] | None = None,
        name: str = "coupled_decay_sgd",
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate,
            global_clipnorm=global_clipnorm,
            rate_factors=rate_factors,
            name=name,
            **kwargs,
        )
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        if not coupled_weight_decay >= 0:
            raise ValueError(f"coupled_weight_decay must be at least 0, got {coupled_weight_decay}")
        self.momentum = float(momentum)
        self.coupled_weight_decay = float(coupled_weight_decay)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates v, one for each variable."""
        if self.built:
            return
        super().build(variables)
        self.momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Applies one step to one variable."""
        velocity = self.momentums[variable_index(self, variable)]
        rate = self.rate_of(variable, learning_rate)
        gradient = ops.cast(gradient, variable.dtype) + self.coupled_weight_decay * variable
        velocity_now = ops.cast(self.momentum, variable.dtype) * velocity + gradient
        self.assign(velocity, velocity_now)
        self.assign_sub(variable, ops.cast(rate, variable.dtype) * velocity_now)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal optimizer."""
        return {
            **super().get_config(),
            "momentum": self.momentum,
            "coupled_weight_decay": self.coupled_weight_decay,
        }


@keras.saving.register_keras_serializable(package="dbl_tf")
class DecoupledDecayAdam(_RateFactorOptimizer, keras.optimizers.Adam):
    """AdamW (Loshchilov and Hutter, ICLR 2019): Adam with weight decay beside the gradient.

    `w ← w − lr·d·w`, and then the step of Adam. Biases, and the scales and offsets of
    normalization, which are vectors, do not decay. Keras's own `AdamW` decays them too, clips the
    gradients of each replica by themselves, and knows one rate for all variables.

    Args:
        learning_rate: the rate lr, a number or a `LearningRateSchedule`.
        decoupled_weight_decay: the decay d ≥ 0 of every trainable variable of two or more axes.
        global_clipnorm: the largest norm of all gradients together, after they are summed over the
            replicas. None does not clip.
        rate_factors: as in `CoupledDecaySGD`.
        name: the name of the optimizer.
        **kwargs: further arguments of `keras.optimizers.Adam`.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        decoupled_weight_decay: float = 0.01,
        global_clipnorm: float | None = 35.0,
        rate_factors: Sequence[float] | None = None,
        name: str = "decoupled_decay_adam",
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate,
            global_clipnorm=global_clipnorm,
            rate_factors=rate_factors,
            name=name,
            **kwargs,
        )
        if not decoupled_weight_decay >= 0:
            raise ValueError(
                f"decoupled_weight_decay must be at least 0, got {decoupled_weight_decay}"
            )
        self.decoupled_weight_decay = float(decoupled_weight_decay)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Applies one step to one variable."""
        rate = self.rate_of(variable, learning_rate)
        if len(variable.shape) > 1 and self.decoupled_weight_decay:
            decay = ops.cast(rate, variable.dtype) * self.decoupled_weight_decay
            self.assign_sub(variable, decay * variable)
        if keras.backend.backend() == "tensorflow" and not self.amsgrad:
            fused_adam_step(self, gradient, variable, rate)
        else:
            super().update_step(gradient, variable, rate)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal optimizer."""
        return {**super().get_config(), "decoupled_weight_decay": self.decoupled_weight_decay}


@keras.saving.register_keras_serializable(package="dbl_tf")
class WarmupStepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from a third of the rate, then division by ten at each boundary.

    `lr_t = lr (1 − (1 − t/w)·2/3)` for t < w (Goyal et al., 2017), and `lr·0.1^k` after k
    boundaries.

    Args:
        learning_rate: the rate lr after the warm-up.
        warmup_steps: the number w ≥ 0 of steps of the warm-up.
        boundaries: the first step of each lower rate, in rising order.
    """

    def __init__(self, learning_rate: float, warmup_steps: int, boundaries: Sequence[int] = ()):
        self.learning_rate = float(learning_rate)
        self.warmup_steps = int(warmup_steps)
        self.boundaries = [int(boundary) for boundary in boundaries]

    def __call__(self, step: Any) -> Any:
        """The learning rate of a step, counted from 0."""
        step = ops.cast(step, "float32")
        decays = sum(ops.cast(step >= boundary, "float32") for boundary in self.boundaries)
        missing = ops.maximum(0.0, 1.0 - step / max(self.warmup_steps, 1))
        if not self.warmup_steps:
            missing = ops.zeros_like(step)
        return self.learning_rate * (1.0 - missing * (2.0 / 3.0)) * 0.1**decays

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal schedule."""
        return {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "boundaries": self.boundaries,
        }


def warmup_cosine(
    learning_rate: float, warmup_steps: int, steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Returns a linear warm-up from a third of the rate, then half a cosine that ends at 0.

    Loshchilov and Hutter, SGDR, ICLR 2017, without restarts.

    Args:
        learning_rate: the rate after the warm-up.
        warmup_steps: the number of steps of the warm-up.
        steps: the number of all steps, those of the warm-up included.
    """
    decay_steps = max(steps - warmup_steps, 1)
    if not warmup_steps:
        return keras.optimizers.schedules.CosineDecay(learning_rate, decay_steps)
    return keras.optimizers.schedules.CosineDecay(
        learning_rate / 3, decay_steps, warmup_target=learning_rate, warmup_steps=warmup_steps
    )
