import json
import pathlib
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_measures_every_stage_of_a_small_table(tmp_path):
    output, scratch = tmp_path / "figures.json", tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-m", "benchmarks.table", "--rows=12000", "--classes=700"]
    command += ["--batches=50", f"--scratch_dir={scratch}", f"--output={output}"]
    repository = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(scratch.iterdir())

    stages = json.loads(output.read_text())["stages"]
    index = stages["index the table"]
    assert index["train_images"] == 12000 * 99 // 100
    assert 2 < index["train_labels"] / index["train_images"] < 3.1
    for name, figures in stages.items():
        assert name in done.stdout
        assert figures["seconds"] > 0 and figures["mib_peak"] >= figures["mib_before"] > 10
