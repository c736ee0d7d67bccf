"""Settings: documented fields of frozen records, from which the commands make their flags.

A record of settings is a frozen dataclass whose fields are made by `setting`. `check` compares the
values of a record with the ranges and choices of its fields, wherever the values come from.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from dbl_tf.messages import did_you_mean

REQUIRED: Any = dataclasses.MISSING

_KEY = "setting"


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of finite numbers that a setting accepts; infinity and NaN never belong to it.

    Attributes:
        low: the lower bound.
        high: the upper bound.
        above_low: whether `low` itself is excluded.
        below_high: whether `high` itself is excluded.
        words: the text for messages; if empty, it is made from the bounds.

    Example:

    >>> 0.5 in Range(0, 1), 1.0 in Range(0, 1, below_high=True), math.nan in Range()
    (True, False, False)
    >>> str(Range(0, 1, below_high=True))
    'in [0, 1)'
    """

    low: float = -math.inf
    high: float = math.inf
    above_low: bool = False
    below_high: bool = False
    words: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.above_low else value >= self.low
        below = value < self.high if self.below_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        if self.words:
            return self.words
        low, high = (f"{bound:.15g}" for bound in (self.low, self.high))
        if math.isfinite(self.low) and math.isfinite(self.high):
            return (
                f"in {'(' if self.above_low else '['}{low}, {high}{')' if self.below_high else ']'}"
            )
        if math.isfinite(self.low):
            return f"greater than {low}" if self.above_low else f"at least {low}"
        if math.isfinite(self.high):
            return f"less than {high}" if self.below_high else f"at most {high}"
        return "a finite number"


FINITE = Range()
POSITIVE = Range(low=0, above_low=True)
NON_NEGATIVE = Range(low=0)
FRACTION = Range(low=0, high=1)
FRACTION_BELOW_ONE = Range(low=0, high=1, below_high=True)
AT_LEAST_TWO = Range(low=2)
SEED = Range(low=0, high=2**32, below_high=True, words="in [0, 2^32)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """The description of a field, in addition to its type and default.

    Attributes:
        description: a full sentence or noun phrase, which `--help` shows.
        choices: the only accepted values, those of each item of a list; empty if the setting has no
            fixed choices.
        words: values that are accepted besides numbers, such as "auto".
        range: the accepted numbers; None if the setting is not a number.
        is_path: whether the value is the path of a file or folder.
        symbol: the symbol in the paper, such as "α"; empty if it has none.
        required_as: a noun phrase for the value of a setting without a default, such as "a CSV
            file".
        for_training: whether only training uses the setting, so that evaluation does not accept it.
        affects_result: whether the setting can change the trained model.
    """

    description: str
    choices: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    range: Range | None = None
    is_path: bool = False
    symbol: str = ""
    required_as: str = ""
    for_training: bool = False
    affects_result: bool = True


def setting(default: Any, description: str, *, choices: Sequence[str] = (), **details: Any) -> Any:
    """Makes a field of a record of settings.

    Args:
        default: the default value, or `REQUIRED` if there is none. Each record receives its own
            copy of a dictionary.
        description: the `description` of `Setting`.
        choices: the `choices` of `Setting`.
        **details: the other attributes of `Setting`.
    """
    metadata = {_KEY: Setting(description=description, choices=tuple(choices), **details)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(record: Any) -> Iterator[tuple[dataclasses.Field, Setting]]:
    """Yields the settings of a record or of its class, but not those of records nested in it."""
    for field in dataclasses.fields(record):
        if _KEY in field.metadata:
            yield field, field.metadata[_KEY]


def details_of(field: dataclasses.Field) -> Setting:
    """Returns the description of a setting."""
    return field.metadata[_KEY]


def default_of(field: dataclasses.Field) -> Any:
    """Returns the default of a setting, or `REQUIRED` if it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def flag_name(field: dataclasses.Field) -> str:
    """Returns the name of a setting without the trailing underscore of names like `lambda_`."""
    return field.name.rstrip("_")


def check(
    record: Any,
    values: Mapping[str, Any] | None = None,
    *,
    name_of: Callable[[dataclasses.Field], str] = lambda field: field.name,
    error: type[ValueError] = ValueError,
) -> None:
    """Refuses settings whose values are not among their choices or lie outside their ranges.

    Args:
        record: a record of settings, or its class.
        values: the values to check, by name; if None, those of the record. Settings whose value is
            None are not checked.
        name_of: a function that returns the name of a setting for the message.
        error: the exception to raise.

    Raises:
        ValueError: or the given `error`. The message names the setting, the accepted values and
            the value found.
    """
    for field, details in settings_of(record):
        value = getattr(record, field.name) if values is None else values.get(field.name)
        if value is not None:
            check_value(value, details, name=name_of(field), error=error)


def check_value(
    value: Any, details: Setting, *, name: str, error: type[ValueError] = ValueError
) -> None:
    """Refuses a value that is not among the choices of a setting or lies outside its range.

    Args:
        value: the value. None is refused if the setting has choices or a range.
        details: the description of the setting.
        name: the name of the setting for the message.
        error: the exception to raise.

    Raises:
        ValueError: or the given `error`; see `check`.
    """
    for item in value if isinstance(value, list | tuple) else [value]:
        if details.choices and item not in details.choices:
            raise error(
                f"{name} must be one of {', '.join(details.choices)}; got {item!r}"
                f"{did_you_mean(item, details.choices)}"
            )
    if details.words and isinstance(value, str) and value in details.words:
        return
    if details.words and not isinstance(value, int | float):
        raise error(f"{name} must be a number or {' or '.join(details.words)}; got {value!r}")
    if details.range is not None and (value is None or value not in details.range):
        raise error(f"{name} must be {details.range}; got {value}")


def with_absolute_paths(record: Any, absolute: Callable[[str], str]) -> Any:
    """Returns the record with absolute paths.

    Args:
        record: a record of settings.
        absolute: a function that makes a path absolute.
    """
    paths = {
        field.name: absolute(getattr(record, field.name))
        for field, details in settings_of(record)
        if details.is_path and getattr(record, field.name) is not None
    }
    return dataclasses.replace(record, **paths)
