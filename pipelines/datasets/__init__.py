"""Sources of labeled images, with one module for each, and their registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dbl_tf.settings import settings_of
from pipelines import locations
from pipelines.datasets.options import SOURCES
from pipelines.datasets.source import Defaults, LoadOptions, Source, SourceOptions

if TYPE_CHECKING:
    from pipelines.examples import LabelledData

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
        options: the options of that source.
        load_options: the options that all sources have.
        splits: the splits to load and check. None loads all splits, which must include train and,
            unless `test_fraction` makes it, test.

    Raises:
        ValueError: the data cannot be used, and the message names the file and the row; or there
            can be no cache where it was asked for.
    """
    from pipelines.datasets.image_checks import BadImagesError

    if load_options.cache_dir is not None and not load_options.cache_path.is_dir():
        locations.check_output_folder(load_options.cache_path, "--cache_dir")

    try:
        data = SOURCES[name].load(options, load_options, splits)
    except BadImagesError as error:
        if error.data is not None:
            error.data = _divide(error.data, load_options)
        raise
    return _divide(data, load_options)


def _divide(data: LabelledData, load_options: LoadOptions) -> LabelledData:
    """Sets val aside, and puts what is held out in the place of test."""
    from pipelines import folds
    from pipelines.examples import set_aside_val

    if load_options.val_fraction:
        data = set_aside_val(data, load_options.val_fraction, seed=load_options.data_seed)
    if load_options.held_out is not None:
        data = folds.without_test(data, load_options.held_out, seed=load_options.data_seed)
    return data


def sources_with(field_name: str) -> list[str]:
    """Returns the names of the sources that have an option with this name."""
    return [
        name
        for name, source in SOURCES.items()
        if any(field.name == field_name for field, _ in settings_of(source.options))
    ]


def all_options() -> dict[str, dataclasses.Field[Any]]:
    """Returns the options of all sources by name; an option of several sources counts once."""
    return {
        field.name: field for source in SOURCES.values() for field, _ in settings_of(source.options)
    }
