"""Chooses the method and the learning rate of a run by cross-validation on its training split."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dbl_tf import methods, metrics, terminal
from dbl_tf.statistics import LabelStatistics
from pipelines import folds
from pipelines.examples import LabelledData
from pipelines.runs import build, heads, network_inputs, resolution
from pipelines.runs.config import (
    AUTO,
    DEFAULT_METHOD,
    ConfigError,
    ResolvedConfig,
    RunConfig,
)
from pipelines.runs.features import Features
from pipelines.runs.trials import Candidate, Predictions, Summary, Trials

# One method for each idea: re-weighting, margins, the paper's chain from re-sampling to its whole
# method, and the asymmetric loss.
METHODS = ("erm", "rw", "ldam", "asl", "rs", "r_bce", "db", "db_focal")
# Around the default, which suits 20 to 400 classes and a few thousand examples.
RATE_FACTORS = (1 / 3, 1.0, 3.0)


def choose(asked: RunConfig, data: LabelledData) -> RunConfig:
    """Replaces what is "auto" by what cross-validation finds best.

    Heads are trained on the features that the data hold, or on those of the pre-trained network, on
    the training split alone: neither val nor test is read. All candidates have the same folds and
    the same seed. They are scored on the folds together, since a fold holds too few positives of
    rare classes; where there are many examples, not all folds are held out. Of candidates within
    one standard error of the best, the simplest is chosen.

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
    train = data.splits["train"]
    statistics = LabelStatistics.from_labels(train.targets, data.class_names)
    if asked.auto_for == "tail" and not len(statistics.groups["tail"]):
        raise ConfigError(
            "--auto_for=tail chooses for classes with fewer than 20 training examples, and there "
            "is none; pass --auto_for=total or macro_f1"
        )
    template = asked.with_settings(**dict.fromkeys(asked.left_to_choice()))
    fold_of = folds.stratified_folds(train.labels, asked.folds, seed=asked.loading.data_seed)
    trials = Trials(asked.directory, asked, train, fold_of)
    if trials.chosen is None:
        chosen_here = " and the ".join(asked.left_to_choice()).replace("_", " ")
        print(f"cross-validation on the training split chooses the {chosen_here}", flush=True)
        _choose(asked, template, data, fold_of, trials)
    assert trials.chosen is not None
    chosen = dataclasses.asdict(trials.chosen)
    made = {name: chosen[name] for name in asked.left_to_choice()}
    return template.with_settings(**made, run_dir=str(asked.directory))


def _choose(
    asked: RunConfig,
    template: RunConfig,
    data: LabelledData,
    fold_of: np.ndarray,
    trials: Trials,
) -> None:
    """Makes the trials that are missing and ends them with the choice."""
    with_features = _with_features(template, data)
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
        head = resolution.head_alone(config, len(fold_of))
        return Candidate(method, head.learning_rate), head

    configs = dict(head_of(method, rate) for method in names)
    candidates = list(configs)
    best = candidates[0]
    if len(candidates) > 1:
        _try(configs, with_features, fold_of, trials)
        best = _best(trials.summarize(candidates, asked.auto_for))
    if asked.learning_rate == AUTO:
        of_rates = dict(
            head_of(best.method, best.learning_rate * factor) for factor in RATE_FACTORS
        )
        _try(of_rates, with_features, fold_of, trials)
        candidates = list(dict.fromkeys([*candidates, *of_rates]))
        best = _best(trials.summarize(list(of_rates), asked.auto_for))
    summaries = trials.summarize(candidates, asked.auto_for)
    trials.end(summaries, best)
    print(_describe(summaries, best, asked), flush=True)


def _best(summaries: Sequence[Summary]) -> Candidate:
    """Returns the simplest of the candidates that are tied with the best."""
    tied = [each for each in summaries if each.is_tied]
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
    if not config.has_trained_backbone:
        raise ConfigError(
            f'"{AUTO}" compares heads on the features of a trained network, and {config.backbone} '
            "starts from random weights; pass --init_from=RUN_DIR or --backbone_weights=FILE, give "
            "a --method, or choose with python -m pipelines.compare"
        )
    statistics = LabelStatistics.from_labels(train.targets, data.class_names)
    backbone, _ = build.build_networks(config, statistics)
    assert backbone is not None
    return heads.with_features(data, Features(config, backbone))


def _try(
    configs: Mapping[Candidate, ResolvedConfig],
    data: LabelledData,
    fold_of: np.ndarray,
    trials: Trials,
) -> None:
    """Makes the trials of each candidate and fold that are missing."""
    missing = [
        (fold, each)
        for fold in range(trials.num_folds)
        for each in configs
        if not trials.has(each, fold)
    ]
    with terminal.Counter("cross-validation", len(missing), "heads") as counter:
        for fold, each in missing:
            try:
                predictions = _predict(configs[each], folds.held_out(data, fold_of, fold))
            except FloatingPointError as error:
                counter.say(
                    f"fold {fold + 1} of {trials.num_folds}, {each}, counts as chance: {error}"
                )
                predictions = None
            trials.add(each, fold, predictions)
            counter.advance(1)


def _predict(config: ResolvedConfig, data: LabelledData) -> Predictions:
    """Trains a head on "train", and returns what it says of "test"."""
    logits = heads.logits_of_splits(config, data)
    thresholds = metrics.best_f1_thresholds(data.splits["train"].targets.toarray(), logits["train"])
    return Predictions(logits["test"], logits["test"] >= thresholds)


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
