"""`train.py` on two machines of a cluster: they agree, or say why not; one of them is lost."""

import random
import signal
import time

import numpy as np
import pytest
from run_results import weights_of

SMALL = ("--backbone_options=width=4", "--image_size=16", "--batch_size=8")


@pytest.fixture
def start(start_cluster, tmp_path):
    """Starts `train.py` on two machines, each with flags of its own."""

    def start_two(*flags):
        shared = ("--strategy=multi_worker", f"--cache_dir={tmp_path / 'cache'}")
        return start_cluster([("train.py", *shared, *own) for own in flags])

    return start_two


def test_each_flag_that_differs_is_named_on_both_machines(start, tmp_path):
    run_dir = tmp_path / "run"
    ours = ("--method=db", "--steps=8", f"--run_dir={run_dir}")
    theirs = ("--method=erm", "--steps=9", "--ema=0.9", f"--run_dir={run_dir}")
    members = start((*SMALL, *ours), (*SMALL[:2], "--batch_size=16", *theirs))
    for member in members:
        assert member.wait() == 1
        said = member.stderr
        for name, first, second in [
            ("batch_size", "8", "16"),
            ("steps", "8", "9"),
            ("ema", "0.0", "0.9"),
            ("method", "db", "erm"),
        ]:
            assert f"--{name}: {first} on worker 0 (" in said, said
            assert f"{second} on worker 1 (" in said
        assert "Traceback" not in said
    assert not list(run_dir.rglob("*.npz"))


def signal_one(members, index, number, seconds):
    """Sends a signal to a machine after a time, unless both have ended before.

    Returns:
        The exit statuses of the two.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(member.returncode is None for member in members):
        time.sleep(0.02)
    if members[index].returncode is None:
        members[index].signal(number)
    return [member.wait() for member in members]


@pytest.mark.slow
def test_a_cluster_of_which_a_machine_is_ended_at_random_moments(start, tmp_path):
    flags = (*SMALL, "--steps=60", "--checkpoint_every=7", "--val_fraction=0.1")
    begin = time.monotonic()
    whole = [member.wait() for member in start(*2 * [(*flags, f"--run_dir={tmp_path / 'whole'}")])]
    assert whole == [0, 0]
    duration = time.monotonic() - begin
    generator = random.Random(0)
    numbers = [*10 * [signal.SIGKILL], *3 * [signal.SIGINT, signal.SIGTERM]]
    generator.shuffle(numbers)
    ended = 0
    while numbers:  # a run after the other, each ended and started again until it has finished
        run_dir = tmp_path / f"ended-{ended}"
        statuses = None
        while statuses != [0, 0]:
            members = start(*2 * [(*flags, f"--run_dir={run_dir}")])
            if not numbers:
                statuses = [member.wait() for member in members]
                assert statuses == [0, 0], [member.stderr for member in members]
                continue
            index, number = generator.randrange(2), numbers.pop()
            moment = generator.uniform(0.1, 1.0) * duration
            statuses = signal_one(members, index, number, moment)
            said = [member.stderr for member in members]
            for text in said:
                assert "Traceback" not in text, text[-3000:]
            other = statuses[1 - index]
            if statuses[index] == 0:
                assert other == 0, said
            elif number == signal.SIGKILL:
                assert statuses[index] == -number
                assert other in (0, 1)
            else:
                assert statuses[index] == 128 + number, said
                assert other in (0, 1, 128 + number), said
        ended += 1
        assert not list(run_dir.rglob("*.incomplete*"))
        for a, b in zip(weights_of(tmp_path / "whole"), weights_of(run_dir), strict=True):
            np.testing.assert_array_equal(a, b)
        for name in ("metrics.json", "predictions.csv"):
            assert (run_dir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
