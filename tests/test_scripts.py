"""The two scripts as a person starts them."""

import pathlib
import subprocess
import sys

import programs
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run(script, *flags, status=0):
    done = programs.run(script, *flags, environment={"TF_CPP_MIN_LOG_LEVEL": "2"})
    assert done.returncode == status, done.stdout + done.stderr
    # TensorFlow's notes of the time of day are on stderr.
    return done.stdout if status == 0 else done.stdout + done.stderr


def test_training_prints_a_table_and_evaluation_the_same_one(tmp_path):
    run_dir = tmp_path / "run"
    flags = tmp_path / "small.flags"
    flags.write_text(
        "--steps=2\n--backbone_options=width=4\n--image_size=16\n--noexport\n--method=r_bce\n"
    )
    trained = run("train.py", f"--flagfile={flags}", f"--run_dir={run_dir}")
    table = trained[trained.rindex("   total") :]
    assert "mAP %" in table and (run_dir / "metrics.json").exists()
    scores = tmp_path / "scores"
    evaluated = run("evaluate.py", f"--run_dir={run_dir}", f"--output_dir={scores}")
    again = evaluated[evaluated.rindex("   total") :]
    assert again.replace(str(scores), str(run_dir)) == table


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method=dbl"], "should be one of <erm|focal|"),
        (["--lambda=0"], "--lambda must be greater than 0; got 0.0"),
        (["--dataset=table", "--examples=none.csv"], "none.csv"),
        (
            ["--dataset=table", "--examples=none.csv", "--cache_dir=/proc/x"],
            "--cache_dir=/proc/x: n",
        ),
        (["--backbone_options=width"], "name=value"),
    ],
)
def test_a_wrong_flag_ends_with_one_readable_message(flags, message, tmp_path):
    output = run("train.py", f"--run_dir={tmp_path / 'run'}", *flags, status=1)
    assert message in output and "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_place_where_nothing_can_be_written_is_refused_before_the_data_are_read():
    data = ("--dataset=table", "--examples=none.csv")
    for program, *flags in (
        ("train.py", "--run_dir=/proc/x", *data),
        ("evaluate.py", "--output_dir=/proc/x", "--saved_model=none", *data),
    ):
        output = run(program, *flags, status=1)
        name = program.removesuffix(".py")
        [line] = [each for each in output.splitlines() if each.startswith(f"{name}: ")]
        assert line.startswith(f"{name}: {flags[0]}: nothing can be written to /proc (")


def test_evaluate_asks_for_what_is_missing():
    assert "give either --run_dir or --saved_model" in run("evaluate.py", status=1)
    ignored = run("evaluate.py", "--run_dir=/nowhere", "--examples=x.csv", status=1)
    assert "--examples goes with --saved_model" in ignored
    assert "holds no run" in run("evaluate.py", "--run_dir=/nowhere", status=1)


def test_importing_the_package_loads_no_other_module():
    program = "import sys, dbl_tf; print(sorted(m for m in sys.modules if m.startswith('dbl_tf')))"
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout == "['dbl_tf', 'dbl_tf.lazy', 'dbl_tf.registration']\n"
