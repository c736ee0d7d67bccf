import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import LabelStatistics, models, portable, serving
from dbl_tf.calibration import Calibration
from pipelines import images

NAMES = ("cat", "dog", "emu")
SIDE, NUM_FEATURES = 24, 12
CALIBRATION = Calibration(1.7, np.array([-1.0, 0.25, 0.5]), "val")
KNOWN = {"thresholds": [0.2, 0.3, 0.4], "thresholds_from": "val", "calibration": CALIBRATION}


@pytest.fixture(params=[portable.ONNX, portable.LITERT])
def name(request):
    for module in portable.FORMATS[request.param].modules:
        pytest.importorskip(module, reason=f"the extra {request.param} is not installed")
    return request.param


@pytest.fixture(scope="module")
def statistics():
    return LabelStatistics.from_labels(np.eye(3, dtype=int), NAMES)


@pytest.fixture(scope="module")
def of_images(statistics, tmp_path_factory):
    """A network of images whose BatchNorm layers are in use, and its SavedModel."""
    keras.utils.set_random_seed(3)
    backbone = models.build_backbone("small_resnet", SIDE, options={"width": 4})
    network = models.join(backbone, models.build_head(backbone.output_shape[-1], len(NAMES)))
    network.set_weights([w + 0.1 if w.ndim == 1 else 1.5 * w for w in network.get_weights()])
    version = serving.export(
        network,
        statistics,
        lambda encoded: images.read_batch(encoded, SIDE),
        lambda image: images.resize(image, SIDE),
        tmp_path_factory.mktemp("saved_model"),
        example_image=tf.io.encode_png(np.zeros((1, 1, 3), np.uint8)).numpy(),
        **KNOWN,
    )
    pixels = np.random.default_rng(0).uniform(0, 255, (5, SIDE, SIDE, 3)).astype(np.float32)
    return network, version, pixels


@pytest.fixture(scope="module")
def of_features(statistics, tmp_path_factory):
    """A head on features, and its SavedModel."""
    head = models.build_head(NUM_FEATURES, len(NAMES))
    features = np.random.default_rng(0).normal(size=(5, NUM_FEATURES)).astype(np.float32)
    version = serving.export_features(
        head, statistics, tmp_path_factory.mktemp("head"), example=features[0], **KNOWN
    )
    return head, version, features


@pytest.mark.parametrize("kind", ["of_images", "of_features"])
def test_a_file_gives_the_calibrated_probabilities_of_any_batch(name, kind, request, tmp_path):
    network, version, examples = request.getfixturevalue(kind)
    place, check = portable.export(
        network,
        name,
        tmp_path / name,
        saved_model=version,
        examples=examples,
        calibration=CALIBRATION,
        card="# Card",
    )
    assert place == tmp_path / name / "1" and (place / "README.md").read_text() == "# Card"
    path = place / portable.FORMATS[name].file_name
    predict = portable.FORMATS[name].load(path)
    logits = network(examples, training=False).numpy().astype(float)
    expected = 1 / (1 + np.exp(-(1.7 * logits + [-1.0, 0.25, 0.5])))
    assert np.ptp(expected, axis=0).max() > 0.01  # the examples can be told apart
    np.testing.assert_allclose(predict(examples), expected, atol=1e-5)
    for row in (2, 4):  # another size of the batch
        np.testing.assert_allclose(predict(examples[row:])[0], expected[row], atol=1e-5)
    details = json.loads((place / portable.DETAILS_FILE).read_text())
    assert details["class_names"] == list(NAMES) and details["thresholds"] == [0.2, 0.3, 0.4]
    assert details["input_shape"] == [None, *examples.shape[1:]]
    assert details["check"]["num_bytes"] == path.stat().st_size == check.num_bytes
    assert details["check"]["num_examples"] == 5 and check.max_difference < 1e-5
    assert [entry.name for entry in place.parent.iterdir()] == ["1"]


def test_a_file_that_disagrees_with_the_saved_model_is_not_kept(name, of_features, tmp_path):
    network, version, features = of_features
    with pytest.raises(portable.PortableExportError, match="differ from those of the SavedModel"):
        portable.export(network, name, tmp_path / name, saved_model=version, examples=features)
    assert not list((tmp_path / name).iterdir())


def test_a_network_that_a_format_cannot_hold_is_refused_by_name(statistics, tmp_path):
    pytest.importorskip("tf2onnx", reason="the extra onnx is not installed")
    features = keras.Input((NUM_FEATURES,))
    spectrum = keras.layers.Lambda(lambda x: tf.math.bessel_i0(x)[:, :3])(features)
    network = keras.Model(features, spectrum)
    examples = np.ones((2, NUM_FEATURES), np.float32)
    version = serving.export_features(
        network, statistics, tmp_path / "saved_model", example=examples[0], **KNOWN
    )
    with pytest.raises(portable.PortableExportError, match="onnx cannot hold this network: "):
        portable.export(
            network, portable.ONNX, tmp_path / "onnx", saved_model=version, examples=examples
        )
    assert not list((tmp_path / "onnx").iterdir())


def test_a_format_without_its_libraries_names_the_extra(monkeypatch):
    portable.check_installed(portable.SAVED_MODEL)
    absent = portable.Format("model.x", ("tensorflow", "no_such_module"), portable.load_onnx)
    monkeypatch.setitem(portable.FORMATS, "x", absent)
    with pytest.raises(ValueError, match=r"x needs no_such_module, .* 'dbl-tf\[x\]'"):
        portable.check_installed("x")
