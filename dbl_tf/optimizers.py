"""SGD with coupled weight decay, and the learning-rate schedule of the paper."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="dbl_tf")
class CoupledDecaySGD(keras.optimizers.Optimizer):
    """SGD whose decay goes through the momentum, as the paper's training has it.

    With the gradient g of the whole batch, clipped to the global norm:

    `g ← g + d·w;  v ← m·v + g;  w ← w − lr·v`.

    Keras's own `SGD` multiplies the learning rate into v, which differs once the rate changes, and
    decays the weights apart from v.

    Args:
        learning_rate: lr, a number or a `LearningRateSchedule`.
        momentum: m in [0, 1).
        coupled_weight_decay: d ≥ 0, for every trainable variable.
        global_clipnorm: largest norm of all gradients together, applied after they are summed over
            the replicas; None leaves them.
        name: of the optimizer.
        **kwargs: of `keras.optimizers.Optimizer`.

    Raises:
        ValueError: a value out of range.
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
        """Makes v, one for each variable."""
        if self.built:
            return
        super().build(variables)
        self.momentums = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """One step of one variable."""
        velocity = self.momentums[self._get_variable_index(variable)]
        gradient = ops.cast(gradient, variable.dtype) + self.coupled_weight_decay * variable
        velocity_now = ops.cast(self.momentum, variable.dtype) * velocity + gradient
        self.assign(velocity, velocity_now)
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * velocity_now)

    def _clip_gradients(self, grads: list[Any]) -> list[Any]:
        return grads  # each replica's share alone is not what is to be clipped

    def _backend_update_step(
        self, grads: list[Any], trainable_variables: list[Any], learning_rate: Any
    ) -> None:
        if keras.backend.backend() != "tensorflow":
            grads = super()._clip_gradients(grads)
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        import tensorflow as tf

        variables = [getattr(v, "value", v) for v in trainable_variables]
        reduced = self._all_reduce_sum_gradients(list(zip(grads, variables, strict=True)))
        grads = super()._clip_gradients([gradient for gradient, _ in reduced])
        tf.__internal__.distribute.interim.maybe_merge_call(
            self._distributed_tf_update_step,
            tf.distribute.get_strategy(),
            list(zip(grads, variables, strict=True)),
            learning_rate,
        )

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal optimizer."""
        config = super().get_config()
        config.pop("weight_decay", None)
        return {
            **config,
            "momentum": self.momentum,
            "coupled_weight_decay": self.coupled_weight_decay,
        }


@keras.saving.register_keras_serializable(package="dbl_tf")
class WarmupStepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from a third of the rate, then a tenth of it after each boundary.

    `lr_t = lr (1 − (1 − t/w)·2/3)` for t < w (Goyal et al., 2017), and `lr·0.1^k` once k
    boundaries are reached.

    Args:
        learning_rate: lr.
        warmup_steps: w ≥ 0.
        boundaries: steps from which each decay holds, rising.
    """

    def __init__(self, learning_rate: float, warmup_steps: int, boundaries: Sequence[int] = ()):
        self.learning_rate = float(learning_rate)
        self.warmup_steps = int(warmup_steps)
        self.boundaries = [int(boundary) for boundary in boundaries]

    def __call__(self, step: Any) -> Any:
        """The learning rate of step `step`, counted from 0."""
        step = ops.cast(step, "float32")
        decays = sum(ops.cast(step >= boundary, "float32") for boundary in self.boundaries)
        missing = ops.maximum(0.0, 1.0 - step / max(self.warmup_steps, 1))
        if not self.warmup_steps:
            missing = ops.zeros_like(step)
        return self.learning_rate * (1.0 - missing * (2.0 / 3.0)) * 0.1**decays

    def get_config(self) -> dict[str, Any]:
        """Arguments that make an equal schedule."""
        return {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "boundaries": self.boundaries,
        }
