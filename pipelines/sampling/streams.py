"""Sampling from records that come in file order: which are passed on, how often, in what order.

`class_aware_stream` imposes the distribution P^I(x) (Eq. 2) on them, `uniform_stream` only shuffles
them. Draw number d is a pure function of (seed, d), so a run resumes by reading labels alone.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from pipelines.sampling.indices import at_least, checked_counts, class_shares
from pipelines.sampling.permutation import COPIES, OFFSETS, PHASES, hashed, unit_interval

_DRAWS_COPIED_AT_ONCE = 32
# Records of a stream that are mixed at a time.
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
            has_labels = ((window > 0) & has_labels) | tf.reduce_any(
                tf.cast(batch[labels_key], tf.bool)
            )
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
    left = start_draw
    windows: list[tf.Tensor] = []
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
            break
    raise ValueError(f"none of the records of a pass holds a label ({len(windows)} windows)")


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
