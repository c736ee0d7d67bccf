"""Reads the shards that `pipelines.write_shards` wrote."""

import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse
import tensorflow as tf
from absl import logging

from dbl_tf.messages import first_lines
from pipelines.examples import Examples, LabelledData
from pipelines.inputs import dense_labels
from pipelines.record_files import RecordFiles
from pipelines.shards import records
from pipelines.shards.layout import MANIFEST, ShardsError
from pipelines.shards.manifest import Manifest, check_file

# A stream reads so many shards at once, and in turn so many records of each.
_SHARDS_AT_ONCE = 8
_RECORDS_IN_TURN = 16


def load(
    shards_dir: str | os.PathLike,
    *,
    only_splits: Sequence[str] | None = None,
    check_content: bool = False,
    open_at_once: bool = True,
) -> LabelledData:
    """Opens a folder of shards and checks it before any work is done.

    ArrayRecord shards are read by position, and TFRecord shards as a stream that reads eight shards
    at a time in turn; single records of them can be read by position too. The checks compare the
    sizes of the shards and the contents of all other files. Every record that is read later is
    compared with the identity that it should have; see `pipelines.shards.records`.

    Args:
        shards_dir: the folder of the shards.
        only_splits: the splits to open; None for all.
        check_content: whether the contents of the shards are read and compared too.
        open_at_once: whether an ArrayRecord shard that cannot be opened is an error now, and not
            when one of its records is read.

    Raises:
        ShardsError: the folder or a file in it cannot be used; the message names the file.
        RecordFileError: a shard of the right size cannot be opened.
    """
    directory = pathlib.Path(shards_dir)
    manifest = Manifest.load(directory)
    if absent := [name for name in only_splits or () if name not in manifest.splits]:
        hint = "; --test_fraction=0.2 sets a fifth of train aside" if "test" in absent else ""
        raise ShardsError(
            f"{directory} has no split {' and no '.join(absent)}; there are "
            f"{', '.join(manifest.splits)}{hint}"
        )
    needed = {name: manifest.splits[name] for name in only_splits or manifest.splits}
    problems = [check_file(directory, manifest.statistics, content=True)]
    for split in needed.values():
        problems += [check_file(directory, info, content=check_content) for info in split.shards]
        problems += [
            check_file(directory, info, content=True) for info in (split.labels, split.names)
        ]
    if problems := [problem for problem in problems if problem]:
        raise ShardsError(
            f"the shards of {directory} cannot be used:\n{first_lines(problems)}\nWrite them again "
            "into an empty folder, or copy these files from where the shards came from"
        )
    if not manifest.has_identities:
        logging.warning(
            "the shards of %s were written by an earlier version: their records say nothing of the "
            "image and the labels that they hold, so that exchanged shards are not noticed",
            directory,
        )
    splits = {name: _open(directory, manifest, name, open_at_once) for name in needed}
    return LabelledData(
        manifest.plan.class_names,
        splits,
        manifest.plan.flip_probability,
        origin=f"{manifest.plan.record_format} shards",
    )


def by_position(examples: Examples) -> Examples:
    """Returns a stream that reads the records of its examples, and no others, by position.

    It takes longer than the stream of the shards, which reads through damaged records too.
    """
    labels_at = dense_labels(examples.targets)

    def read(positions: tf.Tensor) -> dict[str, tf.Tensor]:
        labels = labels_at(positions)
        return {
            "image": examples.read(positions),
            "labels": labels if examples.unknown is not None else tf.cast(labels, tf.bool),
        }

    def stream(start: int) -> tf.data.Dataset:
        positions = tf.data.Dataset.range(start, len(examples)).batch(_RECORDS_IN_TURN)
        return positions.map(
            read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
        ).unbatch()

    return dataclasses.replace(examples, stream=stream)


def _open(directory: pathlib.Path, manifest: Manifest, name: str, open_at_once: bool) -> Examples:
    split, plan = manifest.splits[name], manifest.plan
    labels = scipy.sparse.load_npz(io.BytesIO((directory / split.labels.file).read_bytes()))
    labels, unknown = _positive_and_unknown(scipy.sparse.csr_array(labels))
    names = json.loads((directory / split.names.file).read_text("utf-8", "surrogateescape"))
    counts = [shard.records or 0 for shard in split.shards]
    paths = [os.fspath(directory / shard.file) for shard in split.shards]
    if not labels.shape[0] == len(names) == sum(counts):
        raise ShardsError(
            f"{directory}: {split.labels.file} has {labels.shape[0]} rows, {split.names.file} "
            f"{len(names)} names and the shards {sum(counts)} records"
        )
    is_stream = plan.record_format == "tfrecord"
    files = RecordFiles(
        paths, plan.record_format, None if open_at_once and not is_stream else counts
    )
    if len(files) != len(names):
        raise ShardsError(
            f"the {name} shards of {directory} hold {len(files)} records, but {MANIFEST} "
            f"says {len(names)}"
        )
    parse = records.parser(
        labels.shape[1],
        paths,
        np.cumsum(counts).tolist(),
        has_unknown=unknown is not None,
        expected=(
            records.identities(name, names, labels, unknown) if manifest.has_identities else None
        ),
    )

    def read(places: tf.Tensor) -> tf.Tensor:
        found = files.read(places)
        if not is_stream and not manifest.has_identities:
            return found  # the records of the first formats are the images themselves
        images = parse(tf.reshape(found, [-1]), tf.reshape(places, [-1]))["image"]
        return tf.ensure_shape(tf.reshape(images, tf.shape(places)), places.shape)

    of_place = np.repeat(np.array(paths, object), counts)
    examples = Examples(names, labels, read, of_place.tolist(), reads_blocks=True, unknown=unknown)
    if not is_stream:
        return examples
    order = _stream_order(counts)
    return dataclasses.replace(
        examples.take(order), stream=lambda start: _stream(paths, counts, order, parse, start)
    )


def _positive_and_unknown(
    labels: scipy.sparse.csr_array,
) -> tuple[scipy.sparse.csr_array, scipy.sparse.csr_array | None]:
    """Separates the labels of a file, in which −1 of int8 is unknown, into two bool CSR."""
    if labels.dtype == bool:
        return labels, None
    return (labels > 0).tocsr(), (labels < 0).tocsr()


def _stream_order(counts: Sequence[int]) -> np.ndarray:
    """Returns the order of the records in a stream, as places counted from shard to shard."""
    shard = np.repeat(np.arange(len(counts)), counts)
    place = np.concatenate([np.arange(count) for count in counts])
    return np.lexsort((shard, place // _RECORDS_IN_TURN, shard // _SHARDS_AT_ONCE))


def _stream(
    paths: Sequence[str],
    counts: Sequence[int],
    order: np.ndarray,
    parse: Callable[[tf.Tensor, tf.Tensor], dict[str, tf.Tensor]],
    start: int,
) -> tf.data.Dataset:
    """Reads groups of shards one after the other, and the shards of a group in turn."""
    sizes = np.add.reduceat(counts, np.arange(0, len(counts), _SHARDS_AT_ONCE))
    ends = np.cumsum(sizes)
    first = min(int(np.searchsorted(ends, start, side="right")), len(sizes) - 1)
    skipped = start - (int(ends[first - 1]) if first else 0)
    with tf.device("CPU"):
        table = tf.constant([os.fsencode(path) for path in paths])
        place_at = tf.constant(order)

    def of_group(group: tf.Tensor) -> tf.data.Dataset:
        first_shard = group * _SHARDS_AT_ONCE
        shards = tf.data.Dataset.from_tensor_slices(
            table[first_shard : first_shard + _SHARDS_AT_ONCE]
        )
        return shards.interleave(
            tf.data.TFRecordDataset,
            cycle_length=_SHARDS_AT_ONCE,
            block_length=_RECORDS_IN_TURN,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )

    found = tf.data.Dataset.range(first, len(sizes)).flat_map(of_group).skip(skipped)
    return (
        tf.data.Dataset.zip(found, tf.data.Dataset.range(start, int(ends[-1])))
        .batch(_RECORDS_IN_TURN)
        .map(
            lambda batch, positions: parse(batch, tf.gather(place_at, positions)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        .unbatch()
        .apply(tf.data.experimental.assert_cardinality(int(ends[-1]) - start))
    )
