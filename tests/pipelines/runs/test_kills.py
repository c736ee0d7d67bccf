"""Runs that are killed, disks that are full, directories that are taken: nothing is lost."""

import contextlib
import csv
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import cluster_member
import numpy as np
import programs
import pytest
import tensorflow as tf
from run_results import weights_of

from dbl_tf import training
from dbl_tf.lock import Lock
from pipelines.runs.config import RunConfig
from pipelines.runs.train import train_and_evaluate

ROOT = pathlib.Path(__file__).parents[3]
STEPS = 12
SECONDS = 600  # after which something hangs
SOMETIMES_WRITTEN = ("head/history.csv", "selection.csv", "selection_summary.csv")

# Trains in a process of its own; a file that grows beyond the second argument ends it, if given.
CHILD = """
import pathlib, resource, signal, sys
import tensorflow as tf
import cluster_member
limit = int(sys.argv[2])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
strategy = tf.distribute.OneDeviceStrategy("CPU:0")
steps, hold_at = int(sys.argv[3]), int(sys.argv[4]) or None
cluster_member.train(strategy, pathlib.Path(sys.argv[1]), steps, pause=0, hold_at=hold_at)
"""


def start(directory, steps=STEPS, limit=0, hold_at=0):
    return programs.Program(["-c", CHILD, directory, limit, steps, hold_at])


def test_a_process_killed_in_a_step_and_in_a_checkpoint_goes_on_exactly(tmp_path):
    cluster_member.train(tf.distribute.OneDeviceStrategy("CPU:0"), tmp_path, STEPS, pause=0)
    directory = tmp_path / "killed"
    directory.mkdir()
    checkpoints = training.Checkpoints(directory / "checkpoints")

    in_a_step = start(directory, hold_at=4)
    programs.wait_until(lambda: max(checkpoints.steps(), default=0) >= 3, [in_a_step])
    in_a_step.kill()
    reached = checkpoints.steps()
    assert reached[-1] == 3

    # The kernel kills it in the middle of the next checkpoint.
    size = checkpoints.path(reached[-1]).stat().st_size
    in_a_checkpoint = start(directory, limit=size - 1000)
    assert in_a_checkpoint.wait() == -signal.SIGXFSZ
    assert list(checkpoints.directory.glob("*.incomplete*"))
    assert checkpoints.steps() == reached

    cluster_member.train(tf.distribute.OneDeviceStrategy("CPU:0"), directory, STEPS, pause=0)
    with np.load(tmp_path / "weights.npz") as whole, np.load(directory / "weights.npz") as resumed:
        assert len(whole.files) > 5
        for name in whole.files:
            np.testing.assert_array_equal(whole[name], resumed[name])


# What is measured, and differs from run to run.
MEASURED = ("images_per_second",)


def content(path):
    """The bytes of a file; of a history its rows without what is measured, the only exception."""
    if path.name != "history.csv":
        return path.read_bytes()
    rows = training.read_history(path)
    assert all(float(row.pop(name)) > 0 for row in rows for name in MEASURED)
    return rows


def epochs_in_history(run_dir):
    with open(run_dir / "history.csv", newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def epochs_in_the_log(run_dir):
    epochs = []
    for path in sorted((run_dir / "tensorboard" / "train").glob("*tfevents*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            event = tf.compat.v1.Event.FromString(record)
            epochs += [event.step for v in event.summary.value if v.tag == "epoch_loss"]
    return epochs


@pytest.mark.parametrize(
    ("program", "there"),
    [
        ("train.py", []),
        ("evaluate.py", ["config.json", "statistics.json", "model.keras", "thresholds.json"]),
    ],
)
def test_a_directory_in_use_is_refused_at_once_by_the_second_process(program, there, tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    for name in there:
        (run_dir / name).touch()
    with Lock(run_dir) as lock:
        lock.acquire()
        second = programs.run(program, f"--run_dir={run_dir}")
    assert second.returncode == 1
    message = f"{run_dir} is in use by another run (process {os.getpid()} on "
    assert f"{program.removesuffix('.py')}: {message}" in second.stderr
    assert "Traceback" not in second.stderr
    assert {path.name for path in run_dir.iterdir()} == {"lock", *there}


@pytest.fixture
def read_only(tmp_path):
    """A directory on a file system that is mounted read-only."""
    directory = tmp_path / "mounted"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "none", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_directory_that_cannot_be_written_is_named(read_only, tmp_path):
    for run_dir in (read_only, read_only / "new"):
        config = RunConfig.of(
            freeze_backbone=True,
            backbone_options={"width": 4},
            run_dir=str(run_dir),
            cache_dir=str(tmp_path / "cache"),
        )
        with pytest.raises(OSError, match=rf"Read-only file system: '{run_dir}"):
            train_and_evaluate(config)


IMAGES = ("--backbone_options=width=4", "--image_size=16", "--batch_size=8", "--val_fraction=0.1")
KILLS, STOPS = [signal.SIGKILL], [signal.SIGINT, signal.SIGTERM]
# What a run goes through, by the flags that make it, and the signals that it gets there.
TRAINED = {
    "all layers": ((*IMAGES, "--steps=60"), 20 * KILLS),
    "the head first": ((*IMAGES, "--steps=40", "--head_steps=60", "--ema=0.9"), 20 * KILLS),
    "shards": (
        (
            *IMAGES,
            "--dataset=shards",
            "--backbone=small_resnet",
            "--backbone_weights=none",
            "--steps=60",
        ),
        10 * KILLS,
    ),
    "features": (("--dataset=features", "--method=db_focal", "--steps=3000"), 10 * KILLS),
    "a choice": (
        ("--dataset=features", "--method=auto", "--learning_rate=auto", "--folds=2", "--steps=300"),
        10 * KILLS,
    ),
    "the head first, stopped": ((*IMAGES, "--steps=40", "--head_steps=60"), 10 * STOPS),
    "a choice, stopped": (
        ("--dataset=features", "--method=auto", "--learning_rate=auto", "--folds=2", "--steps=300"),
        5 * STOPS,
    ),
}


def start_train_py(run_dir, flags):
    arguments = [
        *flags,
        "--checkpoint_every=7",
        f"--run_dir={run_dir}",
        f"--cache_dir={run_dir.parent / 'cache'}",
    ]
    with open(run_dir.with_suffix(".log"), "a") as log:
        return subprocess.Popen(
            [sys.executable, "train.py", *arguments], cwd=ROOT, stdout=log, stderr=log
        )


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """Features from which the five classes can mostly be told."""
    random = np.random.default_rng(0)
    labels = random.random((300, 5)) < (0.5, 0.4, 0.2, 0.1, 0.06)
    signal = labels @ random.standard_normal((5, 12)) + random.standard_normal((300, 12))
    path = tmp_path_factory.mktemp("features") / "examples.npz"
    split = np.repeat(["train", "test"], [220, 80])
    names = np.array(list("abcde"))
    np.savez(path, features=signal, labels=labels.astype(int), split=split, class_names=names)
    return path


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """The digits in five shards for training and one for each other split."""
    directory = tmp_path_factory.mktemp("shards")
    command = ["-m", "pipelines.write_shards", f"--output_dir={directory}"]
    written = programs.run(*command, "--examples_per_shard=300")
    assert written.returncode == 0, written.stderr
    return directory


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_train_py_stops_after_a_step_with_a_line_and_a_status(number, features, tmp_path):
    program = programs.Program(
        [
            "train.py",
            "--dataset=features",
            "--method=erm",
            "--steps=1000000",
            "--checkpoint_every=50",
            f"--examples={features}",
            f"--run_dir={tmp_path / 'run'}",
            f"--cache_dir={tmp_path / 'cache'}",
        ]
    )
    checkpoints = training.Checkpoints(tmp_path / "run" / "checkpoints")
    programs.wait_until(checkpoints.steps, [program])
    program.signal(number)
    assert program.wait() == 128 + number
    reached = checkpoints.steps()[-1]
    assert program.stderr.endswith(
        f"train: stopped at step {reached} of 1000000; the same command continues\n"
    )
    assert "Traceback" not in program.stderr


def test_a_second_signal_ends_a_step_that_does_not_end(tmp_path):
    program = start(tmp_path, hold_at=4)
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    programs.wait_until(lambda: max(checkpoints.steps(), default=0) == 3, [program])
    program.signal(signal.SIGINT)
    programs.wait_until(lambda: "SIGINT: stopping after this step" in program.stderr, [program])
    waited_until = time.monotonic() + SECONDS
    while program.returncode is None and time.monotonic() < waited_until:
        with contextlib.suppress(ProcessLookupError):
            os.kill(program.pid, signal.SIGTERM)
        time.sleep(0.02)
    assert program.wait() == 143
    assert checkpoints.steps()[-1] == 3


@pytest.mark.slow
@pytest.mark.parametrize("trained", TRAINED)
def test_train_py_ended_at_random_moments_leaves_what_it_leaves_alone(
    trained, features, shards, tmp_path
):
    flags, signals = TRAINED[trained]
    if "--dataset=features" in flags:
        flags = (*flags, f"--examples={features}")
    elif "--dataset=shards" in flags:
        flags = (*flags, f"--shards_dir={shards}")
    begin = time.monotonic()
    whole = tmp_path / "whole"
    assert start_train_py(whole, flags).wait() == 0, whole.with_suffix(".log").read_text()
    duration = time.monotonic() - begin
    random_moments = random.Random(0)
    moments = [(number, random_moments.uniform(0.1, 1.0) * duration) for number in signals]
    ended = 0
    while moments:  # a run after the other, each ended and started again until it has finished
        run_dir = tmp_path / f"ended-{ended}"
        log = run_dir.with_suffix(".log")
        while (status := status_of(start_train_py(run_dir, flags), moments)) != 0:
            last = log.read_text().splitlines()[-1]
            if status > 0:
                assert status - 128 in STOPS, log.read_text()[-3000:]
                assert last.startswith("train: stopped")
            elif status != -signal.SIGKILL:  # as Python takes itself down
                assert -status in STOPS and last.startswith("next: open the report"), last
        assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
        ended += 1
        assert not list(run_dir.rglob("*.incomplete*"))
        for a, b in zip(weights_of(whole), weights_of(run_dir), strict=True):
            np.testing.assert_array_equal(a, b)
        written = {"history.csv", "metrics.json", "predictions.csv"}
        written |= {name for name in SOMETIMES_WRITTEN if (whole / name).exists()}
        for name in written:
            assert content(run_dir / name) == content(whole / name)
        assert epochs_in_the_log(run_dir) == epochs_in_history(whole)
        assert (run_dir / "saved_model" / "1" / "saved_model.pb").exists()


def status_of(process, moments):
    """Exit status of a process that gets the signal of the next moment, if there is one."""
    if not moments:
        return process.wait(SECONDS)
    number, seconds = moments.pop()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        return process.wait(SECONDS)
