"""Samplers that choose examples by position: uniform, class-aware and class-cycle sampling.

The samplers work on labels alone, before any image is read, and batch t is a pure function of
(seed, t): a run resumes at any step without saved iterator state, and any worker can produce its
share of any batch. They draw a block of many batches at once and split it.

Class-aware re-sampling draws a class uniformly, then an example of it uniformly. Over the examples
this is the distribution P^I(x) = (1/C) Σ_(i: y_i=1) 1/n_i (Eq. 2), which `class_aware_indices`
draws by rejection.

A label that is not known, −1 in integers and NaN in floating-point numbers, is no label to draw an
example by.

References: Wu et al., Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
Datasets, ECCV 2020, section 3.1; Shen, Lin, Huang: Relay Backpropagation for Effective Learning of
Deep Convolutional Neural Networks, ECCV 2016, section 3.3 (class-aware sampling).
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf

from dbl_tf import label_arrays, label_values
from pipelines.sampling.names import NAMES
from pipelines.sampling.permutation import (
    CLASS_ORDER,
    MEMBER_ORDER,
    ORDER,
    PROPOSALS,
    hashed,
    shuffled,
)

# A block is large enough that an op costs more than its launch, and small enough that the first
# batch does not take long.
_DRAWS_PER_BLOCK = 8192
# A uniform float64 of TensorFlow is a multiple of 2^-52, so an example of probability P is drawn
# with a relative error below 2^-50 / P: one in a thousand at this limit.
_MIN_PROBABILITY = 2.0**-40


def uniform_indices(
    num_examples: int, batch_size: int, *, seed: int, start_step: int = 0
) -> tf.data.Dataset:
    """Draws every example once per pass, and each pass in a new random order.

    Batch t holds the places tB … tB + B − 1 of the endless sequence of passes. A batch that spans
    two passes may hold an example more than once.

    Args:
        num_examples: the number N of examples, at least 1.
        batch_size: the number B of examples in a batch, at least 1.
        seed: a 64-bit integer.
        start_step: the number t of the first batch, at least 0.

    Returns:
        An endless dataset of int64 (B,), the positions of the examples in [0, N).

    Raises:
        ValueError: an argument is out of its range.
    """
    num_examples = at_least("num_examples", num_examples, 1)

    def draw(position):
        key = hashed(seed, ORDER, position // num_examples)
        return shuffled(position % num_examples, tf.constant(num_examples, tf.int64), key)

    return _batches(_by_position(draw), batch_size, start_step)


def class_aware_indices(
    labels: Any, batch_size: int, *, seed: int, start_step: int = 0
) -> tf.data.Dataset:
    """Draws a class uniformly and then an example of it uniformly, which gives P^I(x) (Eq. 2).

    The draws are independent. They are made by rejection from a `RejectionTable`, whose set-up is
    linear in the number of examples and labels. Classes without examples do not count in C, and
    examples without labels are never drawn.

    Args:
        labels: the labels, multi-hot (N, C), in a container that `label_arrays.label_array` takes.
        batch_size: the number B of examples in a batch, at least 1.
        seed: a 64-bit integer.
        start_step: the number t of the first batch, at least 0.

    Returns:
        An endless dataset of int64 (B,), the positions of the examples in [0, N).

    Raises:
        ValueError: a label is neither 0 nor 1 nor unknown, there are no labels, or an argument is
            out of its range.
    """
    labels = _label_matrix(labels)
    table = RejectionTable(labels @ class_shares(_class_counts(labels)))

    def draw(block, num_draws):
        key = tf.bitcast(hashed(seed, PROPOSALS, block), tf.int64)
        # With four standard deviations more than needed, a second round is rare.
        num_proposals = int(np.ceil((num_draws + 4 * num_draws**0.5) / table.acceptance_rate))

        def propose(attempt, drawn):
            indices, accepted = table.propose(num_proposals, tf.stack([key, attempt]))
            return attempt + 1, tf.concat([drawn, tf.boolean_mask(indices, accepted)], 0)

        # Keeping the order of the proposals and cutting at the end keeps the draws independent.
        _, drawn = tf.while_loop(
            lambda _, drawn: tf.size(drawn) < num_draws,
            propose,
            (tf.constant(0, tf.int64), tf.zeros((0,), tf.int64)),
            shape_invariants=(tf.TensorShape(()), tf.TensorShape((None,))),
        )
        return drawn[:num_draws]

    return _batches(draw, batch_size, start_step)


def class_cycle_indices(
    labels: Any, batch_size: int, *, seed: int, start_step: int = 0
) -> tf.data.Dataset:
    """Draws from the classes in turn, as the class-aware sampler of Shen et al. (2016) does.

    Each cycle visits every class with examples once, in a new random order. The k-th visit of a
    class takes the k-th element of an endless sequence of passes over its examples, each in a new
    random order. In the long run, the share of an example is P^I(x) as in `class_aware_indices`;
    in the short run, it varies less.

    Args:
        labels: the labels, multi-hot (N, C), in a container that `label_arrays.label_array` takes.
        batch_size: the number B of examples in a batch, at least 1.
        seed: a 64-bit integer.
        start_step: the number t of the first batch, at least 0.

    Returns:
        An endless dataset of int64 (B,), the positions of the examples in [0, N).

    Raises:
        ValueError: a label is neither 0 nor 1 nor unknown, there are no labels, or an argument is
            out of its range.
    """
    columns = _label_matrix(labels).tocsc()
    sizes = np.diff(columns.indptr)
    nonempty = np.flatnonzero(sizes)
    with tf.device("CPU"):
        members = tf.constant(columns.indices, tf.int64)
        first_member = tf.constant(columns.indptr[nonempty], tf.int64)
        class_size = tf.constant(sizes[nonempty], tf.int64)
        num_classes = tf.constant(len(nonempty), tf.int64)

    def draw(position):
        cycle = position // num_classes
        order_key = hashed(seed, CLASS_ORDER, cycle)
        visited = shuffled(position % num_classes, num_classes, order_key)
        # Every cycle visits a class once, so this is its visit number `cycle`.
        size = tf.gather(class_size, visited)
        key = hashed(seed, MEMBER_ORDER, visited, cycle // size)
        place = shuffled(cycle % size, size, key)
        return tf.gather(members, tf.gather(first_member, visited) + place)

    return _batches(_by_position(draw), batch_size, start_step)


def _uniform_of_labels(labels, batch_size, *, seed, start_step=0):
    return uniform_indices(labels.shape[0], batch_size, seed=seed, start_step=start_step)


# The samplers by name. All of them take (labels, batch_size, *, seed, start_step=0).
SAMPLERS: dict[str, Callable[..., tf.data.Dataset]] = dict(
    zip(NAMES, (_uniform_of_labels, class_aware_indices, class_cycle_indices), strict=True)
)
# The samplers that can also draw from a stream of records.
STREAM_SAMPLERS = ("uniform", "class_aware")


def draws_per_epoch(class_counts: Any) -> int:
    """Returns the length of a re-sampled epoch, ⌈C · max(n)/4⌉ draws (section 4.2 of the paper).

    Args:
        class_counts: the numbers n_i of examples of each class, (C,). Classes without examples
            count in C.
    """
    class_counts = checked_counts(class_counts)
    return -(-len(class_counts) * int(class_counts.max()) // 4)


def steps_per_epoch(sampler: str, class_counts: Any, num_examples: int, batch_size: int) -> int:
    """Returns the number of batches in an epoch, ⌊draws/B⌋ but at least 1.

    The draws are N for "uniform", and `draws_per_epoch` for the other samplers.

    Args:
        sampler: a key of `SAMPLERS`.
        class_counts: the numbers n_i of examples of each class, (C,).
        num_examples: the number N of examples.
        batch_size: the number B of examples in a batch.

    Raises:
        ValueError: the sampler is unknown, or a number is out of its range.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {list(SAMPLERS)}, got {sampler!r}")
    batch_size = at_least("batch_size", batch_size, 1)
    num_examples = at_least("num_examples", num_examples, 1)
    draws = num_examples if sampler == "uniform" else draws_per_epoch(class_counts)
    return max(1, draws // batch_size)


class RejectionTable:
    """A table for drawing examples by rejection, which groups them by the power of two of P(x).

    The highest probability of a group bounds all of its probabilities, and is less than twice the
    lowest. A proposal draws a group with probability ∝ size · bound and an element of it uniformly,
    which is accepted with probability P/bound. So at least half of all proposals are accepted,
    whatever the probabilities are.

    A proposal takes one float64: its position on the staircase of the bounds gives the group and
    the element, and its fraction within the element decides whether the proposal is accepted.

    Args:
        probability: the probabilities P(x) ≥ 0, float64 (N,), whose sum is 1. Elements of
            probability 0 are never drawn.

    Attributes:
        acceptance_rate: the expected share of accepted proposals, at least 1/2.

    Raises:
        ValueError: a probability is positive but below 2^-40, which a float64 cannot resolve.
    """

    def __init__(self, probability: np.ndarray) -> None:
        elements = np.flatnonzero(probability)
        exponent = np.frexp(probability[elements])[1].astype(np.int16)
        order = np.argsort(exponent, kind="stable")  # a linear radix sort, for 16-bit keys
        elements = elements[order]
        probability = probability[elements]
        if (rarest := probability.min()) < _MIN_PROBABILITY:
            raise ValueError(
                f"example {elements[probability.argmin()]} has probability {rarest:.3g}, below "
                f"{_MIN_PROBABILITY:.3g}, the least that can be drawn by index: draw from a stream"
            )
        _, first, size = np.unique(exponent[order], return_index=True, return_counts=True)
        bound = np.maximum.reduceat(probability, first)
        end = np.cumsum(size * bound)
        self.acceptance_rate = float(probability.sum() / end[-1])
        # `tf.data` captures eager tensors, whereas constants in a graph are limited to 2 GB.
        with tf.device("CPU"):
            self._elements = tf.constant(elements, tf.int64)
            self._acceptance = tf.constant(probability / np.repeat(bound, size), tf.float64)
            self._end = tf.constant(end, tf.float64)
            self._start = tf.constant(end - size * bound, tf.float64)
            self._bound = tf.constant(bound, tf.float64)
            self._first = tf.constant(first, tf.int64)
            self._last = tf.constant(first + size - 1, tf.int64)

    def propose(self, num_proposals: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Makes independent proposals, of which the accepted ones are draws from P(x).

        Args:
            num_proposals: the number of proposals.
            seed: the seed of the stateless random generator, int64 (2,).

        Returns:
            indices: the positions of the proposed elements, int64 (num_proposals,).
            accepted: whether each is accepted, bool (num_proposals,).
        """
        position = tf.random.stateless_uniform([num_proposals], seed, dtype=tf.float64)
        position *= self._end[-1]
        group = tf.searchsorted(self._end, position, side="right")
        offset = (position - tf.gather(self._start, group)) / tf.gather(self._bound, group)
        place = tf.floor(offset)
        entry = tf.gather(self._first, group) + tf.cast(place, tf.int64)
        # At the very end of a group, rounding may lead one element too far.
        entry = tf.minimum(entry, tf.gather(self._last, group))
        accepted = offset - place < tf.gather(self._acceptance, entry)
        return tf.gather(self._elements, entry), accepted


def _batches(
    draw: Callable[[tf.Tensor, int], tf.Tensor], batch_size: int, start_step: int
) -> tf.data.Dataset:
    """Cuts blocks into batches; `draw(block, num_draws)` is int64 (num_draws,), pure in `block`."""
    batch_size = at_least("batch_size", batch_size, 1)
    start_step = at_least("start_step", start_step, 0)
    steps_per_block = max(1, _DRAWS_PER_BLOCK // batch_size)
    first_block, steps_to_skip = divmod(start_step, steps_per_block)

    def draw_batches(block):
        indices = draw(block, steps_per_block * batch_size)
        return tf.reshape(indices, (steps_per_block, batch_size))

    return (
        tf.data.Dataset.counter(first_block)
        .map(draw_batches, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .unbatch()
        .skip(steps_to_skip)
        .apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    )


def _by_position(draw: Callable[[tf.Tensor], tf.Tensor]) -> Callable[[tf.Tensor, int], tf.Tensor]:
    """Returns the function of a block for a sampler whose draw number p is `draw(p)`."""
    return lambda block, num_draws: draw(block * num_draws + tf.range(num_draws, dtype=tf.int64))


def _label_matrix(labels: Any) -> scipy.sparse.csr_array:
    """Checks labels and returns them as a CSR matrix of ones, in time linear in their number."""
    labels = label_arrays.label_array(labels)
    matrix = scipy.sparse.csr_array(labels, copy=True)
    matrix.sum_duplicates()
    if label_values.can_hold_unknown(matrix.dtype):
        matrix.data[label_values.is_unknown(matrix.data)] = 0
    matrix.eliminate_zeros()
    wrong = np.flatnonzero(matrix.data != 1)
    if wrong.size:
        row = int(np.searchsorted(matrix.indptr, wrong[0], side="right")) - 1
        place = f"row {row}, class {matrix.indices[wrong[0]]}"
        raise label_values.label_error(matrix.data[wrong[0]], place)
    if not matrix.nnz:
        raise ValueError(f"there is nothing to draw: labels of shape {labels.shape} hold no 1")
    return matrix


def _class_counts(labels: scipy.sparse.csr_array) -> np.ndarray:
    return np.bincount(labels.indices, minlength=labels.shape[1])


def class_shares(class_counts: np.ndarray) -> np.ndarray:
    """Returns 1/(C n_i), the part of a label in P^I(x) (Eq. 2); C counts the non-empty classes."""
    shares = np.where(class_counts > 0, 1 / np.maximum(class_counts, 1), 0.0)
    return shares / np.count_nonzero(class_counts)


def checked_counts(class_counts: Any) -> np.ndarray:
    """Returns class counts as an array (C,), after checking them."""
    counts = np.asarray(class_counts)
    if counts.ndim != 1 or not counts.size or counts.min() < 0 or counts.max() < 1:
        raise ValueError(
            "class_counts must be of shape (C,), not negative, with a positive one; got "
            f"{np.array2string(counts, threshold=10)}"
        )
    return counts


def at_least(name: str, value: int, lowest: int) -> int:
    """Returns the value as an integer, after checking that it is not below `lowest`."""
    try:
        value = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None
    if value < lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}")
    return value
