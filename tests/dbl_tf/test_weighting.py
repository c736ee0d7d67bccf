import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import LabelStatistics
from dbl_tf.weighting import (
    clamp_counts,
    class_balanced_weights,
    inverse_root_weights,
    rebalanced_weights,
)

COUNTS = [400, 60, 7]
LABELS = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 1, 1]])


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_eq_3_and_4_by_hand():
    # Σ y/n is 1/400 for class 0 alone, and 1/400 + 1/60 = 23/1200 for classes 0 and 1.
    r = np.array([[1, 400 / 60, 400 / 7], [3 / 23, 20 / 23, 1200 / (7 * 23)]])
    expected = 0.1 + sigmoid(10 * (r - 0.3))
    result = rebalanced_weights(LABELS[:2].astype(np.float64), COUNTS, 0.1, 10, 0.3)
    np.testing.assert_allclose(result, expected, rtol=1e-13)


def test_r_is_the_ratio_of_class_and_instance_sampling(voc_mlt_labels):
    statistics = LabelStatistics.from_labels(voc_mlt_labels)
    # Inverting Eq. 4 must give P^C_i(x)/P^I(x); a small β keeps the inverse well conditioned.
    alpha, beta, mu = 0.1, 0.1, 0.3
    weights = rebalanced_weights(
        voc_mlt_labels.astype(np.float64), statistics.class_counts, alpha, beta, mu
    )
    s = weights - alpha
    r = np.log(s / (1 - s)) / beta + mu
    p_class = 1 / (20 * statistics.class_counts)
    p_instance = statistics.instance_probability(voc_mlt_labels)
    np.testing.assert_allclose(r, p_class / p_instance[:, None], rtol=1e-8)


def test_an_example_without_labels_has_the_largest_weight():
    result = rebalanced_weights(np.zeros((1, 3)), COUNTS, alpha=0.25)
    np.testing.assert_array_equal(result, np.full((1, 3), 1.25))


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.float16, np.float32])
def test_tensors_and_arrays_of_any_type_agree(dtype):
    array = rebalanced_weights(LABELS.astype(dtype), COUNTS)
    assert array.dtype == np.float32
    tensor = rebalanced_weights(tf.constant(LABELS.astype(dtype)), COUNTS)
    np.testing.assert_allclose(tensor.numpy(), array, rtol=1e-6)
    double = rebalanced_weights(LABELS.astype(np.float64), COUNTS)
    np.testing.assert_allclose(array, double, rtol=2e-6)


def test_soft_targets_count_in_proportion_to_their_value():
    soft = rebalanced_weights(np.array([[0.5, 0.5, 0.0]]), [100, 100, 100], mu=0.2)
    hard = rebalanced_weights(np.array([[1.0, 0.0, 0.0]]), [100, 100, 100], mu=0.2)
    np.testing.assert_allclose(soft, hard, rtol=1e-6)


def test_smoothed_reweighting_by_hand():
    # √(N/n) for n = 400, 100 and 25 has the ratios 1 : 2 : 4 for any N.
    result = inverse_root_weights(LABELS.astype(np.float64), [400, 100, 25])
    np.testing.assert_allclose(result, [[0.25, 0.5, 1]] * 4, rtol=1e-15)


def test_effective_numbers_by_hand():
    # (1 − β)/(1 − β^n) is 1 for n = 1, 1/1.9 for n = 2, and 0.1 in the limit of large n.
    labels = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 0, 0]], np.float64)
    result = class_balanced_weights(labels, [1, 2, 10**6], beta=0.9)
    expected = [1, 1 / 1.9, 0.1, (1 + 1 / 1.9) / 2, 1]
    np.testing.assert_allclose(result, np.tile(expected, (3, 1)).T, rtol=1e-14)
    uniform = class_balanced_weights(labels, [1, 2, 10**6], beta=0)
    np.testing.assert_array_equal(uniform, np.ones((5, 3)))


@pytest.mark.parametrize("weights_of", [inverse_root_weights, class_balanced_weights])
@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.float16, np.float32])
def test_reweighting_of_tensors_and_arrays_of_any_type_agrees(weights_of, dtype):
    labels = np.concatenate([LABELS, np.zeros((1, 3), int)]).astype(dtype)
    array = weights_of(labels, COUNTS)
    assert array.dtype == np.float32 and array.shape == labels.shape
    np.testing.assert_allclose(weights_of(tf.constant(labels), COUNTS).numpy(), array, rtol=1e-6)
    np.testing.assert_allclose(array, weights_of(labels.astype(np.float64), COUNTS), rtol=1e-6)
    with pytest.raises(ValueError, match=r"shape \(B, 2\).*got \(5, 3\)"):
        weights_of(labels, COUNTS[:2])
    with pytest.raises(ValueError, match=r"without training examples: class 1 has 0;"):
        weights_of(labels, [5, 0, 3])


def test_clamped_counts():
    assert clamp_counts([0, 5, 10], 10).tolist() == [1, 5, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": -0.1}, "alpha must be at least 0; got -0.1"),
        ({"alpha": None}, "alpha must be at least 0; got None"),
        ({"beta": 0}, "beta must be greater than 0; got 0"),
        ({"beta": float("nan")}, "beta must be greater than 0; got nan"),
        ({"mu": float("inf")}, "mu must be a finite number; got inf"),
        ({"class_counts": [400, 0, 7]}, r"without training examples: class 1 has 0;"),
        ({"class_counts": [400, 60]}, r"shape \(B, 2\).*got \(4, 3\)"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        rebalanced_weights(LABELS, **{"class_counts": COUNTS, **arguments})


@pytest.mark.parametrize("beta", [-0.1, 1, float("nan")])
def test_bad_base_of_the_effective_number_is_named(beta):
    with pytest.raises(ValueError, match=rf"^beta must be in \[0, 1\); got {beta}"):
        class_balanced_weights(LABELS, COUNTS, beta=beta)
