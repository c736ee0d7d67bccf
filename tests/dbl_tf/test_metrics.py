import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    coverage_error,
    f1_score,
    label_ranking_loss,
    log_loss,
    precision_recall_curve,
    precision_recall_fscore_support,
    roc_auc_score,
)

from dbl_tf import LabelStatistics, metrics


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


def test_scores_of_probabilities_equal_scikit_learn_s():
    rng = np.random.default_rng(3)
    probabilities = rng.random((200, 7))
    labels = rng.random((200, 7)) < probabilities**2
    pooled = labels.ravel(), probabilities.ravel()
    assert metrics.log_loss(labels, probabilities) == pytest.approx(log_loss(*pooled), rel=1e-12)
    expected = brier_score_loss(*pooled)
    assert metrics.brier_score(labels, probabilities) == pytest.approx(expected, rel=1e-12)
    # What is certain and wrong costs −log of the spacing of float64.
    assert metrics.log_loss([[1]], [[0.0]]) == pytest.approx(52 * np.log(2))


def test_calibration_error_by_hand():
    # Three bins: mean 0.2 against 1/4 of 4, mean 0.5 against 1 of 1, mean 0.9 against 1/2 of 2.
    probabilities = np.array([[0.1, 0.1, 0.3, 0.3, 0.5, 0.8, 1.0]])
    labels = np.array([[0, 1, 0, 0, 1, 1, 0]])
    expected = (4 * abs(0.2 - 0.25) + 1 * abs(0.5 - 1) + 2 * abs(0.9 - 0.5)) / 7
    error = metrics.expected_calibration_error(labels, probabilities, num_bins=3)
    assert error == pytest.approx(expected, rel=1e-12)
    # Probabilities that are right have an error of the order of 1/√(N/15).
    rng = np.random.default_rng(0)
    right = rng.random((40_000, 1))
    assert metrics.expected_calibration_error(rng.random(right.shape) < right, right) < 0.02


def _of_classes(function, labels, probabilities):
    columns = zip(labels.T, probabilities.astype(np.float64).T, strict=True)
    return [function(*column, labels=[False, True]) for column in columns]


def test_scores_of_probabilities_by_class_equal_scikit_learn_s():
    rng = np.random.default_rng(4)
    probabilities = rng.random((300, 37)).astype(np.float32)  # more classes than a block holds
    labels = rng.random(probabilities.shape) < probabilities**2
    labels[:, 5] = False
    found = metrics.log_loss_by_class(labels, probabilities)
    np.testing.assert_allclose(found, _of_classes(log_loss, labels, probabilities), rtol=1e-12)
    found = metrics.brier_score_by_class(labels, probabilities)
    expected = _of_classes(brier_score_loss, labels, probabilities)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert metrics.log_loss_by_class(labels[:, :0], probabilities[:, :0]).shape == (0,)


def test_calibration_error_by_class_by_hand():
    # One class is told 0.25 too much and the other 0.25 too little; together they are right.
    probabilities, labels = np.full((4, 2), 0.5), np.array([[1, 1], [0, 1], [0, 1], [0, 0]])
    found = metrics.expected_calibration_error_by_class(labels, probabilities)
    np.testing.assert_allclose(found, [0.25, 0.25])
    assert metrics.expected_calibration_error(labels, probabilities) == 0
    # The last of the 15 bins begins at 14/15 and ends at 1: both are in it, 0.9 is not.
    probabilities, labels = np.array([[14 / 15 + 1e-9], [1.0], [0.9]]), np.array([[1], [0], [0]])
    found = metrics.expected_calibration_error_by_class(labels, probabilities)
    np.testing.assert_allclose(found, [(14 / 15 + 0.9) / 3], rtol=1e-8)


def test_probabilities_outside_0_to_1_are_refused():
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], got 1.5 in row 0, column 1"):
        metrics.brier_score([[1, 0]], [[0.5, 1.5]])


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


def averages(labels, given):
    """CP, CR, CF1, OP, OR and OF1 by scikit-learn; classes without positives are left out of C."""

    def of(labels, given):
        return precision_recall_fscore_support(labels, given, average="binary", zero_division=0)[:2]

    of_classes = [of(labels[:, i], given[:, i]) for i in np.flatnonzero(labels.any(axis=0))]
    means = {
        "C": np.mean(of_classes or [(0.0, 0.0)], axis=0),
        "O": of(labels.ravel(), given.ravel()),
    }
    found = {}
    for prefix, (precision, recall) in means.items():
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        found |= {f"{prefix}P": precision, f"{prefix}R": recall, f"{prefix}F1": f1}
    return found


def highest(scores, k):
    """The decisions for the k labels that score highest, of equal ones the first."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    given = np.zeros(scores.shape, bool)
    np.put_along_axis(given, order, True, axis=1)
    return given


def multi_label_cases(number):
    """Cases with ties, and among them classes and examples without positives or negatives."""
    rng = np.random.default_rng(21)
    for _ in range(number):
        labels, scores = random_case(rng)
        labels[:, rng.random(labels.shape[1]) < 0.1] = rng.random() < 0.5
        labels[rng.random(len(labels)) < 0.1] = rng.random() < 0.5
        yield labels, scores


def test_scores_of_decisions_equal_scikit_learn_s():
    for labels, scores in multi_label_cases(200):
        found = metrics.precision_recall_f1(labels, scores, 0.4)
        expected = averages(labels, scores >= 0.4)
        assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
        for k in (1, 3, 9):
            found = metrics.top_k_scores(labels, scores, k)
            assert found == pytest.approx(averages(labels, highest(scores, k)), abs=1e-12)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        metrics.top_k_scores(labels, scores, 0)


def test_ranking_of_examples_equals_scikit_learn_s():
    compared = 0
    for labels, scores in multi_label_cases(300):
        if labels.shape[1] == 1:  # scikit-learn takes one column for labels of two classes
            assert metrics.ranking_loss(labels, scores) == 0
            assert metrics.coverage(labels, scores) == labels.mean()
            continue
        expected = label_ranking_loss(labels, scores)
        assert metrics.ranking_loss(labels, scores) == pytest.approx(expected, abs=1e-12)
        assert metrics.coverage(labels, scores) == pytest.approx(coverage_error(labels, scores))
        compared += 1
    assert compared > 200


def test_ranking_of_more_examples_than_a_block_holds(monkeypatch):
    rng = np.random.default_rng(5)
    labels, scores = rng.random((97, 11)) < 0.3, rng.random((97, 11)).round(1)
    monkeypatch.setattr(metrics.arrays, "_SCORES_PER_BLOCK", 100)
    assert metrics.ranking_loss(labels, scores) == pytest.approx(label_ranking_loss(labels, scores))
    assert metrics.coverage(labels, scores) == pytest.approx(coverage_error(labels, scores))
    expected = averages(labels, highest(scores, 3))
    assert metrics.top_k_scores(labels, scores) == pytest.approx(expected)
    with np.errstate(all="raise"):
        none = metrics.top_k_scores(labels[:0], scores[:0])
    assert set(none.values()) == {0.0}
    assert np.isnan(metrics.ranking_loss(labels[:0], scores[:0]))
    assert np.isnan(metrics.coverage(labels[:0], scores[:0]))


def test_area_under_roc_equals_scikit_learn_s():
    compared = 0
    for labels, scores in multi_label_cases(300):
        found = metrics.area_under_roc(labels, scores)
        for i, area in enumerate(found):
            if labels[:, i].all() or not labels[:, i].any():
                assert np.isnan(area)
            else:
                assert area == pytest.approx(roc_auc_score(labels[:, i], scores[:, i]), abs=1e-12)
                compared += 1
        pooled = metrics.micro_area_under_roc(labels, scores)
        if 0 < labels.mean() < 1:
            expected = roc_auc_score(labels.ravel(), scores.ravel())
            assert pooled == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(pooled)
    assert compared > 500


def test_scores_are_left_as_they_are():
    rng = np.random.default_rng(6)
    labels, scores = rng.random((20, 5)) < 0.3, rng.random((20, 5))
    before = scores.copy()
    for function in (
        metrics.area_under_roc,
        metrics.micro_area_under_roc,
        metrics.ranking_loss,
        metrics.coverage,
        metrics.top_k_scores,
    ):
        function(labels, scores)
        np.testing.assert_array_equal(scores, before)
        with pytest.raises(ValueError, match="1 NaN, the first in row 1, column 0"):
            function([[1], [0]], [[0.5], [np.nan]])


def test_precision_recall_curve_equals_scikit_learn_on_cases_with_ties():
    rng = np.random.default_rng(1)
    compared = 0
    for _ in range(300):
        labels, scores = (values[:, 0] for values in random_case(rng))
        if not labels.any():
            continue
        curve = metrics.precision_recall_curve(labels, scores)
        precision, recall, thresholds = precision_recall_curve(labels, scores)
        # scikit-learn's curve ends with a point at recall 0.
        np.testing.assert_allclose(curve.precision, precision[:-1][::-1])
        np.testing.assert_allclose(curve.recall, recall[:-1][::-1])
        np.testing.assert_array_equal(curve.thresholds, thresholds[::-1])
        f1 = [f1_score(labels, scores >= threshold) for threshold in curve.thresholds]
        np.testing.assert_allclose(curve.f1, f1)
        area = np.diff(curve.recall, prepend=0) @ curve.precision
        assert area == pytest.approx(average_precision_score(labels, scores))
        compared += 1
    assert compared > 200


def test_a_curve_needs_positives_of_one_class():
    with pytest.raises(ValueError, match="without positives has no precision-recall curve"):
        metrics.precision_recall_curve([0, 0], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"of shape \(N,\), got \(1, 2\) and \(1, 2\)"):
        metrics.precision_recall_curve([[0, 1]], [[0.1, 0.2]])
    with pytest.raises(ValueError, match="1 NaN, the first in row 1:"):
        metrics.precision_recall_curve([0, 1], [0.1, np.nan])


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


def make_evaluation():
    rng = np.random.default_rng(7)
    labels = rng.random((300, 6)) < [0.6, 0.4, 0.3, 0.1, 0.1, 0]
    scores = (0.3 * labels + 0.7 * rng.random(labels.shape)).astype(np.float32)
    counts = np.array([250, 120, 60, 25, 9, 3])
    statistics = LabelStatistics(counts, 400, np.diag(counts), tuple("abcdef"))
    return metrics.Evaluation(labels, scores, np.linspace(0.2, 0.7, 6), statistics)


def test_the_list_measures_what_scikit_learn_does():
    evaluation = make_evaluation()
    labels, scores = evaluation.labels, evaluation.scores
    measured = metrics.measure(evaluation)
    ap = [average_precision_score(labels[:, i], scores[:, i]) for i in range(5)]
    assert measured["mAP"] == pytest.approx(
        {"total": np.mean(ap), "head": np.mean(ap[:2]), "medium": np.mean(ap[2:4]), "tail": ap[4]}
    )
    for name, thresholds in (("0.5", 0.5), ("threshold", evaluation.thresholds)):
        given = scores >= thresholds
        expected = precision_recall_fscore_support(labels, given, zero_division=0)
        for key, values in zip(("precision", "recall", "f1"), expected, strict=False):
            found = [entry[f"at_{name}"][key] for entry in measured["per_class"].values()]
            np.testing.assert_allclose(found, values)
        assert measured["F1"][f"micro_at_{name}"] == pytest.approx(
            f1_score(labels, given, average="micro")
        )
        assert measured["F1"][f"macro_at_{name}"] == pytest.approx(
            f1_score(labels[:, :5], given[:, :5], average="macro")
        )
    found = [entry["ap"] for entry in measured["per_class"].values()]
    np.testing.assert_allclose(found, [*ap, np.nan])
    assert list(measured["per_class"]) == list("abcdef")


def test_the_list_measures_probabilities_as_scikit_learn_does():
    evaluation = make_evaluation()
    labels, scores = evaluation.labels, evaluation.scores
    measured = metrics.measure(evaluation)
    for key, function in (("log_loss", log_loss), ("brier_score", brier_score_loss)):
        of_classes = _of_classes(function, labels, scores)
        found = [entry[key] for entry in measured["per_class"].values()]
        np.testing.assert_allclose(found, of_classes, rtol=1e-12)
        assert measured["probabilities"][key] == pytest.approx(np.mean(of_classes))
        # Class f has no positives and is left out of the means.
        groups = {"total": slice(5), "head": slice(2), "medium": slice(2, 4), "tail": slice(4, 5)}
        expected = {name: np.mean(of_classes[index]) for name, index in groups.items()}
        assert measured[key] == pytest.approx(expected)
    errors = metrics.expected_calibration_error_by_class(labels, scores)
    found = [entry["calibration_error"] for entry in measured["per_class"].values()]
    np.testing.assert_array_equal(found, errors)
    assert measured["calibration_error"]["total"] == pytest.approx(errors[:5].mean())
    pooled = metrics.expected_calibration_error(labels, scores)
    assert measured["probabilities"]["calibration_error"] == pooled


def test_the_list_measures_decisions_and_ranking_as_scikit_learn_does():
    evaluation = make_evaluation()
    labels, scores = evaluation.labels, evaluation.scores
    measured = metrics.measure(evaluation)
    assert measured["decisions"] == {
        "at_0.5": pytest.approx(averages(labels, scores >= 0.5)),
        "at_threshold": pytest.approx(averages(labels, scores >= evaluation.thresholds)),
        "top_3": pytest.approx(averages(labels, highest(scores, 3))),
    }
    assert measured["ranking"] == pytest.approx(
        {
            "ranking_loss": label_ranking_loss(labels, scores),
            "coverage": coverage_error(labels, scores),
            "micro_AUC": roc_auc_score(labels, scores, average="micro"),
        }
    )
    areas = roc_auc_score(labels[:, :5], scores[:, :5], average=None)
    found = [entry["AUC"] for entry in measured["per_class"].values()]
    np.testing.assert_allclose(found, [*areas, np.nan])
    groups = {"total": slice(5), "head": slice(2), "medium": slice(2, 4), "tail": slice(4, 5)}
    assert measured["AUC"] == pytest.approx({k: areas[v].mean() for k, v in groups.items()})


def test_shared_work_is_done_once(monkeypatch):
    calls = []
    once = (
        "over_ranked_classes",
        "log_loss_of_classes",
        "brier_score_of_classes",
        "mean_excess_of_classes",
        "top_k_scores",
        "micro_area_under_roc",
        "ranking_scores",
    )
    for name in (*once, "precision_recall_f1"):
        function = getattr(metrics.evaluation, name)

        def counted(*args, function=function, name=name):
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(metrics.evaluation, name, counted)
    metrics.measure(make_evaluation())
    assert sorted(calls) == sorted([*once, "precision_recall_f1", "precision_recall_f1"])


def test_a_metric_reads_back_what_was_measured():
    evaluation = make_evaluation()
    measured = metrics.measure(evaluation)
    for metric in metrics.METRICS:
        expected = metric.compute(evaluation)
        if metric.over == "group":
            expected = [expected[name] for name in ("total", "head", "medium", "tail")]
        shape = {"class": (6,), "group": (4,), "split": (1,)}[metric.over]
        assert metric.read(measured).shape == shape
        np.testing.assert_array_equal(metric.read(measured), np.reshape(expected, shape))


def test_null_and_what_an_earlier_version_did_not_measure_read_as_nan():
    scores = {"mAP": {"total": 0.5, "head": None}, "per_class": {"a": {"ap": None}, "b": {}}}
    for metric in metrics.METRICS:
        expected = [np.nan] * {"class": 2, "group": 4, "split": 1}[metric.over]
        if metric is metrics.MEAN_AVERAGE_PRECISION:
            expected[0] = 0.5
        np.testing.assert_array_equal(metric.read(scores), expected)


def test_values_as_tables_show_them():
    percent = metrics.Metric(("a",), "split", lambda e: 0.0, "", heading="A", digits=1)
    number = metrics.Metric(("b",), "split", lambda e: 0.0, "", heading="B", percent=False)
    assert (percent.heading_with_unit, number.heading_with_unit) == ("A %", "B")
    assert percent.text(0.12345) == "12.3" and number.text(0.12345) == "0.12"
    assert percent.text(0.12345, 0.0321) == "12.3 ± 3.2"
    assert percent.text(float("nan"), 0.1) == "–"


def test_evaluation_of_arrays_that_do_not_fit_is_refused():
    evaluation = make_evaluation()
    with pytest.raises(ValueError, match=r"thresholds of shape \(2,\) and statistics of 6"):
        metrics.Evaluation(evaluation.labels, evaluation.scores, np.zeros(2), evaluation.statistics)
    with pytest.raises(ValueError, match=r"labels of 2 classes .* statistics of 6 classes"):
        metrics.Evaluation(
            evaluation.labels[:, :2], evaluation.scores[:, :2], np.zeros(2), evaluation.statistics
        )
