"""Average precision, F1, ranking, ROC and scores of probabilities, and the list of all metrics.

The package needs NumPy only. Its values are those of scikit-learn's `average_precision_score`,
`precision_recall_curve`, `precision_recall_fscore_support`, `roc_auc_score`, `label_ranking_loss`,
`coverage_error`, `log_loss` and `brier_score_loss`, for all classes at once.

Labels that are not known, −1 in integers and NaN in floating-point numbers, are left out: what is
measured of a class is measured on the examples of which it is known, and what is measured of an
example, on the labels that are known of it. The k labels of a top-k decision are taken from all of
them; those that are not known count neither as right nor as wrong.

`METRICS` lists everything that an evaluation measures. The file `metrics.json`, the table in the
terminal, the report of a run and the comparison of several runs all iterate over it: a new metric
is a function of an `Evaluation` and a row of that list.
"""

from dbl_tf.metrics.evaluation import (
    AVERAGE_PRECISION,
    CALIBRATION_ERROR,
    MEAN_AVERAGE_PRECISION,
    METRICS,
    Evaluation,
    Metric,
    measure,
    num_classes_by_group,
)
from dbl_tf.metrics.precision import (
    TOTAL_AND_GROUPS,
    PrecisionRecallCurve,
    average_precision,
    best_f1_thresholds,
    mean_average_precision,
    mean_by_group,
    precision_recall_curve,
    precision_recall_f1,
    top_k_scores,
)
from dbl_tf.metrics.probabilities import (
    brier_score,
    brier_score_by_class,
    expected_calibration_error,
    expected_calibration_error_by_class,
    log_loss,
    log_loss_by_class,
    probability_scores,
)
from dbl_tf.metrics.ranking import (
    area_under_roc,
    coverage,
    micro_area_under_roc,
    ranking_loss,
)

__all__ = [
    "AVERAGE_PRECISION",
    "CALIBRATION_ERROR",
    "MEAN_AVERAGE_PRECISION",
    "METRICS",
    "TOTAL_AND_GROUPS",
    "Evaluation",
    "Metric",
    "PrecisionRecallCurve",
    "area_under_roc",
    "average_precision",
    "best_f1_thresholds",
    "brier_score",
    "brier_score_by_class",
    "coverage",
    "expected_calibration_error",
    "expected_calibration_error_by_class",
    "log_loss",
    "log_loss_by_class",
    "mean_average_precision",
    "mean_by_group",
    "measure",
    "micro_area_under_roc",
    "num_classes_by_group",
    "precision_recall_curve",
    "precision_recall_f1",
    "probability_scores",
    "ranking_loss",
    "top_k_scores",
]
