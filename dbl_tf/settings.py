"""Settings: fields of frozen records that are documented once and become flags of every command.

A record of settings is a frozen dataclass whose fields are made by `setting`. Its range and choices
are checked by `check`, wherever the value comes from.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

REQUIRED: Any = dataclasses.MISSING

_KEY = "setting"


@dataclasses.dataclass(frozen=True)
class Range:
    """The numbers that a setting takes; infinity and NaN are never among them.

    Attributes:
        low: the lower bound.
        high: the upper bound.
        above_low: whether `low` itself is excluded.
        below_high: whether `high` itself is excluded.
        words: what messages say in place of the bounds.
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
SEED = Range(low=0, high=2**32, below_high=True, words="in [0, 2^32)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """What is known of a field in addition to its type and default.

    Attributes:
        description: a full sentence or noun phrase, as `--help` shows it.
        choices: the only values, if not empty.
        range: the numbers that it takes; None where it is no number.
        is_path: whether it names a file or folder.
        symbol: the paper's, such as "α", where there is one.
        required_as: for a setting without a default, what must be given, such as "a CSV file".
        for_training: whether it concerns training alone, so that an evaluation does not take it.
        affects_result: whether it can change what is trained.
    """

    description: str
    choices: tuple[str, ...] = ()
    range: Range | None = None
    is_path: bool = False
    symbol: str = ""
    required_as: str = ""
    for_training: bool = False
    affects_result: bool = True


def setting(default: Any, description: str, *, choices: Sequence[str] = (), **details: Any) -> Any:
    """A field of a record of settings.

    Args:
        default: the default; `REQUIRED` for none. A mapping is copied for each record.
        description: as in `Setting`.
        choices: as in `Setting`.
        **details: the other attributes of `Setting`.
    """
    metadata = {_KEY: Setting(description=description, choices=tuple(choices), **details)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(record: Any) -> Iterator[tuple[dataclasses.Field, Setting]]:
    """The settings of a record or of its class, without those of records that it holds."""
    for field in dataclasses.fields(record):
        if _KEY in field.metadata:
            yield field, field.metadata[_KEY]


def details_of(field: dataclasses.Field) -> Setting:
    """What is known of a setting."""
    return field.metadata[_KEY]


def default_of(field: dataclasses.Field) -> Any:
    """The default of a setting, `REQUIRED` where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def flag_name(field: dataclasses.Field) -> str:
    """The name of a setting without the underscore that tells it from a keyword of Python."""
    return field.name.rstrip("_")


def check(
    record: Any,
    values: Mapping[str, Any] | None = None,
    *,
    name_of: Callable[[dataclasses.Field], str] = lambda field: field.name,
    error: type[ValueError] = ValueError,
) -> None:
    """Refuses settings of which a value is none of its choices or out of its range.

    Args:
        record: a record of settings, or its class.
        values: by name, those to check; those of the record if None. None passes as a value.
        name_of: gives the name of a setting in the message.
        error: what is raised.

    Raises:
        ValueError: or the `error` given; names the setting, what it takes and what was found.
    """
    for field, details in settings_of(record):
        value = getattr(record, field.name) if values is None else values.get(field.name)
        if value is None:
            continue
        if details.choices and value not in details.choices:
            raise error(
                f"{name_of(field)} must be one of {', '.join(details.choices)}; got {value!r}"
            )
        if details.range is not None and value not in details.range:
            raise error(f"{name_of(field)} must be {details.range}; got {value}")


def with_absolute_paths(record: Any) -> Any:
    """The record with its paths absolute and `~` expanded."""
    paths = {
        field.name: os.path.abspath(os.path.expanduser(getattr(record, field.name)))
        for field, details in settings_of(record)
        if details.is_path and getattr(record, field.name) is not None
    }
    return dataclasses.replace(record, **paths)
