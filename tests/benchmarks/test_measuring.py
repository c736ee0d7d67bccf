import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import measuring
from dbl_tf.cores import usable_cores


def test_in_turns_calls_each_once_a_round_and_lets_each_begin():
    calls = []
    names = ("a", "b", "c")
    candidates = {name: lambda name=name: calls.append(name) for name in names}
    timings = measuring.in_turns(candidates, rounds=3)
    rounds = [calls[i : i + 3] for i in range(6, len(calls), 3)]
    assert [sorted(of_round) for of_round in rounds] == [list(names)] * 3
    assert {of_round[0] for of_round in rounds} == set(names)
    for seconds in (timings.seconds, timings.cpu_seconds):
        assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys(names, 3)


def test_in_turns_tells_a_long_call_from_a_short_one():
    numbers = np.arange(3_000_000.0)
    timings = measuring.in_turns(
        {"long": lambda: np.sort(-numbers), "short": lambda: numbers[:10].sum()},
        rounds=3,
        min_seconds=0.002,
    )
    # Five orders of magnitude apart: no load of a machine turns them round.
    assert max(timings.cpu_seconds["short"]) < min(timings.cpu_seconds["long"])


def test_before_runs_before_every_timing_of_its_name():
    order = []
    measuring.in_turns(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        rounds=2,
        before=lambda name: order.append(f"before {name}"),
    )
    assert order[::2] == [f"before {name}" for name in order[1::2]]


def test_ratio_is_of_rounds():
    figures = measuring.ratio([2.0, 20.0, 30.0], [1.0, 10.0, 10.0])
    assert figures["median"] == 2.0
    assert figures["low"] <= figures["median"] <= figures["high"] == 2.5


def test_table_aligns():
    text = measuring.table(["", "time"], [["long name", "1"], ["x", "1000"]])
    assert text.splitlines() == ["           time", "long name     1", "x          1000"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(2.5, "2.5 s"), (0.0125, "12.5 ms"), (3e-6, "3 µs")]
)
def test_seconds_have_a_unit_that_suits_them(seconds, shown):
    assert measuring.show_seconds(seconds) == shown


def test_a_process_of_its_own_has_its_own_environment():
    before = dict(os.environ)
    value = measuring.in_process_of_its_own(os.getenv, "DBL_TF_TEST", environ={"DBL_TF_TEST": "x"})
    assert value == "x"
    assert dict(os.environ) == before
    assert measuring.in_process_of_its_own(os.getpid) != os.getpid()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be chosen here")
def test_cores_are_given_back():
    before = os.sched_getaffinity(0)
    with measuring.on_cores(1):
        assert usable_cores() == 1
    assert os.sched_getaffinity(0) == before
    with (
        pytest.raises(ValueError, match=f"this process may use {len(before)}"),
        measuring.on_cores(len(before) + 1),
    ):
        pass


def run_program(*arguments: str) -> subprocess.CompletedProcess:
    """A program with the frame of `measuring.run`, of one flag."""
    code = """
from absl import flags
from benchmarks import measuring

def define_flags():
    return [flags.DEFINE_integer("size", 3, "")]

def measure(size):
    if size < 0:
        raise ValueError("size must be at least 0, got -1")
    return {"figure": float(size), "undefined": float("nan")}

measuring.run("tried", define_flags, measure, lambda result: f"figure {result['figure']}")
"""
    repository = pathlib.Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=repository, capture_output=True, text=True)


def test_a_program_prints_and_writes_what_it_measured_and_where(tmp_path):
    output = tmp_path / "figures.json"
    done = run_program("--size=7", f"--output={output}")
    assert done.returncode == 0, done.stderr
    assert "figure 7.0" in done.stdout and "load average" in done.stdout
    result = json.loads(output.read_text())
    assert result["benchmark"] == "tried" and result["settings"] == {"size": 7}
    assert result["figure"] == 7.0 and result["undefined"] is None
    environment = result["environment"]
    assert environment["versions"]["numpy"] == np.__version__
    assert environment["cores"] >= 1 and environment["cpu"]
    assert len(environment["load_average"]["before"]) == 3

    again = run_program(f"--output={output}")
    assert again.returncode != 0 and "exists; give another --output" in again.stderr


def test_a_program_says_what_is_wrong_with_its_flags():
    done = run_program("--size=-1")
    assert done.returncode == 1
    assert done.stderr.strip() == "benchmarks.tried: size must be at least 0, got -1"


def test_the_memory_of_a_process_does_not_include_that_of_the_one_that_started_it():
    held = np.ones(100_000_000)  # 763 MiB
    assert measuring.peak_mib() > 700
    of_another = measuring.in_process_of_its_own(measuring.peak_mib)
    assert of_another < 500
    assert len(held)
