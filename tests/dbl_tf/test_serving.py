import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from dbl_tf import LabelStatistics, models, serving
from pipelines import images

NAMES = ("cat", "dog", "emu", "fox", "gnu", "yak")


def encode(seed, size=(40, 50)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return tf.io.encode_png(pixels).numpy()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network and the folder of its SavedModel."""
    keras.utils.set_random_seed(3)
    backbone = models.build_backbone("small_resnet", 32, options={"width": 4})
    network = models.join(backbone, models.build_head(backbone.output_shape[-1], len(NAMES)))
    statistics = LabelStatistics.from_labels(np.eye(6, dtype=int), NAMES)
    path = tmp_path_factory.mktemp("saved_model") / "1"
    serving.export(
        network,
        statistics,
        lambda encoded: images.read_batch(encoded, 32),
        lambda image: images.resize(image, 32),
        path,
        thresholds=np.linspace(0.1, 0.6, 6),
        thresholds_from="train",
        example_image=encode(0),
    )
    return network, path


def probabilities_of(network, encoded):
    batch = tf.stack([images.read_for_evaluation(e, 32) for e in encoded])
    return keras.ops.sigmoid(network(batch, training=False)).numpy()


def test_bytes_of_any_size_give_named_probabilities(exported):
    network, path = exported
    encoded = [encode(1), encode(2, (300, 20)), encode(3)]
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    answer = {key: value.numpy() for key, value in serve(image_bytes=tf.constant(encoded)).items()}
    expected = probabilities_of(network, encoded)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)
    assert answer["class_names"].tolist() == [[name.encode() for name in NAMES]] * 3
    np.testing.assert_allclose(answer["thresholds"], [np.linspace(0.1, 0.6, 6)] * 3, rtol=1e-6)
    order = np.argsort(-expected, axis=1)[:, :5]
    assert answer["top_classes"].tolist() == [[NAMES[i].encode() for i in row] for row in order]
    np.testing.assert_allclose(
        answer["top_probabilities"], np.take_along_axis(expected, order, 1), atol=1e-6
    )
    assert answer["error"].tolist() == [b""] * 3


def test_a_bad_image_has_its_error_and_harms_no_other(exported):
    _, path = exported
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    good = encode(1)
    alone = serve(image_bytes=tf.constant([good]))["probabilities"].numpy()
    answer = serve(image_bytes=tf.constant([b"no image", good, good[:60], b""]))
    errors = [error.decode() for error in answer["error"].numpy()]
    assert errors[1] == "" and all(errors[i] for i in (0, 2, 3))
    np.testing.assert_allclose(answer["probabilities"][1], alone[0], atol=1e-6)
    assert not answer["probabilities"].numpy()[[0, 2, 3]].any()
    assert answer["top_classes"].numpy()[0].tolist() == [b""] * 5


def test_decoded_images_are_resized_as_bytes_are(exported):
    network, path = exported
    pixels = np.random.default_rng(5).integers(0, 256, (2, 60, 45, 3)).astype(np.float32)
    serve = tf.saved_model.load(str(path)).signatures["serve_images"]
    answer = serve(images=tf.constant(pixels))
    encoded = [tf.io.encode_png(tf.cast(p, tf.uint8)).numpy() for p in pixels]
    np.testing.assert_allclose(
        answer["probabilities"], probabilities_of(network, encoded), atol=1e-6
    )


def test_folder_holds_what_serving_and_evaluation_need(exported):
    _, path = exported
    details = json.loads((path / serving.DETAILS_FILE).read_text())
    assert details["class_names"] == list(NAMES) and details["thresholds_from"] == "train"
    assert LabelStatistics.load(path / serving.STATISTICS_FILE).class_names == NAMES
    assert [entry.name for entry in path.parent.iterdir()] == ["1"]
    requests = {}
    loaded = tf.saved_model.load(str(path))
    for record in tf.data.TFRecordDataset(str(path / serving.WARMUP_FILE)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {key: tf.constant(tf.make_ndarray(v)) for key, v in request.inputs.items()}
        requests[request.model_spec.signature_name] = inputs
    for name in ("serving_default", "serve_images"):
        answer = loaded.signatures[name](**requests[name])
        assert answer["error"].numpy().tolist() == [b""]


PROGRAM = """
import sys
import numpy as np, tensorflow as tf

path, image = sys.argv[1], open(sys.argv[2], "rb").read()
answer = tf.saved_model.load(path).signatures["serving_default"](image_bytes=tf.constant([image]))
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    meta = tf.compat.v1.saved_model.load(session, ["serve"], path)
    signature = meta.signature_def["serving_default"]
    fetch = {key: signature.outputs[key].name for key in ("probabilities", "error")}
    first = session.run(fetch, {signature.inputs["image_bytes"].name: [image]})
assert first["error"].tolist() == [b""], first
np.save(sys.argv[3], [answer["probabilities"].numpy(), first["probabilities"]])
assert not {"dbl_tf", "pipelines"} & set(sys.modules)
"""


def test_loads_with_plain_tensorflow_by_both_loaders(exported, tmp_path):
    network, path = exported
    (tmp_path / "image.png").write_bytes(encode(9))
    # From a folder of its own, in isolated mode, so that this package is not on the path.
    subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, path, tmp_path / "image.png", tmp_path / "out.npy"],
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        check=True,
    )
    expected = probabilities_of(network, [encode(9)])
    for probabilities in np.load(tmp_path / "out.npy"):
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)
