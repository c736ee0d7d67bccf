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

from pipelines.runs import flags as run_flags

PAGE = pathlib.Path(__file__).parent / "command_line.md"
# How each command is started, and its module. The first one has the most flags; the others refer
# to those that they share with it.
COMMANDS = {
    "python train.py": "pipelines.train",
    "python evaluate.py": "pipelines.evaluate",
    "python -m pipelines.compare": "pipelines.compare",
    "python -m pipelines.tag": "pipelines.tag",
    "python -m pipelines.write_features": "pipelines.write_features",
    "python -m pipelines.write_shards": "pipelines.write_shards",
    "python -m pipelines.write_longtail": "pipelines.write_longtail",
    "python -m pipelines.prepare": "pipelines.prepare",
}
# More choices than this are left to the description: networks come and go with versions of Keras.
_MOST_CHOICES = 10
_LINE_LENGTH = 100
_INTRODUCTION = """\
# Command line

<!-- Written by python -m docs.write_command_line; edit the flags' definitions instead. -->

`--help` after any of these commands prints what follows. `--flagfile=FILE` reads flags from a file,
one on each line; `recipes/` holds two such files. `--NAME` turns a boolean flag on, and `--noNAME`
turns it off. – stands for no default, or for one that the description explains.

The package also installs `dbl-train`, `dbl-evaluate`, `dbl-compare`, `dbl-tag` and `dbl-prepare`,
which are `train.py`, `evaluate.py` and the modules of `pipelines` with these names, and run in any
folder.
"""

# The flags under each heading, and the data sources that take each; none: any source.
Grouped = dict[str, list[tuple[flags.Flag, tuple[str, ...]]]]


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
    """Returns the text of the page."""
    described = {command: flags_of(module) for command, module in COMMANDS.items()}
    first = next(iter(COMMANDS))
    rows_of_first = {
        flag.name: _row(flag, sources)
        for listed in described[first][1].values()
        for flag, sources in listed
    }
    sections = [_INTRODUCTION]
    for command, (module, groups) in described.items():
        shared = [] if command == first else _shared(groups, rows_of_first)
        sections.append(_section(command, module, groups, shared))
        if shared:
            sections.append(_reference(first, list(rows_of_first), shared))
    return "\n".join(sections)


def flags_of(name: str) -> tuple[ModuleType, Grouped]:
    """Imports a command and returns its module and its flags.

    The commands have flags of the same names, so the flags are removed from `absl.flags.FLAGS`
    before the next command defines its own.
    """
    before = set(flags.FLAGS)
    module = importlib.import_module(name)
    groups = run_flags.grouped(name)
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)
    return module, groups


def _shared(groups: Grouped, rows_of_first: dict[str, str]) -> list[str]:
    return [
        flag.name
        for listed in groups.values()
        for flag, sources in listed
        if rows_of_first.get(flag.name) == _row(flag, sources)
    ]


def _section(command: str, module: ModuleType, groups: Grouped, shared: list[str]) -> str:
    lines = [f"## {command.removeprefix('python ').removeprefix('-m ')}", ""]
    for paragraph in inspect.cleandoc(module.__doc__ or "").split("\n\n"):
        if paragraph.lstrip().startswith("python "):
            paragraph = f"```bash\n{textwrap.dedent(paragraph)}\n```"
        elif paragraph.startswith("Methods:\n"):
            paragraph = f"```text\n{paragraph}\n```"
        lines += [paragraph.strip("\n"), ""]
    for heading, listed in groups.items():
        rows = [_row(flag, sources) for flag, sources in listed if flag.name not in shared]
        if rows:
            lines += [f"| {heading} | default | |", "|---|---|---|", *rows, ""]
    return "\n".join(lines)


def _row(flag: flags.Flag, sources: tuple[str, ...]) -> str:
    name = f"`--[no]{flag.name}`" if flag.boolean else f"`--{flag.name}`"
    help_text = " ".join(flag.help.split())
    choices = getattr(flag.parser, "enum_values", None)
    if choices:
        help_text = help_text.removeprefix(f"<{'|'.join(choices)}>: ")
        if len(choices) <= _MOST_CHOICES:
            help_text += f" One of {', '.join(f'`{choice}`' for choice in choices)}."
    if sources:
        help_text += f" For `--dataset={'`, `'.join(sources)}`."
    return f"| {name} | {_default(flag)} | {help_text.replace('|', chr(92) + '|')} |"


def _default(flag: flags.Flag) -> str:
    if flag.default is None or flag.default == "":
        return "–"
    if flag.boolean:
        return "on" if flag.default else "off"
    if isinstance(flag.default, list | tuple):
        return f"`{','.join(map(str, flag.default))}`"
    return f"`{flag.default}`"


def _reference(first: str, names: list[str], shared: list[str]) -> str:
    """Says which flags a command shares with the first, by the shorter of two lists."""
    source = first.removeprefix("python ")
    absent = [name for name in names if name not in shared]
    if len(absent) < len(shared):
        text = f"It takes all flags of `{source}` except {_listed(absent)}."
    else:
        text = f"It shares these flags with `{source}`: {_listed(shared)}."
    return textwrap.fill(text, _LINE_LENGTH) + "\n"


def _listed(names: list[str]) -> str:
    return ", ".join(f"`--{name}`" for name in names)


if __name__ == "__main__":
    sys.exit(main())
