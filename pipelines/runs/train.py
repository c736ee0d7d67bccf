"""Trains, evaluates and exports one run, from its configuration to its directory."""

import contextlib
import pathlib
import zlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dbl_tf import atomic, methods, models, prediction, serving, training
from dbl_tf.lock import Lock
from dbl_tf.statistics import LabelStatistics
from pipelines import images
from pipelines.examples import Examples, LabelledData
from pipelines.runs import build, evaluate, report
from pipelines.runs.config import ConfigError, ResolvedConfig, RunConfig
from pipelines.runs.features import Features

# A pipeline is fewer batches than this ahead of the training.
_LOOK_AHEAD_BATCHES = 64
# The files, or temporary files of them, that a run may leave if it is killed right after its start.
_WRITTEN_FIRST = {Lock.NAME, "statistics.json", "config.json"}


def train_and_evaluate(asked: RunConfig) -> dict[str, Any] | None:
    """Trains, evaluates and exports a model, or continues a run that was stopped.

    Writes to the run directory `config.json`, `statistics.json`, `history.csv`, `tensorboard/`,
    `checkpoints/`, `model.keras`, `thresholds.json`, `predictions.csv`, `metrics.json`,
    `report.html` with its `figures/`, and `saved_model/1/`.

    Returns:
        The content of `metrics.json`; None in a process that is not the chief of its cluster.

    Raises:
        ValueError: the data cannot be used, or the directory holds another run.
        FloatingPointError: the loss has become infinite or NaN.
        OSError: another process uses the directory, or it cannot be written.
        LostWorkerError: another machine of the cluster was lost.
    """
    config = asked.resolve()
    run_dir = pathlib.Path(config.run_dir)
    check_directory(config, run_dir)
    strategy = training.make_strategy(config.strategy)
    if config.batch_size % strategy.num_replicas_in_sync:
        raise ConfigError(
            f"--batch_size={config.batch_size} does not divide evenly by the "
            f"{strategy.num_replicas_in_sync} replicas of --strategy={config.strategy}"
        )
    if config.precision == "mixed_float16" and strategy.num_replicas_in_sync > 1:
        raise ConfigError(
            "--precision=mixed_float16 detects overflow on a single replica only; use "
            "mixed_bfloat16 with several replicas"
        )
    if config.xla and not isinstance(strategy, tf.distribute.OneDeviceStrategy):
        raise ConfigError(
            "--xla compiles the step of one device: it goes with --strategy=one_device, and not "
            f"with {config.strategy} on {strategy.num_replicas_in_sync} devices"
        )
    with Lock(run_dir) as lock:
        if training.is_chief(strategy) and run_dir.exists():
            lock.acquire()  # a new directory is not created before the data have been checked
        return _train_and_evaluate(config, strategy, lock)


def _train_and_evaluate(
    config: ResolvedConfig, strategy: tf.distribute.Strategy, lock: Lock
) -> dict[str, Any] | None:
    run_dir = pathlib.Path(config.run_dir)
    data = config.load_data()
    train = data.splits["train"]
    statistics = LabelStatistics.from_labels(train.labels, data.class_names)
    build.check_classes(config, statistics)
    build.check_sampler(config, train)
    plan = build.make_plan(config, statistics)

    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    with strategy.scope():
        backbone, head = build.build_networks(config, statistics)
        network = head if config.freeze_backbone else models.join(backbone, head)
        network.compile(
            build.make_optimizer(config, plan),
            build.make_loss(config, statistics),
            jit_compile=config.xla,
        )
    training.check_same_on_all(
        strategy,
        _fingerprint(train),
        "not all machines have the same training labels, in the same order: each must read the "
        "same data",
    )
    is_chief = training.is_chief(strategy)
    if is_chief:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
        open_directory(config, statistics, run_dir)
    print(describe(config, data, statistics, plan), flush=True)

    if config.freeze_backbone:
        features = Features(config, backbone)
        batches = build.make_feature_batches(config, train, statistics, features(train))
        inputs_of = features.batches
    else:
        batches = build.make_image_batches(config, data, statistics)

        def inputs_of(examples: Examples) -> tf.data.Dataset:
            return evaluate.image_batches(examples, config.image_size)

    checkpoints = training.Checkpoints(run_dir / "checkpoints")

    def drawn() -> tf.data.Dataset:
        """Returns the positions at which the pipeline may have failed."""
        step = max(checkpoints.steps(), default=0)
        ahead = plan.steps_per_epoch + _LOOK_AHEAD_BATCHES
        return build.make_indices(config, train, step).take(ahead)

    at_risk = {train: drawn}
    callbacks = [training.TensorBoard(str(run_dir / "tensorboard"), write_graph=False)]
    if "val" in data.splits:
        val = data.splits["val"]
        at_risk[val] = lambda: evaluate.every_position(val)
        # It comes first, so that the callbacks after it find `val_map` in the logs.
        callbacks.insert(
            0, training.MeanAveragePrecisionCallback(inputs_of(val), val.labels.toarray())
        )
    with contextlib.ExitStack() as reraising:
        reraising.enter_context(atomic.reraise_full_disk(run_dir))
        for examples, positions in at_risk.items():
            reraising.enter_context(
                evaluate.reraise_unreadable(examples, positions, config.image_size)
            )
        training.fit(
            network,
            batches,
            steps=plan.steps,
            steps_per_epoch=plan.steps_per_epoch,
            checkpoints=checkpoints,
            checkpoint_every=config.checkpoint_every,
            history_path=run_dir / "history.csv",
            callbacks=callbacks,
        )

    if not is_chief:
        training.wait_for_all(strategy)
        return None
    model = build.plain_copy(config, models.join(backbone, head), statistics)
    with atomic.replacing(run_dir / "model.keras") as tmp_path:
        model.save(tmp_path)
    predict = evaluate.network_predictor(model, config.image_size)
    if config.freeze_backbone:

        def predict(examples: Examples) -> np.ndarray:
            return prediction.predict(head, features.batches(examples))

    with atomic.reraise_full_disk(run_dir):
        scores = _evaluate_and_export(config, data, statistics, model, predict)
    training.wait_for_all(strategy)
    return scores


def _fingerprint(examples: Examples) -> int:
    """Returns a checksum of the labels and of their order."""
    labels = examples.labels
    return zlib.crc32(
        np.concatenate([labels.shape, labels.indptr, labels.indices]).astype(np.int64).tobytes()
    )


def _evaluate_and_export(
    config: ResolvedConfig,
    data: LabelledData,
    statistics: LabelStatistics,
    model: keras.Model,
    predict: evaluate.Predict,
) -> dict[str, Any]:
    """Writes thresholds, scores, report and SavedModel of a trained network; returns the scores."""
    run_dir = pathlib.Path(config.run_dir)
    print("choosing thresholds")
    thresholds = evaluate.choose_thresholds(predict, data)
    thresholds.save(run_dir / "thresholds.json")
    print("evaluating on the test split")
    result = evaluate.score_test(predict, data, statistics, thresholds, run_dir)
    report.write_of_run(
        result,
        run_dir,
        config=config,
        train=data.splits["train"],
        history_path=run_dir / "history.csv",
    )
    if config.export:
        serving.export(
            model,
            statistics,
            lambda encoded: images.read_batch(encoded, config.image_size),
            lambda image: images.resize(image, config.image_size),
            run_dir / "saved_model",
            thresholds=thresholds.values,
            thresholds_from=thresholds.chosen_on,
            example_image=next(data.splits["train"].encoded().take(1).as_numpy_iterator()),
        )
    return result.scores


def check_directory(config: ResolvedConfig, run_dir: pathlib.Path) -> None:
    """Refuses a directory that holds a run of another configuration, or other files.

    Raises:
        ConfigError: the message names the settings that differ.
    """
    saved = run_dir / "config.json"
    if saved.exists():
        differences = ResolvedConfig.load(saved).differences(config)
        if differences:
            raise ConfigError(
                f"{run_dir} holds a run of another configuration: continue it with the same "
                "settings, or choose another --run_dir. These settings differ:\n  "
                + "\n  ".join(differences)
            )
    elif run_dir.exists() and any(
        atomic.target_name(path.name) not in _WRITTEN_FIRST for path in run_dir.iterdir()
    ):
        raise ConfigError(
            f"{run_dir} is not empty and does not hold a run; choose another --run_dir"
        )


def open_directory(
    config: ResolvedConfig, statistics: LabelStatistics, run_dir: pathlib.Path
) -> None:
    """Writes the configuration and the statistics of a new run, or checks those of a stopped one.

    Removes files that a killed process has left half-written.

    Raises:
        ValueError: the training labels have changed since the run was started, or the directory
            holds another run.
    """
    check_directory(config, run_dir)
    atomic.remove_incomplete(run_dir)
    saved = run_dir / "statistics.json"
    if saved.exists():
        before = LabelStatistics.load(saved)
        if (
            before.class_names != statistics.class_names
            or before.num_examples != statistics.num_examples
            or not np.array_equal(before.cooccurrence, statistics.cooccurrence)
        ):
            raise ValueError(
                f"the training labels are not those that {run_dir} was started with; choose "
                "another --run_dir"
            )
    if not saved.exists():
        statistics.save(saved)
    if not (run_dir / "config.json").exists():
        config.save(run_dir / "config.json")


def describe(
    config: ResolvedConfig, data: LabelledData, statistics: LabelStatistics, plan: build.Plan
) -> str:
    """Describes what is going to be trained, for people."""
    groups = ", ".join(f"{len(index)} {name}" for name, index in statistics.groups.items())
    sizes = ", ".join(f"{len(examples)} {name}" for name, examples in data.splits.items())
    counts = statistics.class_counts
    method, unused = methods.get(config.method), ", ".join(config.unused())
    return (
        f"{config.dataset}: {sizes} images; {statistics.num_classes} classes ({groups}) of "
        f"{counts.min()} to {counts.max()} training examples\n"
        f"{config.method}: {method.summary}; {config.sampler} sampler"
        f"{unused and f' ({unused} are not used)'}\n"
        f"{config.backbone} at {config.image_size}², weights {config.backbone_weights}"
        f"{', frozen' if config.freeze_backbone else ''}; {plan.steps} steps of "
        f"{config.batch_size} images, {plan.steps_per_epoch} an epoch; in {config.run_dir}"
    )
