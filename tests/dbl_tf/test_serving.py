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
