import hashlib
import json
import os
import subprocess
import sys
import threading
import time

import hostile_images
import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from dbl_tf import LabelStatistics, atomic, models, serving
from dbl_tf.calibration import Calibration
from pipelines import images

NAMES = ("cat", "dog", "emu", "fox", "gnu", "yak")


def encode(seed, size=(40, 50)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    return tf.io.encode_png(pixels).numpy()


def export(directory, *, example_image=None):
    """A small network, and the version directory of its SavedModel."""
    keras.utils.set_random_seed(3)
    backbone = models.build_backbone("small_resnet", 32, options={"width": 4})
    network = models.join(backbone, models.build_head(backbone.output_shape[-1], len(NAMES)))
    version = serving.export(
        network,
        LabelStatistics.from_labels(np.eye(6, dtype=int), NAMES),
        lambda encoded: images.read_batch(encoded, 32),
        lambda image: images.resize(image, 32),
        directory,
        thresholds=np.linspace(0.1, 0.6, 6),
        thresholds_from="train",
        example_image=encode(0) if example_image is None else example_image,
    )
    return network, version


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A network and the folder of its SavedModel."""
    return export(tmp_path_factory.mktemp("saved_model"))


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


EMPTY = {
    "image_bytes": tf.zeros((0,), tf.string),
    "images": tf.zeros((0, 20, 30, 3)),
    "features": tf.zeros((0, 7)),
}
WRONG_SHAPES = {
    "image_bytes": [(), (1, 1)],
    "images": [(), (20, 30), (20, 30, 3), (2, 20, 30, 1)],
    "features": [(), (7,), (2, 3), (1, 2, 7)],
}


@pytest.mark.parametrize("name", EMPTY)
def test_batches_without_rows_and_of_other_shapes(name, request):
    of_features = name == "features"
    _, path = request.getfixturevalue("exported_features" if of_features else "exported")
    signature = "serve_images" if name == "images" else "serving_default"
    serve = tf.saved_model.load(str(path)).signatures[signature]
    answer = {key: value.numpy() for key, value in serve(**{name: EMPTY[name]}).items()}
    assert {key: value.shape for key, value in answer.items()} == {
        **dict.fromkeys(["probabilities", "class_names", "thresholds"], (0, 6)),
        **dict.fromkeys(["top_probabilities", "top_classes"], (0, 5)),
        "error": (0,),
    }
    for shape in WRONG_SHAPES[name]:
        wrong = tf.zeros(shape, EMPTY[name].dtype)
        shown = ",".join(map(str, shape))
        message = rf"Shape of tensor {name} \[{shown}\] is not compatible with expected shape"
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            serve(**{name: wrong})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_an_error_of_their_image(exported, value):
    _, path = exported
    serve = tf.saved_model.load(str(path)).signatures["serve_images"]
    pixels = np.random.default_rng(7).uniform(0, 255, (2, 40, 30, 3)).astype(np.float32)
    expected = serve(images=tf.constant(pixels))["probabilities"].numpy()
    pixels[0, 2, 3, 1] = value
    answer = serve(images=tf.constant(pixels))
    assert answer["error"].numpy().tolist() == [b"some of the pixels are not finite numbers", b""]
    np.testing.assert_allclose(answer["probabilities"][1], expected[1], atol=1e-6)
    assert not answer["probabilities"].numpy()[0].any()


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


NUM_FEATURES = 7
CALIBRATION = Calibration(0.5, np.linspace(-1, 1, len(NAMES)), "val")


def export_features(directory):
    """A head on seven features, and the version directory of its SavedModel."""
    keras.utils.set_random_seed(5)
    head = models.build_head(NUM_FEATURES, len(NAMES))
    random = np.random.default_rng(1)
    # Statistics as after a training, so that an export in the mode of training would differ.
    head.get_layer("neck_norm").set_weights(list(random.uniform(0.5, 2, (4, 256))))
    version = serving.export_features(
        head,
        LabelStatistics.from_labels(np.eye(6, dtype=int), NAMES),
        directory,
        thresholds=np.linspace(0.1, 0.6, 6),
        thresholds_from="val",
        example=np.arange(NUM_FEATURES),
        calibration=CALIBRATION,
    )
    return head, version


@pytest.fixture(scope="module")
def exported_features(tmp_path_factory):
    """A head and the folder of its SavedModel."""
    return export_features(tmp_path_factory.mktemp("of_features"))


def rows_of_features(count):
    random = np.random.default_rng(count)
    return (3 * random.standard_normal((count, NUM_FEATURES))).astype(np.float32)


def head_probabilities(head, features):
    """The head in float64: FC 256, BatchNorm, FC C, and the sigmoid of the calibrated logits."""
    kernel, bias = head.get_layer("neck").get_weights()
    hidden = np.float64(features) @ np.float64(kernel) + bias
    gamma, beta, mean, variance = map(np.float64, head.get_layer("neck_norm").get_weights())
    hidden = (hidden - mean) / np.sqrt(variance + 1e-5) * gamma + beta
    kernel, bias = head.get_layer("classifier").get_weights()
    logits = hidden @ np.float64(kernel) + bias
    return 1 / (1 + np.exp(-(CALIBRATION.slope * logits + CALIBRATION.offsets)))


def test_features_give_named_probabilities(exported_features):
    head, path = exported_features
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    (spec,) = serve.structured_input_signature[1].values()
    assert (spec.name, spec.dtype, spec.shape.as_list()) == (
        "features",
        tf.float32,
        [None, NUM_FEATURES],
    )
    features = rows_of_features(9)
    answer = {key: value.numpy() for key, value in serve(features=features).items()}
    expected = head_probabilities(head, features)
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-6)
    assert answer["class_names"].tolist() == [[name.encode() for name in NAMES]] * 9
    np.testing.assert_allclose(answer["thresholds"], [np.linspace(0.1, 0.6, 6)] * 9, rtol=1e-6)
    order = np.argsort(-answer["probabilities"], axis=1)[:, :5]
    assert answer["top_classes"].tolist() == [[NAMES[i].encode() for i in row] for row in order]
    assert answer["error"].tolist() == [b""] * 9
    assert serve(features=features[:0])["probabilities"].shape == (0, len(NAMES))
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
        serve(features=tf.zeros((2, NUM_FEATURES + 1)))


def test_a_row_without_a_finite_result_has_its_error_and_harms_no_other(exported_features):
    _, path = exported_features
    serve = tf.saved_model.load(str(path)).signatures["serving_default"]
    good = rows_of_features(5)
    expected = serve(features=good)["probabilities"].numpy()
    bad = rows_of_features(4)
    bad[0, 2], bad[1, 0], bad[2, 6] = np.nan, np.inf, -np.inf
    bad[3] = np.finfo(np.float32).max  # finite, but no sum of such numbers is
    places = np.array([0, 2, 2, 5])
    is_good = np.insert(np.ones(5, bool), places, False)
    answer = serve(features=np.insert(good, places, bad, axis=0))
    answer = {key: value.numpy() for key, value in answer.items()}
    np.testing.assert_allclose(answer["probabilities"][is_good], expected, atol=1e-6)
    assert answer["error"][is_good].tolist() == [b""] * 5
    assert answer["error"][~is_good].tolist() == [
        *[b"some of the features are not finite numbers"] * 3,
        b"the model's outputs for this input are not finite numbers",
    ]
    assert not answer["probabilities"][~is_good].any()
    assert not answer["top_probabilities"][~is_good].any()
    assert set(answer["top_classes"][~is_good].ravel()) == {b""}


FEATURES_PROGRAM = """
import sys
import numpy as np, tensorflow as tf

path, features = sys.argv[1], np.load(sys.argv[2])
answer = tf.saved_model.load(path).signatures["serving_default"](features=tf.constant(features))
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    meta = tf.compat.v1.saved_model.load(session, ["serve"], path)
    signature = meta.signature_def["serving_default"]
    fetch = {key: signature.outputs[key].name for key in ("probabilities", "error")}
    first = session.run(fetch, {signature.inputs["features"].name: features})
assert not any(first["error"]), first
np.save(sys.argv[3], [answer["probabilities"].numpy(), first["probabilities"]])
assert not {"dbl_tf", "pipelines"} & set(sys.modules)
"""


def test_a_head_loads_with_plain_tensorflow_by_both_loaders(exported_features, tmp_path):
    head, path = exported_features
    features = rows_of_features(3)
    np.save(tmp_path / "features.npy", features)
    subprocess.run(
        [sys.executable, "-I", "-c", FEATURES_PROGRAM, path, "features.npy", "out.npy"],
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        check=True,
    )
    expected = head_probabilities(head, features)
    for probabilities in np.load(tmp_path / "out.npy"):
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_the_folder_of_a_head_holds_what_serving_and_evaluation_need(exported_features):
    _, path = exported_features
    details = json.loads((path / serving.DETAILS_FILE).read_text())
    assert details["class_names"] == list(NAMES) and details["thresholds_from"] == "val"
    assert details["calibration"] == CALIBRATION.as_json()
    assert LabelStatistics.load(path / serving.STATISTICS_FILE).class_names == NAMES
    (record,) = tf.data.TFRecordDataset(str(path / serving.WARMUP_FILE))
    request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
    assert request.model_spec.signature_name == "serving_default"
    (given,) = [tf.make_ndarray(value) for value in request.inputs.values()]
    assert given.dtype == np.float32 and given.tolist() == [list(range(NUM_FEATURES))]
    _, second = export_features(path.parent)
    assert (path.name, second.name) == ("1", "2") and set(files_of(path)) == set(files_of(second))


def files_of(directory):
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {
        str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths
    }


def test_every_export_is_a_new_version_and_is_whole_when_it_appears(exported, tmp_path):
    directory = tmp_path / "models" / "saved_model"
    _, first = export(directory)
    before = files_of(first)
    (directory / "7").mkdir()  # whatever it is, its number is taken
    seen, done = {}, threading.Event()

    def watch():
        while not done.is_set():
            for entry in directory.iterdir():
                # What a server would read as a version.
                if entry.name.isdigit() and entry.name not in seen:
                    seen[entry.name] = files_of(entry)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        _, second = export(directory)
    finally:
        done.set()
        watcher.join()
    assert (first.name, second.name) == ("1", "8")
    assert serving.versions(directory) == [1, 7, 8] and len(os.listdir(directory)) == 3
    assert files_of(first) == before
    assert set(before) == set(files_of(second)) == set(files_of(exported[1]))
    assert seen.get("8", files_of(second)) == files_of(second)
    # A server under another user reads it.
    assert (second.stat().st_mode & 0o777) == (directory.stat().st_mode & 0o777)


def test_a_failed_export_leaves_nothing(tmp_path):
    with pytest.raises(ValueError):
        export(tmp_path, example_image=object())
    assert not list(tmp_path.iterdir())


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
import tests_of_serving
tests_of_serving.export(sys.argv[2])
"""


def test_killed_export_leaves_no_version_and_the_next_one_clears_up(tmp_path):
    directory = tmp_path / "saved_model"
    directory.mkdir()
    (tmp_path / "tests_of_serving.py").symlink_to(__file__)
    process = programs.Program(["-c", KILLED, tmp_path, directory])
    while not list(directory.glob("*/*")):
        assert process.returncode is None, "the export ended before anything was seen of it"
        time.sleep(0.001)
    process.kill()
    assert serving.versions(directory) == []
    (left,) = directory.iterdir()
    # Another export that is still under way is left alone.
    with atomic.temporary_folder(directory) as other:
        _, version = export(directory)
        assert version.name == "1" and other.exists() and not left.exists()
    assert tf.saved_model.load(str(version)).signatures["serving_default"]


HOSTILE = """
import json, resource, sys
import numpy as np, tensorflow as tf

path, hostile_file, good_file, answers = sys.argv[1:]
hostile, good = (
    [record.numpy() for record in tf.data.TFRecordDataset(name)]
    for name in (hostile_file, good_file)
)
serve = tf.saved_model.load(path).signatures["serving_default"]
expected = serve(image_bytes=tf.constant(good))
assert not any(expected["error"].numpy())
expected = expected["probabilities"].numpy()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
errors = []
for start in range(0, len(hostile), 24):
    batch = hostile[start : start + 24]
    places = np.linspace(0, len(batch), len(good), dtype=int)  # before, between and after
    mixed = list(map(bytes, np.insert(np.array(batch, object), places, good)))
    is_good = np.insert(np.zeros(len(batch), bool), places, True)
    answer = {key: value.numpy() for key, value in serve(image_bytes=tf.constant(mixed)).items()}
    failed = answer["error"] != b""
    assert not failed[is_good].any()
    np.testing.assert_allclose(answer["probabilities"][is_good], expected, atol=1e-5)
    assert not answer["probabilities"][failed].any()
    assert not answer["top_probabilities"][failed].any()
    assert set(answer["top_classes"][failed].ravel()) <= {b""}
    read = answer["probabilities"][~failed]
    assert np.isfinite(read).all() and (0 <= read).all() and (read <= 1).all()
    errors += [error.decode() for error in answer["error"][~is_good]]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
json.dump([1024 * before, 1024 * peak, errors], open(answers, "w"))
"""

# What the costliest format, a GIF smaller than its canvas, needs for each pixel: three channels of
# the frame, of its mask, of both on the canvas and of the result, and one of indices.
BYTES_A_PIXEL = 16


def serve_hostile(path, hostile, good, folder):
    """Errors of each, and the bytes that memory rose by, in a process with TensorFlow alone."""
    for name, content in (("hostile", hostile), ("good", good)):
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for string in content:
                writer.write(string)
    subprocess.run(
        [sys.executable, "-I", "-c", HOSTILE, path, "hostile", "good", "answers"],
        cwd=folder,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=True,
    )
    before, peak, errors = json.loads((folder / "answers").read_text())
    assert len(errors) == len(hostile)
    return errors, peak - before


def check_hostile(exported, count, photographs, folder):
    good = hostile_images.generated_images()
    hostile = hostile_images.strings(count, [*good, *photographs])
    errors, rise = serve_hostile(exported[1], hostile, good, folder)
    assert all(errors[:12])  # empty, and declared too large
    assert sum(map(bool, errors)) > count / 2
    for error in errors:
        assert error == "" or (len(error) > 10 and error.isprintable()), error
    # As many are decoded at once as there are cores.
    assert rise < (os.cpu_count() or 1) * BYTES_A_PIXEL * images.MAX_PIXELS


def test_hostile_bytes_harm_no_other_image(exported, tmp_path):
    check_hostile(exported, 300, [], tmp_path)


@pytest.mark.slow
def test_10_000_hostile_strings_harm_no_other_image(exported, tmp_path, shared_data):
    paths = sorted((shared_data / "voc_subset" / "images").iterdir())[::100]
    check_hostile(exported, 10_000, [path.read_bytes() for path in paths], tmp_path)


def test_declared_sizes_beyond_the_limit_take_no_memory(exported, tmp_path):
    too_large = hostile_images.declaring(65_500, 65_500) + hostile_images.declaring(10_001, 10_000)
    errors, rise = serve_hostile(
        exported[1], too_large * 20, hostile_images.generated_images(), tmp_path
    )
    assert all(str(images.MAX_PIXELS) in error for error in errors)
    assert rise < 3 * images.MAX_PIXELS  # less than one such image
