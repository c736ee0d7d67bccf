import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support

from dbl_tf import metrics


def random_case(rng):
    num_examples, num_classes = rng.integers(2, 60), rng.integers(1, 6)
    labels = rng.random((num_examples, num_classes)) < rng.uniform(0.05, 0.7)
    # Few distinct values, so that most cases hold many ties.
    levels = rng.integers(2, 30)
    scores = rng.integers(0, levels, labels.shape) / levels
    return labels, scores.astype(rng.choice([np.float32, np.float64]))


def test_average_precision_equals_scikit_learn_on_1000_cases_with_ties():
    rng = np.random.default_rng(20)
    compared = 0
    for _ in range(1000):
        labels, scores = random_case(rng)
        result = metrics.average_precision(labels, scores)
        for i in range(labels.shape[1]):
            if labels[:, i].any():
                expected = average_precision_score(labels[:, i], scores[:, i])
                assert result[i] == pytest.approx(expected, abs=1e-12)
                compared += 1
            else:
                assert np.isnan(result[i])
    assert compared > 2000


def test_average_precision_of_integer_scores():
    scores = np.array([[3], [200], [0]], np.uint8)
    assert metrics.average_precision([[1], [0], [0]], scores) == pytest.approx([0.5])


def test_mean_average_precision_by_group():
    labels = np.array([[1, 0, 1, 0], [0, 1, 0, 0]])
    scores = np.array([[0.9, 0.9, 0.1, 0.5], [0.1, 0.2, 0.3, 0.5]])
    groups = {"head": [0, 1], "medium": [2, 3], "tail": [3], "none": []}
    result = metrics.mean_average_precision(labels, scores, groups)
    # Average precisions are 1, 1/2, 1/2 and undefined.
    assert result["total"] == pytest.approx(2 / 3)
    assert result["head"] == pytest.approx(0.75)
    assert result["medium"] == pytest.approx(0.5)
    assert np.isnan(result["tail"]) and np.isnan(result["none"])


def test_precision_recall_f1_equals_scikit_learn():
    rng = np.random.default_rng(3)
    labels = rng.random((200, 5)) < 0.3
    labels[:, 4] = False
    scores = rng.random((200, 5))
    thresholds = np.array([0.5, 0.2, 0.9, 1.1, 0.5])
    result = metrics.precision_recall_f1(labels, scores, thresholds)
    predicted = scores >= thresholds
    precision, recall, f1, _ = precision_recall_fscore_support(labels, predicted, zero_division=0)
    np.testing.assert_allclose(result["precision"], precision)
    np.testing.assert_allclose(result["recall"], recall)
    np.testing.assert_allclose(result["f1"], f1)
    assert result["micro_f1"] == pytest.approx(f1_score(labels, predicted, average="micro"))
    assert result["macro_f1"] == pytest.approx(
        f1_score(labels[:, :4], predicted[:, :4], average="macro")
    )


def test_best_f1_thresholds_reach_the_best_f1_of_all_thresholds():
    rng = np.random.default_rng(4)
    labels = rng.random((80, 6)) < 0.3
    scores = (0.4 * labels + rng.random((80, 6))).astype(np.float32).round(1)
    thresholds = metrics.best_f1_thresholds(labels, scores)
    reached = metrics.precision_recall_f1(labels, scores, thresholds)["f1"]
    tried = [
        metrics.precision_recall_f1(labels, scores, np.full(6, t))["f1"]
        for t in np.unique(scores.astype(np.float64)) - 1e-6
    ]
    np.testing.assert_allclose(reached, np.max(tried, axis=0))


def test_best_f1_threshold_of_a_class_without_positives():
    assert metrics.best_f1_thresholds([[0], [0]], [[0.1], [0.9]]).tolist() == [0.5]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="1 NaN, the first in row 1, column 0"):
        metrics.average_precision([[1], [0]], [[0.5], [np.nan]])
    with pytest.raises(ValueError, match="found 2 in row 0, column 1"):
        metrics.average_precision([[1, 2]], [[0.5, 0.5]])
    with pytest.raises(ValueError, match=r"got \(1, 2\) and \(1, 3\)"):
        metrics.average_precision([[1, 0]], [[0.5, 0.5, 0.5]])
