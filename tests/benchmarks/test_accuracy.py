"""The programs that measure accuracy, on a small file of features."""

import csv

import numpy as np
import programs
import pytest

METHODS = ("erm", "rs")


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    random = np.random.default_rng(0)
    labels = random.random((160, 4)) < (0.5, 0.3, 0.2, 0.1)
    features = labels @ random.standard_normal((4, 8)) + 0.5 * random.standard_normal((160, 8))
    path = tmp_path_factory.mktemp("features") / "examples.npz"
    split = np.repeat(["train", "test"], [100, 60])
    names = np.array(list("abcd"))
    np.savez(path, features=features, labels=labels.astype(int), split=split, class_names=names)
    return path


def run(*arguments):
    done = programs.run("-m", *arguments, environment={"TF_CPP_MIN_LOG_LEVEL": "2"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_methods_are_measured_at_rates_of_folds(examples, tmp_path):
    command = ["benchmarks.methods", f"--output_dir={tmp_path}", f"--examples={examples}"]
    command += [f"--methods={','.join(METHODS)}", "--seeds=0,1", "--rate_factors=1,3"]
    command += ["--rate_folds=2", "--steps=20", "--noauto"]
    output = run(*command)
    rows = read(tmp_path / "methods.csv")
    judged = {(row["method"], row["factor"], row["seed"], row["judged_on"]) for row in rows}
    assert len(judged) == len(rows)
    for name in METHODS:
        for fold in ("fold 0", "fold 1"):
            assert {(name, "1.0", "0", fold), (name, "3.0", "0", fold)} <= judged
    tests = [row for row in rows if row["judged_on"] == "test" and row["factor"] == "1.0"]
    assert len(tests) == 4
    mean = np.mean([float(row["total"]) for row in tests if row["method"] == "rs"])
    assert f"| `rs` | {mean:.2f} ± " in output.split("cross-validated learning rates")[0]
    # What is there is not measured again.
    assert run(*command).count("judged_on") == 0


def test_labels_are_hidden_and_the_table_is_that_of_the_rows(examples, tmp_path):
    command = ["benchmarks.hidden_labels", f"--output_dir={tmp_path}", f"--examples={examples}"]
    command += ["--methods=erm", "--seeds=0,1", "--steps=20"]
    output = run(*command)
    rows = read(tmp_path / "hidden_labels.csv")
    assert [row["hidden"] for row in rows] == ["shown", "unknown", "negative"] * 2
    totals = np.array([float(row["total"]) for row in rows]).reshape(2, 3)
    means = " | ".join(
        f"{mean:.2f} ± {error:.2f}"
        for mean, error in zip(totals.mean(0), totals.std(0, ddof=1) / np.sqrt(2), strict=True)
    )
    difference = f"{(totals[:, 1] - totals[:, 2]).mean():+.2f} ± ".replace("-", "−")
    assert f"| `erm` | {means} | {difference}" in output
    assert run(*command).count("hidden shown") == 0


def test_rates_are_measured_with_fewer_and_with_more_classes(examples, tmp_path):
    command = ["benchmarks.learning_rates", f"--output_dir={tmp_path}", f"--examples={examples}"]
    output = run(*command, "--methods=erm", "--classes=2,8", "--steps=20")
    rows = read(tmp_path / "learning_rates.csv")
    assert [row["classes"] for row in rows] == ["2"] * 5 + ["8"] * 5
    assert "| `erm` | 8 |" in output
