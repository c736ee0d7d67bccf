"""Assembles examples for several data sources: label matrices, image files, and image checks."""

import os
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import tensorflow as tf
from absl import logging

from pipelines.datasets import image_checks
from pipelines.examples import Examples


def label_matrix(
    codes: np.ndarray, num_labels: np.ndarray, num_classes: int
) -> scipy.sparse.csr_array:
    """Makes multi-hot labels, bool (N, C), from the classes of each example.

    Args:
        codes: the classes of all examples, one after the other; a class may repeat within an
            example.
        num_labels: the number of labels of each example, int (N,).
        num_classes: the number C of classes.
    """
    rows = np.repeat(np.arange(len(num_labels)), num_labels)
    return sparse_labels(rows, codes, (len(num_labels), num_classes))


def sparse_labels(
    rows: np.ndarray, columns: np.ndarray, shape: tuple[int, int]
) -> scipy.sparse.csr_array:
    """Makes multi-hot labels, bool CSR, from the places of the ones, which may repeat."""
    labels = scipy.sparse.coo_array((np.ones(len(rows), bool), (rows, columns)), shape=shape)
    labels = labels.tocsr()  # this adds repeated entries, which for booleans is their "or"
    labels.sort_indices()
    return labels


def file_examples(
    names: Sequence[str],
    paths: Sequence[str],
    labels: scipy.sparse.csr_array,
    unknown: scipy.sparse.csr_array | None = None,
) -> Examples:
    """Makes examples whose images are separate files."""
    with tf.device("CPU"):
        table = tf.constant([os.fsencode(path) for path in paths])
    return Examples(
        names,
        labels,
        lambda position: tf.io.read_file(table[position]),
        paths,
        unknown=unknown,
    )


def without_bad_images(
    examples: Examples,
    *,
    source: str,
    in_records: bool,
    check_images: str,
    skip_bad_images: bool,
    cache_dir: str | os.PathLike,
) -> Examples:
    """Checks the images; refuses those that cannot be used, or leaves them out with a warning.

    Args:
        examples: the examples to check.
        source: the name of their origin in messages.
        in_records: whether `examples.files` are record files that hold many images each.
        check_images: a level of `image_checks.check_images`.
        skip_bad_images: whether bad images are left out.
        cache_dir: the folder where passed checks are remembered.

    Raises:
        image_checks.BadImagesError: some images cannot be used and are not left out.
        ValueError: no image can be used.
    """
    if in_records:
        bad = image_checks.check_records(examples, level=check_images, cache_dir=cache_dir)
    else:
        bad = image_checks.check_images(examples.files, level=check_images, cache_dir=cache_dir)
    if not bad:
        return examples
    if not skip_bad_images:
        raise image_checks.bad_images_error(bad, num_images=len(examples), examples=source)
    logging.warning(
        "%s: %s of %s images cannot be used and are left out:\n%s",
        source,
        f"{len(bad):,}",
        f"{len(examples):,}",
        image_checks.describe(bad),
    )
    kept = np.delete(np.arange(len(examples)), [image.position for image in bad])
    if not len(kept):
        raise ValueError(f"{source}: none of {len(examples)} images can be used")
    return examples.take(kept)
