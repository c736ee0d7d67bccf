import json
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import LabelStatistics, models, serving
from pipelines import images


@pytest.mark.slow
def test_measures_a_small_export(tmp_path):
    backbone = models.build_backbone("small_resnet", 32, options={"width": 4})
    network = models.join(backbone, models.build_head(backbone.output_shape[-1], 3))
    network.save(tmp_path / "model.keras")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        pixels = np.random.default_rng(number).integers(0, 256, (50, 60, 3), np.uint8)
        (folder / f"{number}.jpg").write_bytes(tf.io.encode_jpeg(pixels).numpy())
    version = serving.export(
        keras.models.load_model(tmp_path / "model.keras"),
        LabelStatistics.from_labels(np.eye(3, dtype=int), ("a", "b", "c")),
        lambda encoded: images.read_batch(encoded, 32),
        lambda image: images.resize(image, 32),
        tmp_path / "saved_model",
        thresholds=np.full(3, 0.5),
        thresholds_from="train",
        example_image=(folder / "0.jpg").read_bytes(),
    )
    output = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks.serving", f"--saved_model={version}"]
    command += [f"--images={folder}", "--rounds=4", "--batch_sizes=1,3", f"--output={output}"]
    repository = pathlib.Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    result = json.loads(output.read_text())
    assert result["images"] == 5 and set(result["batch_sizes"]) == {"1", "3"}
    header, *rows = [line for line in done.stdout.splitlines() if line][-3:]
    assert re.findall(r"\w+(?=, ms)|served / bare", header) == [
        "served",
        "bare",
        "read",
        "served / bare",
    ]
    for (size, figures), row in zip(result["batch_sizes"].items(), rows, strict=True):
        # The bare way is the same computation, or the comparison says nothing.
        assert figures["largest_difference"] < 1e-5
        shown = []
        for name in ("served", "bare", "read", "ratio"):
            assert 0 < figures[name]["low"] <= figures[name]["median"] <= figures[name]["high"]
            shown.append(f"{figures[name]['median']:.2f}")
        assert re.findall(r"(\S+) \(", row) == shown and row.split()[0] == size
