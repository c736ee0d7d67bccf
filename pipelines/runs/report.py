"""The report of a run or of an exported model: what the page needs of data, sampler and loss."""

import csv
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from dbl_tf.statistics import LabelStatistics
from pipelines import images
from pipelines.examples import Examples
from pipelines.reports import run as run_page
from pipelines.runs import build
from pipelines.runs.config import ResolvedConfig
from pipelines.runs.scores import EvaluationResult

REPORT = "report.html"
# Enough draws that the frequencies of rare classes are seen.
_MAX_STEPS = 20_000


def write(result: EvaluationResult, output_dir: str | os.PathLike, *, title: str) -> None:
    """Writes the report of a model whose training is not known here."""
    _write(result, output_dir, title=title)


def write_of_run(
    result: EvaluationResult,
    output_dir: str | os.PathLike,
    *,
    config: ResolvedConfig,
    train: Examples,
    history_path: str | os.PathLike,
) -> None:
    """Writes the report of a run.

    Args:
        result: its model's predictions of the test split, with their scores.
        output_dir: receives `report.html` and `figures/`.
        config: of the run, resolved.
        train: the examples it was trained on.
        history_path: its `history.csv`.
    """
    statistics = result.statistics
    counts, num_draws = observed_counts(config, train, statistics)
    _write(
        result,
        output_dir,
        title=f"{config.data_name}, {config.method}",
        config=config.flat(),
        history=_read_history(history_path),
        # Of the loss without its weights, which `call` holds where the pipeline makes none.
        loss=build.make_loss(
            dataclasses.replace(config, rebalance="sample_weight"), statistics
        ).call,
        train_labels=train.labels,
        observed_counts=counts,
        num_draws=num_draws,
    )


def observed_counts(
    config: ResolvedConfig, train: Examples, statistics: LabelStatistics
) -> tuple[np.ndarray | None, int | None]:
    """How many of the examples drawn in a run hold each class, (C,), and how many were drawn.

    None where images come as a stream, whose draws cannot be had without reading it.
    """
    if train.is_stream:
        return None, None
    steps = min(build.make_plan(config, statistics).steps, _MAX_STEPS)
    times = np.zeros(len(train), np.int64)
    for batch in build.make_indices(config, train, 0).take(steps).as_numpy_iterator():
        np.add.at(times, batch, 1)
    return train.labels.T @ times, steps * config.batch_size


def _write(result: EvaluationResult, output_dir: str | os.PathLike, **known: Any) -> None:
    path = pathlib.Path(output_dir, REPORT)
    run_page.write_run_report(
        path,
        statistics=result.statistics,
        labels=result.test.labels,
        probabilities=result.probabilities,
        thresholds=result.thresholds.values,
        scores=result.scores,
        image_names=result.test.names,
        read_image=_image_reader(result.test),
        **known,
    )
    print(f"report: {path}")


def _image_reader(examples: Examples) -> Callable[[int], np.ndarray]:
    def read(position: int) -> np.ndarray:
        encoded = next(iter(examples.take(np.array([position])).encoded()))
        return images.decode(encoded).numpy()

    return read


def _read_history(path: str | os.PathLike) -> dict[str, list[float]] | None:
    if not os.path.exists(path):
        return None
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows:
        return None
    return {name: [float(row[name] or math.nan) for row in rows] for name in rows[0]}
