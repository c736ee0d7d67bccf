"""One training run, from its configuration to its directory: train, evaluate, export."""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dbl_tf import classifiers, evaluation, methods, models, optimizers, serving, training
from dbl_tf.statistics import LabelStatistics
from pipelines import datasets, evaluation_run, images, inputs, sampling
from pipelines.config import IMAGENET, NO_WEIGHTS, ConfigError, RunConfig
from pipelines.datasets import Examples, LabelledData

MAX_WARMUP_STEPS = 500
# A pipeline runs fewer batches than this ahead of the step that training is at.
_LOOK_AHEAD_BATCHES = 64
_LABELS_AT_ONCE = 1024
# What a run that was killed at once may leave before its configuration.
_WRITTEN_FIRST = {"statistics.json", "statistics.json.incomplete", "config.json.incomplete"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a run trains, once the number of its examples is known."""

    steps_per_epoch: int
    steps: int
    warmup_steps: int
    decay_steps: tuple[int, ...]


def make_plan(config: RunConfig, statistics: LabelStatistics) -> Plan:
    """Steps, warm-up and decays of a resolved configuration.

    The learning rate falls at the same shares of the training as in the method's own schedule.
    """
    steps_per_epoch = sampling.steps_per_epoch(
        config.sampler, statistics.class_counts, statistics.num_examples, config.batch_size
    )
    steps = config.steps or config.epochs * steps_per_epoch
    schedule = methods.schedule_of(config.sampler)
    warmup = config.warmup_steps
    return Plan(
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        warmup_steps=min(MAX_WARMUP_STEPS, steps // 10) if warmup is None else warmup,
        decay_steps=tuple(round(steps * e / schedule.epochs) for e in schedule.decay_epochs),
    )


def train_and_evaluate(config: RunConfig) -> dict[str, Any] | None:
    """Trains, evaluates and exports into `config.run_dir`; continues what is there.

    The directory receives `config.json`, `statistics.json`, `history.csv`, `tensorboard/`,
    `checkpoints/`, `model.keras`, `thresholds.json`, `predictions.csv`, `metrics.json` and
    `saved_model/1/`.

    Returns:
        What `metrics.json` holds; None in a process that is not the chief of its cluster.

    Raises:
        ValueError: data that cannot be used, or a directory that holds another run.
        FloatingPointError: the loss is no longer finite.
    """
    config = config.resolved()
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
            "--precision=mixed_float16 judges overflow by one replica alone; use mixed_bfloat16 "
            "with several"
        )
    data = datasets.load(config)
    train = data.splits["train"]
    statistics = LabelStatistics.from_labels(train.labels, data.class_names)
    check_classes(config, statistics)
    check_sampler(config, train)
    plan = make_plan(config, statistics)

    keras.utils.set_random_seed(config.seed)
    keras.config.set_dtype_policy(config.precision)
    with strategy.scope():
        backbone, head = build_networks(config, statistics)
        network = head if config.freeze_backbone else models.join(backbone, head)
        network.compile(
            make_optimizer(config, plan), make_loss(config, statistics), jit_compile=False
        )
    is_chief = training.is_chief(strategy)
    if is_chief:
        open_directory(config, statistics, run_dir)
    print(describe(config, data, statistics, plan), flush=True)

    if config.freeze_backbone:
        features = _Features(config, backbone)
        batches = _feature_batches(config, train, statistics, features)
        inputs_of = features.batches
    else:
        batches = _image_batches(config, data, statistics)

        def inputs_of(examples: Examples) -> tf.data.Dataset:
            return evaluation_run.image_batches(examples, config.image_size)

    checkpoints = training.Checkpoints(run_dir / "checkpoints")

    def drawn() -> tf.data.Dataset:
        """Positions that the pipeline may have failed at."""
        step = max(checkpoints.steps(), default=0)
        ahead = plan.steps_per_epoch + _LOOK_AHEAD_BATCHES
        return make_indices(config, train, step).take(ahead)

    at_risk = {train: drawn}
    callbacks = [keras.callbacks.TensorBoard(str(run_dir / "tensorboard"), write_graph=False)]
    if "val" in data.splits:
        val = data.splits["val"]
        at_risk[val] = lambda: evaluation_run.every_position(val)
        # First, so that the callbacks behind it find `val_map` in the logs.
        callbacks.insert(0, evaluation.MeanAveragePrecision(inputs_of(val), val.labels.toarray()))
    with contextlib.ExitStack() as naming:
        for examples, positions in at_risk.items():
            naming.enter_context(
                evaluation_run.naming_unreadable(examples, positions, config.image_size)
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
    model = plain_copy(config, models.join(backbone, head), statistics)
    model.save(run_dir / "model.keras")
    if config.freeze_backbone:

        def predict(examples: Examples) -> np.ndarray:
            return evaluation.predict(head, features.batches(examples))
    else:
        predict = evaluation_run.network_predictor(model, config.image_size)
    scores = _evaluate_and_export(config, data, statistics, model, predict)
    training.wait_for_all(strategy)
    return scores


def _evaluate_and_export(
    config: RunConfig,
    data: LabelledData,
    statistics: LabelStatistics,
    model: keras.Model,
    predict: evaluation_run.Predict,
) -> dict[str, Any]:
    """Thresholds, scores and SavedModel of a trained network, into the run directory."""
    run_dir = pathlib.Path(config.run_dir)
    print("choosing thresholds")
    thresholds = evaluation_run.choose_thresholds(predict, data)
    thresholds.save(run_dir / "thresholds.json")
    print("evaluating on the test split")
    scores = evaluation_run.score_test(predict, data, statistics, thresholds, run_dir)
    if config.export:
        serving.export(
            model,
            statistics,
            lambda encoded: images.read_batch(encoded, config.image_size),
            lambda image: images.resize(image, config.image_size),
            run_dir / "saved_model" / "1",
            thresholds=thresholds.values,
            thresholds_from=thresholds.chosen_on,
            example_image=next(data.splits["train"].encoded().take(1).as_numpy_iterator()),
        )
    return scores


def check_directory(config: RunConfig, run_dir: pathlib.Path) -> None:
    """Refuses a directory that holds a run of another configuration, or other files.

    Raises:
        ConfigError: naming the fields that differ.
    """
    saved = run_dir / "config.json"
    if saved.exists():
        differences = RunConfig.load(saved).differences(config)
        if differences:
            raise ConfigError(
                f"{run_dir} holds a run of another configuration: continue it with its own, or "
                "choose another --run_dir. What differs:\n  " + "\n  ".join(differences)
            )
    elif run_dir.exists() and {path.name for path in run_dir.iterdir()} - _WRITTEN_FIRST:
        raise ConfigError(f"{run_dir} is not empty and holds no run; choose another --run_dir")


def open_directory(config: RunConfig, statistics: LabelStatistics, run_dir: pathlib.Path) -> None:
    """Writes what a run is, or checks that the data of a run that goes on are the same.

    Raises:
        ValueError: the training labels have changed since the run was started.
    """
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
    run_dir.mkdir(parents=True, exist_ok=True)
    if not saved.exists():
        statistics.save(saved)
    if not (run_dir / "config.json").exists():
        config.save(run_dir / "config.json")


def check_classes(config: RunConfig, statistics: LabelStatistics) -> None:
    """Refuses classes that the method cannot learn from, by name.

    Raises:
        ValueError: a class in no training example, or in all of them where the margin is used.
    """
    counts, names = statistics.class_counts, np.array(statistics.class_names, object)
    empty = names[counts == 0]
    if len(empty) and not config.allow_empty_classes:
        raise ValueError(
            f"{len(empty)} classes have no training example: {', '.join(empty[:20])}"
            f"{', …' if len(empty) > 20 else ''}. Add some, leave the classes out, or pass "
            "--allow_empty_classes"
        )
    full = names[counts == statistics.num_examples]
    if len(full) and methods.get(config.method).negative_tolerant and config.kappa != 0:
        raise ValueError(
            f"{', '.join(full)} is in every training example, so that the margin (Eq. 9) of "
            f"--method={config.method} is not finite. Leave the class out, or pass --kappa=0"
        )


def check_sampler(config: RunConfig, train: Examples) -> None:
    """Refuses a sampler that needs images by position where they come as a stream.

    Raises:
        ConfigError: naming those that do not.
    """
    streamed = train.read is None and not config.freeze_backbone
    if streamed and config.sampler not in sampling.STREAM_SAMPLERS:
        raise ConfigError(
            f"--sampler={config.sampler} reads images by position, and the train split is a "
            f"stream; use {' or '.join(sampling.STREAM_SAMPLERS)}, or array_record shards"
        )


def describe(config: RunConfig, data: LabelledData, statistics: LabelStatistics, plan: Plan) -> str:
    """What is going to be trained, for a person."""
    groups = ", ".join(f"{len(index)} {name}" for name, index in statistics.groups.items())
    sizes = ", ".join(f"{len(examples)} {name}" for name, examples in data.splits.items())
    counts = statistics.class_counts
    method, unused = methods.get(config.method), ", ".join(config.unused())
    return (
        f"{config.dataset}: {sizes} images; {statistics.num_classes} classes ({groups}) of "
        f"{counts.min()} to {counts.max()} training examples\n"
        f"{config.method}: {method.summary}; {config.sampler} sampler"
        f"{unused and f' ({unused} have no part in it)'}\n"
        f"{config.backbone} at {config.image_size}², weights {config.backbone_weights}"
        f"{', frozen' if config.freeze_backbone else ''}; {plan.steps} steps of "
        f"{config.batch_size} images, {plan.steps_per_epoch} an epoch; in {config.run_dir}"
    )


def make_loss(config: RunConfig, statistics: LabelStatistics) -> keras.losses.Loss:
    """The loss of a resolved configuration."""
    return methods.get(config.method).make_loss(
        statistics.class_counts,
        statistics.num_examples,
        alpha=config.alpha,
        beta=config.beta,
        mu=config.mu,
        lambda_=config.lambda_,
        kappa=config.kappa,
        margin=config.margin,
        rebalance_in=config.rebalance_in,
        clamp_counts=config.allow_empty_classes,
    )


def make_weighting(config: RunConfig, statistics: LabelStatistics) -> inputs.Weighting | None:
    """The weights that the pipeline makes from labels; None where it makes none."""
    if config.rebalance_in != "pipeline":
        return None
    return methods.get(config.method).make_weighting(
        statistics.class_counts,
        statistics.num_examples,
        alpha=config.alpha,
        beta=config.beta,
        mu=config.mu,
        clamp_counts=config.allow_empty_classes,
    )


def make_optimizer(config: RunConfig, plan: Plan) -> optimizers.CoupledDecaySGD:
    """SGD with the schedule of the plan."""
    return optimizers.CoupledDecaySGD(
        optimizers.WarmupStepDecay(config.learning_rate, plan.warmup_steps, plan.decay_steps),
        momentum=config.momentum,
        coupled_weight_decay=config.weight_decay,
    )


def make_indices(config: RunConfig, examples: Examples, start_step: int) -> tf.data.Dataset:
    """Positions of the examples of each batch, from a step on."""
    return sampling.SAMPLERS[config.sampler](
        examples.labels, config.batch_size, seed=config.seed, start_step=start_step
    )


def make_draws(
    config: RunConfig, examples: Examples, statistics: LabelStatistics, start_step: int
) -> tf.data.Dataset:
    """Examples of a stream in the order in which batches take them, from a step on."""
    where = {
        "seed": config.seed,
        "start_draw": start_step * config.batch_size,
        "records_from": examples.stream,
    }
    if config.sampler == "uniform":
        return sampling.uniform_stream(examples.stream(0), len(examples), **where)
    labels_at = inputs.dense_labels(examples.labels)
    labels = tf.data.Dataset.range(len(examples)).batch(_LABELS_AT_ONCE).map(labels_at).unbatch()
    return sampling.class_aware_stream(
        examples.stream(0),
        statistics.class_counts,
        statistics.num_examples,
        labels_alone=labels,
        **where,
    )


def build_networks(
    config: RunConfig, statistics: LabelStatistics, *, load_weights: bool = True
) -> tuple[keras.Model, keras.Model]:
    """Backbone and head of a resolved configuration.

    Args:
        config: of the run.
        statistics: of the training labels. The classifier of `init_from` is taken over where the
            class names are those of the run that it is a directory of.
        load_weights: whether they start from the weights of the configuration; if not, they have
            the same structure and random weights.
    """
    label_embeddings = None
    if config.word_vectors is not None:
        label_embeddings = _label_embeddings(config.word_vectors, statistics.class_names)
    weights = None if config.backbone_weights == NO_WEIGHTS else config.backbone_weights
    try:
        backbone = models.build_backbone(
            config.backbone,
            config.image_size,
            weights=weights if load_weights and config.init_from is None else None,
            pretrained=weights is not None or config.init_from is not None,
            options=config.backbone_options,
            frozen_layers=config.frozen_layers,
        )
    except Exception as error:  # Keras raises a plain Exception where a download fails
        if weights != IMAGENET or isinstance(error, ValueError):
            raise
        raise ConfigError(
            f"the ImageNet weights of {config.backbone} cannot be had here ({error}); pass "
            "--backbone_weights=FILE with a file of them, or =none"
        ) from error
    head = methods.get(config.method).make_head(
        backbone.output_shape[-1],
        statistics,
        label_embeddings=label_embeddings,
        seed=config.seed,
    )
    if config.init_from and load_weights:
        beside = pathlib.Path(config.init_from, "statistics.json")
        names = LabelStatistics.load(beside).class_names if beside.is_file() else None
        models.copy_weights(
            config.init_from, backbone, head, same_classes=names == statistics.class_names
        )
    return backbone, head


@functools.lru_cache(maxsize=1)
def _label_embeddings(path: str, class_names: tuple[str, ...]) -> np.ndarray:
    # Kept: the copy at the end of a run has their shape, and must not depend on the file any more.
    return classifiers.read_label_embeddings(path, class_names)


def plain_copy(config: RunConfig, model: keras.Model, statistics: LabelStatistics) -> keras.Model:
    """The trained network in float32 on one device, as it is evaluated and served."""
    keras.config.set_dtype_policy("float32")
    copy = models.join(*build_networks(config, statistics, load_weights=False))
    copy.set_weights(model.get_weights())
    return copy


class _Features:
    """Pooled features of a split by a backbone that does not train, computed once and kept.

    They are kept in the cache folder under a digest of the backbone's weights and of the images, so
    that runs which differ above the backbone share them.
    """

    def __init__(self, config: RunConfig, backbone: keras.Model):
        self.config, self.backbone = config, backbone
        network = (config.backbone, dict(config.backbone_options), config.image_size)
        digest = hashlib.sha256(repr(network).encode())
        for weight in backbone.get_weights():
            digest.update(np.ascontiguousarray(weight).tobytes())
        digest.update(f"{config.dataset} {config.data_seed}".encode())
        self._digest = digest

    def __call__(self, examples: Examples) -> np.ndarray:
        digest = self._digest.copy()
        digest.update("\n".join(examples.names).encode())
        for path in dict.fromkeys(examples.files or ()):  # a file may hold many images
            status = os.stat(path)
            digest.update(f"\n{path} {status.st_size} {status.st_mtime_ns}".encode())
        path = self.config.cache_path / "features" / f"{digest.hexdigest()[:32]}.npy"
        if path.exists():
            return np.load(path)
        print(f"computing features of {len(examples)} images")
        size = self.config.image_size
        with evaluation_run.naming_unreadable(
            examples, lambda: evaluation_run.every_position(examples), size
        ):
            features = evaluation.outputs(
                self.backbone, evaluation_run.image_batches(examples, size)
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}.npy")
        np.save(beside, features)
        os.replace(beside, path)
        return features

    def batches(self, examples: Examples) -> tf.data.Dataset:
        """The features in batches, in the order of the examples."""
        return tf.data.Dataset.from_tensor_slices(self(examples)).batch(evaluation_run.BATCH_SIZE)


def _feature_batches(
    config: RunConfig, train: Examples, statistics: LabelStatistics, features: _Features
) -> Callable[[int], tf.data.Dataset]:
    weigh, table = make_weighting(config, statistics), features(train)
    return lambda step, share: inputs.feature_batches(
        table, train.labels, make_indices(config, train, step), weigh, share
    )


def _image_batches(
    config: RunConfig, data: LabelledData, statistics: LabelStatistics
) -> Callable[[int], tf.data.Dataset]:
    weigh, train = make_weighting(config, statistics), data.splits["train"]
    flip = data.flip_probability if config.flip_probability is None else config.flip_probability
    how = {
        "image_size": config.image_size,
        "seed": config.seed,
        "flip_probability": flip,
        "weighting": weigh,
    }
    if train.read is None:
        return lambda step, share: inputs.streamed_batches(
            make_draws(config, train, statistics, step),
            config.batch_size,
            **how,
            start_step=step,
            share=share,
        )
    return lambda step, share: inputs.training_batches(
        train, make_indices(config, train, step), **how, start_step=step, share=share
    )
