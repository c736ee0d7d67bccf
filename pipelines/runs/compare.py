"""Trains and compares several methods and seeds, or several values of a setting."""

import dataclasses
import itertools
import os
import pathlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from dbl_tf import atomic
from pipelines import folds
from pipelines.reports import comparison, variants
from pipelines.runs import build, directory, report
from pipelines.runs import flags as run_flags
from pipelines.runs import scores as run_scores
from pipelines.runs.config import ConfigError, ResolvedConfig, RunConfig
from pipelines.runs.train import train_and_evaluate

_FIXED = ("method", "seed", "run_dir", "export", "held_out")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The name of a setting in `RunConfig`, and the values of it that are compared."""

    field: str
    values: tuple[Any, ...]


def parse_sweep(text: str) -> Sweep:
    """Parses `name=value,value,…`, where each value is what the flag of this name takes.

    Raises:
        ConfigError: there is no such flag, or it does not take one of the values.
    """
    name, equals, values = text.partition("=")
    if not equals or name in _FIXED:
        raise ConfigError(
            "--vary takes the name of a flag and its values, such as beta=1,5,10, but not "
            f"{', '.join(_FIXED[:-1])} or {_FIXED[-1]}; got {text!r}"
        )
    return Sweep(*run_flags.parse_values(name, values))


def configurations(
    config: RunConfig,
    output_dir: str | os.PathLike,
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    sweep: Sweep | None = None,
    on: str = "test",
) -> Iterator[RunConfig]:
    """Yields the configuration of each run.

    All runs of one seed and fold come before those of the next, so that every method soon has a
    result.

    Args:
        config: the settings that all runs have in common.
        output_dir: the directory in which each run gets its own directory.
        methods: the names of the methods.
        seeds: the seeds with which each method is trained.
        sweep: the setting to vary; None to leave all settings as they are in `config`.
        on: what the runs are judged on. "cv" holds out each of the `config.folds` folds of the
            training split in turn, and accepts classes whose examples are all in that fold.
    """
    for seed, held_out in itertools.product(seeds, _held_out(on, config.folds)):
        for method in methods:
            for value in sweep.values if sweep else (None,):
                changed = {"method": method, "seed": seed}
                name = method
                if sweep:
                    changed[sweep.field] = value
                    name += f"-{sweep.field.rstrip('_')}={_in_name(value)}"
                name += f"-seed={seed}"
                if held_out:
                    name += f"-on={held_out.replace('/', '_of_')}"
                    changed |= {"held_out": held_out, "clamp_counts": True}
                changed["run_dir"] = os.path.join(output_dir, name)
                yield config.with_settings(**changed)


def _held_out(on: str, num_folds: int) -> list[str | None]:
    if on == "cv":
        return [folds.name_of(fold, num_folds) for fold in range(num_folds)]
    return [folds.VAL if on == "val" else None]


def compare(runs: Sequence[RunConfig], output_dir: str | os.PathLike) -> str:
    """Trains the runs that are not finished, and writes tables and a report of all of them.

    A finished run is not trained again, and a run that was stopped continues. A run whose loss
    becomes infinite or NaN is left out, and the result says so.

    Args:
        runs: at least two configurations on the same data set, each with its own run directory.
        output_dir: the directory, which need not exist, for `runs.csv`, `table.csv`,
            `differences.csv` and `report.html` with its `figures/`.

    Returns:
        The tables of the scores and differences as text, followed by the runs that were left out.

    Raises:
        ValueError: a run cannot be started, which is found before any training where possible; or
            none of the runs could be finished.
    """
    counts = Counter(str(config.directory) for config in runs)
    twice = [name for name, n in counts.items() if n > 1]
    if twice:
        raise ConfigError(f"these runs are requested more than once: {', '.join(twice)}")
    if any(config.strategy == "multi_worker" for config in runs):
        raise ConfigError("a comparison runs on one machine: --strategy must not be multi_worker")
    for config in runs:  # before the first is trained
        config.check_files()
        directory.saved_config(config)
        _finished_scores(config.directory)
    for config in {_backbone_settings(config): config for config in runs}.values():
        build.check_backbone(config)
    output = pathlib.Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    done, failed = [], []
    for number, config in enumerate(runs, start=1):
        print(f"run {number} of {len(runs)}: {config.directory}", flush=True)
        try:
            scores = _finished_scores(config.directory) or _train(config)
        except FloatingPointError as error:
            failed.append(f"{config.directory} is left out: {error}")
            continue
        done.append((ResolvedConfig.load(config.directory / "config.json").flat(), scores))
    if not done:
        raise ValueError("none of the runs could be finished:\n" + "\n".join(failed))
    rows = variants.variant_rows(done)
    atomic.write_csv(rows, output / "table.csv")
    atomic.write_csv(variants.run_rows(done), output / "runs.csv")
    atomic.write_csv(variants.difference_rows(done), output / "differences.csv")
    title = f"{runs[0].data_name}: {len(rows)} variants"
    comparison.write_comparison(output / "report.html", title=title, runs=done)
    return "\n".join([variants.format_table(done), *failed, f"report: {output / 'report.html'}"])


def _backbone_settings(config: RunConfig) -> str:
    """Returns a text that is the same for runs whose backbones are built alike."""
    fields = ("backbone", "backbone_weights", "backbone_options", "image_size", "frozen_layers")
    return repr([getattr(config, name) for name in (*fields, "init_from")])


def _in_name(value: Any) -> str:
    """Formats a value of a sweep for the name of a directory."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}={_in_name(item)}" for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ",".join(map(_in_name, value))
    return str(value).replace(os.sep, "_")


def _finished_scores(run_dir: pathlib.Path) -> dict[str, Any] | None:
    """Returns the scores of a run if it is finished, otherwise None."""
    finished = run_dir / "metrics.json"  # the report is written after this file
    if finished.exists() and finished.with_name(report.REPORT).exists():
        return run_scores.read_scores(finished)
    return None


def _train(config: RunConfig) -> dict[str, Any]:
    keras.utils.clear_session()  # otherwise the graphs of all runs would add up
    scores = train_and_evaluate(config)
    assert scores is not None  # the only process of a run is its chief
    return scores
