"""Distribution-Balanced Loss (Wu et al., ECCV 2020) for Keras.

`dbl_tf.DistributionBalancedLoss(class_counts, num_examples)` goes into `model.compile(loss=…)`.
The modules imported here need no TensorFlow, and register all that a saved model may hold, so that
`keras.models.load_model` finds it; `training`, `prediction` and `serving` are imported by name.
"""

from typing import Any

from dbl_tf import (
    classifiers,
    losses,
    metrics,
    models,
    optimizers,
    ranking_losses,
    robust_losses,
    statistics,
    weighting,
)
from dbl_tf.classifiers import CosineClassifier, GraphClassifier
from dbl_tf.label_graphs import label_graph, read_label_embeddings
from dbl_tf.losses import AsymmetricLoss, DistributionBalancedLoss, LDAMLoss, ReweightedCrossentropy
from dbl_tf.ranking_losses import TwoWayLoss, ZLPRLoss
from dbl_tf.robust_losses import (
    HillLoss,
    LossWarmup,
    Poly1Loss,
    RobustAsymmetricLoss,
    SPLCLoss,
)
from dbl_tf.statistics import LabelStatistics

__all__ = [
    "AsymmetricLoss",
    "CosineClassifier",
    "DistributionBalancedLoss",
    "GraphClassifier",
    "HillLoss",
    "LDAMLoss",
    "LabelStatistics",
    "LossWarmup",
    "Poly1Loss",
    "ReweightedCrossentropy",
    "RobustAsymmetricLoss",
    "SPLCLoss",
    "TwoWayLoss",
    "ZLPRLoss",
    "classifiers",
    "label_graph",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "ranking_losses",
    "read_label_embeddings",
    "robust_losses",
    "statistics",
    "weighting",
]

# Modules of earlier versions, and where their contents are now.
_MOVED = {
    "comparison": "pipelines.reports.comparison and pipelines.reports.variants",
    "evaluation": "dbl_tf.prediction, dbl_tf.training and pipelines.runs.scores",
    "figures": "pipelines.reports.charts",
    "files": "dbl_tf.atomic and dbl_tf.lock",
    "pages": "pipelines.reports.pages",
    "published": "pipelines.reports.published",
    "report": "pipelines.reports.run",
    "svg": "pipelines.reports.charts",
}


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        raise ImportError(f"dbl_tf.{name} has moved to {_MOVED[name]}; see CHANGELOG.md")
    raise AttributeError(f"module 'dbl_tf' has no attribute {name!r}")
