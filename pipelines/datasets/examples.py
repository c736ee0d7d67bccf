"""The common form of every data set: encoded images by position, labels as a sparse matrix."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.sparse
import tensorflow as tf


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Labelled images of one split, in a fixed order.

    Attributes:
        names: N strings; what messages and prediction files call each image (its path, mostly).
        labels: bool (N, C), CSR.
        read: maps a position, int64 (), to the encoded bytes of that image, string (); runs inside
            `tf.data`.
    """

    names: Sequence[str]
    labels: scipy.sparse.csr_array
    read: Callable[[tf.Tensor], tf.Tensor]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, positions: np.ndarray) -> "Examples":
        """The examples at these positions, in their order."""
        table = tf.constant(np.asarray(positions, np.int64))
        return Examples(
            names=[self.names[i] for i in positions],
            labels=self.labels[positions],
            read=lambda position: self.read(table[position]),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledData:
    """A data set: its splits over one list of classes.

    Attributes:
        class_names: C names, in the order of the label columns.
        splits: "train", "val" and "test", those that the data set has.
        flip_probability: how often a training image may be mirrored; 0 where mirroring changes
            what a picture shows.
    """

    class_names: tuple[str, ...]
    splits: Mapping[str, Examples]
    flip_probability: float = 0.5
