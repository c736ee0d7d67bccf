"""Which training examples each batch holds: uniform, class-aware and class-cycle sampling.

The samplers work on labels alone, before any image is read, and batch t is a pure function of
(seed, t): a run resumes at any step without saved iterator state, and any worker can produce its
share of any batch. They draw a block of many batches at once and cut it.

Class-aware re-sampling draws a class uniformly, then an example of it uniformly. Over the examples
this is the distribution P^I(x) = (1/C) Σ_(i: y_i=1) 1/n_i (Eq. 2), which `class_aware_indices`
draws by rejection, and which `class_aware_stream` imposes on records that come in file order.
`uniform_stream` only mixes such records.

References: Wu et al., Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
Datasets, ECCV 2020, section 3.1; Shen, Lin, Huang: Relay Backpropagation for Effective Learning of
Deep Convolutional Neural Networks, ECCV 2016, section 3.3 (class-aware sampling).
"""

import functools
import itertools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf

from dbl_tf import statistics

# Draws computed in one go: enough that a TensorFlow op costs more than its launch, few enough that
# the first batch comes at once.
_DRAWS_PER_BLOCK = 8192

_DRAWS_COPIED_AT_ONCE = 32

# Records of a stream that are mixed at a time.
SHUFFLE_BUFFER = 4096

# A uniform float64 of TensorFlow is a multiple of 2^-52, so an example of probability P is drawn
# with a relative error below 2^-50 / P: one in a thousand at this limit.
_MIN_PROBABILITY = 2.0**-40

# Each round of the shuffle halves what is left of the starting order: one part in a million stays.
_SHUFFLE_ROUNDS = 20

# Streams of random numbers that one seed must keep apart.
_PROPOSALS, _ORDER, _CLASS_ORDER, _MEMBER_ORDER, _COPIES, _PHASES, _OFFSETS = range(7)


def uniform_indices(
    num_examples: int, batch_size: int, *, seed: int, start_step: int = 0
) -> tf.data.Dataset:
    """Every example once per pass, each pass in an order of its own.

    Batch t holds the places tB … tB + B − 1 of the endless sequence of passes, so a batch may lie
    across two of them, and holds an example more than once only where B > N/2 or at such a border.

    Args:
        num_examples: N, at least 1.
        batch_size: B, at least 1.
        seed: 64-bit integer.
        start_step: the t of the first batch, at least 0.

    Returns:
        An endless dataset of int64 (B,), example indices in [0, N).

    Raises:
        ValueError: an argument out of its range.
    """
    num_examples = _at_least("num_examples", num_examples, 1)

    def draw(position):
        key = _hashed(seed, _ORDER, position // num_examples)
        return _shuffled(position % num_examples, tf.constant(num_examples, tf.int64), key)

    return _batches(_by_position(draw), batch_size, start_step)


def class_aware_indices(
    labels: Any, batch_size: int, *, seed: int, start_step: int = 0
) -> tf.data.Dataset:
    """Independent draws from P^I(x): a class uniformly, an example of it uniformly (Eq. 2).

    Drawn by rejection from a table of the examples (`RejectionTable`). Setting up is linear in the
    number of examples and labels. Classes without examples are left out of C, and examples without
    labels are never drawn.

    Args:
        labels: multi-hot (N, C), zeros and ones, dense or `scipy.sparse`.
        batch_size: B, at least 1.
        seed: 64-bit integer.
        start_step: the t of the first batch, at least 0.

    Returns:
        An endless dataset of int64 (B,), example indices in [0, N).

    Raises:
        ValueError: labels that are not zeros and ones or hold no label at all, or an argument out
            of its range.
    """
    labels = _label_matrix(labels)
    table = RejectionTable(labels @ _class_shares(_class_counts(labels)))

    def draw(block, num_draws):
        key = tf.bitcast(_hashed(seed, _PROPOSALS, block), tf.int64)
        # Four standard deviations more than the block needs: a second round is the exception.
        num_proposals = int(np.ceil((num_draws + 4 * num_draws**0.5) / table.acceptance_rate))

        def propose(attempt, drawn):
            indices, accepted = table.propose(num_proposals, tf.stack([key, attempt]))
            return attempt + 1, tf.concat([drawn, tf.boolean_mask(indices, accepted)], 0)

        # In the order of proposal and cut at the end, the accepted ones stay independent draws.
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
    """The cyclic class-aware sampler of Shen et al. (2016).

    Each cycle visits every class that has examples once, in an order of its own; the k-th visit of
    a class takes the k-th element of an endless sequence of passes over its examples, each pass in
    an order of its own. An example's long-term share is P^I(x) as in `class_aware_indices`, with
    less variance in the short run.

    Args:
        labels: multi-hot (N, C), zeros and ones, dense or `scipy.sparse`.
        batch_size: B, at least 1.
        seed: 64-bit integer.
        start_step: the t of the first batch, at least 0.

    Returns:
        An endless dataset of int64 (B,), example indices in [0, N).

    Raises:
        ValueError: labels that are not zeros and ones or hold no label at all, or an argument out
            of its range.
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
        order_key = _hashed(seed, _CLASS_ORDER, cycle)
        visited = _shuffled(position % num_classes, num_classes, order_key)
        # A class is visited once a cycle: this is its visit number `cycle`.
        size = tf.gather(class_size, visited)
        key = _hashed(seed, _MEMBER_ORDER, visited, cycle // size)
        place = _shuffled(cycle % size, size, key)
        return tf.gather(members, tf.gather(first_member, visited) + place)

    return _batches(_by_position(draw), batch_size, start_step)


def _uniform_of_labels(labels, batch_size, *, seed, start_step=0):
    return uniform_indices(labels.shape[0], batch_size, seed=seed, start_step=start_step)


# Samplers by name, all called as (labels, batch_size, *, seed, start_step=0).
SAMPLERS: dict[str, Callable[..., tf.data.Dataset]] = {
    "uniform": _uniform_of_labels,
    "class_aware": class_aware_indices,
    "class_cycle": class_cycle_indices,
}
NAMES = tuple(SAMPLERS)


# Samplers of SAMPLERS that also draw from records in file order.
STREAM_SAMPLERS = ("uniform", "class_aware")


def draws_per_epoch(class_counts: Any) -> int:
    """The length of a re-sampled epoch, ⌈C · max(n)/4⌉ draws (section 4.2 of the paper).

    Args:
        class_counts: (C,), n_i; classes without examples count in C.
    """
    class_counts = _checked_counts(class_counts)
    return -(-len(class_counts) * int(class_counts.max()) // 4)


def steps_per_epoch(sampler: str, class_counts: Any, num_examples: int, batch_size: int) -> int:
    """Batches of an epoch: ⌊draws/B⌋, draws being N for "uniform", else `draws_per_epoch`.

    Args:
        sampler: a key of `SAMPLERS`.
        class_counts: (C,), n_i.
        num_examples: N.
        batch_size: B.

    Returns:
        At least 1.

    Raises:
        ValueError: an unknown sampler, or a number out of its range.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {list(SAMPLERS)}, got {sampler!r}")
    batch_size = _at_least("batch_size", batch_size, 1)
    num_examples = _at_least("num_examples", num_examples, 1)
    draws = num_examples if sampler == "uniform" else draws_per_epoch(class_counts)
    return max(1, draws // batch_size)


class RejectionTable:
    """Examples grouped by the power of two of their probability, to draw from it by rejection.

    The highest probability of a group, less than twice its lowest, bounds all of them. Proposals
    are uniform under the staircase of these bounds: a group with probability ∝ size · bound, an
    element of it uniformly, accepted with probability P/bound. So at least half of the proposals
    are accepted whatever the probabilities.

    One float64 serves a proposal: its position on the staircase gives group and element, and the
    fraction left within the element decides the acceptance.

    Args:
        probability: float64 (N,), P(x) ≥ 0; sums to 1. Elements of probability 0 are never drawn.

    Attributes:
        acceptance_rate: the share of proposals accepted in the long run, at least 1/2.

    Raises:
        ValueError: a positive probability below 2^-40, which a float64 does not resolve.
    """

    def __init__(self, probability: np.ndarray) -> None:
        elements = np.flatnonzero(probability)
        exponent = np.frexp(probability[elements])[1].astype(np.int16)
        order = np.argsort(exponent, kind="stable")  # a radix sort for 16-bit keys: linear
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
        # Eager tensors that tf.data functions capture: constants in a graph end at 2 GB.
        with tf.device("CPU"):
            self._elements = tf.constant(elements, tf.int64)
            self._acceptance = tf.constant(probability / np.repeat(bound, size), tf.float64)
            self._end = tf.constant(end, tf.float64)
            self._start = tf.constant(end - size * bound, tf.float64)
            self._bound = tf.constant(bound, tf.float64)
            self._first = tf.constant(first, tf.int64)
            self._last = tf.constant(first + size - 1, tf.int64)

    def propose(self, num_proposals: int, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Independent proposals; the accepted ones are draws from the probability.

        Args:
            num_proposals: how many.
            seed: int64 (2,), of the stateless random generator.

        Returns:
            indices: int64 (num_proposals,).
            accepted: bool (num_proposals,).
        """
        position = tf.random.stateless_uniform([num_proposals], seed, dtype=tf.float64)
        position *= self._end[-1]
        group = tf.searchsorted(self._end, position, side="right")
        offset = (position - tf.gather(self._start, group)) / tf.gather(self._bound, group)
        place = tf.floor(offset)
        entry = tf.gather(self._first, group) + tf.cast(place, tf.int64)
        # At a group's very end rounding may point one element too far.
        entry = tf.minimum(entry, tf.gather(self._last, group))
        accepted = offset - place < tf.gather(self._acceptance, entry)
        return tf.gather(self._elements, entry), accepted


def class_aware_stream(
    records: tf.data.Dataset,
    class_counts: Any,
    num_examples: int,
    *,
    seed: int,
    draws_per_record: float = 1.0,
    shuffle_buffer: int = SHUFFLE_BUFFER,
    labels_key: str = "labels",
    start_draw: int = 0,
    labels_alone: tf.data.Dataset | None = None,
    records_from: Callable[[int], tf.data.Dataset] | None = None,
) -> tf.data.Dataset:
    """Class-aware re-sampling of records that are read in file order, pass after pass.

    A record is passed on K times in a pass, K = ⌊w⌋ or ⌊w⌋ + 1 with mean w = ρ N P^I(x), so that
    the draws follow Eq. 2. K is a pure function of (seed, pass, place in the pass). Only class
    counts and N need to be known beforehand; each record is read once a pass.

    The records of a pass are taken in windows of at most `shuffle_buffer` records, and the D draws
    of a window come in random order, a pure function of (seed, pass, window), in which the copies
    of a record are spread evenly: two copies of a record with K of them lie more than D/K − G + 1
    draws apart, G being the number of different positive K in the window. D is about ρ times the
    records of the window: where it is at least K (B + G), the copies lie in different batches of B.
    Across the border of two passes no distance is kept.

    Args:
        records: one pass, in a fixed order: dicts (of any nesting) of tensors whose shapes agree
            between records, so of images still encoded. `labels_key` holds multi-hot (C,).
        class_counts: (C,), n_i of the whole training set.
        num_examples: N of the whole training set, also where `records` is one worker's share.
        seed: 64-bit integer.
        draws_per_record: ρ, the draws wanted per record read, over a pass in the mean.
        shuffle_buffer: most records in a window; up to two windows are held in memory.
        labels_key: the key of the labels.
        start_draw: how many draws to leave out. They are counted by reading the labels of at most
            one pass; the windows left out are read and not copied into draws.
        labels_alone: the labels of one pass in the order of `records`, so that counting reads no
            record.
        records_from: gives the rest of the pass from a record on, without reading those before it.

    Returns:
        An endless dataset of records, in the structure of `records`. Records without labels never
        come. While it is iterated, a label that is neither 0 nor 1, a label of a class with count
        0, and a pass without any label are errors.

    Raises:
        ValueError: an argument out of its range, records without labels of shape (C,), or, where
            `start_draw` is positive, a pass without any label.
    """
    class_counts = _checked_counts(class_counts)
    num_examples = _at_least("num_examples", num_examples, 1)
    shuffle_buffer = _at_least("shuffle_buffer", shuffle_buffer, 1)
    start_draw = _at_least("start_draw", start_draw, 0)
    if class_counts.max() > num_examples:
        raise ValueError(f"a class count of {class_counts.max()} exceeds {num_examples} examples")
    if not 0 < draws_per_record < float("inf"):
        raise ValueError(f"draws_per_record must be positive and finite, got {draws_per_record}")
    spec = records.element_spec
    if not isinstance(spec, dict) or labels_key not in spec:
        raise ValueError(f"records must be dicts with the key {labels_key!r}, found {spec}")
    if not spec[labels_key].shape.is_compatible_with(class_counts.shape):
        raise ValueError(
            f"records hold labels of shape {spec[labels_key].shape}, class_counts has "
            f"{len(class_counts)} classes"
        )
    window_size = _window_size(num_examples, shuffle_buffer)
    with tf.device("CPU"):
        mean_copies = tf.constant(
            draws_per_record * num_examples * _class_shares(class_counts), tf.float64
        )

    def weights(labels):
        known = (labels == tf.zeros_like(labels)) | (
            (labels == tf.ones_like(labels)) & (mean_copies > 0)
        )
        wrong = tf.where(~known)
        message = "labels must be 0 or 1, and 1 only in classes whose count is positive; found "
        check = tf.debugging.Assert(
            tf.equal(tf.size(wrong), 0),
            [message, tf.gather_nd(labels, wrong), "at (record of the window, class)", wrong],
        )
        with tf.control_dependencies([check]):
            return tf.linalg.matvec(tf.cast(labels, tf.float64), mean_copies)

    def copies(pass_, window, weight):
        place = window * window_size + tf.range(tf.size(weight, tf.int64))
        chance = _unit_interval(_hashed(seed, _COPIES, pass_, place))
        return tf.cast(tf.floor(weight + chance), tf.int64)

    first_pass = first_window = first_draw = 0
    if start_draw:
        if labels_alone is None:
            labels_alone = records.map(lambda record: record[labels_key])
        first_pass, first_window, first_draw = _find_draw(
            labels_alone.batch(window_size).map(weights),
            lambda *of_window: tf.reduce_sum(copies(*of_window)),
            start_draw,
        )

    def check_pass(has_labels, item):
        _, window, batch = item
        check = tf.debugging.Assert(
            (window > 0) | has_labels, ["no record of a whole pass holds a label"]
        )
        with tf.control_dependencies([check]):
            has_labels = ((window > 0) & has_labels) | tf.reduce_any(
                tf.cast(batch[labels_key], tf.bool)
            )
        return has_labels, item

    def order_draws(pass_, window, batch):
        num_copies = copies(pass_, window, weights(batch[labels_key]))
        return _spread_copies(num_copies, functools.partial(_hashed, seed), pass_, window)

    windows = _windows(records, window_size, first_pass, first_window, records_from)
    return _draw_from_windows(
        windows.scan(tf.constant(True), check_pass),
        order_draws,
        first_pass,
        first_window,
        first_draw,
    )


def uniform_stream(
    records: tf.data.Dataset,
    num_examples: int,
    *,
    seed: int,
    shuffle_buffer: int = SHUFFLE_BUFFER,
    start_draw: int = 0,
    records_from: Callable[[int], tf.data.Dataset] | None = None,
) -> tf.data.Dataset:
    """Records that are read in file order, pass after pass, each once a pass.

    The records of a pass are taken in windows of at most `shuffle_buffer` records, and those of a
    window come in random order, a pure function of (seed, pass, window). What windows hold is the
    same in every pass, so that the files themselves should be well mixed.

    Args:
        records: one pass, in a fixed order: tensors, in any nesting, whose shapes agree between
            records, so images still encoded.
        num_examples: how many records there are.
        seed: 64-bit integer.
        shuffle_buffer: most records in a window; up to two windows are held in memory.
        start_draw: how many draws to leave out.
        records_from: gives the rest of the pass from a record on, without reading those before it.

    Returns:
        An endless dataset of records, in the structure of `records`.

    Raises:
        ValueError: an argument out of its range.
    """
    num_examples = _at_least("num_examples", num_examples, 1)
    shuffle_buffer = _at_least("shuffle_buffer", shuffle_buffer, 1)
    start_draw = _at_least("start_draw", start_draw, 0)
    window_size = _window_size(num_examples, shuffle_buffer)
    first_pass, first_record = divmod(start_draw, num_examples)
    first_window, first_draw = divmod(first_record, window_size)

    def order_draws(pass_, window, batch):
        once = tf.ones(tf.shape(tf.nest.flatten(batch)[0])[:1], tf.int64)
        return _spread_copies(once, functools.partial(_hashed, seed), pass_, window)

    windows = _windows(records, window_size, first_pass, first_window, records_from)
    return _draw_from_windows(windows, order_draws, first_pass, first_window, first_draw)


def _window_size(num_examples: int, shuffle_buffer: int) -> int:
    """Windows of one size: a small one at the end would mix few records and keep copies close."""
    num_windows = -(-num_examples // shuffle_buffer)
    return -(-num_examples // num_windows)


def _windows(
    records: tf.data.Dataset,
    window_size: int,
    first_pass: int,
    first_window: int,
    records_from: Callable[[int], tf.data.Dataset] | None,
) -> tf.data.Dataset:
    """Endless (pass, window, records of the window), from a window on."""
    rest = (records_from or records.skip)(first_window * window_size)
    first = rest.batch(window_size).enumerate(first_window)
    others = records.batch(window_size).enumerate().repeat()

    def number_pass(pass_, item):
        window, batch = item
        pass_ += tf.cast(window == 0, tf.int64)
        return pass_, (pass_, window, batch)

    pass_before = first_pass - 1 if first_window == 0 else first_pass
    return first.concatenate(others).scan(tf.constant(pass_before, tf.int64), number_pass)


def _draw_from_windows(
    windows: tf.data.Dataset,
    order_draws: Callable[[tf.Tensor, tf.Tensor, Any], tf.Tensor],
    first_pass: int,
    first_window: int,
    first_draw: int,
) -> tf.data.Dataset:
    """The records of each window in the order, int64 rows of the window, that is drawn for it."""

    def order(pass_, window, batch):
        rows = order_draws(pass_, window, batch)
        is_first = (pass_ == first_pass) & (window == first_window)
        return rows[tf.where(is_first, tf.constant(first_draw, tf.int64), 0) :], batch

    def draws(rows, batch):
        # A few at a time: one by one would cost more launches, all at once copy the window.
        return (
            tf.data.Dataset.from_tensor_slices(rows)
            .batch(_DRAWS_COPIED_AT_ONCE)
            .map(lambda row: tf.nest.map_structure(lambda column: tf.gather(column, row), batch))
            .unbatch()
        )

    return (
        windows.map(order)
        .prefetch(1)
        .flat_map(draws)
        .apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
    )


def _find_draw(
    weights: tf.data.Dataset, count_draws: Callable, start_draw: int
) -> tuple[int, int, int]:
    """Pass, window and place in the window's order of a draw; reads the first pass at most once."""
    count_draws = tf.function(
        count_draws,
        input_signature=[
            tf.TensorSpec((), tf.int64),
            tf.TensorSpec((), tf.int64),
            tf.TensorSpec((None,), tf.float64),
        ],
    )
    left, windows = start_draw, []
    for pass_ in itertools.count():
        for window, weight in enumerate(windows if pass_ else weights):
            with tf.device("CPU"):  # where tf.data counts them too
                num_draws = int(count_draws(pass_, window, weight))
            if left < num_draws:
                return pass_, window, left
            left -= num_draws
            if pass_ == 0:
                windows.append(weight)
        if not any(tf.reduce_any(weight > 0) for weight in windows):
            raise ValueError(
                f"none of the records of a pass holds a label ({len(windows)} windows)"
            )


def _spread_copies(
    num_copies: tf.Tensor, hashed: Callable[..., tf.Tensor], pass_: tf.Tensor, window: tf.Tensor
) -> tf.Tensor:
    """A random order of a window's draws that keeps copies apart; int64 (D,), rows of the window.

    Copy k of a record that has K of them is given the time (k + v)/K, 0 ≤ v < 1, and the draws are
    sorted by time. Between two such copies, 1/K apart, lie D/K draws in the mean; to have hardly
    fewer in every case, the M records with the same K share a regular grid of 1/(K M): their
    phases v are a random permutation of (0, …, M − 1)/M with one random offset.
    """
    num_records = tf.size(num_copies, tf.int64)
    # Random order within the records of equal K, then by K: the place in it is the permutation.
    shuffled = tf.argsort(_unit_interval(hashed(_PHASES, pass_, window, tf.range(num_records))))
    order = tf.gather(shuffled, tf.argsort(tf.gather(num_copies, shuffled), stable=True))
    by_copies = tf.gather(num_copies, order)
    begin = tf.searchsorted(by_copies, by_copies, side="left", out_type=tf.int64)
    end = tf.searchsorted(by_copies, by_copies, side="right", out_type=tf.int64)
    rank = tf.cast(tf.range(num_records) - begin, tf.float64)
    offset = _unit_interval(hashed(_OFFSETS, pass_, window, by_copies))
    phase = (rank + offset) / tf.cast(end - begin, tf.float64)

    row = tf.repeat(tf.cast(order, tf.int64), by_copies)
    first_draw = tf.repeat(tf.cumsum(by_copies, exclusive=True), by_copies)
    copy = tf.cast(tf.range(tf.size(row, tf.int64)) - first_draw, tf.float64)
    time = (copy + tf.repeat(phase, by_copies)) / tf.cast(
        tf.repeat(by_copies, by_copies), tf.float64
    )
    return tf.gather(row, tf.argsort(time, stable=True))


def _batches(
    draw: Callable[[tf.Tensor, int], tf.Tensor], batch_size: int, start_step: int
) -> tf.data.Dataset:
    """Cuts blocks into batches: `draw(block, num_draws)` is int64 (num_draws,), pure in `block`."""
    batch_size = _at_least("batch_size", batch_size, 1)
    start_step = _at_least("start_step", start_step, 0)
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
    """A block of a sampler whose draw number p is `draw(p)`."""
    return lambda block, num_draws: draw(block * num_draws + tf.range(num_draws, dtype=tf.int64))


def _shuffled(index: tf.Tensor, size: tf.Tensor, key: tf.Tensor) -> tf.Tensor:
    """The element at `index` of the permutation of [0, size) that `key` names, elementwise.

    The swap-or-not shuffle of Hoang, Morris and Rogaway (CRYPTO 2012): each round pairs x with
    K − x mod size, K random, and a random bit decides whether the two change places. It computes
    one element without the others and works on a domain of any size, where
    `tf.random.experimental.index_shuffle` walks through at least 2^16 numbers to find one that is
    below `size`.
    """

    scale = tf.cast(size, tf.float64) * 2.0**-53

    def swap_or_not(number, index):
        round_key = _mixed(key + _GOLDEN * tf.cast(number, tf.uint64))
        partner = tf.cast(_upper_53_bits(round_key) * scale, tf.int64) - index
        partner += tf.where(partner < 0, size, 0)
        # One fold between two products is enough for a single bit under a fresh key.
        coin = round_key + _GOLDEN * tf.bitcast(tf.maximum(index, partner), tf.uint64)
        coin = _folded(coin, 32) * _FACTORS[0]
        return number + 1, tf.where(tf.bitcast(coin, tf.int64) < 0, partner, index)

    _, element = tf.while_loop(
        lambda number, _: number <= _SHUFFLE_ROUNDS, swap_or_not, (tf.constant(1), index)
    )
    return element


# The mixing function and the increment of SplitMix64 (Steele, Lea, Flood: Fast Splittable
# Pseudorandom Number Generators, OOPSLA 2014).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def _folded(bits: tf.Tensor, shift: int) -> tf.Tensor:
    return tf.bitwise.bitwise_xor(bits, tf.bitwise.right_shift(bits, np.uint64(shift)))


def _mixed(bits: tf.Tensor) -> tf.Tensor:
    return _folded(_folded(_folded(bits, 30) * _FACTORS[0], 27) * _FACTORS[1], 31)


def _hashed(seed: int, *numbers: Any) -> tf.Tensor:
    """uint64 random bits, a pure function of the seed and the int64 numbers, which broadcast."""
    bits = _mixed(tf.bitcast(tf.constant(seed, tf.int64), tf.uint64))
    for number in numbers:
        bits = _hashed_further(bits, tf.convert_to_tensor(number, tf.int64))
    return bits


def _hashed_further(bits: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    return _mixed(bits + _GOLDEN * (tf.bitcast(number, tf.uint64) + np.uint64(1)))


def _upper_53_bits(bits: tf.Tensor) -> tf.Tensor:
    upper = tf.bitcast(tf.bitwise.right_shift(bits, np.uint64(11)), tf.int64)
    return tf.cast(upper, tf.float64)


def _unit_interval(bits: tf.Tensor) -> tf.Tensor:
    """Multiples of 2^-53 in [0, 1), float64."""
    return _upper_53_bits(bits) * 2.0**-53


def _label_matrix(labels: Any) -> scipy.sparse.csr_array:
    """The labels as CSR ones, checked, at a cost linear in their entries."""
    if not statistics.is_sparse(labels):
        labels = np.asarray(labels)
    if labels.ndim != 2:
        raise ValueError(f"labels must be of shape (N, C), got {labels.shape}")
    matrix = scipy.sparse.csr_array(labels, copy=True)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    wrong = np.flatnonzero(matrix.data != 1)
    if wrong.size:
        row = int(np.searchsorted(matrix.indptr, wrong[0], side="right")) - 1
        raise ValueError(
            f"labels must be 0 or 1, found {matrix.data[wrong[0]]} in row {row}, "
            f"class {matrix.indices[wrong[0]]}"
        )
    if not matrix.nnz:
        raise ValueError(f"there is nothing to draw: labels of shape {labels.shape} hold no 1")
    return matrix


def _class_counts(labels: scipy.sparse.csr_array) -> np.ndarray:
    return np.bincount(labels.indices, minlength=labels.shape[1])


def _class_shares(class_counts: np.ndarray) -> np.ndarray:
    """What a label of class i adds to P^I(x), 1/(C n_i) (Eq. 2), C counting non-empty classes."""
    shares = np.where(class_counts > 0, 1 / np.maximum(class_counts, 1), 0.0)
    return shares / np.count_nonzero(class_counts)


def _checked_counts(class_counts: Any) -> np.ndarray:
    counts = np.asarray(class_counts)
    if counts.ndim != 1 or not counts.size or counts.min() < 0 or counts.max() < 1:
        raise ValueError(
            "class_counts must be of shape (C,), not negative, with a positive one; got "
            f"{np.array2string(counts, threshold=10)}"
        )
    return counts


def _at_least(name: str, value: int, lowest: int) -> int:
    try:
        value = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, got {value!r}") from None
    if value < lowest:
        raise ValueError(f"{name} must be at least {lowest}, got {value}")
    return value
