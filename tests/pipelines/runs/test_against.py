"""Two exported models on the same data: what differs, and what is refused."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics

from dbl_tf import LabelStatistics
from pipelines.runs import against
from pipelines.runs.config import DataConfig, RunConfig
from pipelines.runs.train import train_and_evaluate

NAMES = ("sun", "sea", "=HYPERLINK(1)", "boat")


def make_sides(labels, seed=0):
    random = np.random.default_rng(seed)
    # Few digits make ties, between positives and negatives too.
    scores = [np.round(random.random(labels.shape) * 0.6 + 0.3 * (labels == 1), 2) for _ in "ab"]
    return [
        against.Side(f"model/{i}", s.astype(np.float32), np.full(labels.shape[1], 0.5 + 0.1 * i))
        for i, s in enumerate(scores)
    ]


def make_labels(num_examples=60, seed=1):
    labels = (np.random.default_rng(seed).random((num_examples, 4)) < 0.3).astype(np.int8)
    labels[::7, 1] = -1
    labels[:, 3] = 0
    return labels


def test_resamples_weigh_both_models_alike_and_agree_with_scikit_learn():
    labels = make_labels()
    new, old = make_sides(labels)
    found = against.resampled_differences(
        labels, new.probabilities, old.probabilities, num_resamples=5, seed=3
    )
    weights = np.random.default_rng(3).poisson(1.0, (len(labels), 5))
    assert np.isnan(found[:, 3]).all()
    for r in range(5):
        for i in range(3):
            known = labels[:, i] != -1
            expected = [
                sklearn.metrics.average_precision_score(
                    labels[known, i], side.probabilities[known, i], sample_weight=weights[known, r]
                )
                for side in (new, old)
            ]
            assert found[r, i] == pytest.approx(expected[0] - expected[1], abs=1e-9)


def test_intervals_hold_the_difference_of_the_population_most_of_the_time():
    random = np.random.default_rng(0)

    def draw(n):
        labels = (random.random((n, 1)) < 0.2).astype(np.int8)
        shared = random.normal(size=(n, 1))
        new = 1.5 * labels + shared
        old = 1.0 * labels + 0.8 * shared + 0.6 * random.normal(size=(n, 1))
        return labels, new, old

    labels, new, old = draw(400_000)
    average = sklearn.metrics.average_precision_score
    truth = average(labels[:, 0], new[:, 0]) - average(labels[:, 0], old[:, 0])
    covered = 0
    for seed in range(200):
        resampled = against.resampled_differences(*draw(300), num_resamples=200, seed=seed)
        low, high = np.quantile(resampled[:, 0], [0.025, 0.975])
        covered += low <= truth <= high
    # Of 200 intervals that cover with 0.9, fewer than 165 do with a probability of 0.0004.
    assert covered >= 165


def test_changed_decisions_are_counted_by_what_becomes_of_them():
    labels = make_labels()
    new, old = make_sides(labels)
    statistics = LabelStatistics.from_labels(np.ones((3, 4), np.int8), NAMES)
    content = against.contrast(NAMES, statistics, labels, new, old)
    names = [f"{k}.jpg" for k in range(len(labels))]
    rows = against.changed_decisions(NAMES, names, labels, new, old)
    kinds = dict.fromkeys(("gained_right", "gained_wrong", "lost_right", "lost_wrong"), 0)
    images = set()
    for k in range(len(labels)):
        for i in range(4):
            was, now = (side.probabilities[k, i] >= side.thresholds[i] for side in (old, new))
            if was == now or labels[k, i] == -1:
                continue
            images.add(k)
            right = "right" if labels[k, i] == 1 else "wrong"
            kinds[f"{'gained' if now else 'lost'}_{right}"] += 1
    assert content["changes"] == {**kinds, "images": len(images)} and min(kinds.values()) > 0
    assert len(rows) == sum(kinds.values())
    harms = [row["harm"] for row in rows]
    assert harms.count(1) == kinds["gained_wrong"] + kinds["lost_right"]
    for side, name in ((new, "new"), (old, "old")):
        known = labels[:, 0] != -1
        average = sklearn.metrics.average_precision_score(
            labels[known, 0], side.probabilities[known, 0]
        )
        assert content["per_label"]["sun"]["ap"][name] == pytest.approx(average)
    assert content["per_label"]["boat"]["ap"]["new"] is None
    assert content["per_label"]["boat"]["interval"] is None


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on features, of which the second knows another label and an order of its own."""
    folder = tmp_path_factory.mktemp("against")
    random = np.random.default_rng(0)
    labels = (random.random((160, 4)) < (0.5, 0.4, 0.3, 0.2)).astype(np.uint8)
    features = labels @ random.standard_normal((4, 6)) + 0.8 * random.standard_normal((160, 6))
    split = np.array(["train"] * 100 + ["test"] * 60)

    def save(name, columns, names):
        np.savez(
            folder / name,
            features=features.astype(np.float32),
            labels=labels[:, columns],
            split=split,
            class_names=np.array(names),
        )

    save("four.npz", [0, 1, 2, 3], NAMES)
    save("others.npz", [2, 0, 3], ["=HYPERLINK(1)", "sun", "kite"])
    for name, steps in (("four", 60), ("others", 5)):
        train_and_evaluate(
            RunConfig.of(
                dataset="features",
                examples=str(folder / f"{name}.npz"),
                run_dir=str(folder / name),
                method="erm",
                steps=steps,
                batch_size=16,
            )
        )
    return folder


def test_the_command_writes_the_page_and_its_numbers(runs, tmp_path):
    command = [sys.executable, "evaluate.py", f"--run_dir={runs / 'four'}",
               f"--against={runs / 'others'}", f"--output_dir={tmp_path}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "mAP is" in done.stdout and f"page: {tmp_path / 'against.html'}" in done.stdout
    content = json.loads((tmp_path / "against.json").read_text())
    assert list(content["per_label"]) == ["sun", "=HYPERLINK(1)"]
    assert content["only_new"] == ["sea", "boat"] and content["only_old"] == ["kite"]
    assert content["not_compared"] == ["sea", "boat"] and content["not_in_data"] == []
    scores = json.loads((runs / "four" / "metrics.json").read_text())
    for name, found in content["per_label"].items():
        assert found["ap"]["new"] == pytest.approx(scores["per_class"][name]["ap"], abs=1e-6)
    with open(tmp_path / "against_labels.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["sun", "'=HYPERLINK(1)"]
    with open(tmp_path / "against_images.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == sum(
            content["changes"][kind]
            for kind in ("gained_right", "gained_wrong", "lost_right", "lost_wrong")
        )


def test_what_cannot_be_compared_is_refused_before_anything_is_written(runs, tmp_path):
    data = DataConfig.of(dataset="features", examples=str(runs / "four.npz"))
    output = tmp_path / "output"
    with pytest.raises(ValueError, match="are the same model"):
        against.compare(
            str(runs / "four"), str(runs / "four" / "saved_model" / "1"), data, str(output)
        )
    with pytest.raises(ValueError, match="is neither a run nor a model"):
        against.compare(str(runs / "four"), str(tmp_path), data, str(output))
    with pytest.raises(ValueError, match="holds no run"):
        against.compare_run(str(tmp_path), str(runs / "four"), str(output))
    with np.load(runs / "four.npz") as file:
        strange = {**file, "class_names": np.array(["w", "x", "y", "z"])}
    np.savez(tmp_path / "strange.npz", **strange)
    other = DataConfig.of(dataset="features", examples=str(tmp_path / "strange.npz"))
    with pytest.raises(ValueError, match=r"in common .*sun.*, and the data none of these"):
        against.compare(str(runs / "four"), str(runs / "others"), other, str(output))
    assert not output.exists()


def test_a_folder_of_images_has_no_labels_to_compare_on(tmp_path):
    command = [sys.executable, "evaluate.py", "--saved_model=a", "--against=b", "--images=c",
               f"--output_dir={tmp_path}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("evaluate: --against compares models on labeled")
