"""Python programs in processes of their own that have TensorFlow and the project imported already.

Importing them takes most of the time of a short program. A server process imports them once, and
each program runs in a fork of it, from its first line to its exit status, as if `python` had been
started on it. A program whose imports are themselves tested needs `subprocess` instead.
"""

import json
import multiprocessing
import multiprocessing.forkserver
import os
import pathlib
import runpy
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
# None of them defines flags or runs an operation of TensorFlow.
_IMPORTED = ["tensorflow", "keras", "scipy.sparse", "absl.app", "pipelines.runs.compare"]
_SECONDS = 600  # after which a program hangs


class Program:
    """A running program.

    Args:
        command: what would follow `python`: a file, `-m` and a module, or `-c` and code; then the
            arguments. A relative file is one of the repository.
        environment: variables that are set in addition to those of this process.

    Attributes:
        pid: the number of the process.
    """

    def __init__(self, command: Sequence[object], environment: Mapping[str, str] | None = None):
        self._folder = tempfile.TemporaryDirectory(prefix="program-")
        self._files = [os.path.join(self._folder.name, name) for name in ("stdout", "stderr")]
        for name in self._files:
            pathlib.Path(name).touch()
        self._process = _context().Process(
            target=_run,
            args=(
                [str(part) for part in command],
                dict(os.environ) | (environment or {}),
                self._files,
            ),
            daemon=True,
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status; the negative signal that ended the program; None while it runs."""
        return self._process.exitcode

    def wait(self) -> int:
        """Waits for the end of the program and gives its exit status.

        Raises:
            TimeoutError: it hangs.
        """
        self._process.join(_SECONDS)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(f"the program has not ended in {_SECONDS} s:\n{self.stderr}")
        return self.returncode

    def kill(self) -> None:
        """Ends the program at once, as the system does that is out of memory."""
        self._process.kill()
        self._process.join()

    def signal(self, number: int) -> None:
        """Sends a signal to the program, if it has not ended."""
        if self.returncode is None:
            os.kill(self.pid, number)

    @property
    def stdout(self) -> str:
        """What the program has printed."""
        return pathlib.Path(self._files[0]).read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        """The messages of the program."""
        return pathlib.Path(self._files[1]).read_text(encoding="utf-8")


def wait_until(happened: Callable[[], object], programs: Sequence[Program]) -> None:
    """Returns once something has happened, which the programs bring about while they all run.

    Args:
        happened: whether it has.
        programs: the programs.
    """
    waited_until = time.monotonic() + _SECONDS
    while not happened():
        for program in programs:
            assert program.returncode is None, program.stderr
        assert time.monotonic() < waited_until
        time.sleep(0.02)


def free_ports(number: int) -> list[int]:
    """Ports that no process listens at."""
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("localhost", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_cluster(commands: Sequence[Sequence[object]]) -> list[Program]:
    """Starts a program on each machine of a cluster on the loopback interface.

    Args:
        commands: those of worker 0, worker 1, and so on.
    """
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(len(commands))]}
    configs = [
        json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
        for index in range(len(commands))
    ]
    return [
        Program(command, {"TF_CONFIG": config})
        for command, config in zip(commands, configs, strict=True)
    ]


def run(*command: object, environment: Mapping[str, str] | None = None) -> Program:
    """A program that has ended."""
    program = Program(command, environment)
    program.wait()
    return program


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    before = os.environ.get("PYTHONPATH")
    # The server does not get `sys.path` of this process before Python 3.13.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def _run(command: list[str], environment: dict[str, str], files: list[str]) -> None:
    for descriptor, name in enumerate(files, start=1):
        target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, descriptor)
        os.close(target)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    kind, *rest = command
    if kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<program>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(ROOT / kind), *rest]
        runpy.run_path(sys.argv[0], run_name="__main__")
