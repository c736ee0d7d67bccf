import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import LabelStatistics, methods

VALUES = {"alpha": 0.1, "beta": 10.0, "mu": 0.3}
TOLERANCE = {"lambda_": 5.0, "kappa": 0.05, "margin": "paper"}
OTHER = {**VALUES, **TOLERANCE, "alpha": 0.3, "beta": 2.0, "mu": 0.6}
OTHER |= {"lambda_": 2.0, "kappa": 0.2, "margin": "released"}


def make_statistics():
    labels = np.random.default_rng(0).random((60, 6)) < np.geomspace(0.7, 0.05, 6)
    return LabelStatistics.from_labels(labels.astype(int)), labels.astype(np.float32)


def loss_of(name, place="loss", **values):
    statistics, _ = make_statistics()
    return methods.get(name).make_loss(
        statistics.class_counts,
        statistics.num_examples,
        **{**VALUES, **TOLERANCE, **values},
        rebalance_in=place,
    )


def weighting_of(name, **values):
    statistics, _ = make_statistics()
    return methods.get(name).make_weighting(
        statistics.class_counts, statistics.num_examples, **{**VALUES, **values}
    )


def make_logits():
    return (3 * np.random.default_rng(1).standard_normal((60, 6))).astype(np.float32)


def test_every_row_of_the_tables_is_there():
    assert set(methods.METHODS) == {
        *("erm", "rw", "focal", "rs", "rs_focal", "ml_gcn", "ldam", "cb_focal"),
        *("r_bce", "r_bce_focal", "nt_bce", "nt_bce_focal", "db", "db_focal"),
        *("rs_rw_focal", "rs_cb_focal", "asl"),
    }
    resampled = {name for name, m in methods.METHODS.items() if m.sampler == "class_aware"}
    uniform = {"erm", "rw", "focal", "ml_gcn", "ldam", "cb_focal", "asl"}
    assert resampled == set(methods.METHODS) - uniform
    assert all(name in methods.describe() for name in methods.METHODS)


@pytest.mark.parametrize("name", methods.METHODS)
def test_where_weights_are_made_changes_no_figure(name):
    _, labels = make_statistics()
    logits, weigh = make_logits(), weighting_of(name)
    weights = None if weigh is None else weigh(tf.constant(labels))
    inside = float(loss_of(name, "loss")(labels, logits))
    assert float(loss_of(name, "pipeline")(labels, logits, weights)) == pytest.approx(
        inside, rel=1e-6
    )


@pytest.mark.parametrize("name", methods.METHODS)
@pytest.mark.parametrize("parameter", [*VALUES, *TOLERANCE])
def test_parameters_are_those_that_change_the_loss(name, parameter):
    _, labels = make_statistics()
    logits = make_logits()
    before = float(loss_of(name)(labels, logits))
    after = float(loss_of(name, **{parameter: OTHER[parameter]})(labels, logits))
    assert (after != before) == (parameter in methods.get(name).parameters)


@pytest.mark.parametrize("name", methods.METHODS)
def test_head_gives_a_logit_for_each_class_and_its_loss_trains_it(name):
    statistics, labels = make_statistics()
    head = methods.get(name).make_head(8, statistics, seed=3)
    features = np.random.default_rng(2).standard_normal((60, 8)).astype(np.float32)
    with tf.GradientTape() as tape:
        logits = head(features)
        loss = loss_of(name)(labels, logits)
    assert logits.shape == (60, 6) and logits.dtype == tf.float32
    for gradient in tape.gradient(loss, head.trainable_variables):
        assert np.isfinite(gradient).all()
    classifier = head.layers[-1]
    assert any(np.any(g != 0) for g in classifier.trainable_variables)


def test_classes_without_examples_can_be_allowed():
    for name, method in methods.METHODS.items():
        arguments = {**VALUES, **TOLERANCE, "rebalance_in": "loss", "clamp_counts": True}
        loss = method.make_loss(np.array([5, 0, 10]), 10, **arguments)
        value = loss(np.eye(3, dtype=np.float32), np.zeros((3, 3), np.float32))
        assert np.isfinite(value), name


def test_graph_classifier_takes_label_embeddings():
    statistics, _ = make_statistics()
    embeddings = np.random.default_rng(3).standard_normal((6, 11)).astype(np.float32)
    head = methods.get("ml_gcn").make_head(8, statistics, label_embeddings=embeddings)
    np.testing.assert_array_equal(head.get_layer("classifier").label_embeddings, embeddings)


def test_a_name_that_there_is_not():
    with pytest.raises(ValueError, match=r"method must be one of erm, .*db_focal; got 'dbl'"):
        methods.get("dbl")
