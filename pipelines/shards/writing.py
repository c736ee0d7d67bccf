"""Writes a data set as shards, one after the other, and continues where it was stopped."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import scipy.sparse
import tensorflow as tf
from absl import logging
from array_record.python import array_record_module

from dbl_tf import atomic, terminal
from dbl_tf.cores import usable_cores
from dbl_tf.messages import first_lines
from dbl_tf.statistics import LabelStatistics
from pipelines import record_files
from pipelines.examples import Examples, LabelledData
from pipelines.shards import layout
from pipelines.shards.layout import Manifest, Plan, ShardInfo, ShardsError
from pipelines.shrinking import ImageError, processes

# One record a group, so that each record can be read alone. Images are already compressed. One
# thread, because with several the bytes of a file would depend on which of them was first.
_ARRAY_RECORD_OPTIONS = "group_size:1,uncompressed,max_parallelism:1"


def write(data: LabelledData, directory: str | os.PathLike, plan: Plan) -> Manifest:
    """Writes all splits of a data set as shards into a folder.

    A complete shard that is there already is kept. So a run that was killed continues when it is
    started again, and ends with the same bytes as one that was not.

    Args:
        data: a data set whose images are read by position.
        directory: the folder, which is created if it does not exist.
        plan: the result of `layout.make_plan` for these data.

    Raises:
        ShardsError: the folder holds something else, or an image cannot be shrunk.
        OSError: a file cannot be written, for example on a full disk; no file is left half-written.
    """
    finished = open_directory(directory, plan)
    if finished:
        return finished
    total = sum(plan.num_examples.values())
    shards = []
    with terminal.Counter("writing shards", total, "images") as counter:
        for split, shard in plan.shards():
            shards.append(
                write_shard(data.splits[split], directory, plan, split, shard, counter.advance)
            )
    train = data.splits["train"]
    return finish(
        data, directory, plan, shards, LabelStatistics.from_labels(train.targets, data.class_names)
    )


def open_directory(directory: str | os.PathLike, plan: Plan) -> Manifest | None:
    """Prepares a folder for the shards of a plan, and removes remains of killed runs.

    Args:
        directory: the folder, which is created if it does not exist. No other run may write to it.
        plan: the plan of the shards.

    Returns:
        The manifest if all shards have been written already, otherwise None.

    Raises:
        ShardsError: the folder holds something else.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / layout.MANIFEST).exists():
        manifest = Manifest.load(directory)
        _check_plan(directory, manifest.plan.to_json(), plan)
        problems = find_problems(directory, manifest, content=False)
        if not problems:
            return manifest
        raise ShardsError(
            f"{directory} was finished and has been damaged since:\n{first_lines(problems)}"
        )
    unfinished = directory / layout.UNFINISHED_MANIFEST
    # Without the first file, the folder may only hold remains of a run that was killed writing it.
    if unfinished.exists() or all(
        path.name != (target := atomic.target_name(path.name))
        and target.startswith(unfinished.name)
        for path in directory.iterdir()
    ):
        atomic.remove_incomplete(directory)
    if unfinished.exists():
        _check_plan(directory, layout.load_json(unfinished), plan)
    elif any(directory.iterdir()):
        raise ShardsError(f"{directory} is not empty and holds no shards; choose another folder")
    else:
        _write_text(unfinished, json.dumps(plan.to_json(), ensure_ascii=False))
    return None


def write_shard(
    examples: Examples,
    directory: str | os.PathLike,
    plan: Plan,
    split: str,
    shard: int,
    progress: Callable[[int], None] = lambda _: None,
) -> ShardInfo:
    """Writes one shard, or checks the one that is there already.

    Args:
        examples: all examples of the split.
        directory: the folder of the shards, which `open_directory` has prepared.
        plan: the plan of the shards.
        split: the split of the shard.
        shard: the number of the shard.
        progress: a function that is called with the number of images that were just written.

    Raises:
        ShardsError: the shard that is there holds other images.
        OSError: the shard cannot be written; the message names the file.
    """
    path = pathlib.Path(directory, plan.shard_name(split, shard))
    positions = plan.positions(split, shard)
    if path.exists():
        _check_kept_shard(path, plan, examples, positions)
        progress(len(positions))
        return ShardInfo.of(path, len(positions))
    records = _records(plan, examples, positions)

    def counted() -> Iterator[bytes]:
        for record in records:
            yield record
            progress(1)

    info = _write_file(
        path, lambda tmp_path: _write_records(plan.record_format, tmp_path, counted())
    )
    return dataclasses.replace(info, records=len(positions))


def finish(
    data: LabelledData,
    directory: str | os.PathLike,
    plan: Plan,
    shards: Sequence[ShardInfo],
    statistics: LabelStatistics,
) -> Manifest:
    """Writes the files next to the shards, with the manifest last.

    Args:
        data: the data set that has been written.
        directory: the folder of the shards.
        plan: the plan of the shards.
        shards: what the manifest says of all shards, in any order.
        statistics: the statistics of train.

    Raises:
        OSError: a file cannot be written.
    """
    directory = pathlib.Path(directory)
    by_name = {info.file: info for info in shards}
    splits = {}
    for split, examples in data.splits.items():
        order = plan.order(split)
        labels = layout.canonical_labels(examples.targets[order])
        names = json.dumps([examples.names[i] for i in order], ensure_ascii=False)
        splits[split] = layout.Split(
            shards=[
                by_name[plan.shard_name(split, shard)] for shard in range(plan.num_shards[split])
            ],
            labels=_write_file(
                directory / f"{split}-labels.npz", functools.partial(_write_labels, labels=labels)
            ),
            names=_write_text(directory / f"{split}-names.json", names),
        )
    manifest = Manifest(plan, splits, _write_file(directory / layout.STATISTICS, statistics.save))
    _write_text(directory / layout.MANIFEST, manifest.dumps())
    (directory / layout.UNFINISHED_MANIFEST).unlink(missing_ok=True)
    logging.info("%s: %d shards", directory, len(shards))
    return manifest


def find_problems(
    directory: str | os.PathLike, manifest: Manifest, *, content: bool = True
) -> list[str]:
    """Compares all files of a folder of shards with its manifest.

    Args:
        directory: the folder of the shards.
        manifest: the manifest of the folder.
        content: whether every byte is read and compared, and not just the sizes.

    Returns:
        What is wrong, one line for each damaged file.
    """
    files = [manifest.statistics]
    for split in manifest.splits.values():
        files += [*split.shards, split.labels, split.names]
    found = (layout.check_file(directory, info, content=content) for info in files)
    return [problem for problem in found if problem]


def _check_plan(directory: pathlib.Path, found: dict, plan: Plan) -> None:
    wanted = plan.to_json()
    if found == wanted:
        return
    names = [key for key in wanted if found.get(key) != wanted[key]]
    raise ShardsError(
        f"{directory} holds shards of other data or with other settings; choose another folder. "
        f"What differs: {', '.join(names)}"
    )


def _check_kept_shard(
    path: pathlib.Path, plan: Plan, examples: Examples, positions: np.ndarray
) -> None:
    """Compares the first record and the number of records of a shard that is kept with the data.

    The plan depends on names and labels only, and the same names may stand for other images now.
    """
    try:
        if plan.record_format == "array_record":
            count, read = record_files.open_records([path], plan.record_format)
            found = read(tf.constant(0, tf.int64)).numpy() if count else None
        else:  # TensorFlow's own reader compares the checksums of all records too
            records = tf.data.TFRecordDataset(os.fspath(path))
            found = next(records.as_numpy_iterator(), None)
            count = int(records.reduce(np.int64(0), lambda count, _: count + 1))
    except Exception as error:  # the readers raise errors of many types
        raise ShardsError(f"{path} is damaged, delete it: {error}") from error
    wanted = next(_records(plan, examples, positions[:1]))
    if found != wanted or count != len(positions):
        raise ShardsError(
            f"{path} holds other images than the data; choose another folder, or delete it"
        )


def _records(plan: Plan, examples: Examples, positions: np.ndarray) -> Iterator[bytes]:
    encoded = _encoded(plan, examples, positions)
    if plan.record_format == "array_record":
        yield from encoded
        return
    labels = layout.canonical_labels(examples.labels[positions])
    unknown = None
    if examples.unknown is not None:
        unknown = layout.canonical_labels(examples.unknown[positions])
    for row, image in enumerate(encoded):
        name = examples.names[positions[row]]
        features = {
            layout.IMAGE_FEATURE: tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
            layout.NAME_FEATURE: tf.train.Feature(
                bytes_list=tf.train.BytesList(value=[os.fsencode(name)])
            ),
            layout.LABELS_FEATURE: _classes_of(labels, row),
        }
        if unknown is not None:
            features[layout.UNKNOWN_FEATURE] = _classes_of(unknown, row)
        example = tf.train.Example(features=tf.train.Features(feature=features))
        yield example.SerializeToString(deterministic=True)


def _classes_of(labels: scipy.sparse.csr_array, row: int) -> tf.train.Feature:
    classes = labels.indices[labels.indptr[row] : labels.indptr[row + 1]]
    return tf.train.Feature(int64_list=tf.train.Int64List(value=classes))


def _encoded(plan: Plan, examples: Examples, positions: np.ndarray) -> Iterator[bytes]:
    """Yields the images at positions, as files hold them or as small JPEGs."""
    encoded = (
        tf.data.Dataset.from_tensor_slices(positions)
        .map(examples.read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .as_numpy_iterator()
    )
    if plan.shrinking is None:
        yield from encoded
        return
    names = (examples.names[i] for i in positions)
    for name, shrunk in processes.shrink_all(
        zip(names, encoded, strict=True),
        settings=plan.shrinking,
        num_processes=min(usable_cores(), len(positions)),
    ):
        if isinstance(shrunk, ImageError):
            raise ShardsError(f"the image {name} {shrunk}")
        yield shrunk.encoded


def _write_records(record_format: str, path: pathlib.Path, records: Iterable[bytes]) -> None:
    with _failures_as_os_error():
        if record_format == "array_record":
            writer = array_record_module.ArrayRecordWriter(str(path), _ARRAY_RECORD_OPTIONS)
        else:
            writer = tf.io.TFRecordWriter(str(path))
    try:
        for record in records:
            with _failures_as_os_error():
                writer.write(record)
    except BaseException:
        with contextlib.suppress(Exception):
            writer.close()
        raise
    with _failures_as_os_error():
        writer.close()


@contextlib.contextmanager
def _failures_as_os_error() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        raise OSError(str(error)) from error


def _write_labels(path: pathlib.Path, labels: scipy.sparse.csr_array) -> None:
    with open(path, "wb") as file:
        scipy.sparse.save_npz(file, labels)


def _write_text(path: pathlib.Path, text: str) -> ShardInfo:
    return _write_file(path, lambda tmp_path: tmp_path.write_text(text, encoding="utf-8"))


def _write_file(path: pathlib.Path, write_to: Callable[[pathlib.Path], object]) -> ShardInfo:
    """Writes a file as a whole or not at all."""
    try:
        with atomic.replacing(path) as tmp_path:
            write_to(tmp_path)
    except OSError as error:
        reason = error.strerror if error.filename == str(path) else error
        raise OSError(
            f"cannot write {path}: {reason}. Nothing of it is left. Once the cause is fixed, the "
            "same command continues with the shards that are complete"
        ) from error
    return ShardInfo.of(path)
