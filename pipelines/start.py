"""The start of a program: its signals, and what TensorFlow prints, before TensorFlow is imported.

Programs import this module first. It needs the standard library alone.
"""

import contextlib
import functools
import importlib
import os
import re
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

# Notes and warnings of TensorFlow's C++ code, and what it calls errors where it only lacks a GPU or
# some instructions of the processor.
_NOTE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog"
    rb"|[IW]\d{4} \d|\d{4}-\d\d-\d\d [\d:.]+: [IW] "
    rb"|To enable the following instructions: "
    rb"|E\d{4} \d.* (failed call to cuInit|Unable to register cu|oneDNN supports DT_UINT8 only)"
)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(name: str) -> None:
    """Runs a command with the flags of the command line.

    Args:
        name: the name of its module in `pipelines`, and of the program in messages.
    """
    stop_at_once(name)
    importlib.import_module(f"pipelines.{name}").run()


def stop_at_once(program: str) -> None:
    """From now on, SIGINT and SIGTERM end the process with one line, and status 130 or 143.

    The imports of a command take seconds, in which an exception would be raised anywhere in foreign
    code, and there is nothing to clean up yet. `dbl_tf.training.exiting_when_stopped` takes over
    where work begins. Signals that are ignored stay so.

    Args:
        program: the name of the program in the line.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(2, f"{program}: stopped\n".encode())
        os._exit(128 + number)

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)


def import_tensorflow() -> None:
    """Imports TensorFlow without what it prints of itself when it starts.

    `TF_CPP_MIN_LOG_LEVEL` is set to 2, for errors alone, and what the libraries write before they
    read it is left out by its form. Where the user has set a level, all is as TensorFlow prints it.
    This is for programs: a library leaves the environment as it is.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ or "tensorflow" in sys.modules:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    with _filtered_stderr():
        import tensorflow as tf

        tf.config.list_physical_devices()  # loads the libraries of the devices
        # oneDNN says once in a process, as an error, that it leaves bytes to TensorFlow. It says so
        # here, in a graph of its own, which decides nothing about the devices of the program.
        with tf.Graph().as_default():
            turned = tf.transpose(tf.compat.v1.placeholder(tf.uint8, (1, 2)))
            without_gpu = tf.compat.v1.ConfigProto(device_count={"GPU": 0})
            with tf.compat.v1.Session(config=without_gpu) as session:
                session.run(turned, {"Placeholder:0": [[0, 1]]})


@contextlib.contextmanager
def _filtered_stderr() -> Iterator[None]:
    """Inside, native code's notes are left out of descriptor 2; all other lines are passed on.

    They pass through a process of their own, which prints what a crash of this one leaves.
    """
    reader, writer = os.pipe()
    sys.stderr.flush()
    before_fork = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    child = os.fork()
    if not child:
        _pass_on(reader, writer)
    signal.pthread_sigmask(signal.SIG_SETMASK, before_fork)
    os.close(reader)
    before = os.dup(2)
    os.dup2(writer, 2)
    os.close(writer)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, 2)  # closes the last end of the pipe for writing
        os.close(before)
        os.waitpid(child, 0)


def _pass_on(reader: int, writer: int) -> NoReturn:
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # it ends with the process that writes
        os.close(writer)
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                if not _NOTE.match(line):
                    os.write(2, line)
    finally:
        os._exit(0)


# The entry points of the installed commands.
compare, evaluate, prepare, tag, train = (
    functools.partial(run, name) for name in ("compare", "evaluate", "prepare", "tag", "train")
)
