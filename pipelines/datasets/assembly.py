"""What readers of several formats share: the label matrix, and images that cannot be used."""

import hashlib
import os
import pathlib
from collections.abc import Sequence

import keras
import numpy as np
import scipy.sparse
import tensorflow as tf
from absl import logging

from pipelines import images
from pipelines.datasets import image_checks
from pipelines.examples import Examples

# Part of every digest: raise it where a check becomes stricter.
_CHECK_VERSION = "1"
_READ_BLOCK = 64


def label_matrix(
    codes: np.ndarray, num_labels: np.ndarray, num_classes: int
) -> scipy.sparse.csr_array:
    """Multi-hot labels, bool (N, C), of classes listed example by example.

    Args:
        codes: classes of all examples, one after the other; a class may repeat within an example.
        num_labels: int (N,), how many of them each example has.
        num_classes: C.
    """
    rows = np.repeat(np.arange(len(num_labels)), num_labels)
    shape = (len(num_labels), num_classes)
    labels = scipy.sparse.coo_array((np.ones(len(rows), bool), (rows, codes)), shape=shape).tocsr()
    labels.sort_indices()
    return labels


def file_examples(
    names: Sequence[str], paths: Sequence[str], labels: scipy.sparse.csr_array
) -> Examples:
    """Examples whose images are files of their own."""
    with tf.device("CPU"):
        table = tf.constant([os.fsencode(path) for path in paths])
    return Examples(names, labels, lambda position: tf.io.read_file(table[position]), paths)


def without_bad_images(
    examples: Examples,
    *,
    source: str,
    in_records: bool,
    check_images: str,
    skip_bad_images: bool,
    cache_dir: str | os.PathLike,
) -> Examples:
    """Checks the images; raises over those that cannot be used, or leaves them out with a warning.

    Args:
        examples: to check.
        source: what to call their origin in messages.
        in_records: whether `examples.files` are record files that hold many images each.
        check_images: a level of `image_checks.check_images`. Images in records are there at any
            rate, so "exists" looks at none of them.
        skip_bad_images: whether bad ones are left out.
        cache_dir: where passed checks are remembered.

    Raises:
        image_checks.BadImagesError: images that cannot be used, unless they are left out.
    """
    if in_records:
        bad = _bad_records(examples, check_images, cache_dir)
    else:
        bad = image_checks.check_images(examples.files, level=check_images, cache_dir=cache_dir)
    if not bad:
        return examples
    if not skip_bad_images:
        raise image_checks.bad_images_error(bad, num_images=len(examples), examples=source)
    logging.warning(
        "%s: %d of %d images cannot be used and are left out:\n%s",
        source,
        len(bad),
        len(examples),
        image_checks.describe(bad),
    )
    kept = np.delete(np.arange(len(examples)), [image.position for image in bad])
    if not len(kept):
        raise ValueError(f"{source}: none of {len(examples)} images can be used")
    return examples.take(kept)


def digest_of(*parts: str, files: Sequence[str]) -> str:
    """A name for what was made from these files as they are now."""
    digest = hashlib.sha256("\n".join(parts).encode())
    for path in dict.fromkeys(files):
        status = os.stat(path)
        digest.update(f"\n{path} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:32]


def _bad_records(
    examples: Examples, level: str, cache_dir: str | os.PathLike
) -> list[image_checks.BadImage]:
    """As `image_checks.check_images`, for images inside record files, remembered as a whole."""
    if level not in image_checks.LEVELS:
        choices = ", ".join(image_checks.LEVELS)
        raise ValueError(f"check_images must be one of {choices}; found {level!r}")
    if level == "exists":
        return []
    digest = digest_of(_CHECK_VERSION, level, *examples.names, files=examples.files)
    passed = pathlib.Path(cache_dir, "checked_records", digest)
    if passed.exists():
        return []

    unsure = np.ones(len(examples), bool)
    with tf.device("CPU"):
        blocks = (
            tf.data.Dataset.range(len(examples))
            .map(
                lambda position: (position, _is_good(examples.read(position), level == "all")),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            .ignore_errors()  # each takes its own element along, and no other
            .batch(_READ_BLOCK)
            .prefetch(tf.data.AUTOTUNE)
        )
    print(f"checking {len(examples)} images in records")
    bar = keras.utils.Progbar(len(examples), interval=1, unit_name="image")
    for block, good in blocks.as_numpy_iterator():
        unsure[block[good]] = False
        bar.update(int(block[-1]) + 1, finalize=False)
    bar.update(len(examples), finalize=True)
    bad = []
    for position in np.flatnonzero(unsure).tolist():
        if reason := _reason(examples, position, level):
            bad.append(image_checks.BadImage(position, examples.names[position], reason))
    if not bad:
        passed.parent.mkdir(parents=True, exist_ok=True)
        passed.touch()
    return bad


@tf.function  # traced once in a process: that takes seconds
def _is_good(encoded: tf.Tensor, decode: bool) -> tf.Tensor:
    if decode:  # which inspects the header too; asking for the size has it done
        return tf.size(images.decode(encoded)) > 0
    return images.inspect(encoded) == ""


def _reason(examples: Examples, position: int, level: str) -> str:
    try:
        encoded = examples.read(tf.constant(position, tf.int64))
        reason = images.inspect(encoded).numpy().decode(errors="replace")
        if level == "all" and not reason:
            images.decode(encoded)
    except tf.errors.OpError as error:
        reason = " ".join(error.message.split("[Op:")[0].split())
    return reason
