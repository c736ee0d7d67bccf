"""Comparisons of real, small runs."""

import csv
import json
import pathlib
import re

import numpy as np
import programs
import pytest
from run_data import make_data

from pipelines.runs import compare
from pipelines.runs.config import ConfigError, RunConfig
from pipelines.runs.resolution import resolve

SEEDS = (0, 1)


def runs_of(table, directory, methods=("db",), seeds=SEEDS, on="test", **arguments):
    config = RunConfig.of(
        dataset="table",
        examples=str(table),
        freeze_backbone=True,
        backbone="small_resnet",
        backbone_options={"width": 4},
        backbone_weights="none",
        image_size=16,
        batch_size=8,
        steps=3,
        calibrate=False,
        export=False,
        cache_dir=str(directory / "cache"),
        **arguments,
    )
    return list(
        compare.configurations(config, directory / "runs", methods=methods, seeds=seeds, on=on)
    )


def compare_by_command(table, directory):
    """The same comparison, by the command in a process of its own."""
    command = ["-m", "pipelines.compare", f"--output_dir={directory / 'runs'}", "--on=test"]
    command += ["--methods=db", f"--seeds={','.join(map(str, SEEDS))}", "--dataset=table"]
    command += [f"--examples={table}", "--freeze_backbone", "--backbone=small_resnet"]
    command += ["--backbone_options=width=4", "--backbone_weights=none", "--image_size=16"]
    command += [
        "--batch_size=8",
        "--steps=3",
        "--nocalibrate",
        f"--cache_dir={directory / 'cache'}",
    ]
    # TensorFlow's warnings are shown.
    done = programs.run(*command, environment={"TF_CPP_MIN_LOG_LEVEL": "1"})
    assert done.returncode == 0, done.stderr
    return done


def test_seeds_are_set_side_by_side_and_trained_once(picture_table, tmp_path):
    output = tmp_path / "runs"
    done = compare_by_command(picture_table, tmp_path)
    assert "retracing" not in done.stderr
    text = done.stdout.rstrip("\n")
    names = {"db-seed=0", "db-seed=1"}
    assert names <= {path.name for path in output.iterdir()}
    totals = {
        name: json.loads((output / name / "metrics.json").read_text())["mAP"]["total"]
        for name in names
    }
    with open(output / "table.csv", newline="") as file:
        rows = {row["variant"]: row for row in csv.DictReader(file)}
    values = [100 * totals[f"db-seed={seed}"] for seed in (0, 1)]
    assert float(rows["db"]["total"]) == pytest.approx(np.mean(values))
    assert float(rows["db"]["total sd"]) == pytest.approx(np.std(values, ddof=1))
    assert f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}" in text
    assert (output / "report.html").exists()

    # Only what is missing is trained again.
    kept = output / "db-seed=0" / "metrics.json"
    before = kept.stat().st_mtime_ns
    (output / "db-seed=1" / "metrics.json").unlink()
    assert text.endswith(compare.compare(runs_of(picture_table, tmp_path), output))
    assert kept.stat().st_mtime_ns == before

    with pytest.raises(ConfigError, match=r"requested more than once: .*db-seed=0"):
        compare.compare(
            [*runs_of(picture_table, tmp_path), runs_of(picture_table, tmp_path)[0]], output
        )
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        compare.compare(runs_of(picture_table, tmp_path, learning_rate=0.5), output)


def test_an_empty_group_is_an_empty_cell(picture_table, tmp_path):
    runs = runs_of(picture_table, tmp_path)
    for config, total in zip(runs, (0.5, 0.25), strict=True):
        directory = pathlib.Path(config.run_dir)
        directory.mkdir(parents=True)
        resolve(config, make_data()).save(directory / "config.json")
        entry = {"ap": total, "train_count": 5, "test_count": 2, "group": "tail"}
        scores = {
            "mAP": {"total": total, "head": None, "medium": None, "tail": total},
            "num_test_examples": 4,
            "per_class": {"yak": entry},
        }
        (directory / "metrics.json").write_text(json.dumps(scores))
        (directory / "report.html").write_text("")  # the last file of a finished run
    text = compare.compare(runs, tmp_path / "runs")
    assert "nan" not in text.lower()
    assert re.search(r"^db +2 +37\.50 ± 17\.68 +– +– +37\.50 ± 17\.68$", text, re.MULTILINE)
    for name in ("table", "runs"):
        with open(tmp_path / "runs" / f"{name}.csv", newline="") as file:
            for row in csv.DictReader(file):
                assert row["head"] == row["micro F1"] == "" and float(row["tail"]) > 0


def test_a_sweep_takes_the_values_of_a_flag():
    assert compare.parse_sweep("lambda=1,2.5") == compare.Sweep("lambda_", (1.0, 2.5))
    assert compare.parse_sweep("margin=paper,released").values == ("paper", "released")
    assert compare.parse_sweep("batch_size=8,16").values == (8, 16)
    for wrong in ("beta", "gamma=1", "seed=1,2", "beta=low"):
        with pytest.raises(ConfigError, match=r"beta|gamma|seed"):
            compare.parse_sweep(wrong)
    runs = compare.configurations(
        RunConfig.of(), "out", methods=["db"], seeds=[3], sweep=compare.parse_sweep("beta=1,5")
    )
    assert [(run.loss.beta, run.seed, run.run_dir) for run in runs] == [
        (1.0, 3, "out/db-beta=1.0-seed=3"),
        (5.0, 3, "out/db-beta=5.0-seed=3"),
    ]


def test_folds_are_judged_by_runs_that_have_not_seen_them(picture_table, tmp_path):
    runs = runs_of(picture_table, tmp_path, methods=("erm", "db"), seeds=[0], on="cv", folds=3)
    names = [f"{method}-seed=0-on={k}_of_3" for k in (1, 2, 3) for method in ("erm", "db")]
    assert [pathlib.Path(run.run_dir).name for run in runs] == names
    text = compare.compare(runs, tmp_path / "runs")
    assert "the highest mean" in text and "mAP, points behind the best" in text
    with open(tmp_path / "runs" / "differences.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["pairs"] == "3"
    # The test split was not touched: each training image was predicted once by each method.
    with open(picture_table, newline="") as file:
        splits = {f"{row['image']}": row["split"] for row in csv.DictReader(file)}
    predicted = []
    for run in runs[::2]:
        with open(pathlib.Path(run.run_dir) / "predictions.csv", newline="") as file:
            predicted += [pathlib.Path(row["image"]).name for row in csv.DictReader(file)]
    assert sorted(predicted) == sorted(name for name, split in splits.items() if split == "train")
    # All folds share the features of the whole training split.
    assert len(list((tmp_path / "cache" / "features").iterdir())) == 1


def test_val_takes_the_place_of_test(picture_table, tmp_path):
    with pytest.raises(ValueError, match="no val split to hold out; pass --val_fraction"):
        compare.compare(runs_of(picture_table, tmp_path, on="val"), tmp_path / "runs")
    runs = runs_of(picture_table, tmp_path, on="val", val_fraction=0.25)
    output = tmp_path / "not" / "there"
    compare.compare(runs, output)
    assert (output / "report.html").exists()
    scores = json.loads((pathlib.Path(runs[0].run_dir) / "metrics.json").read_text())
    assert scores["num_test_examples"] == 10
