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

    def with_classes(self, class_names: Sequence[str]) -> "LabelledData":
        """The same examples over another list of classes, that of a model.

        Args:
            class_names: all classes that the labels use, and others; any order.

        Raises:
            ValueError: a class that the labels use is not among them.
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
                f"{', '.join(unknown[:20])}; it knows {', '.join(class_names[:20])}"
                f"{', …' if len(class_names) > 20 else ''}"
            )
        known = [i for i, name in enumerate(self.class_names) if name in column]
        target = np.array([column[self.class_names[i]] for i in known], int)

        def moved(labels: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
            cells = labels[:, known].tocoo()
            shape = (labels.shape[0], len(column))
            return scipy.sparse.csr_array((cells.data, (cells.row, target[cells.col])), shape)

        splits = {
            name: dataclasses.replace(examples, labels=moved(examples.labels))
            for name, examples in self.splits.items()
        }
        return dataclasses.replace(self, class_names=tuple(class_names), splits=splits)
