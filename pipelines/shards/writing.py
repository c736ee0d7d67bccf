"""Writes a data set as shards, one after the other, and continues where it was stopped."""

import contextlib
import json
import os
import pathlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np
import scipy.sparse
import tensorflow as tf
from absl import logging
from array_record.python import array_record_module

from dbl_tf.statistics import LabelStatistics
from pipelines.examples import Examples, LabelledData
from pipelines.shards import layout
from pipelines.shards.layout import Manifest, Plan, ShardInfo, ShardsError

_TEMPORARY = ".incomplete"
# One record a group, so that a record is read alone; images are compressed as they are. One
# thread, so that the bytes of a file do not depend on which of several was first.
_ARRAY_RECORD_OPTIONS = "group_size:1,uncompressed,max_parallelism:1"


def write(data: LabelledData, directory: str | os.PathLike, plan: Plan) -> Manifest:
    """Writes all splits of a data set as shards into a folder.

    A shard that is there already, whole, is kept, so that a run that was killed goes on when it is
    started again, and ends with the bytes of one that was not.

    Args:
        data: whose images are read by position.
        directory: is made where there is none.
        plan: of `layout.make_plan` for these data.

    Raises:
        ShardsError: the folder holds something else.
        OSError: a file cannot be written, on a full disk for example; none is left half-written.
    """
    finished = open_directory(directory, plan)
    if finished:
        return finished
    total = sum(plan.num_examples.values())
    progress = keras.utils.Progbar(total, unit_name="image")
    shards = []
    for split, shard in plan.shards():
        shards.append(write_shard(data.splits[split], directory, plan, split, shard, progress.add))
    train = data.splits["train"]
    return finish(
        data, directory, plan, shards, LabelStatistics.from_labels(train.labels, data.class_names)
    )


def open_directory(directory: str | os.PathLike, plan: Plan) -> Manifest | None:
    """Makes a folder ready for the shards of a plan.

    Returns:
        The manifest where all has been written already, else None.

    Raises:
        ShardsError: the folder holds something else.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / layout.MANIFEST).exists():
        manifest = Manifest.load(directory)
        _refuse_another(directory, manifest.plan.to_json(), plan)
        problems = find_problems(directory, manifest, content=False)
        if not problems:
            return manifest
        raise ShardsError(
            "\n  ".join([f"{directory} was finished and has been damaged since:", *problems])
        )
    unfinished = directory / layout.UNFINISHED_MANIFEST
    # What a run that was killed has left.
    for path in directory.glob(f"*{_TEMPORARY}"):
        if unfinished.exists() or path.name.startswith(unfinished.name):
            path.unlink()
    if unfinished.exists():
        _refuse_another(directory, layout.load_json(unfinished), plan)
    elif any(directory.iterdir()):
        raise ShardsError(f"{directory} is not empty and holds no shards; choose another folder")
    else:
        content = json.dumps(plan.to_json(), ensure_ascii=False)
        _write_file(unfinished, lambda path: _write_text(path, content))
    return None


def write_shard(
    examples: Examples,
    directory: str | os.PathLike,
    plan: Plan,
    split: str,
    shard: int,
    progress: Callable[[int], None] = lambda _: None,
) -> ShardInfo:
    """Writes one shard, or checks the one that is there.

    Args:
        examples: of the whole split.
        directory: of the shards, ready for the plan.
        plan: of the data set.
        split: of the shard.
        shard: its number.
        progress: is told of images that are done.

    Raises:
        ShardsError: the shard that is there holds other images.
        OSError: it cannot be written; the message names the file.
    """
    path = pathlib.Path(directory, plan.shard_name(split, shard))
    positions = plan.positions(split, shard)
    if path.exists():
        _refuse_other_content(path, plan.record_format, examples, positions)
        progress(len(positions))
        return ShardInfo.of(path, len(positions))
    records = _records(plan.record_format, examples, positions)

    def told() -> Iterator[bytes]:
        for record in records:
            yield record
            progress(1)

    _write_file(path, lambda temporary: _write_records(plan.record_format, temporary, told()))
    return ShardInfo.of(path, len(positions))


def finish(
    data: LabelledData,
    directory: str | os.PathLike,
    plan: Plan,
    shards: Sequence[ShardInfo],
    statistics: LabelStatistics,
) -> Manifest:
    """Writes what lies beside the shards, the manifest last.

    Args:
        data: that was written.
        directory: of the shards.
        plan: of the data set.
        shards: all of them, in any order.
        statistics: of train.

    Raises:
        OSError: a file cannot be written.
    """
    directory = pathlib.Path(directory)
    by_name = {info.file: info for info in shards}
    splits = {}
    for split, examples in data.splits.items():
        order = plan.order(split)
        labels = layout.canonical_labels(examples.labels[order])
        names = json.dumps([examples.names[i] for i in order], ensure_ascii=False)
        splits[split] = layout.Split(
            shards=[
                by_name[plan.shard_name(split, shard)] for shard in range(plan.num_shards[split])
            ],
            labels=_write_file(
                directory / f"{split}-labels.npz",
                lambda path, labels=labels: _write_labels(path, labels),
            ),
            names=_write_file(
                directory / f"{split}-names.json",
                lambda path, names=names: _write_text(path, names),
            ),
        )
    manifest = Manifest(plan, splits, _write_file(directory / layout.STATISTICS, statistics.save))
    _write_file(directory / layout.MANIFEST, lambda path: _write_text(path, manifest.dumps()))
    (directory / layout.UNFINISHED_MANIFEST).unlink(missing_ok=True)
    logging.info("%s: %d shards", directory, len(shards))
    return manifest


def find_problems(
    directory: str | os.PathLike, manifest: Manifest, *, content: bool = True
) -> list[str]:
    """Compares all files of a folder of shards with its manifest.

    Args:
        directory: of the shards.
        manifest: of the folder.
        content: whether every byte is read; else the sizes alone are compared.

    Returns:
        What is wrong, a line for each file.
    """
    files = [manifest.statistics]
    for split in manifest.splits.values():
        files += [*split.shards, split.labels, split.names]
    found = (layout.check_file(directory, info, content=content) for info in files)
    return [problem for problem in found if problem]


def _refuse_another(directory: pathlib.Path, found: dict, plan: Plan) -> None:
    wanted = plan.to_json()
    if found == wanted:
        return
    names = [key for key in wanted if found.get(key) != wanted[key]]
    raise ShardsError(
        f"{directory} holds shards of other data or of another form; choose another folder. What "
        f"differs: {', '.join(names)}"
    )


def _refuse_other_content(
    path: pathlib.Path, record_format: str, examples: Examples, positions: np.ndarray
) -> None:
    """Compares a shard that is kept with the data: its first record, and how many it holds.

    The plan knows names and labels only, and other images may stand under the same names.
    """
    try:
        if record_format == "array_record":
            reader = array_record_module.ArrayRecordReader(os.fspath(path))
            found, count = reader.read([0])[0], reader.num_records()
            reader.close()
        else:
            records = tf.data.TFRecordDataset(os.fspath(path))
            found = next(records.as_numpy_iterator())
            count = int(records.reduce(np.int64(0), lambda count, _: count + 1))
    except Exception as error:  # what readers raise differs with what they meet
        raise ShardsError(f"{path} is no whole {record_format} file: {error}; delete it") from error
    wanted = next(_records(record_format, examples, positions[:1]))
    if found != wanted or count != len(positions):
        raise ShardsError(
            f"{path} holds other images than the data; choose another folder, or delete it"
        )


def _records(record_format: str, examples: Examples, positions: np.ndarray) -> Iterator[bytes]:
    encoded = tf.data.Dataset.from_tensor_slices(positions).map(
        examples.read, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True
    )
    if record_format == "array_record":
        yield from encoded.as_numpy_iterator()
        return
    labels = layout.canonical_labels(examples.labels[positions])
    for row, image in enumerate(encoded.as_numpy_iterator()):
        classes = labels.indices[labels.indptr[row] : labels.indptr[row + 1]]
        name = examples.names[positions[row]]
        features = {
            layout.IMAGE_FEATURE: tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
            layout.NAME_FEATURE: tf.train.Feature(
                bytes_list=tf.train.BytesList(value=[os.fsencode(name)])
            ),
            layout.LABELS_FEATURE: tf.train.Feature(int64_list=tf.train.Int64List(value=classes)),
        }
        example = tf.train.Example(features=tf.train.Features(feature=features))
        yield example.SerializeToString(deterministic=True)


def _write_records(record_format: str, path: str, records: Iterable[bytes]) -> None:
    with _failures_as_os_error():
        if record_format == "array_record":
            writer = array_record_module.ArrayRecordWriter(path, _ARRAY_RECORD_OPTIONS)
        else:
            writer = tf.io.TFRecordWriter(path)
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


def _write_text(path: str, text: str) -> None:
    pathlib.Path(path).write_text(text, encoding="utf-8")


def _write_labels(path: str, labels: scipy.sparse.csr_array) -> None:
    with open(path, "wb") as file:
        scipy.sparse.save_npz(file, labels)


def _write_file(path: pathlib.Path, write_to: Callable[[str], None]) -> ShardInfo:
    """Writes a file beside its name, has it on the disk, and renames it."""
    temporary = f"{path}.{uuid.uuid4().hex}{_TEMPORARY}"
    try:
        write_to(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        for left in (temporary, f"{temporary}.incomplete"):  # the second one is of `save`
            with contextlib.suppress(FileNotFoundError):
                os.unlink(left)
        if isinstance(error, OSError):
            raise OSError(
                f"cannot write {path}: {error}. Nothing of it is left; once that is mended, the "
                "same command goes on with the shards that are whole"
            ) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return ShardInfo.of(path)
