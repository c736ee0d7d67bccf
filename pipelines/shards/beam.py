"""Writes shards and their statistics as an Apache Beam pipeline, on many machines.

Every worker opens the data set itself. It writes complete shards into a folder that all workers
share, with the function that writes them on one machine.
"""

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from dbl_tf.statistics import LabelStatistics
from pipelines.examples import LabelledData
from pipelines.shards import writing
from pipelines.shards.layout import Plan
from pipelines.shards.manifest import Manifest, ShardInfo

# What a shard adds to the manifest and, if it belongs to train, to the statistics: one or none.
Part = tuple[ShardInfo, list[LabelStatistics]]


def write(
    load: Callable[[], LabelledData],
    directory: str | os.PathLike,
    plan: Plan,
    options: Sequence[str] = (),
) -> Manifest:
    """Writes the same bytes as `writing.write`.

    Args:
        load: a function that loads the data set on any worker; it is pickled.
        directory: the folder, which all workers must see under this path.
        plan: the result of `layout.make_plan` for these data.
        options: options of the Beam pipeline, such as `--runner=FlinkRunner`.

    Raises:
        ShardsError: the folder holds something else.
        InUseError: another process writes to the folder.
        OSError: a file cannot be written. Beam's runners may raise an error of their own for it.
    """
    with writing.open_directory(directory, plan) as finished:
        if finished:
            return finished
        _run(load, os.path.abspath(directory), plan, options)
        return Manifest.load(directory)


def _run(
    load: Callable[[], LabelledData], directory: str, plan: Plan, options: Sequence[str]
) -> None:
    # The end of the block runs the pipeline and waits until it has finished.
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        parts = (
            pipeline
            | "Shards" >> beam.Create(plan.shards())
            | "OneBundleEach" >> beam.Reshuffle()
            | "WriteShard" >> beam.ParDo(_WriteShard(load, directory, plan))
        )
        infos = parts | "Infos" >> beam.Map(lambda part: part[0])
        statistics = (
            parts
            | "Labels" >> beam.FlatMap(lambda part: part[1])
            | "Sum" >> beam.CombineGlobally(_merge).without_defaults()
        )
        _ = (
            pipeline
            | "Once" >> beam.Create([None])
            | "Finish"
            >> beam.Map(
                functools.partial(_finish, load, directory, plan),
                beam.pvalue.AsList(infos),
                beam.pvalue.AsSingleton(statistics),
            )
        )


class _WriteShard(beam.DoFn):
    """Writes a shard, given as (split, number), and yields its part of manifest and statistics."""

    def __init__(self, load: Callable[[], LabelledData], directory: str, plan: Plan):
        self._load, self._directory, self._plan = load, directory, plan

    def setup(self) -> None:
        self._data = self._load()

    def process(self, element: tuple[str, int]) -> Iterator[Part]:
        split, shard = element
        examples = self._data.splits[split]
        info = writing.write_shard(examples, self._directory, self._plan, split, shard)
        statistics = []
        if split == "train":
            labels = examples.targets[self._plan.positions(split, shard)]
            statistics.append(LabelStatistics.from_labels(labels, self._data.class_names))
        yield info, statistics


def _merge(parts: Iterable[LabelStatistics]) -> LabelStatistics:
    """Adds up the statistics of all parts."""

    def add(merged: LabelStatistics, part: LabelStatistics) -> LabelStatistics:
        cooccurrence = merged.cooccurrence + part.cooccurrence
        return LabelStatistics(
            np.diagonal(cooccurrence).copy(),
            merged.num_examples + part.num_examples,
            cooccurrence,
            part.class_names,
            None
            if merged.unknown_counts is None and part.unknown_counts is None
            else merged.num_examples + part.num_examples - merged.known_counts - part.known_counts,
        )

    return functools.reduce(add, parts)


def _finish(
    load: Callable[[], LabelledData],
    directory: str,
    plan: Plan,
    _: None,
    infos: list[ShardInfo],
    statistics: LabelStatistics,
) -> None:
    writing.finish(load(), pathlib.Path(directory), plan, infos, statistics)
