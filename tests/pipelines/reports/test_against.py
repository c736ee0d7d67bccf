import csv
import json

import numpy as np
import pytest
import sklearn.metrics

from pipelines.reports import against
from pipelines.reports.changes import KINDS, MIN_IMAGES, Changes
from pipelines.runs.against import format_summary

NAMES = ("=1+1", "sea", "tree", "boat", "gull")
THRESHOLDS = [np.full(5, 0.45), np.full(5, 0.5)]


def predictions(num=300, better=1.5, seed=0):
    """Labels, of which the last has no image and the fourth four; two models, of which the new one
    is better on the second label."""
    rng = np.random.default_rng(seed)
    labels = rng.random((num, 5)) < [0.5, 0.3, 0.2, 0.0, 0.0]
    labels[:4, 3] = True
    logits = rng.normal(1.5 * labels - 0.5, 1)
    new = logits + 0.2 * rng.normal(size=logits.shape)
    new[:, 1] += better * (labels[:, 1] - 0.5)
    return labels, [(1 / (1 + np.exp(-z))).astype(np.float32) for z in (logits, new)]


def write(folder, labels, probabilities, thresholds=THRESHOLDS, names=NAMES, **changed):
    arguments = dict(
        title="New against old",
        models={"old": "runs/old", "new": "runs/new"},
        data_name="examples",
        class_names=names,
        groups=["head", "head", "medium", "tail", "tail"],
        train_counts=[200, 150, 50, 9, 0],
        labels=labels,
        probabilities=probabilities,
        thresholds=thresholds,
        image_names=[f"images/{i}.jpg" for i in range(len(labels))],
        read_images=lambda chosen: (np.full((40, 60, 3), i % 256, np.uint8) for i in chosen),
        only={"old": ["whale"], "new": [], "data": []},
        num_resamples=200,
    )
    return against.write(folder, **arguments | changed)


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def written(tmp_path, read_page):
    labels, probabilities = predictions()
    content = write(tmp_path, labels, probabilities)
    return labels, probabilities, content, read_page(tmp_path / against.PAGE)


def test_scores_and_changes_are_those_of_the_two_models(written, tmp_path):
    labels, probabilities, content, page = written
    assert json.loads((tmp_path / against.DATA).read_text()) == content
    given = [p >= t for p, t in zip(probabilities, THRESHOLDS, strict=True)]
    changed = {
        "found now": labels & given[1] & ~given[0],
        "lost": labels & given[0] & ~given[1],
        "new false alarm": ~labels & given[1] & ~given[0],
        "false alarm gone": ~labels & given[0] & ~given[1],
    }
    assert tuple(changed) == KINDS
    assert content["changed decisions"] == {k: v.sum() for k, v in changed.items()}
    values = []
    for i, name in enumerate(NAMES[:4]):
        row, shown = content["labels"][name], page.table("labels", name)
        for k, model in enumerate(("old", "new")):
            expected = {
                "AP %": sklearn.metrics.average_precision_score(
                    labels[:, i], probabilities[k][:, i]
                ),
                "precision %": sklearn.metrics.precision_score(labels[:, i], given[k][:, i]),
                "recall %": sklearn.metrics.recall_score(labels[:, i], given[k][:, i]),
                "F1 %": sklearn.metrics.f1_score(labels[:, i], given[k][:, i]),
            }
            for heading, value in expected.items():
                assert row[f"{heading}, {model}"] == pytest.approx(100 * value)
                assert shown[f"{heading}, {model}"] == pytest.approx(100 * value, abs=0.0051)
            assert row[f"given, {model}"] == given[k][:, i].sum()
            assert row[f"right, {model}"] == (given[k] & labels)[:, i].sum()
        assert [row[kind] for kind in KINDS] == [v[:, i].sum() for v in changed.values()]
        values.append([row["AP %, old"] / 100, row["AP %, new"] / 100])
    m_ap = np.mean(values, axis=0)
    assert [content["mAP"]["old"], content["mAP"]["new"]] == pytest.approx(m_ap.tolist())
    pooled = [sklearn.metrics.f1_score(labels, g, average="micro") for g in given]
    assert [content["F1"]["old"], content["F1"]["new"]] == pytest.approx(pooled)
    assert content["labels"]["gull"]["AP %, new"] is None
    # The mean is over four labels, as computed above.
    in_mean = "4 labels; 1 without test images left out"
    assert f"(mean average precision, {in_mean}): {100 * m_ap[0]:.1f} %" in page.text
    assert f"mAP is over {in_mean}" in format_summary(content)
    rows = read_rows(tmp_path / against.IMAGES)
    found = {(row["image"], row["label"].removeprefix("'"), row["change"]) for row in rows}
    assert len(rows) == len(found) == sum(v.sum() for v in changed.values())
    for kind, of_kind in changed.items():
        expected = {(f"images/{k}.jpg", NAMES[i], kind) for k, i in np.argwhere(of_kind)}
        assert {row for row in found if row[2] == kind} == expected
    for row in rows[:20]:
        at = int(row["image"][7:-4]), NAMES.index(row["label"].removeprefix("'"))
        shown = [float(row[model]) for model in ("old", "new")]
        assert shown == pytest.approx([p[at] for p in probabilities], rel=1e-5)
        assert [row[f"threshold, {model}"] for model in ("old", "new")] == ["0.45", "0.5"]


def test_only_what_chance_does_not_explain_is_called_a_change(written):
    _, _, content, page = written
    verdicts = {name: row["verdict"] for name, row in content["labels"].items()}
    assert verdicts == {"=1+1": "–", "sea": "gain", "tree": "–", "boat": "–", "gull": "–"}
    assert "Found better, beyond chance: 1 label (sea +" in page.text
    assert "Found worse, beyond chance: 0 labels." in page.text
    assert "it does not know some labels of the old model" in page.text
    assert f"with fewer than {MIN_IMAGES} images, no change" in page.data["facts"][3].lower()
    assert "Only the old model knows whale." in page.text


def test_the_other_way_round_it_is_a_loss(tmp_path, read_page):
    labels, probabilities = predictions(better=3)
    labels[:, 3] = False  # whose few images alone make the mean uncertain
    content = write(tmp_path, labels, probabilities[::-1], only={})
    page = read_page(tmp_path / against.PAGE)
    assert content["labels"]["sea"]["verdict"] == "loss"
    assert content["mAP"]["high"] < 0
    assert "Against: it ranks images worse over all labels" in page.text


def test_intervals_are_those_of_images_that_are_drawn_again():
    labels, probabilities = predictions(num=400)
    changes = Changes.of(labels, probabilities, THRESHOLDS, 1000)
    rng, of_label, of_f1 = np.random.default_rng(1), [], []
    for _ in range(300):
        drawn = rng.integers(0, 400, 400)
        aps = [
            sklearn.metrics.average_precision_score(labels[drawn, 1], p[drawn, 1])
            for p in probabilities
        ]
        f1s = [
            sklearn.metrics.f1_score(labels[drawn], (p >= t)[drawn], average="micro")
            for p, t in zip(probabilities, THRESHOLDS, strict=True)
        ]
        of_label.append(aps[1] - aps[0])
        of_f1.append(f1s[1] - f1s[0])
    ends = [0.025, 0.975]
    assert changes.intervals[1] == pytest.approx(np.quantile(of_label, ends), abs=0.02)
    assert [changes.f1.low, changes.f1.high] == pytest.approx(np.quantile(of_f1, ends), abs=0.01)


def test_equal_models_have_no_change(tmp_path, read_page):
    labels, (one, _) = predictions()
    content = write(tmp_path, labels, [one, one], [THRESHOLDS[0]] * 2, read_images=None, only={})
    page = read_page(tmp_path / against.PAGE)
    assert content["mAP"]["difference"] == content["mAP"]["high"] == 0
    assert "These data show no difference between the two." in page.text
    assert "Both models give the same labels to all examples." in page.text
    assert read_rows(tmp_path / against.IMAGES) == []


def test_unknown_labels_are_neither_right_nor_wrong():
    labels, probabilities = predictions()
    partly = np.where(np.arange(300)[:, None] % 3 > 0, labels, -1).astype(np.int8)
    known = np.arange(300) % 3 > 0
    found = Changes.of(partly, probabilities, THRESHOLDS, 20)
    expected = Changes.of(labels[known], [p[known] for p in probabilities], THRESHOLDS, 20)
    np.testing.assert_array_equal(found.average_precision, expected.average_precision)
    np.testing.assert_array_equal(found.decisions.by_label(), expected.decisions.by_label())
    np.testing.assert_array_equal(found.given, expected.given)
    assert found.f1.values == expected.f1.values


def test_hostile_names_stay_names(tmp_path, read_page, hostile):
    labels, probabilities = predictions()
    names = (hostile, "-2", "@x", "\u202etxt", "x" * 300)
    images = [f"={hostile}{i}" for i in range(300)]
    only = {"new": [hostile]}
    write(tmp_path, labels, probabilities, names=names, image_names=images, only=only)
    page = read_page(tmp_path / against.PAGE)
    assert "\x00" not in page.source and "\u202e" not in page.source
    for file in (against.LABELS, against.IMAGES):
        for row in read_rows(tmp_path / file):
            assert row[next(iter(row))][0] not in "=-@"
