import json
import re

import numpy as np
import pytest
import sklearn.metrics

from dbl_tf import LabelStatistics, metrics, saved_json
from pipelines.runs import closing
from pipelines.runs import scores as run_scores

COUNTS = np.array([150, 30, 5, 3])
STATISTICS = LabelStatistics(COUNTS, 200, np.diag(COUNTS), ("person", "sheep", "yak", "moa"))
LABELS = np.array([[1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
PROBABILITIES = np.float32([[0.9, 0.2, 0.1, 0.3], [0.6, 0.7, 0.4, 0.1], [0.7, 0.1, 0.2, 0.2]])


def make_scores():
    thresholds = run_scores.Thresholds(np.array([0.65, 0.5, 0.05, 0.5]), "val")
    return run_scores.score(LABELS, PROBABILITIES, STATISTICS, thresholds)


def at(precision, recall, f1, **others):
    values = {"precision": precision, "recall": recall, "f1": f1, **others}
    return {name: pytest.approx(value) for name, value in values.items()}


def of_probabilities(probabilities, labels):
    """The three scores of a class whose probabilities are in bins of their own."""
    of_truth = np.where(labels, probabilities, 1 - probabilities)
    return {
        "log_loss": pytest.approx(-np.log(of_truth).mean()),
        "brier_score": pytest.approx(np.mean((1 - of_truth) ** 2)),
        "calibration_error": pytest.approx(np.mean(1 - of_truth)),
    }


def decisions(*values):
    names = ("CP", "CR", "CF1", "OP", "OR", "OF1")
    return {name: pytest.approx(v) for name, v in zip(names, values, strict=True)}


def by_group(person, sheep, yak):
    means = {"total": (person + sheep + yak) / 3, "head": person, "medium": sheep, "tail": yak}
    return {name: pytest.approx(value) for name, value in means.items()}


def test_scores_by_hand():
    scores = make_scores()
    # Person: 0.9 right, 0.7 wrong, 0.6 right, and the threshold 0.65 between them.
    assert scores.pop("curves")["person"] == {
        "thresholds": [pytest.approx(t) for t in (0.9, 0.7, 0.65, 0.6)],
        "precision": [1, 0.5, 0.5, pytest.approx(2 / 3)],
        "recall": [0.5, 0.5, 0.5, 1],
        "given": [1, 2, 2, 3],
    }
    intervals = [entry.pop("ap_interval") for entry in scores["per_class"].values()]
    assert intervals[1] == [1, 1] and intervals[3] is None  # sheep is first in any resample
    # Ranks: person right, wrong, right; sheep right first; yak right last of three.
    assert scores == {
        "mAP": {
            "total": pytest.approx(13 / 18),
            "head": pytest.approx(5 / 6),
            "medium": 1,
            "tail": pytest.approx(1 / 3),
        },
        "F1": {
            "micro_at_0.5": pytest.approx(6 / 8),
            "macro_at_0.5": pytest.approx(1.8 / 3),
            "micro_at_threshold": pytest.approx(6 / 10),
            "macro_at_threshold": pytest.approx(2 / 3),
            "thresholds_from": "val",
        },
        "probabilities": {
            "log_loss": pytest.approx(
                -np.log(np.where(LABELS, PROBABILITIES, 1 - PROBABILITIES)).mean()
            ),
            "brier_score": pytest.approx(np.mean((PROBABILITIES - LABELS) ** 2)),
            # Bins of 0.1, 0.2, 0.3, 0.4, 0.6, 0.7 and 0.9, their sums against their positives.
            "calibration_error": pytest.approx((0.7 + 0.6 + 0.3 + 0.4 + 0.4 + 0.4 + 0.1) / 12),
        },
        # Moa has no positive, and is left out of the means.
        "log_loss": by_group(*(-np.log([0.9 * 0.6 * 0.3, 0.8 * 0.7 * 0.9, 0.1 * 0.6 * 0.8]) / 3)),
        "brier_score": by_group(0.66 / 3, 0.14 / 3, 1.01 / 3),
        "calibration_error": by_group(1.2 / 3, 0.6 / 3, 1.5 / 3),
        "decisions": {
            "at_0.5": decisions(5 / 9, 2 / 3, 20 / 33, 3 / 4, 3 / 4, 3 / 4),
            "at_threshold": decisions(11 / 18, 5 / 6, 55 / 78, 1 / 2, 3 / 4, 3 / 5),
            # Person three times, and each of the others twice.
            "top_3": decisions(7 / 18, 2 / 3, 28 / 57, 1 / 3, 3 / 4, 6 / 13),
        },
        # The first image ranks yak, which it has, below sheep and moa. The last has no label.
        "ranking": {
            "ranking_loss": pytest.approx(0.5 / 3),
            "coverage": pytest.approx((4 + 2 + 0) / 3),
            # Of 8 negatives, below 0.9, 0.7, 0.6 and 0.1; ties count half.
            "micro_AUC": pytest.approx((8 + 7.5 + 7 + 1) / 32),
        },
        "AUC": by_group(1 / 2, 1, 0),
        "num_test_examples": 3,
        "classes_without_test_positives": ["moa"],
        "per_class": {
            "person": {
                "ap": pytest.approx(5 / 6),
                "AUC": 0.5,
                "train_count": 150,
                "test_count": 2,
                "group": "head",
                "at_0.5": at(2 / 3, 1, 0.8),
                "at_threshold": at(0.5, 0.5, 0.5, threshold=0.65),
                **of_probabilities(PROBABILITIES[:, 0], LABELS[:, 0]),
            },
            "sheep": {
                "ap": 1,
                "AUC": 1,
                "train_count": 30,
                "test_count": 1,
                "group": "medium",
                "at_0.5": at(1, 1, 1),
                "at_threshold": at(1, 1, 1, threshold=0.5),
                **of_probabilities(PROBABILITIES[:, 1], LABELS[:, 1]),
            },
            "yak": {
                "ap": pytest.approx(1 / 3),
                "AUC": 0,
                "train_count": 5,
                "test_count": 1,
                "group": "tail",
                "at_0.5": at(0, 0, 0),
                "at_threshold": at(1 / 3, 1, 0.5, threshold=0.05),
                **of_probabilities(PROBABILITIES[:, 2], LABELS[:, 2]),
            },
            "moa": {
                "ap": None,
                "AUC": None,
                "train_count": 3,
                "test_count": 0,
                "group": "tail",
                "at_0.5": at(0, 0, 0),
                "at_threshold": at(0, 0, 0, threshold=0.5),
                **of_probabilities(PROBABILITIES[:, 3], LABELS[:, 3]),
            },
        },
    }


def test_scores_are_valid_json_without_nan(tmp_path):
    run_scores.write_scores(make_scores(), tmp_path / "metrics.json")
    text = (tmp_path / "metrics.json").read_text()
    assert json.loads(text)["per_class"]["moa"]["ap"] is None and "NaN" not in text
    assert run_scores.read_scores(tmp_path / "metrics.json") == make_scores()
    assert sum('"thresholds": [' in line for line in text.splitlines()) == 4  # a line a class


def test_table_shows_each_group_and_what_is_left_out():
    lines = run_scores.format_table(make_scores()).splitlines()
    assert [line.split() for line in lines[:6]] == [
        ["total", "head", "medium", "tail"],
        ["tested", "labels", "3", "1", "1", "1"],
        ["untested", "labels", "1", "0", "0", "1"],
        ["mAP", "%", "72.22", "83.33", "100.00", "33.33"],
        ["micro", "F1", "%", "60.00"],
        ["macro", "F1", "%", "66.67"],
    ]
    assert lines[6] == "Decisions are at thresholds chosen on val."
    assert lines[7] == "These labels have no test image and are left out of the means: moa"


def test_table_has_a_dash_for_an_empty_group():
    counts = np.array([50, 30, 25, 22])
    statistics = LabelStatistics(counts, 200, np.diag(counts), STATISTICS.class_names)
    thresholds = run_scores.Thresholds(np.full(4, 0.5), "val")
    scores = run_scores.score(LABELS, PROBABILITIES, statistics, thresholds)
    lines = run_scores.format_table(scores).splitlines()
    assert lines[3].split() == ["mAP", "%", "72.22", "–", "72.22", "–"]


def test_a_metric_is_a_row_of_the_list(monkeypatch, tmp_path):
    def rate_of_decisions(evaluation):
        return (evaluation.scores >= evaluation.thresholds).mean(axis=0)

    added = (
        metrics.Metric(("at_threshold", "rate"), "class", rate_of_decisions, "", heading="rate"),
        metrics.Metric(
            ("rates", "mean"),
            "group",
            lambda e: e.mean_by_group(rate_of_decisions(e)),
            "",
            heading="rate",
            percent=False,
            digits=1,
        ),
    )
    before = make_scores()
    for module in (metrics.evaluation, metrics):
        monkeypatch.setattr(module, "METRICS", (*metrics.METRICS, *added))
    run_scores.write_scores(make_scores(), tmp_path / "metrics.json")
    scores = run_scores.read_scores(tmp_path / "metrics.json")
    rates = [entry["at_threshold"].pop("rate") for entry in scores["per_class"].values()]
    assert rates == pytest.approx([2 / 3, 1 / 3, 1, 0])
    last = run_scores.format_table(scores).splitlines()[6]
    assert last.split() == ["rate", "0.5", "0.7", "0.3", "0.5"]
    assert scores.pop("rates") == {
        "mean": pytest.approx({"total": 0.5, "head": 2 / 3, "medium": 1 / 3, "tail": 0.5})
    }
    assert scores == before  # nothing else changes


def test_thresholds_come_back_by_the_names_of_their_classes(tmp_path):
    path, names = tmp_path / "thresholds.json", ("b", "caf\u00e9", "a")
    thresholds = run_scores.Thresholds(np.array([0.1, 1 / 3, 0.5]), "train")
    thresholds.save(path, names)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["thresholds"] == {"b": 0.1, "caf\u00e9": 1 / 3, "a": 0.5}
    loaded = run_scores.Thresholds.load(path, names)
    np.testing.assert_array_equal(loaded.values, thresholds.values)
    assert loaded.chosen_on == "train"
    # The order of a file does not count, and that of the model does.
    loaded = run_scores.Thresholds.load(path, sorted(names))
    np.testing.assert_array_equal(loaded.values, [0.5, 0.1, 1 / 3])


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("b", "c", "a"), "holds no thresholds: the model has no class 'caf\u00e9'"),
        (
            ("b", "Caf\u00e9", "a"),
            "the model has no class 'caf\u00e9'; did you mean 'Caf\u00e9'?",
        ),
        (
            ("b", "caf\u00e9", "a", "d"),
            "holds no thresholds: it has no threshold of 'd'; restore it",
        ),
    ],
)
def test_thresholds_of_other_classes_are_refused(names, words, tmp_path):
    path = tmp_path / "thresholds.json"
    run_scores.Thresholds(np.full(3, 0.5), "val").save(path, ("b", "caf\u00e9", "a"))
    with pytest.raises(ValueError, match=re.escape(words)):
        run_scores.Thresholds.load(path, names)


def test_thresholds_of_earlier_versions_have_no_names_and_go_by_their_number(tmp_path, caplog):
    path = tmp_path / "thresholds.json"
    earlier = saved_json.Format("dbl_tf.Thresholds", "thresholds", dict, "", version=2)
    earlier.write(path, {"thresholds": [0.25, 0.75], "chosen_on": "val"})
    loaded = run_scores.Thresholds.load(path, ("b", "a"))
    np.testing.assert_array_equal(loaded.values, [0.25, 0.75])
    assert loaded.chosen_on == "val" and not caplog.records
    with pytest.raises(ValueError, match=r"it has 2 thresholds, and the model has 3 c"):
        run_scores.Thresholds.load(path, ("b", "a", "c"))


def test_the_closing_shows_the_worst_and_best_labels_and_hostile_names_in_plain_text(tmp_path):
    count = 12
    names = [f"label {i}" for i in range(count - 2)] + ["\x1b[2J\nred\u202e", "long " * 40]
    random = np.random.default_rng(0)
    labels = random.random((400, count)) < np.linspace(0.05, 0.5, count)
    labels = np.where(random.random(labels.shape) < 0.1, -1, labels)
    probabilities = random.random(labels.shape, np.float32)
    positives = labels == 1
    counts = positives.sum(axis=0)
    statistics = LabelStatistics(counts, 400, np.diag(counts), tuple(names))
    thresholds = run_scores.Thresholds(np.full(count, 0.5), "val")
    scores = run_scores.score(labels, probabilities, statistics, thresholds)
    (tmp_path / "report.html").touch()
    text = closing.describe(scores, tmp_path)
    assert text.replace("\n", "").isprintable()
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("the worst labels"))
    shown = [*lines[start + 1 : start + 6], *lines[start + 7 : start + 12]]
    expected = []
    for i, name in enumerate(names):
        known = labels[:, i] >= 0
        truth, score = positives[known, i], probabilities[known, i]
        ap = sklearn.metrics.average_precision_score(truth, score)
        f1 = sklearn.metrics.f1_score(truth, score >= 0.5)
        start_of_name = {"\x1b[2J\nred\u202e": r"\x1b[2J\nred\u202e"}.get(name, name[:31])
        cells = [str(truth.sum()), *(f"{100 * x:.2f}" for x in (ap, truth.mean(), f1))]
        expected.append((ap, start_of_name, cells))
    expected.sort()
    for line, (_, start_of_name, cells) in zip(shown, expected[:5] + expected[-5:], strict=True):
        assert line.startswith(start_of_name) and line.split()[-4:] == cells
    assert f"report: {tmp_path / 'report.html'}" in lines and lines[-1].startswith("next: open")
