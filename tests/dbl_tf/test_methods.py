import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import LabelStatistics, methods
from dbl_tf.parameters import DEFAULTS, LossParameters

# Every parameter differs from its default.
OTHER = LossParameters(
    alpha=0.3,
    beta=2.0,
    mu=0.6,
    lambda_=5.0,
    kappa=0.2,
    margin="released",
    focal_gamma=0.5,
    focal_scale=3.0,
    gamma_negative=2.0,
    gamma_positive=0.5,
    clip=0.2,
    max_margin=0.3,
    cosine_scale=20.0,
    effective_number_beta=0.5,
    temperature_positive=2.0,
    temperature_negative=0.5,
    ways="samples",
    logit_margin=0.3,
    hill_lambda=1.2,
    correction_threshold=0.8,
    correction_epochs=2.0,
    robust_gamma_positive=0.5,
    robust_linear=0.5,
    robust_quadratic=-0.5,
    poly_epsilon=-0.5,
)
PARAMETERS = [field.name for field in dataclasses.fields(LossParameters)]


def make_statistics():
    labels = np.random.default_rng(0).random((60, 6)) < np.geomspace(0.7, 0.05, 6)
    labels[0] = False
    return LabelStatistics.from_labels(labels.astype(int)), labels.astype(np.float32)


def make_logits():
    return (3 * np.random.default_rng(1).standard_normal((60, 6))).astype(np.float32)


STATISTICS, LABELS = make_statistics()
LOGITS = make_logits()


STEPS_PER_EPOCH = 10


def loss_of(name, parameters=DEFAULTS, rebalance="labels", step=STEPS_PER_EPOCH):
    loss = methods.get(name).make_loss(
        STATISTICS.class_counts,
        STATISTICS.num_examples,
        parameters,
        rebalance=rebalance,
        steps_per_epoch=STEPS_PER_EPOCH,
    )
    loss.at_step(step)
    return loss


def weighting_of(name, parameters=DEFAULTS):
    return methods.get(name).make_weighting(
        STATISTICS.class_counts, STATISTICS.num_examples, parameters
    )


def head_of(name, parameters=DEFAULTS, **arguments):
    keras.utils.set_random_seed(0)
    return methods.get(name).make_head(8, STATISTICS, parameters, seed=3, **arguments)


# The losses and weights of the publications in float64 NumPy, for labels y, logits z, counts n and
# parameters p.
def softplus(x):
    return np.logaddexp(0, x)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bce(y, z, n, p):
    return y * softplus(-z) + (1 - y) * softplus(z)


def focal(y, z, n, p):
    factor = y * sigmoid(-z) ** p.focal_gamma + (1 - y) * sigmoid(z) ** p.focal_gamma
    return p.focal_scale * factor * bce(y, z, n, p)


def shifted(z, n, p):
    """q of Eq. 7 and 10."""
    nu = p.kappa * np.log(STATISTICS.num_examples / n - 1)
    return z - (nu / p.lambda_ if p.margin == "released" else nu)


def negative_tolerant(y, z, n, p):
    q = shifted(z, n, p)
    return y * softplus(-q) + (1 - y) * softplus(p.lambda_ * q) / p.lambda_


def negative_tolerant_focal(y, z, n, p):
    q = shifted(z, n, p)
    factor = y * sigmoid(-q) ** p.focal_gamma + (1 - y) * sigmoid(p.lambda_ * q) ** p.focal_gamma
    return p.focal_scale * factor * negative_tolerant(y, z, n, p)


def ldam(y, z, n, p):
    delta = n**-0.25
    delta *= p.max_margin / delta.max()
    return bce(y, z - p.cosine_scale * y * delta, n, p)


def asymmetric(y, z, n, p):
    probability = sigmoid(z)
    clipped = np.maximum(probability - p.clip, 0)
    positive = -((1 - probability) ** p.gamma_positive) * np.log(probability)
    negative = -(clipped**p.gamma_negative) * np.log(1 - clipped)
    return y * positive + (1 - y) * negative


def robust_asymmetric(y, z, n, p):
    probability = sigmoid(z)
    clipped = np.maximum(probability - p.clip, 0)
    polynomial = p.robust_linear * (1 - probability) + p.robust_quadratic * (1 - probability) ** 2
    factor = (1 - probability) ** p.robust_gamma_positive
    positive = -factor * (np.log(probability) + polynomial)
    negative = -(clipped**p.gamma_negative) * np.log(1 - clipped) * (p.hill_lambda - probability)
    return y * positive + (1 - y) * negative


def poly1(y, z, n, p):
    of_truth = y * sigmoid(z) + (1 - y) * sigmoid(-z)
    return -np.log(of_truth) + p.poly_epsilon * (1 - of_truth)


def focal_margin(z, p):
    of_margin = sigmoid(z - p.logit_margin)
    return -((1 - of_margin) ** p.focal_gamma) * np.log(of_margin)


def hill(y, z, n, p):
    negative = (p.hill_lambda - sigmoid(z)) * sigmoid(z) ** 2
    return y * focal_margin(z, p) + (1 - y) * negative


def splc(y, z, n, p):
    """After one epoch, which is in the warm-up if that is longer."""
    negative = -(sigmoid(z) ** p.focal_gamma) * np.log(sigmoid(-z))
    if p.correction_epochs <= 1:
        negative = np.where(sigmoid(z) > p.correction_threshold, focal_margin(z, p), negative)
    return y * focal_margin(z, p) + (1 - y) * negative


def zlpr(y, z, n, p):
    rows = [
        np.log(1 + np.exp(row[label == 0]).sum()) + np.log(1 + np.exp(-row[label == 1]).sum())
        for label, row in zip(y, z, strict=True)
    ]
    return np.array(rows)


def two_way_of(y, z, p):
    """The losses of the rows that have a positive; 0 for the others."""
    losses = []
    for label, row in zip(y, z, strict=True):
        below = np.exp(row[label == 0] / p.temperature_negative).sum() ** p.temperature_negative
        above = np.exp(-row[label == 1] / p.temperature_positive).sum() ** p.temperature_positive
        losses.append(np.log1p(below * above))
    return np.array(losses)


def two_way(y, z, n, p):
    rows = two_way_of(y, z, p) * len(y) / y.any(axis=1).sum()
    if p.ways == "both":
        rows = rows + two_way_of(y.T, z.T, p).sum() / y.any(axis=0).sum()
    return rows


def rebalanced(y, n, p):
    with np.errstate(divide="ignore", over="ignore"):
        r = (1 / n) / (y / n).sum(axis=1, keepdims=True)
        return p.alpha + sigmoid(p.beta * (r - p.mu))


def inverse_root(y, n, p):
    w = np.sqrt(STATISTICS.num_examples / n)
    return np.broadcast_to(w / w.max(), y.shape)


def class_balanced(y, n, p):
    w = (1 - p.effective_number_beta) / (1 - p.effective_number_beta**n)
    of_examples = [np.average(w, weights=row) if row.any() else 1.0 for row in y]
    return np.broadcast_to(np.array(of_examples)[:, None], y.shape)


WEIGHTING_PARAMETERS = {
    None: set(),
    rebalanced: {"alpha", "beta", "mu"},
    inverse_root: set(),
    class_balanced: {"effective_number_beta"},
}
LOSS_PARAMETERS = {
    bce: set(),
    focal: {"focal_gamma", "focal_scale"},
    negative_tolerant: {"lambda_", "kappa", "margin"},
    negative_tolerant_focal: {"lambda_", "kappa", "margin", "focal_gamma", "focal_scale"},
    ldam: {"max_margin", "cosine_scale"},
    asymmetric: {"gamma_negative", "gamma_positive", "clip"},
    robust_asymmetric: {
        "gamma_negative",
        "clip",
        "hill_lambda",
        "robust_gamma_positive",
        "robust_linear",
        "robust_quadratic",
    },
    poly1: {"poly_epsilon"},
    hill: {"logit_margin", "focal_gamma", "hill_lambda"},
    splc: {"logit_margin", "focal_gamma", "correction_threshold", "correction_epochs"},
    zlpr: set(),
    two_way: {"ways", "temperature_positive", "temperature_negative"},
}
# Tables 1 and 2 of the paper: sampler, weights and loss.
TABLE = {
    "erm": ("uniform", None, bce),
    "rw": ("uniform", inverse_root, bce),
    "focal": ("uniform", None, focal),
    "rs": ("class_aware", None, bce),
    "rs_focal": ("class_aware", None, focal),
    "ml_gcn": ("uniform", None, bce),
    "ldam": ("uniform", None, ldam),
    "cb_focal": ("uniform", class_balanced, focal),
    "r_bce": ("class_aware", rebalanced, bce),
    "r_bce_focal": ("class_aware", rebalanced, focal),
    "nt_bce": ("class_aware", None, negative_tolerant),
    "nt_bce_focal": ("class_aware", None, negative_tolerant_focal),
    "db": ("class_aware", rebalanced, negative_tolerant),
    "db_focal": ("class_aware", rebalanced, negative_tolerant_focal),
    "rs_rw_focal": ("class_aware", inverse_root, focal),
    "rs_cb_focal": ("class_aware", class_balanced, focal),
    "asl": ("uniform", None, asymmetric),
    # Beyond the paper.
    "ral": ("uniform", None, robust_asymmetric),
    "poly1": ("uniform", None, poly1),
    "two_way": ("uniform", None, two_way),
    "zlpr": ("uniform", None, zlpr),
    "hill": ("uniform", None, hill),
    "splc": ("uniform", None, splc),
}


def test_methods_are_the_rows_of_the_tables():
    assert set(methods.METHODS) == set(TABLE)
    assert all(methods.get(name).sampler == sampler for name, (sampler, *_) in TABLE.items())
    lines = methods.describe().splitlines()
    assert [line.split()[0] for line in lines] == list(methods.METHODS)
    assert all(method.summary in methods.describe() for method in methods.METHODS.values())


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("parameters", [DEFAULTS, OTHER], ids=["defaults", "other"])
def test_losses_and_weights_equal_their_closed_forms(name, parameters):
    _, weights_of, elements_of = TABLE[name]
    y, z = LABELS.astype(np.float64), LOGITS.astype(np.float64)
    n = STATISTICS.class_counts.astype(np.float64)
    elements = elements_of(y, z, n, parameters)
    weights = np.float64(1) if weights_of is None else weights_of(y, n, parameters)

    inside = loss_of(name, parameters, "labels")
    tolerance = {"rtol": 2e-5, "atol": 1e-8}
    np.testing.assert_allclose(inside.call(LABELS, LOGITS), weights * elements, **tolerance)
    outside = loss_of(name, parameters, "sample_weight")
    np.testing.assert_allclose(outside.call(LABELS, LOGITS), elements, **tolerance)
    weigh = weighting_of(name, parameters)
    assert (weigh is None) == (weights_of is None)
    pipeline_weights = None
    if weigh is not None:
        np.testing.assert_allclose(weigh(LABELS), weights, rtol=2e-6)
        batches = tf.data.Dataset.from_tensors(LABELS).map(weigh)
        pipeline_weights = next(iter(batches))
    expected = pytest.approx((weights * elements).mean(), rel=1e-6)
    assert float(inside(LABELS, LOGITS)) == expected
    assert float(outside(LABELS, LOGITS, pipeline_weights)) == expected


@pytest.mark.parametrize("name", TABLE)
def test_parameters_of_a_method_are_those_that_change_something(name):
    def computed(parameters):
        weigh = weighting_of(name, parameters)
        arrays = [
            loss_of(name, parameters, "labels").call(LABELS, LOGITS),
            loss_of(name, parameters, "sample_weight").call(LABELS, LOGITS),
            LABELS if weigh is None else weigh(LABELS),
            head_of(name, parameters)(np.ones((2, 8), np.float32)),
        ]
        return [np.array(array) for array in arrays]

    before = computed(DEFAULTS)
    changing = set()
    for parameter in PARAMETERS:
        changed = dataclasses.replace(DEFAULTS, **{parameter: getattr(OTHER, parameter)})
        if not all(map(np.array_equal, computed(changed), before)):
            changing.add(parameter)
    assert changing == methods.get(name).parameters
    _, weights_of, elements_of = TABLE[name]
    assert changing == WEIGHTING_PARAMETERS[weights_of] | LOSS_PARAMETERS[elements_of]


@pytest.mark.parametrize("name", TABLE)
def test_only_methods_with_a_weighting_need_weights_from_the_pipeline(name):
    if TABLE[name][1] is None:
        assert (
            loss_of(name, rebalance="labels").get_config()
            == loss_of(name, rebalance="sample_weight").get_config()
        )
    else:
        with pytest.raises(ValueError, match="came without weights"):
            loss_of(name, rebalance="sample_weight")(LABELS, LOGITS)


@pytest.mark.parametrize("name", ["erm", "db_focal"])
@pytest.mark.parametrize("rebalance", ["pipeline", "loss", None])
def test_other_sources_of_weights_are_refused(name, rebalance):
    message = f'rebalance must be "labels" or "sample_weight" for a method; got {rebalance!r}'
    with pytest.raises(ValueError, match=message):
        loss_of(name, rebalance=rebalance)


@pytest.mark.parametrize("name", TABLE)
def test_head_gives_a_logit_for_each_class_and_its_loss_trains_it(name):
    head = head_of(name)
    features = np.random.default_rng(2).standard_normal((60, 8)).astype(np.float32)
    with tf.GradientTape() as tape:
        logits = head(features)
        loss = loss_of(name)(LABELS, logits)
    assert logits.shape == (60, 6) and logits.dtype == tf.float32
    for gradient in tape.gradient(loss, head.trainable_variables):
        assert np.isfinite(gradient).all()
    classifier = head.layers[-1]
    assert any(np.any(g != 0) for g in classifier.trainable_variables)


NECK = ["features", "neck", "neck_norm", "neck_dropout", "classifier"]


def test_linear_heads_have_the_neck():
    names = set(TABLE) - {"ldam", "ml_gcn"}
    for name in names:
        head = head_of(name)
        assert [layer.name for layer in head.layers] == NECK
        classifier = head.get_layer("classifier")
        assert classifier.kernel.shape == (256, 6) and not classifier.bias.numpy().any()
        assert classifier.kernel.numpy().std() == pytest.approx(0.01, rel=0.1)


def test_cosine_head_has_the_neck_and_scales_the_cosine():
    features = np.random.default_rng(2).standard_normal((60, 8)).astype(np.float32)
    for parameters in (DEFAULTS, OTHER):
        head = head_of("ldam", parameters)
        assert [layer.name for layer in head.layers] == NECK
        below = keras.Model(head.input, head.get_layer("neck_norm").output)
        x = below(features).numpy().astype(np.float64)
        kernel = head.get_layer("classifier").kernel.numpy().astype(np.float64)
        cosine = x @ kernel / np.outer(np.linalg.norm(x, axis=1), np.linalg.norm(kernel, axis=0))
        np.testing.assert_allclose(
            head(features), parameters.cosine_scale * cosine, rtol=1e-4, atol=1e-4
        )


def test_graph_head_has_no_neck_and_takes_label_embeddings():
    embeddings = np.random.default_rng(3).standard_normal((6, 11)).astype(np.float32)
    head = head_of("ml_gcn", label_embeddings=embeddings)
    assert [layer.name for layer in head.layers] == ["features", "classifier"]
    np.testing.assert_array_equal(head.get_layer("classifier").label_embeddings, embeddings)
    one_hot = head_of("ml_gcn").get_layer("classifier")
    np.testing.assert_array_equal(one_hot.label_embeddings, np.eye(6))
    assert one_hot.hidden_units == 1024 and one_hot.negative_slope == 0.2


@pytest.mark.parametrize("name", sorted(set(TABLE) - {"ml_gcn"}))
def test_label_embeddings_are_refused_by_other_heads(name):
    with pytest.raises(ValueError, match="classifier of this method does not take them"):
        head_of(name, label_embeddings=np.eye(6))


@pytest.mark.parametrize("name", TABLE)
def test_classes_without_examples_can_be_allowed(name):
    method, counts = methods.get(name), np.array([5, 0, 10])
    labels, logits = np.eye(3, dtype=np.float32), np.zeros((3, 3), np.float32)
    how = {"rebalance": "labels", "steps_per_epoch": 0}
    loss = method.make_loss(counts, 10, **how, clamp_counts=True)
    moved = method.make_loss(np.array([5, 1, 9]), 10, **how)
    value = float(loss(labels, logits))
    assert np.isfinite(value) and value == float(moved(labels, logits))
    weigh = method.make_weighting(counts, 10, clamp_counts=True)
    if weigh is not None:
        np.testing.assert_array_equal(
            weigh(labels), method.make_weighting(np.array([5, 1, 9]), 10)(labels)
        )
        with pytest.raises(ValueError, match=r"classes \[1\]|without training examples"):
            method.make_loss(counts, 10, rebalance="labels")


def test_splc_takes_labels_as_they_are_for_the_first_epochs():
    parameters = LossParameters(correction_epochs=1.5)
    loss = loss_of("splc", parameters, step=0)
    assert loss.warmup_steps == 15 and loss.corrects is False
    assert loss_of("splc", parameters, step=15).corrects is True
    with pytest.raises(ValueError, match="labels as they are for 1 epochs; pass steps_per_epoch"):
        methods.get("splc").make_loss(STATISTICS.class_counts, STATISTICS.num_examples)


def test_learning_rates_follow_the_classes_where_the_loss_is_their_mean():
    of_examples = {name for name in TABLE if methods.get(name).classes_of_rate(371) == 20}
    assert of_examples == {"two_way", "zlpr"}
    assert all(methods.get(name).classes_of_rate(371) == 371 for name in set(TABLE) - of_examples)


def test_schedules_of_the_paper():
    uniform = methods.schedule_of("uniform")
    assert (uniform.epochs, uniform.decay_epochs) == (80, (55, 70))
    for sampler in ("class_aware", "class_cycle"):
        resampled = methods.schedule_of(sampler)
        assert (resampled.epochs, resampled.decay_epochs) == (8, (5, 7))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"method must be one of erm, .*db_focal; got 'dbl'"):
        methods.get("dbl")
