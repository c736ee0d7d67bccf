"""Tests of the construction of long-tailed subsets."""

import csv

import numpy as np
import programs
import pytest
import scipy.sparse

from dbl_tf.statistics import LabelStatistics
from pipelines.longtail import (
    mean_log_ratio,
    pareto_subset,
    reference_counts,
    references_of_classes,
)


@pytest.fixture(scope="module")
def voc2012_labels(shared_data):
    """Multi-hot labels, bool (11540, 20), of VOC 2012 train-val."""
    with open(shared_data / "voc_mlt" / "voc2012_trainval.csv", newline="") as file:
        rows = [row["labels"].split() for row in csv.DictReader(file)]
    names = sorted({name for row in rows for name in row})
    return np.array([[name in row for name in names] for row in rows])


def _single_labels(counts):
    return np.repeat(np.eye(len(counts), dtype=np.int8), counts, axis=0)


def test_reference_counts_of_the_benchmarks():
    voc = reference_counts(20, max_count=800, min_count=1, power=6.0)
    coco = reference_counts(80, max_count=1200, min_count=1, power=6.0)
    assert voc.dtype == np.int64
    # The 99 % quantile of the Pareto law with power 6 is 100^(1/6): its density falls there to
    # 100^(−7/6) = 0.00464 of its start.
    assert (voc[0], voc[-1]) == (800, int(799 * 0.0046416 + 1)) == (800, 4)
    assert (coco[0], coco[-1]) == (1200, int(1199 * 0.0046416 + 1)) == (1200, 6)
    assert np.all(np.diff(voc) < 0)
    assert np.all(np.diff(coco) <= 0)


def test_reference_counts_at_the_middle_of_the_law():
    # Power 1: x from 1 to 100, so the middle one of 3 is at 50.5.
    counts = reference_counts(3, max_count=100_005, min_count=5, power=1.0)
    assert counts.tolist() == [100_005, int(100_000 / 50.5**2 + 5), 15]


def test_reference_counts_of_one_class_is_the_maximum():
    assert reference_counts(1, max_count=7).tolist() == [7]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"min_count": 0}, "min_count must be at least 1, got 0"),
        ({"min_count": 9, "max_count": 8}, "max_count must be at least 9, got 8"),
        ({"power": 0.0}, "power must be positive and finite, got 0.0"),
        ({"power": float("nan")}, "power must be positive"),
    ],
)
def test_reference_counts_refuses_arguments_out_of_range(wrong, message):
    with pytest.raises(ValueError, match=message):
        reference_counts(**{"num_classes": 20, "max_count": 800, **wrong})


def test_voc_subsets_resemble_the_published_list(voc2012_labels, voc_mlt_labels):
    references = reference_counts(20, max_count=800)
    published = np.sort(voc_mlt_labels.sum(axis=0))[::-1]
    subsets = [pareto_subset(voc2012_labels, max_count=800, seed=seed) for seed in range(20)]
    counts = np.array([np.sort(voc2012_labels[i].sum(axis=0))[::-1] for i in subsets])

    np.testing.assert_allclose(counts.mean(axis=0), published, rtol=0.05, atol=1.0)
    np.testing.assert_allclose(counts[:, 6:], np.tile(references[6:], (20, 1)), rtol=0.2, atol=2)
    sizes = np.array([len(indices) for indices in subsets])
    assert abs(sizes.mean() - 1142) < 30
    assert np.all(counts[:, -1] == 4)
    groups = [(counts >= 100).sum(1), ((counts >= 20) & (counts < 100)).sum(1)]
    groups = np.array([*groups, (counts < 20).sum(1)]).T
    np.testing.assert_array_equal(np.median(groups, axis=0), [6, 6, 8])
    assert np.all(np.abs(groups - [6, 6, 8]) <= 1)


def test_voc_classes_keep_the_rank_of_the_full_data(voc2012_labels):
    counts = voc2012_labels[pareto_subset(voc2012_labels, max_count=800, seed=3)].sum(axis=0)
    ranking = np.argsort(-LabelStatistics.from_labels(voc2012_labels).resampled_probability)
    assert np.sum(np.diff(counts[ranking]) > 0) <= 1


def test_indices_are_rising_and_depend_on_the_seed_alone(voc2012_labels):
    first = pareto_subset(voc2012_labels, max_count=800, seed=0)
    again = pareto_subset(voc2012_labels, max_count=800, seed=0)
    sparse = pareto_subset(scipy.sparse.csr_array(voc2012_labels), max_count=800, seed=0)
    other = pareto_subset(voc2012_labels, max_count=800, seed=1)
    assert first.dtype == np.int64
    assert np.all(np.diff(first) > 0)
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, sparse)
    assert not np.array_equal(first, other)


def test_single_labels_meet_the_reference_exactly():
    labels = _single_labels([900, 1000, 800])
    references = reference_counts(3, max_count=500)
    indices = pareto_subset(labels, max_count=500, seed=0)
    # Without co-occurrence every p̂ is 1/3: ties keep the order of the columns.
    assert labels[indices].sum(axis=0).tolist() == references.tolist()


def test_a_class_with_too_few_examples_gives_all_it_has():
    labels = _single_labels([30, 1000])
    indices = pareto_subset(labels, max_count=500, seed=0)
    assert np.isin(np.arange(30), indices).all()
    assert labels[indices].sum(axis=0).tolist() == [30, reference_counts(2, max_count=500)[1]]


def test_surplus_brought_in_by_an_earlier_class_is_removed():
    # Every example of class 1 holds class 0 too: 40 of the 50 examples of class 0.
    labels = np.zeros((50, 2), np.int8)
    labels[:, 0] = 1
    labels[:40, 1] = 1
    indices = pareto_subset(labels, max_count=50, min_count=2, seed=0)
    tail = int(reference_counts(2, max_count=50, min_count=2)[1])
    assert labels[indices].sum(axis=0).tolist() == [10 + tail, tail]


def test_examples_without_labels_and_empty_classes_are_left_out():
    labels = np.zeros((20, 3), np.int8)
    labels[:10, 0] = 1
    labels[5:12, 2] = 1
    indices = pareto_subset(labels, max_count=8, seed=0)
    assert indices.max() < 12


def test_examples_without_labels_change_nothing():
    labels = (np.random.default_rng(0).random((300, 4)) < [0.6, 0.3, 0.2, 0.1]).astype(np.int8)
    labels = labels[labels.any(axis=1)]
    places = np.sort(np.random.default_rng(1).choice(2 * len(labels), len(labels), replace=False))
    among_unlabeled = np.zeros((2 * len(labels), 4), np.int8)
    among_unlabeled[places] = labels
    np.testing.assert_array_equal(
        pareto_subset(among_unlabeled, max_count=60, seed=0),
        places[pareto_subset(labels, max_count=60, seed=0)],
    )


def test_classes_without_examples_have_no_place_in_the_law():
    labels = np.zeros((300, 4), np.int8)
    labels[:, [1, 3]] = _single_labels([200, 100])
    ranking, references = references_of_classes(
        LabelStatistics.from_labels(labels), max_count=90, min_count=2
    )
    assert ranking.tolist() == [1, 3]
    assert references.tolist() == reference_counts(2, max_count=90, min_count=2).tolist()
    indices = pareto_subset(labels, max_count=90, min_count=2, seed=0)
    assert labels[indices].sum(axis=0).tolist() == [0, references[0], 0, references[1]]


def test_labels_that_hold_nothing_are_refused():
    with pytest.raises(ValueError, match="none of 7 examples has a label"):
        pareto_subset(np.zeros((7, 3)), max_count=5, seed=0)


def test_mean_log_ratio_by_hand():
    ratio = mean_log_ratio(np.array([10, 20, 5]), np.array([10, 10, 10]))
    assert ratio == pytest.approx(2 * np.log(2) / 3)
    assert mean_log_ratio(np.array([10, 0]), np.array([10, 1])) == np.inf


def test_reached_counts_are_logged(caplog):
    with caplog.at_level("INFO", logger="absl"):
        pareto_subset(_single_labels([400, 20]) > 0, max_count=300, seed=0)
    assert "302 of 420 examples" in caplog.text
    assert "0: 300 (300), 1: 2 (2)" in caplog.text


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        (np.full((3, 2), 2), {"max_count": 5}, "labels must be 0 or 1, found 2 in row 0"),
        (np.ones(3), {"max_count": 5}, r"labels must be of shape \(N, C\)"),
        (np.ones((3, 2)), {"max_count": 0}, "max_count must be at least 1, got 0"),
        (np.ones((3, 2)), {"max_count": 5, "power": -1.0}, "power must be positive"),
    ],
)
def test_bad_arguments_are_refused(labels, arguments, message):
    with pytest.raises(ValueError, match=message):
        pareto_subset(labels, seed=0, **arguments)


def test_benchmark_puts_draws_beside_the_published_list(shared_data, voc_mlt_labels):
    labels = shared_data / "voc_mlt" / "voc2012_trainval.csv"
    done = programs.run("-m", "benchmarks.longtail", f"--labels={labels}", "--seeds=2")
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    [authors] = [line for line in lines if line[:1] == ["authors'"]]
    assert authors[1:7] == ["1142", "775", "4", "6", "6", "8"]
    start = next(i for i, line in enumerate(lines) if line[:2] == ["sorted", "counts:"]) + 1
    sorted_counts = [int(line[-1]) for line in lines[start : start + 20]]
    assert sorted_counts == sorted(voc_mlt_labels.sum(axis=0), reverse=True)
