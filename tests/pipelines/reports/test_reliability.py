import numpy as np
import pytest
import scipy.sparse

from dbl_tf.metrics import expected_calibration_error_by_class
from pipelines.reports import reliability


def calibrated(num_images, num_labels, seed=0):
    """Probabilities of any shape that come true: labels are drawn with them."""
    rng = np.random.default_rng(seed)
    shapes = rng.uniform(0.2, 4, (2, num_labels))
    probabilities = rng.beta(*shapes, (num_images, num_labels))
    return rng.random(probabilities.shape) < probabilities, probabilities


def unreliable(labels, probabilities):
    errors = expected_calibration_error_by_class(labels, probabilities)
    return reliability.unreliable_labels(labels, probabilities, errors)


@pytest.mark.parametrize("rate", [0.05, 0.01])
@pytest.mark.parametrize("num_images", [40, 400])
def test_false_alarms_are_as_frequent_as_chosen_where_probabilities_come_true(num_images, rate):
    labels, probabilities = calibrated(num_images, 2000)
    edges = np.linspace(0, 1, 16)
    alarms = 0
    for own, values in zip(labels.T, probabilities.T, strict=True):
        counts, expected, has = (
            np.histogram(values, edges, weights=w)[0]
            for w in (np.ones(num_images), values, own.astype(float))
        )
        error = np.abs(expected - has).sum() / num_images
        alarms += reliability.chance_of_error(error, counts.astype(int), expected, rate)[0] <= rate
    deviation = np.sqrt(2000 * rate * (1 - rate))
    assert 2000 * rate / 3 < alarms < 2000 * rate + 3 * deviation


def test_hardly_a_label_is_named_whose_probabilities_come_true():
    # Two of 2,000 are expected, and more than six are so rarely as three deviations.
    for num_images in (60, 600):
        assert len(unreliable(*calibrated(num_images, 2000, seed=1))) <= 6


def test_labels_are_named_by_what_their_probabilities_are_off():
    rng = np.random.default_rng(2)
    truth = rng.beta(2, 2, (5000, 5))
    labels = (rng.random(truth.shape) < truth).astype(np.int8)
    labels[:, 3] = np.arange(5000) < 9
    stated = truth.copy()
    stated[:, 0] = np.clip(truth[:, 0] - 0.35, 0, 1)  # 35 points too low, where there is room
    stated[:, 1] += 0.03 * (1 - truth[:, 1])  # told from chance, but by a point or two
    stated[:, 2] = np.where(truth[:, 2] > 0.5, 0.95, 0.05)  # right on average
    first, second = unreliable(labels, stated)
    assert (first.label, second.label) == (0, 2)
    assert first.share == pytest.approx(labels[:, 0].mean())
    assert first.mean == pytest.approx(stated[:, 0].mean())
    assert first.error == pytest.approx(first.share - first.mean, abs=0.005)
    assert second.share == pytest.approx(second.mean, abs=0.03) and second.error > 0.2
    # Nine images have the fourth label, whose error is large.
    assert expected_calibration_error_by_class(labels, stated)[3] > 0.4
    # Fewer images show a smaller difference to be chance, and unknown labels show nothing.
    sparse = scipy.sparse.csr_array(labels)
    assert unreliable(sparse, stated) == [first, second]
    partly = labels.copy()
    partly[15:, 0] = -1
    assert [found.label for found in unreliable(partly, stated)] == [2]
