import numpy as np
import pytest
import scipy.stats

from pipelines.differences import PairedDifference, jackknife_error, mean_and_error


def test_mean_and_error_are_those_of_scipy_without_nan():
    values = np.array([0.25, np.nan, 0.5, 0.75, 0.5])
    mean, error = mean_and_error(values)
    assert mean == 0.5
    assert error == pytest.approx(scipy.stats.sem(values, nan_policy="omit"))
    assert np.isnan(mean_and_error(np.array([np.nan]))).all()
    assert mean_and_error(np.array([2.0]))[0] == 2 and np.isnan(mean_and_error(np.ones(1))[1])


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0, 1.5])
def test_significance_is_that_of_the_paired_t_test_of_scipy(shift):
    random = np.random.default_rng(3)
    ours = dict(enumerate(random.normal(size=6)))
    theirs = {key: value - shift + 0.9 * random.normal() for key, value in ours.items()}
    found = PairedDifference.of(ours, theirs)
    p = scipy.stats.ttest_rel(list(ours.values()), list(theirs.values())).pvalue
    assert found.is_significant == (p < 0.05)
    assert found.num_pairs == 6


def test_pairs_that_only_one_has_are_left_out():
    found = PairedDifference.of({"1/3": 0.5, "2/3": 0.25, "3/3": np.nan}, {"1/3": 0.25, "3/3": 1.0})
    assert (found.mean, found.num_pairs) == (0.25, 1)
    # A single difference says nothing of its error.
    assert np.isnan(found.standard_error) and not found.is_significant


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=7)
    without = np.array([np.delete(values, k).mean() for k in range(7)])
    assert jackknife_error(without) == pytest.approx(scipy.stats.sem(values))
