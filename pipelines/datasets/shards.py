"""Shards that `python -m pipelines.write_shards` wrote, as a data source."""

import dataclasses
import os
from collections.abc import Sequence

from dbl_tf.settings import REQUIRED, setting
from pipelines.datasets.source import PHOTOGRAPHS, LoadOptions, Source, SourceOptions
from pipelines.examples import LabelledData
from pipelines.shards import reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(SourceOptions):
    """Options of shards."""

    shards_dir: str = setting(
        REQUIRED,
        "Folder that python -m pipelines.write_shards wrote.",
        is_path=True,
        required_as="a folder that python -m pipelines.write_shards wrote",
    )

    @property
    def data_name(self) -> str:
        """The name of the folder."""
        return os.path.basename(os.path.abspath(self.shards_dir))


def load(
    options: Options, load_options: LoadOptions, splits: Sequence[str] | None = None
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


SOURCE = Source(options=Options, defaults=PHOTOGRAPHS, load=load)
