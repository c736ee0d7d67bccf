"""The manifest of a folder of shards: the names, sizes and digests of its files.

`shards.json` is written last. Its formats, of which the first two are read and no more written:

* `dbl_tf.Shards/1`: a record of an ArrayRecord file is the image itself, and no record has an
  identity.
* `dbl_tf.Shards/2`: the same, with unknown labels.
* `dbl_tf.Shards/3`: every record has an identity, and the manifest a digest of its own content.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from dbl_tf import saved_json
from pipelines.record_formats import FORMATS
from pipelines.shards import layout
from pipelines.shards.layout import (
    FORMAT,
    MANIFEST,
    Plan,
    ShardsError,
)
from pipelines.shrinking import Settings

_Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
_REMEDY = "write the shards again into an empty folder, or copy this file from where they came from"


class ShardInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the manifest says of one file.

    Attributes:
        file: its name.
        bytes: its size.
        sha256: the digest of its content, in hexadecimal digits.
        records: the number of records in it, None if it is not a shard.
    """

    file: str
    bytes: saved_json.Count
    sha256: _Sha256
    records: saved_json.Count | None = None

    @classmethod
    def of(
        cls, path: str | os.PathLike, *, name: str | None = None, records: int | None = None
    ) -> "ShardInfo":
        """Computes what the manifest says of a file; reads the whole file.

        Args:
            path: the file.
            name: the name that it is going to have; its own by default.
            records: the number of records in it.
        """
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return cls(name or os.path.basename(path), os.path.getsize(path), digest, records)


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The files of one split: its shards in their order, its labels and its names."""

    shards: tuple[ShardInfo, ...]
    labels: ShardInfo
    names: ShardInfo


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `shards.json`; see `Manifest` and `Plan`."""

    record_format: str
    class_names: tuple[str, ...]
    flip_probability: saved_json.Probability
    shuffle_seed: saved_json.Count
    num_examples: dict[str, saved_json.Count]
    num_shards: dict[str, saved_json.Count]
    data_digest: str
    splits: dict[str, Split]
    statistics: ShardInfo
    has_unknown: bool
    shrinking: Settings | None = None
    has_identities: bool = True


# What the earlier formats do not say of themselves.
_FORMAT = saved_json.Format(
    FORMAT.partition("/")[0],
    "manifest of shards",
    _Content,
    _REMEDY,
    version=3,
    migrations={
        1: lambda fields: {"has_unknown": False, **fields},
        2: lambda fields: {"has_unknown": True, "has_identities": False, **fields},
    },
    first_with_digest=3,
)


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a finished folder of shards.

    Attributes:
        plan: the division of the data set into shards.
        splits: the files of each split.
        statistics: the file of the statistics of train.
        has_identities: whether every record has an identity.
    """

    plan: Plan
    splits: Mapping[str, Split]
    statistics: ShardInfo
    has_identities: bool = True

    def dumps(self) -> str:
        """Returns the content of `shards.json`."""
        content = self.plan.to_json()
        content["splits"] = msgspec.to_builtins(self.splits)
        content["statistics"] = msgspec.to_builtins(self.statistics)
        del content[saved_json.FORMAT]
        return json.dumps(_FORMAT.document(content), ensure_ascii=False, indent=1)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "Manifest":
        """Reads `shards.json`.

        Raises:
            ShardsError: there is no such file, or it is damaged or of another version.
        """
        path = pathlib.Path(directory, MANIFEST)
        if not path.is_file():
            if path.with_name(layout.UNFINISHED_MANIFEST).is_file():
                raise ShardsError(
                    f"{directory} holds shards that were not written to their end; run the command "
                    "that writes them again"
                )
            raise ShardsError(f"{directory} is not a folder of shards: it has no {MANIFEST}")
        try:
            content = _FORMAT.read(path)
        except ValueError as error:
            raise ShardsError(str(error)) from error
        plan = Plan(
            record_format=content.record_format,
            class_names=content.class_names,
            flip_probability=content.flip_probability,
            shuffle_seed=content.shuffle_seed,
            num_examples=content.num_examples,
            num_shards=content.num_shards,
            data_digest=content.data_digest,
            shrinking=content.shrinking,
            has_unknown=content.has_unknown,
        )
        manifest = cls(plan, content.splits, content.statistics, content.has_identities)
        if problem := next(manifest._contradictions(), None):
            raise ShardsError(f"{path} {problem}; {_REMEDY}")
        return manifest

    def _contradictions(self) -> Iterator[str]:
        """Yields where the files are not those of the plan, whose names are plain."""
        plan = self.plan
        if plan.record_format not in FORMATS:
            yield f"gives the record format {plan.record_format!r}, none of {', '.join(FORMATS)}"
            return
        if not (set(plan.num_examples) == set(plan.num_shards) == set(self.splits)):
            yield "does not list the same splits everywhere"
            return
        for name, split in self.splits.items():
            if not name or name.startswith(".") or any(sign in name for sign in "/\\:\0"):
                yield f"has a split {name!r}, which is no plain name"
                return
            size, count = plan.num_examples[name], plan.num_shards[name]
            if len(split.shards) != count or not 0 < count <= size:
                yield f"lists {len(split.shards)} shards of {name} in place of {count}"
                return
            named = [(shard, plan.shard_name(name, k)) for k, shard in enumerate(split.shards)]
            named += [
                (split.labels, layout.labels_name(name)),
                (split.names, layout.names_name(name)),
            ]
            yield from _misnamed(named)
            for k, shard in enumerate(split.shards):
                start, end = plan.bounds(name, k)
                if shard.records != end - start:
                    yield f"gives {shard.file} {shard.records} records in place of {end - start}"
        yield from _misnamed([(self.statistics, layout.STATISTICS)])


def _misnamed(named: Sequence[tuple[ShardInfo, str]]) -> Iterator[str]:
    for info, name in named:
        if info.file != name:
            yield f"names the file {info.file!r} in place of {name}"


def load_json(path: str | os.PathLike) -> Any:
    """Reads a JSON file.

    Raises:
        ShardsError: the file is not JSON.
    """
    try:
        return json.loads(pathlib.Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ShardsError(f"{path} is no JSON: {error}") from error


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
