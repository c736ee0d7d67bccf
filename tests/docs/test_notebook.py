"""The notebook of the docs: its cells run, one after the other, in an empty folder."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs" / "five_minutes.ipynb"


@pytest.mark.slow
def test_cells_run_in_order_and_label_images(tmp_path, monkeypatch):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)  # they belong to no commit
    code = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("mAP %") == 2
    assert "my_images/64.png (" in done.stdout and "2 files: " in done.stdout.splitlines()[-2]
    assert (tmp_path / "runs" / "mine" / "saved_model" / "1").is_dir()
