"""The layout of a data set in record files, called shards.

A folder of shards holds for each split, for example for "train" in ten shards:

* `train-00003-of-00010.array_record` or `….tfrecord`: the images, with their original bytes or,
  with `Plan.shrinking`, as small JPEGs. A
  record of an ArrayRecord file is the image itself; a record of a TFRecord file is a
  `tf.train.Example` with `image/encoded`, `image/name` and `image/labels`, the indices of its
  classes.
* `train-labels.npz`, `train-names.json`: sparse labels and names, in the order of the shards.

Where labels are unknown, `train-labels.npz` holds them as −1 of int8, a `tf.train.Example` has
`image/unknown_labels`, the indices of the classes that are not known of it, and the manifest is of
format 2, which older versions of this program refuse.

It also holds `statistics.json`, the `LabelStatistics` of train, and `shards.json`, the manifest,
which is written last and gives sizes and digests of all other files.

The examples of train are shuffled once by a seed before they are divided into shards of nearly
equal size, so that a stream of any part of them is well mixed. Other splits keep their order.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from pipelines.examples import LabelledData
from pipelines.shards import EXAMPLES_PER_SHARD, FORMATS
from pipelines.shrinking import Settings

MANIFEST = "shards.json"
UNFINISHED_MANIFEST = "shards.unfinished.json"
STATISTICS = "statistics.json"

IMAGE_FEATURE, NAME_FEATURE, LABELS_FEATURE = "image/encoded", "image/name", "image/labels"
UNKNOWN_FEATURE = "image/unknown_labels"

# The second holds unknown labels, which programs that know only the first would take for labels.
_FORMAT, _FORMAT_WITH_UNKNOWN = "dbl_tf.Shards/1", "dbl_tf.Shards/2"


class ShardsError(ValueError):
    """A folder of shards cannot be used, or not for these data."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The division of a data set into shards, which depends on the data and a few numbers.

    Attributes:
        record_format: one of `pipelines.shards.FORMATS`.
        class_names: the names of the C classes.
        flip_probability: the `flip_probability` of the data set.
        shuffle_seed: the seed that orders the train examples.
        num_examples: the number of examples of each split.
        num_shards: the number of shards of each split.
        data_digest: a digest of the names and labels of all examples.
        shrinking: the size and quality of the JPEGs that are made of the images; None for their
            original bytes.
        has_unknown: whether some labels are unknown.
    """

    record_format: str
    class_names: tuple[str, ...]
    flip_probability: float
    shuffle_seed: int
    num_examples: Mapping[str, int]
    num_shards: Mapping[str, int]
    data_digest: str
    shrinking: Settings | None = None
    has_unknown: bool = False

    def shards(self) -> list[tuple[str, int]]:
        """Returns all shards, each as its split and its number."""
        return [(split, k) for split, n in self.num_shards.items() for k in range(n)]

    def shard_name(self, split: str, shard: int) -> str:
        """Returns the file name of a shard."""
        return f"{split}-{shard:05d}-of-{self.num_shards[split]:05d}.{self.record_format}"

    def order(self, split: str) -> np.ndarray:
        """Returns the positions of a split's examples in the order of the shards, int64 (N,)."""
        if split == "train":
            return _shuffled(self.num_examples[split], self.shuffle_seed)
        return np.arange(self.num_examples[split])

    def positions(self, split: str, shard: int) -> np.ndarray:
        """Returns the positions in the data set of the examples of one shard, in their order."""
        size, count = self.num_examples[split], self.num_shards[split]
        return self.order(split)[size * shard // count : size * (shard + 1) // count]

    def to_json(self) -> dict[str, Any]:
        """Returns the plan in the form that the manifest holds."""
        content = {
            "format": _FORMAT_WITH_UNKNOWN if self.has_unknown else _FORMAT,
            **json.loads(json.dumps(dataclasses.asdict(self))),
        }
        del content["has_unknown"]  # which the format says
        if self.shrinking is None:
            del content["shrinking"]  # as in manifests of versions that did not know it
        return content


@functools.lru_cache(maxsize=2)
def _shuffled(size: int, seed: int) -> np.ndarray:
    # The legacy generator, because no version of NumPy changes its stream.
    return np.random.RandomState(seed).permutation(size).astype(np.int64)


def make_plan(
    data: LabelledData,
    *,
    record_format: str = FORMATS[0],
    examples_per_shard: int = EXAMPLES_PER_SHARD,
    shuffle_seed: int = 0,
    shrinking: Settings | None = None,
) -> Plan:
    """Decides how a data set is divided into shards.

    Args:
        data: any data set whose images are read by position.
        record_format: "array_record", which is read by position, or "tfrecord", which is read as a
            stream.
        examples_per_shard: the largest number of examples in one shard.
        shuffle_seed: the seed that orders the train examples, in [0, 2^32).
        shrinking: the size and quality of JPEGs that are made of the images; None keeps their
            bytes.

    Raises:
        ShardsError: a split has no examples, or is read as a stream.
        ValueError: an argument is out of its range.
    """
    if record_format not in FORMATS:
        raise ValueError(f"the format must be one of {', '.join(FORMATS)}; got {record_format!r}")
    if examples_per_shard < 1:
        raise ValueError(f"examples_per_shard must be at least 1; got {examples_per_shard}")
    if not 0 <= shuffle_seed < 2**32:
        raise ValueError(f"shuffle_seed must be in [0, 2^32); got {shuffle_seed}")
    digest = hashlib.sha256()
    for split, examples in data.splits.items():
        if not len(examples):
            raise ShardsError(f"the split {split} has no examples, so there is nothing to write")
        if examples.features is not None:
            raise ShardsError(
                f"the split {split} holds features, and shards hold the bytes of images; features "
                "need no shards, because --features memory-maps its file"
            )
        if examples.is_stream:
            raise ShardsError(
                f"the split {split} is a stream, and shards are written by position: write them "
                "from the data that the stream was made from"
            )
        labels = canonical_labels(examples.targets)
        digest.update(json.dumps([split, list(examples.names)]).encode())
        digest.update(labels.indptr.astype("<i8").tobytes())
        digest.update(labels.indices.astype("<i8").tobytes())
        if examples.num_unknown:
            digest.update(labels.data.tobytes())
    sizes = {split: len(examples) for split, examples in data.splits.items()}
    return Plan(
        record_format=record_format,
        class_names=tuple(data.class_names),
        flip_probability=data.flip_probability,
        shuffle_seed=shuffle_seed,
        num_examples=sizes,
        num_shards={split: -(-size // examples_per_shard) for split, size in sizes.items()},
        data_digest=digest.hexdigest(),
        shrinking=shrinking,
        has_unknown=any(examples.num_unknown for examples in data.splits.values()),
    )


def canonical_labels(labels: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """Returns labels as sorted CSR, which is the same byte by byte for equal labels.

    Args:
        labels: the labels; unknown ones are −1 of int8, as in `Examples.targets`.

    Returns:
        The labels, int8 if some are unknown, otherwise bool.
    """
    has_unknown = labels.dtype == np.int8 and labels.nnz > 0 and labels.data.min() < 0
    labels = scipy.sparse.csr_array(labels, dtype=np.int8 if has_unknown else bool, copy=True)
    labels.sum_duplicates()
    labels.eliminate_zeros()
    return scipy.sparse.csr_array(
        (labels.data, labels.indices.astype(np.int32), labels.indptr.astype(np.int64)), labels.shape
    )


@dataclasses.dataclass(frozen=True)
class ShardInfo:
    """What the manifest says of one file.

    Attributes:
        file: its name.
        bytes: its size.
        sha256: the digest of its content, in hexadecimal digits.
        records: the number of records in it, None if it is not a shard.
    """

    file: str
    bytes: int
    sha256: str
    records: int | None = None

    @classmethod
    def of(cls, path: str | os.PathLike, records: int | None = None) -> "ShardInfo":
        """Computes what the manifest says of a file; reads the whole file."""
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(os.path.basename(path), os.path.getsize(path), digest, records)


@dataclasses.dataclass(frozen=True)
class Split:
    """The files of one split: its shards in their order, its labels and its names."""

    shards: Sequence[ShardInfo]
    labels: ShardInfo
    names: ShardInfo


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a finished folder of shards."""

    plan: Plan
    splits: Mapping[str, Split]
    statistics: ShardInfo

    def dumps(self) -> str:
        """Returns the content of `shards.json`."""
        content = self.plan.to_json()
        content["splits"] = {name: dataclasses.asdict(part) for name, part in self.splits.items()}
        content["statistics"] = dataclasses.asdict(self.statistics)
        return json.dumps(content, ensure_ascii=False, indent=1)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "Manifest":
        """Reads `shards.json`.

        Raises:
            ShardsError: there is no such file, or it is damaged or of another version.
        """
        path = pathlib.Path(directory, MANIFEST)
        if not path.is_file():
            if path.with_name(UNFINISHED_MANIFEST).is_file():
                raise ShardsError(
                    f"{directory} holds shards that were not written to their end; run the command "
                    "that writes them again"
                )
            raise ShardsError(f"{directory} is not a folder of shards: it has no {MANIFEST}")
        content = load_json(path)
        formats = (_FORMAT, _FORMAT_WITH_UNKNOWN)
        if not isinstance(content, dict) or content.get("format") not in formats:
            found = content.get("format") if isinstance(content, dict) else None
            raise ShardsError(
                f"{path} is of format {found!r}; this version reads {' and '.join(formats)}. Write "
                "the shards again with it"
            )
        try:
            splits = {
                name: Split(
                    shards=[ShardInfo(**shard) for shard in part["shards"]],
                    labels=ShardInfo(**part["labels"]),
                    names=ShardInfo(**part["names"]),
                )
                for name, part in content.pop("splits").items()
            }
            statistics = ShardInfo(**content.pop("statistics"))
            content["has_unknown"] = content.pop("format") == _FORMAT_WITH_UNKNOWN
            content["class_names"] = tuple(content["class_names"])
            if "shrinking" in content:
                content["shrinking"] = Settings(**content["shrinking"])
            return cls(Plan(**content), splits, statistics)
        except (KeyError, TypeError, AttributeError) as error:
            raise ShardsError(f"{path} is damaged: {error!r}") from error


def load_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
        ShardsError: the file is not JSON.
    """
    with open(path, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ShardsError(f"{path} is not JSON: {error}") from error


def check_file(directory: str | os.PathLike, info: ShardInfo, *, content: bool) -> str | None:
    """Says what is wrong with a file of the manifest.

    Args:
        directory: the folder of the shards.
        info: what the manifest says of the file.
        content: whether the content of the file is read and compared, and not just its size.

    Returns:
        What is wrong, None if nothing is.
    """
    path = pathlib.Path(directory, info.file)
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return f"{path} was not found"
    if size != info.bytes:
        if not size:
            return f"{path} is empty; it should have {info.bytes} bytes"
        state = "is cut off" if size < info.bytes else "is too long"
        return f"{path} {state}: {size} of {info.bytes} bytes"
    if content and ShardInfo.of(path).sha256 != info.sha256:
        return f"{path} is not the file that {MANIFEST} was written with: its digest differs"
    return None
