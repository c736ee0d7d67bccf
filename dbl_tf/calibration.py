"""Probabilities from logits: a shared slope, and an offset for each class.

σ(z) of a re-balanced loss is a score and not a probability: the loss is made such that rare labels
score high. A logistic curve of the logit (Platt, 1999) makes it one again. The slope is shared and
positive, so that the ranking of the examples by any class, and its average precision, stay as they
are. The module needs NumPy, SciPy and msgspec only.

References:
    Platt, Probabilistic Outputs for Support Vector Machines, 1999: logistic curves of scores.
    Woolf, On Estimating the Relation between Blood Group and Disease, 1955: weights of log odds by
    their inverse variance.
    Greenland and Mansournia, Penalization, Bias Reduction, and Default Priors in Logistic and
    Related Categorical and Survival Regressions, 2015: the log-F prior of a slope.
"""

import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import scipy.optimize
import scipy.special

from dbl_tf import label_values, saved_json
from dbl_tf.cores import usable_cores

# The prevalence counts as much as this many positives. The best weight is 1/τ² where the log odds
# of the class among the fitted examples differ from the given ones by a standard deviation of τ:
# here 1/2, a factor of 1.6 either way.
PSEUDO_POSITIVES = 4.0
# Bounds of the slope on logits of unit spread. Where logits are no better than chance, or worse,
# the most likely slope is not positive: below the lower bound they would be turned upside down, or
# be equal in float32. The upper one ends the search where the logits separate the classes and
# nothing is shrunk.
_SLOPES = (0.05, 1e3)
# The slope is one number, which so many logits determine to far more digits than matter.
_MOST_LOGITS_FOR_SLOPE = 2_000_000
# Logits that vary less than this, relative to the largest, are constant but for rounding.
_CONSTANT = 1e-14
# Each of Newton's steps squares the error, so that after one of this size it is about 1e-14.
_LAST_STEP = 1e-7
_MOST_STEPS = 100
# Logits of which float64 copies exist at once, for each thread; they fit into its cache.
_CHUNK = 1 << 17


class _Saved(msgspec.Struct):
    slope: float
    offsets: list[float]
    fitted_on: str


_FORMAT = saved_json.Format(
    "dbl_tf.Calibration",
    "calibration",
    _Saved,
    "restore it from a copy, or start the training command again, which fits it anew",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """A map from logits to probabilities, `σ(slope · z + offsets)`.

    Attributes:
        slope: the slope, greater than 0.
        offsets: the offset of each class, float64 (C,).
        fitted_on: the name of the split on which it was fitted, or "none".

    Raises:
        ValueError: the slope is not a positive number, or the offsets are not C finite numbers.

    Example:

    >>> calibration = Calibration(2.0, [0.0, -3.0], "val")
    >>> calibration([[0.5, 1.5], [0.0, 0.0]]).round(3).tolist()
    [[0.731, 0.5], [0.5, 0.047]]
    """

    slope: float
    offsets: np.ndarray
    fitted_on: str

    def __post_init__(self) -> None:
        slope, offsets = float(self.slope), np.asarray(self.offsets, np.float64)
        if not 0 < slope < np.inf:
            raise ValueError(f"the slope of a calibration must be positive, got {self.slope}")
        if offsets.ndim != 1:
            raise ValueError(f"offsets must be of shape (C,), got shape {offsets.shape}")
        if not np.isfinite(offsets).all():
            index = int(np.argmin(np.isfinite(offsets)))
            raise ValueError(f"offsets must be finite, got {offsets[index]} for class {index}")
        object.__setattr__(self, "slope", slope)
        object.__setattr__(self, "offsets", offsets)

    def __call__(self, logits: Any) -> np.ndarray:
        """Computes the probabilities of logits.

        Args:
            logits: logits (..., C).

        Returns:
            The probabilities, float64 (..., C). They rank examples as their logits do, but for
            logits so high that 1 is the nearest float64 (from about 37 after slope and offset).

        Raises:
            ValueError: the last dimension is not C.
        """
        logits = np.asarray(logits)
        if logits.shape[-1:] != self.offsets.shape:
            raise ValueError(
                f"a calibration of {len(self.offsets)} classes needs logits of shape "
                f"(..., {len(self.offsets)}), got {logits.shape}"
            )
        scaled = np.multiply(logits, self.slope, dtype=np.float64)
        scaled += self.offsets
        return scipy.special.expit(scaled, out=scaled)

    @classmethod
    def identity(cls, num_classes: int) -> "Calibration":
        """Returns the map σ(z)."""
        return cls(1.0, np.zeros(num_classes), "none")

    def as_json(self) -> dict[str, Any]:
        """Returns the map in the types of JSON."""
        return {**dataclasses.asdict(self), "offsets": self.offsets.tolist()}

    def save(self, path: str | os.PathLike) -> None:
        """Writes the map as JSON."""
        _FORMAT.write(path, self.as_json())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Reads a map that `save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file holds no such map, or was changed; the message names it.
        """
        saved = _FORMAT.read(path)
        try:
            return cls(saved.slope, np.asarray(saved.offsets, np.float64), saved.fitted_on)
        except ValueError as error:
            raise _FORMAT.unusable(path, error) from error


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

    `w k/N + (1 − w) π`, `w = I / (I + s)`, `I = k (N − k) / N`

    for k positives among N examples, prevalence π and s pseudo-positives. 1/I is the variance of
    the log odds of k/N, so that w weighs it by its precision: the mean is π for a class without
    positives, or without negatives, and close to k/N with hundreds of both. It is also the offset
    of largest likelihood if sN/I examples are added that have the class with probability π, and the
    same logits.

    The slope minimizes the log loss of all N·C decisions, at these offsets, plus
    `s (log(1 + exp(a)) − a/2)`, where a is the change of the log odds over a standard deviation of
    the logits of a class. This is the log-F prior: it keeps the slope finite where few examples are
    separated by chance, and does not matter where there are many. With s = 0, slope and offsets are
    those of the largest likelihood.

    Where labels are unknown, N, k and all means and sums of a class are those of the examples of
    which it is known. The mean probability of a class of which nothing is known is π, over all
    examples.

    Args:
        logits: logits (N, C), of any scale.
        labels: multi-hot labels (N, C), with −1 or NaN for those that are not known.
        prevalence: the share of each class among the training examples, (C,), in (0, 1).
        fitted_on: the name of the split of the examples.
        pseudo_positives: the strength s ≥ 0 of the prevalence.

    Raises:
        ValueError: shapes that differ, logits that are not finite, labels other than 0 and 1 and
            unknown, or a prevalence outside (0, 1).
    """
    logits, labels, known, prevalence = _checked(logits, labels, prevalence)
    if not 0 <= pseudo_positives < np.inf:
        raise ValueError(f"pseudo_positives must be at least 0, got {pseudo_positives}")
    num_known = _num_known(labels, known)
    target = _mean_probabilities(labels, num_known, prevalence, pseudo_positives)
    standardized = _Standardized.of(logits, known)
    rows = _rows_for_slope(*logits.shape)
    some = standardized.take(rows)
    some_labels, some_known = labels[rows], None if known is None else known[rows]
    offsets = scipy.special.logit(target)

    @functools.cache
    def derivative(log_slope: float) -> float:
        """The derivative by the slope of what the slope minimizes."""
        slope = float(np.exp(log_slope))
        offsets[:] = _offsets(some, slope, target, offsets)
        penalty = pseudo_positives * (scipy.special.expit(slope) - 0.5)
        loss = _derivative_of_log_loss(some, some_labels, some_known, slope, offsets)
        return loss * len(logits) / len(rows) + penalty

    slope = float(np.exp(_root(derivative, *np.log(_SLOPES))))
    offsets = _offsets(standardized, slope, target, offsets)
    return Calibration(
        slope / standardized.spread / standardized.scale,
        offsets - slope / standardized.spread * standardized.center,
        fitted_on,
    )


def _checked(
    logits: Any, labels: Any, prevalence: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Returns logits, which labels are 1, which are known (None if all are), and the prevalence."""
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
    is_finite = np.isfinite(logits)
    if not is_finite.all():
        row, column = np.argwhere(~is_finite)[0]
        raise ValueError(
            f"logits must be finite, got {logits[row, column]} in row {row}, class {column}"
        )
    positive, known = label_values.positive_and_known(
        labels, lambda index: f"row {index[0]}, class {index[1]}"
    )
    is_share = (prevalence > 0) & (prevalence < 1)
    if not is_share.all():
        column = int(np.argmin(is_share))
        raise ValueError(
            f"prevalence must be in (0, 1), got {prevalence[column]} for class {column}"
        )
    return logits, positive, known, prevalence


def _num_known(labels: np.ndarray, known: np.ndarray | None) -> Any:
    """Of how many examples each class is known: N, or (C,)."""
    return len(labels) if known is None else np.count_nonzero(known, axis=0)


def _mean_probabilities(
    labels: np.ndarray, num_known: Any, prevalence: np.ndarray, pseudo_positives: float
) -> np.ndarray:
    """The mean probability (C,) that each class is given; see `fit_calibration`."""
    positives = labels.sum(axis=0, dtype=np.float64)
    share = positives / np.maximum(num_known, 1)
    if not pseudo_positives:
        tiny = 0.5 / (num_known + 1)  # the offset of a class without positives has no maximum
        return np.clip(share, tiny, 1 - tiny)
    information = positives * (1 - share)
    weight = information / (information + pseudo_positives)
    return weight * share + (1 - weight) * prevalence


def _rows_for_slope(num_examples: int, num_classes: int) -> np.ndarray:
    most = max(_MOST_LOGITS_FOR_SLOPE // num_classes, 1)
    if num_examples <= most:
        return np.arange(num_examples)
    return np.sort(np.random.default_rng(0).choice(num_examples, most, replace=False))


def _root(derivative: Callable[[float], float], lowest: float, highest: float) -> float:
    """The place of a minimum between `lowest` and `highest`, which may be one of them.

    The search begins at 0: far away from the minimum, a derivative takes longer.
    """
    here, step = 0.0, 1.0
    falls = derivative(here) < 0
    while True:
        there = float(np.clip(here + (step if falls else -step), lowest, highest))
        if (derivative(there) < 0) != falls:
            return scipy.optimize.brentq(derivative, here, there, xtol=1e-8)
        if there in (lowest, highest):
            return there
        here, step = there, 2 * step


@dataclasses.dataclass(frozen=True, eq=False)
class _Standardized:
    """Logits z as `x = (z / scale − center) / spread`: each class has mean 0, all have variance 1.

    Only chunks of x exist, so that the memory is that of the logits. The two divisions keep numbers
    near the largest float64 from overflowing. `used`, bool (N, C), says which logits count in means
    and extremes; None if all do. In each class, some do.
    """

    logits: np.ndarray
    used: np.ndarray | None
    scale: float
    center: np.ndarray
    spread: float
    lowest: np.ndarray
    highest: np.ndarray

    @classmethod
    def of(cls, logits: np.ndarray, known: np.ndarray | None) -> "_Standardized":
        used = known
        if known is None:
            lowest, highest = logits.min(axis=0), logits.max(axis=0)
        else:
            used = known | ~known.any(axis=0)
            lowest = logits.min(axis=0, where=used, initial=np.inf)
            highest = logits.max(axis=0, where=used, initial=-np.inf)
        lowest, highest = lowest.astype(np.float64), highest.astype(np.float64)
        scale = float(max(-lowest.min(), highest.max())) or 1.0
        zero = np.zeros(logits.shape[1])
        scaled = cls(logits, used, scale, zero, 1.0, lowest / scale, highest / scale)
        (center,) = scaled.means(lambda x: [x])
        (variances,) = scaled.means(lambda x: [(x - center) ** 2])
        spread = float(np.sqrt(variances.mean()))
        if spread < _CONSTANT:
            spread = 1.0
        lowest, highest = ((x - center) / spread for x in (scaled.lowest, scaled.highest))
        return cls(logits, used, scale, center, spread, lowest, highest)

    def take(self, rows: np.ndarray) -> "_Standardized":
        """Returns some rows, standardized as all are."""
        used = self.used
        if used is not None:
            used = used[rows]
            used = used | ~used.any(axis=0)
        return dataclasses.replace(self, logits=self.logits[rows], used=used)

    def means(self, of_x: Callable[[np.ndarray], Sequence[np.ndarray]]) -> np.ndarray:
        """Returns the means (K, C) over the used logits of the K arrays that a function makes."""

        def of_chunk(rows: slice, x: np.ndarray) -> np.ndarray:
            where = True if self.used is None else self.used[rows]
            return np.stack([array.sum(axis=0, where=where) for array in of_x(x)])

        num_used = len(self.logits) if self.used is None else np.count_nonzero(self.used, axis=0)
        return self.sums(of_chunk) / num_used

    def sums(self, of_chunk: Callable[[slice, np.ndarray], np.ndarray]) -> np.ndarray:
        """Returns the sum of `of_chunk(rows, x)` over chunks x of these rows."""
        num_examples, num_classes = self.logits.shape
        size = max(_CHUNK // num_classes, 1)

        def compute(start: int) -> np.ndarray:
            rows = slice(start, start + size)
            x = np.divide(self.logits[rows], self.scale, dtype=np.float64)
            x -= self.center
            x /= self.spread
            return of_chunk(rows, x)

        # NumPy and SciPy release the interpreter lock. The order of the sum is that of the rows, on
        # any number of threads.
        with concurrent.futures.ThreadPoolExecutor(usable_cores()) as executor:
            return functools.reduce(np.add, executor.map(compute, range(0, num_examples, size)))


def _offsets(
    standardized: _Standardized, slope: float, target: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """The offsets (C,) at which the mean probability of each class is its target.

    Newton's method on the logit of the mean, which is nearly linear in the offset, inside a bracket
    that shrinks: mean probabilities rise with the offset, and lie between those of the lowest and
    the highest logit.
    """
    wanted = scipy.special.logit(target)
    low = wanted - slope * standardized.highest
    high = wanted - slope * standardized.lowest
    offsets = np.clip(start, low, high)
    for _ in range(_MOST_STEPS):
        mean, variance = _mean_and_variance(standardized, slope, offsets)
        low, high = np.where(mean < target, offsets, low), np.where(mean > target, offsets, high)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            step = (scipy.special.logit(mean) - wanted) * mean * (1 - mean) / variance
        moved = offsets - step
        is_last = np.abs(step) < _LAST_STEP
        is_inside = (moved > low) & (moved < high)
        offsets = np.where(is_last | is_inside, moved, (low + high) / 2)
        if (is_last | (high - low < _LAST_STEP**2)).all():
            break
    return offsets


def _mean_and_variance(
    standardized: _Standardized, slope: float, offsets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The means (C,) of p and p(1 − p) of each class."""

    def of_x(x: np.ndarray) -> list[np.ndarray]:
        p = _probabilities(x, slope, offsets)
        return [p, p * (1 - p)]

    mean, variance = standardized.means(of_x)
    return mean, variance


def _derivative_of_log_loss(
    standardized: _Standardized,
    labels: np.ndarray,
    known: np.ndarray | None,
    slope: float,
    offsets: np.ndarray,
) -> float:
    """The derivative by the slope of the summed log loss, if the mean probabilities stay.

    The sum runs over the known labels.

    The offset b of a class then falls by `Σ p(1 − p) x / Σ p(1 − p)`, so that the derivative is
    `Σ (p − y) (x + db/da)`.
    """

    def of_chunk(rows: slice, x: np.ndarray) -> np.ndarray:
        p = _probabilities(x.copy(), slope, offsets)
        error, variance = p - labels[rows], p * (1 - p)
        terms = (error * x, error, variance * x, variance)
        where = True if known is None else known[rows]
        return np.stack([term.sum(axis=0, where=where) for term in terms])

    by_slope, by_offset, variance_x, variance = standardized.sums(of_chunk)
    falls = np.divide(variance_x, variance, out=np.zeros_like(variance), where=variance > 0)
    return float((by_slope - by_offset * falls).sum())


def _probabilities(x: np.ndarray, slope: float, offsets: np.ndarray) -> np.ndarray:
    """Probabilities of standardized logits, in their place."""
    x *= slope
    x += offsets
    return scipy.special.expit(x, out=x)
