"""Makes batches for `fit` from a data set, a sampler, the reader of images and a weighting.

A batch is chosen by the labels alone, and only its own images are read.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf

from dbl_tf import label_arrays, label_values
from dbl_tf.training import ALL_ROWS, Share
from pipelines import images
from pipelines.examples import Examples, FeatureRows
from pipelines.images.settings import PHOTOGRAPHS, Augmentation

# A function from labels (B, C) to weights (B, C).
Weighting = Callable[[tf.Tensor], tf.Tensor]

_RECORDS_AT_ONCE = 256


class UnreadableImageError(ValueError):
    """An image could not be read, although it passed the checks or because it was not checked."""


def training_batches(
    examples: Examples,
    indices: tf.data.Dataset,
    *,
    image_size: int,
    full_decoding: bool = True,
    seed: int,
    augmentation: Augmentation = PHOTOGRAPHS,
    weighting: Weighting | None = None,
    start_step: int = 0,
    share: Share = ALL_ROWS,
) -> tf.data.Dataset:
    """Makes batches of augmented images of the examples that a sampler chooses.

    The images, labels and weights of batch t are functions of (seed, t) if its indices are.

    Args:
        examples: the examples of the training split.
        indices: the positions of the examples of each batch, int64 (B,), as the samplers of
            `pipelines.sampling` return them, starting with batch `start_step`.
        image_size: the side S of the images.
        full_decoding: whether JPEGs are decoded at their full size; see `images.decode_window`.
        seed: the seed of the augmentation.
        augmentation: the options of the augmentation, none of which may be None.
        weighting: the function that computes weights from labels; None for batches without weights.
        start_step: the number t of the first batch.
        share: the rows of every batch to make.

    Returns:
        A dataset of (images, labels) or (images, labels, weights): float32 (B, S, S, 3) in
        [0, 255], labels as `dense_labels` gives them, (B, C), and float32 (B, C), where B is the
        number of rows in the share.
    """
    batch_size = int(indices.element_spec.shape[0])
    rows = _rows(share, batch_size)
    labels_at, weigh = dense_labels(examples.targets), _attach(weighting)
    augmented = _augmenting(image_size, full_decoding, seed, augmentation)

    def places(step: tf.Tensor, batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        place, index = (step * batch_size + tf.range(batch_size, dtype=tf.int64))[rows], batch[rows]
        return (place, index, examples.read(index)) if examples.reads_blocks else (place, index)

    def read(
        place: tf.Tensor, index: tf.Tensor, encoded: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if encoded is None:
            encoded = examples.read(index)
        return augmented(encoded, place), index

    steps = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max)
    return (
        tf.data.Dataset.zip(steps, indices)
        .map(places, num_parallel_calls=tf.data.AUTOTUNE)
        .unbatch()
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(rows.stop - rows.start, drop_remainder=True)
        .map(lambda batch, index: weigh(batch, labels_at(index)))
        .prefetch(tf.data.AUTOTUNE)
    )


def streamed_batches(
    draws: tf.data.Dataset,
    batch_size: int,
    *,
    image_size: int,
    full_decoding: bool = True,
    seed: int,
    augmentation: Augmentation = PHOTOGRAPHS,
    weighting: Weighting | None = None,
    start_step: int = 0,
    share: Share = ALL_ROWS,
) -> tf.data.Dataset:
    """Makes batches from the draws of a stream.

    Every share reads the whole stream, but decodes only the images of its own rows. The result and
    the arguments that are not described here are those of `training_batches`.

    Args:
        draws: dicts of the encoded "image" and its "labels", (C,), starting with the first draw of
            batch `start_step`.
        batch_size: the number B of examples in a batch.
    """
    weigh = _attach(weighting)
    rows = _rows(share, batch_size)
    augmented = _augmenting(image_size, full_decoding, seed, augmentation)

    def is_own(place: tf.Tensor, draw: dict[str, tf.Tensor]) -> tf.Tensor:
        row = place % batch_size
        return (row >= rows.start) & (row < rows.stop)

    dtype = tf.int8 if draws.element_spec["labels"].dtype == tf.int8 else tf.uint8

    def read(place: tf.Tensor, draw: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        return augmented(draw["image"], place), tf.cast(draw["labels"], dtype)

    draws = draws.enumerate(start_step * batch_size)
    return (
        (draws if share == ALL_ROWS else draws.filter(is_own))
        .map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(rows.stop - rows.start, drop_remainder=True)
        .map(weigh)
        .prefetch(tf.data.AUTOTUNE)
    )


def feature_batches(
    features: FeatureRows,
    labels: scipy.sparse.csr_array,
    indices: tf.data.Dataset,
    weighting: Weighting | None = None,
    share: Share = ALL_ROWS,
) -> tf.data.Dataset:
    """Makes batches of features, float32 (B, F), in place of the images of `training_batches`."""
    labels_at, weigh = dense_labels(labels), _attach(weighting)
    rows = _rows(share, int(indices.element_spec.shape[0]))
    features_at = features.reader()
    return (
        indices.map(lambda index: index[rows])
        .map(
            lambda index: weigh(features_at(index), labels_at(index)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation_features(features: FeatureRows, batch_size: int) -> tf.data.Dataset:
    """Returns batches of all features in their order: float32 (≤ B, F)."""
    positions = tf.data.Dataset.range(len(features)).batch(batch_size)
    return positions.map(features.reader()).prefetch(tf.data.AUTOTUNE)


def evaluation_batches(
    examples: Examples, *, image_size: int, batch_size: int, full_decoding: bool = True
) -> tf.data.Dataset:
    """Returns batches of all images in their order, resized: float32 (≤ B, S, S, 3) in [0, 255]."""
    read = _traced(images.read_for_evaluation, image_size, full_decoding=full_decoding)
    return (
        examples.encoded()
        .map(read, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )


def dense_labels(labels: Any) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns a function for `tf.data` from positions, int64 (B,), to labels (B, C).

    The labels are kept sparse, so that a million examples of a thousand classes fit into memory.

    Args:
        labels: the labels, multi-hot (N, C), in a container that `label_arrays.label_array` takes;
            −1 in integers and NaN in floating-point numbers stand for labels that are not known.

    Returns:
        The function. Its labels are uint8, or int8 with −1 if some of all labels are unknown.
    """
    labels = scipy.sparse.csr_array(label_arrays.label_array(labels), copy=True)
    num_classes = labels.shape[1]
    is_unknown = label_values.is_unknown(labels.data)
    has_unknown = bool(is_unknown.any())
    labels.data = np.where(is_unknown, -1, labels.data != 0).astype(np.int8)
    labels.eliminate_zeros()
    with tf.device("CPU"):
        values = tf.constant(labels.data) if has_unknown else None
        row_starts = tf.constant(labels.indptr, tf.int64)
        columns = tf.constant(labels.indices, tf.int64)

    def labels_at(index: tf.Tensor) -> tf.Tensor:
        entries = tf.ragged.range(tf.gather(row_starts, index), tf.gather(row_starts, index + 1))
        cells = tf.stack([entries.value_rowids(), tf.gather(columns, entries.values)], axis=1)
        shape = tf.stack([tf.size(index, tf.int64), num_classes])
        if values is None:
            of_cells = tf.ones_like(entries.values, tf.uint8)
        else:
            of_cells = tf.gather(values, entries.values)
        dense = tf.scatter_nd(cells, of_cells, shape)
        return tf.ensure_shape(dense, (index.shape[0], num_classes))

    return labels_at


def find_unreadable(
    examples: Examples, indices: tf.data.Dataset, image_size: int
) -> UnreadableImageError | None:
    """Finds the first image that cannot be read, after a pipeline has failed.

    The error of a decoder does not name the file.

    Args:
        examples: the examples of the split. If they are a stream, all of them are read.
        indices: batches of the positions to try, int64 (B,) each.
        image_size: the side S of the images.

    Returns:
        An error that names the image, or None if all images can be read.
    """
    if examples.is_stream:
        if (record := _find_bad_record(examples)) is not None:
            return record
        images_read = iter(evaluation_batches(examples, image_size=image_size, batch_size=1))
        for name in examples.names:
            try:
                next(images_read)
            except tf.errors.OpError as error:
                return _unreadable(name, error)
        return None
    seen: set[int] = set()
    for batch in indices.as_numpy_iterator():
        for index in batch.tolist():
            if index in seen:
                continue
            seen.add(index)
            try:
                images.read_for_evaluation(examples.read(tf.constant(index, tf.int64)), image_size)
            except tf.errors.OpError as error:
                return _unreadable(examples.names[index], error)
    return None


def _find_bad_record(examples: Examples) -> UnreadableImageError | None:
    """Finds the first record of a stream that is damaged, without decoding its image."""
    for start in range(0, len(examples), _RECORDS_AT_ONCE):
        block = tf.range(start, min(start + _RECORDS_AT_ONCE, len(examples)), dtype=tf.int64)
        try:
            examples.read(block)
        except tf.errors.OpError:
            for position in block:
                try:
                    examples.read(position)
                except tf.errors.OpError as error:
                    return _unreadable(examples.names[int(position)], error)
    return None


def _unreadable(name: str, error: tf.errors.OpError) -> UnreadableImageError:
    return UnreadableImageError(
        f"image {name} cannot be read: {images.reason_of(error)}. Restore its file, or pass "
        "--skip_bad_images to leave such images out"
    )


def _rows(share: Share, batch_size: int) -> slice:
    if batch_size % share.count:
        raise ValueError(f"a batch of {batch_size} cannot be cut into {share.count} equal shares")
    size = batch_size // share.count
    return slice(share.index * size, (share.index + 1) * size)


def _augmenting(
    image_size: int, full_decoding: bool, seed: int, augmentation: Augmentation
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Returns a function from an encoded image and its place in all draws to the training image."""
    read = _traced(
        images.read_for_training,
        image_size,
        augmentation=augmentation,
        full_decoding=full_decoding,
    )
    return lambda encoded, place: read(encoded, tf.stack([tf.constant(seed, tf.int64), place]))


# Tracing takes seconds, and a run makes several pipelines that read images in the same way.
@functools.lru_cache(maxsize=16)
def _traced(
    function: Callable[..., tf.Tensor], image_size: int, **fixed: Any
) -> Callable[..., tf.Tensor]:
    @tf.function(autograph=False)  # no Python branch depends on a tensor
    def read(encoded: tf.Tensor, *seed: tf.Tensor) -> tf.Tensor:
        return function(encoded, image_size, *seed, **fixed)

    return read


def _attach(weighting: Weighting | None) -> Callable[..., tuple[tf.Tensor, ...]]:
    def weigh(inputs: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        if weighting is None:
            return inputs, labels
        return inputs, labels, weighting(labels)

    return weigh
