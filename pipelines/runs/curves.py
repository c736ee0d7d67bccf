"""Precision and recall of a class by threshold, and how far its average precision is uncertain."""

import concurrent.futures
import itertools
import zlib
from typing import Any

import numpy as np

from dbl_tf.cores import usable_cores
from dbl_tf.metrics import PrecisionRecallCurve, precision_recall_curve
from pipelines import resampling

MAX_POINTS = 200
# Points between the positives, so that the false alarms of a rare class can be followed too.
_GEOMETRIC_POINTS = 40
_NUM_RESAMPLES = 200
# The columns that a thread copies at a time, because a single one is scattered in memory.
_CLASSES_PER_BLOCK = 16


def points(curve: PrecisionRecallCurve | None, threshold: float) -> dict[str, list[float]]:
    """Returns points of the precision-recall curve of a class, and the point of its threshold.

    Args:
        curve: the curve; None if no example has the class.
        threshold: the threshold that is in use.

    Returns:
        Lists of equal length, at most 200: falling "thresholds" (an example is given the class if
        its score is at least the threshold), and the "precision", the "recall" and the number of
        "given" examples there. These are scores at which recall changes, evenly thinned, scores at
        ranks in a geometric series, and `threshold` itself. Where nothing is given, precision is 0
        as in `metrics.precision_recall_f1`. Empty lists if no example has the class.
    """
    if curve is None:
        return {"thresholds": [], "precision": [], "recall": [], "given": []}
    changes = _changes(curve)
    limit = MAX_POINTS - _GEOMETRIC_POINTS - 1
    if len(changes) > limit:
        changes = changes[np.linspace(0, len(changes) - 1, limit).round().astype(int)]
    ranks = np.geomspace(1, curve.num_accepted[-1], _GEOMETRIC_POINTS).round().astype(int)
    shown = np.concatenate([changes, np.searchsorted(curve.num_accepted, ranks)])
    thresholds = np.unique(np.append(curve.thresholds[shown], threshold))[::-1]
    # From no example to all of them; how many points of the curve are at a threshold or above.
    num_points = np.searchsorted(-curve.thresholds, -thresholds, side="right")
    given, hits = (np.append(0, n)[num_points] for n in (curve.num_accepted, curve.num_hits))
    precision = np.divide(hits, given, out=np.zeros(len(given)), where=given > 0)
    return {
        # Nine digits are enough for float32, and seven for a count to be found from its share.
        "thresholds": [float(f"{t:.9g}") for t in thresholds],
        "precision": [float(f"{p:.7g}") for p in precision],
        "recall": [float(f"{r:.7g}") for r in hits / curve.num_hits[-1]],
        "given": given.tolist(),
    }


def average_precision_interval(
    curve: PrecisionRecallCurve | None, num_resamples: int = _NUM_RESAMPLES
) -> list[float] | None:
    """Returns the 95 % bootstrap interval of the average precision of a class.

    Each example is drawn a number of times that is Poisson distributed with mean 1 (Hanley and
    MacGibbon, 2006). The negatives between two positives are drawn together, as a sum of such
    numbers is Poisson distributed too, so the cost depends on the number of positives alone.
    Resamples without positives are left out.

    Args:
        curve: the curve; None if no example has the class.
        num_resamples: the number of resamples.

    Returns:
        The lower and the upper end; None if no example has the class.
    """
    if curve is None:
        return None
    changes = _changes(curve)
    # From the highest score to the lowest: the positives at each, and the negatives passed.
    num_hits, num_accepted = (
        np.diff(counts[changes], prepend=0) for counts in (curve.num_hits, curve.num_accepted)
    )
    # The same predictions have the same interval in every process.
    random = np.random.default_rng(zlib.crc32(np.append(num_hits, num_accepted).tobytes()))
    hits = random.poisson(num_hits, (num_resamples, len(changes)))
    false = random.poisson(num_accepted - num_hits, (num_resamples, len(changes)))
    values = resampling.average_precision_of_counts(hits, hits + false, axis=1)
    return resampling.interval(values).tolist()


def _changes(curve: PrecisionRecallCurve) -> np.ndarray:
    """The points of a curve at which recall rises."""
    return np.flatnonzero(np.diff(curve.num_hits, prepend=0))


def of_classes(labels: Any, scores: np.ndarray, thresholds: np.ndarray) -> list[dict[str, Any]]:
    """Returns the `points` of the curve of each class, with its "interval".

    Args:
        labels: the labels, bool (N, C), or int8 with −1 for unknown ones, which are left out.
        scores: the scores, (N, C).
        thresholds: the thresholds, (C,).
    """

    def of_class(truth: np.ndarray, values: np.ndarray, threshold: float) -> dict[str, Any]:
        curve = precision_recall_curve(truth, values) if (truth == 1).any() else None
        return {**points(curve, threshold), "interval": average_precision_interval(curve)}

    def of_block(start: int) -> list[dict[str, Any]]:
        columns = slice(start, start + _CLASSES_PER_BLOCK)
        rows = (labels[:, columns].T.copy(), scores[:, columns].T.copy())
        return list(map(of_class, *rows, thresholds[columns].tolist()))

    # NumPy releases the interpreter lock while it sorts and draws.
    with concurrent.futures.ThreadPoolExecutor(usable_cores()) as executor:
        starts = range(0, scores.shape[1], _CLASSES_PER_BLOCK)
        return list(itertools.chain.from_iterable(executor.map(of_block, starts)))
