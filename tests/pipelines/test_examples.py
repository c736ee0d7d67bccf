import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from run_data import make_data

from pipelines import examples
from pipelines.examples import Examples, LabelledData, set_aside_val


def long_tailed(num_examples: int = 400) -> LabelledData:
    """Classes held by 200, 100, 50, … 3, 1, 1 examples at random places, some with none."""
    random = np.random.default_rng(5)
    labels = np.zeros((num_examples, 9), bool)
    for column, count in enumerate((200, 100, 50, 25, 12, 6, 3, 1, 1)):
        labels[random.choice(num_examples, count, replace=False), column] = True
    labels = scipy.sparse.csr_array(labels)
    names = [str(i) for i in range(num_examples)]
    train = Examples(names, labels, lambda position: tf.strings.as_string(position))
    return LabelledData(tuple("abcdefghi"), {"train": train, "test": train.take(np.arange(3))})


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.95])
def test_every_class_keeps_a_train_example_and_large_ones_their_share(fraction):
    data = long_tailed()
    counts = data.splits["train"].labels.sum(axis=0, dtype=int)
    for seed in range(20):
        splits = set_aside_val(data, fraction, seed=seed).splits
        left = splits["train"].labels.sum(axis=0, dtype=int)
        assert (left >= 1).all()
        assert (left + splits["val"].labels.sum(axis=0, dtype=int) == counts).all()
        num_val = len(splits["val"])
        assert 400 * fraction - 9 <= num_val <= 400 * fraction  # up to one goes back for a class
        # An example is stratified by its rarest class, so the other labels vary at random:
        # four standard deviations of a hypergeometric number bound them.
        spread = 4 * np.sqrt(counts * fraction * (1 - fraction)) + 2
        assert (np.abs(left - counts * (1 - fraction)) <= spread).all()
        assert set(splits["train"].names).isdisjoint(splits["val"].names)


def test_val_reads_the_images_that_left_train():
    splits = set_aside_val(long_tailed(), 0.25, seed=3).splits
    val = splits["val"]
    assert [val.read(tf.constant(i)).numpy().decode() for i in range(len(val))] == val.names
    again = set_aside_val(long_tailed(), 0.25, seed=3).splits["val"].names
    assert again == val.names
    assert set_aside_val(long_tailed(), 0.25, seed=4).splits["val"].names != val.names


def test_val_beside_a_val_split_or_of_nothing_is_refused():
    data = set_aside_val(long_tailed(), 0.25, seed=3)
    with pytest.raises(ValueError, match="there is a val split already"):
        set_aside_val(data, 0.25, seed=3)
    single = LabelledData(("a",), {"train": long_tailed().splits["train"].take([0])})
    with pytest.raises(ValueError, match="sets nothing aside: there are 1 train images"):
        set_aside_val(single, 0.5, seed=0)


def test_labels_are_moved_to_the_columns_of_a_model():
    labels = scipy.sparse.csr_array(np.array([[1, 0, 0], [1, 1, 0]], bool))
    examples = Examples(["x", "y"], labels, lambda position: position)
    data = LabelledData(("cat", "dog", "unused"), {"test": examples})
    moved = data.with_classes(["dog", "sheep", "cat"])
    assert moved.class_names == ("dog", "sheep", "cat")
    assert moved.splits["test"].labels.toarray().tolist() == [[0, 0, 1], [1, 0, 1]]
    with pytest.raises(ValueError, match=r"1 classes of the data are not among the 1 .*: dog"):
        data.with_classes(["cat"])


def test_parts_of_parts_know_their_places_in_the_whole():
    train = make_data(3, 12).splits["train"]
    rest, taken = train.divide(np.arange(12) % 3 == 0)
    assert taken.names == [train.names[i] for i in (0, 3, 6, 9)]
    first, second = rest.divide(np.arange(8) >= 5)
    for part in (rest, taken, first, second):
        whole, positions = part.whole
        assert whole is train
        assert part.names == [train.names[i] for i in positions]
    assert [len(part) for part in (rest, taken, first, second)] == [8, 4, 5, 3]
    assert first.take(np.array([0])).whole is None


def test_moments_of_features_keep_their_digits_over_blocks(monkeypatch):
    monkeypatch.setattr(examples, "_ROWS_PER_BLOCK", 7)
    rows = np.arange(0, 50, 2)
    offsets = np.array([0, 1e4, -3])
    array = (np.random.default_rng(0).normal(size=(50, 3)) + offsets).astype(np.float32)
    means, deviations = examples.FeatureRows(array, rows).moments()
    of_rows = array[rows].astype(np.float64)
    np.testing.assert_allclose(means, of_rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(deviations, of_rows.std(0), rtol=1e-9)
