"""The directory of a run: whose it is, and what a run that goes on finds in it."""

import errno
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from dbl_tf import atomic
from dbl_tf.lock import Lock
from dbl_tf.statistics import LabelStatistics
from pipelines.examples import Examples
from pipelines.runs.config import ConfigError, ResolvedConfig, RunConfig
from pipelines.runs.origin import Origin, SplitFingerprint

# The files, or temporary files of them, that a run may leave if it is killed right after its start.
_WRITTEN_FIRST = {
    Lock.NAME,
    "statistics.json",
    Origin.NAME,
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
    if any(run_dir.glob("checkpoints/*.npz")):
        raise ConfigError(
            f"{run_dir} has checkpoints, but its config.json is gone; restore it, or choose "
            "another --run_dir"
        )
    if run_dir.exists() and any(
        atomic.target_name(path.name) not in _WRITTEN_FIRST for path in run_dir.iterdir()
    ):
        raise ConfigError(
            f"{run_dir} is not empty and does not hold a run; choose another --run_dir"
        )
    return None


def open_directory(config: ResolvedConfig, statistics: LabelStatistics, origin: Origin) -> Origin:
    """Writes the files of a new run by which it is known again, or checks those of a stopped one.

    Removes files that a killed process has left half-written. Warns where the weights may not be
    those of a run that was never stopped.

    Args:
        config: the configuration of the run.
        statistics: the statistics of its training labels.
        origin: what it is started with now.

    Returns:
        What it was started with first, with all changes of the data that were accepted.

    Raises:
        ValueError: the data have changed since the run was started, or the directory holds another
            run.
    """
    run_dir = pathlib.Path(config.run_dir)
    path = run_dir / "config.json"
    continues = path.exists()
    if continues:
        _refuse(config.differences(ResolvedConfig.load(path)), run_dir)
    atomic.remove_incomplete(run_dir)
    changes = []
    before = Origin.load(run_dir)
    if before is not None:
        changes = origin.data_changes(before)
        if differences := origin.thread_changes(before):
            logging.warning(
                "%s was started under other conditions, so that its weights may differ in their "
                "last digits from those of a run that was not stopped (%s)",
                run_dir,
                "; ".join(differences),
            )
    elif continues:
        logging.warning(
            "%s was started by a version that kept no %s: whether its data have changed cannot be "
            "told, beyond the counts of the training labels",
            run_dir,
            Origin.NAME,
        )
    saved = run_dir / "statistics.json"
    if saved.exists():
        _check_statistics(LabelStatistics.load(saved), statistics, config, changes)
    if changes and not config.accept_changed_data:
        raise _changed_data(run_dir, changes)
    if changes:
        logging.warning("the data of %s have changed: %s", run_dir, "; ".join(changes))
    if changes or not saved.exists():
        statistics.save(saved)
    accepted = [*(before.accepted_changes if before else []), *changes]
    splits = origin.splits
    if before is not None:
        splits = {
            name: split.keeping_content(before.splits[name]) if name in before.splits else split
            for name, split in splits.items()
        }
    origin = Origin(splits, before.threads if before is not None else origin.threads, accepted)
    if origin != before:
        origin.save(run_dir)
    if not continues:
        config.save(path)
    return origin


def check_finished(run_dir: str | os.PathLike, names: Sequence[str] = ()) -> None:
    """Refuses a directory that holds no run, or one that was stopped before its end.

    Args:
        run_dir: the directory.
        names: the files that the run must have written.

    Raises:
        ValueError: one of them is not there, or `config.json` is not.
    """
    for name in ("config.json", *names):
        if os.path.exists(os.path.join(run_dir, name)):
            continue
        if name == "config.json":
            raise ValueError(f"{run_dir} holds no run: there is no {name} in it")
        raise ValueError(
            f"the run in {run_dir} has not finished, as there is no {name} in it; the same "
            "training command continues it"
        )


def check_still_there(run_dir: pathlib.Path) -> None:
    """Refuses to end a run well whose directory was removed meanwhile.

    Raises:
        FileNotFoundError: it is gone, or others of its files have been written to a new one.
    """
    path = run_dir / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            errno.ENOENT, "the run directory was removed while the run was writing to it", str(path)
        )


def _check_statistics(
    before: LabelStatistics, now: LabelStatistics, config: ResolvedConfig, changes: list[str]
) -> None:
    """Refuses other training labels; adds to `changes` those with which training can go on."""
    if (
        before.class_names == now.class_names
        and before.num_examples == now.num_examples
        and np.array_equal(before.known_counts, now.known_counts)
        and np.array_equal(before.cooccurrence, now.cooccurrence)
    ):
        return
    if before.class_names != now.class_names or before.num_examples != now.num_examples:
        raise ValueError(
            f"the training labels are not those that {config.run_dir} was started with: it has "
            f"{before.num_examples:,} examples of {before.num_classes:,} classes, and the data "
            f"have {now.num_examples:,} of {now.num_classes:,}, or other names. Its network and "
            "its schedule depend on them; choose another --run_dir"
        )
    if not any(change.startswith("train: ") for change in changes):
        changes.append("train: labels")


def _changed_data(run_dir: pathlib.Path, changes: list[str]) -> ValueError:
    return ValueError(
        f"the data are not those that {run_dir} was started with: {'; '.join(changes)}. Restore "
        "them, choose another --run_dir, or pass --accept_changed_data to continue with them"
    )


def check_data(
    run_dir: pathlib.Path, splits: Mapping[str, Examples], *, content: bool = False
) -> None:
    """Refuses to evaluate a run on splits that are not those that it knows.

    Args:
        run_dir: the directory of the run. One of a version that kept no fingerprint is accepted.
        splits: the splits to compare.
        content: see `SplitFingerprint.of`.

    Raises:
        ValueError: a split has changed.
    """
    before = Origin.load(run_dir)
    if before is None:
        return
    changes = []
    for name, examples in splits.items():
        if name in before.splits:
            now = SplitFingerprint.of(examples, content=content)
            found = now.changes(before.splits[name])
            changes += [f"{name}: {', '.join(found)}"] if found else []
    if changes:
        raise ValueError(
            f"the data are not those that {run_dir} was trained and evaluated on: "
            f"{'; '.join(changes)}. Restore them, start the training command again with "
            "--accept_changed_data, or evaluate its export with --saved_model"
        )


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
