"""Training by several processes, each a machine of a cluster on the loopback interface."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import cluster_member
import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import training

STEPS = 8
SECONDS = 120  # after which something hangs


@pytest.fixture
def start(tmp_path):
    """Starts two processes that train together; all are stopped at the end of the test."""
    processes = []

    def start_two(pause):
        with socket.socket() as one, socket.socket() as two:
            for port in (one, two):
                port.bind(("localhost", 0))
            workers = [f"localhost:{port.getsockname()[1]}" for port in (one, two)]
        members = []
        for index in range(2):
            task = {"type": "worker", "index": index}
            members.append(
                subprocess.Popen(
                    [sys.executable, cluster_member.__file__, tmp_path, str(STEPS), str(pause)],
                    env={
                        **os.environ,
                        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
                        "TF_CONFIG": json.dumps({"cluster": {"worker": workers}, "task": task}),
                    },
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        processes.extend(members)
        return members

    yield start_two
    for process in processes:
        process.kill()
        process.wait()


def test_two_machines_train_as_one_also_after_one_was_lost(start, tmp_path):
    chief, other = start(pause=0.5)
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    waited_until = time.monotonic() + SECONDS
    while max(checkpoints.steps(), default=0) < 3:
        assert chief.poll() is None and time.monotonic() < waited_until
        time.sleep(0.1)
    other.kill()
    _, message = chief.communicate(timeout=60)
    assert chief.returncode != 0
    assert "LostWorkerError: another machine of the cluster was lost after step" in message
    assert max(checkpoints.steps()) < STEPS

    for member in start(pause=0):
        member.communicate(timeout=SECONDS)
        assert member.returncode == 0

    alone = tmp_path / "alone"
    alone.mkdir()
    cluster_member.train(tf.distribute.OneDeviceStrategy("CPU:0"), alone, STEPS, pause=0)
    with np.load(tmp_path / "weights.npz") as together, np.load(alone / "weights.npz") as one:
        assert len(one.files) > 5
        for name in one.files:
            np.testing.assert_allclose(together[name], one[name], rtol=0, atol=1e-6)


def test_a_cluster_without_a_description_is_refused(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match=r'needs TF_CONFIG, .*"cluster": \{"worker": .*found None'):
        training.make_strategy("multi_worker")
    monkeypatch.setenv("TF_CONFIG", "{")
    with pytest.raises(ValueError, match="TF_CONFIG is no JSON"):
        training.make_strategy("multi_worker")
