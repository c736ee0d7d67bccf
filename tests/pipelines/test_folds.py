import numpy as np
import pytest
import scipy.sparse
from run_data import make_data

from pipelines import folds as data_folds
from pipelines.folds import held_out, stratified_folds, stratified_share


def long_tailed_labels(num_examples, num_classes, seed):
    rng = np.random.default_rng(seed)
    share = 0.5 / np.arange(1, num_classes + 1) ** 1.3
    labels = rng.random((num_examples, num_classes)) < share
    return scipy.sparse.csr_array(labels)


@pytest.mark.parametrize("num_folds", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_every_class_has_its_share_of_every_fold(num_folds, seed):
    labels = long_tailed_labels(600, 40, seed)
    folds = stratified_folds(labels, num_folds, seed=seed)
    dense = labels.toarray()
    counts = np.array([dense[folds == k].sum(axis=0) for k in range(num_folds)])
    share = dense.sum(axis=0) / num_folds
    # Within two examples of the share: random folds of the commonest classes are off by ten.
    assert np.abs(counts - share).max() <= 2
    sizes = np.bincount(folds, minlength=num_folds)
    assert np.abs(sizes - 600 / num_folds).max() <= 6
    assert (np.count_nonzero(counts, axis=0) >= np.minimum(dense.sum(axis=0), 2)).all()


def test_classes_that_share_examples_are_parted_too():
    # Dealt by the rarest class, both examples of the last class would be in one fold.
    rng = np.random.default_rng(0)
    for _ in range(300):
        num_classes = int(rng.integers(1, 9))
        labels = rng.random((int(rng.integers(4, 12)), num_classes)) < rng.choice([0.2, 0.5])
        num_folds = int(rng.integers(3, 5))
        folds = stratified_folds(scipy.sparse.csr_array(labels), num_folds, seed=1)
        for c in range(num_classes):
            if labels[:, c].sum() >= 2:
                assert len(set(folds[labels[:, c]])) >= 2, (labels, folds)


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_every_class_has_its_share_of_a_test_split(fraction, seed):
    labels = long_tailed_labels(600, 40, seed)
    chosen = stratified_share(labels, fraction, seed=seed)
    dense = labels.toarray()
    counts, in_test = dense.sum(axis=0), dense[chosen].sum(axis=0)
    # A class whose share is less than one example has one all the same.
    num_small = np.count_nonzero(counts * fraction < 1)
    assert chosen.dtype == bool and -6 <= chosen.sum() - 600 * fraction <= 6 + num_small
    # Random choices of the commonest classes are off by ten.
    assert fraction < 0.2 or np.abs(in_test - counts * fraction).max() <= 4
    assert (in_test[counts >= 2] >= 1).all()
    assert ((counts - in_test)[counts >= 1] >= 1).all()
    np.testing.assert_array_equal(chosen, stratified_share(labels, fraction, seed=seed))
    assert (chosen != stratified_share(labels, fraction, seed=seed + 10)).any()


def test_no_class_loses_all_its_examples_to_the_test_split():
    rng = np.random.default_rng(0)
    for case in range(300):
        shape = int(rng.integers(4, 14)), int(rng.integers(1, 9))
        labels = scipy.sparse.csr_array(rng.random(shape) < rng.choice([0.1, 0.3, 0.5]))
        try:
            chosen = stratified_share(labels, float(rng.choice([0.3, 0.5, 0.9])), seed=case)
        except ValueError as error:
            assert "sets nothing aside" in str(error)
            continue
        dense = labels.toarray()
        assert (dense[~chosen].any(axis=0) == dense.any(axis=0)).all(), dense


def test_a_share_of_nothing_is_refused():
    labels = scipy.sparse.csr_array(np.eye(3, dtype=bool))
    with pytest.raises(ValueError, match=r"test_fraction = 0.1 sets nothing aside: .* 3 train"):
        stratified_share(labels, 0.1, seed=0)


def test_folds_are_a_function_of_labels_and_seed():
    labels = long_tailed_labels(200, 10, 0)
    first, again = (stratified_folds(labels, 4, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != stratified_folds(labels, 4, seed=4)).any()


def test_examples_without_labels_are_spread_evenly():
    folds = stratified_folds(scipy.sparse.csr_array((30, 4), dtype=bool), 3)
    assert np.bincount(folds).tolist() == [10, 10, 10]


def test_a_fold_is_held_out_of_the_training_split_alone():
    data = make_data(3, 12, splits=("train", "val", "test"), num_features=2)
    folds = stratified_folds(data.splits["train"].labels, 3)
    parts = [held_out(data, folds, k) for k in range(3)]
    tested = [name for part in parts for name in part.splits["test"].names]
    assert sorted(tested) == sorted(data.splits["train"].names)
    for part in parts:
        assert set(part.splits) == {"train", "test"}
        assert not set(part.splits["train"].names) & set(part.splits["test"].names)
        assert len(part.splits["train"].features) == 8


@pytest.mark.parametrize("num_folds", [1, 13])
def test_impossible_numbers_of_folds_are_refused(num_folds):
    labels = make_data(3, 12).splits["train"].labels
    with pytest.raises(ValueError, match=f"12 examples cannot be divided into {num_folds} folds"):
        stratified_folds(labels, num_folds)


def test_a_fold_or_val_takes_the_place_of_test():
    data = make_data(3, 12, splits=("train", "val", "test"), num_features=2)
    names = [data_folds.name_of(k, 3) for k in range(3)]
    assert names == ["1/3", "2/3", "3/3"]
    parts = [data_folds.without_test(data, name, seed=0) for name in names]
    tested = [name for part in parts for name in part.splits["test"].names]
    assert sorted(tested) == sorted(data.splits["train"].names)
    for part in parts:
        train, test = part.splits["train"], part.splits["test"]
        assert sorted([*train.names, *test.names]) == sorted(tested)
        assert part.splits["val"] is data.splits["val"]  # still for epochs and thresholds
    on_val = data_folds.without_test(data, "val", seed=0)
    assert set(on_val.splits) == {"train", "test"}
    assert on_val.splits["test"] is data.splits["val"]
    with pytest.raises(ValueError, match=r"no val split to hold out; pass --val_fraction"):
        data_folds.without_test(make_data(), "val", seed=0)


@pytest.mark.parametrize(
    "name", ["test", "0/5", "6/5", "1", "1/", "/5", "a/b", "1/2/3", "-1/5", ""]
)
def test_what_is_no_fold_is_refused(name):
    with pytest.raises(ValueError, match=r"must be val, or a fold .* such as 2/5"):
        data_folds.check_held_out(name)
