"""Labels whose probabilities are not the shares that come true, by more than chance explains."""

import dataclasses
import zlib
from typing import Any

import numpy as np
import scipy.sparse

from dbl_tf import label_values
from dbl_tf.metrics.probabilities import calibration_bins
from dbl_tf.statistics import is_sparse

# A label is judged if so many images have it.
MIN_IMAGES = 10
# Of the labels whose probabilities come true, this share is named all the same.
FALSE_ALARMS = 0.001
# Probabilities that are off by less than five points, beside what chance explains, may be used.
MIN_EXCESS = 0.05


@dataclasses.dataclass(frozen=True)
class Unreliable:
    """A label whose probabilities are off.

    Attributes:
        label: the column of the label.
        error: its expected calibration error.
        mean: the mean of its probabilities.
        share: the share of the images that have it.
    """

    label: int
    error: float
    mean: float
    share: float


def unreliable_labels(
    labels: Any, probabilities: np.ndarray, errors: np.ndarray
) -> list[Unreliable]:
    """Finds the labels whose probabilities are off by more than chance explains.

    A label is named if

    * at least 10 images are known to have it,
    * its expected calibration error (ECE) is so large that of 1,000 labels whose probabilities come
      true, one would have a larger one on as many images with the same probabilities; see
      `chance_of_error`,
    * and its ECE is at least 0.05 larger than the mean of theirs. On many images a smaller one is
      told from chance too, but does not mislead.

    Images are taken to be independent of one another.

    Args:
        labels: the labels, 0 and 1 (N, C), dense or `scipy.sparse`, with −1 (or NaN) for unknown
            ones, which are left out.
        probabilities: the probabilities, (N, C).
        errors: the expected calibration error of each label, (C,); NaN for labels that are not
            judged.

    Returns:
        The labels, the largest error first.
    """
    if is_sparse(labels):
        labels = scipy.sparse.csc_array(labels)
    found = []
    # The excess over chance is smaller than the error itself.
    for i in np.flatnonzero(np.asarray(errors) >= MIN_EXCESS).tolist():
        own = labels[:, [i]].toarray()[:, 0] if is_sparse(labels) else np.asarray(labels)[:, i]
        known = ~label_values.is_unknown(own)
        has, values = own[known] == 1, np.asarray(probabilities[known, i], np.float64)
        if np.count_nonzero(has) < MIN_IMAGES:
            continue
        bins = calibration_bins(values)
        counts = np.bincount(bins)
        expected = np.bincount(bins, values)
        chance, by_chance = chance_of_error(errors[i], counts, expected)
        if chance <= FALSE_ALARMS and errors[i] - by_chance >= MIN_EXCESS:
            found.append(Unreliable(i, float(errors[i]), float(values.mean()), float(has.mean())))
    return sorted(found, key=lambda label: -label.error)


def chance_of_error(
    error: float, counts: np.ndarray, expected: np.ndarray, rate: float = FALSE_ALARMS
) -> tuple[float, float]:
    """Tests whether the probabilities of a label come true, by its expected calibration error.

    If they do, the number of images in a bin that have the label is a sum of independent draws with
    these probabilities. It is drawn from the binomial distribution of the same mean, whose
    deviations from it are larger on average (Hoeffding, On the distribution of the number of
    successes in independent trials, 1956), so that no fewer errors are explained by chance.

    The result is that of a Monte Carlo test (Davison and Hinkley, Bootstrap methods and their
    application, 1997, section 4.2): it is at most `rate` for at most this share of the labels whose
    probabilities come true, whatever the number of draws.

    Args:
        error: the expected calibration error.
        counts: the number of images in each bin.
        expected: the sum of the probabilities in each bin, in the same order.
        rate: the smallest result that is wanted, which decides how many draws are made.

    Returns:
        How likely an error of at least this size is by chance, and the mean of errors by chance.
    """
    counts, expected = counts[counts > 0], expected[counts > 0]
    # The same predictions have the same result in every process, and no two labels the same draws.
    random = np.random.default_rng(zlib.crc32(counts.tobytes() + expected.tobytes()))
    means = np.clip(expected / counts, 0, 1)
    drawn = random.binomial(counts, means, (round(1 / rate) - 1, len(counts)))
    errors = np.abs(drawn - expected).sum(axis=1) / counts.sum()
    reached = np.count_nonzero(errors >= error - 1e-9)  # `error` may be rounded otherwise
    return (1 + reached) / (1 + len(errors)), float(errors.mean())
