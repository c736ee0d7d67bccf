"""SGD with coupled weight decay, and the learning-rate schedule of the paper."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from dbl_tf.keras_internals import SumClippingOptimizer, variable_index


@keras.saving.register_keras_serializable(package="dbl_tf")
class CoupledDecaySGD(SumClippingOptimizer):
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
        name: str = "coupled_decay_sgd",
        **kwargs: Any,
    ):
        super().__init__(
            learning_rate=learning_rate, global_clipnorm=global_clipnorm, name=name, **kwargs
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
        gradient = ops.cast(gradient, variable.dtype) + self.coupled_weight_decay * variable
        velocity_now = ops.cast(self.momentum, variable.dtype) * velocity + gradient
        self.assign(velocity, velocity_now)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * velocity_now)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments that create an equal optimizer."""
        config = super().get_config()
        config.pop("weight_decay", None)
        return {
            **config,
            "momentum": self.momentum,
            "coupled_weight_decay": self.coupled_weight_decay,
        }


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
