"""Samplers that draw from a stream of records in file order.

`class_aware_stream` draws records with the distribution P^I(x) (Eq. 2); `uniform_stream` only
shuffles them. Draw number d is a pure function of (seed, d), so a run resumes by reading labels
alone.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from pipelines.sampling.indices import at_least, checked_counts, class_shares
from pipelines.sampling.permutation import COPIES, OFFSETS, PHASES, hashed, unit_interval

_DRAWS_COPIED_AT_ONCE = 32
# The default number of records that are shuffled together.
SHUFFLE_BUFFER = 4096


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
    """Draws from records in file order with class-aware re-sampling, in pass after pass.

    A pass returns a record K times, where K is ⌊w⌋ or ⌊w⌋ + 1 with mean w = ρ N P^I(x), so that the
    draws follow Eq. 2. K is a pure function of (seed, pass, place in the pass). Only the class
    counts and N need to be known beforehand, and each pass reads each record once.

    A pass is cut into windows of at most `shuffle_buffer` records. The D draws of a window are in
    random order, which is a pure function of (seed, pass, window) and spreads the copies of a
    record evenly: two of its K copies are more than D/K − G + 1 draws apart, where G is the number
    of different positive K in the window. D is about ρ times the number of records in the window.
    If it is at least K (B + G), the copies are in different batches of B. No distance is kept
    between copies of different passes.

    Args:
        records: the records of one pass in a fixed order: dicts, which may be nested, of tensors
            whose shapes are the same in all records, so images must be encoded. The labels under
            `labels_key` are multi-hot (C,); −1 in signed integers and NaN in floating-point numbers
            stand for unknown labels.
        class_counts: the numbers n_i of examples of each class in the whole training set, (C,).
        num_examples: the number N of examples in the whole training set, even if `records` is only
            the share of one worker.
        seed: a 64-bit integer.
        draws_per_record: the mean number ρ of draws per record over a pass.
        shuffle_buffer: the largest number of records in a window. Up to two windows are in memory.
        labels_key: the key of the labels.
        start_draw: the number of draws to skip. They are counted by reading the labels of at most
            one pass; the windows before the first draw are read, but their records not copied.
        labels_alone: the labels of one pass in the order of `records`; if given, counting does not
            read the records.
        records_from: a function from a position to the records of a pass from there on, which does
            not read the records before it.

    Returns:
        An endless dataset of records in the structure of `records`. Records without known labels
        are never drawn. Iterating over it raises an error for a label that is neither 0 nor 1 nor
        unknown, a label of a class with count 0, or a pass without any label.

    Raises:
        ValueError: an argument is out of its range, the records do not have labels of shape (C,),
            or `start_draw` is positive and a pass has no label.
    """
    class_counts = checked_counts(class_counts)
    num_examples = at_least("num_examples", num_examples, 1)
    shuffle_buffer = at_least("shuffle_buffer", shuffle_buffer, 1)
    start_draw = at_least("start_draw", start_draw, 0)
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
            draws_per_record * num_examples * class_shares(class_counts), tf.float64
        )

    def positive(labels):
        return labels if labels.dtype == tf.bool else labels == tf.ones_like(labels)

    def weights(labels):
        allowed = (labels == tf.zeros_like(labels)) | (positive(labels) & (mean_copies > 0))
        if labels.dtype.is_floating:
            allowed |= tf.math.is_nan(labels)
        elif labels.dtype.is_integer and not labels.dtype.is_unsigned:
            allowed |= labels == -tf.ones_like(labels)
        wrong = tf.where(~allowed)
        message = "labels must be 0 or 1, and 1 only in classes whose count is positive; found "
        check = tf.debugging.Assert(
            tf.equal(tf.size(wrong), 0),
            [message, tf.gather_nd(labels, wrong), "at (record of the window, class)", wrong],
        )
        with tf.control_dependencies([check]):
            return tf.linalg.matvec(tf.cast(positive(labels), tf.float64), mean_copies)

    def copies(pass_, window, weight):
        place = window * window_size + tf.range(tf.size(weight, tf.int64))
        chance = unit_interval(hashed(seed, COPIES, pass_, place))
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
            has_labels = ((window > 0) & has_labels) | tf.reduce_any(positive(batch[labels_key]))
        return has_labels, item

    def order_draws(pass_, window, batch):
        num_copies = copies(pass_, window, weights(batch[labels_key]))
        return _spread_copies(num_copies, functools.partial(hashed, seed), pass_, window)

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
    """Draws every record once per pass, from records in file order.

    A pass is cut into windows of at most `shuffle_buffer` records. Those of a window are in random
    order, which is a pure function of (seed, pass, window). A window holds the same records in
    every pass, so the files themselves should be well mixed.

    Args:
        records: the records of one pass in a fixed order: tensors, which may be nested, whose
            shapes are the same in all records, so images must be encoded.
        num_examples: the number of records.
        seed: a 64-bit integer.
        shuffle_buffer: the largest number of records in a window. Up to two windows are in memory.
        start_draw: the number of draws to skip.
        records_from: a function from a position to the records of a pass from there on, which does
            not read the records before it.

    Returns:
        An endless dataset of records in the structure of `records`.

    Raises:
        ValueError: an argument is out of its range.
    """
    num_examples = at_least("num_examples", num_examples, 1)
    shuffle_buffer = at_least("shuffle_buffer", shuffle_buffer, 1)
    start_draw = at_least("start_draw", start_draw, 0)
    window_size = _window_size(num_examples, shuffle_buffer)
    first_pass, first_record = divmod(start_draw, num_examples)
    first_window, first_draw = divmod(first_record, window_size)

    def order_draws(pass_, window, batch):
        once = tf.ones(tf.shape(tf.nest.flatten(batch)[0])[:1], tf.int64)
        return _spread_copies(once, functools.partial(hashed, seed), pass_, window)

    windows = _windows(records, window_size, first_pass, first_window, records_from)
    return _draw_from_windows(windows, order_draws, first_pass, first_window, first_draw)


def _window_size(num_examples: int, shuffle_buffer: int) -> int:
    """Returns a size that avoids a small last window, which would mix few records."""
    num_windows = -(-num_examples // shuffle_buffer)
    return -(-num_examples // num_windows)


def _windows(
    records: tf.data.Dataset,
    window_size: int,
    first_pass: int,
    first_window: int,
    records_from: Callable[[int], tf.data.Dataset] | None,
) -> tf.data.Dataset:
    """Returns an endless dataset of (pass, window, records of the window), from a window on."""
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
    """Draws the records of each window by the row numbers, int64, that `order_draws` returns."""

    def order(pass_, window, batch):
        rows = order_draws(pass_, window, batch)
        is_first = (pass_ == first_pass) & (window == first_window)
        return rows[tf.where(is_first, tf.constant(first_draw, tf.int64), 0) :], batch

    def draws(rows, batch):
        # One by one would cost more launches, and all at once would copy the window.
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
    """Finds the pass, the window and the place in its order of a draw; reads at most one pass."""
    count_draws = tf.function(
        count_draws,
        input_signature=[
            tf.TensorSpec((), tf.int64),
            tf.TensorSpec((), tf.int64),
            tf.TensorSpec((None,), tf.float64),
        ],
    )
    left = start_draw
    windows: list[tf.Tensor] = []
    for pass_ in itertools.count():
        for window, weight in enumerate(windows if pass_ else weights):
            with tf.device("CPU"):  # because tf.data counts on the CPU too
                num_draws = int(count_draws(pass_, window, weight))
            if left < num_draws:
                return pass_, window, left
            left -= num_draws
            if pass_ == 0:
                windows.append(weight)
        if not any(tf.reduce_any(weight > 0) for weight in windows):
            break
    raise ValueError(f"none of the records of a pass holds a label ({len(windows)} windows)")


def _spread_copies(
    num_copies: tf.Tensor, hashed: Callable[..., tf.Tensor], pass_: tf.Tensor, window: tf.Tensor
) -> tf.Tensor:
    """Orders the draws of a window so that copies are far apart; int64 (D,), rows of the window.

    Copy k of a record with K copies gets the time (k + v)/K, 0 ≤ v < 1, and the draws are sorted by
    time. Two such copies are 1/K apart, with D/K draws between them on average. To have hardly
    fewer in every case, the M records with the same K share a regular grid of 1/(K M): their
    phases v are a random permutation of (0, …, M − 1)/M with one random offset.
    """
    num_records = tf.size(num_copies, tf.int64)
    # Sorting by K keeps the random order among equal K, which is the permutation of the phases.
    shuffled = tf.argsort(unit_interval(hashed(PHASES, pass_, window, tf.range(num_records))))
    order = tf.gather(shuffled, tf.argsort(tf.gather(num_copies, shuffled), stable=True))
    by_copies = tf.gather(num_copies, order)
    begin = tf.searchsorted(by_copies, by_copies, side="left", out_type=tf.int64)
    end = tf.searchsorted(by_copies, by_copies, side="right", out_type=tf.int64)
    rank = tf.cast(tf.range(num_records) - begin, tf.float64)
    offset = unit_interval(hashed(OFFSETS, pass_, window, by_copies))
    phase = (rank + offset) / tf.cast(end - begin, tf.float64)

    row = tf.repeat(tf.cast(order, tf.int64), by_copies)
    first_draw = tf.repeat(tf.cumsum(by_copies, exclusive=True), by_copies)
    copy = tf.cast(tf.range(tf.size(row, tf.int64)) - first_draw, tf.float64)
    time = (copy + tf.repeat(phase, by_copies)) / tf.cast(
        tf.repeat(by_copies, by_copies), tf.float64
    )
    return tf.gather(row, tf.argsort(time, stable=True))
