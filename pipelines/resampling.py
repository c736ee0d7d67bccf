"""Scores of models on images that are drawn anew, the same images for each of the models."""

import concurrent.futures
import math
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse

from dbl_tf import label_values
from dbl_tf.cores import usable_cores

INTERVAL = (0.025, 0.975)
_MOST_RESAMPLES, _FEWEST_RESAMPLES = 500, 100
# Draws of an example for a label that all resamples cost together, which is a minute or two.
_MOST_DRAWS = 2e10
# How many weights are in memory at a time.
_WEIGHTS_PER_BLOCK = 8_000_000


def number_of_resamples(num_examples: int, num_labels: int) -> int:
    """Returns how many resamples take minutes at most: 500, or fewer of large data, down to 100."""
    bearable = _MOST_DRAWS / max(1, num_examples * num_labels)
    return int(np.clip(bearable, _FEWEST_RESAMPLES, _MOST_RESAMPLES))


def weights(num_examples: int, num_resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Yields how often each example is in each resample, as blocks of columns, float32 (N, ≤ R).

    The numbers are Poisson distributed with mean 1 (Hanley and MacGibbon, 2006), and the same in
    every process.

    Args:
        num_examples: the number N of examples.
        num_resamples: the number R of resamples.
        seed: the seed of the numbers.
    """
    random = np.random.default_rng(seed)
    per_block = max(1, _WEIGHTS_PER_BLOCK // max(1, num_examples))
    for start in range(0, num_resamples, per_block):
        size = (num_examples, min(per_block, num_resamples - start))
        yield random.poisson(1, size).astype(np.float32)


def average_precision(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Computes the average precision of one class in each resample.

    Args:
        labels: the labels, 0 and 1 (N,), with −1 (or NaN) for unknown ones, which are left out.
        scores: the scores, (N,).
        weights: how often each example is in each resample, float32 (N, R).

    Returns:
        The average precision, float64 (R,); NaN where no example with the class is drawn.
    """
    has = labels == 1
    positives = np.sort(scores[has])[::-1]
    if not len(positives):
        return np.full(weights.shape[1], math.nan)
    # What scores below all positives does not count.
    reached = np.flatnonzero((scores >= positives[-1]) & ~label_values.is_unknown(labels))
    order = reached[np.argsort(-scores[reached], kind="stable")]
    thresholds = np.unique(positives)[::-1]
    ends = np.searchsorted(-scores[order], -thresholds, side="right")
    steps = np.concatenate([[0], ends])
    # Sums over the examples between two thresholds: float32 counts exactly up to 2²⁴.
    accepted, hits = (
        scipy.sparse.csr_array(
            (kept.astype(np.float32), order, steps), shape=(len(ends), len(labels))
        )
        @ weights
        for kept in (np.ones(len(order), bool), has[order])
    )
    return average_precision_of_counts(hits, accepted, axis=0)


def average_precision_of_counts(hits: np.ndarray, accepted: np.ndarray, axis: int) -> np.ndarray:
    """Computes average precision from what each threshold adds, from the highest to the lowest.

    Args:
        hits: the number of positives that each threshold adds.
        accepted: the number of examples that it adds.
        axis: the axis of the thresholds.

    Returns:
        The average precision, float64, without that axis; NaN where there is no positive.
    """
    found = np.cumsum(hits, axis=axis, dtype=np.float64)
    reached = np.cumsum(accepted, axis=axis, dtype=np.float64)
    precision = np.divide(found, reached, out=np.zeros_like(found), where=reached > 0)
    with np.errstate(invalid="ignore"):
        return (hits * precision).sum(axis=axis) / found.take(-1, axis=axis)


def average_precision_of_models(
    labels: np.ndarray, scores: Sequence[np.ndarray], weights: np.ndarray
) -> np.ndarray:
    """Computes `average_precision` of K models, whose resamples hold the same examples.

    Args:
        labels: the labels, (N, C); see `average_precision`.
        scores: the scores of each model, (N, C).
        weights: see `average_precision`.

    Returns:
        The average precision, float64 (K, C, R).
    """

    def of_class(column: int) -> list[np.ndarray]:
        own = labels[:, column]
        return [average_precision(own, values[:, column].copy(), weights) for values in scores]

    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as executor:
        found = list(executor.map(of_class, range(labels.shape[1])))
    shape = (labels.shape[1], len(scores), weights.shape[1])
    return np.array(found, np.float64).reshape(shape).swapaxes(0, 1)


def interval(values: np.ndarray) -> np.ndarray:
    """Returns the ends of the 95 % interval over the last axis, (…, 2), without what is NaN.

    Both are NaN where no value is defined.
    """
    ends = np.full((*values.shape[:-1], 2), math.nan)
    defined = ~np.isnan(values)
    for at in np.ndindex(values.shape[:-1]):
        if defined[at].any():
            ends[at] = np.quantile(values[at][defined[at]], INTERVAL)
    return ends
