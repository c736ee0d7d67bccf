"""Absl flags from the fields of a configuration, and a configuration from the flags given."""

import dataclasses
import typing
from collections.abc import Container, Mapping, Sequence
from typing import Any, TypeVar

from absl import flags

from pipelines.runs import config

_Config = TypeVar("_Config", bound=config.DataConfig)


def define(
    config_class: type[config.DataConfig],
    values: flags.FlagValues = flags.FLAGS,
    *,
    without: Container[str] = (),
) -> None:
    """Defines a flag for each field, with its name, default, choices and description.

    Args:
        config_class: `DataConfig` or `RunConfig`.
        values: where the flags are.
        without: fields that get none.
    """
    types = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if field.name in without:
            continue
        name, default = config.flag_name(field), field.default
        description = field.metadata["description"]
        if only := field.metadata["only"]:
            description = f"{', '.join(only)}: {description}"
        kinds = {typing.get_origin(t) or t for t in typing.get_args(types[field.name])} or {
            types[field.name]
        }
        if choices := field.metadata["choices"]:
            flags.DEFINE_enum(name, default, choices, description, flag_values=values)
        elif bool in kinds:
            flags.DEFINE_bool(name, default, description, flag_values=values)
        elif int in kinds:
            flags.DEFINE_integer(name, default, description, flag_values=values)
        elif float in kinds:
            flags.DEFINE_float(name, default, description, flag_values=values)
        elif Sequence in kinds:
            flags.DEFINE_list(name, default, description, flag_values=values)
        elif Mapping in (typing.get_origin(types[field.name]), *kinds):
            flags.DEFINE_string(name, "", description, flag_values=values)
        else:
            flags.DEFINE_string(name, default, description, flag_values=values)


def read(config_class: type[_Config], values: flags.FlagValues = flags.FLAGS) -> _Config:
    """The configuration that the flags describe.

    Raises:
        ConfigError: a value that a run cannot be started with.
    """
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(config_class):
        name = config.flag_name(field)
        if name not in values:
            continue
        value = values[name].value
        arguments[field.name] = (
            config.parse_options(value) if field.name == "backbone_options" else value
        )
    return config_class(**arguments)


def given(
    config_class: type[config.DataConfig], values: flags.FlagValues = flags.FLAGS
) -> list[str]:
    """Names of the flags of a configuration that stand on the command line."""
    names = (config.flag_name(field) for field in dataclasses.fields(config_class))
    return [name for name in names if name in values and values[name].present]
