"""Puts a data set, a sampler, the image reader and the weights together as batches for `fit`.

Indices first, bytes last: a batch is chosen on labels alone, and only its images are read.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf

from dbl_tf.training import ALL_ROWS, Share
from pipelines import images
from pipelines.examples import Examples
from pipelines.images.augmentation import PHOTOGRAPHS, Augmentation

# Turns labels (B, C) into weights (B, C).
Weighting = Callable[[tf.Tensor], tf.Tensor]


class UnreadableImageError(ValueError):
    """An image that passed the checks, or was not checked, could not be read."""


def training_batches(
    examples: Examples,
    indices: tf.data.Dataset,
    *,
    image_size: int,
    seed: int,
    augmentation: Augmentation = PHOTOGRAPHS,
    weighting: Weighting | None = None,
    start_step: int = 0,
    share: Share = ALL_ROWS,
) -> tf.data.Dataset:
    """Augmented batches of the examples that a sampler has chosen.

    Image, labels and weights of batch t are functions of (seed, t) if its indices are.

    Args:
        examples: of the training split.
        indices: int64 (B,) for each step, from `start_step` on, of `pipelines.sampling`.
        image_size: S.
        seed: of the augmentation.
        augmentation: its options, none of them left open.
        weighting: makes the weights from the labels; None for none.
        start_step: t of the first batch.
        share: which rows of every batch are made.

    Returns:
        (images, labels) or (images, labels, weights): float32 (B, S, S, 3) in [0, 255], uint8
        (B, C) and float32 (B, C), B being the rows of the share.
    """
    batch_size = int(indices.element_spec.shape[0])
    rows = _rows(share, batch_size)
    labels_at, weigh = dense_labels(examples.labels), _attach(weighting)

    def places(step: tf.Tensor, batch: tf.Tensor) -> tuple[tf.Tensor, ...]:
        place, index = (step * batch_size + tf.range(batch_size, dtype=tf.int64))[rows], batch[rows]
        return (place, index, examples.read(index)) if examples.reads_blocks else (place, index)

    def read(
        place: tf.Tensor, index: tf.Tensor, encoded: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if encoded is None:
            encoded = examples.read(index)
        return _augmented(encoded, place, image_size, seed, augmentation), index

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
    seed: int,
    augmentation: Augmentation = PHOTOGRAPHS,
    weighting: Weighting | None = None,
    start_step: int = 0,
    share: Share = ALL_ROWS,
) -> tf.data.Dataset:
    """As `training_batches`, of examples that a stream has passed on.

    Every share reads the whole stream and decodes its own rows.

    Args:
        draws: dicts of the encoded "image" and its "labels", (C,), from the first draw of batch
            `start_step` on.
        batch_size: B.
        image_size: S.
        seed: of the augmentation.
        augmentation: its options, none of them left open.
        weighting: makes the weights from the labels; None for none.
        start_step: t of the first batch.
        share: which rows of every batch are made.
    """
    weigh = _attach(weighting)
    rows = _rows(share, batch_size)

    def is_own(place: tf.Tensor, draw: dict[str, tf.Tensor]) -> tf.Tensor:
        row = place % batch_size
        return (row >= rows.start) & (row < rows.stop)

    def read(place: tf.Tensor, draw: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        image = _augmented(draw["image"], place, image_size, seed, augmentation)
        return image, tf.cast(draw["labels"], tf.uint8)

    draws = draws.enumerate(start_step * batch_size)
    return (
        (draws if share == ALL_ROWS else draws.filter(is_own))
        .map(read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(rows.stop - rows.start, drop_remainder=True)
        .map(weigh)
        .prefetch(tf.data.AUTOTUNE)
    )


def feature_batches(
    features: np.ndarray,
    labels: scipy.sparse.csr_array,
    indices: tf.data.Dataset,
    weighting: Weighting | None = None,
    share: Share = ALL_ROWS,
) -> tf.data.Dataset:
    """As `training_batches`, of features that were computed once, float32 (N, F)."""
    labels_at, weigh = dense_labels(labels), _attach(weighting)
    rows = _rows(share, int(indices.element_spec.shape[0]))
    with tf.device("CPU"):
        table = tf.constant(features)
    return (
        indices.map(lambda index: index[rows])
        .map(
            lambda index: weigh(tf.gather(table, index), labels_at(index)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .prefetch(tf.data.AUTOTUNE)
    )


def evaluation_batches(examples: Examples, *, image_size: int, batch_size: int) -> tf.data.Dataset:
    """Images of all examples in their order, resized only: float32 (≤ B, S, S, 3) in [0, 255]."""

    return (
        examples.encoded()
        .map(_traced(images.read_for_evaluation, image_size), num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )


def encoded_batches(examples: Examples, batch_size: int) -> tf.data.Dataset:
    """Encoded bytes of all examples in their order: string (≤ B,)."""
    return examples.encoded().batch(batch_size).prefetch(tf.data.AUTOTUNE)


def dense_labels(labels: scipy.sparse.csr_array) -> Callable[[tf.Tensor], tf.Tensor]:
    """A function from positions, int64 (B,), to multi-hot uint8 (B, C), for use in `tf.data`.

    The matrix stays sparse: a million examples of a thousand classes fit.
    """
    num_classes = labels.shape[1]
    labels = labels.astype(bool).tocsr()
    labels.eliminate_zeros()
    with tf.device("CPU"):
        row_starts = tf.constant(labels.indptr, tf.int64)
        columns = tf.constant(labels.indices, tf.int64)

    def labels_at(index: tf.Tensor) -> tf.Tensor:
        entries = tf.ragged.range(tf.gather(row_starts, index), tf.gather(row_starts, index + 1))
        cells = tf.stack([entries.value_rowids(), tf.gather(columns, entries.values)], axis=1)
        shape = tf.stack([tf.size(index, tf.int64), num_classes])
        dense = tf.scatter_nd(cells, tf.ones_like(entries.values, tf.uint8), shape)
        return tf.ensure_shape(dense, (index.shape[0], num_classes))

    return labels_at


def find_unreadable(
    examples: Examples, indices: tf.data.Dataset, image_size: int
) -> UnreadableImageError | None:
    """The error that names the first image that cannot be read, None if all can.

    For use after a pipeline has failed, since the error of a decoder does not know its file.

    Args:
        examples: of the split. Those of a stream are all read, in their order.
        indices: the positions in question, int64 (B,) each.
        image_size: S.
    """
    if examples.is_stream:
        images_read = iter(evaluation_batches(examples, image_size=image_size, batch_size=1))
        for name in examples.names:
            try:
                next(images_read)
            except tf.errors.OpError as error:
                return UnreadableImageError(f"image {name} cannot be read: {error.message}")
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
                return UnreadableImageError(
                    f"image {examples.names[index]} cannot be read: {error.message}"
                )
    return None


def _rows(share: Share, batch_size: int) -> slice:
    if batch_size % share.count:
        raise ValueError(f"a batch of {batch_size} cannot be cut into {share.count} equal shares")
    size = batch_size // share.count
    return slice(share.index * size, (share.index + 1) * size)


def _augmented(
    encoded: tf.Tensor, place: tf.Tensor, image_size: int, seed: int, augmentation: Augmentation
) -> tf.Tensor:
    """The training image at a place, int64 (), of the global sequence of draws."""
    image_seed = tf.stack([tf.constant(seed, tf.int64), place])
    read = _traced(images.read_for_training, image_size, augmentation=augmentation)
    return read(encoded, image_seed)


# Tracing the reading of an image takes seconds; a run makes several pipelines that do it.
@functools.lru_cache(maxsize=16)
def _traced(
    function: Callable[..., tf.Tensor], image_size: int, **fixed: Any
) -> Callable[..., tf.Tensor]:
    @tf.function
    def read(encoded: tf.Tensor, *seed: tf.Tensor) -> tf.Tensor:
        return function(encoded, image_size, *seed, **fixed)

    return read


def _attach(weighting: Weighting | None) -> Callable[..., tuple[tf.Tensor, ...]]:
    def weigh(inputs: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        if weighting is None:
            return inputs, labels
        return inputs, labels, weighting(labels)

    return weigh
