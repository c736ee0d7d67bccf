"""Measures images per second from shards, by position and as streams, with and without re-sampling.

    python -m benchmarks.shards --examples=FILE.csv --records=100000 --output=shards.json

Repeats the train photographs of a table until there are so many records, writes them as ArrayRecord
and as TFRecord shards into a scratch folder, and takes training batches from both, decoded and
augmented. It counts within the pipeline how many images are in batches, how many were decoded, and
how many records were read. A stream reads whole windows, and may not use up the last one. The rate
leaves out the first batch, which comes from a stream only when its first window is full.

What it costs to compare the identity of every record is measured without decoding: all records are
read as files hold them, and as examples, in turn.
"""

import dataclasses
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf
from absl import flags

from benchmarks import measuring
from pipelines import images, inputs, record_files, record_formats, sampling
from pipelines.examples import Examples, LabelledData
from pipelines.runs.config import DataConfig
from pipelines.shards import layout, reading, writing

_BLOCK = 32
_REPEATS = 5


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    return [
        flags.DEFINE_string("examples", None, "Table of photographs.", required=True),
        flags.DEFINE_integer("records", 100_000, "Images in the shards.", lower_bound=1),
        flags.DEFINE_integer("batches", 200, "Batches timed after the first.", lower_bound=1),
        flags.DEFINE_integer("batch_size", 32, "Images in a batch.", lower_bound=1),
        flags.DEFINE_integer("image_size", 224, "Side of the images.", lower_bound=1),
        flags.DEFINE_string("scratch_dir", None, "Where the shards are made; needs room."),
    ]


def measure(
    examples: str,
    records: int,
    batches: int,
    batch_size: int,
    image_size: int,
    scratch_dir: str | None,
) -> dict[str, Any]:
    """Writes the shards and reads them in every way."""
    with tempfile.TemporaryDirectory(dir=scratch_dir) as scratch:
        folder = pathlib.Path(scratch)
        data = repeated(
            DataConfig.of(dataset="table", examples=examples, cache_dir=str(folder)).load_data(),
            records,
        )
        written = {name: write(data, folder / name, name) for name in record_formats.FORMATS}
        read = {
            f"{record_format}, {sampler}": read_batches(
                folder / record_format, sampler, batches, batch_size, image_size
            )
            for record_format in record_formats.FORMATS
            for sampler in sampling.STREAM_SAMPLERS
        }
        identities = {name: compare_identities(folder / name) for name in record_formats.FORMATS}
    return {
        "records": records,
        "batch_size": batch_size,
        "written": written,
        "read": read,
        "identities": identities,
    }


def repeated(data: LabelledData, size: int) -> LabelledData:
    """The train examples of a data set, again and again."""
    train = data.splits["train"]
    count = len(train)
    examples = Examples(
        names=[f"{train.names[i % count]} {i // count}" for i in range(size)],
        labels=scipy.sparse.csr_array(train.labels[np.arange(size) % count]),
        read=lambda position: train.read(position % count),
    )
    return LabelledData(data.class_names, {"train": examples})


def write(data: LabelledData, directory: pathlib.Path, record_format: str) -> dict[str, Any]:
    """Writes the shards; seconds and bytes."""
    start = time.perf_counter()
    manifest = writing.write(data, directory, layout.make_plan(data, record_format=record_format))
    sizes = [shard.bytes for shard in manifest.splits["train"].shards]
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "shards": len(sizes), "bytes": sum(sizes)}


def read_batches(
    directory: pathlib.Path, sampler: str, num_timed: int, batch_size: int, image_size: int
) -> dict[str, Any]:
    """Takes training batches from shards."""
    with tf.device("CPU"):
        num_read, num_decoded = tf.Variable(0, dtype=tf.int64), tf.Variable(0, dtype=tf.int64)
    start = time.perf_counter()
    train = _counting_reads(reading.load(directory).splits["train"], num_read)
    num_batches = num_timed + 1
    read_for_training = images.read_for_training
    # The pipeline has no place to count at: nobody but a measurement wants to know.
    images.read_for_training = _counted(read_for_training, num_decoded)
    try:
        batches = iter(_batches(train, sampler, num_batches, batch_size, image_size))
        used = len(next(batches)[0])
        first = time.perf_counter() - start
        start = time.perf_counter()
        for batch, _ in batches:
            used += len(batch)
        seconds = time.perf_counter() - start
    finally:
        images.read_for_training = read_for_training
    return {
        "seconds_to_first_batch": first,
        "images_per_second": num_timed * batch_size / seconds,
        "images_used": used,
        "images_decoded": int(num_decoded),
        "records_read": int(num_read),
    }


def compare_identities(directory: pathlib.Path) -> dict[str, float]:
    """Microseconds a record of all train records, alone and as examples; the best of each."""
    train = reading.load(directory).splits["train"]
    paths = list(dict.fromkeys(train.files))
    if train.is_stream:
        alone = tf.data.TFRecordDataset(sorted(paths)).batch(_BLOCK)
    else:
        files = record_files.RecordFiles(paths, "array_record")
        positions = tf.data.Dataset.range(len(files)).batch(_BLOCK)
        alone = positions.map(files.read, num_parallel_calls=tf.data.AUTOTUNE)
    datasets = {"alone": alone, "as_examples": train.encoded().batch(_BLOCK)}
    seconds = {name: float("inf") for name in datasets}
    for _ in range(_REPEATS):
        for name, dataset in datasets.items():
            start = time.perf_counter()
            for _ in dataset:
                pass
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    return {name: 1e6 * value / len(train) for name, value in seconds.items()}


def describe(result: dict[str, Any]) -> str:
    """Formats the figures for people."""
    lines = [f"{result['records']} records, batches of {result['batch_size']}"]
    for name, figures in result["written"].items():
        rate = result["records"] / figures["seconds"]
        lines.append(
            f"  {name}: written in {figures['seconds']:.1f} s, {rate:.0f} images/s; "
            f"{figures['shards']} shards, {figures['bytes'] / 1e6:.0f} MB"
        )
    lines.append(f"{'':26}{'images/s':>10}{'used':>10}{'decoded':>10}{'read':>10}{'first, s':>10}")
    for name, figures in result["read"].items():
        counts = [figures[key] for key in ("images_used", "images_decoded", "records_read")]
        lines.append(
            f"  {name:24}{figures['images_per_second']:10.1f}"
            + "".join(f"{count:10d}" for count in counts)
            + f"{figures['seconds_to_first_batch']:10.1f}"
        )
    for name, microseconds in result["identities"].items():
        lines.append(
            f"  {name}: {microseconds['alone']:.0f} µs a record alone, "
            f"{microseconds['as_examples']:.0f} µs compared with its identity"
        )
    return "\n".join(lines)


def _batches(
    train: Examples, sampler: str, num_batches: int, batch_size: int, image_size: int
) -> tf.data.Dataset:
    how = {"image_size": image_size, "seed": 0}
    if not train.is_stream:
        indices = sampling.SAMPLERS[sampler](train.labels, batch_size, seed=0)
        return inputs.training_batches(train, indices.take(num_batches), **how)
    if sampler == "uniform":
        draws = sampling.uniform_stream(train.stream(0), len(train), seed=0)
    else:
        counts = train.labels.sum(axis=0, dtype=np.int64)
        draws = sampling.class_aware_stream(train.stream(0), counts, len(train), seed=0)
    draws = draws.take(num_batches * batch_size)
    return inputs.streamed_batches(draws, batch_size, **how)


def _counting_reads(examples: Examples, counter: tf.Variable) -> Examples:
    if not examples.is_stream:
        return dataclasses.replace(examples, read=_counted(examples.read, counter, by_size=True))
    passed = _counted(lambda example: example, counter)
    return dataclasses.replace(examples, stream=lambda start: examples.stream(start).map(passed))


def _counted(
    function: Callable[..., Any], counter: tf.Variable, *, by_size: bool = False
) -> Callable[..., Any]:
    def call(argument: Any, *others: Any, **options: Any) -> Any:
        number = tf.size(argument, tf.int64) if by_size else tf.constant(1, tf.int64)
        with tf.control_dependencies([counter.assign_add(number)]):
            return function(argument, *others, **options)

    return call


if __name__ == "__main__":
    measuring.run("shards", define_flags, measure, describe)
