import numpy as np
import pytest

from pipelines.reports import published


def test_published_figures():
    voc, coco = (published.MEAN_AVERAGE_PRECISION[d] for d in ("voc_mlt", "coco_mlt"))
    assert list(voc) == list(coco) and len(voc) == 15
    assert voc["db_focal"] == (78.94, 73.22, 84.18, 79.30)
    assert coco["db_focal"] == (53.55, 51.13, 57.05, 51.06)
    assert coco["ldam"] == (40.53, 48.77, 48.38, 22.92)
    # Sums of the printed columns.
    assert np.sum([*voc.values()], axis=0) == pytest.approx([1126.12, 1057.41, 1235.48, 1099.73])
    assert np.sum([*coco.values()], axis=0) == pytest.approx([729.24, 734.83, 794.33, 640.04])
    # The total is the mean over classes: groups of 6, 6, 8 and of 22, 33, 25 make it up.
    for table, sizes in ((voc, (6, 6, 8)), (coco, (22, 33, 25))):
        for method in ("erm", "rs_focal", "db_focal", "ltml"):
            total, *groups = table[method]
            assert total == pytest.approx(np.dot(groups, sizes) / sum(sizes), abs=0.8)
