"""The directory of a run: whose it is, and what a run that goes on finds in it."""

import pathlib

import numpy as np

from dbl_tf import atomic
from dbl_tf.lock import Lock
from dbl_tf.statistics import LabelStatistics
from pipelines.runs.config import ConfigError, ResolvedConfig, RunConfig

# The files, or temporary files of them, that a run may leave if it is killed right after its start.
_WRITTEN_FIRST = {
    Lock.NAME,
    "statistics.json",
    "config.json",
    "selection.csv",
    "selection_summary.csv",
    "selection.json",
    "selection",
}
_LENGTH = {"epochs", "steps"}


def saved_config(asked: RunConfig) -> ResolvedConfig | None:
    """Returns the configuration of the run that the directory holds, None if it holds none.

    Raises:
        ConfigError: the directory holds a run of which something else was asked for than is asked
            now, or other files. The message names the settings that differ.
    """
    run_dir, saved = asked.directory, asked.directory / "config.json"
    if saved.exists():
        config = ResolvedConfig.load(saved)
        _refuse(asked.open_differences(config), run_dir)
        return config
    if run_dir.exists() and any(
        atomic.target_name(path.name) not in _WRITTEN_FIRST for path in run_dir.iterdir()
    ):
        raise ConfigError(
            f"{run_dir} is not empty and does not hold a run; choose another --run_dir"
        )
    return None


def open_directory(config: ResolvedConfig, statistics: LabelStatistics) -> None:
    """Writes the configuration and the statistics of a new run, or checks those of a stopped one.

    Removes files that a killed process has left half-written.

    Raises:
        ValueError: the training labels have changed since the run was started, or the directory
            holds another run.
    """
    run_dir = pathlib.Path(config.run_dir)
    path = run_dir / "config.json"
    if path.exists():
        _refuse(config.differences(ResolvedConfig.load(path)), run_dir)
    atomic.remove_incomplete(run_dir)
    saved = run_dir / "statistics.json"
    if saved.exists():
        before = LabelStatistics.load(saved)
        if (
            before.class_names != statistics.class_names
            or before.num_examples != statistics.num_examples
            or not np.array_equal(before.known_counts, statistics.known_counts)
            or not np.array_equal(before.cooccurrence, statistics.cooccurrence)
        ):
            raise ValueError(
                f"the training labels are not those that {run_dir} was started with; choose "
                "another --run_dir"
            )
    if not saved.exists():
        statistics.save(saved)
    if not path.exists():
        config.save(path)


def _refuse(differences: dict[str, str], run_dir: pathlib.Path) -> None:
    if not differences:
        return
    message = (
        f"{run_dir} holds a run of another configuration: continue it with the same settings, or "
        "choose another --run_dir. These settings differ:\n  " + "\n  ".join(differences.values())
    )
    if set(differences) <= _LENGTH:
        message += (
            "\nA schedule depends on the number of steps, so that a run cannot be made longer. To "
            f"train its weights further, pass --init_from={run_dir} with another --run_dir"
        )
    raise ConfigError(message)
