"""The example of training on another backend, run as a user runs it."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_example_learns(backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"}
    environment |= {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"}
    # PyTorch's threads wait for one another by spinning: several, with other tests beside them,
    # take ten times as long as one.
    environment["OMP_NUM_THREADS"] = "1"
    # Most of JAX's time is compiling.
    environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    if backend != "jax":  # what it runs on unless told
        environment["KERAS_BACKEND"] = backend
    run = subprocess.run(
        [sys.executable, ROOT / "docs" / "fit_on_jax.py", "--epochs=3", "--steps_per_epoch=12"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    output = run.stdout
    assert f"training on the {backend} backend" in output
    losses = [float(loss) for loss in re.findall(r"loss: ([\d.e-]+)", output)]
    assert len(losses) == 3 and losses[2] < losses[0], output
    trained, chance = (
        {group: float(ap) for group, ap in re.findall(r"(\w+) ([\d.]+) %", line)}
        for line in output.splitlines()[-2:]
    )
    assert set(trained) == set(chance) == {"total", "head", "medium", "tail"}, output
    assert trained["total"] > chance["total"] + 3, output
