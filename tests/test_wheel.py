"""A wheel of the package, installed outside of the clone, holds all that its commands need."""

import configparser
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("dbl_tf", "pipelines")
COMMANDS = ("compare", "evaluate", "prepare", "tag", "train")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # the build writes next to what it builds
    source.mkdir()
    for name in PACKAGES:
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-build-isolation", f"--wheel-dir={folder}", source)
    return next(folder.glob("*.whl"))


def pip(command, *arguments):
    subprocess.run(
        [sys.executable, "-m", "pip", command, "--quiet", "--no-deps", "--no-index", *arguments],
        check=True,
    )


def test_a_wheel_holds_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        entries = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        parser = configparser.ConfigParser()
        parser.read_string(archive.read(entries).decode())
    files = {
        path.relative_to(ROOT).as_posix()
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert held == files
    expected = {f"dbl-{name}": f"pipelines.start:{name}" for name in COMMANDS}
    assert dict(parser["console_scripts"]) == expected


@pytest.mark.slow
def test_commands_of_an_installed_wheel_train_and_label_outside_of_the_clone(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", f"--target={site}", wheel)
    environment = {**os.environ, "PYTHONPATH": str(site), "TF_CPP_MIN_LOG_LEVEL": "2"}

    def run(command, *flags):
        done = subprocess.run(
            [site / "bin" / command, *flags],
            capture_output=True,
            text=True,
            cwd=elsewhere,
            env=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    small = ("--method=erm", "--steps=2", "--image_size=16", "--backbone_options=width=4")
    assert "mAP %" in run("dbl-train", *small, "--run_dir=run")
    assert (elsewhere / "run" / "saved_model" / "1").is_dir()
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(elsewhere / "a.png")
    labeled = run("dbl-tag", "--model=run", "--output=labels.csv", "a.png")
    assert labeled.startswith("a.png: ") and (elsewhere / "labels.csv").is_file()
    assert "mAP %" in run("dbl-evaluate", "--run_dir=run", "--output_dir=scores")
    for name in COMMANDS:
        text = run(f"dbl-{name}", "--help")
        assert "This program:" in text or "Most used:" in text, name
