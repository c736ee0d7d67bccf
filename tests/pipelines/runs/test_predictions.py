import csv

import numpy as np

from pipelines.runs.predictions import write_predictions

NAMES = ("person", "sheep", "yak", "moa")
PROBABILITIES = np.float32([[0.9, 0.2, 0.1, 0.3], [0.6, 0.7, 0.4, 0.1], [0.7, 0.1, 0.2, 0.2]])


def test_predictions_come_back_as_they_were(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(["a", "b", "c"], PROBABILITIES, NAMES, path)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["a", "b", "c"]
    back = np.float32([[row[name] for name in NAMES] for row in rows])
    np.testing.assert_array_equal(back, PROBABILITIES)
