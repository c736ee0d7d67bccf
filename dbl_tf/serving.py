"""Export of a trained classifier as a SavedModel for TensorFlow Serving.

The SavedModel holds every step from encoded images to named probabilities, and plain TensorFlow
loads it.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import msgspec
import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

from dbl_tf import atomic, saved_json
from dbl_tf.calibration import Calibration
from dbl_tf.statistics import LabelStatistics

WARMUP_FILE = pathlib.PurePath("assets.extra", "tf_serving_warmup_requests")
DETAILS_FILE = pathlib.PurePath("assets.extra", "dbl_tf.json")
CARD_FILE = "README.md"
STATISTICS_FILE = pathlib.PurePath("assets.extra", "statistics.json")
TOP_CLASSES = 5
_NOT_FINITE = "the model's outputs for this input are not finite numbers"

# (B,) encoded images → (B, S, S, 3) images in [0, 255], and (B,) errors, empty for good images.
ReadBatch = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class Details(msgspec.Struct):
    """What `DETAILS_FILE` says of an exported model.

    Attributes:
        class_names: the C classes, in the order of the probabilities.
        thresholds: the probabilities from which a class counts as present, (C,).
        thresholds_from: the name of the split on which they were chosen.
        calibration: the map from logits to probabilities, see `Calibration.as_json`.
    """

    class_names: list[str]
    thresholds: list[saved_json.Probability]
    thresholds_from: str
    calibration: dict[str, Any] = {}  # not in files of the first versions


DETAILS = saved_json.Format(
    "dbl_tf.Export",
    "classes and thresholds of a model",
    Details,
    "restore it from a copy, or export the model again, as train.py --new_version does",
)


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
    calibration: Calibration | None = None,
    card: str | None = None,
) -> pathlib.Path:
    """Writes a SavedModel with two signatures as a new version, as a whole or not at all.

    `serving_default` takes `image_bytes`, string (B,); `serve_images` takes `images`, float32
    (B, H, W, 3) in [0, 255]. Both return

    * `probabilities`, `class_names` and `thresholds`, (B, C);
    * `top_probabilities` and `top_classes`, (B, k), the k = min(5, C) most probable classes;
    * `error`, string (B,): empty, or the reason why this image has no result: it could not be
      read, or some of its pixels or logits are not finite numbers. Its `probabilities` and
      `top_probabilities` are then zeros and its `top_classes` are empty. It does not change the
      rows of the other images.

    An empty batch has an empty answer. A tensor of another shape is refused by its name and shape.

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
        calibration: the map from logits to probabilities; None for σ(z).
        card: a text on the model in Markdown, which is saved as `README.md` next to it.

    Returns:
        The version directory: `directory/1`, or one more than the highest number there.

    Raises:
        OSError: the disk is full, or the directory cannot be written. Nothing of the version is
            left.
    """
    image_size = model.input_shape[1]

    def read_images(images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        finite = tf.math.is_finite(images)
        is_good = tf.reduce_all(finite, axis=(1, 2, 3))
        resized = tf.map_fn(
            resize,
            tf.where(finite, images, 0.0),
            fn_output_signature=tf.TensorSpec((image_size, image_size, 3)),
        )
        return resized, tf.where(is_good, "", "some of the pixels are not finite numbers")

    signatures = [
        _Signature(
            "serving_default",
            tf.TensorSpec((None,), tf.string, name="image_bytes"),
            read_batch,
            tf.constant([example_image]),
        ),
        _Signature(
            "serve_images",
            tf.TensorSpec((None, None, None, 3), tf.float32, name="images"),
            read_images,
            tf.zeros((1, image_size, image_size, 3)),
        ),
    ]
    return _export(
        model, statistics, signatures, directory, thresholds, thresholds_from, calibration, card
    )


def export_features(
    model: keras.Model,
    statistics: LabelStatistics,
    directory: str | os.PathLike,
    *,
    thresholds: np.ndarray,
    thresholds_from: str,
    example: np.ndarray,
    calibration: Calibration | None = None,
    card: str | None = None,
) -> pathlib.Path:
    """Writes a SavedModel of a head on features, as `export` does for images.

    Its one signature `serving_default` takes `features`, float32 (B, F), and returns what that of
    images returns. A row with a feature that is not a finite number has an `error`, and does not
    change the other rows.

    Args:
        model: the network from features (B, F) to logits (B, C).
        statistics: see `export`.
        directory: see `export`.
        thresholds: see `export`.
        thresholds_from: see `export`.
        example: the features of an example, (F,), for the warm-up request.
        calibration: see `export`.
        card: see `export`.

    Returns:
        The version directory, see `export`.

    Raises:
        OSError: see `export`.
    """

    def read_features(features: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        finite = tf.math.is_finite(features)
        error = tf.where(
            tf.reduce_all(finite, axis=1), "", "some of the features are not finite numbers"
        )
        return tf.where(finite, features, 0.0), error

    signature = _Signature(
        "serving_default",
        tf.TensorSpec((None, model.input_shape[-1]), tf.float32, name="features"),
        read_features,
        tf.constant(example, tf.float32)[None],
    )
    return _export(
        model, statistics, [signature], directory, thresholds, thresholds_from, calibration, card
    )


def versions(directory: str | os.PathLike) -> list[int]:
    """The numbers of the versions in a directory, ascending.

    Like TensorFlow Serving, it takes every entry whose name is a whole number for a version.
    """
    names = (entry.name for entry in pathlib.Path(directory).iterdir())
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def publish_version(folder: pathlib.Path, directory: pathlib.Path) -> pathlib.Path:
    """Makes a folder the next version, or the one after it if another export was quicker.

    Args:
        folder: the complete version, in a folder that `atomic.temporary_folder(directory)` gave.
        directory: the directory of all versions.

    Returns:
        The version directory.
    """
    while True:
        version = directory / str(max(versions(directory), default=0) + 1)
        with contextlib.suppress(FileExistsError):
            atomic.publish(folder, version)
            return version


@dataclasses.dataclass(frozen=True)
class _Signature:
    """A signature of the SavedModel.

    Attributes:
        name: its name.
        spec: the tensor that it takes.
        read: a function from this tensor to the inputs of the network, (B, …), and their errors,
            (B,), which are empty for good inputs.
        example: a tensor for the warm-up request.
    """

    name: str
    spec: tf.TensorSpec
    read: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    example: tf.Tensor


def _export(
    model: keras.Model,
    statistics: LabelStatistics,
    signatures: Sequence[_Signature],
    directory: str | os.PathLike,
    thresholds: np.ndarray,
    thresholds_from: str,
    calibration: Calibration | None,
    card: str | None,
) -> pathlib.Path:
    directory = pathlib.Path(directory)
    calibration = calibration or Calibration.identity(statistics.num_classes)
    with atomic.reraise_full_disk(directory), atomic.temporary_folder(directory) as folder:
        archive = keras.export.ExportArchive()
        archive.track(model)
        answer = _answer(model, statistics.class_names, thresholds, calibration)
        for signature in signatures:
            archive.add_endpoint(signature.name, _endpoint(signature, answer), [signature.spec])
        with only_warnings():
            archive.write_out(str(folder), verbose=False)
        (folder / DETAILS_FILE).parent.mkdir(exist_ok=True)
        details = {
            "class_names": list(statistics.class_names),
            "thresholds": np.asarray(thresholds, float).tolist(),
            "thresholds_from": thresholds_from,
            "calibration": calibration.as_json(),
        }
        DETAILS.write(folder / DETAILS_FILE, details, indent=1)
        statistics.save(folder / STATISTICS_FILE)
        if card is not None:
            (folder / CARD_FILE).write_text(card, encoding="utf-8")
        _write_warmup(folder / WARMUP_FILE, signatures)
        return publish_version(folder, directory)


def _endpoint(
    signature: _Signature, answer: Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    example = signature.example

    def endpoint(inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        # A server passes tensors of any shape on, and the first operation that cannot work with one
        # would say so in its own words.
        inputs = tf.ensure_shape(inputs, signature.spec.shape)
        num_rows = tf.shape(inputs)[0]
        # Not all kernels of a network take an empty batch.
        some_rows = tf.cond(
            num_rows > 0, lambda: inputs, lambda: tf.zeros(example.shape, example.dtype)
        )
        outputs = answer(*signature.read(some_rows))
        return {name: output[:num_rows] for name, output in outputs.items()}

    return endpoint


@contextlib.contextmanager
def only_warnings() -> Iterator[None]:
    """Keeps TensorFlow's messages about every function that it writes off the user's screen."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _answer(
    model: keras.Model,
    class_names: Sequence[str],
    thresholds: np.ndarray,
    calibration: Calibration,
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    names = tf.constant(list(class_names))
    offsets = tf.constant(calibration.offsets, tf.float32)
    cuts = tf.constant(thresholds, tf.float32)

    def answer(inputs: tf.Tensor, error: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = tf.cast(model(inputs, training=False), tf.float32)
        is_finite = tf.reduce_all(tf.math.is_finite(logits), axis=1)
        error = tf.where((error == "") & ~is_finite, _NOT_FINITE, error)
        good = (error == "")[:, None]
        probabilities = tf.sigmoid(calibration.slope * logits + offsets)
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


def _write_warmup(path: pathlib.Path, signatures: Sequence[_Signature]) -> None:
    """Writes a request for each signature, which TensorFlow Serving runs before any other."""
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature in signatures:
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = signature.name
            request.inputs[signature.spec.name].CopyFrom(tf.make_tensor_proto(signature.example))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())
