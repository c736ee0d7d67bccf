"""What a run is going to train and what it costs, said before it starts."""

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from dbl_tf import methods, models
from dbl_tf.messages import counted
from dbl_tf.statistics import LabelStatistics
from pipelines import images, shrinking
from pipelines.examples import LabelledData
from pipelines.runs import network_inputs
from pipelines.runs.build import Plan
from pipelines.runs.config import ResolvedConfig

# A rate that differs from the default by this factor is more often a slip than a choice.
_UNUSUAL_FACTOR = 10.0
# How many files tell the size of the images.
_NUM_SAMPLED = 15


def describe(
    config: ResolvedConfig,
    data: LabelledData,
    statistics: LabelStatistics,
    plans: Sequence[Plan],
    strategy: tf.distribute.Strategy,
) -> str:
    """Describes data, method, network, steps and devices, for people.

    Args:
        config: the configuration of the run.
        data: its data.
        statistics: the statistics of the training labels.
        plans: the plan of each stage.
        strategy: the strategy of the run.
    """
    groups = ", ".join(f"{len(index):,} {name}" for name, index in statistics.groups.items())
    sizes = ", ".join(f"{len(examples):,} {name}" for name, examples in data.splits.items())
    counts = statistics.class_counts
    method, unused = methods.get(config.method), ", ".join(config.unused())
    kind = "images" if config.image_size else "examples"
    given = data.splits["train"].features
    if given is not None:
        network = f"head on {given.num_features:,} given features"
    else:
        network = f"{config.backbone} at {config.image_size}², weights {config.backbone_weights}"
        if config.freeze_backbone:
            network += ", of which the head alone is trained on features that are kept"
    return "\n".join(
        [
            f"{config.dataset}: {sizes} {kind}; {statistics.num_classes:,} classes ({groups}) of "
            f"{counts.min():,} to {counts.max():,} training examples",
            f"{config.method}: {method.summary}; {config.sampler} sampler"
            f"{unused and f' ({unused} are not used)'}",
            network,
            *_stages(config, statistics, plans),
            f"{_devices(strategy)}; in {config.run_dir}",
            *(f"Caution: {caution}" for caution in cautions(config, data, statistics, strategy)),
        ]
    )


def cautions(
    config: ResolvedConfig,
    data: LabelledData,
    statistics: LabelStatistics,
    strategy: tf.distribute.Strategy,
) -> Iterator[str]:
    """Yields what a person may not have meant, as sentences."""
    if config.batch_size > statistics.num_examples:
        yield (
            f"a batch of {config.batch_size:,} holds more than the {statistics.num_examples:,} "
            "training examples, so that each step sees some of them again. A smaller --batch_size "
            "trains more steps in the same time."
        )
    num_unlabeled = data.splits["train"].num_unlabeled
    if config.sampler != "uniform" and num_unlabeled:
        yield (
            f"{num_unlabeled:,} of the {statistics.num_examples:,} training examples have no "
            f"label, and the {config.sampler} sampler never draws them."
        )
    if config.image_size is not None:
        yield from _large_images(data, config.image_size)
    if config.strategy == "mirrored" and not _has_gpu(strategy):
        yield "--strategy=mirrored finds no GPU and trains on the CPU."
    usual = models.default_learning_rate(
        config.backbone,
        methods.get(config.method).classes_of_rate(statistics.num_classes),
        frozen=config.freeze_backbone,
        optimizer=config.optimizer,
    )
    factor = config.learning_rate / usual
    if not 1 / _UNUSUAL_FACTOR < factor < _UNUSUAL_FACTOR:
        far = f"{factor:.3g} times" if factor > 1 else f"a {1 / factor:.3g}th of"
        yield (
            f"--learning_rate={config.learning_rate:g} is {far} the default for "
            f"{config.optimizer}, this network and {statistics.num_classes:,} classes, {usual:.3g}."
        )


def _large_images(data: LabelledData, image_size: int) -> Iterator[str]:
    """Yields that most of a sample of the training files are far larger than what is seen."""
    train = data.splits["train"]
    if not train.files or train.is_stream:
        return
    max_side = max(shrinking.Settings.max_side, 2 * image_size)
    positions = np.unique(np.linspace(0, len(train) - 1, _NUM_SAMPLED).astype(np.int64))
    sampled = tf.data.Dataset.from_tensors(positions)
    with network_inputs.naming_unreadable(train, lambda: sampled):
        sizes = [images.stored_size(train.read(tf.constant(i))).numpy() for i in positions]
    height, width = (int(side) for side in np.median(sizes, axis=0))
    if max(height, width) > max_side:
        command = "python -m pipelines.prepare --output_dir=DIR"
        if max_side != shrinking.Settings.max_side:
            command += f" --max_side={max_side}"
        yield (
            f"the images are around {width}×{height} pixels, of which the network sees "
            f"{image_size}². They are read several times faster as small copies, which {command} "
            "makes once."
        )


def _stages(
    config: ResolvedConfig, statistics: LabelStatistics, plans: Sequence[Plan]
) -> Iterator[str]:
    names = [""] if len(plans) == 1 else ["head first: ", "then all layers: "]
    for name, plan in zip(names, plans, strict=True):
        drawn = plan.steps * config.batch_size
        yield (
            f"{name}{counted(plan.steps, 'step')} of {config.batch_size:,}; the {config.sampler} "
            f"sampler draws {drawn:,} times from the {statistics.num_examples:,} training "
            f"examples, {drawn / statistics.num_examples:.3g} for each; an epoch is "
            f"{counted(plan.steps_per_epoch, 'step')}"
        )


def _devices(strategy: tf.distribute.Strategy) -> str:
    count = strategy.num_replicas_in_sync
    kind = "GPU" if _has_gpu(strategy) else "CPU"
    return f"on the {kind}" if count == 1 else f"on {counted(count, kind)}"


def _has_gpu(strategy: tf.distribute.Strategy) -> bool:
    return any("GPU" in device for device in strategy.extended.worker_devices)
