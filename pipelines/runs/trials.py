"""The trials of a cross-validation: what each candidate says of each fold, kept in files."""

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from dbl_tf import atomic, metrics, saved_csv, saved_json
from dbl_tf.statistics import LabelStatistics
from dbl_tf.training.checkpoints import load_named_arrays
from pipelines import folds
from pipelines.differences import jackknife_error
from pipelines.examples import Examples
from pipelines.runs.config import ConfigError, RunConfig

ROWS, SUMMARY, ASKED, FOLDER = (
    "selection.csv",
    "selection_summary.csv",
    "selection.json",
    "selection",
)
# Folds are held out until they have so many examples together: with more, the choice would take
# longer than the training, and their scores are sure enough.
ENOUGH_EXAMPLES = 2500
# Parts of these examples, without which scores are computed for their standard errors. The
# few folds would give errors that are themselves uncertain by a third.
NUM_PARTS = 20
# Settings that a choice does not depend on, so that they may change while it is stopped.
_WITHOUT_EFFECT = (
    "run_dir",
    "checkpoint_every",
    "export",
    "export_format",
    "new_version",
    "accept_changed_data",
    "mlflow",
    "mlflow_experiment",
    "wandb",
)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A method with a learning rate."""

    method: str
    learning_rate: float

    def __str__(self) -> str:
        return f"{self.method} at {self.learning_rate:.3g}"


class _Choice(msgspec.Struct):
    """The content of `selection.json`.

    Attributes:
        asked: the settings with which the choice was started.
        labels: a checksum of the training labels.
        chosen: the candidate that was chosen; None while the choice is not made.
    """

    asked: dict[str, Any]
    labels: saved_json.Count
    chosen: Candidate | None = None


_CHOICE = saved_json.Format(
    "dbl_tf.Selection",
    "choice of a method or rate",
    _Choice,
    "restore it from a copy, or start again with another --run_dir",
)


class _Trial(msgspec.Struct):
    """A row of `selection.csv`; a score is NaN where it is not defined."""

    method: str
    learning_rate: float
    fold: saved_json.Count
    total: float
    head: float
    medium: float
    tail: float
    macro_f1: float


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What heads say of examples that they have not seen.

    Attributes:
        logits: the logits (n, C).
        decisions: whether an example is given a class, bool (n, C), at thresholds that were chosen
            on the examples that the head was trained on.
    """

    logits: np.ndarray
    decisions: np.ndarray

    def score(self, labels: np.ndarray, statistics: LabelStatistics) -> dict[str, float]:
        """Returns the mean AP of all classes and of the groups, and the macro F1 of decisions.

        Args:
            labels: the labels of the examples, bool (n, C). Classes without positives have no AP
                and are left out of its means.
            statistics: the statistics of all training labels, which define the groups.
        """
        precision = metrics.average_precision(labels, self.logits)
        decided = metrics.precision_recall_f1(labels, self.decisions.astype(np.float32), 0.5)
        scores = metrics.mean_by_group(precision, statistics.groups)
        return scores | {"macro_f1": decided["macro_f1"]}

    def take(self, rows: np.ndarray) -> "Predictions":
        """Returns the predictions of some examples."""
        return Predictions(self.logits[rows], self.decisions[rows])


@dataclasses.dataclass(frozen=True)
class Summary:
    """The score of a candidate on the folds together.

    Attributes:
        candidate: the candidate.
        mean: its score on the examples of all folds that were held out, each predicted by a head
            that has not seen it.
        standard_error: the standard error of this score, by leaving out one of 20 parts of the
            examples after the other.
        behind: how far it is behind the best candidate, at least 0.
        behind_error: the standard error of this difference, by leaving out the same parts of both.
    """

    candidate: Candidate
    mean: float
    standard_error: float
    behind: float
    behind_error: float

    @property
    def is_tied(self) -> bool:
        """Whether the candidate is within one standard error of the best."""
        return not self.behind > self.behind_error


class Trials:
    """The trials of a run directory, which outlive a killed process.

    `selection.csv` has a row for each candidate and fold. The folder `selection` has the
    predictions, until the choice is made and written to `selection.json`.

    Args:
        run_dir: the run directory, which is created.
        asked: the configuration that leaves something to the choice.
        train: the training split.
        fold_of: the fold of each training example, (N,).

    Attributes:
        num_folds: the number of folds that are held out, one after the other: all of them, or as
            many as have `ENOUGH_EXAMPLES` examples together.

    Raises:
        ConfigError: the directory holds the choice of another configuration or of other labels.
    """

    def __init__(
        self, run_dir: pathlib.Path, asked: RunConfig, train: Examples, fold_of: np.ndarray
    ):
        self._run_dir = run_dir
        sizes = np.bincount(fold_of)
        self.num_folds = min(int((sizes.cumsum() < ENOUGH_EXAMPLES).sum()) + 1, len(sizes))
        judged = np.flatnonzero(fold_of < self.num_folds)
        self._fold_of = fold_of[judged]
        self._statistics = LabelStatistics.from_labels(train.targets)
        settings = asked.with_absolute_paths().flat()
        for name in _WITHOUT_EFFECT:
            del settings[name]
        self._choice = _Choice(settings, train.label_checksum())
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / ASKED
        if path.exists():
            self._choice = _read_same(path, self._choice)
        else:
            self._write_choice()
        (run_dir / FOLDER).mkdir(exist_ok=True)
        self._labels = train.targets[judged].toarray()
        self._part_of = folds.stratified_folds(train.labels[judged], min(NUM_PARTS, len(judged)))
        self._trials: list[_Trial] = []
        if (run_dir / ROWS).exists():
            self._trials = _read_trials(run_dir / ROWS)

    @property
    def chosen(self) -> Candidate | None:
        """The candidate that was chosen; None if the choice is not made."""
        return self._choice.chosen

    def has(self, candidate: Candidate, fold: int) -> bool:
        """Whether a trial was made."""
        return any(
            (trial.method, trial.learning_rate, trial.fold)
            == (candidate.method, candidate.learning_rate, fold)
            for trial in self._trials
        )

    def add(self, candidate: Candidate, fold: int, predictions: Predictions | None) -> None:
        """Adds a trial.

        Args:
            candidate: the candidate.
            fold: the fold that was held out.
            predictions: what its head says of the fold; None if it could not be trained, which
                counts as equal logits for all examples.
        """
        labels = self._labels[self._fold_of == fold]
        if predictions is None:
            nothing = np.zeros(labels.shape, np.float32)
            predictions = Predictions(nothing, nothing > 0)
        with (
            atomic.replacing(self._path(candidate, fold)) as tmp_path,
            open(tmp_path, "wb") as file,
        ):
            np.savez(file, logits=predictions.logits, decisions=predictions.decisions)
        scores = predictions.score(labels, self._statistics)
        row = {**dataclasses.asdict(candidate), "fold": fold, **scores}
        self._trials.append(msgspec.convert(row, _Trial))
        rows = [msgspec.structs.asdict(trial) for trial in self._trials]
        saved_csv.write(rows, self._run_dir / ROWS)

    def summarize(self, candidates: Sequence[Candidate], criterion: str) -> list[Summary]:
        """Returns the scores of candidates on all folds together, the best one first."""
        whole, without = {}, {}
        for each in candidates:
            predictions = self._predictions(each)
            whole[each] = predictions.score(self._labels, self._statistics)[criterion]
            rows = [self._part_of != part for part in range(int(self._part_of.max()) + 1)]
            without[each] = np.array(
                [
                    predictions.take(kept).score(self._labels[kept], self._statistics)[criterion]
                    for kept in rows
                ]
            )
        best = max(candidates, key=whole.__getitem__)
        found = [
            Summary(
                each,
                whole[each],
                jackknife_error(without[each]),
                whole[best] - whole[each],
                jackknife_error(without[best] - without[each]),
            )
            for each in candidates
        ]
        return sorted(found, key=lambda summary: -summary.mean)

    def end(self, summaries: Sequence[Summary], chosen: Candidate) -> None:
        """Writes the choice and its reasons, and removes the predictions."""
        rows = [
            dataclasses.asdict(each.candidate)
            | {
                "mean": each.mean,
                "standard_error": each.standard_error,
                "behind_best": each.behind,
                "behind_best_standard_error": each.behind_error,
            }
            for each in summaries
        ]
        atomic.write_csv(rows, self._run_dir / SUMMARY)
        self._choice.chosen = chosen
        self._write_choice()
        shutil.rmtree(self._run_dir / FOLDER)

    def _predictions(self, candidate: Candidate) -> Predictions:
        """Returns the predictions of all examples that were held out, in their order."""
        whole = Predictions(
            np.empty(self._labels.shape, np.float32), np.empty(self._labels.shape, bool)
        )
        for fold in range(self.num_folds):
            path, rows = self._path(candidate, fold), self._fold_of == fold
            arrays = load_named_arrays(path, ["logits", "decisions"])
            for found, place in zip(arrays, (whole.logits, whole.decisions), strict=True):
                if (found.shape, found.dtype) != (place[rows].shape, place.dtype):
                    raise ConfigError(
                        f"{path} holds {found.dtype} of shape {found.shape}, and the fold has "
                        f"{place.dtype} of shape {place[rows].shape}; choose another --run_dir"
                    )
                place[rows] = found
        return whole

    def _path(self, candidate: Candidate, fold: int) -> pathlib.Path:
        name = f"{candidate.method}-{candidate.learning_rate!r}-{fold}.npz"
        return self._run_dir / FOLDER / name

    def _write_choice(self) -> None:
        _CHOICE.write(self._run_dir / ASKED, msgspec.to_builtins(self._choice))


def _read_trials(path: pathlib.Path) -> list[_Trial]:
    try:
        rows = saved_csv.read(path, _Trial.__struct_fields__)
        return msgspec.convert(rows, list[_Trial], strict=False)
    except ValueError as error:
        raise ConfigError(
            f"{path} holds no trials of a choice: {error}; restore it, or choose another --run_dir"
        ) from error


def _read_same(path: pathlib.Path, now: _Choice) -> _Choice:
    """Reads what a choice was started with, and refuses another."""
    before = _CHOICE.read(path)
    different = [name for name, value in now.asked.items() if before.asked.get(name) != value]
    if different or before.labels != now.labels:
        what = f"settings: {', '.join(different)}" if different else "training labels"
        raise ConfigError(
            f"{path.parent} holds a choice that was started with other {what}; choose another "
            "--run_dir"
        )
    return before
