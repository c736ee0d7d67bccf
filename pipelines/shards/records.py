"""One record of a shard: an image, its name and labels, and the identity that binds them.

A record is a `tf.train.Example` of

* `image/encoded`: the image;
* `image/name`: its name, in UTF-8;
* `image/labels`: the indices of its classes;
* `image/unknown_labels`, where some labels of the data set are unknown: the indices of the classes
  that are not known of it;
* `image/identity`: a digest of split, place in the order of the split, name and labels.

The identity is compared with the one that follows from the names and labels of the manifest
whenever a record is read. So a shard in the place of another, or one that was written from other
labels, is not trained on. The checksums of the record files answer for the bytes of the image.
"""

import hashlib
import os
import struct
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse
import tensorflow as tf

IMAGE, NAME, LABELS = "image/encoded", "image/name", "image/labels"
UNKNOWN, IDENTITY = "image/unknown_labels", "image/identity"

_NUMBERS = struct.Struct("<qqqq")


def identities(
    split: str,
    names: Sequence[str],
    labels: scipy.sparse.csr_array,
    unknown: scipy.sparse.csr_array | None,
    *,
    first: int = 0,
) -> np.ndarray:
    """Computes the identities of records that follow each other, int64 (N,).

    Args:
        split: the name of the split.
        names: the names of the N images.
        labels: their labels, bool (N, C), CSR, sorted.
        unknown: the labels that are not known, likewise; None if all are known.
        first: the place of the first of them in the order of the split.
    """
    key = hashlib.blake2b(split.encode(), digest_size=16).digest()
    matrices = [labels] if unknown is None else [labels, unknown]
    parts = [(matrix.indptr.tolist(), matrix.indices.astype("<i8")) for matrix in matrices]
    found = bytearray()
    for row, name in enumerate(names):
        encoded = encode_name(name)
        # With the numbers of bytes and labels, so that no two records give the same bytes.
        counts = [starts[row + 1] - starts[row] for starts, _ in parts]
        digest = hashlib.blake2b(
            _NUMBERS.pack(first + row, len(encoded), counts[0], sum(counts[1:])),
            digest_size=8,
            key=key,
        )
        digest.update(encoded)
        for starts, columns in parts:
            digest.update(columns[starts[row] : starts[row + 1]])
        found += digest.digest()
    return np.frombuffer(bytes(found), "<i8").astype(np.int64)


def encode_name(name: str) -> bytes:
    """Returns the name of an image as a record holds it; names of files may be no UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def serialize(
    image: bytes, name: str, classes: np.ndarray, unknown: np.ndarray | None, identity: int
) -> bytes:
    """Returns the bytes of a record, which are the same for equal arguments.

    Args:
        image: the encoded image.
        name: its name.
        classes: the indices of its classes, int (n,).
        unknown: the indices of the classes that are not known of it; None if all labels of the data
            set are known.
        identity: its identity.
    """
    features = {
        IMAGE: tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        NAME: tf.train.Feature(bytes_list=tf.train.BytesList(value=[encode_name(name)])),
        LABELS: tf.train.Feature(int64_list=tf.train.Int64List(value=classes)),
        IDENTITY: tf.train.Feature(int64_list=tf.train.Int64List(value=[identity])),
    }
    if unknown is not None:
        features[UNKNOWN] = tf.train.Feature(int64_list=tf.train.Int64List(value=unknown))
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def parser(
    num_classes: int,
    paths: Sequence[str],
    ends: Sequence[int],
    *,
    has_unknown: bool,
    expected: np.ndarray | None,
) -> Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]]:
    """Returns a function for `tf.data` from records, string (n,), and their places, int64 (n,).

    Args:
        num_classes: the number C of classes.
        paths: the shards of the split.
        ends: for each shard, the place after its last record.
        has_unknown: whether records have unknown labels.
        expected: the identities of all N records of the split, int64 (N,); None if the records have
            none.

    Returns:
        The function. It returns the encoded "image", string (n,), and the "labels", bool (n, C), or
        int8 with −1 for unknown ones. It raises a `tf.errors.InvalidArgumentError` with shard,
        record and name if a record is not the one that belongs in its place.
    """
    encoded_paths = [os.fsencode(path) for path in paths]
    features = {
        IMAGE: tf.io.FixedLenFeature((), tf.string),
        LABELS: tf.io.VarLenFeature(tf.int64),
    }
    if has_unknown:
        features[UNKNOWN] = tf.io.VarLenFeature(tf.int64)
    if expected is not None:
        features |= {
            NAME: tf.io.FixedLenFeature((), tf.string),
            IDENTITY: tf.io.FixedLenFeature((), tf.int64),
        }
        with tf.device("CPU"):
            identity_at = tf.constant(expected)

    def refuse(places: tf.Tensor, is_right: tf.Tensor, names: tf.Tensor) -> tf.Tensor:
        wrong = tf.where(~is_right)[0, 0]
        place = places[wrong]
        shard = tf.searchsorted(tf.constant(ends, tf.int64), place[None], side="right")[0]
        start = tf.gather(tf.constant([0, *ends], tf.int64), shard)
        file = tf.gather(tf.constant(encoded_paths), shard)
        number = tf.strings.as_string(place - start)
        message = tf.strings.join(
            [file, ", record ", number, ", does not belong there: it holds ", names[wrong]]
        )
        with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
            return tf.constant(False)

    def parse(records: tf.Tensor, places: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(records, features)

        def has_class(classes: tf.SparseTensor) -> tf.Tensor:
            cells = tf.stack([classes.indices[:, 0], classes.values], axis=1)
            shape = tf.stack([tf.size(records, tf.int64), num_classes])
            found = tf.scatter_nd(cells, tf.ones_like(classes.values, tf.int32), shape) > 0
            return tf.ensure_shape(found, (None, num_classes))

        dependencies = []
        if expected is not None:
            is_right = parsed[IDENTITY] == tf.gather(identity_at, places)
            check = tf.cond(
                tf.reduce_all(is_right),
                lambda: tf.constant(True),
                lambda: refuse(places, is_right, parsed[NAME]),
            )
            dependencies.append(check)
        with tf.control_dependencies(dependencies):
            image = tf.identity(parsed[IMAGE])
            labels = has_class(parsed[LABELS])
        if has_unknown:
            labels = tf.cast(labels, tf.int8) - tf.cast(has_class(parsed[UNKNOWN]), tf.int8)
        return {"image": image, "labels": labels}

    return parse
