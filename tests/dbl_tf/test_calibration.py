import numpy as np
import pytest
import scipy.special
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from dbl_tf import metrics
from dbl_tf.calibration import Calibration, fit_calibration


def simulate(num_examples, shares, slope=2.0, seed=0):
    """Logits whose true probabilities are σ(slope · z + offset), with the given mean shares."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((num_examples, len(shares)))
    offsets = np.array([_offset(1.5 * slope, share) for share in shares])
    probabilities = scipy.special.expit(slope * logits + offsets)
    return logits, rng.random(logits.shape) < probabilities, offsets


def _offset(spread, share):
    grid = np.random.default_rng(9).standard_normal(20_000) * spread
    low, high = -60.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2
        if scipy.special.expit(grid + middle).mean() < share:
            low = middle
        else:
            high = middle
    return middle


def test_without_shrinkage_one_class_is_logistic_regression():
    logits, labels, _ = simulate(500, [0.3])
    ours = fit_calibration(logits, labels, prevalence=[0.3], fitted_on="val", pseudo_positives=0)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits, labels[:, 0])
    assert ours.slope == pytest.approx(theirs.coef_[0, 0], rel=1e-4)
    assert ours.offsets[0] == pytest.approx(theirs.intercept_[0], rel=1e-4)


def test_slope_and_offsets_of_a_simulation_are_found():
    shares = [0.5, 0.2, 0.05]
    logits, labels, offsets = simulate(40_000, shares)
    found = fit_calibration(logits, labels, prevalence=shares, fitted_on="val")
    # Four standard errors: about 1/√(N Σ p(1−p) z²) for the slope, 1/√(N p(1−p)) for an offset.
    assert found.slope == pytest.approx(2.0, abs=0.06)
    np.testing.assert_allclose(found.offsets, offsets, atol=0.25)


def test_the_mean_probability_is_between_prevalence_and_the_share_seen():
    logits = np.random.default_rng(0).standard_normal((200, 4)).astype(np.float32)
    labels = np.zeros((200, 4), int)
    labels[:1, 1], labels[:80, 2], labels[:, 3] = 1, 1, 1
    prevalence = np.array([0.004, 0.004, 0.1, 0.5])
    found = fit_calibration(logits, labels, prevalence=prevalence, fitted_on="val")
    k = labels.sum(axis=0)
    expected = (k + 2) / (200 + 2 / prevalence)
    np.testing.assert_allclose(found(logits).mean(axis=0), expected, rtol=1e-8)
    # Without positives, and where 0.8 were to be expected, it is near the prevalence.
    assert expected[0] == pytest.approx(0.004, rel=0.35) and expected[2] == pytest.approx(
        0.4, rel=0.1
    )


@pytest.mark.parametrize("seed", range(5))
def test_log_loss_of_new_examples_is_better_than_before_and_than_prevalence(seed):
    shares = [0.4, 0.1, 0.03, 0.01, 0.004]
    logits, labels, _ = simulate(3300, shares, slope=0.5, seed=seed)
    val, test = slice(0, 300), slice(300, None)
    prevalence = np.array(shares)
    found = fit_calibration(logits[val], labels[val], prevalence=prevalence, fitted_on="val")

    def loss(probabilities):
        return log_loss(labels[test].ravel(), np.ravel(probabilities))

    after = loss(found(logits[test]))
    assert after < loss(scipy.special.expit(logits[test]))
    assert after < loss(np.broadcast_to(prevalence, labels[test].shape))


def test_the_ranking_within_a_class_and_its_average_precision_stay():
    logits, labels, _ = simulate(800, [0.5, 0.1, 0.02], slope=0.3)
    found = fit_calibration(logits, labels, prevalence=[0.5, 0.1, 0.02], fitted_on="val")
    np.testing.assert_allclose(
        metrics.average_precision(labels, found(logits)),
        metrics.average_precision(labels, logits),
        atol=1e-12,
    )


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_spread_of_the_logits_does_not_matter(scale):
    logits, labels, _ = simulate(600, [0.4, 0.1])
    found = fit_calibration(scale * logits, labels, prevalence=[0.4, 0.1], fitted_on="val")
    one = fit_calibration(logits, labels, prevalence=[0.4, 0.1], fitted_on="val")
    np.testing.assert_allclose(found(scale * logits), one(logits), atol=1e-5)


def test_logits_that_are_worse_than_chance_are_not_turned_upside_down():
    logits, labels, _ = simulate(600, [0.4, 0.1])
    found = fit_calibration(-logits, labels, prevalence=[0.4, 0.1], fitted_on="val")
    assert 0 < found.slope < 0.01
    k = labels.sum(axis=0)
    np.testing.assert_allclose(
        found(-logits).mean(axis=0), (k + 2) / (600 + 2 / np.array([0.4, 0.1])), rtol=1e-6
    )


def test_equal_logits_give_the_shrunken_share():
    labels = np.zeros((50, 1), int)
    labels[:10] = 1
    found = fit_calibration(np.full((50, 1), 3.0), labels, prevalence=[0.3], fitted_on="val")
    np.testing.assert_allclose(found(np.full((1, 1), 3.0)), 12 / (50 + 2 / 0.3), rtol=1e-6)


def test_a_map_is_saved_and_loaded(tmp_path):
    found = Calibration(0.3, np.array([1.0, -2.5]), "val")
    found.save(tmp_path / "calibration.json")
    again = Calibration.load(tmp_path / "calibration.json")
    assert (again.slope, again.fitted_on) == (0.3, "val")
    np.testing.assert_array_equal(again.offsets, found.offsets)
    (tmp_path / "calibration.json").write_text('{"slope": 1}')
    with pytest.raises(ValueError, match=r"calibration\.json holds no calibration"):
        Calibration.load(tmp_path / "calibration.json")
    logits = np.array([[0.0, 800.0], [-800.0, 1.0]])
    np.testing.assert_allclose(Calibration.identity(2)(logits), scipy.special.expit(logits))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.zeros((4, 3))}, r"one shape \(N, C\), got \(4, 2\) and \(4, 3\)"),
        ({"logits": np.array([[0, np.inf]] * 4)}, r"finite, got inf at \(0, 1\)"),
        ({"labels": np.full((4, 2), 2)}, r"0 or 1, got 2 at \(0, 0\)"),
        ({"prevalence": [0.5, 1.0]}, r"in \(0, 1\), got 1.0 at 1"),
        ({"prevalence": [0.5]}, "a value for each of 2 classes"),
        ({"pseudo_positives": -1}, "at least 0, got -1"),
    ],
)
def test_bad_input(changed, message):
    arguments = {
        "logits": np.zeros((4, 2)),
        "labels": np.zeros((4, 2), int),
        "prevalence": [0.5, 0.5],
        "fitted_on": "val",
    }
    with pytest.raises(ValueError, match=message):
        fit_calibration(**{**arguments, **changed})
