import csv
import json
import re

import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import portable
from pipelines import images
from pipelines.runs import check
from pipelines.runs.config import ConfigError, RunConfig
from pipelines.runs.train import train_and_evaluate

SIDE = 16


def make_config(table, run_dir, **arguments):
    return RunConfig.of(
        **{
            "dataset": "table",
            "examples": str(table),
            "image_size": SIDE,
            "batch_size": 8,
            "steps": 4,
            "run_dir": str(run_dir),
            "cache_dir": str(table.parent / "cache"),
            "backbone": "small_resnet",
            "backbone_weights": "none",
            "backbone_options": {"width": 4},
            "method": "erm",
            **arguments,
        }
    )


def table_below(text, heading):
    """Cells of the first Markdown table under a heading, row by row, below its head."""
    section = text.partition(f"## {heading}\n")[2]
    lines = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE).group().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_a_run_exports_files_that_predict_as_it_did_and_a_card(picture_table, tmp_path, capsys):
    for name in portable.FORMATS:
        for module in portable.FORMATS[name].modules:
            pytest.importorskip(module, reason=f"the extra {name} is not installed")
    run_dir = tmp_path / "run"
    scores = train_and_evaluate(
        make_config(picture_table, run_dir, val_fraction=0.2, export_format=[*portable.FORMATS])
    )
    with open(run_dir / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    encoded = [(picture_table.parent / row["image"]).read_bytes() for row in rows]
    pixels = np.stack([images.read_for_evaluation(e, SIDE).numpy() for e in encoded])
    names = json.loads((run_dir / "statistics.json").read_text())["class_names"]
    expected = np.float64([[row[name] for name in names] for row in rows])
    card = (run_dir / "saved_model" / "1" / "README.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    for name, form in portable.FORMATS.items():
        folder = run_dir / name / "1"
        np.testing.assert_allclose(
            form.load(folder / form.file_name)(pixels), expected, rtol=0, atol=1e-5
        )
        assert (folder / "README.md").read_text(encoding="utf-8") == card
        assert f"{folder / form.file_name}: " in printed
        details = json.loads((folder / portable.DETAILS_FILE).read_text())
        assert details["class_names"] == names and details["input_range"] == [0, 255]

    assert table_below(card, "Data") == [
        ["train", "32", "40", "0"],
        ["val", "8", "10", "0"],
        ["test", "12", "15", "0"],
    ]
    m_ap = next(row for row in table_below(card, "Scores on the test split") if "mAP %" in row)
    assert float(m_ap[1]) == pytest.approx(100 * scores["mAP"]["total"], abs=0.005)
    of_labels = {row[0]: row for row in table_below(card, "Labels and thresholds")}
    assert list(of_labels) == names
    for name, entry in scores["per_class"].items():
        assert of_labels[name][1:4] == [
            entry["group"],
            str(entry["train_count"]),
            str(entry["test_count"]),
        ]
        assert float(of_labels[name][4]) == pytest.approx(
            entry["at_threshold"]["threshold"], rel=1e-3
        )
        assert float(of_labels[name][5]) == pytest.approx(100 * entry["ap"], abs=0.005)
    # Each label is in fewer than ten test images.
    assert "rest on fewer than 10 test examples each" in card
    assert "calibrated on val" in card and "`erm`" in card
    assert tf.saved_model.load(str(run_dir / "saved_model" / "1")).signatures


def test_formats_are_refused_before_the_data_are_read(picture_table, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="--export_format must be one of saved_model, onnx, li"):
        make_config(picture_table, tmp_path / "run", export_format=["pdf"])
    absent = portable.Format("model.onnx", ("no_such_module",), portable.load_onnx)
    monkeypatch.setitem(portable.FORMATS, "onnx", absent)
    config = make_config(tmp_path / "none.csv", tmp_path / "run", export_format=["onnx"])
    for start in (train_and_evaluate, check.check):
        with pytest.raises(ConfigError, match=r"--export_format: .* pip install 'dbl-tf\[onnx\]'"):
            start(config)
    assert not (tmp_path / "run").exists()
