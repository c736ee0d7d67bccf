"""The common part of the measurements: timing in turns, memory, the machine, tables and JSON."""

import concurrent.futures
import contextlib
import dataclasses
import importlib.metadata
import json
import math
import multiprocessing
import os
import pathlib
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

_PACKAGES = ("tensorflow", "keras", "jax", "torch", "numpy", "scipy", "scikit-learn", "pillow")


def run(
    name: str,
    define_flags: Callable[[], Sequence[flags.FlagHolder]],
    measure: Callable[..., dict[str, Any]],
    describe: Callable[[dict[str, Any]], str],
) -> None:
    """The program `python -m benchmarks.NAME`: measures, prints a table, writes JSON.

    Args:
        name: of the program.
        define_flags: defines its flags and gives them.
        measure: is called with the values of the flags, by name; gives the figures.
        describe: the figures for a person.
    """
    holders = define_flags()
    output = flags.DEFINE_string("output", None, "JSON file for the figures.")

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {argv[1:]}")
        if output.value and os.path.exists(output.value):
            raise SystemExit(f"benchmarks.{name}: {output.value} exists; give another --output")
        settings = {holder.name: holder.value for holder in holders}
        load_before = os.getloadavg()
        try:
            figures = measure(**settings)
        except (ValueError, OSError) as error:
            raise SystemExit(f"benchmarks.{name}: {error}") from error
        load = {"before": load_before, "after": os.getloadavg()}
        result = {
            "benchmark": name,
            "settings": settings,
            "environment": environment() | {"load_average": load},
            **figures,
        }
        print(describe_environment(result["environment"]), describe(result), sep="\n\n")
        if output.value:
            with open(output.value, "x", encoding="utf-8") as file:
                json.dump(_without_nan(result), file, ensure_ascii=False, indent=1)

    app.run(main)


def environment() -> dict[str, Any]:
    """Returns processor, usable cores and versions."""
    from dbl_tf.cores import usable_cores  # with Keras, which no measurement should begin with

    versions = {}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "machine": platform.machine(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def describe_environment(found: Mapping[str, Any]) -> str:
    """Formats `environment` and the load average for people."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    load = found["load_average"]
    return (
        f"{found['cpu']}, {found['cores']} cores, niceness {found['niceness']}; load average "
        f"{load['before'][0]:.1f} before and {load['after'][0]:.1f} after\n"
        f"Python {found['python']}, {versions}"
    )


@dataclasses.dataclass(frozen=True)
class Timings:
    """What calls took, by name; item k of all lists is of round k.

    Attributes:
        seconds: of a call, by the clock.
        cpu_seconds: of all threads of this process during a call.
    """

    seconds: dict[str, list[float]]
    cpu_seconds: dict[str, list[float]]


def in_turns(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    min_seconds: float = 0.0,
    before: Callable[[str], Any] | None = None,
) -> Timings:
    """Times calls in turns, each once a round, so that other work affects all of them equally.

    Each is first called once untimed, which compiles it. The order moves on by one every round.

    Args:
        candidates: what is timed, by name.
        rounds: timings of each.
        min_seconds: where a call is shorter, so many are made in a row that they take this long,
            and their mean is taken.
        before: is called with the name before every timing, untimed.
    """
    names, calls = list(candidates), {}
    timings = Timings({name: [] for name in names}, {name: [] for name in names})
    for name in names:
        if before is not None:
            before(name)
        candidates[name]()
        if before is not None:
            before(name)
        start = time.perf_counter()
        candidates[name]()
        once = max(time.perf_counter() - start, 1e-9)
        calls[name] = max(1, math.ceil(min_seconds / once))
    for i in range(rounds):
        for k in range(len(names)):
            name = names[(i + k) % len(names)]
            if before is not None:
                before(name)
            start, cpu_start = time.perf_counter(), time.process_time()
            for _ in range(calls[name]):
                candidates[name]()
            seconds = time.perf_counter() - start
            cpu_seconds = time.process_time() - cpu_start
            timings.seconds[name].append(seconds / calls[name])
            timings.cpu_seconds[name].append(cpu_seconds / calls[name])
    return timings


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Returns median and quartiles."""
    low, median, high = np.quantile(np.asarray(values, float), [0.25, 0.5, 0.75])
    return {"median": float(median), "low": float(low), "high": float(high)}


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios of the rounds, each of two things timed one after another.

    A ratio within a round is moved less by other work on the machine than one of two medians.
    """
    return quartiles(np.asarray(numerators, float) / np.asarray(denominators, float))


def show(figures: Mapping[str, float], digits: int = 2) -> str:
    """Formats a median with its quartiles, as in "1.52 (1.48–1.60)"."""
    low, median, high = (f"{figures[key]:.{digits}f}" for key in ("low", "median", "high"))
    return f"{median} ({low}–{high})"


def show_seconds(seconds: float) -> str:
    """Formats a time in a suitable unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Rows in columns: the first to the left, the others to the right."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def in_process_of_its_own(
    function: Callable[..., Any],
    *arguments: Any,
    environ: Mapping[str, str] | None = None,
    **options: Any,
) -> Any:
    """What a function gives in a new process, which begins without the memory of this one.

    Args:
        function: of a module, found there by its name.
        *arguments: of the function.
        environ: environment variables of the process, in addition to those of this one.
        **options: keyword arguments of the function.
    """
    kept = dict(os.environ)
    os.environ.update(environ or {})
    context = multiprocessing.get_context("spawn")
    try:
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
            return executor.submit(function, *arguments, **options).result()
    finally:
        os.environ.clear()
        os.environ.update(kept)


def peak_mib() -> float:
    """Returns the peak memory of this process."""
    # Linux gives a new process the largest memory of its parent as its own `ru_maxrss`.
    status = pathlib.Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class Stage:
    """Times what runs inside it, and asks for the memory of the process before and after.

    Attributes:
        seconds: by the clock, once it has ended.
    """

    def __enter__(self) -> "Stage":
        self._before = peak_mib()
        self._started, self._cpu_started = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.perf_counter() - self._started
        self._cpu_seconds = time.process_time() - self._cpu_started
        self._peak = peak_mib()

    def figures(self, **further: float) -> dict[str, float]:
        """Seconds by the clock and of the CPU, memory held before and at most, and `further`."""
        return {
            "seconds": self.seconds,
            "cpu_seconds": self._cpu_seconds,
            "mib_before": self._before,
            "mib_peak": self._peak,
        } | further


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[None]:
    """Keeps this process and the threads that it starts from now on to some of its cores.

    Raises:
        ValueError: there are fewer, or the system does not let a process choose.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("this system does not let a process choose its cores")
    allowed = os.sched_getaffinity(0)
    if count > len(allowed):
        raise ValueError(f"{count} cores are asked for, and this process may use {len(allowed)}")
    os.sched_setaffinity(0, set(sorted(allowed)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _cpu_name() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _without_nan(value: Any) -> Any:
    """The same with None for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
