"""What a training shows of its progress."""

import time
from typing import Any

import keras

from dbl_tf.terminal import Progress, duration, rate


class TrainingProgress(keras.callbacks.Callback):
    """Says after each epoch, and meanwhile as `Progress` does, how far a training is.

    A line holds the epoch, the step, the mean loss of the epoch, what the logs have of the val
    split, images a second and the time that is left of the training, measured from the end of its
    first step here on, so that it does not hold the time of compilation.

    Args:
        progress: what shows the lines.
        steps: the total number of training steps.
        steps_per_epoch: the number of steps of an epoch.
        batch_size: the number of examples of a step; None if it is not known.
        name: the name of the training, if there are several in a program.
    """

    def __init__(
        self,
        progress: Progress,
        *,
        steps: int,
        steps_per_epoch: int,
        batch_size: int | None = None,
        name: str = "",
    ):
        super().__init__()
        self._progress, self._name = progress, name
        self._steps, self._steps_per_epoch = steps, steps_per_epoch
        self._batch_size = batch_size
        self._epoch, self._step = 0, 0
        self._first: tuple[int, float] | None = None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the number of the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Shows the step, if it is time to."""
        self._step = self._epoch * self._steps_per_epoch + batch + 1
        if self._first is None:
            self._first = self._step, time.monotonic()
        self._progress.update(self._step, lambda: self._describe(logs or {}))

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Prints the line of the epoch."""
        self._progress.say(self._describe(logs or {}))

    def _describe(self, logs: dict[str, Any]) -> str:
        facts = [f"loss {logs['loss']:.4g}"]
        facts += [f"{name} {value:.4f}" for name, value in logs.items() if name.startswith("val_")]
        first_step, first_time = self._first or (self._step, time.monotonic())
        num_steps, seconds = self._step - first_step, max(time.monotonic() - first_time, 1e-9)
        per_second = logs.get("images_per_second")
        if per_second is None and self._batch_size is not None and num_steps:
            per_second = self._batch_size * num_steps / seconds
        if per_second is not None:
            facts.append(f"{rate(per_second)} images/s")
        if num_steps and self._step < self._steps:
            left = seconds / num_steps * (self._steps - self._step)
            facts.append(f"about {duration(left)} left{f' of {self._name}' if self._name else ''}")
        epochs = -(-self._steps // self._steps_per_epoch)
        return (
            f"{f'{self._name}, ' if self._name else ''}epoch {self._epoch + 1} of {epochs}, step "
            f"{self._step:,} of {self._steps:,}: {', '.join(facts)}"
        )
