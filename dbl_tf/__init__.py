"""Distribution-Balanced Loss (Wu et al., ECCV 2020) for Keras.

`dbl_tf.DistributionBalancedLoss(class_counts, num_examples)` goes into `model.compile(loss=…)`.
Modules are imported when they are first used, and all that a saved model may hold is registered
with Keras as soon as Keras is imported, before or after this package, so that
`keras.models.load_model` finds it.
"""

from typing import TYPE_CHECKING

from dbl_tf import lazy
from dbl_tf.registration import register_with_keras

if TYPE_CHECKING:
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
    from dbl_tf.losses import (
        AsymmetricLoss,
        DistributionBalancedLoss,
        LDAMLoss,
        ReweightedCrossentropy,
    )
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

__getattr__, __dir__ = lazy.attributes(
    __name__,
    {
        "classifiers": ["CosineClassifier", "GraphClassifier"],
        "label_graphs": ["label_graph", "read_label_embeddings"],
        "losses": [
            "AsymmetricLoss",
            "DistributionBalancedLoss",
            "LDAMLoss",
            "ReweightedCrossentropy",
        ],
        "metrics": [],
        "models": [],
        "optimizers": [],
        "ranking_losses": ["TwoWayLoss", "ZLPRLoss"],
        "robust_losses": [
            "HillLoss",
            "LossWarmup",
            "Poly1Loss",
            "RobustAsymmetricLoss",
            "SPLCLoss",
        ],
        "statistics": ["LabelStatistics"],
        "weighting": [],
    },
    _MOVED,
)
register_with_keras()
