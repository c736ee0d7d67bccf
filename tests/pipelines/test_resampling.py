import numpy as np
import pytest
import sklearn.metrics

from pipelines import resampling


def example(num=300, seed=0, digits=None):
    rng = np.random.default_rng(seed)
    labels = rng.random(num) < 0.1
    scores = rng.normal(labels * 1.5).astype(np.float32)
    return labels, scores if digits is None else scores.round(digits)


@pytest.mark.parametrize("digits", [None, 0])
def test_each_resample_has_the_average_precision_of_weighted_examples(digits):
    labels, scores = example(digits=digits)
    weights = resampling.draw_weights(len(labels), 20)
    expected = [
        sklearn.metrics.average_precision_score(labels, scores, sample_weight=w) for w in weights.T
    ]
    found = resampling.average_precision(labels, scores, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_models_are_judged_on_the_same_examples_without_unknown_labels():
    labels, scores = example()
    partly = np.where(np.arange(300) % 5 > 0, labels, -1).astype(np.int8)
    weights = resampling.draw_weights(300, 10)
    known = partly != -1
    two = np.stack([partly, partly], axis=1)
    models = [np.stack([scores, -scores], axis=1), np.stack([scores, scores], axis=1)]
    found = resampling.average_precision_of_models(two, models, weights)
    assert found.shape == (2, 2, 10)
    expected = [
        sklearn.metrics.average_precision_score(labels[known], scores[known], sample_weight=w)
        for w in weights[known].T
    ]
    for values in (found[0, 0], found[1, 0], found[1, 1]):
        np.testing.assert_allclose(values, expected, rtol=1e-6)
    assert (found[0, 1] < found[1, 1]).all()


def test_a_resample_without_positives_is_left_out_of_the_interval():
    labels = np.array([True, False, False])
    weights = np.float32([[0, 1, 2, 1], [1, 1, 1, 1], [0, 1, 0, 3]])
    values = resampling.average_precision(labels, np.array([0.5, 0.9, 0.1]), weights)
    np.testing.assert_allclose(values, [np.nan, 1 / 2, 2 / 3, 1 / 2])
    expected = np.quantile([1 / 2, 2 / 3, 1 / 2], [0.025, 0.975])
    np.testing.assert_allclose(resampling.interval(values), expected)
    assert np.isnan(resampling.average_precision(~labels & labels, values[:3], weights)).all()
    assert np.isnan(resampling.interval(np.full((2, 5), np.nan))).all()
