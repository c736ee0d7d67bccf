"""The start of a program: what it imports and prints, and how it ends."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
COMMANDS = (
    "compare",
    "evaluate",
    "prepare",
    "tag",
    "train",
    "write_features",
    "write_longtail",
    "write_shards",
)
SECONDS = 300


def run(code, *arguments, **environment):
    """Runs Python code in a new interpreter without a level of TensorFlow's messages."""
    kept = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**kept, "PYTHONPATH": str(ROOT), **environment},
        timeout=SECONDS,
    )


# Runs a command, then prints which heavy libraries it has imported.
START = """
    import importlib, sys
    name, *sys.argv[1:] = sys.argv[1:]
    try:
        importlib.import_module(f"pipelines.{name}")
        from pipelines.runs import flags
        flags.run(sys.modules[f"pipelines.{name}"].main)
    finally:
        print(sorted({"tensorflow", "keras", "jax", "torch"} & set(sys.modules)))
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_neither_tensorflow_nor_keras(name):
    ended = run(START, name, "--help")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]" and not ended.stderr


def test_help_ends_without_a_word_where_nobody_reads_it():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        ended = subprocess.run(
            [sys.executable, "train.py", "--help"],
            stdout=closed,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            timeout=SECONDS,
        )
    assert ended.returncode == 128 + signal.SIGPIPE and not ended.stderr


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--no_such_flag", "train: Unknown command line flag 'no_such_flag'"),
        (
            "--flagfile=none.flags",
            "train: --flagfile=none.flags: no such file or directory\n--help lists",
        ),
        ("--sampler=other", "flag --sampler=other: value should be one of"),
        ("--method=Dbfocal", "method=Dbfocal: value should be one of <erm|focal|"),
        ("--method=Dbfocal", "; did you mean 'db_focal'?"),
        ("--batch_size=0", "train: --batch_size must be greater than 0 and at most 2^24; got 0"),
        ("--image_ids=/a", "train: --image_ids goes with --dataset=voc_mlt or coco_mlt"),
    ],
)
def test_errors_of_flags_come_before_tensorflow(argument, said):
    ended = run(START, "train", argument)
    assert ended.returncode == 1 and said in ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"


def test_the_library_imports_nothing_and_leaves_the_environment():
    ended = run("""
        import os, sys
        before = dict(os.environ)
        import dbl_tf
        assert not {"tensorflow", "keras", "numpy"} & set(sys.modules)
        assert "DistributionBalancedLoss" in dir(dbl_tf)
        assert "LDAMLoss" in dbl_tf.__all__ and os.environ == before
    """)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    "imports",
    [
        "import keras; import dbl_tf",
        "import dbl_tf, importlib.util; assert importlib.util.find_spec('keras').has_location; "
        "from keras.models import load_model; import keras; "
        "assert keras.__spec__.loader is keras.__loader__ and keras.__loader__.get_source('keras')",
        "import dbl_tf.statistics; from dbl_tf.robust_losses import HillLoss; import keras",
    ],
)
def test_keras_knows_the_classes_whichever_is_imported_first(imports):
    ended = run(f"""
        {imports}
        import sys
        known = {{name for name in keras.saving.get_custom_objects() if name.startswith("dbl_tf>")}}
        import pathlib, re
        said = set()
        for path in pathlib.Path("dbl_tf").rglob("*.py"):
            said |= set(re.findall(
                r'register_keras_serializable\\(package="dbl_tf"\\)\\nclass (\\w+)',
                path.read_text(encoding="utf-8"),
            ))
        assert len(said) > 15 and known == {{f"dbl_tf>{{name}}" for name in said}}, said
        loss = keras.saving.deserialize_keras_object({{
            "module": None, "class_name": "HillLoss", "registered_name": "dbl_tf>HillLoss",
            "config": {{}},
        }})
        assert type(loss).__module__ == "dbl_tf.robust_losses"
        assert not any("registration" in type(each).__module__ for each in sys.meta_path)
    """)
    assert ended.returncode == 0, ended.stderr


def test_a_program_prints_nothing_of_tensorflow_but_its_errors():
    ended = run("""
        import os, sys
        from pipelines import start
        os.write(2, b"before\\n")
        start.import_tensorflow()
        import tensorflow as tf
        print("of the project", file=sys.stderr)
        tf.function(tf.transpose)(tf.zeros((8, 4), tf.uint8))
        tf.constant([1.0]) @ tf.constant([1.0])
    """)
    first, second, *traceback = ended.stderr.splitlines()
    assert (first, second) == ("before", "of the project")
    assert traceback[0].startswith("Traceback") and "InvalidArgumentError" in traceback[-1]


def test_errors_while_tensorflow_is_imported_are_passed_on(tmp_path):
    """A stand-in for a library that fails to load: it writes as native code does, and aborts."""
    (tmp_path / "tensorflow.py").write_text(
        "import os\n"
        "os.write(2, b'I0000 00:00:1.5 1 port.cc:153] a note\\n')\n"
        "os.write(2, b'F0000 00:00:1.5 1 cpu.cc:1] compiled for AVX, which is not available\\n')\n"
        "os.abort()\n"
    )
    code = "from pipelines import start; start.import_tensorflow()"
    ended = run(code, PYTHONPATH=f"{tmp_path}:{ROOT}")
    assert ended.returncode == -signal.SIGABRT
    assert ended.stderr == "F0000 00:00:1.5 1 cpu.cc:1] compiled for AVX, which is not available\n"


def test_the_users_level_of_messages_stays():
    ended = run(
        "import os; from pipelines import start; start.import_tensorflow(); "
        "print(os.environ['TF_CPP_MIN_LOG_LEVEL'])",
        TF_CPP_MIN_LOG_LEVEL="0",
    )
    assert ended.stdout == "0\n"


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "numpy"),
        (signal.SIGTERM, "tensorflow"),
        (signal.SIGINT, "tensorflow.python.framework.ops"),
    ],
)
def test_a_signal_during_the_imports_ends_with_one_line(number, moment, tmp_path):
    ended = run(
        """
        import os, sys

        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name == os.environ["MOMENT"]:
                    os.kill(os.getpid(), int(os.environ["NUMBER"]))

        sys.meta_path.insert(0, Finder())
        from pipelines import start
        start.run("train")
        """,
        f"--run_dir={tmp_path}/run",
        MOMENT=moment,
        NUMBER=str(int(number)),
    )
    assert ended.returncode == 128 + number
    assert ended.stderr == "train: stopped\n" and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_small_run_prints_lines_of_its_own_alone(tmp_path):
    random = np.random.default_rng(0)
    examples = tmp_path / "examples.npz"
    np.savez(
        examples,
        features=random.random((90, 4), np.float32),
        labels=random.random((90, 3)) < 0.5,
        split=np.repeat(["train", "val", "test"], 30),
        class_names=np.array(["a", "b", "c"]),
    )
    flags = ("--dataset=features", f"--examples={examples}", f"--run_dir={tmp_path}/run")
    ended = run(
        "from pipelines import start; start.run('train')", *flags, "--steps=4", "--method=erm"
    )
    assert ended.returncode == 0, ended.stderr
    assert (ended.stdout + ended.stderr).replace("\n", "").isprintable()
    # Those of the project's log, which name its modules, and their further lines.
    for line in ended.stderr.splitlines():
        assert re.match(r"[IW]\d{4} .* (features|examples)\.py:\d+\] | ", line), line
    out = ended.stdout
    assert "epoch 1 of" in out and f"report: {tmp_path}/run/report.html\n" in out
