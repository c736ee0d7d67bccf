"""Published mAP on the two benchmarks, in percent: total, head, medium and tail.

Tables 1 and 2 of Wu et al., Distribution-Balanced Loss for Multi-Label Classification in
Long-Tailed Datasets, ECCV 2020; and, as `ltml`, the best loss or sampler published since then with
the same backbone: Guo and Wang, Long-Tailed Multi-Label Visual Recognition by Collaborative
Training on Uniform and Re-Balanced Samplings, CVPR 2021. All results are of ResNet-50 at 224²,
pre-trained on ImageNet.
"""

from collections.abc import Mapping
from typing import Any

# mAP in percent by data set and method, in the order of `dbl_tf.metrics.TOTAL_AND_GROUPS`. The
# methods have the names of `dbl_tf.methods`, except `ltml`.
MEAN_AVERAGE_PRECISION: dict[str, dict[str, tuple[float, float, float, float]]] = {
    "voc_mlt": {
        "erm": (70.86, 68.91, 80.20, 65.31),
        "rw": (74.70, 67.58, 82.81, 73.96),
        "focal": (73.88, 69.41, 81.43, 71.56),
        "rs": (75.38, 70.95, 82.94, 73.05),
        "rs_focal": (76.45, 72.05, 83.42, 74.52),
        "ml_gcn": (68.92, 70.14, 76.41, 62.39),
        "ldam": (70.73, 68.73, 80.38, 69.09),
        "cb_focal": (75.24, 70.30, 83.53, 72.74),
        "r_bce": (76.34, 71.40, 82.76, 75.22),
        "r_bce_focal": (77.39, 72.44, 83.16, 76.77),
        "db": (78.65, 73.16, 84.11, 78.66),
        "db_focal": (78.94, 73.22, 84.18, 79.30),
        "rs_rw_focal": (71.96, 63.14, 81.09, 71.73),
        "rs_cb_focal": (75.24, 70.30, 83.53, 72.74),
        "ltml": (81.44, 75.68, 85.53, 82.69),
    },
    "coco_mlt": {
        "erm": (41.27, 48.48, 49.06, 24.25),
        "rw": (42.27, 48.62, 45.80, 32.02),
        "focal": (49.46, 49.80, 54.77, 42.14),
        "rs": (46.97, 47.58, 50.55, 41.70),
        "rs_focal": (51.14, 48.90, 54.79, 48.30),
        "ml_gcn": (44.24, 44.04, 48.36, 38.96),
        "ldam": (40.53, 48.77, 48.38, 22.92),
        "cb_focal": (49.06, 47.91, 53.01, 44.85),
        "r_bce": (49.43, 48.77, 53.00, 45.33),
        "r_bce_focal": (52.75, 50.20, 56.52, 50.02),
        "db": (52.53, 50.25, 56.33, 49.54),
        "db_focal": (53.55, 51.13, 57.05, 51.06),
        "rs_rw_focal": (49.07, 47.80, 52.09, 46.20),
        "rs_cb_focal": (50.07, 48.45, 54.03, 48.28),
        "ltml": (56.90, 54.13, 60.59, 54.47),
    },
}


def mean_average_precision(config: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    """Returns the published mAP of a run's method on its data set in percent, or None.

    Args:
        config: the settings of the run, of which "dataset" and "method" are used.
    """
    dataset, method = str(config.get("dataset")), str(config.get("method"))
    return MEAN_AVERAGE_PRECISION.get(dataset, {}).get(method)
