"""Shards that `python -m pipelines.write_shards` wrote, as a data source."""

import dataclasses
from collections.abc import Sequence

from pipelines.datasets.options import ShardsOptions
from pipelines.datasets.source import LoadOptions
from pipelines.examples import LabelledData
from pipelines.shards import reading


def load(
    options: ShardsOptions, load_options: LoadOptions, splits: Sequence[str] | None = None
) -> LabelledData:
    """Opens the shards, whose images were checked when they were written.

    Raises:
        ShardsError: the folder or a file in it cannot be used; the message names the file.
    """
    if not load_options.test_fraction:
        return reading.load(options.shards_dir, only_splits=splits)
    data = reading.load(options.shards_dir)
    num_test = len(data.splits.get("test", ()))
    load_options.check_no_test(options.shards_dir, num_test)
    train, test = data.splits["train"].divide(load_options.test_share(data.splits["train"].labels))
    parts = {**data.splits, "train": train, "test": test}
    kept = splits or parts
    return dataclasses.replace(data, splits={name: parts[name] for name in kept})
