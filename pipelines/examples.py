"""The common form of all data sets: images, by position or as a stream, or features; and labels."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf
from absl import logging

from dbl_tf.messages import did_you_mean, first_few

# Small enough that several blocks can be read in parallel.
_BLOCK = 32
# Features of so many examples are read at a time where all of them are looked at.
_ROWS_PER_BLOCK = 4096

Read = Callable[[tf.Tensor], tf.Tensor]
Stream = Callable[[int], tf.data.Dataset]


def _not_by_position(position: tf.Tensor) -> tf.Tensor:
    raise TypeError("these examples are a stream and cannot be read by position")


def _not_a_stream(start: int) -> tf.data.Dataset:
    raise TypeError("these examples are read by position and are not a stream")


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureRows:
    """Rows of an array of features, which may be memory-mapped and larger than the memory.

    Attributes:
        array: the array (M, F) of numbers.
        rows: the N positions in it, int64.
    """

    array: np.ndarray
    rows: np.ndarray

    @classmethod
    def of(cls, array: np.ndarray) -> "FeatureRows":
        """Returns all rows of an array."""
        return cls(array, np.arange(len(array)))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_features(self) -> int:
        """The number F of features."""
        return self.array.shape[1]

    def __getitem__(self, positions: Any) -> np.ndarray:
        """Returns the features at positions among the N, float32 (n, F)."""
        return np.asarray(self.array[self.rows[positions]], np.float32)

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the means and the standard deviations of the features, float64 (F,) each.

        They are computed a block at a time, around the means of the blocks (Chan et al., 1983), so
        that features that are far from 0 keep their digits.
        """
        count, means, squares = 0, np.zeros(self.num_features), np.zeros(self.num_features)
        for start in range(0, len(self), _ROWS_PER_BLOCK):
            block = self[slice(start, start + _ROWS_PER_BLOCK)].astype(np.float64)
            block_means = block.mean(axis=0)
            step, total = block_means - means, count + len(block)
            squares += np.square(block - block_means).sum(axis=0)
            squares += np.square(step) * (count * len(block) / total)
            means += step * (len(block) / total)
            count = total
        return means, np.sqrt(squares / max(count, 1))

    def take(self, positions: np.ndarray) -> "FeatureRows":
        """Returns the rows at positions among the N, without reading them."""
        return FeatureRows(self.array, self.rows[positions])

    def reader(self) -> Callable[[tf.Tensor], tf.Tensor]:
        """Returns a function from positions, int64 (n,), to features (n, F), for `tf.data`."""
        shape = (None, self.num_features)
        if isinstance(self.array, np.memmap):
            # TensorFlow has no operation that reads some rows of a file.
            return lambda positions: tf.ensure_shape(
                tf.numpy_function(self.__getitem__, [positions], tf.float32), shape
            )
        with tf.device("CPU"):
            array = tf.constant(self.array)
            rows = tf.constant(self.rows, tf.int64)
        return lambda positions: tf.cast(tf.gather(array, tf.gather(rows, positions)), tf.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Labeled images of one split, or features in their place, in a fixed order.

    Images are read by position with `read` or, where that takes too long, as a stream with
    `stream`. Then `read` serves to look at single images. A function that the examples do not have
    raises a TypeError; where they are features, both do.

    Attributes:
        names: the N names by which messages and prediction files call the images, such as their
            paths.
        labels: the labels that the examples are known to have, bool (N, C), CSR.
        read: a function from a position, int64 (), to the encoded bytes of the image, string (). It
            runs inside `tf.data`.
        files: the N paths of the files that hold the images, where one file may hold several; empty
            if the images are made in memory.
        reads_blocks: whether `read` also maps positions (n,) to images (n,), which is faster than
            reading one by one.
        stream: a function from a position to a dataset of the examples from there to the end, as
            dicts of the encoded "image", string (), and its "labels", bool (C,), or int8 (C,) with
            −1 for unknown ones. It reads little or nothing of the examples before the position.
        features: the features of the examples where these are given and not images; else None.
        whole: the examples of which these are a part that `divide` has made, and the positions in
            it; None if they are no such part. What is computed for the whole serves all its parts.
        unknown: the labels of which it is not known whether the examples have them, bool (N, C),
            CSR; None if all are known.
    """

    names: Sequence[str]
    labels: scipy.sparse.csr_array
    read: Read = _not_by_position
    files: Sequence[str] = ()
    reads_blocks: bool = False
    stream: Stream = _not_a_stream
    features: FeatureRows | None = None
    whole: "tuple[Examples, np.ndarray] | None" = None
    unknown: scipy.sparse.csr_array | None = None

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def targets(self) -> scipy.sparse.csr_array:
        """The labels with those that are not known: int8 (N, C), CSR, 1, or −1 where unknown.

        If all labels are known, these are `labels` themselves.
        """
        if self.unknown is None:
            return self.labels
        return (self.labels.astype(np.int8) - self.unknown.astype(np.int8)).tocsr()

    @property
    def num_unknown(self) -> int:
        """The number of labels, of all examples together, that are not known."""
        return 0 if self.unknown is None else self.unknown.nnz

    @property
    def unknown_counts(self) -> np.ndarray:
        """The number of examples of which it is not known whether they have a class, int64 (C,)."""
        if self.unknown is None:
            return np.zeros(self.labels.shape[1], np.int64)
        return self.unknown.sum(axis=0, dtype=np.int64)

    @property
    def num_unlabeled(self) -> int:
        """The number of examples without any known label."""
        return int(np.count_nonzero(np.diff(self.labels.indptr) == 0))

    @property
    def is_stream(self) -> bool:
        """Whether the examples are images that cannot be read by position."""
        return self.stream is not _not_a_stream

    def label_checksum(self) -> int:
        """Returns a checksum of the labels and of their order."""
        parts = [self.labels.shape, self.labels.indptr, self.labels.indices]
        if self.unknown is not None:
            parts += [self.unknown.indptr, self.unknown.indices]
        return zlib.crc32(np.concatenate(parts).astype(np.int64).tobytes())

    def encoded(self) -> tf.data.Dataset:
        """Returns the encoded bytes of all images in their order, string ()."""
        if self.is_stream:
            return self.stream(0).map(lambda example: example["image"])
        positions = tf.data.Dataset.range(len(self))
        if self.reads_blocks:
            blocks = positions.batch(_BLOCK).map(self.read, num_parallel_calls=tf.data.AUTOTUNE)
            return blocks.unbatch()
        return positions.map(self.read, num_parallel_calls=tf.data.AUTOTUNE)

    def take(self, positions: np.ndarray) -> "Examples":
        """Returns the examples at these positions, in the order of the positions.

        Taking examples from a stream reads the examples between them too.

        Raises:
            ValueError: the positions are not in rising order, and the examples are a stream.
        """
        positions = np.asarray(positions, np.int64)
        part = dataclasses.replace(
            self,
            names=[self.names[i] for i in positions],
            labels=self.labels[positions],
            unknown=None if self.unknown is None else self.unknown[positions],
            files=[self.files[i] for i in positions] if self.files else (),
            features=None if self.features is None else self.features.take(positions),
            whole=None,
        )
        if self.features is not None:
            return part
        table = tf.constant(positions)
        part = dataclasses.replace(
            part, read=lambda position: self.read(tf.gather(table, position))
        )
        if not self.is_stream:
            return part
        if np.any(np.diff(positions) <= 0):
            raise ValueError("examples of a stream can only be taken in their own order, each once")
        return dataclasses.replace(part, stream=lambda start: self._pick(positions[start:]))

    def divide(self, is_second: np.ndarray) -> "tuple[Examples, Examples]":
        """Divides the examples in two parts, each in their order.

        Args:
            is_second: whether an example is in the second part, bool (N,).
        """
        whole, positions = self.whole or (self, np.arange(len(self)))

        def part(own: np.ndarray) -> Examples:
            return dataclasses.replace(self.take(own), whole=(whole, positions[own]))

        return part(np.flatnonzero(~is_second)), part(np.flatnonzero(is_second))

    def _pick(self, positions: np.ndarray) -> tf.data.Dataset:
        if not len(positions):
            return self.stream(0).take(0)
        first, last = int(positions[0]), int(positions[-1])
        is_picked = np.zeros(last + 1 - first, bool)
        is_picked[positions - first] = True
        with tf.device("CPU"):
            is_picked = tf.constant(is_picked)
        return (
            self.stream(first)
            .take(last + 1 - first)
            .enumerate()
            .filter(lambda position, _: tf.gather(is_picked, position))
            .map(lambda _, example: example)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledData:
    """A data set: its splits, which share one list of classes.

    Attributes:
        class_names: the C class names, in the order of the label columns.
        splits: the splits that the data set has, by name: "train", "val" and "test".
        flip_probability: the probability with which training images should be mirrored; 0 if
            mirroring changes what an image shows.
        origin: what the data were read from, in a few words for people, such as "list layout".
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, Examples]
    flip_probability: float = 0.5
    origin: str = ""

    def with_classes(self, class_names: Sequence[str]) -> "LabelledData":
        """Returns the same examples with the classes of a model.

        Args:
            class_names: the classes of the model, in any order. They must include all classes that
                the labels use.

        Raises:
            ValueError: the model does not have a class that the labels use.
        """
        column = {name: i for i, name in enumerate(class_names)}
        unknown = [
            name
            for i, name in enumerate(self.class_names)
            if name not in column and any(s.labels[:, [i]].sum() for s in self.splits.values())
        ]
        if unknown:
            raise ValueError(
                f"{len(unknown)} classes of the data are not among the {len(column)} of the model: "
                f"{first_few(unknown)}; it knows {first_few(class_names)}"
                f"{did_you_mean(unknown[0], class_names)}"
            )
        known = [i for i, name in enumerate(self.class_names) if name in column]
        target = np.array([column[self.class_names[i]] for i in known], int)

        def moved_columns(matrix: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
            cells = matrix[:, known].tocoo()
            shape = (matrix.shape[0], len(column))
            return scipy.sparse.csr_array((cells.data, (cells.row, target[cells.col])), shape)

        def moved(examples: Examples) -> Examples:
            examples_moved = dataclasses.replace(
                examples,
                labels=moved_columns(examples.labels),
                unknown=None if examples.unknown is None else moved_columns(examples.unknown),
            )
            if not examples.is_stream:
                return examples_moved
            return dataclasses.replace(
                examples_moved,
                stream=lambda start: examples.stream(start).map(move_streamed),
            )

        def move_streamed(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            found = tf.gather(example["labels"], known)
            return example | {"labels": tf.scatter_nd(target[:, None], found, (len(column),))}

        splits = {name: moved(examples) for name, examples in self.splits.items()}
        return dataclasses.replace(self, class_names=tuple(class_names), splits=splits)


def set_aside_val(data: LabelledData, fraction: float, *, seed: int) -> LabelledData:
    """Moves a fraction of the train examples to a new split "val".

    The split is stratified: the examples are sorted by their rarest class, in random order within a
    class, and every 1/fraction-th is taken, so that each class loses its share to within one
    example. A class that would be left without train examples gets one back from val.

    Args:
        data: a data set with a split "train" and no split "val".
        fraction: the fraction of the train examples, in (0, 1).
        seed: the seed of the choice, which depends on nothing else but the labels and the fraction.

    Raises:
        ValueError: there is a split "val" already, or no example would be set aside.
    """
    if "val" in data.splits:
        raise ValueError("there is a val split already, so val_fraction must not be given")
    train = data.splits["train"]
    counts = train.labels.sum(axis=0, dtype=np.int64)
    random = np.random.default_rng(seed)
    # Class c of rank 0 has the fewest examples; examples without labels come last.
    rank = np.empty(len(counts), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(counts))
    rarest = np.full(len(train), len(counts))
    np.minimum.at(
        rarest,
        np.repeat(np.arange(len(train)), np.diff(train.labels.indptr)),
        rank[train.labels.indices],
    )
    order = np.lexsort((random.permutation(len(train)), rarest))

    num_val = min(round(len(train) * fraction), len(train) - 1)
    if num_val:
        chosen = (np.arange(num_val) + random.random()) * (len(train) / num_val)
        in_val = np.zeros(len(train), bool)
        in_val[order[chosen.astype(np.int64)]] = True
        columns = train.labels.tocsc()
        left = train.labels[~in_val].sum(axis=0, dtype=np.int64)
        for c in np.flatnonzero((left == 0) & (counts > 0)):
            holders = columns.indices[columns.indptr[c] : columns.indptr[c + 1]]
            if in_val[holders].all():  # an earlier class may have brought one back
                in_val[random.choice(holders)] = False
        num_val = int(np.count_nonzero(in_val))
    if not num_val:
        raise ValueError(
            f"val_fraction = {fraction} sets nothing aside: there are {len(train)} train images, "
            "and every class keeps one; give a larger fraction, or data with a val split"
        )
    logging.info("set aside %s of %s train images as val", f"{num_val:,}", f"{len(train):,}")
    others = {name: split for name, split in data.splits.items() if name != "train"}
    rest, val = train.divide(in_val)
    return dataclasses.replace(data, splits={"train": rest, "val": val, **others})
