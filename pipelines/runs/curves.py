"""Precision and recall of a class by threshold, and how far its average precision is uncertain."""

import concurrent.futures
import itertools
import zlib
from typing import Any

import numpy as np

from dbl_tf.cores import usable_cores

MAX_POINTS = 200
# Points between the positives, so that the false alarms of a rare class can be followed too.
_GEOMETRIC_POINTS = 40
_NUM_RESAMPLES = 200
# The columns that a thread copies at a time, because a single one is scattered in memory.
_CLASSES_PER_BLOCK = 16
_INTERVAL = (0.025, 0.975)


def curve(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, list[float]]:
    """Returns points of the precision-recall curve of a class, and the point of its threshold.

    Args:
        labels: the labels, bool (N,).
        scores: the scores, (N,).
        threshold: the threshold that is in use.

    Returns:
        Lists of equal length, at most 200: falling "thresholds" (an example is given the class if
        its score is at least the threshold), and the "precision", the "recall" and the number of
        "given" examples there. These are scores at which recall changes, evenly thinned, scores at
        ranks in a geometric series, and `threshold` itself. Where nothing is given, precision is 0
        as in `metrics.precision_recall_f1`. Empty lists if no example has the class.
    """
    positives = np.sort(scores[labels])
    if not len(positives):
        return {"thresholds": [], "precision": [], "recall": [], "given": []}
    ordered = np.sort(scores)
    changes = np.unique(positives)
    limit = MAX_POINTS - _GEOMETRIC_POINTS - 1
    if len(changes) > limit:
        changes = changes[np.linspace(0, len(changes) - 1, limit).round().astype(int)]
    ranks = np.geomspace(1, len(scores), _GEOMETRIC_POINTS).round().astype(int)
    thresholds = np.unique(
        np.concatenate(
            [changes.astype(np.float64), ordered[-ranks].astype(np.float64), [threshold]]
        )
    )[::-1]
    given = len(ordered) - np.searchsorted(ordered, thresholds)
    hits = len(positives) - np.searchsorted(positives, thresholds)
    precision = np.divide(hits, given, out=np.zeros(len(given)), where=given > 0)
    return {
        # Nine digits are enough for float32, and seven for a count to be found from its share.
        "thresholds": [float(f"{t:.9g}") for t in thresholds],
        "precision": [float(f"{p:.7g}") for p in precision],
        "recall": [float(f"{r:.7g}") for r in hits / len(positives)],
        "given": given.tolist(),
    }


def average_precision_interval(
    labels: np.ndarray, scores: np.ndarray, num_resamples: int = _NUM_RESAMPLES
) -> list[float] | None:
    """Returns the 95 % bootstrap interval of the average precision of a class.

    Each example is drawn a number of times that is Poisson distributed with mean 1 (Hanley and
    MacGibbon, 2006). The negatives between two positives are drawn together, as a sum of such
    numbers is Poisson distributed too, so the cost depends on the number of positives alone.
    Resamples without positives are left out.

    Args:
        labels: the labels, bool (N,).
        scores: the scores, (N,).
        num_resamples: the number of resamples.

    Returns:
        The lower and the upper end; None if no example has the class.
    """
    positives = np.sort(scores[labels])
    if not len(positives):
        return None
    distinct, num_hits = np.unique(positives, return_counts=True)
    negatives = np.sort(scores[~labels])
    above = len(negatives) - np.searchsorted(negatives, distinct)
    # From the highest score to the lowest: the positives at each, and the negatives passed.
    num_hits = num_hits[::-1].astype(np.float64)
    num_false = np.diff(above[::-1], prepend=0).astype(np.float64)
    # The same predictions have the same interval in every process.
    random = np.random.default_rng(zlib.crc32(positives.tobytes()))
    hits = random.poisson(num_hits, (num_resamples, len(num_hits))).astype(np.float64)
    false = random.poisson(num_false, (num_resamples, len(num_false)))
    found = np.cumsum(hits, axis=1)
    accepted = found + np.cumsum(false, axis=1)
    precision = np.divide(found, accepted, out=np.zeros_like(found), where=accepted > 0)
    totals = found[:, -1]
    drawn = totals > 0
    values = (hits * precision).sum(axis=1)[drawn] / totals[drawn]
    return np.quantile(values, _INTERVAL).tolist()


def of_classes(labels: Any, scores: np.ndarray, thresholds: np.ndarray) -> list[dict[str, Any]]:
    """Returns the `curve` of each class, with its "interval".

    Args:
        labels: the labels, bool (N, C), or int8 with −1 for unknown ones, which are left out.
        scores: the scores, (N, C).
        thresholds: the thresholds, (C,).
    """

    def of_class(truth: np.ndarray, values: np.ndarray, threshold: float) -> dict[str, Any]:
        if truth.dtype != bool:
            known = truth != -1
            truth, values = truth[known] == 1, values[known]
        interval = average_precision_interval(truth, values)
        return {**curve(truth, values, threshold), "interval": interval}

    def of_block(start: int) -> list[dict[str, Any]]:
        columns = slice(start, start + _CLASSES_PER_BLOCK)
        rows = (labels[:, columns].T.copy(), scores[:, columns].T.copy())
        return list(map(of_class, *rows, thresholds[columns].tolist()))

    # NumPy releases the interpreter lock while it sorts and draws.
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as executor:
        starts = range(0, scores.shape[1], _CLASSES_PER_BLOCK)
        return list(itertools.chain.from_iterable(executor.map(of_block, starts)))
