"""Writes `command_line.md`, the page of all commands and their flags, from the flag definitions.

python -m docs.write_command_line          # after a flag has changed
python -m docs.write_command_line --check  # status 1 where the page is out of date
"""

import argparse
import importlib
import inspect
import pathlib
import sys
import textwrap
from types import ModuleType

from absl import flags

PAGE = pathlib.Path(__file__).parent / "command_line.md"
# How each command is started, and its module. The first one has the most flags; the others refer
# to those that they share with it.
COMMANDS = {
    "python train.py": "train",
    "python evaluate.py": "evaluate",
    "python -m pipelines.compare": "pipelines.compare",
    "python -m pipelines.write_shards": "pipelines.write_shards",
    "python -m pipelines.write_longtail": "pipelines.write_longtail",
}
# More choices than this are left to `--help`: networks come and go with versions of Keras.
_MOST_CHOICES = 20
_LINE_LENGTH = 100
_INTRODUCTION = """\
# Command line

<!-- Written by python -m docs.write_command_line; edit the flags' definitions instead. -->

`--help` after any of these commands prints what follows. `--flagfile=FILE` reads flags from a file,
one on each line; `recipes/` holds two such files. `--NAME` turns a boolean flag on, and `--noNAME`
turns it off. A default of – means that the value depends on the data set, the method or the
network, or that there is none; the description says which.
"""


def main() -> int:
    """Writes or checks the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    options = parser.parse_args()
    text = page()
    if not options.check:
        PAGE.write_text(text, encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE} is out of date: run python -m docs.write_command_line", file=sys.stderr)
        return 1
    return 0


def page() -> str:
    """The text of the page."""
    described = {command: flags_of(module) for command, module in COMMANDS.items()}
    first, *others = described
    sections = [_section(first, described[first][0], described[first][1], "")]
    of_first = {flag.name: _row(flag) for flag in described[first][1]}
    for command in others:
        module, of_command = described[command]
        shared = [f.name for f in of_command if of_first.get(f.name) == _row(f)]
        own = [f for f in of_command if f.name not in shared]
        sections.append(_section(command, module, own, _reference(first, of_first, shared)))
    return "\n".join([_INTRODUCTION, *sections])


def flags_of(name: str) -> tuple[ModuleType, list[flags.Flag]]:
    """A command's module and the flags that its `--help` lists, in their order.

    The flags of the commands have names in common, so they are taken out of `absl.flags.FLAGS`
    again before the next command defines its own.
    """
    before = set(flags.FLAGS)
    module = importlib.import_module(name)
    found = list(dict.fromkeys(flags.FLAGS.get_key_flags_for_module(module)))
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    return module, found


def _section(command: str, module: ModuleType, listed: list[flags.Flag], reference: str) -> str:
    lines = [f"## {command.removeprefix('python ').removeprefix('-m ')}", ""]
    for paragraph in inspect.cleandoc(module.__doc__).split("\n\n"):
        if paragraph.startswith("Methods:"):  # the guide describes them
            continue
        if paragraph.lstrip().startswith("python "):
            paragraph = f"```bash\n{textwrap.dedent(paragraph)}\n```"
        lines += [paragraph.strip("\n"), ""]
    if listed:
        lines += ["| flag | default | |", "|---|---|---|", *map(_row, listed), ""]
    if reference:
        lines += [reference, ""]
    return "\n".join(lines)


def _row(flag: flags.Flag) -> str:
    name = f"`--[no]{flag.name}`" if flag.boolean else f"`--{flag.name}`"
    choices = getattr(flag.parser, "enum_values", None)
    help_text = " ".join(flag.help.split())
    if choices:
        help_text = help_text.removeprefix(f"<{'|'.join(choices)}>: ")
        if len(choices) <= _MOST_CHOICES:
            help_text += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    return f"| {name} | {_default(flag)} | {help_text.replace('|', chr(92) + '|')} |"


def _default(flag: flags.Flag) -> str:
    if flag.default is None or flag.default == "":
        return "–"
    if flag.boolean:
        return "on" if flag.default else "off"
    if isinstance(flag.default, list | tuple):
        return f"`{','.join(map(str, flag.default))}`"
    return f"`{flag.default}`"


def _reference(first: str, of_first: dict[str, str], shared: list[str]) -> str:
    """Says which flags a command shares with the first, by the shorter of two lists."""
    if not shared:
        return ""
    source = first.removeprefix("python ")
    absent = [name for name in of_first if name not in shared]
    is_short = len(absent) < len(shared)
    names = ", ".join(f"`--{name}`" for name in (absent if is_short else shared))
    if is_short:
        return textwrap.fill(f"It takes all flags of `{source}` except {names}.", _LINE_LENGTH)
    return textwrap.fill(f"It shares these flags with `{source}`: {names}.", _LINE_LENGTH)


if __name__ == "__main__":
    sys.exit(main())
