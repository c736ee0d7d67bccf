"""Builds the parts of a run from its configuration and its data: loss, networks, batches."""

import concurrent.futures
import dataclasses
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dbl_tf import label_graphs, methods, models, optimizers
from dbl_tf.losses import MultiLabelLoss
from dbl_tf.messages import first_few
from dbl_tf.settings import flag_name, settings_of
from dbl_tf.statistics import LabelStatistics
from dbl_tf.training import Batches
from pipelines import inputs, sampling
from pipelines.examples import Examples, FeatureRows, LabelledData
from pipelines.runs import resolution
from pipelines.runs.config import (
    IMAGENET,
    NO_WEIGHTS,
    ConfigError,
    ResolvedConfig,
    RunConfig,
    SharedConfig,
)

MAX_WARMUP_STEPS = 500
_LABELS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class Plan:
    """The steps of a run, which are known once its training examples are counted."""

    steps_per_epoch: int
    steps: int
    warmup_steps: int
    decay_steps: tuple[int, ...]


def make_plan(config: ResolvedConfig, statistics: LabelStatistics) -> Plan:
    """Plans the steps of a run, its warm-up, and the steps at which the learning rate falls.

    It falls at the same fractions of the training as in the method's own schedule.
    """
    steps_per_epoch = sampling.steps_per_epoch(
        config.sampler, statistics.class_counts, statistics.num_examples, config.batch_size
    )
    steps = config.num_steps(steps_per_epoch)
    schedule = methods.schedule_of(config.sampler)
    warmup = config.warmup_steps
    return Plan(
        steps_per_epoch=steps_per_epoch,
        steps=steps,
        warmup_steps=min(MAX_WARMUP_STEPS, steps // 10) if warmup is None else warmup,
        decay_steps=tuple(round(steps * e / schedule.epochs) for e in schedule.decay_epochs),
    )


def check_classes(config: SharedConfig, statistics: LabelStatistics) -> None:
    """Refuses classes that no method can learn.

    Raises:
        ValueError: no training example has a class; the message names it.
    """
    empty = np.array(statistics.class_names, object)[statistics.class_counts == 0]
    if len(empty) and not config.clamp_counts:
        raise ValueError(
            f"no training example has {'this class' if len(empty) == 1 else 'these classes'}: "
            f"{first_few(empty)}. Add some, leave the classes out, or pass --clamp_counts"
        )


def check_backbone(asked: RunConfig) -> None:
    """Refuses options that a backbone does not take, before the data are read, by building it.

    Args:
        asked: the configuration of a run. Without `backbone_options`, nothing is built.

    Raises:
        ValueError: the network does not take them; the message names it and those it takes.
    """
    if not asked.backbone_options or asked.dataset == "features":
        return
    backbone = resolution.Backbone.of(asked)
    # Keras numbers the layers of each thread, so that those of the run keep their names.
    with concurrent.futures.ThreadPoolExecutor(1) as other_thread:
        other_thread.submit(
            _build_backbone,
            backbone,
            asked.backbone_options,
            load_weights=asked.init_from is None,
        ).result()


def check_loss(config: ResolvedConfig, statistics: LabelStatistics) -> None:
    """Refuses classes and parameters for which the loss is not finite, whatever the logits are.

    Raises:
        ValueError: every training example has a class, and the message names it; or the loss of
            logits of 0 is not finite, and the message names the parameters that were changed.
    """
    method = methods.get(config.method)
    is_full = statistics.class_counts == statistics.known_counts
    full = np.array(statistics.class_names, object)[is_full]
    if len(full) and "kappa" in method.parameters and config.loss.kappa != 0:
        raise ValueError(
            f"{first_few(full)} is in every training example, so that the margin (Eq. 9) of "
            f"--method={config.method} is not finite. Leave the class out, or pass --kappa=0"
        )
    if statistics.class_counts.all() or config.clamp_counts:
        loss, weigh = make_loss(config, statistics), make_weighting(config, statistics)
        loss.at_step(0)
        labels = np.array([[0], [1]], np.uint8).repeat(statistics.num_classes, axis=1)
        value = float(loss(labels, np.zeros(labels.shape), weigh(labels) if weigh else None))
        if not np.isfinite(value):
            changed = [
                f"--{flag_name(field)}={getattr(config.loss, field.name)}"
                for field, _ in settings_of(config.loss)
                if field.name in method.parameters
                and getattr(config.loss, field.name) != field.default
            ]
            raise ValueError(
                f"the loss of --method={config.method} is {value} even for logits of 0, with "
                f"{', '.join(changed)}: use values whose loss is finite in float32"
            )


def check_sampler(config: ResolvedConfig, train: Examples) -> None:
    """Refuses a sampler that reads images by position if the images come as a stream.

    Raises:
        ConfigError: the message names the samplers that can draw from a stream.
    """
    streamed = train.is_stream and not config.freeze_backbone
    if streamed and config.sampler not in sampling.STREAM_SAMPLERS:
        raise ConfigError(
            f"--sampler={config.sampler} reads images by position, and the train split is a "
            f"stream; use {' or '.join(sampling.STREAM_SAMPLERS)}, or array_record shards"
        )


def make_loss(config: ResolvedConfig, statistics: LabelStatistics) -> MultiLabelLoss:
    """Creates the loss of a run."""
    return methods.get(config.method).make_loss(
        statistics.class_counts,
        statistics.examples_of_classes,
        config.loss,
        rebalance=config.rebalance,
        clamp_counts=config.clamp_counts,
        steps_per_epoch=make_plan(config, statistics).steps_per_epoch,
    )


def make_weighting(config: ResolvedConfig, statistics: LabelStatistics) -> inputs.Weighting | None:
    """Returns the function from labels to weights that the pipeline applies, or None."""
    if config.rebalance != "sample_weight":
        return None
    return methods.get(config.method).make_weighting(
        statistics.class_counts,
        statistics.examples_of_classes,
        config.loss,
        clamp_counts=config.clamp_counts,
    )


def make_optimizer(
    config: ResolvedConfig, plan: Plan, rate_factors: Sequence[float] | None = None
) -> keras.optimizers.Optimizer:
    """Creates the optimizer with the learning-rate schedule of a plan.

    Args:
        config: the configuration of the run.
        plan: its number of steps.
        rate_factors: a factor of the learning rate for each trainable variable; None for 1.
    """
    schedule: keras.optimizers.schedules.LearningRateSchedule
    if config.schedule == "cosine":
        schedule = optimizers.warmup_cosine(config.learning_rate, plan.warmup_steps, plan.steps)
    else:
        schedule = optimizers.WarmupStepDecay(
            config.learning_rate, plan.warmup_steps, plan.decay_steps
        )
    average: dict[str, Any] = {"use_ema": True, "ema_momentum": config.ema} if config.ema else {}
    if config.optimizer == "adamw":
        return optimizers.DecoupledDecayAdam(
            schedule,
            decoupled_weight_decay=config.weight_decay,
            rate_factors=rate_factors,
            **average,
        )
    return optimizers.CoupledDecaySGD(
        schedule,
        momentum=config.momentum,
        coupled_weight_decay=config.weight_decay,
        rate_factors=rate_factors,
        **average,
    )


def rate_factors(
    config: ResolvedConfig, backbone: keras.Model | None, network: keras.Model
) -> list[float] | None:
    """Returns a factor of the learning rate for each trainable variable of a network.

    None where all layers have the same rate.
    """
    if backbone is None or config.backbone_rate == 1.0:
        return None
    below = {id(variable) for variable in backbone.variables}
    return [
        config.backbone_rate if id(variable) in below else 1.0
        for variable in network.trainable_variables
    ]


def make_indices(config: ResolvedConfig, examples: Examples, start_step: int) -> tf.data.Dataset:
    """Returns the positions of the examples of each batch, starting with the batch of a step."""
    return sampling.SAMPLERS[config.sampler](
        examples.labels, config.batch_size, seed=config.seed, start_step=start_step
    )


def make_draws(
    config: ResolvedConfig, examples: Examples, statistics: LabelStatistics, start_step: int
) -> tf.data.Dataset:
    """Returns the draws from a stream in the order of the batches, starting with that of a step."""
    records, start_draw = examples.stream(0), start_step * config.batch_size
    if config.sampler == "uniform":
        return sampling.uniform_stream(
            records,
            len(examples),
            seed=config.seed,
            start_draw=start_draw,
            records_from=examples.stream,
        )
    labels_at = inputs.dense_labels(examples.targets)
    labels = tf.data.Dataset.range(len(examples)).batch(_LABELS_AT_ONCE).map(labels_at).unbatch()
    return sampling.class_aware_stream(
        records,
        statistics.class_counts,
        statistics.num_examples,
        seed=config.seed,
        start_draw=start_draw,
        labels_alone=labels,
        records_from=examples.stream,
    )


def build_networks(
    config: ResolvedConfig,
    statistics: LabelStatistics,
    *,
    num_features: int | None = None,
    load_weights: bool = True,
) -> tuple[keras.Model | None, keras.Model]:
    """Builds the backbone and the head of a run.

    Args:
        config: the configuration of the run.
        statistics: the statistics of the training labels. If `init_from` is the directory of a run
            with the same class names, the classifier of that run is copied too.
        num_features: the number F of features of data that are features, which need no backbone;
            None for images.
        load_weights: whether to load the initial weights that the configuration names. If not, the
            networks have the same structure and random weights.

    Returns:
        The backbone, None for data that are features; and the head.
    """
    label_embeddings = None
    if config.word_vectors is not None:
        label_embeddings = _label_embeddings(config.word_vectors, statistics.class_names)
    backbone = None
    if num_features is None:
        assert config.image_size is not None
        backbone = _build_backbone(
            resolution.Backbone(
                config.backbone,
                config.backbone_weights,
                config.image_size,
                config.has_trained_backbone,
                tuple(config.frozen_layers),
            ),
            config.backbone_options,
            load_weights=load_weights and config.init_from is None,
        )
        num_features = backbone.output_shape[-1]
    head = methods.get(config.method).make_head(
        num_features,
        statistics,
        config.loss,
        label_embeddings=label_embeddings,
        scale_features=config.scale_features,
        seed=config.seed,
    )
    if config.init_from and load_weights:
        beside = pathlib.Path(config.init_from, "statistics.json")
        names = LabelStatistics.load(beside).class_names if beside.is_file() else None
        models.copy_weights(
            config.init_from, backbone, head, same_classes=names == statistics.class_names
        )
    return backbone, head


def scale_features(config: ResolvedConfig, head: keras.Model, features: FeatureRows) -> None:
    """Fits the scaling of a head, if the configuration asks for it, to training features."""
    if config.scale_features:
        models.scale_features(head, *features.moments())


def _build_backbone(
    backbone: resolution.Backbone, options: Mapping[str, Any], *, load_weights: bool
) -> keras.Model:
    weights = None if backbone.weights == NO_WEIGHTS else backbone.weights
    try:
        return models.build_backbone(
            backbone.name,
            backbone.image_size,
            weights=weights if load_weights else None,
            pretrained=backbone.is_pretrained,
            options=options,
            frozen_layers=backbone.frozen_layers,
        )
    except Exception as error:  # Keras raises a plain Exception where a download fails
        if weights != IMAGENET or isinstance(error, ValueError):
            raise
        raise ConfigError(
            f"the ImageNet weights of {backbone.name} cannot be had here ({error}); pass "
            "--backbone_weights=FILE with a file of them, or =none"
        ) from error


@functools.lru_cache(maxsize=1)
def _label_embeddings(path: str, class_names: tuple[str, ...]) -> np.ndarray:
    # Cached, because the copy at the end of a run must not depend on the file any more.
    return label_graphs.read_label_embeddings(path, class_names)


def plain_copy(
    config: ResolvedConfig, model: keras.Model, statistics: LabelStatistics
) -> keras.Model:
    """Copies the trained network to float32 on one device, as it is evaluated and served."""
    keras.config.set_dtype_policy("float32")
    num_features = None if config.image_size is not None else model.input_shape[-1]
    networks = build_networks(config, statistics, num_features=num_features, load_weights=False)
    copy = models.join(*networks)
    copy.set_weights(model.get_weights())
    return copy


def make_image_batches(
    config: ResolvedConfig, data: LabelledData, statistics: LabelStatistics
) -> Batches:
    """Returns a function that makes batches of augmented training images, labels and weights."""
    weigh, train = make_weighting(config, statistics), data.splits["train"]
    image_size = config.image_size
    assert image_size is not None
    augmentation = config.augmentation.for_data(data.flip_probability)
    if train.is_stream:
        return lambda step, share: inputs.streamed_batches(
            make_draws(config, train, statistics, step),
            config.batch_size,
            image_size=image_size,
            full_decoding=config.full_decoding,
            seed=config.seed,
            augmentation=augmentation,
            weighting=weigh,
            start_step=step,
            share=share,
        )
    return lambda step, share: inputs.training_batches(
        train,
        make_indices(config, train, step),
        image_size=image_size,
        full_decoding=config.full_decoding,
        seed=config.seed,
        augmentation=augmentation,
        weighting=weigh,
        start_step=step,
        share=share,
    )


def make_feature_batches(
    config: ResolvedConfig, train: Examples, statistics: LabelStatistics, features: FeatureRows
) -> Batches:
    """Returns a function that makes batches of features, labels and weights.

    Args:
        config: the configuration of the run.
        train: the N training examples.
        statistics: the statistics of the training labels.
        features: the features of the training images, (N, F).
    """
    weigh = make_weighting(config, statistics)
    return lambda step, share: inputs.feature_batches(
        features, train.targets, make_indices(config, train, step), weigh, share
    )
