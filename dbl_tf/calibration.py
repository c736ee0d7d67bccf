"""Probabilities from logits: a shared slope, and an offset for each class.

σ(z) of a re-balanced loss is a score and not a probability: the loss is made such that rare labels
score high. A logistic curve of the logit (Platt, 1999) makes it one again. The slope is shared and
positive, so that the ranking of the examples by any class, and its average precision, stay as they
are.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special

from dbl_tf import atomic

# A class that has few positives is taken to have as many more as this at its prevalence.
PSEUDO_POSITIVES = 2.0
# The slope is one number, which so many logits determine to far more digits than matter.
_MOST_LOGITS_FOR_SLOPE = 2_000_000
# Bounds of the slope on logits of unit spread. Below the lower one, logits that are no better than
# chance, or worse, would be turned upside down.
_SLOPES = (1e-3, 1e3)
_MOST_NEWTON_STEPS = 60
_TOLERANCE = 1e-10
# Elements at once, so that float64 copies stay small.
_CHUNK = 1 << 21


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """A map from logits to probabilities, `σ(slope · z + offsets)`.

    Attributes:
        slope: the slope, greater than 0.
        offsets: the offset of each class, float64 (C,).
        fitted_on: the name of the split on which it was fitted, or "none".
    """

    slope: float
    offsets: np.ndarray
    fitted_on: str

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Returns the probabilities of logits (N, C), float64."""
        return scipy.special.expit(self.slope * np.asarray(logits, np.float64) + self.offsets)

    @classmethod
    def identity(cls, num_classes: int) -> "Calibration":
        """Returns the map σ(z)."""
        return cls(1.0, np.zeros(num_classes), "none")

    def as_json(self) -> dict[str, Any]:
        """Returns the map in the types of JSON."""
        return {**dataclasses.asdict(self), "offsets": self.offsets.tolist()}

    def save(self, path: str | os.PathLike) -> None:
        """Writes the map as JSON."""
        with atomic.replacing(path) as tmp_path:
            tmp_path.write_text(json.dumps(self.as_json()), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Reads a map that `save` wrote.

        Raises:
            ValueError: the file holds no such map; the message names it.
        """
        try:
            content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
            offsets = np.array(content["offsets"], np.float64)
            return cls(float(content["slope"]), offsets, str(content["fitted_on"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} holds no calibration: {error!r}") from error


def fit_calibration(
    logits: Any,
    labels: Any,
    *,
    prevalence: Any,
    fitted_on: str,
    pseudo_positives: float = PSEUDO_POSITIVES,
) -> Calibration:
    """Fits a calibration on examples that the model has not been trained on.

    The offset of a class is the one at which its mean probability is

    `(k + s) / (N + s/π)`

    for k positives among N examples, prevalence π and s pseudo-positives: π where there are few
    positives to go by, and k/N where there are many. Without shrinkage (s = 0), slope and offsets
    are those of the largest likelihood. The slope minimizes the log loss of all N·C decisions.

    Args:
        logits: logits (N, C).
        labels: multi-hot labels (N, C).
        prevalence: the share of each class among the training examples, (C,), in (0, 1).
        fitted_on: the name of the split of the examples.
        pseudo_positives: the strength s ≥ 0 of the prevalence.

    Raises:
        ValueError: shapes that differ, logits that are not finite, labels other than 0 and 1, or a
            prevalence outside (0, 1).
    """
    logits, labels, prevalence = _checked(logits, labels, prevalence)
    if not pseudo_positives >= 0:
        raise ValueError(f"pseudo_positives must be at least 0, got {pseudo_positives}")
    num_examples = len(logits)
    positives = labels.sum(axis=0, dtype=np.float64)
    target = (positives + pseudo_positives) / (num_examples + pseudo_positives / prevalence)
    if not pseudo_positives:
        tiny = 0.5 / (num_examples + 1)  # the offset of a class without positives has no maximum
        target = np.clip(target, tiny, 1 - tiny)
    spread = float(logits.std()) or 1.0
    rows = _rows_for_slope(num_examples, logits.shape[1])
    some_logits, some_labels = logits[rows] / spread, labels[rows]
    # The mean probability that the rows must have is that of all of them.
    start = np.zeros(logits.shape[1])

    def loss(log_slope: float) -> float:
        slope = float(np.exp(log_slope))
        start[:] = _offsets(some_logits, slope, target, start)
        return _log_loss(some_logits, some_labels, slope, start)

    found = scipy.optimize.minimize_scalar(
        loss, bounds=tuple(np.log(_SLOPES)), method="bounded", options={"xatol": 1e-6}
    )
    slope = float(np.exp(found.x)) / spread
    return Calibration(slope, _offsets(logits, slope, target, start), fitted_on)


def _checked(logits: Any, labels: Any, prevalence: Any) -> tuple[np.ndarray, ...]:
    logits, labels = np.asarray(logits), np.asarray(labels)
    prevalence = np.asarray(prevalence, np.float64)
    if logits.ndim != 2 or logits.shape != labels.shape or not logits.size:
        raise ValueError(
            f"logits and labels must have one shape (N, C), got {logits.shape} and {labels.shape}"
        )
    if prevalence.shape != logits.shape[1:]:
        raise ValueError(
            f"prevalence must have a value for each of {logits.shape[1]} classes, got shape "
            f"{prevalence.shape}"
        )
    if not np.isfinite(logits).all():
        row, column = np.argwhere(~np.isfinite(logits))[0]
        raise ValueError(f"logits must be finite, got {logits[row, column]} at ({row}, {column})")
    if not np.isin(labels, (0, 1)).all():
        row, column = np.argwhere(~np.isin(labels, (0, 1)))[0]
        raise ValueError(f"labels must be 0 or 1, got {labels[row, column]} at ({row}, {column})")
    if not ((prevalence > 0) & (prevalence < 1)).all():
        column = int(np.argmin((prevalence > 0) & (prevalence < 1)))
        raise ValueError(f"prevalence must be in (0, 1), got {prevalence[column]} at {column}")
    return logits, labels.astype(bool), prevalence


def _rows_for_slope(num_examples: int, num_classes: int) -> np.ndarray:
    most = max(_MOST_LOGITS_FOR_SLOPE // num_classes, 1)
    if num_examples <= most:
        return np.arange(num_examples)
    return np.sort(np.random.default_rng(0).choice(num_examples, most, replace=False))


def _chunks(num_examples: int, num_classes: int) -> list[slice]:
    size = max(_CHUNK // num_classes, 1)
    return [slice(start, start + size) for start in range(0, num_examples, size)]


def _offsets(logits: np.ndarray, slope: float, target: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The offsets (C,) at which the mean probability of each class is its target.

    Newton's method on the logit of the mean, which is nearly linear in the offset, inside a bracket
    that shrinks: mean probabilities rise with the offset.
    """
    reach = slope * np.abs(logits).max(axis=0) + np.abs(scipy.special.logit(target)) + 1.0
    low, high = -reach, reach.copy()
    offsets = np.clip(start, low, high)
    wanted = scipy.special.logit(target)
    for _ in range(_MOST_NEWTON_STEPS):
        mean, derivative = _mean_and_derivative(logits, slope, offsets)
        low, high = np.where(mean < target, offsets, low), np.where(mean > target, offsets, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = scipy.special.logit(mean) - wanted
            step = error * mean * (1 - mean) / derivative
        if np.abs(error).max() < _TOLERANCE:
            break
        moved = offsets - step
        outside = ~((moved > low) & (moved < high))
        offsets = np.where(outside, (low + high) / 2, moved)
    return offsets


def _mean_and_derivative(
    logits: np.ndarray, slope: float, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    total, derivative = np.zeros(len(offsets)), np.zeros(len(offsets))
    for part in _chunks(*logits.shape):
        probabilities = scipy.special.expit(slope * logits[part].astype(np.float64) + offsets)
        total += probabilities.sum(axis=0)
        derivative += (probabilities * (1 - probabilities)).sum(axis=0)
    return total / len(logits), derivative / len(logits)


def _log_loss(logits: np.ndarray, labels: np.ndarray, slope: float, offsets: np.ndarray) -> float:
    total = 0.0
    for part in _chunks(*logits.shape):
        scaled = slope * logits[part].astype(np.float64) + offsets
        total += np.logaddexp(0.0, np.where(labels[part], -scaled, scaled)).sum()
    return total / logits.size
