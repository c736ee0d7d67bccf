"""Chooses the method and the learning rate of a run by cross-validation on its training split."""

import csv
import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dbl_tf import atomic, methods, metrics
from dbl_tf.statistics import LabelStatistics
from pipelines import folds
from pipelines.differences import mean_and_error
from pipelines.examples import Examples, LabelledData
from pipelines.runs import build, heads, network_inputs, resolution
from pipelines.runs.config import (
    AUTO,
    DEFAULT_METHOD,
    NO_WEIGHTS,
    ConfigError,
    ResolvedConfig,
    RunConfig,
)
from pipelines.runs.features import Features

# The paper's chain from the plain loss to the whole method, and the strongest loss beside it.
METHODS = ("erm", "rs", "asl", "r_bce", "db", "db_focal")
# Around the default, which suits 20 to 400 classes and a few thousand examples.
RATE_FACTORS = (1 / 3, 1.0, 3.0)
ROWS, SUMMARY, ASKED = "selection.csv", "selection_summary.csv", "selection.json"
_SCORES = ("total", "head", "medium", "tail", "macro_f1")


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A method with a learning rate."""

    method: str
    learning_rate: float

    def __str__(self) -> str:
        return f"{self.method} at {self.learning_rate:.3g}"


@dataclasses.dataclass(frozen=True)
class Summary:
    """The scores of a candidate over the folds.

    Attributes:
        candidate: the candidate.
        mean: the mean of its score over the folds.
        standard_error: the standard error of this mean.
        behind: the mean of the paired differences to the best candidate, at least 0.
        behind_error: the standard error of that mean.
    """

    candidate: Candidate
    mean: float
    standard_error: float
    behind: float
    behind_error: float

    @property
    def is_tied(self) -> bool:
        """Whether the candidate is within one standard error of the best."""
        return not self.behind > self.behind_error  # the error is NaN where a single fold tells


def choose(asked: RunConfig, data: LabelledData) -> RunConfig:
    """Replaces what is "auto" by what cross-validation finds best.

    Heads are trained on the features that the data hold, or on those of the pre-trained network, on
    the training split alone: neither val nor test is read. All candidates have the same folds and
    the same seed. Of candidates within one standard error of the best, the simplest is chosen.

    The run directory receives `selection.csv`, a row for each candidate and fold, and
    `selection_summary.csv`. A choice that was interrupted goes on behind its last row.

    Args:
        asked: a configuration whose method or learning rate is "auto".
        data: the data of the run.

    Raises:
        ConfigError: the data are images and the network is not pre-trained; or the directory holds
            the choice of another configuration.
        ValueError: the training labels have changed since the choice was started.
    """
    train, run_dir = data.splits["train"], asked.directory
    template = asked.with_settings(**dict.fromkeys(asked.left_to_choice()))
    with_features = _with_features(template, data)
    fold_of = folds.stratified_folds(train.labels, asked.folds, seed=asked.loading.data_seed)
    table = _Table(run_dir, asked, train)
    names = METHODS if asked.method == AUTO else (template.method or DEFAULT_METHOD,)
    rate = None if asked.learning_rate == AUTO else template.learning_rate

    def head_of(method: str, learning_rate: Any) -> tuple[Candidate, ResolvedConfig]:
        candidate = template.with_settings(method=method, learning_rate=learning_rate)
        config = resolution.resolve(
            dataclasses.replace(candidate, keep="last", patience=None), data
        )
        if asked.learning_rate == AUTO and not config.freeze_backbone:
            raise ConfigError(
                f"--learning_rate={AUTO} chooses the rate of a head on fixed features, and this "
                "run trains all layers; pass --freeze_backbone, or give the rate"
            )
        head = resolution.head_alone(config, len(train))
        return Candidate(method, head.learning_rate), head

    configs = dict(head_of(method, rate) for method in names)
    candidates = list(configs)
    best = candidates[0]
    if len(candidates) > 1:
        _score(configs, with_features, fold_of, table)
        best = _best(candidates, table, asked.auto_for)
    if asked.learning_rate == AUTO:
        of_rates = dict(
            head_of(best.method, best.learning_rate * factor) for factor in RATE_FACTORS
        )
        _score(of_rates, with_features, fold_of, table)
        candidates = list(dict.fromkeys([*candidates, *of_rates]))
        best = _best(list(of_rates), table, asked.auto_for)
    summaries = summarize(candidates, table, asked.auto_for)
    _write_summary(summaries, run_dir / SUMMARY)
    print(_describe(summaries, best, asked), flush=True)
    chosen = {"method": best.method, "learning_rate": best.learning_rate}
    return template.with_settings(**{name: chosen[name] for name in asked.left_to_choice()})


def summarize(candidates: Sequence[Candidate], table: "_Table", criterion: str) -> list[Summary]:
    """Returns the scores of candidates over the folds, the best one first."""
    scores = {each: table.scores(each, criterion) for each in candidates}
    best = max(candidates, key=lambda each: np.nanmean(scores[each]))
    found = []
    for each in candidates:
        differences = scores[best] - scores[each]
        mean, error = mean_and_error(scores[each])
        behind, behind_error = mean_and_error(differences)
        found.append(Summary(each, mean, error, behind, behind_error))
    return sorted(found, key=lambda summary: -summary.mean)


def _best(candidates: Sequence[Candidate], table: "_Table", criterion: str) -> Candidate:
    """Returns the simplest of the candidates that are tied with the best."""
    tied = [each for each in summarize(candidates, table, criterion) if each.is_tied]
    return min(tied, key=lambda each: (_complexity(each.candidate.method), each.behind)).candidate


def _complexity(name: str) -> tuple[int, int]:
    """The number of parts in which a method differs from plain training, and of its parameters."""
    method = methods.get(name)
    plain = methods.get("erm")
    parts = ("sampler", "weighting", "loss", "classifier")
    changed = sum(getattr(method, part) != getattr(plain, part) for part in parts)
    return changed, len(method.parameters)


def _with_features(template: RunConfig, data: LabelledData) -> LabelledData:
    """Returns the training split with features, those of the pre-trained network for images."""
    train = data.splits["train"]
    if train.features is not None:
        return heads.with_features(data, network_inputs.given_features)
    config = resolution.resolve(template.with_settings(method=None, learning_rate=None), data)
    if config.backbone_weights == NO_WEIGHTS and config.init_from is None:
        raise ConfigError(
            f'"{AUTO}" compares heads on the features of a trained network, and {config.backbone} '
            "starts from random weights; pass --init_from=RUN_DIR or --backbone_weights=FILE, or "
            "choose with python -m pipelines.compare"
        )
    statistics = LabelStatistics.from_labels(train.labels, data.class_names)
    backbone, _ = build.build_networks(config, statistics)
    assert backbone is not None
    return heads.with_features(data, Features(config, backbone))


def _score(
    configs: Mapping[Candidate, ResolvedConfig],
    data: LabelledData,
    fold_of: np.ndarray,
    table: "_Table",
) -> None:
    """Adds a row for each candidate and fold that has none yet."""
    statistics = LabelStatistics.from_labels(data.splits["train"].labels, data.class_names)
    num_folds = int(fold_of.max()) + 1
    missing = [
        (fold, each) for fold in range(num_folds) for each in configs if not table.has(each, fold)
    ]
    started = time.monotonic()
    for number, (fold, each) in enumerate(missing):
        left = ""
        if number:
            seconds = (time.monotonic() - started) / number * (len(missing) - number)
            left = f", about {seconds:.0f} s left"
        print(f"fold {fold + 1} of {num_folds}, {each}{left}", flush=True)
        part = folds.held_out(data, fold_of, fold)
        try:
            scores = _scores(configs[each], part, statistics)
        except FloatingPointError as error:
            print(f"  counts as 0: {error}")
            scores = dict.fromkeys(_SCORES, 0.0)
        table.add(each, fold, scores)


def _scores(
    config: ResolvedConfig, data: LabelledData, statistics: LabelStatistics
) -> dict[str, float]:
    """Trains a head on "train", and returns its scores on "test".

    Mean AP of all classes and of the groups, of those classes that have positives; and the macro F1
    of decisions at the thresholds that are best on "train".
    """
    logits = heads.logits_of_splits(config, data)
    labels = {name: data.splits[name].labels.toarray() for name in logits}
    precision = metrics.average_precision(labels["test"], logits["test"])
    thresholds = metrics.best_f1_thresholds(labels["train"], logits["train"])
    decided = metrics.precision_recall_f1(labels["test"], logits["test"], thresholds)
    scores = metrics.mean_by_group(precision, statistics.groups)
    return scores | {"macro_f1": decided["macro_f1"]}


def _describe(summaries: Sequence[Summary], best: Candidate, asked: RunConfig) -> str:
    lines = [f"cross-validated {asked.auto_for} on the training split, in percent:"]
    for each in summaries:
        mark = " <- chosen" if each.candidate == best else ""
        behind = f"{100 * each.behind:.2f} ± {100 * each.behind_error:.2f} behind the best"
        lines.append(
            f"  {each.candidate!s:24} {100 * each.mean:6.2f} ± {100 * each.standard_error:.2f}"
            f"{'' if not each.behind else '; ' + behind}{mark}"
        )
    return "\n".join(lines)


def _write_summary(summaries: Sequence[Summary], path: pathlib.Path) -> None:
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
    atomic.write_csv(rows, path)


class _Table:
    """The rows of `selection.csv`, which outlive a killed process."""

    def __init__(self, run_dir: pathlib.Path, asked: RunConfig, train: Examples):
        self._path = run_dir / ROWS
        run_dir.mkdir(parents=True, exist_ok=True)
        settings = {name: value for name, value in asked.flat().items() if name != "run_dir"}
        content = {"asked": settings, "labels": train.label_checksum()}
        path = run_dir / ASKED
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            different = [name for name in settings if before["asked"].get(name) != settings[name]]
            if different or before["labels"] != content["labels"]:
                what = f"settings: {', '.join(different)}" if different else "training labels"
                raise ConfigError(
                    f"{run_dir} holds a choice that was started with other {what}; choose another "
                    "--run_dir"
                )
        else:
            with atomic.replacing(path) as tmp_path:
                tmp_path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        self._rows: list[dict[str, Any]] = []
        if self._path.exists():
            with open(self._path, newline="", encoding="utf-8") as file:
                self._rows = list(csv.DictReader(file))

    def has(self, candidate: Candidate, fold: int) -> bool:
        """Whether a candidate has its row of a fold."""
        return any(row["fold"] == str(fold) for row in self._of(candidate))

    def scores(self, candidate: Candidate, criterion: str) -> np.ndarray:
        """Returns the scores of a candidate, fold by fold."""
        rows = sorted(self._of(candidate), key=lambda row: int(row["fold"]))
        return np.array([float(row[criterion]) for row in rows])

    def add(self, candidate: Candidate, fold: int, scores: dict[str, float]) -> None:
        """Adds a row and writes the file."""
        row = dataclasses.asdict(candidate) | {"fold": fold} | scores
        self._rows.append({name: str(value) for name, value in row.items()})
        atomic.write_csv(self._rows, self._path)

    def _of(self, candidate: Candidate) -> Iterator[dict[str, Any]]:
        for row in self._rows:
            same_rate = float(row["learning_rate"]) == candidate.learning_rate
            if row["method"] == candidate.method and same_rate:
                yield row
