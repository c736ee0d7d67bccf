"""Export of a trained classifier as a SavedModel for TensorFlow Serving.

The SavedModel holds the whole way from encoded images to named probabilities and loads with plain
TensorFlow.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from dbl_tf.statistics import LabelStatistics

WARMUP_FILE = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")
DETAILS_FILE = pathlib.PurePath("assets.extra", "dbl_tf.json")
STATISTICS_FILE = pathlib.PurePath("assets.extra", "statistics.json")
TOP_CLASSES = 5

# TensorFlow Serving takes every entry whose name is a whole number for a version, and no other.
_INCOMPLETE = "incomplete-"

# (B,) encoded images → (B, S, S, 3) images in [0, 255], and (B,) errors, empty where all is well.
ReadBatch = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def export(
    model: keras.Model,
    statistics: LabelStatistics,
    read_batch: ReadBatch,
    resize: Callable[[tf.Tensor], tf.Tensor],
    directory: str | os.PathLike,
    *,
    thresholds: np.ndarray,
    thresholds_from: str,
    example_image: bytes,
) -> pathlib.Path:
    """Writes a SavedModel with two signatures as a new version, whole or not at all.

    `serving_default` takes `image_bytes`, string (B,); `serve_images` takes `images`, float32
    (B, H, W, 3) in [0, 255]. Both return

    * `probabilities`, `class_names` and `thresholds`, (B, C);
    * `top_probabilities` and `top_classes`, (B, k), the k = min(5, C) likeliest classes;
    * `error`, string (B,): empty, or why this image could not be read. Its
      `probabilities` and `top_probabilities` are then zeros and its `top_classes` empty; the rows
      of the others are as they are without it.

    A version that exists is never changed: a server that has loaded it would not notice. The new
    one is written beside, under a name that is no number and that a server therefore passes over,
    and renamed when all of it is on the disk. What an export that was killed has left there is
    removed by the next one.

    Args:
        model: from images in [0, 255] to logits (B, C).
        statistics: of the training labels, with the names of the classes; kept beside the model in
            `assets.extra`, with the thresholds.
        read_batch: the preprocessing of the evaluation, on encoded images.
        resize: the same from one decoded image (H, W, 3) on.
        directory: of all versions, such as `saved_model`: what a server takes as base path.
        thresholds: (C,), from which on a class counts as present.
        thresholds_from: name of the split on which they were chosen.
        example_image: bytes of an image, for the warm-up request.

    Returns:
        The version directory: `directory/1`, or one more than the highest number there.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(directory)
    with _incomplete(directory) as incomplete:
        _write(
            model,
            statistics,
            read_batch,
            resize,
            incomplete,
            thresholds,
            thresholds_from,
            example_image,
        )
        _sync(incomplete)
        version = _publish(incomplete, directory)
    _sync_entries(directory)
    return version


def versions(directory: str | os.PathLike) -> list[int]:
    """Numbers of the versions in a directory, ascending, as TensorFlow Serving reads them."""
    names = (entry.name for entry in pathlib.Path(directory).iterdir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


@contextlib.contextmanager
def _incomplete(directory: pathlib.Path) -> Iterator[pathlib.Path]:
    """A new folder in `directory`, locked as long as its writer lives; removed on an error."""
    # Made as any folder is, since one of `tempfile` could be read by its owner alone.
    path = directory / f"{_INCOMPLETE}{uuid.uuid4().hex}"
    path.mkdir()
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _remove_abandoned(directory: pathlib.Path) -> None:
    """Removes what writers that are dead have left; their locks died with them."""
    for path in directory.glob(f"{_INCOMPLETE}*"):
        try:
            lock = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # its writer has just renamed it
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _publish(incomplete: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    """Renames to the next version; takes the one after it where another export was quicker."""
    while True:
        version = directory / str(max(versions(directory), default=0) + 1)
        try:
            return incomplete.rename(version)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _sync(directory: pathlib.Path) -> None:
    """Waits until all files in a folder are on the disk."""
    for folder, _, names in os.walk(directory):
        for name in names:
            _sync_entries(pathlib.Path(folder, name))
        _sync_entries(pathlib.Path(folder))


def _sync_entries(path: pathlib.Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write(
    model: keras.Model,
    statistics: LabelStatistics,
    read_batch: ReadBatch,
    resize: Callable[[tf.Tensor], tf.Tensor],
    path: pathlib.Path,
    thresholds: np.ndarray,
    thresholds_from: str,
    example_image: bytes,
) -> None:
    archive = keras.export.ExportArchive()
    archive.track(model)
    image_size = model.input_shape[1]
    answer = _answer(model, statistics.class_names, thresholds)

    def serve_bytes(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return answer(*read_batch(image_bytes))

    def serve_images(images: tf.Tensor) -> dict[str, tf.Tensor]:
        resized = tf.map_fn(
            resize, images, fn_output_signature=tf.TensorSpec((image_size, image_size, 3))
        )
        return answer(resized, tf.fill(tf.shape(images)[:1], ""))

    archive.add_endpoint(
        "serving_default", serve_bytes, [tf.TensorSpec((None,), tf.string, name="image_bytes")]
    )
    archive.add_endpoint(
        "serve_images",
        serve_images,
        [tf.TensorSpec((None, None, None, 3), tf.float32, name="images")],
    )
    with _only_warnings():
        archive.write_out(str(path), verbose=False)
    (path / DETAILS_FILE).parent.mkdir(exist_ok=True)
    details = {
        "class_names": list(statistics.class_names),
        "thresholds": np.asarray(thresholds, float).tolist(),
        "thresholds_from": thresholds_from,
    }
    text = json.dumps(details, ensure_ascii=False, indent=1)
    (path / DETAILS_FILE).write_text(text, encoding="utf-8")
    statistics.save(path / STATISTICS_FILE)
    _write_warmup(path / WARMUP_FILE, example_image, image_size)


@contextlib.contextmanager
def _only_warnings() -> Iterator[None]:
    """Keeps what TensorFlow says of each function that it writes from the user's screen."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _answer(
    model: keras.Model, class_names: Sequence[str], thresholds: np.ndarray
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    names = tf.constant(list(class_names))
    cuts = tf.constant(thresholds, tf.float32)

    def answer(images: tf.Tensor, error: tf.Tensor) -> dict[str, tf.Tensor]:
        good = (error == "")[:, None]
        probabilities = tf.sigmoid(tf.cast(model(images, training=False), tf.float32))
        probabilities = tf.where(good, probabilities, 0.0)
        top = tf.math.top_k(probabilities, min(TOP_CLASSES, len(class_names)))
        every_row = tf.ones_like(probabilities, tf.int32) * tf.range(len(class_names))
        return {
            "probabilities": probabilities,
            "class_names": tf.gather(names, every_row),
            "thresholds": tf.gather(cuts, every_row),
            "top_probabilities": top.values,
            "top_classes": tf.where(good, tf.gather(names, top.indices), ""),
            "error": error,
        }

    return answer


def _write_warmup(path: pathlib.Path, example_image: bytes, image_size: int) -> None:
    """One request for each signature, which TensorFlow Serving runs before it answers others."""
    inputs = {
        "serving_default": ("image_bytes", tf.constant([example_image])),
        "serve_images": ("images", tf.zeros((1, image_size, image_size, 3))),
    }
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, (name, value) in inputs.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())
