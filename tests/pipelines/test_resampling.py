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
    (weights,) = resampling.weights(len(labels), 20)
    expected = [
        sklearn.metrics.average_precision_score(labels, scores, sample_weight=w) for w in weights.T
    ]
    found = resampling.average_precision(labels, scores, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_models_are_judged_on_the_same_examples_without_unknown_labels():
    labels, scores = example()
    partly = np.where(np.arange(300) % 5 > 0, labels, -1).astype(np.int8)
    (weights,) = resampling.weights(300, 10)
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


def test_intervals_hold_the_difference_of_the_population_most_of_the_time(monkeypatch):
    monkeypatch.setattr(resampling, "_WEIGHTS_PER_BLOCK", 300 * 128)  # several blocks
    random = np.random.default_rng(0)

    def draw(num):
        labels = random.random((num, 1)) < 0.2
        shared = random.normal(size=(num, 1))
        old = 1.0 * labels + 0.8 * shared + 0.6 * random.normal(size=(num, 1))
        return labels, [old, 1.5 * labels + shared]

    labels, models = draw(400_000)
    average = sklearn.metrics.average_precision_score
    old, new = (average(labels[:, 0], scores[:, 0]) for scores in models)
    covered = 0
    for seed in range(200):
        labels, models = draw(300)
        found = np.concatenate(
            [
                resampling.average_precision_of_models(labels, models, weights)
                for weights in resampling.weights(300, 200, seed)
            ],
            axis=-1,
        )
        low, high = resampling.interval(found[1, 0] - found[0, 0])
        covered += low <= new - old <= high
    # Of 200 intervals that cover with 0.9, fewer than 165 do with a probability of 0.0004.
    assert covered >= 165
