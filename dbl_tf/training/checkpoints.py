"""Checkpoints from which a training run continues exactly."""

import contextlib
import io
import os
import pathlib
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from absl import logging

from dbl_tf import atomic
from dbl_tf.messages import one_line

_SUFFIX = ".npy"  # of the members of an archive
# What zipfile and NumPy raise for archives of which single bits have changed: methods, flags, sizes
# and places of a zip file, and headers of arrays.

_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    tokenize.TokenError,
    EOFError,
    KeyError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


class Checkpoints:
    """The checkpoints of one training run: everything that the next step depends on.

    A checkpoint holds every variable of the model and its optimizer, and the states of the random
    generators. A process that is killed at any moment leaves only whole checkpoints behind.

    Args:
        directory: the directory of the checkpoints, in a folder that exists. The first one creates
            it.
        keep: the number of newest checkpoints that are kept.
    """

    _NAME = re.compile(r"step-(\d{8})\.npz")

    def __init__(self, directory: str | os.PathLike, keep: int = 2):
        self.directory = pathlib.Path(directory)
        self.keep = keep

    def steps(self) -> list[int]:
        """The steps of the existing checkpoints, in rising order."""
        matches = (self._NAME.fullmatch(path.name) for path in self.directory.glob("*.npz"))
        return sorted(int(match[1]) for match in matches if match)

    def path(self, step: int) -> pathlib.Path:
        """The file of the checkpoint of a step."""
        return self.directory / f"step-{step:08d}.npz"

    def save(self, model: keras.Model, step: int, loss_sum: float = 0.0) -> None:
        """Writes the state after `step` steps, and removes the oldest checkpoints beyond `keep`.

        Args:
            model: a compiled model.
            step: the number of steps trained.
            loss_sum: the sum of the losses of an epoch that has not ended yet.

        Raises:
            FloatingPointError: the state is not finite. Nothing is written.
            OSError: the checkpoint cannot be written. The earlier ones are left as they are.
        """
        variables = _state(model)
        values = [keras.ops.convert_to_numpy(variable) for variable in variables]
        self._check_finite(variables, values, step)
        self.directory.mkdir(exist_ok=True)  # not a run directory that was removed
        save_arrays(self.path(step), values, loss_sum=loss_sum)
        # A checkpoint of a later step is damaged, or training would have continued from it.
        kept = [other for other in self.steps() if other <= step][-self.keep :]
        for other in set(self.steps()) - set(kept):
            self.path(other).unlink()

    def restore(self, model: keras.Model) -> tuple[int, float]:
        """Restores the model from the newest checkpoint that is whole.

        Args:
            model: a compiled model of the same structure as the one that was saved.

        Returns:
            The number of steps it was trained for, 0 if there is no checkpoint; and `loss_sum`.

        Raises:
            ValueError: there are checkpoints, but none is whole and fits the model.
        """
        steps = self.steps()
        damaged = []
        for step in reversed(steps):
            try:
                return step, self._load(model, self.path(step))
            except (OSError, ValueError) as error:
                damaged.append(str(error))
                logging.warning("cannot use a checkpoint; trying the one before: %s", damaged[-1])
        if damaged:
            raise ValueError(
                f"no checkpoint can be used: {'; '.join(damaged)}. Restore one from a copy, or "
                f"remove {self.directory} to train again from step 0"
            )
        return 0, 0.0

    def _check_finite(
        self, variables: Sequence[keras.Variable], values: Sequence[np.ndarray], step: int
    ) -> None:
        # The loss of a step is computed before its update, so it may be finite when this is not.
        paths = [
            variable.path
            for variable, value in zip(variables, values, strict=True)
            if not np.isfinite(value).all()
        ]
        if paths:
            raise FloatingPointError(
                f"{', '.join(paths[:5])}{', …' if len(paths) > 5 else ''} "
                f"{'is' if len(paths) == 1 else 'are'} not finite after step {step}; the last "
                f"checkpoint is of step {max(self.steps(), default=0)}. A lower learning rate or a "
                "longer warm-up may help."
            )

    @staticmethod
    def _load(model: keras.Model, path: pathlib.Path) -> float:
        variables = _state(model)
        loss_sum, values = load_numbers(path, ["loss_sum"])["loss_sum"], load_arrays(path)
        shapes = [tuple(v.shape) for v in variables]
        if [v.shape for v in values] != shapes:
            raise ValueError(f"{path}: the shapes of its variables are not those of the model")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        return loss_sum


def save_arrays(path: pathlib.Path, values: Sequence[np.ndarray], **numbers: float) -> None:
    """Writes arrays and named numbers to an `.npz` file, as a whole or not at all."""
    arrays: dict[str, Any] = {**numbers, **{str(i): value for i, value in enumerate(values)}}
    with atomic.replacing(path) as tmp_path:
        np.savez(tmp_path, **arrays)


def load_arrays(path: pathlib.Path) -> list[np.ndarray]:
    """Reads the arrays that `save_arrays` wrote.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged; the message names it.
    """
    with _open_archive(path) as archive:
        # A name that has changed is found out when its array is read.
        arrays = {name: _read_array(archive, name) for name in archive.namelist()}
        count = sum(name.removesuffix(_SUFFIX).isdigit() for name in arrays)
        return [arrays[f"{i}{_SUFFIX}"] for i in range(count)]


def load_numbers(path: pathlib.Path, names: Sequence[str]) -> dict[str, float]:
    """Reads numbers that `save_arrays` wrote, and none of the arrays.

    Raises:
        OSError, ValueError: see `load_arrays`.
    """
    values = load_named_arrays(path, names)
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def load_named_arrays(path: pathlib.Path, names: Sequence[str]) -> list[np.ndarray]:
    """Reads some arrays of an `.npz` file.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file is damaged, or has no array of a name; the message names the file.
    """
    with _open_archive(path) as archive:
        return [_read_array(archive, f"{name}{_SUFFIX}") for name in names]


def _read_array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    # The checksum is compared when all bytes of a member have been read, which NumPy does not do
    # where a header that has changed gives a shorter array.
    content = io.BytesIO(archive.read(name))
    array = np.lib.format.read_array(content, allow_pickle=False)
    if content.read(1):
        raise ValueError(f"{name} is longer than its header says")
    return array


@contextlib.contextmanager
def _open_archive(path: pathlib.Path) -> Iterator[zipfile.ZipFile]:
    """Opens an `.npz` file, and names it in the errors of reading it."""
    try:
        with open(path, "rb") as content:
            if not zipfile.is_zipfile(content):
                raise ValueError("it is no archive of arrays, or its end is cut off")
            with zipfile.ZipFile(content) as archive:
                yield archive
    except _DAMAGED as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # it cannot be opened
        raise ValueError(f"{path} is damaged: {one_line(error)}") from error


def _state(model: keras.Model) -> list[keras.Variable]:
    """Every variable that the next step depends on, in the order of the files."""
    # What `model.variables` holds beyond `model.weights` are the states of random generators.
    weights = {id(v) for v in model.weights}
    random_states = [v for v in model.variables if id(v) not in weights]
    return [*model.weights, *random_states, *model.optimizer.variables]
