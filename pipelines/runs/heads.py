"""Heads on fixed features: trained without a run directory, and judged on examples held out."""

import dataclasses
from collections.abc import Callable

import keras
import numpy as np

from dbl_tf import prediction, training
from dbl_tf.statistics import LabelStatistics
from pipelines import folds
from pipelines.examples import Examples, FeatureRows, LabelledData
from pipelines.runs import build, network_inputs
from pipelines.runs.config import ResolvedConfig

# A step on features takes less time than its dispatch.
STEPS_PER_CALL = 50


def with_features(
    data: LabelledData, features_of: Callable[[Examples], FeatureRows]
) -> LabelledData:
    """Returns the training split alone, with the features that a function gives for it."""
    train = data.splits["train"]
    held = dataclasses.replace(train, features=features_of(train))
    return dataclasses.replace(data, splits={"train": held})


def fit_head(
    config: ResolvedConfig, data: LabelledData, statistics: LabelStatistics
) -> keras.Model:
    """Trains a head on the features of a training split.

    Args:
        config: the configuration of a run that trains the head alone.
        data: the data, whose examples hold features.
        statistics: the statistics of the training labels.

    Returns:
        The head, from features (B, F) to logits (B, C), with the weights that a run would keep.
    """
    train = data.splits["train"]
    features = network_inputs.given_features(train)
    keras.utils.clear_session()  # otherwise the graphs of all heads would add up
    keras.utils.set_random_seed(config.seed)
    _, head = build.build_networks(
        config, statistics, num_features=features.num_features, load_weights=False
    )
    build.scale_features(config, head, features)
    plan = build.make_plan(config, statistics)
    head.compile(
        build.make_optimizer(config, plan), build.make_loss(config, statistics), jit_compile=False
    )
    training.fit(
        head,
        build.make_feature_batches(config, train, statistics, features),
        steps=plan.steps,
        steps_per_epoch=plan.steps,
        checkpoints=None,
        steps_per_call=STEPS_PER_CALL,
        verbose=0,
    )
    training.use_averages(head)
    return head


def logits_of_splits(config: ResolvedConfig, data: LabelledData) -> dict[str, np.ndarray]:
    """Trains a head on "train", and returns the logits (n, C) of each split.

    Args:
        config: as in `fit_head`. Classes without a training example are accepted.
        data: as in `fit_head`.

    Raises:
        FloatingPointError: the loss has become infinite or NaN.
    """
    statistics = LabelStatistics.from_labels(data.splits["train"].targets, data.class_names)
    head = fit_head(config.with_settings(clamp_counts=True), data, statistics)
    inputs = network_inputs.FeatureInputs(network_inputs.given_features)
    return {
        name: prediction.predict_logits(head, inputs.batches(examples), verbose=0)
        for name, examples in data.splits.items()
    }


def out_of_fold_logits(
    config: ResolvedConfig, data: LabelledData, fold_of: np.ndarray
) -> np.ndarray:
    """Returns logits (N, C) of the training examples by heads that have not seen them.

    Args:
        config: as in `fit_head`.
        data: as in `fit_head`; its training split alone is used.
        fold_of: the fold of each training example, (N,).
    """
    logits = np.empty((len(fold_of), len(data.class_names)), np.float32)
    for fold in range(int(fold_of.max()) + 1):
        part = folds.held_out(data, fold_of, fold)
        logits[fold_of == fold] = logits_of_splits(config, part)["test"]
    return logits
