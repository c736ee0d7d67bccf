"""The layout of a data set in record files, called shards.

A folder of shards holds for each split, for example for "train" in ten shards:

* `train-00003-of-00010.array_record` or `….tfrecord`: the images, with their original bytes or,
  with `Plan.shrinking`, as small JPEGs. A record is a `tf.train.Example`, which
  `pipelines.shards.records` describes.
* `train-labels.npz`, `train-names.json`: sparse labels and names, in the order of the shards.

Where labels are unknown, `train-labels.npz` holds them as −1 of int8.

It also holds `statistics.json`, the `LabelStatistics` of train, and `shards.json`, the manifest,
which is written last and gives sizes and digests of all other files. While shards are written, the
digest of each finished one lies next to it, in the form of `sha256sum`, and `lock` names the
process that writes.

The examples of train are shuffled once by a seed before they are divided into shards of nearly
equal size, so that a stream of any part of them is well mixed. Other splits keep their order.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse

from pipelines.examples import LabelledData
from pipelines.record_formats import FORMATS
from pipelines.shards import EXAMPLES_PER_SHARD
from pipelines.shrinking import Settings

MANIFEST = "shards.json"
UNFINISHED_MANIFEST = "shards.unfinished.json"
STATISTICS = "statistics.json"

DIGEST_SUFFIX = ".sha256"

FORMAT = "dbl_tf.Shards/3"
# Without and with unknown labels; `pipelines.shards.manifest` says what else differs.
FORMATS_WITHOUT_IDENTITY = ("dbl_tf.Shards/1", "dbl_tf.Shards/2")


class ShardsError(ValueError):
    """A folder of shards cannot be used, or not for these data."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The division of a data set into shards, which depends on the data and a few numbers.

    Attributes:
        record_format: one of `record_formats.FORMATS`.
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
        start, end = self.bounds(split, shard)
        return self.order(split)[start:end]

    def bounds(self, split: str, shard: int) -> tuple[int, int]:
        """Returns the first place of a shard in the order of its split, and the one after it."""
        size, count = self.num_examples[split], self.num_shards[split]
        return size * shard // count, size * (shard + 1) // count

    def to_json(self) -> dict[str, Any]:
        """Returns the plan in the form that the manifest holds."""
        content = {"format": FORMAT, **json.loads(json.dumps(dataclasses.asdict(self)))}
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


def labels_name(split: str) -> str:
    """Returns the name of the file of the labels of a split."""
    return f"{split}-labels.npz"


def names_name(split: str) -> str:
    """Returns the name of the file of the names of a split."""
    return f"{split}-names.json"
