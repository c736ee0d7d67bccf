import csv
import json

import numpy as np
import pytest

from dbl_tf import LabelStatistics
from pipelines.runs import scores as run_scores

COUNTS = np.array([150, 30, 5, 3])
STATISTICS = LabelStatistics(COUNTS, 200, np.diag(COUNTS), ("person", "sheep", "yak", "moa"))
LABELS = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
PROBABILITIES = np.float32([[0.9, 0.2, 0.1, 0.3], [0.6, 0.7, 0.4, 0.1], [0.7, 0.1, 0.2, 0.2]])


def make_scores():
    thresholds = np.array([0.65, 0.5, 0.05, 0.5])
    return run_scores.score(LABELS, PROBABILITIES, STATISTICS, thresholds, "val")


def test_scores_by_hand():
    scores = make_scores()
    # Ranks: person right, wrong, right; sheep right first; yak right last of three.
    assert scores["mAP"]["head"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["mAP"]["medium"] == 1
    assert scores["mAP"]["tail"] == pytest.approx(1 / 3)
    assert scores["mAP"]["total"] == pytest.approx((5 / 6 + 1 + 1 / 3) / 3)
    person = scores["per_class"]["person"]
    assert (person["train_count"], person["test_count"], person["group"]) == (150, 2, "head")
    assert person["at_0.5"] == {"precision": pytest.approx(2 / 3), "recall": 1, "f1": 0.8}
    assert person["at_threshold"]["f1"] == pytest.approx(0.5)
    assert scores["per_class"]["moa"]["ap"] is None
    assert scores["classes_without_test_positives"] == ["moa"]


def test_scores_are_valid_json_without_nan(tmp_path):
    run_scores.write_scores(make_scores(), tmp_path / "metrics.json")
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text)["per_class"]["moa"]["ap"] is None and "NaN" not in text


def test_table_shows_each_group_and_what_is_left_out():
    lines = run_scores.format_table(make_scores()).splitlines()
    assert lines[0].split() == ["total", "head", "medium", "tail"]
    assert lines[1].split() == ["classes", "4", "1", "1", "2"]
    assert lines[2].split() == ["mAP", "%", "72.22", "83.33", "100.00", "33.33"]
    assert "left out of the means: moa" in lines[-1]


def test_predictions_come_back_as_they_were(tmp_path):
    path = tmp_path / "predictions.csv"
    run_scores.write_predictions(["a", "b", "c"], PROBABILITIES, STATISTICS.class_names, path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["a", "b", "c"]
    back = np.float32([[row[name] for name in STATISTICS.class_names] for row in rows])
    np.testing.assert_array_equal(back, PROBABILITIES)


def test_predictions_of_images_that_cannot_be_read_hold_the_reason(tmp_path):
    path = tmp_path / "predictions.csv"
    names = STATISTICS.class_names
    run_scores.write_predictions(["a", "b", "c"], PROBABILITIES, names, path, ["", "cut off", ""])
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["error"] for row in rows] == ["", "cut off", ""]
    assert [row["sheep"] for row in rows] == ["0.200000003", "", "0.100000001"]
