"""Shards that `python -m pipelines.write_shards` wrote, as a data source."""

import dataclasses
from collections.abc import Sequence

from pipelines.datasets import assembly
from pipelines.datasets.options import ShardsOptions
from pipelines.datasets.source import LoadOptions
from pipelines.examples import Examples, LabelledData
from pipelines.shards import reading


def load(
    options: ShardsOptions, load_options: LoadOptions, splits: Sequence[str] | None = None
) -> LabelledData:
    """Opens the shards, whose images were checked when they were written.

    With `skip_bad_images`, every record is read and checked, and those that cannot be used are left
    out.

    Raises:
        ShardsError: the folder or a file in it cannot be used; the message names the file.
        RecordFileError: likewise, of a shard whose size is right.
    """
    skips = load_options.skip_bad_images
    data = reading.load(
        options.shards_dir,
        only_splits=None if load_options.test_fraction else splits,
        # The digest of a shard says nothing of its single records.
        check_content=load_options.check_content and not skips,
        open_at_once=not skips,
    )
    parts = dict(data.splits)
    if load_options.test_fraction:
        load_options.check_no_test(options.shards_dir, len(parts.get("test", ())))
        share = load_options.test_share(parts["train"].labels)
        parts["train"], parts["test"] = parts["train"].divide(share)
    if splits:
        parts = {name: parts[name] for name in splits}
    if skips:
        parts = {
            name: _without_bad_records(part, f"{options.shards_dir}, {name}", load_options)
            for name, part in parts.items()
        }
    return dataclasses.replace(data, splits=parts)


def _without_bad_records(examples: Examples, source: str, load_options: LoadOptions) -> Examples:
    kept = assembly.without_bad_images(
        examples,
        source=source,
        in_records=True,
        check_images=load_options.check_images,
        skip_bad_images=True,
        cache_dir=load_options.cache_path,
    )
    if examples.is_stream and len(kept) < len(examples):
        return reading.by_position(kept)
    return kept
