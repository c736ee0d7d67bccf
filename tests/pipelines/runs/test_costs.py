"""What a run warns of at its start."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from run_data import make_data

from dbl_tf import LabelStatistics
from pipelines.runs import costs
from pipelines.runs.config import RunConfig
from pipelines.runs.resolution import resolve


@pytest.mark.parametrize(("method", "is_warned"), [("rs", True), ("erm", False)])
def test_examples_without_labels_are_never_drawn_by_class(method, is_warned):
    data = make_data(3, 12, num_features=2)
    labels = data.splits["train"].labels.toarray()
    labels[:4] = False
    train = dataclasses.replace(data.splits["train"], labels=scipy.sparse.csr_array(labels))
    data = dataclasses.replace(data, splits={**data.splits, "train": train})
    config = resolve(
        RunConfig.of(dataset="features", examples="x.npz", method=method, batch_size=4), data
    )
    statistics = LabelStatistics.from_labels(np.asarray(labels), data.class_names)
    strategy = tf.distribute.OneDeviceStrategy("CPU:0")
    found = " ".join(costs.cautions(config, data, statistics, strategy))
    assert ("4 of the 12 training examples have no label" in found) == is_warned
