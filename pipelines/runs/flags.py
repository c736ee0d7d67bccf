"""Defines absl flags from records of settings, and makes configurations from the flags."""

import contextlib
import dataclasses
import logging
import os
import select
import signal
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from absl import app, flags
from absl import logging as absl_logging

from dbl_tf import settings
from dbl_tf.messages import did_you_mean, explained
from dbl_tf.parameters import LossParameters
from dbl_tf.settings import Setting, flag_name
from pipelines import datasets, start
from pipelines.datasets import LoadOptions
from pipelines.images import Augmentation
from pipelines.runs import config as run_config
from pipelines.runs.config import ConfigError, DataConfig, RunConfig

_Config = TypeVar("_Config", bound=DataConfig)

# The flags that most people need, which --help shows first.
_FIRST = (
    "dataset",
    "examples",
    "method",
    "run_dir",
    "backbone",
    "backbone_weights",
    "freeze_backbone",
    "image_size",
    "epochs",
    "learning_rate",
)
_GROUPS: dict[type, str] = {
    RunConfig: "Training",
    DataConfig: "Data",
    LoadOptions: "Data",
    LossParameters: "Parameters of the loss",
    Augmentation: "Augmentation",
}
_SOURCE_GROUP = "Data source"
# --help lists the choices of a flag up to this number of them.
_MAX_CHOICES = 8
_HELP_FLAGS = ("-?", "-h", "-help", "--help", "-helpshort", "--helpshort")


@dataclasses.dataclass(frozen=True)
class _Described:
    """A setting that becomes a flag: its field, its type, and its heading in the help."""

    field: dataclasses.Field
    details: Setting
    kind: Any
    group: str
    sources: tuple[str, ...] = ()


def define(
    records: type | Sequence[type],
    values: flags.FlagValues = flags.FLAGS,
    *,
    without: Collection[str] = (),
    defaults: Mapping[str, Any] | None = None,
    for_evaluation: bool = False,
) -> None:
    """Defines a flag for each setting, with its name, default, choices and description.

    From now on, all flags with choices, also those that a program has defined before, ask whether
    another one was meant.

    Args:
        records: `DataConfig`, `RunConfig`, or records of settings.
        values: the flag values to which the flags are added.
        without: the names of settings that get no flag.
        defaults: defaults by name that replace those of the settings.
        for_evaluation: whether to leave out settings that only concern training.
    """
    for name, described in _described(records).items():
        if name not in without and not (for_evaluation and described.details.for_training):
            default = settings.default_of(described.field)
            default = None if default is settings.REQUIRED else default
            _define_flag(described, (defaults or {}).get(name, default), values)
    for old, (new, value_names) in run_config.RENAMED.items():
        if new in values:
            words = f"Old name of --{new}."
            if set(value_names) == {False, True}:
                flags.DEFINE_bool(old, None, words, flag_values=values)
            else:
                flags.DEFINE_enum(old, None, list(value_names), words, flag_values=values)
    for name in values:
        if type(values[name].parser) is flags.EnumParser:
            values[name].parser = _ChoiceParser(values[name].parser.enum_values)


def read(config_class: type[_Config], values: flags.FlagValues = flags.FLAGS) -> _Config:
    """Returns the configuration that the flags describe.

    Raises:
        ConfigError: a flag has a value with which a run cannot be started.
    """
    found = read_settings(config_class, values)
    if found.get("backbone") is not None:
        start.import_tensorflow()  # the names of networks are those of Keras
    return config_class.of(**found)


def read_settings(
    records: type | Sequence[type], values: flags.FlagValues = flags.FLAGS
) -> dict[str, Any]:
    """Returns the values of the flags by the names of their settings.

    Raises:
        ConfigError: a flag is given under its old name and its new name.
    """
    found: dict[str, Any] = {}
    for name, described in _described(records).items():
        if (flag := flag_name(described.field)) in values:
            found[name] = _from_flag(described, values[flag].value)
    for old, (new, value_names) in run_config.RENAMED.items():
        if old in values and values[old].present:
            value = value_names[values[old].value]
            if values[new].present:
                raise ConfigError(f"--{old} is the old name of --{new}; give one of them")
            absl_logging.warning("--%s is the old name of --%s=%s", old, new, value)
            found[new] = value
    return found


def given(records: type | Sequence[type], values: flags.FlagValues = flags.FLAGS) -> list[str]:
    """Returns the names of those flags of the settings that are on the command line."""
    names = (flag_name(described.field) for described in _described(records).values())
    return [name for name in names if name in values and values[name].present]


def parse_values(name: str, text: str) -> tuple[str, tuple[Any, ...]]:
    """Parses several values of one setting of `RunConfig`, as its flag parses one.

    Args:
        name: the name of the flag.
        text: values separated by commas, or by semicolons if the values themselves are lists.

    Returns:
        The name of the setting, and the values.

    Raises:
        ConfigError: there is no such flag, or it does not take one of the values.
    """
    own = flags.FlagValues()
    define(RunConfig, own)
    described = {flag_name(each.field): each for each in _described(RunConfig).values()}.get(name)
    if described is None:
        raise ConfigError(f"there is no flag --{name}{did_you_mean(name, own)}")
    has_lists = _is_any(described.kind, Sequence, Mapping)
    found = []
    for part in text.split(";" if has_lists else ","):
        try:
            found.append(_from_flag(described, own[name].parser.parse(part)))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"--{name} does not take {part!r}: {error}") from None
    return described.field.name, tuple(found)


def run(main: Callable[[list[str]], int | None]) -> None:
    """Runs a command, and ends the process with the status that it returns.

    Args:
        main: a function of what the command line has besides flags, the name of the program first.
            The docstring of its module heads what `--help` shows. It imports what needs
            TensorFlow itself, after `start.import_tensorflow`, so that help and errors of flags do
            not wait for it.
    """
    module = sys.modules[main.__module__]
    spec = module.__spec__
    command = (spec.name if spec else sys.argv[0]).rpartition(".")[2]
    start.stop_at_once(command)

    def parse(argv: Sequence[str]) -> list[str]:
        if any(argument in _HELP_FLAGS for argument in argv[1:]):
            # absl registers the flags of what is run as a script under the path of the script.
            program = sys.argv[0] if module.__name__ == "__main__" else module.__name__
            print(help_text(module.__doc__ or "", program))
            sys.exit(0)
        try:
            return flags.FLAGS(list(argv))
        except flags.Error as error:
            reason = str(error)
            if isinstance(error, flags.CantOpenFlagFileError) and error.__context__ is not None:
                reason = f"--flagfile={explained(error.__context__)}"
            sys.exit(f"{command}: {reason}\n--help lists the flags")

    absl_logging.get_absl_handler().setFormatter(_LogFormatter())
    with _ending_with_readers():
        app.run(main, flags_parser=parse)


class _LogFormatter(logging.Formatter):
    """Writes records as plain lines, without the time and the place of the code."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the message, behind its level unless it is a note."""
        message = super().format(record)
        noted = record.levelno <= logging.INFO
        return message if noted else f"{record.levelname.lower()}: {message}"


@contextlib.contextmanager
def _ending_with_readers() -> Iterator[None]:
    """Where nobody reads the output any more, as after `| head`, ends as SIGPIPE ends a program.

    The signal itself stays ignored, since it would also end the process where a connection breaks.
    """
    try:
        yield
    except (SystemExit, BrokenPipeError) as error:
        causes = (error, error.__cause__)
        ended = any(isinstance(cause, BrokenPipeError) for cause in causes) and _has_no_reader()
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            ended = ended or not getattr(error, "code", 1)  # a message of an error comes first
        if ended:
            # What is left of the output goes nowhere, so that the interpreter can end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        raise


def _has_no_reader() -> bool:
    """Whether the output is a pipe whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def help_text(summary: str, program: str, values: flags.FlagValues = flags.FLAGS) -> str:
    """Returns what `--help` shows: the summary, then the flags in groups, the most used ones first.

    Args:
        summary: the docstring of the program.
        program: the name of the module whose own flags come first.
        values: the flags.
    """
    text = "\n".join(
        f"\n{heading}:\n" + "\n".join(_flag_help(flag, sources) for flag, sources in listed)
        for heading, listed in grouped(program, values).items()
    )
    return f"{summary.strip()}\n{text}\n\n--helpfull also lists the flags of the libraries."


def grouped(
    program: str, values: flags.FlagValues = flags.FLAGS
) -> dict[str, list[tuple[flags.Flag, tuple[str, ...]]]]:
    """Groups flags by the heading under which `--help` shows them.

    Args:
        program: the name of the module whose own flags come first.
        values: the flags.

    Returns:
        For each heading that has any, its flags, each with the data sources that take it. A flag
        without sources does not depend on the source.
    """
    main = [flag for flag in values.get_key_flags_for_module(program) if flag.name != "help"]
    described = {
        flag_name(each.field): each
        for each in _described(RunConfig).values()
        if flag_name(each.field) in values
    }
    own = [
        flag for flag in main if flag.name not in described and flag.name not in run_config.RENAMED
    ]
    first = [name for name in _FIRST if name in described]
    groups: dict[str, list[tuple[flags.Flag, tuple[str, ...]]]] = {
        "This program": [(flag, ()) for flag in own],
        "Most used": [(values[name], described[name].sources) for name in first],
    }
    for name, each in described.items():
        if name not in first:
            groups.setdefault(each.group, []).append((values[name], each.sources))
    return {heading: listed for heading, listed in groups.items() if listed}


def _flag_help(flag: flags.Flag, sources: tuple[str, ...]) -> str:
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    notes = []
    if sources:
        notes.append(f"for --dataset={', '.join(sources)}")
    choices = getattr(flag.parser, "enum_values", ())
    if 0 < len(choices) <= _MAX_CHOICES:
        notes.append("one of " + ", ".join(choices))
    if flag.default not in (None, "", []):
        notes.append(f"default {flag.default_as_str}".replace("'", ""))
    # absl puts the choices of an enumeration before its description.
    description = flag.help.partition(">: ")[2] if choices else flag.help
    text = f"{description}{' (' + '; '.join(notes) + ')' if notes else ''}"
    return "\n".join(
        [f"  {name}", *textwrap.wrap(text, 92, initial_indent="    ", subsequent_indent="    ")]
    )


def _described(records: type | Sequence[type]) -> dict[str, _Described]:
    """Returns the settings of records by name, including those of nested records."""
    found: dict[str, _Described] = {}
    for record in [records] if isinstance(records, type) else records:
        for held, group in _all_records(record):
            hints = typing.get_type_hints(held)
            for field, details in settings.settings_of(held):
                sources = datasets.sources_with(field.name) if group == _SOURCE_GROUP else ()
                found[field.name] = _Described(
                    field, details, hints[field.name], group, tuple(sources)
                )
    return found


def _all_records(record: type) -> Iterator[tuple[type, str]]:
    if issubclass(record, DataConfig):
        yield DataConfig, _GROUPS[DataConfig]
        for source in datasets.SOURCES.values():
            yield source.options, _SOURCE_GROUP
        for held in run_config.records_of(record).values():
            yield held, _GROUPS[held]
    if record is not DataConfig:
        yield record, _GROUPS.get(record, _SOURCE_GROUP)


class _ChoiceParser(flags.EnumParser):
    """Parses one of several words, and asks whether another one was meant."""

    def parse(self, argument: str) -> str:
        """Returns the word."""
        try:
            return super().parse(argument)
        except ValueError as error:
            question = did_you_mean(argument, self.enum_values)
            raise ValueError(f"{error}{question}") from None


class _NumberOrWord(flags.ArgumentParser):
    """Parses a number, or one of the given words."""

    def __init__(self, words: Sequence[str]):
        super().__init__()
        self._words = words
        self.syntactic_help = f"a number or {' or '.join(words)}"

    def parse(self, argument: Any) -> float | str:
        """Returns the number or the word."""
        if argument in self._words:
            return argument
        try:
            return float(argument)
        except (TypeError, ValueError):
            raise ValueError(f"it takes {self.syntactic_help}, not {argument!r}") from None

    def flag_type(self) -> str:
        """Returns the name of the type for absl's own help."""
        return "number"


def _define_flag(described: _Described, default: Any, values: flags.FlagValues) -> None:
    name, help_, kind = flag_name(described.field), described.details.description, described.kind
    if name in values:  # another source has the same option
        return
    if described.details.choices and not _is_any(kind, Sequence):
        flags.DEFINE_enum(name, default, described.details.choices, help_, flag_values=values)
    elif described.details.words:
        parser = _NumberOrWord(described.details.words)
        flags.DEFINE(parser, name, default, help_, flag_values=values)
    elif _is_any(kind, bool):
        flags.DEFINE_bool(name, default, help_, flag_values=values)
    elif _is_any(kind, int):
        flags.DEFINE_integer(name, default, help_, flag_values=values)
    elif _is_any(kind, float):
        flags.DEFINE_float(name, default, help_, flag_values=values)
    elif _is_any(kind, Sequence):
        listed = None if default is None else list(default)
        flags.DEFINE_list(name, listed, help_, flag_values=values)
    elif _is_any(kind, Mapping):
        flags.DEFINE_string(name, "", help_, flag_values=values)
    else:
        flags.DEFINE_string(name, default, help_, flag_values=values)


def _from_flag(described: _Described, value: Any) -> Any:
    if _is_any(described.kind, Mapping):
        return run_config.parse_options(value)
    return tuple(value) if isinstance(described.field.default, tuple) else value


def _is_any(kind: Any, *candidates: type) -> bool:
    """Whether a type, or a member of a union, is one of the candidates or of their generics."""
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    members = typing.get_args(kind) if union else (kind,)
    return any((typing.get_origin(member) or member) in candidates for member in members)
