"""Trains, evaluates and exports one run, from its configuration to its directory."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dbl_tf import atomic, models, names, portable, serving, training
from dbl_tf.calibration import Calibration, fit_calibration
from dbl_tf.lock import Lock
from dbl_tf.statistics import LabelStatistics
from pipelines import folds, images
from pipelines.examples import LabelledData
from pipelines.runs import (
    board,
    build,
    costs,
    directory,
    evaluate,
    heads,
    model_card,
    network_inputs,
    report,
    resolution,
    select,
    tracking,
)
from pipelines.runs.config import ConfigError, ResolvedConfig, RunConfig
from pipelines.runs.features import Features
from pipelines.runs.network_inputs import NetworkInputs
from pipelines.runs.origin import Origin
from pipelines.runs.scores import EvaluationResult, Thresholds

# A pipeline is fewer batches than this ahead of the training.
_LOOK_AHEAD_BATCHES = 64
# Folds of the training split, out of which its examples are predicted where there is no val split.
CALIBRATION_FOLDS = 3


def train_and_evaluate(asked: RunConfig) -> dict[str, Any] | None:
    """Trains, evaluates and exports a model, or continues a run that was stopped.

    Writes to the run directory `config.json`, `statistics.json`, `origin.json`, `history.csv`,
    `tensorboard/`, `checkpoints/`, `model.keras`, `calibration.json`, `thresholds.json`,
    `predictions.csv`, `metrics.json`, `report.html` with its `figures/`, and `saved_model/1/`.

    Returns:
        The content of `metrics.json`; None in a process that is not the chief of its cluster.

    Raises:
        ValueError: the data cannot be used, or the directory holds another run.
        FloatingPointError: the loss has become infinite or NaN.
        OSError: another process uses the directory, or it cannot be written.
        LostWorkerError: another machine of the cluster was lost.
    """
    strategy = training.make_strategy(asked.strategy)
    with Lock(asked.directory) as lock:
        with training.preparing_together(strategy, "its data") as preparation:
            run = _prepare(asked, strategy, lock)
            preparation.describe({**run.config.decisive(), **run.origin.of_all_machines()})
        # Under a strategy of several machines, variables are made by all of them together.
        networks = _build_networks(run, strategy)
        with training.preparing_together(strategy, "the run directory"):
            if training.is_chief(strategy):
                run = run.opened(lock)
        return _train_and_evaluate(run, networks, strategy)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Run:
    """A run that has been checked, and is about to train.

    Attributes:
        config: its configuration.
        data: its data.
        statistics: the statistics of the training labels.
        origin: the fingerprint of its data and threads; in the chief, that of its first start.
    """

    config: ResolvedConfig
    data: LabelledData
    statistics: LabelStatistics
    origin: Origin

    def opened(self, lock: Lock) -> "_Run":
        """Returns the run with its directory taken, whose files are written or checked."""
        pathlib.Path(self.config.run_dir).mkdir(parents=True, exist_ok=True)
        lock.acquire()
        origin = directory.open_directory(self.config, self.statistics, self.origin)
        return dataclasses.replace(self, origin=origin)


def _prepare(asked: RunConfig, strategy: tf.distribute.Strategy, lock: Lock) -> _Run:
    """Reads the data and fills in what was left open, or refuses."""
    asked.check_files()
    tracking.check(asked)
    saved = directory.saved_config(asked)
    _check_strategy(asked, strategy)
    if saved is None:
        build.check_backbone(asked)
    if training.is_chief(strategy) and asked.directory.exists():
        lock.acquire()  # a new directory is not created before the data have been checked
    data = asked.load_data()
    train = data.splits["train"]
    statistics = LabelStatistics.from_labels(train.targets, data.class_names)
    build.check_classes(asked, statistics)
    chosen: tuple[str, ...] = ()
    if saved is None and strategy.num_replicas_in_sync == 1:
        asked = resolution.with_default_method(asked, data)
    if saved is None and asked.left_to_choice():
        chosen = asked.left_to_choice()
        if strategy.num_replicas_in_sync > 1:
            raise ConfigError(
                f"--{chosen[0]}=auto chooses on one device; choose first, with "
                "--strategy=one_device"
            )
        asked.directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        asked = select.choose(asked, data)
    config = resolution.resolve(asked, data, saved, chosen)
    build.check_loss(config, statistics)
    build.check_sampler(config, train)
    return _Run(
        config=config,
        data=data,
        statistics=statistics,
        origin=Origin.of(data.splits, strategy, content=config.loading.check_content),
    )


@dataclasses.dataclass(frozen=True)
class _Networks:
    """The networks of a run.

    Attributes:
        backbone: the network from images to features; None for data that are features.
        head: the network from features to logits.
        whole: both together.
    """

    backbone: keras.Model | None
    head: keras.Model
    whole: keras.Model


def _build_networks(run: _Run, strategy: tf.distribute.Strategy) -> _Networks:
    config = run.config
    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    with strategy.scope():
        given = run.data.splits["train"].features
        backbone, head = build.build_networks(
            config, run.statistics, num_features=None if given is None else given.num_features
        )
        if given is not None and config.init_from is None:
            build.scale_features(config, head, given)
        return _Networks(backbone, head, models.join(backbone, head))


def _check_strategy(asked: RunConfig, strategy: tf.distribute.Strategy) -> None:
    if asked.batch_size % strategy.num_replicas_in_sync:
        raise ConfigError(
            f"--batch_size={asked.batch_size} does not divide evenly by the "
            f"{strategy.num_replicas_in_sync} replicas of --strategy={asked.strategy}"
        )
    if asked.precision == "mixed_float16" and strategy.num_replicas_in_sync > 1:
        raise ConfigError(
            "--precision=mixed_float16 detects overflow on a single replica only; use "
            "mixed_bfloat16 with several replicas"
        )
    if asked.xla and not isinstance(strategy, tf.distribute.OneDeviceStrategy):
        raise ConfigError(
            "--xla compiles the step of one device: it goes with --strategy=one_device, and not "
            f"with {asked.strategy} on {strategy.num_replicas_in_sync} devices"
        )
    if asked.patience is not None and asked.strategy == "multi_worker":
        raise ConfigError(
            "--patience stops one machine alone; it does not go with --strategy=multi_worker"
        )


def _train_and_evaluate(
    run: _Run, networks: _Networks, strategy: tf.distribute.Strategy
) -> dict[str, Any] | None:
    config, data, statistics, network = run.config, run.data, run.statistics, networks.whole
    run_dir = pathlib.Path(config.run_dir)
    is_chief = training.is_chief(strategy)
    stages = _stages(run, networks)
    plans = [stage.plan for stage in stages]
    print(costs.describe(config, data, statistics, plans, strategy), flush=True)
    if not is_chief:
        _train(config, data, statistics, stages, strategy, None)
        training.wait_for_all(strategy)
        return None
    with tracking.tracked(config) as trackers:
        _train(config, data, statistics, stages, strategy, trackers)
        model = build.plain_copy(config, network, statistics)
        with atomic.replacing(run_dir / "model.keras") as tmp_path:
            model.save(tmp_path)
        last = stages[-1]
        # The copy predicts images; what sees features is in float32 already.
        predicts = model if last.network is network else last.network
        logits_of = evaluate.network_predictor(predicts, last.inputs)
        with atomic.reraise_full_disk(run_dir):
            judged = _judged(config, data, logits_of, last.inputs)
            scores = _evaluate_and_export(
                config, data, statistics, model, logits_of, judged, run.origin.accepted_changes
            )
        directory.check_still_there(run_dir)
        logged = ("config.json", "metrics.json", report.REPORT)
        trackers.log_results(scores, [run_dir / name for name in logged])
    training.wait_for_all(strategy)
    return scores


def _train(
    config: ResolvedConfig,
    data: LabelledData,
    statistics: LabelStatistics,
    stages: Sequence["_Stage"],
    strategy: tf.distribute.Strategy,
    trackers: tracking.Trackers | None,
) -> None:
    """Trains the stages that are not finished, one after the other."""
    first = 0
    for position, stage in enumerate(stages):
        if training.Checkpoints(stage.directory / "checkpoints").steps():
            first = position  # the stages before it are finished, and its weights follow theirs
    for stage in stages[first:]:
        with strategy.scope():
            stage.network.compile(
                build.make_optimizer(stage.config, stage.plan, stage.rate_factors),
                build.make_loss(config, statistics),
                jit_compile=config.xla,
            )
        _fit(stage, data, statistics, trackers)
    if trackers is not None:
        for stage in stages:
            tracking.log_missing(trackers, stage.history_path, stage.prefix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stage:
    """A part of the training with an optimizer of its own.

    Attributes:
        config: the configuration of the run, with the optimizer and the length of the stage.
        plan: the plan of the stage.
        directory: the directory of its checkpoints and history.
        network: the network that is trained.
        inputs: what this network sees.
        batches: a function that makes the training batches.
        name: what to call it where it is not the only one.
        steps_per_call: the most steps that are dispatched at once.
        rate_factors: a factor of the learning rate for each trainable variable; None for 1.
    """

    config: ResolvedConfig
    plan: build.Plan
    directory: pathlib.Path
    network: keras.Model
    inputs: NetworkInputs
    batches: Callable[[], training.Batches]
    name: str = ""
    steps_per_call: int = 1
    rate_factors: list[float] | None = None

    @property
    def history_path(self) -> pathlib.Path:
        """The file with a row for each epoch."""
        return self.directory / "history.csv"

    @property
    def prefix(self) -> str:
        """What the names of its metrics begin with in trackers; empty in the last stage."""
        is_last = self.directory == pathlib.Path(self.config.run_dir)
        return "" if is_last else f"{self.directory.name}/"


def _stages(run: _Run, networks: _Networks) -> list[_Stage]:
    """Returns the head on features, all layers on images, or the one after the other."""
    config, data, statistics, backbone = run.config, run.data, run.statistics, networks.backbone
    run_dir, stages = pathlib.Path(config.run_dir), []
    if config.freeze_backbone or config.head_steps:
        features_of = (
            network_inputs.given_features if backbone is None else (Features(config, backbone))
        )
        of_head = config if config.freeze_backbone else resolution.head_stage(config)
        stages.append(
            _Stage(
                config=of_head,
                plan=build.make_plan(of_head, statistics),
                directory=run_dir if config.freeze_backbone else run_dir / "head",
                network=networks.head,
                inputs=network_inputs.FeatureInputs(features_of),
                batches=lambda: build.make_feature_batches(
                    config, data.splits["train"], statistics, features_of(data.splits["train"])
                ),
                name="" if config.freeze_backbone else "the head",
                steps_per_call=heads.STEPS_PER_CALL,
            )
        )
    if not config.freeze_backbone:
        assert config.image_size is not None
        stages.append(
            _Stage(
                config=config,
                plan=build.make_plan(config, statistics),
                directory=run_dir,
                network=networks.whole,
                inputs=network_inputs.ImageInputs(config.image_size, config.full_decoding),
                batches=lambda: build.make_image_batches(config, data, statistics),
                name="all layers" if config.head_steps else "",
                rate_factors=build.rate_factors(config, backbone, networks.whole),
            )
        )
    return stages


def _fit(
    stage: _Stage,
    data: LabelledData,
    statistics: LabelStatistics,
    trackers: tracking.Trackers | None,
) -> None:
    """Trains a stage, and leaves in its network the weights that it keeps."""
    config, plan = stage.config, stage.plan
    train = data.splits["train"]
    stage.directory.mkdir(exist_ok=True)
    checkpoints = training.Checkpoints(stage.directory / "checkpoints")

    def drawn() -> tf.data.Dataset:
        """Returns the positions at which the pipeline may have failed."""
        step = max(checkpoints.steps(), default=0)
        ahead = plan.steps_per_epoch + _LOOK_AHEAD_BATCHES
        return build.make_indices(config, train, step).take(ahead)

    callbacks: list[keras.callbacks.Callback] = []
    log_dir = stage.directory / "tensorboard"
    best: training.KeepBest | None = None
    scored: training.MeanAveragePrecisionCallback | None = None
    with contextlib.ExitStack() as reraising:
        reraising.enter_context(atomic.reraise_full_disk(stage.directory))
        reraising.enter_context(stage.inputs.naming_unreadable(train, drawn))
        if "val" in data.splits:
            val = data.splits["val"]
            reraising.enter_context(stage.inputs.naming_unreadable(val))
            # It comes first, so that the callbacks after it find `val_map` in the logs.
            scored = training.MeanAveragePrecisionCallback(
                stage.inputs.batches(val), val.targets.toarray()
            )
            callbacks.append(scored)
        if config.keep == "best":
            best = training.KeepBest(
                stage.directory / "checkpoints" / "best.npz", patience=config.patience
            )
            callbacks.append(best)
        callbacks.append(training.TensorBoard(str(log_dir), write_graph=False))
        if scored is not None:
            callbacks.append(training.ClassSummaries(log_dir, scored, statistics))
        if trackers is not None:
            callbacks.append(tracking.LogEpochs(trackers, stage.history_path, stage.prefix))
        training.fit(
            stage.network,
            stage.batches(),
            steps=plan.steps,
            steps_per_epoch=plan.steps_per_epoch,
            checkpoints=checkpoints,
            checkpoint_every=config.checkpoint_every,
            steps_per_call=stage.steps_per_call,
            history_path=stage.history_path,
            callbacks=callbacks,
            batch_size=config.batch_size,
            name=stage.name,
        )
    if best is None:
        training.use_averages(stage.network)
    elif best.path.exists():  # only the chief of a cluster writes it
        epoch = best.restore(stage.network)
        print(f"the weights of epoch {epoch + 1} have the highest val_map and are kept")


@dataclasses.dataclass(frozen=True)
class _Judged:
    """Examples on which thresholds are chosen, and probabilities fitted if they are unseen.

    Attributes:
        labels: the labels (n, C).
        logits: the logits (n, C).
        name: what to call them.
        is_unseen: whether the logits are those of networks that were not trained on the examples.
    """

    labels: np.ndarray
    logits: np.ndarray
    name: str
    is_unseen: bool


def _judged(
    config: ResolvedConfig,
    data: LabelledData,
    logits_of: evaluate.PredictLogits,
    inputs: NetworkInputs,
) -> _Judged:
    """Returns the val split, or the training split, out of fold if the head alone is trained."""
    if "val" in data.splits:
        val = data.splits["val"]
        return _Judged(val.targets.toarray(), logits_of(val), "val", is_unseen=True)
    train = data.splits["train"]
    labels = train.targets.toarray()
    if config.calibrate and isinstance(inputs, network_inputs.FeatureInputs):
        print("predicting the training examples out of fold", flush=True)
        held = heads.with_features(data, inputs.features_of)
        fold_of = folds.stratified_folds(train.labels, CALIBRATION_FOLDS, seed=config.seed)
        logits = heads.out_of_fold_logits(config, held, fold_of)
        return _Judged(labels, logits, "train, out of fold", is_unseen=True)
    return _Judged(labels, logits_of(train), "train", is_unseen=False)


def _evaluate_and_export(
    config: ResolvedConfig,
    data: LabelledData,
    statistics: LabelStatistics,
    model: keras.Model,
    logits_of: evaluate.PredictLogits,
    judged: _Judged,
    accepted_changes: Sequence[str],
) -> dict[str, Any]:
    """Writes thresholds, scores, report and SavedModel of a trained network; returns the scores."""
    run_dir = pathlib.Path(config.run_dir)
    calibration = Calibration.identity(statistics.num_classes)
    if config.calibrate and judged.is_unseen:
        # As if a class that is in no example, or in all, were in half an example more or less.
        known = np.maximum(statistics.known_counts, 1)
        counts = np.clip(statistics.class_counts, 0.5, known - 0.5)
        calibration = fit_calibration(
            judged.logits,
            judged.labels,
            prevalence=counts / known,
            fitted_on=judged.name,
        )
    elif config.calibrate:
        print(
            "probabilities are the sigmoid of the logits: to calibrate them takes examples that "
            "the training has not seen, such as those of --val_fraction=0.1"
        )
    calibration.save(run_dir / "calibration.json")
    thresholds = Thresholds.choose(judged.labels, calibration(judged.logits), judged.name)
    thresholds.save(run_dir / "thresholds.json", data.class_names)
    held_out = config.loading.held_out
    print(f"evaluating on {f'what is held out, {held_out}' if held_out else 'the test split'}")
    logits = logits_of(data.splits["test"])
    result = evaluate.score_test(logits, calibration, data, statistics, thresholds, run_dir)
    report.write_of_run(
        result,
        run_dir,
        config=config,
        train=data.splits["train"],
        history=report.read_history(run_dir),
        accepted_changes=accepted_changes,
    )
    board.write(result, config, run_dir / "tensorboard")
    if config.export:
        _export(config, data, model, result, calibration)
    return result.scores


def _export(
    config: ResolvedConfig,
    data: LabelledData,
    model: keras.Model,
    result: EvaluationResult,
    calibration: Calibration,
) -> None:
    """Writes the SavedModel, and compares the other formats with it."""
    train, size = data.splits["train"], config.image_size
    run_dir, statistics = pathlib.Path(config.run_dir), result.statistics
    card = model_card.model_card(config, data, result, calibration)
    known: dict[str, Any] = {
        "thresholds": result.thresholds.values,
        "thresholds_from": result.thresholds.chosen_on,
        "calibration": calibration,
        "card": card,
    }
    of_data = network_inputs.of_data(size, config.full_decoding)
    path = run_dir / names.SAVED_MODEL
    version = _exported(config, path)
    if version is not None:
        print(f"the run was exported already, as {version}; --new_version adds a version")
    elif size is None:
        example = network_inputs.given_features(train)[[0]][0]
        version = serving.export_features(model, statistics, path, example=example, **known)
    else:
        with of_data.naming_unreadable(train):
            example_image = next(train.encoded().take(1).as_numpy_iterator())
        version = serving.export(
            model,
            statistics,
            lambda encoded: images.read_batch(encoded, size, full_decoding=config.full_decoding),
            lambda image: images.resize(image, size),
            path,
            example_image=example_image,
            **known,
        )
    for name in dict.fromkeys(config.export_format):
        if name == names.SAVED_MODEL or _exported(config, run_dir / name) is not None:
            continue
        place, check = portable.export(
            model,
            name,
            run_dir / name,
            saved_model=version,
            examples=next(of_data.batches(train).as_numpy_iterator()),
            calibration=calibration,
            card=card,
        )
        print(f"{place / portable.FORMATS[name].file_name}: {check}")


def _exported(config: ResolvedConfig, directory: pathlib.Path) -> pathlib.Path | None:
    """Returns the newest version of an export, unless a new one is to be written."""
    existing = serving.versions(directory) if directory.exists() else []
    if config.new_version or not existing:
        return None
    return directory / str(existing[-1])
