"""Runs of several methods and seeds, or of several values of a setting, side by side."""

import csv
import dataclasses
import json
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from dbl_tf import atomic
from pipelines.reports import comparison
from pipelines.runs import report
from pipelines.runs.config import ConfigError, RunConfig, flag_name
from pipelines.runs.train import check_directory, train_and_evaluate


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A setting of a run, by its name in `RunConfig`, and the values that are compared."""

    field: str
    values: tuple[Any, ...]


def parse_sweep(text: str) -> Sweep:
    """Reads `name=value,value,…`, the name of a flag that takes numbers or words.

    Raises:
        ConfigError: no such flag, or values that it does not take.
    """
    name, equals, values = text.partition("=")
    fields = {flag_name(field): field for field in dataclasses.fields(RunConfig)}
    field = fields.get(name)
    if not equals or field is None or field.name in ("method", "seed", "run_dir", "export"):
        raise ConfigError(
            "what is varied is given as a flag's name and values, such as beta=1,5,10; got "
            f"{text!r}"
        )
    kinds = str(field.type)
    kind = int if "int" in kinds else float if "float" in kinds else str
    try:
        return Sweep(field.name, tuple(kind(value) for value in values.split(",")))
    except ValueError:
        raise ConfigError(f"--{name} takes numbers ({kind.__name__}); {values!r} are not") from None


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
                changed = {"method": method, "seed": seed, "export": False}
                name = method
                if sweep:
                    changed[sweep.field] = value
                    name += f"-{sweep.field.rstrip('_')}={value}"
                changed["run_dir"] = os.path.join(output_dir, f"{name}-seed={seed}")
                yield dataclasses.replace(config, **changed)


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
    runs = [config.resolved() for config in runs]
    twice = [name for name, n in Counter(config.run_dir for config in runs).items() if n > 1]
    if twice:
        raise ConfigError(f"these runs are asked for more than once: {', '.join(twice)}")
    if any(config.strategy == "multi_worker" for config in runs):
        raise ConfigError("a comparison runs on one machine: --strategy must not be multi_worker")
    for config in runs:  # before the first is trained
        check_directory(config, pathlib.Path(config.run_dir))
    done, failed = [], []
    for number, config in enumerate(runs, start=1):
        print(f"run {number} of {len(runs)}: {config.run_dir}", flush=True)
        try:
            scores = _scores_of(config)
        except FloatingPointError as error:
            failed.append(f"{config.run_dir} is left out: {error}")
            continue
        done.append((dataclasses.asdict(config), scores))
    if not done:
        raise ValueError("no run has come to its end:\n" + "\n".join(failed))
    output = pathlib.Path(output_dir)
    rows = comparison.table(done)
    _write_csv(output / "table.csv", rows)
    _write_csv(
        output / "runs.csv",
        [
            {"method": config["method"], "seed": config["seed"], "run_dir": config["run_dir"]}
            | scores["mAP"]
            for config, scores in done
        ],
    )
    title = f"{runs[0].data_name}: {len(rows)} variants"
    comparison.write_comparison(output / "report.html", title=title, runs=done)
    return "\n".join([comparison.format_table(rows), *failed, f"report: {output / 'report.html'}"])


def _scores_of(config: RunConfig) -> dict[str, Any]:
    finished = pathlib.Path(config.run_dir, "metrics.json")  # the report comes after it
    if finished.exists() and finished.with_name(report.REPORT).exists():
        return json.loads(finished.read_text(encoding="utf-8"))
    keras.utils.clear_session()  # or every run would add its graphs to those before it
    return train_and_evaluate(config)


def _write_csv(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
    with (
        atomic.replacing(path) as beside,
        open(beside, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
