"""Writes the report of a run or of an exported model, from data, sampler, loss and scores."""

import dataclasses
import hashlib
import importlib.metadata
import math
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf

from dbl_tf import training
from dbl_tf.losses import ElementwiseLoss
from dbl_tf.statistics import LabelStatistics
from pipelines import images
from pipelines.examples import Examples
from pipelines.reports import pictures
from pipelines.reports import run as run_page
from pipelines.runs import build, network_inputs
from pipelines.runs.config import ResolvedConfig
from pipelines.runs.scores import EvaluationResult

REPORT = "report.html"
_VERSIONS = ("tensorflow", "keras", "numpy")
# Enough steps to measure how often rare classes are drawn.
_MAX_STEPS = 20_000


def write(
    result: EvaluationResult, output_dir: str | os.PathLike, *, title: str, **training: Any
) -> None:
    """Writes the report of a model.

    Args:
        result: the predictions of the test split and their scores.
        output_dir: the directory for `report.html` and `figures/`.
        title: the heading of the page.
        **training: arguments of `write_run_report` that only the training run knows.
    """
    path = pathlib.Path(output_dir, REPORT)
    run_page.write_run_report(
        path,
        title=title,
        statistics=result.statistics,
        labels=result.test.targets,
        probabilities=result.probabilities,
        thresholds=result.thresholds.values,
        scores=result.scores,
        image_names=result.test.names,
        read_images=images_reader(result.test),
        **training,
    )


def write_of_run(
    result: EvaluationResult,
    output_dir: str | os.PathLike,
    *,
    config: ResolvedConfig,
    train: Examples,
    history: Mapping[str, Sequence[float]] | None,
    accepted_changes: Sequence[str] = (),
) -> None:
    """Writes the report of a run.

    Args:
        result: see `write`.
        output_dir: see `write`.
        config: the configuration of the run.
        train: the training examples.
        history: what `read_history` returned.
        accepted_changes: changes of the data while the run was stopped, in words.
    """
    statistics = result.statistics
    counts, num_draws = observed_counts(config, train, statistics)
    # The page shows the loss without weights, so they must not be computed within `call`.
    loss = build.make_loss(dataclasses.replace(config, rebalance="sample_weight"), statistics)
    loss.at_step(build.make_plan(config, statistics).steps)
    write(
        result,
        output_dir,
        title=f"{config.data_name}, {config.method}",
        config=config.flat(),
        made_by=_made_by(result),
        history=history,
        loss=loss.call if isinstance(loss, ElementwiseLoss) else None,
        train_labels=train.labels,
        observed_counts=counts,
        num_draws=num_draws,
        cautions=[f"The data changed while the run was stopped: {c}." for c in accepted_changes],
    )


def observed_counts(
    config: ResolvedConfig, train: Examples, statistics: LabelStatistics
) -> tuple[np.ndarray | None, int | None]:
    """Counts the examples of each class, (C,), and all examples that a run draws.

    Both are None if the images come as a stream, whose draws are not known without reading it.
    """
    if train.is_stream:
        return None, None
    steps = min(build.make_plan(config, statistics).steps, _MAX_STEPS)
    times = np.zeros(len(train), np.int64)
    for batch in build.make_indices(config, train, 0).take(steps).as_numpy_iterator():
        np.add.at(times, batch, 1)
    return train.labels.T @ times, steps * config.batch_size


def images_reader(examples: Examples) -> pictures.ReadImages | None:
    """Returns a function that reads images for the pictures of a page; None for features.

    Large JPEGs are decoded at a smaller size, which is at least twice that of a picture.
    """
    if examples.features is not None:
        return None

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return images.decode_window(encoded, images.whole, pictures.THUMBNAIL, full_decoding=False)

    def read(positions: Sequence[int]) -> Iterator[np.ndarray]:
        part = examples.take(np.array(positions, np.int64))
        with network_inputs.naming_unreadable(part):
            decoded = part.encoded().map(decode, num_parallel_calls=tf.data.AUTOTUNE)
            yield from decoded.as_numpy_iterator()

    return read


def _made_by(result: EvaluationResult) -> dict[str, str]:
    """Returns the command, the versions and the data that made a run."""
    versions = (f"{name} {importlib.metadata.version(name)}" for name in _VERSIONS)
    labels = scipy.sparse.csr_array(result.test.labels)
    digest = hashlib.sha256(repr((result.class_names, list(result.test.names))).encode())
    for content in (labels.indptr, labels.indices, result.statistics.cooccurrence):
        digest.update(np.asarray(content, np.int64).tobytes())
    return {
        "command": shlex.join(sys.orig_argv),
        "versions": ", ".join((f"Python {platform.python_version()}", *versions)),
        "data": (
            f"{result.statistics.num_examples:,} training and {len(result.test):,} test examples; "
            "names and labels of test, and counts of training, have the SHA-256 "
            f"{digest.hexdigest()}"
        ),
    }


def read_history(run_dir: str | os.PathLike) -> dict[str, list[float]] | None:
    """Reads the `history.csv` of a run.

    Returns:
        The values of the epochs by column; None if there is no such file, or no epoch in it.

    Raises:
        ValueError: it is no such file; the message names it.
    """
    path = pathlib.Path(run_dir, "history.csv")
    if not os.path.exists(path):
        return None
    rows = training.read_history(path)
    if not rows:
        return None
    return {name: [float(row[name] or math.nan) for row in rows] for name in rows[0]}
