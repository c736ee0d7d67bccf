"""Runs of several methods and seeds, or of several values of a setting, side by side."""

import csv
import dataclasses
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from dbl_tf import atomic
from pipelines.reports import comparison
from pipelines.runs import flags as run_flags
from pipelines.runs import report
from pipelines.runs.config import ConfigError, ResolvedConfig, RunConfig
from pipelines.runs.train import check_directory, train_and_evaluate


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A setting of a run, by its name in `RunConfig`, and the values that are compared."""

    field: str
    values: tuple[Any, ...]


def parse_sweep(text: str) -> Sweep:
    """Reads `name=value,value,…`; each value is parsed as the flag itself parses it.

    Raises:
        ConfigError: no such flag, or values that it does not take.
    """
    name, equals, values = text.partition("=")
    if not equals or name in ("method", "seed", "run_dir", "export"):
        raise ConfigError(
            "--vary takes the name of a flag and its values, such as beta=1,5,10, but not method, "
            f"seed, run_dir or export; got {text!r}"
        )
    return Sweep(*run_flags.parse_values(name, values))


def configurations(
    config: RunConfig,
    output_dir: str | os.PathLike,
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    sweep: Sweep | None = None,
) -> Iterator[RunConfig]:
    """The configuration of each run, seed by seed, so that all methods soon have their first.

    Args:
        config: what all runs have in common.
        output_dir: receives a run directory for each.
        methods: names of methods.
        seeds: of the repetitions.
        sweep: a setting and its values; None for the one of `config`.
    """
    for seed in seeds:
        for method in methods:
            for value in sweep.values if sweep else (None,):
                changed = {"method": method, "seed": seed}
                name = method
                if sweep:
                    changed[sweep.field] = value
                    name += f"-{sweep.field.rstrip('_')}={_in_name(value)}"
                changed["run_dir"] = os.path.join(output_dir, f"{name}-seed={seed}")
                yield config.with_settings(**changed)


def compare(runs: Sequence[RunConfig], output_dir: str | os.PathLike) -> str:
    """Trains what is not yet trained, and sets the scores side by side.

    A run that is finished is taken as it is, one that was stopped goes on. A run whose loss is no
    longer finite is left out and named.

    Args:
        runs: at least two, on one data set, with a run directory each.
        output_dir: receives `runs.csv`, `table.csv` and `report.html` with its `figures/`.

    Returns:
        The table, and what was left out, as text.

    Raises:
        ValueError: a run that cannot be started; nothing is trained if it can be known before. Or
            no run came to its end.
    """
    resolved = [config.resolve() for config in runs]
    twice = [name for name, n in Counter(config.run_dir for config in resolved).items() if n > 1]
    if twice:
        raise ConfigError(f"these runs are asked for more than once: {', '.join(twice)}")
    if any(config.strategy == "multi_worker" for config in resolved):
        raise ConfigError("a comparison runs on one machine: --strategy must not be multi_worker")
    for config in resolved:  # before the first is trained
        check_directory(config, pathlib.Path(config.run_dir))
    done, failed = [], []
    for number, (asked, config) in enumerate(zip(runs, resolved, strict=True), start=1):
        print(f"run {number} of {len(runs)}: {config.run_dir}", flush=True)
        try:
            scores = _finished_scores(config) or _train(asked)
        except FloatingPointError as error:
            failed.append(f"{config.run_dir} is left out: {error}")
            continue
        done.append((config.flat(), scores))
    if not done:
        raise ValueError("no run has come to its end:\n" + "\n".join(failed))
    output = pathlib.Path(output_dir)
    rows = comparison.variant_rows(done)
    _write_csv(output / "table.csv", rows)
    _write_csv(output / "runs.csv", comparison.run_rows(done))
    title = f"{resolved[0].data_name}: {len(rows)} variants"
    comparison.write_comparison(output / "report.html", title=title, runs=done)
    return "\n".join([comparison.format_table(done), *failed, f"report: {output / 'report.html'}"])


def _in_name(value: Any) -> str:
    """A value of a sweep as it appears in the name of a directory."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={_in_name(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(_in_name, value))
    return str(value).replace(os.sep, "_")


def _finished_scores(config: ResolvedConfig) -> dict[str, Any] | None:
    """The scores of a run that is finished; None where it has to be trained."""
    finished = pathlib.Path(config.run_dir, "metrics.json")  # the report is written after it
    if finished.exists() and finished.with_name(report.REPORT).exists():
        return json.loads(finished.read_text(encoding="utf-8"))
    return None


def _train(config: RunConfig) -> dict[str, Any]:
    keras.utils.clear_session()  # or every run would add its graphs to those before it
    scores = train_and_evaluate(config)
    assert scores is not None  # of a run on one machine, which is its own chief
    return scores


def _write_csv(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    with (
        atomic.replacing(path) as beside,
        open(beside, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
