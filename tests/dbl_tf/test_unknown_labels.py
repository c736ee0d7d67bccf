"""Labels that are not known: losses, weights, statistics, metrics and calibration without them.

Whatever is computed with some labels unknown must be what the known ones alone give: the references
are float64 NumPy and scikit-learn on the known labels of each row or class.
"""

import json

import keras
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import sklearn.metrics
import tensorflow as tf

import dbl_tf
from dbl_tf import LabelStatistics, calibration, metrics, weighting

COUNTS, NUM_EXAMPLES = np.array([775, 310, 95, 40, 12, 4]), 1142
# Of how many examples each class is known.
KNOWN_COUNTS = np.array([800, 600, 1142, 900, 30, 5])
SEEDS = range(4)


def softplus(x):
    return np.logaddexp(0, x)


def sigmoid(x):
    return np.exp(-softplus(-x))


def crossentropy(y, z, gamma=0.0, scale=1.0):
    return scale * (
        y * sigmoid(-z) ** gamma * softplus(-z) + (1 - y) * sigmoid(z) ** gamma * softplus(z)
    )


def rebalanced(y, n, alpha=0.1, beta=10.0, mu=0.2):
    with np.errstate(divide="ignore"):
        return alpha + sigmoid(beta * ((1 / n) / np.sum(y / n) - mu))


def distribution_balanced(y, z, n, num_examples, lambda_=2.0, kappa=0.05):
    q = z - kappa * np.log(num_examples / n - 1)
    positive = sigmoid(-q) ** 2 * softplus(-q)
    negative = sigmoid(lambda_ * q) ** 2 * softplus(lambda_ * q) / lambda_
    return rebalanced(y, n) * 2 * (y * positive + (1 - y) * negative)


def class_balanced(y, n, beta=0.9):
    weights = (1 - beta) / (1 - beta**n)
    return np.sum(y * weights) / y.sum() if y.sum() else 1.0


def asymmetric(y, z):
    clipped = np.maximum(sigmoid(z) - 0.05, 0)
    return y * sigmoid(-z) * softplus(-z) - (1 - y) * clipped**4 * np.log1p(-clipped)


def hill(y, z):
    p = sigmoid(z)
    return y * sigmoid(1 - z) ** 2 * softplus(1 - z) + (1 - y) * (1.5 - p) * p**2


def splc(y, z):
    positive, negative = sigmoid(1 - z) ** 2 * softplus(1 - z), sigmoid(z) ** 2 * softplus(z)
    return np.where((y == 1) | (sigmoid(z) > 0.6), positive, negative)


def robust_asymmetric(y, z):
    p, clipped = sigmoid(z), np.maximum(sigmoid(z) - 0.05, 0)
    positive = softplus(-z) - (1 - p) + 1.25 * (1 - p) ** 2
    return y * positive - (1 - y) * (1.5 - p) * clipped**4 * np.log1p(-clipped)


# For a loss of elements, a function of the known labels y, logits z, counts n and N of one row.
ELEMENTS = {
    "db_focal": (
        lambda **a: dbl_tf.DistributionBalancedLoss(COUNTS, NUM_EXAMPLES, **a),
        lambda y, z, n, big_n: distribution_balanced(y, z, n, NUM_EXAMPLES),
    ),
    "db_focal_by_class": (
        lambda **a: dbl_tf.DistributionBalancedLoss(COUNTS, KNOWN_COUNTS, **a),
        distribution_balanced,
    ),
    "bce": (
        lambda **a: dbl_tf.DistributionBalancedLoss(
            COUNTS, NUM_EXAMPLES, rebalance=None, lambda_=1, kappa=0, focal_gamma=0, **a
        ),
        lambda y, z, n, big_n: crossentropy(y, z),
    ),
    "rw": (
        lambda **a: dbl_tf.ReweightedCrossentropy(COUNTS, "inverse_root", **a),
        lambda y, z, n, big_n: np.sqrt(COUNTS.min() / n) * crossentropy(y, z),
    ),
    "cb_focal": (
        lambda **a: dbl_tf.ReweightedCrossentropy(COUNTS, "class_balanced", focal_gamma=2, **a),
        lambda y, z, n, big_n: class_balanced(y, n) * crossentropy(y, z, 2, 2),
    ),
    "ldam": (
        lambda **a: dbl_tf.LDAMLoss(COUNTS, **a),
        lambda y, z, n, big_n: crossentropy(y, z - 15 * y * (COUNTS.min() / n) ** 0.25),
    ),
    "asl": (dbl_tf.AsymmetricLoss, lambda y, z, n, big_n: asymmetric(y, z)),
    "hill": (dbl_tf.HillLoss, lambda y, z, n, big_n: hill(y, z)),
    "splc": (dbl_tf.SPLCLoss, lambda y, z, n, big_n: splc(y, z)),
    "ral": (dbl_tf.RobustAsymmetricLoss, lambda y, z, n, big_n: robust_asymmetric(y, z)),
    "poly1": (
        dbl_tf.Poly1Loss,
        lambda y, z, n, big_n: crossentropy(y, z) + 2 * (y * sigmoid(-z) + (1 - y) * sigmoid(z)),
    ),
}


def two_way_of(y, z, warm=4.0, cold=1.0):
    negatives, positives = np.exp(z[y == 0] / cold).sum(), np.exp(-z[y == 1] / warm).sum()
    return np.log1p(negatives**cold * positives**warm)


def two_way(labels, logits, known, ways):
    total = 0.0
    for y, z, k in ((labels, logits, known), (labels.T, logits.T, known.T))[:ways]:
        losses = [two_way_of(a[c], b[c]) for a, b, c in zip(y, z, k, strict=True) if a[c].any()]
        total += np.mean(losses)
    return total


def zlpr(labels, logits, known):
    return np.mean(
        [
            np.log1p(np.exp(z[k & (y == 0)]).sum()) + np.log1p(np.exp(-z[k & (y == 1)]).sum())
            for y, z, k in zip(labels, logits, known, strict=True)
        ]
    )


OF_EXAMPLES = {
    "zlpr": (dbl_tf.ZLPRLoss, zlpr),
    "two_way": (dbl_tf.TwoWayLoss, lambda *a: two_way(*a, 2)),
    "two_way_samples": (
        lambda **a: dbl_tf.TwoWayLoss(ways="samples", **a),
        lambda *a: two_way(*a, 1),
    ),
}


def draw(seed, num_rows=32, num_classes=6):
    """Labels, logits, and which labels are known; the first rows know all, none, no positive."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_rows, num_classes)) < 0.35).astype(np.float64)
    known = rng.random(labels.shape) < rng.random()
    known[0], known[1], known[2] = True, False, labels[2] == 0
    return labels, 3 * rng.standard_normal(labels.shape), known


def with_unknown(labels, known, dtype):
    unknown = np.nan if np.dtype(dtype).kind == "f" else -1
    return np.where(known, labels, unknown).astype(dtype)


def value_and_gradient(loss, labels, logits, jit_compile=None):
    labels, logits = tf.constant(labels), tf.constant(logits, tf.float32)

    def compute(labels, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(labels, logits)
        return value, tape.gradient(value, logits)

    if jit_compile is not None:
        compute = tf.function(compute, jit_compile=jit_compile)
    return [part.numpy() for part in compute(labels, logits)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ELEMENTS)
def test_a_loss_of_elements_is_that_of_the_known_ones(name, seed):
    make, reference = ELEMENTS[name]
    labels, logits, known = draw(seed)
    expected = np.zeros(labels.shape)
    for row, k in enumerate(known):
        counts, num_examples = COUNTS[k], KNOWN_COUNTS[k]
        expected[row, k] = reference(labels[row, k], logits[row, k], counts, num_examples)
    for dtype in ("float32", "int8", "int64"):
        given = with_unknown(labels, known, dtype)
        elements = make(reduction=None)(given, logits.astype(np.float32))
        np.testing.assert_allclose(elements, expected, rtol=2e-5, atol=1e-7)
        assert (elements.numpy()[~known] == 0).all()
    for jit_compile in (None, False, True) if seed == 0 else (None,):
        value, gradient = value_and_gradient(make(), given, logits, jit_compile)
        # The mean is over all elements, as it is where all are known.
        np.testing.assert_allclose(value, expected.mean(), rtol=2e-5)
        assert np.isfinite(gradient).all() and (gradient[~known] == 0).all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", OF_EXAMPLES)
def test_a_loss_of_examples_leaves_unknown_labels_out_of_its_sums(name, seed):
    make, reference = OF_EXAMPLES[name]
    labels, logits, known = draw(seed)
    expected = reference(labels, logits, known)
    for dtype in ("float32", "int8"):
        given = with_unknown(labels, known, dtype)
        for jit_compile in (None, False) if seed == 0 else (None,):
            value, gradient = value_and_gradient(make(), given, logits, jit_compile)
            np.testing.assert_allclose(value, expected, rtol=2e-5)
            assert np.isfinite(gradient).all() and (gradient[~known] == 0).all()


@pytest.mark.parametrize("name", ["db_focal", "asl", "two_way"])
def test_gradients_are_finite_at_extreme_logits_of_unknown_labels(name):
    make, _ = (ELEMENTS | OF_EXAMPLES)[name]
    logits = np.float32([[1e4, -1e4, 90, -90, 0, 1e-30]] * 2)
    labels = np.float32([[np.nan] * 6, [1, 0, np.nan, np.nan, 0, 1]])
    for jit_compile in (None, True) if name != "two_way" else (None, False):
        value, gradient = value_and_gradient(make(), labels, logits, jit_compile)
        assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", ["db_focal", "cb_focal", "hill", "zlpr", "two_way"])
def test_looking_for_unknown_labels_changes_no_bit_where_there_are_none(name):
    labels, logits, _ = (tf.constant(array, tf.float32) for array in draw(0))
    loss = (ELEMENTS | OF_EXAMPLES)[name][0](reduction=None)
    # `call` alone knows nothing of the labels, as in a compiled function; the loss has seen them.
    np.testing.assert_array_equal(loss.call(labels, logits), loss(labels, logits))


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.uint8([[0, 255]]), r"found 255 at \[0, 1\]"),
        (np.float32([[0.5, -1.0]]), r"found -1\.0 at \[0, 1\]; an unknown label is −1 in integers"),
        ([[2, 0]], r"found 2 at \[0, 0\]"),
        (np.float32([[np.nan, 1.5]]), r"found 1\.5 at \[0, 1\]"),
        (np.int8([[-2, -1]]), r"found -2 at \[0, 0\]"),
    ],
)
@pytest.mark.parametrize("convert", [np.asarray, tf.constant, lambda labels: labels])
def test_labels_of_other_values_are_refused(labels, found, convert):
    logits = np.zeros((1, 2), np.float32)
    for loss in (dbl_tf.AsymmetricLoss(), dbl_tf.ZLPRLoss()):
        with pytest.raises(ValueError, match=r"labels must be in \[0, 1\], " + found):
            loss(convert(labels), logits)


def test_a_network_is_trained_by_the_known_labels_alone():
    labels, _, known = draw(3, num_rows=64)
    features = np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32)
    kernels = []
    for hidden in (0, 1):  # what is hidden must not matter
        network = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6, "linear")])
        network.layers[0].kernel.assign(np.full((5, 6), 0.1))
        loss = dbl_tf.DistributionBalancedLoss(COUNTS, NUM_EXAMPLES)
        network.compile(keras.optimizers.SGD(0.5), loss)
        given = with_unknown(np.where(known, labels, hidden), known, "int8")
        network.fit(features, given, batch_size=16, epochs=2, shuffle=False, verbose=0)
        kernels.append(network.layers[0].kernel.numpy())
    assert np.isfinite(kernels[0]).all() and np.ptp(kernels[0]) > 0.01
    np.testing.assert_array_equal(*kernels)


@pytest.mark.parametrize("seed", SEEDS)
def test_weights_are_those_of_the_known_positives(seed):
    labels, _, known = draw(seed)
    expected = np.stack([rebalanced(y, COUNTS) for y in labels * known])
    of_class_balance = [class_balanced(y, COUNTS) for y in labels * known]
    for dtype in ("float64", "float32", "int16"):
        for convert in (np.asarray, tf.constant):
            given = convert(with_unknown(labels, known, dtype))
            found = weighting.rebalanced_weights(given, COUNTS)
            np.testing.assert_allclose(found, expected, rtol=1e-5)
            found = weighting.class_balanced_weights(given, COUNTS)[:, 0]
            np.testing.assert_allclose(found, of_class_balance, rtol=1e-5)
            found = weighting.inverse_root_weights(given, COUNTS)
            np.testing.assert_allclose(found[5], np.sqrt(COUNTS.min() / COUNTS), rtol=1e-6)


def test_a_class_of_which_too_little_is_known_has_no_margin_where_counts_are_clamped():
    loss = dbl_tf.DistributionBalancedLoss([5, 0, 1], [10, 0, 1], clamp_counts=True)
    assert loss.get_config()["num_examples"] == [10, 0, 1]
    same = dbl_tf.DistributionBalancedLoss.from_config(loss.get_config())
    for each in (loss, same):
        np.testing.assert_allclose(each._nu, [0.0, 0.0, 0.0])
        assert np.isfinite(each([[1, -1, 0]], np.zeros((1, 3), np.float32)))
    with pytest.raises(ValueError, match=r"\[0, num_examples = 3\], but class 1 has 4"):
        dbl_tf.DistributionBalancedLoss([5, 4], [10, 3])
    with pytest.raises(ValueError, match=r"one for each of 2 classes, got shape \(3,\)"):
        dbl_tf.DistributionBalancedLoss([5, 4], [10, 9, 9])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "convert",
    [
        lambda labels, known: with_unknown(labels, known, "float32"),
        lambda labels, known: with_unknown(labels, known, "int8"),
        lambda labels, known: scipy.sparse.csr_array(with_unknown(labels, known, "int8")),
        lambda labels, known: scipy.sparse.csr_array(with_unknown(labels, known, "float64")),
    ],
)
def test_statistics_count_what_is_known(convert, seed, tmp_path):
    labels, _, known = draw(seed, num_rows=100)
    given = convert(labels, known)
    statistics = LabelStatistics.from_labels(given, list("abcdef"))
    known_positives = labels.astype(bool) & known
    for i in range(6):
        assert statistics.class_counts[i] == known_positives[:, i].sum()
        assert statistics.known_counts[i] == known[:, i].sum()
        np.testing.assert_allclose(statistics.priors[i], labels[known[:, i], i].mean())
        for j in range(6):
            both = known[:, i] & known[:, j]
            pairs = labels[both, i] * labels[both, j]
            assert statistics.cooccurrence[i, j] == pairs.sum()
    assert statistics.num_examples == 100
    np.testing.assert_array_equal(statistics.examples_of_classes, statistics.known_counts)
    probability = statistics.instance_probability(given)
    np.testing.assert_allclose(
        probability, (known_positives / statistics.class_counts).sum(axis=1) / 6
    )
    path = tmp_path / "statistics.json"
    statistics.save(path)
    loaded = LabelStatistics.load(path)
    np.testing.assert_array_equal(loaded.unknown_counts, statistics.unknown_counts)
    np.testing.assert_array_equal(loaded.cooccurrence, statistics.cooccurrence)


def test_statistics_of_the_first_version_are_those_of_known_labels(tmp_path):
    path = tmp_path / "statistics.json"
    LabelStatistics.from_labels(np.int8([[1, 0], [0, 0]])).save(path)
    first = (
        '{"format": "dbl_tf.LabelStatistics/1", "num_examples": 2, "class_names": ["0", "1"], '
        '"class_counts": [1, 0], "cooccurrence": {"i": [0], "j": [0], "count": [1]}}'
    )
    added = {"format": "dbl_tf.LabelStatistics/2", "digest": json.loads(path.read_text())["digest"]}
    assert json.loads(path.read_text()) == json.loads(first) | added
    path.write_text(first)
    statistics = LabelStatistics.load(path)
    assert statistics.unknown_counts is None and statistics.examples_of_classes == 2


def scores_of(labels, logits):
    """Scores with ties, in [0, 1]."""
    return sigmoid(logits + labels).round(1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_metrics_of_a_class_are_those_of_its_known_examples(dtype, seed):
    labels, logits, known = draw(seed, num_rows=60)
    labels[:, 5] *= ~known[:, 5]  # a class whose positives are unknown
    scores, thresholds = scores_of(labels, logits), np.linspace(0.2, 0.8, 6)
    given = with_unknown(labels, known, dtype)
    decided = metrics.precision_recall_f1(given, scores, thresholds)
    chosen = metrics.best_f1_thresholds(given, scores)
    per_class = {
        "ap": (metrics.average_precision(given, scores), sklearn.metrics.average_precision_score),
        "auc": (metrics.area_under_roc(given, scores), sklearn.metrics.roc_auc_score),
        "brier": (
            metrics.brier_score_by_class(given, scores),
            lambda y, s: np.mean((s - y) ** 2),
        ),
        "log_loss": (
            metrics.log_loss_by_class(given, scores),
            lambda y, s: sklearn.metrics.log_loss(y, s, labels=[0, 1]),
        ),
        "ece": (
            metrics.expected_calibration_error_by_class(given, scores),
            lambda y, s: metrics.expected_calibration_error(y[:, None], s[:, None]),
        ),
    }
    for i, k in enumerate(known.T):
        y, s = labels[k, i], scores[k, i]
        for found, reference in per_class.values():
            if y.any() or reference not in (per_class["ap"][1], per_class["auc"][1]):
                np.testing.assert_allclose(found[i], reference(y, s), rtol=1e-9)
            else:
                assert np.isnan(found[i])
        precision, recall, f1, _ = sklearn.metrics.precision_recall_fscore_support(
            y, s >= thresholds[i], average="binary", zero_division=0
        )
        for name, value in (("precision", precision), ("recall", recall), ("f1", f1)):
            np.testing.assert_allclose(decided[name][i], value)
        assert chosen[i] == metrics.best_f1_thresholds(y[:, None], s[:, None])[0]
        if y.any():
            curve = metrics.precision_recall_curve(given[:, i], scores[:, i])
            assert curve.num_accepted[-1] == k.sum() and curve.num_hits[-1] == y.sum()
    pairs = labels[known], scores[known]
    pooled = {
        metrics.micro_area_under_roc: sklearn.metrics.roc_auc_score(*pairs),
        metrics.log_loss: sklearn.metrics.log_loss(*pairs),
        metrics.brier_score: sklearn.metrics.brier_score_loss(*pairs),
        metrics.expected_calibration_error: metrics.expected_calibration_error(
            *(array[:, None] for array in pairs)
        ),
    }
    for function, expected in pooled.items():
        for labels_of_all in (given, scipy.sparse.csr_array(given)):
            np.testing.assert_allclose(function(labels_of_all, scores), expected, rtol=1e-9)
    decisions = (scores >= thresholds)[known]
    np.testing.assert_allclose(decided["OF1"], sklearn.metrics.f1_score(pairs[0], decisions))
    np.testing.assert_allclose(decided["micro_f1"], decided["OF1"])
    means = metrics.mean_average_precision(given, scores, {"tail": [0, 5]})
    np.testing.assert_allclose(means["total"], np.nanmean(per_class["ap"][0]))
    np.testing.assert_allclose(means["tail"], per_class["ap"][0][0])


@pytest.mark.parametrize("seed", SEEDS)
def test_rankings_of_an_example_are_those_of_its_known_labels(seed):
    labels, logits, known = draw(seed, num_rows=40)
    scores, given = scores_of(labels, logits), with_unknown(labels, known, "int8")
    scores[3] = -np.inf
    losses, depths = [], []
    for y, s, k in zip(labels, scores, known, strict=True):
        y, s = y[k], np.maximum(s[k], -1e9)
        has_pairs = 0 < y.sum() < len(y)
        losses.append(sklearn.metrics.label_ranking_loss([y], [s]) if has_pairs else 0.0)
        # scikit-learn wants two labels at least; one below all others changes nothing.
        y, s = np.append(y, 0), np.append(s, -2e9)
        depths.append(sklearn.metrics.coverage_error([y], [s]) if y.any() else 0.0)
    np.testing.assert_allclose(metrics.ranking_loss(given, scores), np.mean(losses))
    np.testing.assert_allclose(metrics.coverage(given, scores), np.mean(depths))
    # The two highest of all labels are given, and judged where they are known.
    scores = scores + 1e-3 * np.arange(6)
    order = np.argsort(-scores[4:], axis=1)[:, :2]
    is_given = np.zeros((36, 6), bool)
    np.put_along_axis(is_given, order, True, axis=1)
    top = metrics.top_k_scores(given[4:], scores[4:], k=2)
    is_judged = is_given & known[4:]
    np.testing.assert_allclose(top["OP"], labels[4:][is_judged].mean())
    np.testing.assert_allclose(top["OR"], labels[4:][is_judged].sum() / labels[4:][known[4:]].sum())


def test_an_evaluation_measures_all_metrics_with_unknown_labels():
    labels, logits, known = draw(1, num_rows=50)
    known[:, 2] = False  # nothing is known of a class
    scores = scores_of(labels, logits)
    given = with_unknown(labels, known, "float32")
    statistics = LabelStatistics.from_labels(given)
    measured = metrics.measure(metrics.Evaluation(given, scores, np.full(6, 0.5), statistics))
    expected = metrics.mean_average_precision(given, scores, statistics.groups)
    assert measured["mAP"] == pytest.approx(expected, nan_ok=True)
    assert measured["probabilities"]["brier_score"] == pytest.approx(
        np.mean((scores - labels)[known] ** 2)
    )
    assert np.isnan(measured["per_class"]["2"]["ap"])
    assert np.isnan(measured["per_class"]["2"]["brier_score"])
    with pytest.raises(ValueError, match=r"found 2 in row 0, column 1; an unknown label is −1"):
        metrics.average_precision(np.int8([[0, 2]]), np.zeros((1, 2)))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_calibration_maximizes_the_likelihood_of_the_known_labels(seed):
    labels, logits, known = draw(seed, num_rows=400)
    logits += 2 * labels
    logits[~known] += 100  # which must not matter
    given = with_unknown(labels, known, "int8")
    prevalence = np.full(6, 0.3)
    fitted = calibration.fit_calibration(
        logits, given, prevalence=prevalence, fitted_on="val", pseudo_positives=0
    )

    def loss(parameters):
        x = (parameters[0] * logits + parameters[1:])[known]
        return np.sum(softplus(x) - labels[known] * x)

    best = scipy.optimize.minimize(loss, np.zeros(7), method="BFGS", options={"gtol": 1e-5})
    np.testing.assert_allclose([fitted.slope, *fitted.offsets], best.x, atol=2e-4)
    # With a prior, the mean over the known examples of a class is between k/N and π.
    fitted = calibration.fit_calibration(logits, given, prevalence=prevalence, fitted_on="val")
    for i, k in enumerate(known.T):
        share, num = labels[k, i].mean(), k.sum()
        weight = num * share * (1 - share) / (num * share * (1 - share) + 4)
        mean = fitted(logits)[k, i].mean()
        np.testing.assert_allclose(mean, weight * share + (1 - weight) * 0.3, rtol=1e-6)


def test_a_class_of_which_nothing_is_known_is_calibrated_to_its_prevalence():
    labels, logits, _ = draw(0, num_rows=50)
    given = np.column_stack([labels.astype(np.int8), np.full(50, -1, np.int8)])
    logits = np.column_stack([logits, logits[:, 0]])
    fitted = calibration.fit_calibration(logits, given, prevalence=np.full(7, 0.2), fitted_on="val")
    np.testing.assert_allclose(fitted(logits)[:, 6].mean(), 0.2, rtol=1e-6)
