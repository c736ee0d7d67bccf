"""Distribution-Balanced Loss (Wu et al., ECCV 2020) for Keras.

`dbl_tf.DistributionBalancedLoss(class_counts, num_examples)` goes into `model.compile(loss=…)`.
The modules imported here need no TensorFlow; `models`, `training`, `prediction` and `serving` are
imported by name.
"""

from dbl_tf import classifiers, losses, metrics, statistics, weighting
from dbl_tf.classifiers import CosineClassifier, GraphClassifier
from dbl_tf.label_graphs import label_graph, read_label_embeddings
from dbl_tf.losses import AsymmetricLoss, DistributionBalancedLoss, LDAMLoss, ReweightedCrossentropy
from dbl_tf.statistics import LabelStatistics

__all__ = [
    "AsymmetricLoss",
    "CosineClassifier",
    "DistributionBalancedLoss",
    "GraphClassifier",
    "LDAMLoss",
    "LabelStatistics",
    "ReweightedCrossentropy",
    "classifiers",
    "label_graph",
    "losses",
    "metrics",
    "read_label_embeddings",
    "statistics",
    "weighting",
]
