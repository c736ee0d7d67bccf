"""Writes a data set as shards, one after the other, and continues where it was stopped."""

import contextlib
import hashlib
import io
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
from dbl_tf.lock import Lock
from dbl_tf.messages import counted, first_lines
from dbl_tf.statistics import LabelStatistics
from pipelines.examples import Examples, LabelledData
from pipelines.record_files import RecordFileError, RecordFiles
from pipelines.shards import layout, records
from pipelines.shards.layout import Plan, ShardsError
from pipelines.shards.manifest import Manifest, ShardInfo, Split, check_file, load_json
from pipelines.shrinking import ImageError, processes

# One record a group, so that each record can be read alone. Images are already compressed. One
# thread, because with several the bytes of a file would depend on which of them was first.
_ARRAY_RECORD_OPTIONS = "group_size:1,uncompressed,max_parallelism:1"
_READ_BACK_AT_ONCE = 16


def write(data: LabelledData, directory: str | os.PathLike, plan: Plan) -> Manifest:
    """Writes all splits of a data set as shards into a folder.

    A complete shard that is there already is kept if it still has the digest with which it was
    written. So a run that was killed continues when it is started again, and ends with the same
    bytes as one that was not.

    Args:
        data: a data set whose images are read by position.
        directory: the folder, which is created if it does not exist.
        plan: the result of `layout.make_plan` for these data.

    Raises:
        ShardsError: the folder holds something else, or an image cannot be shrunk.
        InUseError: another process writes to the folder; the message names it.
        OSError: a file cannot be written, for example on a full disk; no file is left half-written.
    """
    with open_directory(directory, plan) as finished:
        if finished:
            return finished
        total = sum(plan.num_examples.values())
        with terminal.Counter("writing shards", total, "images") as counter:
            shards = [
                write_shard(data.splits[split], directory, plan, split, shard, counter.advance)
                for split, shard in plan.shards()
            ]
        train = data.splits["train"]
        statistics = LabelStatistics.from_labels(train.targets, data.class_names)
        return finish(data, directory, plan, shards, statistics)


@contextlib.contextmanager
def open_directory(directory: str | os.PathLike, plan: Plan) -> Iterator[Manifest | None]:
    """Prepares a folder for the shards of a plan, and removes remains of killed runs.

    No other process can open it until the end of the block.

    Args:
        directory: the folder, which is created if it does not exist.
        plan: the plan of the shards.

    Yields:
        The manifest if all shards have been written already, otherwise None.

    Raises:
        ShardsError: the folder holds something else.
        InUseError: another process has opened the folder; the message names it.
    """
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = directory / layout.UNFINISHED_MANIFEST
    if not unfinished.exists() and not (directory / layout.MANIFEST).exists():
        # The folder may hold remains of a run that was killed while it wrote the first file.
        others = [path.name for path in directory.iterdir()]
        if any(
            name != Lock.NAME
            and (
                (target := atomic.target_name(name)) == name
                or not target.startswith(unfinished.name)
            )
            for name in others
        ):
            raise ShardsError(
                f"{directory} is not empty and holds no shards; choose another folder"
            )
    with Lock(directory) as lock:
        lock.acquire()
        yield _prepare(directory, plan)


def _prepare(directory: pathlib.Path, plan: Plan) -> Manifest | None:
    unfinished = directory / layout.UNFINISHED_MANIFEST
    if (directory / layout.MANIFEST).exists():
        finished = Manifest.load(directory)
        _check_plan(directory, finished.plan.to_json(), plan)
        if problems := find_problems(directory, finished, content=False):
            raise ShardsError(
                f"{directory} was finished and has been damaged since:\n{first_lines(problems)}"
            )
        _remove_unfinished(directory, plan)
        return finished
    atomic.remove_incomplete(directory)
    if unfinished.exists():
        _check_plan(directory, load_json(unfinished), plan)
    else:
        _write_bytes(unfinished, json.dumps(plan.to_json(), ensure_ascii=False).encode())
    return None


def write_shard(
    examples: Examples,
    directory: str | os.PathLike,
    plan: Plan,
    split: str,
    shard: int,
    progress: Callable[[int], None] = lambda _: None,
) -> ShardInfo:
    """Writes one shard, or keeps the one that is there already.

    A kept shard must have the digest that lies next to it; otherwise it is written again, with a
    warning. The digest is computed before the records are read back and compared with those that
    were written, so that it stands for these.

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
    digest_path = path.with_name(path.name + layout.DIGEST_SUFFIX)
    num_records = len(plan.positions(split, shard))
    if path.exists():
        info = ShardInfo.of(path, records=num_records)
        if _is_written(info, digest_path):
            _check_kept_shard(path, plan, examples, split, shard)
            progress(num_records)
            return info
        logging.warning(
            "%s is not the shard that was written: its digest differs from that in %s. It is "
            "written again",
            path,
            digest_path.name,
        )
    digest = hashlib.sha256()

    def passed_on() -> Iterator[bytes]:
        for record in _records(plan, examples, split, shard):
            _add(digest, record)
            yield record
            progress(1)

    with _naming_failures(path), atomic.replacing(path) as tmp_path:
        _write_records(plan.record_format, tmp_path, passed_on())
        info = ShardInfo.of(tmp_path, name=path.name, records=num_records)
        if _digest_of_records(tmp_path, plan.record_format) != digest.digest():
            raise OSError("what is read back is not what was written")
        # Before the shard has its name, so that no shard is without its digest.
        with atomic.replacing(digest_path) as tmp_digest_path:
            tmp_digest_path.write_bytes(_digest_line(info))
    return info


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
        labels = io.BytesIO()
        scipy.sparse.save_npz(labels, layout.canonical_labels(examples.targets[order]))
        names = json.dumps([examples.names[i] for i in order], ensure_ascii=False)
        splits[split] = Split(
            shards=tuple(by_name[plan.shard_name(split, k)] for k in range(plan.num_shards[split])),
            labels=_write_bytes(directory / layout.labels_name(split), labels.getvalue()),
            names=_write_bytes(directory / layout.names_name(split), records.encode_name(names)),
        )
    with _naming_failures(directory / layout.STATISTICS):
        statistics.save(directory / layout.STATISTICS)
    finished = Manifest(plan, splits, ShardInfo.of(directory / layout.STATISTICS))
    _write_bytes(directory / layout.MANIFEST, finished.dumps().encode())
    _remove_unfinished(directory, plan)
    logging.info("%s: %s", directory, counted(len(shards), "shard"))
    return finished


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
    found = (check_file(directory, info, content=content) for info in files)
    return [problem for problem in found if problem]


def _remove_unfinished(directory: pathlib.Path, plan: Plan) -> None:
    """Removes what only shards that are not finished have next to them."""
    for split, shard in plan.shards():
        name = plan.shard_name(split, shard) + layout.DIGEST_SUFFIX
        (directory / name).unlink(missing_ok=True)
    (directory / layout.UNFINISHED_MANIFEST).unlink(missing_ok=True)


def _check_plan(directory: pathlib.Path, found: object, plan: Plan) -> None:
    wanted = plan.to_json()
    if found == wanted:
        return
    found = found if isinstance(found, dict) else {}
    if found.get("format") in layout.FORMATS_WITHOUT_IDENTITY:
        raise ShardsError(
            f"{directory} holds unfinished shards of an earlier version, of format "
            f"{found['format']}; finish them with it, or choose another folder"
        )
    names = [key for key in wanted if found.get(key) != wanted[key]]
    raise ShardsError(
        f"{directory} holds shards of other data or with other settings; choose another folder. "
        f"What differs: {', '.join(names)}"
    )


def _is_written(info: ShardInfo, digest_path: pathlib.Path) -> bool:
    try:
        return digest_path.read_bytes() == _digest_line(info)
    except FileNotFoundError:
        return False


def _digest_line(info: ShardInfo) -> bytes:
    """Returns the content of a digest file, as `sha256sum` writes it."""
    return f"{info.sha256}  {info.file}\n".encode()


def _digest_of_records(path: pathlib.Path, record_format: str) -> bytes:
    """Reads all records of a shard, and returns the digest of `_add`."""
    files = RecordFiles([path], record_format)
    digest = hashlib.sha256()
    for start in range(0, len(files), _READ_BACK_AT_ONCE):
        end = min(start + _READ_BACK_AT_ONCE, len(files))
        for record in files.fetch(np.arange(start, end)):
            _add(digest, record)
    return digest.digest()


def _add(digest: "hashlib._Hash", record: bytes) -> None:
    digest.update(len(record).to_bytes(8, "little"))
    digest.update(record)


def _check_kept_shard(
    path: pathlib.Path, plan: Plan, examples: Examples, split: str, shard: int
) -> None:
    """Compares the first record of a shard that is kept with the data.

    The plan depends on names and labels only, and the same names may stand for other images now.
    """
    found = RecordFiles([path], plan.record_format).fetch(np.zeros(1, np.int64))[0]
    if found != next(_records(plan, examples, split, shard, count=1)):
        raise ShardsError(
            f"{path} holds other images than the data; choose another folder, or delete it"
        )


def _records(
    plan: Plan, examples: Examples, split: str, shard: int, count: int | None = None
) -> Iterator[bytes]:
    """Yields the records of a shard, or the first `count` of them."""
    positions = plan.positions(split, shard)[:count]
    labels = layout.canonical_labels(examples.labels[positions])
    names = [examples.names[i] for i in positions]
    unknown = None
    if examples.unknown is not None:
        unknown = layout.canonical_labels(examples.unknown[positions])
    first, _ = plan.bounds(split, shard)
    identities = records.identities(split, names, labels, unknown, first=first)
    for row, image in enumerate(_encoded(plan, examples, positions)):
        yield records.serialize(
            image,
            names[row],
            _classes(labels, row),
            None if unknown is None else _classes(unknown, row),
            identities[row],
        )


def _classes(labels: scipy.sparse.csr_array, row: int) -> np.ndarray:
    return labels.indices[labels.indptr[row] : labels.indptr[row + 1]]


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


def _write_bytes(path: pathlib.Path, content: bytes) -> ShardInfo:
    """Writes a file as a whole or not at all."""
    with _naming_failures(path), atomic.replacing(path) as tmp_path:
        tmp_path.write_bytes(content)
    return ShardInfo(path.name, len(content), hashlib.sha256(content).hexdigest())


@contextlib.contextmanager
def _naming_failures(path: pathlib.Path) -> Iterator[None]:
    """Says of an `OSError` which file could not be written, and what to do."""
    try:
        yield
    except (OSError, RecordFileError) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.filename == str(path):
            reason = error.strerror or reason
        raise OSError(
            f"cannot write {path}: {reason}. Nothing of it is left. Once the cause is fixed, the "
            "same command continues with the shards that are complete"
        ) from error
