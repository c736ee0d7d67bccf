import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize
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


def shrunken(k, num_examples, prevalence, s=4):
    information = k * (num_examples - k) / num_examples
    weight = information / (information + s)
    return weight * k / num_examples + (1 - weight) * prevalence


def test_the_mean_probability_is_between_prevalence_and_the_share_seen():
    logits = np.random.default_rng(0).standard_normal((1000, 5)).astype(np.float32)
    labels = np.zeros((1000, 5), int)
    k = np.array([0, 1, 300, 1000, 40])
    for i, count in enumerate(k):
        labels[:count, i] = 1
    prevalence = np.array([0.004, 0.004, 0.1, 0.9, 0.04])
    found = fit_calibration(logits, labels, prevalence=prevalence, fitted_on="val")
    means = found(logits).mean(axis=0)
    # A class in no example or in all has its prevalence; hundreds of positives decide.
    np.testing.assert_allclose(means[[0, 3, 4]], [0.004, 0.9, 0.04], rtol=1e-9)
    assert 0.295 < means[2] < 0.3
    np.testing.assert_allclose(means, shrunken(k, 1000, prevalence), rtol=1e-9)


def test_the_offset_is_that_of_logistic_regression_with_pseudo_observations():
    logits, labels, _ = simulate(300, [0.06], seed=2)
    found = fit_calibration(logits, labels, prevalence=[0.2], fitted_on="val")
    # Every example is added with the label at a weight of π s/I, and without it at (1 − π) s/I.
    k = labels.sum()
    weight = 4 / (k * (300 - k) / 300)
    repeated = np.tile(found.slope * logits[:, 0], 3)
    theirs = scipy.optimize.minimize_scalar(
        lambda offset: np.dot(
            np.repeat([1.0, 0.2 * weight, 0.8 * weight], 300),
            np.logaddexp(
                0,
                np.where(
                    np.concatenate([labels[:, 0], np.ones(300, bool), np.zeros(300, bool)]),
                    -repeated - offset,
                    repeated + offset,
                ),
            ),
        ),
        bracket=(-5, 0),
        tol=1e-10,
    )
    assert found.offsets[0] == pytest.approx(theirs.x, abs=1e-6)


def test_the_slope_has_the_smallest_penalized_loss():
    """Compared with a general minimizer over slope and, by bisection, offsets."""
    logits, labels, _ = simulate(60, [0.5, 0.15, 0.05], slope=0.7, seed=4)
    prevalence = np.array([0.4, 0.2, 0.02])
    found = fit_calibration(logits, labels, prevalence=prevalence, fitted_on="val")
    target = shrunken(labels.sum(axis=0), 60, prevalence)
    spread = np.sqrt(logits.var(axis=0).mean())

    def offset(z, mean):
        return scipy.optimize.brentq(
            lambda b: scipy.special.expit(z + b).mean() - mean, -40, 40, xtol=1e-13
        )

    def loss(slope):
        offsets = [offset(slope * z, mean) for z, mean in zip(logits.T, target, strict=True)]
        scaled = slope * logits + offsets
        log_f = 4 * (np.logaddexp(0, slope * spread) - slope * spread / 2)
        return np.logaddexp(0, np.where(labels, -scaled, scaled)).sum() + log_f

    best = scipy.optimize.minimize_scalar(
        loss, bounds=(0.01, 10), method="bounded", options={"xatol": 1e-8}
    )
    assert found.slope == pytest.approx(best.x, rel=1e-5)


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


@pytest.mark.parametrize("scale", [1e-200, 1e-4, 1e4, 1e200])
def test_the_spread_of_the_logits_does_not_matter(scale):
    logits, labels, _ = simulate(600, [0.4, 0.1])
    found = fit_calibration(scale * logits, labels, prevalence=[0.4, 0.1], fitted_on="val")
    one = fit_calibration(logits, labels, prevalence=[0.4, 0.1], fitted_on="val")
    np.testing.assert_allclose(found(scale * logits), one(logits), atol=1e-5)


@pytest.mark.parametrize("shift", [1e3, -1e6])
def test_a_shift_of_the_logits_of_a_class_does_not_matter(shift):
    logits, labels, _ = simulate(600, [0.4, 0.1])
    moved = logits + np.array([0, shift])
    found = fit_calibration(moved, labels, prevalence=[0.4, 0.1], fitted_on="val")
    one = fit_calibration(logits, labels, prevalence=[0.4, 0.1], fitted_on="val")
    np.testing.assert_allclose(found(moved), one(logits), atol=1e-7)


def test_logits_that_are_worse_than_chance_are_not_turned_upside_down():
    logits, labels, _ = simulate(600, [0.4, 0.1])
    found = fit_calibration(-logits, labels, prevalence=[0.4, 0.1], fitted_on="val")
    assert 0 < found.slope < 0.05
    probabilities = found(-logits)
    expected = shrunken(labels.sum(axis=0), 600, np.array([0.4, 0.1]))
    np.testing.assert_allclose(probabilities.mean(axis=0), expected, rtol=1e-9)
    np.testing.assert_array_equal(np.argsort(probabilities, 0), np.argsort(-logits, 0))


def test_a_few_examples_that_are_separated_by_chance_are_no_certainty():
    logits = np.array([[-2.0], [-1.0], [-0.5], [0.5], [1.0], [2.0]])
    labels = logits > 0
    probabilities = fit_calibration(logits, labels, prevalence=[0.5], fitted_on="val")(logits)
    assert 0.02 < probabilities[0, 0] < 0.2 and 0.8 < probabilities[-1, 0] < 0.98
    # Without shrinkage the most likely slope is infinite.
    certain = fit_calibration(
        logits, labels, prevalence=[0.5], fitted_on="val", pseudo_positives=0
    )(logits)
    np.testing.assert_allclose(certain, labels, atol=1e-9)


def test_equal_logits_give_the_shrunken_share():
    labels = np.zeros((50, 1), int)
    labels[:10] = 1
    found = fit_calibration(np.full((50, 1), 3.0), labels, prevalence=[0.3], fitted_on="val")
    np.testing.assert_allclose(found(np.full((1, 1), 3.0)), shrunken(10, 50, 0.3), rtol=1e-9)
    zeros = fit_calibration(np.zeros((50, 1)), labels, prevalence=[0.3], fitted_on="val")
    np.testing.assert_allclose(zeros(np.zeros((1, 1))), shrunken(10, 50, 0.3), rtol=1e-9)


def test_more_logits_than_determine_the_slope():
    """The slope is of a part of the examples, the means are of all of them."""
    rng = np.random.default_rng(0)
    prevalence = np.geomspace(0.3, 0.001, 100)
    logits = rng.standard_normal((30_000, 100), dtype=np.float32)
    labels = rng.random(logits.shape) < scipy.special.expit(
        1.3 * logits + scipy.special.logit(prevalence)
    )
    found = fit_calibration(logits, labels, prevalence=prevalence, fitted_on="val")
    assert found.slope == pytest.approx(1.3, abs=0.03)
    expected = shrunken(labels.sum(axis=0), 30_000, prevalence)
    np.testing.assert_allclose(found(logits).mean(axis=0), expected, rtol=1e-9)
    again = fit_calibration(logits, labels, prevalence=prevalence, fitted_on="val")
    assert again.slope == found.slope and (again.offsets == found.offsets).all()


def test_calibration_needs_neither_keras_nor_tensorflow():
    # Loaded without the package, whose own imports include Keras.
    program = (
        "import sys, types\n"
        "package = types.ModuleType('dbl_tf')\n"
        "package.__path__ = sys.argv[1:]\n"
        "sys.modules['dbl_tf'] = package\n"
        "import dbl_tf.calibration\n"
        "print(dbl_tf.calibration.Calibration.identity(1)([[0.0]]).tolist())\n"
        "assert not {'keras', 'tensorflow'} & set(sys.modules)\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(metrics.__file__)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output == "[[0.5]]\n"


def test_a_map_is_saved_and_loaded(tmp_path):
    found = Calibration(0.3, np.array([1.0, -2.5]), "val")
    found.save(tmp_path / "calibration.json")
    again = Calibration.load(tmp_path / "calibration.json")
    assert (again.slope, again.fitted_on) == (0.3, "val")
    np.testing.assert_array_equal(again.offsets, found.offsets)
    with pytest.raises(FileNotFoundError, match=r"absent\.json"):
        Calibration.load(tmp_path / "absent.json")
    logits = np.array([[0.0, 800.0], [-800.0, 1.0]])
    np.testing.assert_allclose(Calibration.identity(2)(logits), scipy.special.expit(logits))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"slope": 1}', "`offsets`"),
        ("[]", "got `array`"),
        ("slope", "malformed"),
        ('{"slope": 0, "offsets": [0], "fitted_on": "val"}', "must be positive, got 0"),
        ('{"slope": 1, "offsets": [0, NaN], "fitted_on": "val"}', "malformed"),
        ('{"slope": 1, "offsets": 2, "fitted_on": "val"}', "field offsets: Expected"),
    ],
)
def test_a_file_without_a_map_is_named(tmp_path, text, reason):
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(ValueError, match=rf"calibration\.json holds no calibration.*{reason}"):
        Calibration.load(tmp_path / "calibration.json")


def test_logits_of_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match=r"2 classes needs logits of shape .*, got \(5, 1\)"):
        Calibration.identity(2)(np.zeros((5, 1)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": np.zeros((4, 3))}, r"one shape \(N, C\), got \(4, 2\) and \(4, 3\)"),
        ({"logits": np.array([[0, np.inf]] * 4)}, r"finite, got inf in row 0, class 1"),
        ({"labels": np.full((4, 2), 2)}, r"0 or 1, found 2 in row 0, class 0"),
        ({"prevalence": [0.5, 1.0]}, r"in \(0, 1\), got 1.0 for class 1"),
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
