"""A run of many steps holds no more memory, descriptors and files at its end than early on."""

import json
import os
import pathlib
import time

import numpy as np
import programs
import pytest

from dbl_tf import training

STEPS, EVERY = 3000, 100
SETTLED = 600  # steps until caches, threads and arenas of memory are there
MOST_GROWTH = 16 * 2**20  # bytes of memory; a batch that is kept at each step would be 59 MB


def state_of(program, run_dir):
    process = pathlib.Path("/proc") / str(program.pid)
    resident = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files = sum(path.is_file() for path in run_dir.rglob("*"))
    return resident, len(os.listdir(process / "fd")), files


@pytest.mark.slow
def test_memory_descriptors_and_files_are_flat_over_3000_steps(tmp_path):
    run_dir = tmp_path / "run"
    command = ["train.py", "--image_size=16", "--backbone_options=width=4", "--batch_size=8"]
    command += [f"--steps={STEPS}", f"--checkpoint_every={EVERY}", f"--run_dir={run_dir}"]
    program = programs.Program([*command, f"--cache_dir={tmp_path / 'cache'}"])
    checkpoints = training.Checkpoints(run_dir / "checkpoints")
    states = {}
    while program.returncode is None:
        step = max(checkpoints.steps(), default=0)
        if step not in states and step < STEPS:
            states[step] = state_of(program, run_dir)
        time.sleep(0.05)
    assert program.wait() == 0, program.stderr
    settled = np.array([state for step, state in sorted(states.items()) if step >= SETTLED])
    assert len(settled) > 10
    third = len(settled) // 3
    early, late = np.median(settled[:third], axis=0), np.median(settled[-third:], axis=0)
    print(json.dumps({"steps": sorted(states), "early": early.tolist(), "late": late.tolist()}))
    assert late[0] - early[0] < MOST_GROWTH
    assert late[1] <= early[1]
    assert late[2] <= early[2]
