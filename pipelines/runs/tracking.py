"""Runs in MLflow and Weights & Biases: one run there for each run here, however often it stops."""

import contextlib
import importlib.util
import math
import os
import pathlib
import secrets
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import keras
import msgspec
from absl import logging

from dbl_tf import saved_json, training
from dbl_tf.messages import one_line
from pipelines import locations
from pipelines.runs.config import ConfigError, ResolvedConfig, RunConfig

# The extras, and with them the flags and the packages, have these names.
MLFLOW, WANDB = "mlflow", "wandb"
# MLflow tries to reach a server for minutes, and the training waits. It reads this variable.
_RETRIES, _FEW = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"
# MLflow takes so many at once.
_PARAMS_AT_ONCE, _LONGEST_PARAM = 100, 6000
_SUCCESS, _FAILURE, _STOPPED = "FINISHED", "FAILED", "KILLED"
# Parts of `metrics.json` that are as long as the list of labels, or longer.
_OF_LABELS = ("per_class", "curves")


def check(asked: RunConfig) -> None:
    """Refuses trackers whose packages are not installed, and a URI that would give a password away.

    Raises:
        ConfigError: the message names the flag, and the extra or where the password goes.
    """
    for name in _KINDS:
        if getattr(asked, name) is not None and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"--{name} needs {name}, not installed here: pip install 'dbl-tf[{name}]'"
            )
    if urllib.parse.urlsplit(asked.mlflow or "").password:
        raise ConfigError(
            "--mlflow must not hold a password, which config.json would show: set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if asked.mlflow_experiment is not None and asked.mlflow is None:
        raise ConfigError("--mlflow_experiment goes with --mlflow")


class Tracker(Protocol):
    """A run in a tracker. Every method may raise any exception of its package."""

    def num_epochs(self, prefix: str) -> int:
        """Returns how many epochs it has of the metrics with a prefix."""

    def log_epoch(self, prefix: str, epoch: int, values: Mapping[str, float]) -> None:
        """Adds the metrics of an epoch, which follows those that it has."""

    def log_scores(self, values: Mapping[str, float]) -> None:
        """Sets the scores of the end, in place of earlier ones."""

    def log_files(self, paths: Sequence[pathlib.Path]) -> None:
        """Stores files."""

    def finish(self, status: str) -> None:
        """Ends the run with one of the states that MLflow has."""


class _SavedRuns(msgspec.Struct):
    """The content of `tracking.json`.

    Attributes:
        mlflow: the IDs of the run by tracking URI.
        wandb: the IDs of the run by project.
        wandb_epochs: the numbers of epochs that finished folders of an offline run have, by ID and
            prefix. Nothing else knows them.
        wandb_unfinished: the folder of an offline run that was begun last, by ID, until it is
            finished.
    """

    mlflow: dict[str, str] = {}
    wandb: dict[str, str] = {}
    wandb_epochs: dict[str, dict[str, int]] = {}
    wandb_unfinished: dict[str, str] = {}

    NAME: ClassVar[str] = "tracking.json"

    @classmethod
    def load(cls, run_dir: pathlib.Path) -> "_SavedRuns":
        path = run_dir / cls.NAME
        return _SAVED_RUNS.read(path) if path.exists() else cls()

    def save(self, run_dir: pathlib.Path) -> None:
        _SAVED_RUNS.write(run_dir / self.NAME, msgspec.to_builtins(self), indent=1)


_SAVED_RUNS = saved_json.Format(
    "dbl_tf.TrackedRuns",
    "list of tracked runs",
    _SavedRuns,
    "restore it from a copy, or remove it to go on as another run there",
)


class MLflowRun:
    """A run in MLflow.

    Args:
        config: the configuration of the run.
        saved: where the ID is kept.
    """

    def __init__(self, config: ResolvedConfig, saved: _SavedRuns):
        os.environ.setdefault(_RETRIES, _FEW)
        import mlflow

        assert config.mlflow is not None
        uri = tracking_uri(config.mlflow)
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        self._epochs: dict[str, int] = {}
        run_dir = pathlib.Path(config.run_dir)
        if uri in saved.mlflow:
            self._id = saved.mlflow[uri]
            self._client.update_run(self._id, status="RUNNING")
            return
        name = config.mlflow_experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
        experiment = self._experiment(name or config.data_name, config.mlflow)
        self._id = self._client.create_run(experiment, run_name=run_dir.name).info.run_id
        params = [
            mlflow.entities.Param(key, str(value)[:_LONGEST_PARAM])
            for key, value in config.flat().items()
            if value is not None
        ]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(self._id, params=params[start : start + _PARAMS_AT_ONCE])
        saved.mlflow[uri] = self._id
        saved.save(run_dir)

    def _experiment(self, name: str, place: str) -> str:
        """Returns the ID of an experiment, which is made if there is none of this name."""
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        is_folder = not locations.scheme_of(place)
        files = pathlib.Path(place, "artifacts").absolute().as_uri() if is_folder else None
        return self._client.create_experiment(name, artifact_location=files)

    def num_epochs(self, prefix: str) -> int:
        """Returns how many epochs the server has, which is asked once."""
        if prefix not in self._epochs:
            history = self._client.get_metric_history(self._id, f"{prefix}loss")
            self._epochs[prefix] = max((metric.step for metric in history), default=-1) + 1
        return self._epochs[prefix]

    def log_epoch(self, prefix: str, epoch: int, values: Mapping[str, float]) -> None:
        """Logs the metrics with the number of the epoch as their step, all of them or none."""
        self._log({f"{prefix}{name}": value for name, value in values.items()}, epoch)
        self._epochs[prefix] = epoch + 1

    def log_scores(self, values: Mapping[str, float]) -> None:
        """Logs the scores that the run does not have."""
        before = self._client.get_run(self._id).data.metrics
        self._log({name: v for name, v in values.items() if before.get(name) != v}, 0)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics, synchronous=True)

    def log_files(self, paths: Sequence[pathlib.Path]) -> None:
        """Stores the files as artifacts of the run."""
        for path in paths:
            self._client.log_artifact(self._id, str(path))

    def finish(self, status: str) -> None:
        """Ends the run."""
        self._client.set_terminated(self._id, status)


class WandbRun:
    """A run in Weights & Biases, in the mode of the variable `WANDB_MODE`.

    W&B keeps what it has not yet written offline in memory, so that nobody knows what the folder of
    a killed process holds. Such a folder is set aside, and the next one gets its epochs.

    Args:
        config: the configuration of the run.
        saved: where the ID, and the numbers of epochs, are kept.
    """

    def __init__(self, config: ResolvedConfig, saved: _SavedRuns):
        import wandb

        assert config.wandb is not None
        self._saved, self._run_dir = saved, pathlib.Path(config.run_dir)
        entity, _, project = config.wandb.rpartition("/")
        saved.wandb.setdefault(config.wandb, secrets.token_hex(8))
        self._run = wandb.init(
            entity=entity or None,
            project=project,
            id=saved.wandb[config.wandb],
            resume="allow",
            name=self._run_dir.name,
            dir=self._run_dir,
            config=config.flat(),
            allow_val_change=True,
        )
        self._epochs = dict(saved.wandb_epochs.get(self._run.id, {}))
        if self._run.offline:
            if unfinished := saved.wandb_unfinished.get(self._run.id):
                _set_aside(pathlib.Path(unfinished))
            saved.wandb_unfinished[self._run.id] = os.path.dirname(self._run.dir)
        saved.save(self._run_dir)

    def num_epochs(self, prefix: str) -> int:
        """Returns how many epochs the server has, or offline how many were written here."""
        if self._run.offline:
            return self._epochs.get(prefix, 0)
        last = self._run.summary.get(f"{prefix}epoch")
        return 0 if last is None else int(last) + 1

    def log_epoch(self, prefix: str, epoch: int, values: Mapping[str, float]) -> None:
        """Logs the metrics, over the number of the epoch."""
        self._run.define_metric(f"{prefix}epoch", hidden=True)
        for name in values:
            self._run.define_metric(f"{prefix}{name}", step_metric=f"{prefix}epoch")
        named = {f"{prefix}{name}": value for name, value in values.items()}
        self._run.log({f"{prefix}epoch": epoch, **named})
        self._epochs[prefix] = epoch + 1

    def log_scores(self, values: Mapping[str, float]) -> None:
        """Sets the scores in the summary of the run."""
        self._run.summary.update(dict(values))

    def log_files(self, paths: Sequence[pathlib.Path]) -> None:
        """Stores the files as one artifact."""
        import wandb

        artifact = wandb.Artifact(f"run-{self._run.id}-evaluation", type="evaluation")
        for path in paths:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def finish(self, status: str) -> None:
        """Ends the run, and waits until what it has is sent."""
        self._run.finish(exit_code=int(status != _SUCCESS))
        if self._saved.wandb_unfinished.pop(self._run.id, None):
            self._saved.wandb_epochs[self._run.id] = self._epochs
            self._saved.save(self._run_dir)


def _set_aside(folder: pathlib.Path) -> None:
    """Renames a folder of W&B, so that it is not sent with the others."""
    if folder.exists():
        folder.rename(folder.with_name(f"unfinished-{folder.name}"))


_KINDS: dict[str, Callable[[ResolvedConfig, _SavedRuns], Tracker]] = {
    MLFLOW: MLflowRun,
    WANDB: WandbRun,
}


class Trackers:
    """The trackers of a run, none of which can end its training.

    A tracker that fails is named in a warning and not used any more. The next start of the same run
    reads the epochs that it lacks from `history.csv`.

    Args:
        trackers: the runs in the trackers, by the names of the trackers.
    """

    def __init__(self, trackers: Mapping[str, Tracker]):
        self._trackers = dict(trackers)

    def for_each(self, do: Callable[[Tracker], None]) -> None:
        """Calls a function with every tracker that has not failed."""
        for name, tracker in list(self._trackers.items()):
            try:
                do(tracker)
            except Exception as error:  # whatever a package, a server or a network does
                del self._trackers[name]
                logging.warning(
                    "--%s has failed, and the run goes on without it: %s", name, one_line(error)
                )

    def log_results(self, scores: Mapping[str, Any], paths: Sequence[pathlib.Path]) -> None:
        """Logs the scores of `metrics.json`, and files."""
        values = dict(flat_scores(scores))
        self.for_each(lambda tracker: tracker.log_scores(values))
        self.for_each(lambda tracker: tracker.log_files([p for p in paths if p.exists()]))

    def finish(self, status: str) -> None:
        """Ends the runs in the trackers."""
        self.for_each(lambda tracker: tracker.finish(status))
        self._trackers.clear()


class LogEpochs(keras.callbacks.Callback):
    """Logs the metrics of each epoch once, also those of epochs that a tracker has missed.

    Args:
        trackers: where to log them.
        history_path: the `history.csv` of the epochs that are finished.
        prefix: what the names of the metrics begin with, such as "head/".
    """

    def __init__(self, trackers: Trackers, history_path: pathlib.Path, prefix: str = ""):
        super().__init__()
        self._trackers, self._history_path, self._prefix = trackers, history_path, prefix

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Logs the finished epochs that a tracker lacks."""
        log_missing(self._trackers, self._history_path, self._prefix, self.params["initial_epoch"])

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        """Logs the epoch."""
        values = {name: float(value) for name, value in logs.items()}
        _log_once(self._trackers, self._prefix, epoch, values)


def log_missing(
    trackers: Trackers, history_path: pathlib.Path, prefix: str, num_epochs: int | None = None
) -> None:
    """Logs the epochs of a history that a tracker lacks.

    Args:
        trackers: where to log them.
        history_path: the `history.csv`, which may not be there.
        prefix: what the names of the metrics begin with.
        num_epochs: the number of epochs that are finished; None for all of the history.
    """
    rows = training.read_history(history_path) if history_path.exists() else []
    for row in rows[:num_epochs]:
        values = {name: float(text or "nan") for name, text in row.items()}
        _log_once(trackers, prefix, int(values.pop("epoch")), values)


def _log_once(trackers: Trackers, prefix: str, epoch: int, values: Mapping[str, float]) -> None:
    def log(tracker: Tracker) -> None:
        if epoch >= tracker.num_epochs(prefix):
            tracker.log_epoch(prefix, epoch, values)

    trackers.for_each(log)


@contextlib.contextmanager
def tracked(config: ResolvedConfig) -> Iterator[Trackers]:
    """Begins or continues the run in the trackers of a configuration, and ends it with its state.

    Args:
        config: the configuration of the run, whose directory is there.

    Raises:
        ConfigError: a tracker cannot begin a new run. One that fails to continue is warned of.
    """
    saved, found = _SavedRuns.load(pathlib.Path(config.run_dir)), {}
    for name, kind in _KINDS.items():
        place = getattr(config, name)
        if place is None:
            continue
        known = tracking_uri(place) in saved.mlflow if name == MLFLOW else place in saved.wandb
        try:
            found[name] = kind(config, saved)
        except Exception as error:  # whatever a package, a server or a network does
            reason = f"--{name}={place} cannot be used: {one_line(error)}"
            if not known:
                Trackers(found).finish(_FAILURE)
                raise ConfigError(reason) from error
            logging.warning("%s; the run continues without it", reason)
    trackers = Trackers(found)
    status = _FAILURE
    try:
        yield trackers
        status = _SUCCESS
    except (training.StoppedError, KeyboardInterrupt):
        status = _STOPPED
        raise
    finally:
        trackers.finish(status)


def tracking_uri(place: str) -> str:
    """Returns the tracking URI of MLflow: the one that is given, or of a database in a folder."""
    if locations.scheme_of(place):
        return place
    folder = pathlib.Path(place).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{folder / 'mlflow.db'}"


def flat_scores(scores: Mapping[str, Any], prefix: str = "test") -> Iterator[tuple[str, float]]:
    """Yields the numbers of `metrics.json`, except those of single labels, with names as paths."""
    for name, value in scores.items():
        path = f"{prefix}/{name}"
        if isinstance(value, Mapping) and name not in _OF_LABELS:
            yield from flat_scores(value, path)
        elif isinstance(value, int | float) and math.isfinite(value):
            yield path, float(value)
