"""Reads the shards that `pipelines.write_shards` wrote."""

import io
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.sparse
import tensorflow as tf

from dbl_tf.messages import first_lines
from pipelines.examples import Examples, LabelledData
from pipelines.record_files import open_records
from pipelines.shards import layout
from pipelines.shards.layout import Manifest, ShardsError

# A stream reads so many shards at once, and in turn so many records of each.
_SHARDS_AT_ONCE = 8
_RECORDS_IN_TURN = 16


def load(
    shards_dir: str | os.PathLike, *, only_splits: Sequence[str] | None = None
) -> LabelledData:
    """Opens a folder of shards and checks it before any work is done.

    ArrayRecord shards are read by position, and TFRecord shards as a stream that reads eight shards
    at a time in turn. The checks compare the sizes of the shards and the contents of all other
    files. `python -m pipelines.write_shards --verify` also finds a shard of the right size whose
    content has changed.

    Args:
        shards_dir: the folder of the shards.
        only_splits: the splits to open; None for all.

    Raises:
        ShardsError: the folder or a file in it cannot be used; the message names the file.
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
    problems = [layout.check_file(directory, manifest.statistics, content=True)]
    for split in needed.values():
        problems += [layout.check_file(directory, info, content=False) for info in split.shards]
        problems += [
            layout.check_file(directory, info, content=True) for info in (split.labels, split.names)
        ]
    if problems := [problem for problem in problems if problem]:
        raise ShardsError(
            f"the shards of {directory} cannot be used:\n{first_lines(problems)}\nWrite them again "
            "into an empty folder, or copy these files from where the shards came from"
        )
    splits = {name: _open(directory, manifest, name) for name in needed}
    return LabelledData(
        manifest.plan.class_names,
        splits,
        manifest.plan.flip_probability,
        origin=f"{manifest.plan.record_format} shards",
    )


def _open(directory: pathlib.Path, manifest: Manifest, name: str) -> Examples:
    split = manifest.splits[name]
    labels = scipy.sparse.load_npz(io.BytesIO((directory / split.labels.file).read_bytes()))
    labels, unknown = _positive_and_unknown(scipy.sparse.csr_array(labels))
    names = json.loads((directory / split.names.file).read_bytes())
    counts = [shard.records or 0 for shard in split.shards]
    paths = [os.fspath(directory / shard.file) for shard in split.shards]
    if not labels.shape[0] == len(names) == sum(counts):
        raise ShardsError(
            f"{directory}: {split.labels.file} has {labels.shape[0]} rows, {split.names.file} "
            f"{len(names)} names and the shards {sum(counts)} records"
        )
    files = np.repeat(np.array(paths, object), counts)
    if manifest.plan.record_format == "tfrecord":
        order = _stream_order(counts)
        return Examples(
            names=[names[i] for i in order],
            labels=labels[order],
            files=files[order].tolist(),
            stream=lambda start: _stream(
                paths, counts, labels.shape[1], start, has_unknown=unknown is not None
            ),
            unknown=None if unknown is None else unknown[order],
        )
    num_records, read = open_records(paths, manifest.plan.record_format)
    if num_records != len(names):
        raise ShardsError(
            f"the {name} shards of {directory} hold {num_records} records, but {layout.MANIFEST} "
            f"says {len(names)}"
        )
    return Examples(names, labels, read, files.tolist(), reads_blocks=True, unknown=unknown)


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
    num_classes: int,
    start: int,
    *,
    has_unknown: bool,
) -> tf.data.Dataset:
    """Reads groups of shards one after the other, and the shards of a group in turn."""
    sizes = np.add.reduceat(counts, np.arange(0, len(counts), _SHARDS_AT_ONCE))
    ends = np.cumsum(sizes)
    first = min(int(np.searchsorted(ends, start, side="right")), len(sizes) - 1)
    skipped = start - (int(ends[first - 1]) if first else 0)
    features = {
        layout.IMAGE_FEATURE: tf.io.FixedLenFeature((), tf.string),
        layout.LABELS_FEATURE: tf.io.VarLenFeature(tf.int64),
    }
    if has_unknown:
        features[layout.UNKNOWN_FEATURE] = tf.io.VarLenFeature(tf.int64)

    def parse(records: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(records, features)

        def has_class(classes: tf.SparseTensor) -> tf.Tensor:
            cells = tf.stack([classes.indices[:, 0], classes.values], axis=1)
            shape = tf.stack([tf.size(records, tf.int64), num_classes])
            found = tf.scatter_nd(cells, tf.ones_like(classes.values, tf.int32), shape) > 0
            return tf.ensure_shape(found, (None, num_classes))

        labels = has_class(parsed[layout.LABELS_FEATURE])
        if has_unknown:
            unknown = has_class(parsed[layout.UNKNOWN_FEATURE])
            labels = tf.cast(labels, tf.int8) - tf.cast(unknown, tf.int8)
        return {"image": parsed[layout.IMAGE_FEATURE], "labels": labels}

    with tf.device("CPU"):
        table = tf.constant(paths)

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

    return (
        tf.data.Dataset.range(first, len(sizes))
        .flat_map(of_group)
        .skip(skipped)
        .batch(_RECORDS_IN_TURN)
        .map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .unbatch()
        .apply(tf.data.experimental.assert_cardinality(int(ends[-1]) - start))
    )
