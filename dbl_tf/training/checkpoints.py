"""Checkpoints from which a training run continues exactly."""

import os
import pathlib
import re
import zipfile

import keras
import numpy as np
from absl import logging

from dbl_tf import atomic


class Checkpoints:
    """Checkpoints of one training run: everything that changes the next step.

    A checkpoint holds every variable of the model and its optimizer, states of random generators
    included. A process killed at any moment leaves whole checkpoints only.

    Args:
        directory: where they lie; made when the first is written.
        keep: how many of the newest are kept.
    """

    _NAME = re.compile(r"step-(\d{8})\.npz")

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        self.directory = pathlib.Path(directory)
        self.keep = keep

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are there, rising."""
        matches = (self._NAME.fullmatch(path.name) for path in self.directory.glob("*.npz"))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> pathlib.Path:
        """The file of a step."""
        return self.directory / f"step-{step:08d}.npz"

    def save(self, model: keras.Model, step: int, loss_sum: float = 0.0) -> None:
        """Writes the state after `step` steps, and removes the oldest beyond `keep`.

        Args:
            model: compiled.
            step: steps trained.
            loss_sum: of the steps of the epoch that is not at its end.

        Raises:
            OSError: it cannot be written; those before it are as they were.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(self.path(step)) as beside:
            np.savez(
                beside,
                loss_sum=loss_sum,
                **{str(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(_state(model))},
            )
        # One of a later step was passed over as damaged, or training would not be here.
        kept = [other for other in self.steps() if other <= step][-self.keep :]
        for other in set(self.steps()) - set(kept):
            self.path(other).unlink()

    def restore(self, model: keras.Model) -> tuple[int, float]:
        """Brings the model to the newest whole checkpoint.

        Args:
            model: compiled, as the one that was saved.

        Returns:
            The number of steps it has trained, 0 where there is no checkpoint; and `loss_sum`.

        Raises:
            ValueError: there are checkpoints, and none is whole and fits the model.
        """
        steps = self.steps()
        damaged = []
        for step in reversed(steps):
            try:
                return step, self._load(model, self.path(step))
            except (zipfile.BadZipFile, OSError, EOFError, KeyError, ValueError) as error:
                damaged.append(f"{self.path(step)}: {error}")
                logging.warning("checkpoint cannot be used, the one before it is: %s", damaged[-1])
        if damaged:
            raise ValueError("no checkpoint can be used: " + "; ".join(damaged))
        return 0, 0.0

    @staticmethod
    def _load(model: keras.Model, path: pathlib.Path) -> float:
        variables = _state(model)
        with np.load(path) as file:
            loss_sum = float(file["loss_sum"])
            values = [file[str(i)] for i in range(len(file.files) - 1)]
        shapes = [tuple(v.shape) for v in variables]
        if [v.shape for v in values] != shapes:
            raise ValueError("it is of a model of other shapes")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return loss_sum


def _state(model: keras.Model) -> list[keras.Variable]:
    # `model.weights` leaves out random states, `model.variables` holds those of metrics too.
    seeds = [v for v in model.variables if v.name == "seed_generator_state"]
    return [*model.weights, *seeds, *model.optimizer.variables]
