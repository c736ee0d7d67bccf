"""Export of a trained classifier as a SavedModel for TensorFlow Serving.

The SavedModel holds the whole way from encoded images to named probabilities and loads with plain
TensorFlow.
"""

import contextlib
import json
import os
import pathlib
import shutil
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

# (B,) encoded images → (B, S, S, 3) images in [0, 255], and (B,) errors, empty where all is well.
ReadBatch = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def export(
    model: keras.Model,
    statistics: LabelStatistics,
    read_batch: ReadBatch,
    resize: Callable[[tf.Tensor], tf.Tensor],
    path: str | os.PathLike,
    *,
    thresholds: np.ndarray,
    thresholds_from: str,
    example_image: bytes,
) -> None:
    """Writes a SavedModel with two signatures, whole or not at all.

    `serving_default` takes `image_bytes`, string (B,); `serve_images` takes `images`, float32
    (B, H, W, 3) in [0, 255]. Both return

    * `probabilities`, `class_names` and `thresholds`, (B, C);
    * `top_probabilities` and `top_classes`, (B, k), the k = min(5, C) likeliest classes;
    * `error`, string (B,): empty, or why this image could not be read. Its
      `probabilities` and `top_probabilities` are then zeros and its `top_classes` empty; the rows
      of the others are as they are without it.

    Args:
        model: from images in [0, 255] to logits (B, C).
        statistics: of the training labels, with the names of the classes; kept beside the model in
            `assets.extra`, with the thresholds.
        read_batch: the preprocessing of the evaluation, on encoded images.
        resize: the same from one decoded image (H, W, 3) on.
        path: of the version directory, such as `saved_model/1`; replaced if it exists.
        thresholds: (C,), from which on a class counts as present.
        thresholds_from: name of the split on which they were chosen.
        example_image: bytes of an image, for the warm-up request.
    """
    path = pathlib.Path(path)
    incomplete = path.with_name(f"{path.name}.incomplete")
    shutil.rmtree(incomplete, ignore_errors=True)
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
        archive.write_out(str(incomplete), verbose=False)
    (incomplete / DETAILS_FILE).parent.mkdir(exist_ok=True)
    details = {
        "class_names": list(statistics.class_names),
        "thresholds": np.asarray(thresholds, float).tolist(),
        "thresholds_from": thresholds_from,
    }
    text = json.dumps(details, ensure_ascii=False, indent=1)
    (incomplete / DETAILS_FILE).write_text(text, encoding="utf-8")
    statistics.save(incomplete / STATISTICS_FILE)
    _write_warmup(incomplete / WARMUP_FILE, example_image, image_size)
    shutil.rmtree(path, ignore_errors=True)
    os.replace(incomplete, path)


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
