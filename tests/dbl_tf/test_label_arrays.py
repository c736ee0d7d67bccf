"""Labels in the containers that people have them in, wherever labels are taken."""

import importlib.util
import re

import keras
import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

import dbl_tf
from dbl_tf import label_arrays, metrics, weighting
from pipelines import inputs, sampling

LABELS = np.array([[1, 0, 0], [0, 1, 1], [0, 1, 0], [1, 1, 0]])
COUNTS = [2, 3, 1]

# What takes the labels of a training set or of a batch, as a function that returns an array.
USERS = {
    "statistics": lambda labels: dbl_tf.LabelStatistics.from_labels(labels).cooccurrence,
    "probability": lambda labels: dbl_tf.LabelStatistics.from_labels(LABELS).instance_probability(
        labels
    ),
    "sampler": lambda labels: next(iter(sampling.class_aware_indices(labels, 8, seed=0))),
    "cycle": lambda labels: next(iter(sampling.class_cycle_indices(labels, 8, seed=0))),
    "pipeline": lambda labels: inputs.dense_labels(labels)(tf.constant([2, 0], tf.int64)),
    "weights": lambda labels: weighting.rebalanced_weights(labels, COUNTS),
    "loss": lambda labels: dbl_tf.DistributionBalancedLoss(COUNTS, 4, reduction=None)(
        labels, np.zeros((4, 3), np.float32)
    ),
    "row loss": lambda labels: dbl_tf.ZLPRLoss()(labels, np.zeros((4, 3), np.float32)),
    "metric": lambda labels: metrics.average_precision(labels, np.arange(12.0).reshape(4, 3)),
}
CONTAINERS = {
    "lists": lambda: LABELS.tolist(),
    "booleans": lambda: LABELS > 0,
    "objects": lambda: LABELS.astype(object),
    "sparse matrix": lambda: scipy.sparse.coo_matrix(LABELS),
    "tensor": lambda: tf.constant(LABELS),
    "sparse tensor": lambda: tf.sparse.from_dense(LABELS),
    "ragged tensor": lambda: tf.ragged.constant(LABELS.tolist()),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("user", USERS)
def test_containers_of_labels_mean_the_same(user, container):
    expected = np.asarray(USERS[user](LABELS))
    np.testing.assert_allclose(USERS[user](CONTAINERS[container]()), expected, rtol=1e-6)


BINARIZER = r"MultiLabelBinarizer\(classes=CLASSES\)\.fit_transform\(labels\)"
REFUSED = {
    "class ids": ([[0, 2], [1], [], [0]], rf"got rows of 0 to 2 entries.*{BINARIZER}"),
    "names": ([["cat"], ["dog", "cat"]], rf"got rows of 1 to 2 entries.*{BINARIZER}"),
    "sets": ([{0, 2}, {1, 0}], rf"a set.*{BINARIZER}"),
    "joined names": (np.array(["cat|dog", "dog"]), rf"a text.*{BINARIZER}"),
    "ragged ids": (tf.ragged.constant([[0, 2], [1]]), rf"got rows of 1 to 2 entries.*{BINARIZER}"),
    "one id each": ([2, 0, 1], r"got \(3,\).*numpy\.eye\(C\)\[labels\]"),
    "strings": (np.array([["0", "1"], ["1", "0"]]), r"text '0' in row 0.*\.astype\(int\)"),
    "strings in lists": ([["1", "0"], ["0", "1"]], r"text '1' in row 0.*\.astype\(int\)"),
    "words": ([["cat", "dog"], ["cat", "cat"]], rf"text 'cat' in row 0.*{BINARIZER}"),
    "gaps": (np.array([[1, 0], [None, 1]]), r"got None in row 1, column 0.*na_value=0"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("user", USERS)
def test_what_is_no_multi_hot_array_is_refused_with_what_to_do(user, kind):
    labels, message = REFUSED[kind]
    with pytest.raises(ValueError, match=rf"(?s)labels must be of shape \(N, C\).*{message}"):
        USERS[user](labels)


def test_lists_of_equally_many_class_ids_are_told_from_labels():
    with pytest.raises(ValueError, match=rf"found 2 in row 0, class '1'.*{BINARIZER}"):
        dbl_tf.LabelStatistics.from_labels([[0, 2], [1, 2]])
    with pytest.raises(ValueError, match=rf"found 2 in row 0, class 1.*{BINARIZER}"):
        sampling.class_aware_indices([[0, 2], [1, 2]], 2, seed=0)


def test_data_frames_with_gaps_are_refused_and_the_advice_helps():
    if importlib.util.find_spec("pandas") is None:
        pytest.skip("pandas is not installed")
    import pandas as pd

    table = pd.DataFrame({"cat": [1, None, 1], "dog": [0, 1, 0]}, dtype="Int64")
    with pytest.raises(ValueError, match=r"got <NA> in row 1, column 0") as error:
        dbl_tf.LabelStatistics.from_labels(table)
    advice = re.search(r"table\.to_numpy\(.*?\)", str(error.value)).group()
    statistics = dbl_tf.LabelStatistics.from_labels(eval(advice))
    assert statistics.class_counts.tolist() == [2, 1]


def test_data_frames_with_other_columns_are_refused_and_the_advice_helps():
    if importlib.util.find_spec("pandas") is None:
        pytest.skip("pandas is not installed")
    import pandas as pd

    table = pd.DataFrame(
        {"image": ["a.jpg", "b.jpg"], "cat": [1, 0], "names": [["cat"], ["dog"]], "dog": [0, 1]}
    )
    with pytest.raises(ValueError, match=r"column 'image' holds a text, such as 'a\.jpg'") as error:
        dbl_tf.LabelStatistics.from_labels(table)
    assert "its columns are 'image', 'cat', 'names', 'dog'. Pass" in str(error.value)
    advice = re.search(r"table\[\[.*?\]\]", str(error.value)).group()
    assert advice == "table[['cat', 'dog']]"
    assert dbl_tf.LabelStatistics.from_labels(eval(advice)).class_counts.tolist() == [1, 1]
    with pytest.raises(ValueError, match=rf"'names' holds a list, such as \['cat'\].*{BINARIZER}"):
        dbl_tf.LabelStatistics.from_labels(table[["names"]])
    digits = pd.DataFrame({"cat": ["1", "0"], "dog": ["0", "1"]})
    with pytest.raises(ValueError, match=r"Convert them by numpy\.asarray\(labels\)\.astype"):
        dbl_tf.LabelStatistics.from_labels(digits)


def test_the_advice_for_class_ids_gives_the_labels():
    from sklearn.preprocessing import MultiLabelBinarizer

    labels = MultiLabelBinarizer(classes=range(3)).fit_transform([[0], [1, 2], [1], [0, 1]])
    np.testing.assert_array_equal(label_arrays.label_array(labels), LABELS)


@pytest.mark.parametrize("run_eagerly", [False, True])
def test_fit_takes_sparse_labels(run_eagerly):
    def trained(labels):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(3)])
        loss = dbl_tf.DistributionBalancedLoss(COUNTS, 4)
        model.compile(keras.optimizers.SGD(1.0), loss, run_eagerly=run_eagerly)
        batches = tf.data.Dataset.from_tensor_slices((np.eye(4, 3, dtype=np.float32), labels))
        model.fit(batches.batch(4), epochs=2, verbose=0)
        return model.get_weights()

    dense, sparse = trained(LABELS), trained(tf.sparse.from_dense(LABELS))
    for expected, weight in zip(dense, sparse, strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-6)


def test_ragged_labels_are_refused_where_their_rows_cannot_be_seen():
    @tf.function
    def compiled(labels):
        return dbl_tf.AsymmetricLoss()(labels, tf.zeros((4, 3)))

    with pytest.raises(ValueError, match=r"ragged tensor.*labels\.to_tensor\(\)"):
        compiled(tf.ragged.constant(LABELS.tolist()))
