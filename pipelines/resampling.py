"""Scores of models on images that are drawn anew, the same images for each of the models."""

import concurrent.futures
import math
from collections.abc import Sequence

import numpy as np
import scipy.sparse

from dbl_tf import label_values
from dbl_tf.cores import usable_cores

NUM_RESAMPLES = 500
INTERVAL = (0.025, 0.975)


def draw_weights(num_examples: int, num_resamples: int = NUM_RESAMPLES) -> np.ndarray:
    """Draws how often each example is in each resample, float32 (N, R).

    The numbers are Poisson distributed with mean 1 (Hanley and MacGibbon, 2006), and the same in
    every process.
    """
    return np.random.default_rng(0).poisson(1, (num_examples, num_resamples)).astype(np.float32)


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
    found = np.cumsum(hits, axis=0, dtype=np.float64)
    accepted = np.cumsum(accepted, axis=0, dtype=np.float64)
    precision = np.divide(found, accepted, out=np.zeros_like(found), where=accepted > 0)
    with np.errstate(invalid="ignore"):
        return (hits * precision).sum(axis=0) / found[-1]


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
