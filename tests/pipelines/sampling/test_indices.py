"""Tests of the samplers: what is drawn how often, and that batch t is pure in (seed, t)."""

import itertools
import math

import numpy as np
import pytest
import scipy.sparse
import scipy.stats
import tensorflow as tf

from dbl_tf.statistics import LabelStatistics
from pipelines import sampling

BY_LABELS = (sampling.class_aware_indices, sampling.class_cycle_indices)


def _drawn(dataset, num_draws):
    """The first draws of a dataset of batches, as one array."""
    batch_size = dataset.element_spec.shape[0]
    batches = dataset.take(-(-num_draws // batch_size)).as_numpy_iterator()
    return np.concatenate(list(batches))[:num_draws]


def _chi_square(indices, probability):
    counts = np.bincount(indices, minlength=len(probability))
    possible = probability > 0
    assert counts[~possible].sum() == 0
    expected = probability[possible] * len(indices)
    return scipy.stats.chisquare(counts[possible], expected).pvalue


@pytest.fixture(scope="module")
def statistics_of_voc(voc_mlt_labels):
    return LabelStatistics.from_labels(voc_mlt_labels)


@pytest.fixture(scope="module")
def small_labels():
    """Five classes, one of them empty, one nested in another; two examples without labels."""
    labels = np.zeros((60, 5), np.int8)
    labels[:40, 0] = 1
    labels[30:50, 1] = 1
    labels[35:38, 3] = 1
    labels[57, 4] = 1
    return labels


@pytest.fixture(scope="module")
def one_among_a_million():
    """One example of class 1 among 10⁶ of class 0, sparse."""
    rows, columns = np.arange(10**6), np.zeros(10**6, np.int64)
    columns[123_456] = 1
    return scipy.sparse.coo_array((np.ones(10**6, np.int8), (rows, columns)), (10**6, 2))


# Class-aware, by index.


def test_class_aware_draws_follow_eq_2_and_eq_1(voc_mlt_labels, statistics_of_voc):
    dataset = sampling.class_aware_indices(voc_mlt_labels, 1000, seed=3)
    indices = _drawn(dataset, 10**6)
    assert indices.dtype == np.int64
    probability = statistics_of_voc.instance_probability(voc_mlt_labels)
    assert _chi_square(indices, probability) > 0.001
    p_hat = statistics_of_voc.resampled_probability
    observed = voc_mlt_labels[indices].mean(axis=0)
    assert np.all(np.abs(observed - p_hat) < 4 * np.sqrt(p_hat * (1 - p_hat) / 10**6))


def test_class_aware_draws_are_independent(small_labels):
    probability = LabelStatistics.from_labels(small_labels).instance_probability(small_labels)
    indices = _drawn(sampling.class_aware_indices(small_labels, 1000, seed=1), 10**6)
    pairs = indices[:-1:2] * 60 + indices[1::2]
    assert _chi_square(pairs, np.outer(probability, probability).ravel()) > 0.001


def test_class_aware_finds_the_one_example_among_a_million(one_among_a_million):
    indices = _drawn(sampling.class_aware_indices(one_among_a_million, 512, seed=0), 200_000)
    share = np.mean(indices == 123_456)
    assert abs(share - 0.5) < 4 * 0.5 / math.sqrt(200_000)
    # The other half spreads evenly over the million.
    rest = indices[indices != 123_456]
    tenths = np.bincount(rest // 100_000, minlength=10)
    assert scipy.stats.chisquare(tenths).pvalue > 0.001


@pytest.mark.parametrize("case", ["voc", "million", "even", "adverse"])
def test_at_least_half_of_the_proposals_are_accepted(case, request):
    if case == "adverse":  # one example near the bound of its group, all others near half of it
        probability = np.full(2047, 1.0001 / 2048)
        probability[0] = 1 - probability[1:].sum()
    else:
        labels = {
            "voc": lambda: request.getfixturevalue("voc_mlt_labels"),
            "million": lambda: request.getfixturevalue("one_among_a_million").tocsr(),
            "even": lambda: np.eye(7),
        }[case]()
        probability = LabelStatistics.from_labels(labels).instance_probability(labels)
    table = sampling.RejectionTable(probability)
    indices, accepted = table.propose(200_000, tf.constant([4, 2], tf.int64))
    share = accepted.numpy().mean()
    assert share >= 0.5
    assert abs(share - table.acceptance_rate) < 4 * 0.5 / math.sqrt(200_000)
    if len(probability) < 3000:
        assert _chi_square(indices.numpy()[accepted.numpy()], probability) > 0.001


def test_a_probability_too_small_for_the_index_form_is_refused():
    with pytest.raises(ValueError, match=r"example 1 has probability 1e-13.*stream"):
        sampling.RejectionTable(np.array([1 - 1e-13, 1e-13]))


# Class cycle.


def test_every_cycle_visits_every_class_that_has_examples_once():
    labels = np.repeat(np.eye(6, dtype=bool), [9, 1, 0, 4, 2, 30], axis=0)
    classes = labels[_drawn(sampling.class_cycle_indices(labels, 7, seed=5), 5000)].argmax(axis=1)
    cycles = classes.reshape(-1, 5)
    assert np.all(np.sort(cycles, axis=1) == [0, 1, 3, 4, 5])
    # The order within the cycle varies: every class stands everywhere equally often.
    for place in range(5):
        counts = np.bincount(cycles[:, place], minlength=6)[[0, 1, 3, 4, 5]]
        assert scipy.stats.chisquare(counts).pvalue > 0.001


def test_class_cycle_walks_through_all_examples_of_a_class_before_it_repeats_one():
    labels = np.repeat(np.eye(3, dtype=bool), [5, 3, 40], axis=0)
    indices = _drawn(sampling.class_cycle_indices(labels, 11, seed=2), 3 * 3960)
    for members in (range(5), range(5, 8), range(8, 48)):
        visits = indices[np.isin(indices, members)].reshape(-1, len(members))
        assert np.all(np.sort(visits, axis=1) == members)
        assert len(np.unique(visits, axis=0)) > 5


def test_class_cycle_matches_eq_1_on_voc(voc_mlt_labels, statistics_of_voc):
    indices = _drawn(sampling.class_cycle_indices(voc_mlt_labels, 500, seed=0), 100_000)
    observed = voc_mlt_labels[indices].mean(axis=0)
    p_hat = statistics_of_voc.resampled_probability
    assert np.all(np.abs(observed - p_hat) < 4 * np.sqrt(p_hat * (1 - p_hat) / 100_000))


# Uniform.


@pytest.mark.parametrize(("num_examples", "batch_size"), [(1142, 32), (10, 32), (1, 3), (40, 40)])
def test_uniform_visits_each_example_once_per_pass(num_examples, batch_size):
    dataset = sampling.uniform_indices(num_examples, batch_size, seed=0)
    passes = _drawn(dataset, 20 * num_examples).reshape(20, num_examples)
    assert np.all(np.sort(passes, axis=1) == np.arange(num_examples))
    assert len(np.unique(passes, axis=0)) == (20 if num_examples > 9 else 1)


@pytest.mark.parametrize("num_examples", [2, 3, 5, 6])
def test_uniform_uses_all_orders_equally(num_examples):
    num_passes = 200 * math.factorial(num_examples)
    dataset = sampling.uniform_indices(num_examples, 1000, seed=8)
    passes = _drawn(dataset, num_passes * num_examples).reshape(num_passes, num_examples)
    codes = passes @ num_examples ** np.arange(num_examples)
    orders = [
        np.dot(order, num_examples ** np.arange(num_examples))
        for order in itertools.permutations(range(num_examples))
    ]
    counts = [np.sum(codes == order) for order in orders]
    assert scipy.stats.chisquare(counts).pvalue > 0.001


def test_uniform_orders_of_many_elements_have_no_pattern():
    passes = _drawn(sampling.uniform_indices(40, 1000, seed=5), 20_000 * 40).reshape(-1, 40)
    # An element's place, two neighbours, and the same place in the next pass.
    for first, second, degenerate in (
        (np.broadcast_to(np.arange(40), passes.shape), passes, False),
        (passes[:, 0], passes[:, 1], True),
        (passes[:-1, 7], passes[1:, 7], False),
    ):
        counts = np.bincount((first * 40 + second).ravel(), minlength=1600).reshape(40, 40)
        if degenerate:
            counts = counts[~np.eye(40, dtype=bool)]
        assert scipy.stats.chisquare(counts.ravel()).pvalue > 0.001


def test_uniform_reaches_all_of_ten_million():
    indices = _drawn(sampling.uniform_indices(10**7, 8192, seed=1), 200_000)
    assert len(np.unique(indices)) == 200_000
    tenths = np.bincount(indices // 10**6, minlength=10)
    assert scipy.stats.chisquare(tenths).pvalue > 0.001


# What all samplers have in common.


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
@pytest.mark.parametrize(("batch_size", "starts"), [(32, (255, 256, 700)), (5000, (5,))])
def test_start_step_continues_the_run_from_the_start(sampler, batch_size, starts, small_labels):
    sample = sampling.SAMPLERS[sampler]
    steps = max(starts) + 2
    whole = list(sample(small_labels, batch_size, seed=9).take(steps).as_numpy_iterator())
    for start in starts:
        resumed = sample(small_labels, batch_size, seed=9, start_step=start).take(2)
        np.testing.assert_array_equal(list(resumed.as_numpy_iterator()), whole[start : start + 2])


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_seeds_differ_and_a_seed_repeats(sampler, small_labels):
    sample = sampling.SAMPLERS[sampler]
    first, again, other = (_drawn(sample(small_labels, 32, seed=s), 640) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == other) < 0.3


@pytest.mark.parametrize("sample", BY_LABELS)
def test_examples_without_labels_are_never_drawn(sample, small_labels):
    indices = _drawn(sample(small_labels, 32, seed=0), 20_000)
    assert set(indices) == set(np.flatnonzero(small_labels.any(axis=1)))


@pytest.mark.parametrize("sample", BY_LABELS)
@pytest.mark.parametrize(
    "convert",
    [bool, scipy.sparse.coo_matrix],
)
def test_dense_and_sparse_labels_are_drawn_alike(sample, convert, small_labels):
    sparse = convert.__module__.startswith("scipy")
    converted = convert(small_labels) if sparse else small_labels.astype(convert)
    np.testing.assert_array_equal(
        _drawn(sample(converted, 32, seed=4), 3200), _drawn(sample(small_labels, 32, seed=4), 3200)
    )


@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_batches_are_endless_int64_of_a_static_size(sampler, small_labels):
    dataset = sampling.SAMPLERS[sampler](small_labels, 5, seed=0)
    assert dataset.element_spec == tf.TensorSpec((5,), tf.int64)
    assert dataset.cardinality() == tf.data.INFINITE_CARDINALITY


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be an integer, got 2.5"),
        ({"start_step": -1}, "start_step must be at least 0, got -1"),
    ],
)
@pytest.mark.parametrize("sampler", sampling.SAMPLERS)
def test_bad_batches_are_refused(sampler, arguments, message, small_labels):
    with pytest.raises(ValueError, match=message):
        sampling.SAMPLERS[sampler](small_labels, **{"batch_size": 8, "seed": 0, **arguments})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((4, 3)), r"labels of shape \(4, 3\) hold no 1"),
        (np.zeros((0, 3)), r"labels of shape \(0, 3\) hold no 1"),
        (np.array([[0, 1], [0.5, 1]]), "labels must be 0 or 1, found 0.5 in row 1, class 0"),
        (np.array([[0, 1], [1, -1.0]]), r"found -1\.0 in row 1, class 1; an unknown label is"),
        (np.ones(4), r"labels must be of shape \(N, C\).*got \(4,\)"),
    ],
)
@pytest.mark.parametrize("sample", BY_LABELS)
def test_bad_labels_are_refused(sample, labels, message):
    with pytest.raises(ValueError, match=message):
        sample(labels, 8, seed=0)


def test_uniform_refuses_an_empty_set():
    with pytest.raises(ValueError, match="num_examples must be at least 1, got 0"):
        sampling.uniform_indices(0, 8, seed=0)


# Epochs.


def test_epochs_of_the_benchmarks():
    voc, coco = np.full(20, 4), np.full(80, 6)
    voc[0], coco[0] = 775, 1128
    assert sampling.draws_per_epoch(voc) == 3875
    assert sampling.draws_per_epoch(coco) == 22560
    assert sampling.draws_per_epoch([3, 0, 0]) == 3  # ⌈9/4⌉
    assert sampling.steps_per_epoch("class_aware", voc, 1142, 32) == 121
    assert sampling.steps_per_epoch("class_cycle", coco, 1909, 32) == 705
    assert sampling.steps_per_epoch("uniform", voc, 1142, 32) == 35
    assert sampling.steps_per_epoch("uniform", voc, 20, 32) == 1
    assert sampling.steps_per_epoch("class_aware", [3, 1], 4, 32) == 1
    with pytest.raises(ValueError, match=r"sampler must be one of .*class_aware.*, got 'rs'"):
        sampling.steps_per_epoch("rs", voc, 1142, 32)


# Streams.


def _records(labels):
    return tf.data.Dataset.from_tensor_slices(
        {"labels": labels, "meta": {"id": np.arange(len(labels), dtype=np.int64)}}
    )


def _streamed(labels, num_draws, *, records=None, **arguments):
    counts = labels.sum(axis=0, dtype=np.int64)
    dataset = sampling.class_aware_stream(
        _records(labels) if records is None else records,
        counts,
        len(labels),
        **{"seed": 0, **arguments},
    )
    ids = dataset.map(lambda record: record["meta"]["id"]).batch(2000)
    return np.concatenate(list(ids.take(-(-num_draws // 2000)).as_numpy_iterator()))[:num_draws]


def test_stream_copies_have_the_mean_and_variance_of_rounded_weights(small_labels):
    probability = LabelStatistics.from_labels(small_labels).instance_probability(small_labels)
    weight = 0.7 * 60 * probability
    fraction = weight - np.floor(weight)
    num_passes = 300
    draws = _streamed(
        small_labels, int(num_passes * weight.sum()), draws_per_record=0.7, shuffle_buffer=30
    )
    counts = np.bincount(draws, minlength=60)
    assert counts[weight == 0].sum() == 0
    # What the last pass lacks or exceeds is at most a few copies of an example.
    spread = np.sqrt(num_passes * fraction * (1 - fraction))
    score = (counts - num_passes * weight)[spread > 0] / spread[spread > 0]
    assert np.all(np.abs(score) < 4.5)
    # Σ score² is χ² with as many degrees of freedom: neither too wide nor too regular.
    assert 0.001 < scipy.stats.chi2.cdf(np.sum(score**2), len(score)) < 0.999


def test_stream_matches_eq_1_on_voc(voc_mlt_labels, statistics_of_voc):
    draws = _streamed(voc_mlt_labels, 20_000)
    observed = voc_mlt_labels[draws].mean(axis=0)
    p_hat = statistics_of_voc.resampled_probability
    assert np.all(np.abs(observed - p_hat) < 4 * np.sqrt(p_hat * (1 - p_hat) / 20_000))


def test_stream_passes_on_each_example_of_voc_as_often_as_eq_2_says(
    voc_mlt_labels, statistics_of_voc
):
    num_passes = 200
    weight = len(voc_mlt_labels) * statistics_of_voc.instance_probability(voc_mlt_labels)
    draws = _streamed(voc_mlt_labels, int(num_passes * weight.sum()))
    mean_copies = np.bincount(draws, minlength=len(weight)) / num_passes
    fraction = weight - np.floor(weight)
    standard_error = np.sqrt(fraction * (1 - fraction) / num_passes)
    assert np.all(np.abs(mean_copies - weight) < 4 * standard_error)


@pytest.mark.parametrize(("shuffle_buffer", "starts"), [(4096, (130,)), (20, (333,))])
def test_stream_continues_at_any_draw(shuffle_buffer, starts, small_labels):
    whole = _streamed(small_labels, 600, shuffle_buffer=shuffle_buffer)
    for start in starts:
        resumed = _streamed(small_labels, 100, shuffle_buffer=shuffle_buffer, start_draw=start)
        np.testing.assert_array_equal(resumed, whole[start : start + 100])


def test_stream_counts_the_draws_it_leaves_out_on_labels_alone(small_labels):
    decoded = []

    def decode(record):
        tf.py_function(lambda i: decoded.append(int(i)), [record["meta"]["id"]], [])
        return record["meta"]["id"]

    stream = sampling.class_aware_stream(
        _records(small_labels), small_labels.sum(0), 60, seed=0, shuffle_buffer=20, start_draw=500
    )
    drawn = list(stream.map(decode).take(10).as_numpy_iterator())
    assert decoded[:10] == drawn
    assert len(decoded) < 30


def test_stream_depends_on_the_seed_and_repeats(small_labels):
    first, again, other = (_streamed(small_labels, 600, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.mean(first == other) < 0.3


def test_stream_order_is_random():
    # Single labels of equal classes: every record once a pass, so the order is a permutation.
    labels = np.repeat(np.eye(4, dtype=np.int8), 5, axis=0)
    passes = _streamed(labels, 20 * 1000).reshape(1000, 20)
    assert np.all(np.sort(passes, axis=1) == np.arange(20))
    places = np.arange(20) * 20 + passes
    assert scipy.stats.chisquare(np.bincount(places.ravel(), minlength=400)).pvalue > 0.001
    pairs = np.bincount(passes[:, 0] * 20 + passes[:, 1], minlength=400).reshape(20, 20)
    assert scipy.stats.chisquare(pairs[~np.eye(20, dtype=bool)]).pvalue > 0.001


def test_stream_keeps_copies_in_different_batches(voc_mlt_labels, statistics_of_voc):
    weight = 1142 * statistics_of_voc.instance_probability(voc_mlt_labels)
    draws = _streamed(voc_mlt_labels, 1000)  # inside the first pass, which is one window
    highest = np.floor(weight) + 1  # of K
    num_different = len(np.unique([highest, highest - 1])) - 1
    repeated = np.flatnonzero(np.bincount(draws, minlength=1142) > 1)
    assert len(repeated) > 100
    for example in repeated:
        gap = np.diff(np.flatnonzero(draws == example)).min()
        assert gap > 1000 / highest[example] - num_different + 1
        assert gap >= 32


def test_stream_passes_other_components_through_untouched(small_labels):
    images = np.array([b"image %d" % i for i in range(60)])
    records = tf.data.Dataset.from_tensor_slices(
        {"y": small_labels.astype(bool), "image": images, "id": np.arange(60)}
    )
    stream = sampling.class_aware_stream(
        records, small_labels.sum(0), 60, seed=0, labels_key="y", shuffle_buffer=25
    )
    assert stream.element_spec == records.element_spec
    for record in stream.take(200).as_numpy_iterator():
        assert record["image"] == images[record["id"]]
        np.testing.assert_array_equal(record["y"], small_labels[record["id"]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"draws_per_record": 0.0}, "draws_per_record must be positive and finite, got 0.0"),
        ({"shuffle_buffer": 0}, "shuffle_buffer must be at least 1, got 0"),
        ({"start_draw": -1}, "start_draw must be at least 0, got -1"),
        ({"labels_key": "y"}, "records must be dicts with the key 'y'"),
        ({"class_counts": [1, 2, 3]}, r"labels of shape \(5,\), class_counts has 3 classes"),
        ({"class_counts": np.zeros(5)}, "class_counts must be of shape"),
        ({"num_examples": 20}, "class count of 40 exceeds 20 examples"),
    ],
)
def test_stream_refuses_bad_arguments(arguments, message, small_labels):
    defaults = {"class_counts": small_labels.sum(axis=0), "num_examples": 60, "seed": 0}
    with pytest.raises(ValueError, match=message):
        sampling.class_aware_stream(_records(small_labels), **{**defaults, **arguments})


def test_stream_refuses_records_that_do_not_fit_the_counts(small_labels):
    counts = small_labels.sum(axis=0)

    def first_of(labels, **arguments):
        stream = sampling.class_aware_stream(_records(labels), counts, 60, seed=0, **arguments)
        return next(stream.as_numpy_iterator())

    half, absent = small_labels / 2, small_labels.copy()
    absent[3, 2] = 1
    for wrong in (half, absent):
        with pytest.raises(tf.errors.InvalidArgumentError, match="labels must be 0 or 1"):
            first_of(wrong)
    unlabeled = np.zeros_like(small_labels)
    with pytest.raises(tf.errors.InvalidArgumentError, match="no record of a whole pass"):
        first_of(unlabeled)
    with pytest.raises(ValueError, match="none of the records of a pass holds a label"):
        first_of(unlabeled, start_draw=1)


def _uniformly_streamed(labels, num_draws, **arguments):
    dataset = sampling.uniform_stream(_records(labels), len(labels), **{"seed": 0, **arguments})
    ids = dataset.map(lambda record: record["meta"]["id"])
    return np.array(list(ids.take(num_draws).as_numpy_iterator()))


def test_uniform_stream_passes_every_record_on_once_a_pass(small_labels):
    passes = _uniformly_streamed(small_labels, 180).reshape(3, 60)
    np.testing.assert_array_equal(np.sort(passes), np.tile(np.arange(60), (3, 1)))
    assert len({tuple(order) for order in passes}) == 3
    in_windows = _uniformly_streamed(small_labels, 60, shuffle_buffer=20).reshape(3, 20)
    np.testing.assert_array_equal(np.sort(in_windows), np.arange(60).reshape(3, 20))


def test_uniform_stream_order_is_random():
    orders = _uniformly_streamed(np.ones((10, 1), bool), 10 * 1500).reshape(1500, 10)
    # Where a record comes in a pass is uniform: a χ² test over records and places.
    table = np.stack([np.bincount(orders[:, place], minlength=10) for place in range(10)])
    statistic = np.sum((table - 150) ** 2 / 150)
    assert scipy.stats.chi2.sf(statistic, 81) > 0.001


@pytest.mark.parametrize("start", [0, 19, 20, 59, 60, 145, 180])
def test_uniform_stream_continues_at_any_draw(start, small_labels):
    whole = _uniformly_streamed(small_labels, 260, shuffle_buffer=25)
    rest = []

    def records_from(record):
        rest.append(record)
        return _records(small_labels).skip(record)

    resumed = _uniformly_streamed(
        small_labels, 80, shuffle_buffer=25, start_draw=start, records_from=records_from
    )
    np.testing.assert_array_equal(resumed, whole[start : start + 80])
    assert rest == [start % 60 // 20 * 20]
