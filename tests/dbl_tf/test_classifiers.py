import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import (
    AsymmetricLoss,
    CosineClassifier,
    GraphClassifier,
    LDAMLoss,
    ReweightedCrossentropy,
    classifiers,
)

# A normalized graph need not be symmetric.
GRAPH = [[0.8, 0.2, 0, 0], [0.1, 0.8, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


def make_features(batch_size=6, width=5, seed=0):
    return np.random.default_rng(seed).standard_normal((batch_size, width)).astype(np.float32)


def test_cosine_logits_equal_the_scaled_cosine_of_the_angle():
    features = make_features()
    layer = CosineClassifier(3)
    logits = layer(features).numpy()
    x, w = features.astype(np.float64), layer.kernel.numpy().astype(np.float64)
    cosine = np.array([[a @ b / np.sqrt(a @ a * (b @ b)) for b in w.T] for a in x])
    # A cosine near zero is a difference of numbers that are not: its error is that of those.
    np.testing.assert_allclose(logits, 30 * cosine, rtol=1e-5, atol=3e-5)
    # Neither the length of features nor that of class vectors changes the logits.
    layer.kernel.assign(1e-3 * layer.kernel)
    np.testing.assert_allclose(layer(1e4 * features), logits, rtol=1e-5, atol=3e-5)


def test_cosine_of_zero_features_has_a_finite_gradient():
    layer = CosineClassifier(3)
    features = tf.zeros((2, 5))
    with tf.GradientTape() as tape:
        tape.watch(features)
        logits = layer(features)
        loss = LDAMLoss([50, 5, 1])(np.ones((2, 3)), logits)
    assert not logits.numpy().any()
    for gradient in tape.gradient(loss, [features, layer.kernel]):
        assert np.isfinite(gradient).all()


def test_class_vectors_start_at_about_unit_length():
    keras.utils.set_random_seed(0)
    layer = CosineClassifier(2000)
    layer.build((None, 256))
    lengths = np.linalg.norm(layer.kernel.numpy(), axis=0)
    assert abs(lengths.mean() - 1) < 0.01 and lengths.std() < 0.1


@pytest.mark.parametrize("embedding_size", [None, 7])
def test_graph_classifier_equals_its_formula(embedding_size):
    graph = np.array(GRAPH)
    embeddings = None if embedding_size is None else make_features(4, embedding_size, seed=1)
    layer = GraphClassifier(GRAPH, embeddings, hidden_units=9)
    features = make_features()
    logits = layer(features).numpy()
    first, second = (v.numpy().astype(np.float64) for v in layer.trainable_variables)
    assert second.shape == (9, 5)
    hidden = graph @ (np.eye(4) if embeddings is None else embeddings) @ first
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    expected = features @ (graph @ hidden @ second).T
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-6)


def test_classifiers_compute_in_float32_under_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        for layer in (CosineClassifier(4), GraphClassifier(np.eye(4), hidden_units=3)):
            assert layer(tf.cast(make_features(), tf.bfloat16)).dtype == tf.float32
    finally:
        keras.config.set_dtype_policy("float32")


CASES = {
    "ldam": (lambda: CosineClassifier(4), lambda: LDAMLoss([9, 5, 3, 1])),
    "asl": (
        lambda: GraphClassifier(GRAPH, make_features(4, 3), hidden_units=8),
        AsymmetricLoss,
    ),
    "rw": (
        lambda: GraphClassifier(GRAPH, hidden_units=8),
        lambda: ReweightedCrossentropy(np.array([9, 5, 3, 1]), "inverse_root"),
    ),
    "cb_focal": (
        lambda: keras.layers.Dense(4),
        lambda: ReweightedCrossentropy([9, 5, 3, 1], "class_balanced", focal_gamma=2),
    ),
}

PROGRAM = """
import sys, keras, numpy as np, dbl_tf
batch = np.load(sys.argv[1])
for path in sys.argv[2:]:
    model = keras.models.load_model(path)
    loss = model.evaluate(batch["features"], batch["labels"], verbose=0)
    print(type(model.layers[-1]).__name__, type(model.loss).__name__, repr(float(loss)))
"""


def test_compiled_models_load_from_keras_files_alone(tmp_path):
    features = make_features(32)
    labels = (np.random.default_rng(1).random((32, 4)) < 0.4).astype(np.float32)
    expected, paths = [], []
    for name, (make_layer, make_loss) in CASES.items():
        model = keras.Sequential([keras.Input((5,)), make_layer()])
        model.compile(optimizer=keras.optimizers.SGD(0.1), loss=make_loss(), run_eagerly=True)
        before = model.get_weights()
        model.fit(features, labels, epochs=1, batch_size=16, verbose=0)
        trained = len(model.trainable_variables)
        assert trained and not any(
            np.array_equal(a, b)
            for a, b in zip(before[:trained], model.get_weights()[:trained], strict=True)
        )
        path = tmp_path / f"{name}.keras"
        model.save(path)
        value = model.evaluate(features, labels, verbose=0)
        expected.append((type(model.layers[-1]).__name__, type(model.loss).__name__, value))
        paths.append(path)
    np.savez(tmp_path / "batch.npz", features=features, labels=labels)
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "batch.npz", *paths],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line.split() for line in output.splitlines()[-len(CASES) :]]
    for (layer, loss, value), line in zip(expected, lines, strict=True):
        assert line[:2] == [layer, loss]
        assert float(line[2]) == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CosineClassifier(0), "num_classes must be at least 1"),
        (lambda: CosineClassifier(2, scale=-1), "scale must be greater than 0; got -1"),
        (lambda: GraphClassifier(np.ones((2, 3))), r"graph must be of shape \(C, C\).*\(2, 3\)"),
        (lambda: GraphClassifier(np.eye(2), np.ones((3, 4))), r"shape \(2, D\).*got \(3, 4\)"),
        (lambda: GraphClassifier(np.eye(2) / 0), "graph must be finite, but row 0 is not"),
        (lambda: GraphClassifier(np.eye(2), hidden_units=0), "hidden_units must be at least 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:(divide|invalid)")
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Configurations as earlier versions wrote them.
SAVED = {
    "CosineClassifier": {
        "name": "classifier",
        "trainable": True,
        "dtype": {
            "module": "keras",
            "class_name": "DTypePolicy",
            "config": {"name": "float32"},
            "registered_name": None,
        },
        "num_classes": 4,
        "scale": 20.0,
        "kernel_initializer": {
            "module": "keras.initializers",
            "class_name": "VarianceScaling",
            "config": {
                "seed": None,
                "scale": 1.0,
                "mode": "fan_in",
                "distribution": "untruncated_normal",
            },
            "registered_name": None,
        },
    },
    "GraphClassifier": {
        "name": "classifier",
        "trainable": True,
        "dtype": {
            "module": "keras",
            "class_name": "DTypePolicy",
            "config": {"name": "float32"},
            "registered_name": None,
        },
        "num_classes": 4,
        "embedding_size": 3,
        "hidden_units": 8,
        "negative_slope": 0.2,
    },
}


@pytest.mark.parametrize("name", SAVED)
def test_saved_configurations_of_earlier_versions_load(name):
    layer = keras.saving.deserialize_keras_object(
        {
            "module": "dbl_tf.classifiers",
            "class_name": name,
            "config": SAVED[name],
            "registered_name": f"dbl_tf>{name}",
        }
    )
    assert type(layer) is getattr(classifiers, name)
    config = layer.get_config()
    numbers = {k: v for k, v in SAVED[name].items() if isinstance(v, int | float | str)}
    assert {key: config[key] for key in numbers} == numbers
    assert layer(make_features()).shape == (6, 4) and layer.compute_dtype == "float32"
