"""Means with their standard errors, and differences of two things that are judged in pairs."""

import dataclasses
import math
from collections.abc import Hashable, Mapping

import numpy as np
import scipy.stats

# A difference is told from 0 by a two-sided t test at this level.
SIGNIFICANCE = 0.05


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Returns the mean of the values that are not NaN, and its standard error.

    The mean is NaN where there is no value, and the error where there are fewer than two.
    """
    known = values[~np.isnan(values)]
    mean = float(known.mean()) if len(known) else math.nan
    error = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else math.nan
    return mean, error


def jackknife_error(without: np.ndarray) -> float:
    """Returns the standard error of a score of K parts together (Efron and Stein, 1981).

    Args:
        without: the score without each of the K parts, (K,).
    """
    num_parts = len(without)
    deviations = without - without.mean()
    return float(np.sqrt((num_parts - 1) / num_parts * np.square(deviations).sum()))


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """The mean difference of two things that were judged on the same parts, or with the same seeds.

    The standard error takes the pairs to be independent. Folds of one training split are nearly so:
    networks that are trained on overlapping folds resemble each other, and the error is somewhat
    too small.

    Attributes:
        mean: the mean of the differences; NaN without a pair.
        standard_error: the standard error of the mean; NaN with fewer than two pairs.
        num_pairs: the number of pairs.
    """

    mean: float
    standard_error: float
    num_pairs: int

    @classmethod
    def of(
        cls, ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float]
    ) -> "PairedDifference":
        """Compares values by what they were judged on; those that only one has are left out."""
        common = [key for key in ours if key in theirs]
        differences = np.array([ours[key] - theirs[key] for key in common], np.float64)
        num_pairs = int(np.count_nonzero(~np.isnan(differences)))
        return cls(*mean_and_error(differences), num_pairs)

    @property
    def is_significant(self) -> bool:
        """Whether a paired t test tells the difference from 0; never with fewer than two pairs."""
        if self.num_pairs < 2:
            return False
        quantile = scipy.stats.t.ppf(1 - SIGNIFICANCE / 2, self.num_pairs - 1)
        return abs(self.mean) > quantile * self.standard_error
