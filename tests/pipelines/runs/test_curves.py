import numpy as np
import pytest
import sklearn.metrics

from dbl_tf import metrics
from pipelines.runs import curves


def example(num=4000, share=0.05, seed=0, digits=None):
    rng = np.random.default_rng(seed)
    labels = rng.random(num) < share
    scores = rng.normal(labels * 1.5).astype(np.float32)
    return labels, scores if digits is None else scores.round(digits)


@pytest.mark.parametrize("digits", [None, 1])
def test_every_point_is_one_of_the_curve(digits):
    labels, scores = example(digits=digits)
    found = curves.points(metrics.precision_recall_curve(labels, scores), 0.25)
    thresholds = np.array(found["thresholds"])
    assert len(thresholds) <= 200 and (np.diff(thresholds) < 0).all() and 0.25 in thresholds
    for threshold, precision, recall, given in zip(*found.values(), strict=True):
        accepted = scores >= np.float32(threshold)
        assert given == accepted.sum()
        expected = sklearn.metrics.precision_recall_fscore_support(
            labels, accepted, average="binary", zero_division=0
        )
        assert (precision, recall) == pytest.approx(expected[:2], rel=1e-6)
    assert found["recall"][-1] == 1


def test_few_positives_keep_all_their_points():
    labels, scores = example(share=0.005)
    found = curves.points(metrics.precision_recall_curve(labels, scores), 0.5)
    _, recall, _ = sklearn.metrics.precision_recall_curve(labels, scores)
    assert set(np.round(recall[:-1], 6)) <= set(np.round([0, *found["recall"]], 6))
    # The step-wise area under the points is the average precision.
    steps = np.diff([0, *found["recall"]])
    area = float(np.sum(steps * found["precision"]))
    assert area == pytest.approx(sklearn.metrics.average_precision_score(labels, scores), rel=1e-5)


def test_a_class_without_positives_has_neither_points_nor_interval():
    (found,) = curves.of_classes(np.zeros((10, 1), bool), np.ones((10, 1)), np.array([0.5]))
    assert found.pop("interval") is None and set(map(len, found.values())) == {0}


def test_the_interval_is_that_of_resampled_images():
    labels, scores = example(num=1500)
    curve = metrics.precision_recall_curve(labels, scores)
    low, high = curves.average_precision_interval(curve, 2000)
    rng = np.random.default_rng(1)
    values = []
    for _ in range(1000):
        drawn = rng.integers(0, len(labels), len(labels))
        values.append(sklearn.metrics.average_precision_score(labels[drawn], scores[drawn]))
    expected = np.quantile(values, [0.025, 0.975])
    assert [low, high] == pytest.approx(expected, abs=0.012)
    assert curves.average_precision_interval(curve, 2000) == [low, high]


def test_ties_share_a_threshold_in_the_interval():
    # All scores are equal: average precision is the share of positives in the resample.
    labels = np.repeat([True, False], [300, 700])
    low, high = curves.average_precision_interval(
        metrics.precision_recall_curve(labels, np.zeros(1000)), 4000
    )
    error = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert [low, high] == pytest.approx([0.3 - error, 0.3 + error], abs=0.004)


def test_unknown_labels_are_left_out():
    labels, scores = example(num=300)
    known = np.arange(300) % 3 > 0
    partly = np.where(known, labels, -1).astype(np.int8)
    (found,) = curves.of_classes(partly[:, None], scores[:, None], np.array([0.5]))
    (expected,) = curves.of_classes(labels[known][:, None], scores[known][:, None], np.array([0.5]))
    assert found == expected
