"""Export of a trained classifier as a SavedModel for TensorFlow Serving.

The SavedModel holds every step from encoded images to named probabilities, and plain TensorFlow
loads it.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from dbl_tf import atomic
from dbl_tf.statistics import LabelStatistics

WARMUP_FILE = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")
DETAILS_FILE = pathlib.PurePath("assets.extra", "dbl_tf.json")
STATISTICS_FILE = pathlib.PurePath("assets.extra", "statistics.json")
TOP_CLASSES = 5

# (B,) encoded images → (B, S, S, 3) images in [0, 255], and (B,) errors, empty for good images.
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
    """Writes a SavedModel with two signatures as a new version, as a whole or not at all.

    `serving_default` takes `image_bytes`, string (B,); `serve_images` takes `images`, float32
    (B, H, W, 3) in [0, 255]. Both return

    * `probabilities`, `class_names` and `thresholds`, (B, C);
    * `top_probabilities` and `top_classes`, (B, k), the k = min(5, C) most probable classes;
    * `error`, string (B,): empty, or the reason why this image could not be read. Its
      `probabilities` and `top_probabilities` are then zeros and its `top_classes` are empty. It
      does not change the rows of the other images.

    An existing version is never changed, because a server that has loaded it would not notice. The
    new one is written under a name that is not a number, which a server therefore ignores, and
    renamed once all of it is on the disk. The next export removes what a killed one has left.

    Args:
        model: the network from images in [0, 255] to logits (B, C).
        statistics: statistics of the training labels, with the class names. They are saved with
            the thresholds in `assets.extra`, next to the model.
        read_batch: the preprocessing of the evaluation, for encoded images.
        resize: the part of it that follows the decoding, for one image (H, W, 3).
        directory: the directory of all versions, such as `saved_model`; a server takes it as its
            base path.
        thresholds: (C,), the probabilities from which a class counts as present.
        thresholds_from: the name of the split on which the thresholds were chosen.
        example_image: the bytes of an image, for the warm-up request.

    Returns:
        The version directory: `directory/1`, or one more than the highest number there.

    Raises:
        OSError: the disk is full, or the directory cannot be written. Nothing of the version is
            left.
    """
    directory = pathlib.Path(directory)
    with atomic.reraise_full_disk(directory), atomic.temporary_folder(directory) as folder:
        _write(
            model,
            statistics,
            read_batch,
            resize,
            folder,
            thresholds,
            thresholds_from,
            example_image,
        )
        return _publish(folder, directory)


def versions(directory: str | os.PathLike) -> list[int]:
    """The numbers of the versions in a directory, ascending.

    Like TensorFlow Serving, it takes every entry whose name is a whole number for a version.
    """
    names = (entry.name for entry in pathlib.Path(directory).iterdir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _publish(folder: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    """Makes a folder the next version, or the one after it if another export was quicker."""
    while True:
        version = directory / str(max(versions(directory), default=0) + 1)
        with contextlib.suppress(FileExistsError):
            atomic.publish(folder, version)
            return version


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
    """Keeps TensorFlow's messages about every function that it writes off the user's screen."""
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
    """Writes a request for each signature, which TensorFlow Serving runs before any other."""
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
