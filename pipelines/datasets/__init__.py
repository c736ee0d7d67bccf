"""Where labeled images come from: one module for each data source, and their registry."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from dbl_tf.settings import settings_of
from pipelines.datasets import coco_mlt, digits_mlt, shards, table, tfds_source, voc_mlt
from pipelines.datasets.source import Defaults, LoadOptions, Source, SourceOptions
from pipelines.examples import LabelledData, set_aside_val

__all__ = [
    "NAMES",
    "SOURCES",
    "Defaults",
    "LoadOptions",
    "Source",
    "SourceOptions",
    "load",
    "sources_with",
]

SOURCES: dict[str, Source] = {
    "digits_mlt": digits_mlt.SOURCE,
    "table": table.SOURCE,
    "voc_mlt": voc_mlt.SOURCE,
    "coco_mlt": coco_mlt.SOURCE,
    "tfds": tfds_source.SOURCE,
    "shards": shards.SOURCE,
}
NAMES = tuple(SOURCES)


def load(
    name: str,
    options: SourceOptions,
    load_options: LoadOptions,
    splits: Sequence[str] | None = None,
) -> LabelledData:
    """Loads and checks a data source.

    Args:
        name: a key of `SOURCES`.
        options: of that source.
        load_options: those of any source.
        splits: the only ones that are needed, and whose images are checked; None for all, of which
            there must be train and test.

    Raises:
        ValueError: what is wrong with the data, with file and row.
    """
    data = SOURCES[name].load(options, load_options, splits)
    if load_options.val_fraction:
        data = set_aside_val(data, load_options.val_fraction, seed=load_options.data_seed)
    return data


def sources_with(field_name: str) -> list[str]:
    """Names of the sources that have an option of this name."""
    return [
        name
        for name, source in SOURCES.items()
        if any(field.name == field_name for field, _ in settings_of(source.options))
    ]


def all_options() -> dict[str, dataclasses.Field[Any]]:
    """The options of all sources by name; sources that share an option define it once."""
    return {
        field.name: field for source in SOURCES.values() for field, _ in settings_of(source.options)
    }
