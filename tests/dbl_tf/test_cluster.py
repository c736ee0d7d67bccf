"""Training by several processes, each a machine of a cluster on the loopback interface."""

import re
import signal

import cluster_member
import numpy as np
import programs
import pytest
import tensorflow as tf

from dbl_tf import training

STEPS = 8


@pytest.fixture
def start(start_cluster, tmp_path):
    """Starts two processes that train together."""

    def start_two(pause, steps=STEPS, directories=(tmp_path, tmp_path), nan_step=0, hold_at=0):
        arguments = [steps, pause, nan_step, hold_at]
        return start_cluster([[cluster_member.__file__, d, *arguments] for d in directories])

    return start_two


def weights_alone(directory, steps):
    directory.mkdir()
    cluster_member.train(tf.distribute.OneDeviceStrategy("CPU:0"), directory, steps, pause=0)
    return np.load(directory / "weights.npz")


def wait_for_step(tmp_path, step, members):
    checkpoints = training.Checkpoints(tmp_path / "checkpoints")
    programs.wait_until(lambda: max(checkpoints.steps(), default=0) >= step, members)
    return checkpoints


def test_two_machines_train_as_one_also_after_one_was_lost(start, tmp_path):
    chief, other = start(pause=0, hold_at=4)
    checkpoints = wait_for_step(tmp_path, 3, [chief, other])
    other.kill()
    (tmp_path / cluster_member.GO_ON).touch()
    assert chief.wait() != 0
    assert "LostWorkerError: another machine of the cluster was lost after step" in chief.stderr
    assert max(checkpoints.steps()) < STEPS

    for member in start(pause=0):
        assert member.wait() == 0, member.stderr

    with (
        np.load(tmp_path / "weights.npz") as together,
        weights_alone(tmp_path / "alone", STEPS) as one,
    ):
        assert len(one.files) > 5
        for name in one.files:
            np.testing.assert_allclose(together[name], one[name], rtol=0, atol=1e-6)


def test_both_machines_name_the_step_whose_loss_is_not_finite(start):
    """Also the one that has gone on, and finds the other one gone, before it reads its losses."""
    for member in start(pause=0.05, nan_step=2):
        assert member.wait() != 0
        message = member.stderr
        assert "FloatingPointError: the loss is nan at step 2: " in message


@pytest.mark.parametrize(("told", "number"), [(1, signal.SIGTERM), (0, signal.SIGINT)])
def test_a_signal_to_one_machine_stops_all_after_the_same_step(start, tmp_path, told, number):
    members = start(pause=0.02, steps=100_000)
    checkpoints = wait_for_step(tmp_path, 6, members)
    members[told].signal(number)
    stopped = set()
    for member in members:
        assert member.wait() == 128 + number, member.stderr
        stopped |= set(re.findall(r"stopped at step (\d+) of 100000; the same", member.stderr))
    assert stopped == {str(max(checkpoints.steps()))}
    assert number.name in members[told].stderr
    assert number.name not in members[1 - told].stderr


@pytest.mark.slow
def test_two_machines_of_which_one_or_the_other_is_lost_five_times(start, tmp_path):
    steps = 18
    for kill, lost in enumerate((0, 1, 1, 0, 1), start=1):
        (tmp_path / cluster_member.GO_ON).unlink(missing_ok=True)
        members = start(pause=0, steps=steps, hold_at=3 * kill + 1)
        checkpoints = wait_for_step(tmp_path, 3 * kill, members)
        members[lost].kill()
        (tmp_path / cluster_member.GO_ON).touch()
        assert members[1 - lost].wait() != 0
        assert max(checkpoints.steps()) < steps
    for member in start(pause=0, steps=steps):
        assert member.wait() == 0, member.stderr
    with (
        np.load(tmp_path / "weights.npz") as together,
        weights_alone(tmp_path / "alone", steps) as one,
    ):
        for name in one.files:
            np.testing.assert_allclose(together[name], one[name], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_machines_that_see_different_checkpoints_are_refused(start, tmp_path):
    for index, steps in enumerate((2, 4)):
        weights_alone(tmp_path / str(index), steps).close()
    for member in start(pause=0, directories=[tmp_path / "0", tmp_path / "1"]):
        assert member.wait() != 0
        message = member.stderr
        assert "not all machines see the same checkpoints in" in message
        assert "[2, 4] on all)" in message
