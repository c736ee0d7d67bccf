"""Distribution-Balanced Loss (Wu et al., ECCV 2020) for Keras.

`dbl_tf.DistributionBalancedLoss(class_counts, num_examples)` goes into `model.compile(loss=…)`.
The modules imported here need no TensorFlow; `models`, `training`, `evaluation` and `serving` are
imported by name.
"""

from dbl_tf import losses, metrics, statistics, weighting
from dbl_tf.losses import DistributionBalancedLoss
from dbl_tf.statistics import LabelStatistics

__all__ = [
    "DistributionBalancedLoss",
    "LabelStatistics",
    "losses",
    "metrics",
    "statistics",
    "weighting",
]
