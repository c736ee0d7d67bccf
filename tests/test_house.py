"""The rules of the house: imports run one way, and each module is found by its subject."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = ("train.py", "evaluate.py")
COMMANDS = (
    "pipelines.compare",
    "pipelines.evaluate",
    "pipelines.prepare",
    "pipelines.tag",
    "pipelines.train",
    "pipelines.write_features",
    "pipelines.write_longtail",
    "pipelines.write_shards",
)


def _name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def _files() -> dict[str, pathlib.Path]:
    paths = [*ROOT.glob("dbl_tf/**/*.py"), *ROOT.glob("pipelines/**/*.py")]
    return {_name(path): path for path in [*paths, *(ROOT / name for name in SCRIPTS)]}


FILES = _files()


def _imports(name: str) -> set[str]:
    """Modules of the project that a module imports, at its top or inside functions.

    Importing a module runs the packages that it is in; a package is no arrow of its own, or each
    would be in a circle with its modules.
    """
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            candidates = [
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in FILES
                else str(node.module)
                for alias in node.names
            ]  # fmt: skip
        else:
            continue
        found.update(candidate for candidate in candidates if candidate in FILES)
    return found - {name}


IMPORTS = {name: _imports(name) for name in FILES}


def test_no_module_is_in_a_circle_of_imports():
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for other in sorted(IMPORTS[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in FILES:
        visit(name, ())
    assert done == set(FILES)


def _floor(name: str) -> int:
    """scripts and commands -> pipelines.runs -> pipelines.reports -> pipelines -> dbl_tf."""
    if name in SCRIPTS or name in COMMANDS or not name.startswith(("dbl_tf", "pipelines")):
        return 4
    if name.startswith("pipelines.runs"):
        return 3
    if name.startswith("pipelines.reports"):
        return 2
    return 1 if name.startswith("pipelines") else 0


@pytest.mark.parametrize("name", sorted(FILES))
def test_imports_run_one_way(name):
    upwards = {other for other in IMPORTS[name] if _floor(other) > _floor(name)}
    assert not upwards


def test_reports_are_used_by_runs_alone():
    users = {
        name
        for name, imported in IMPORTS.items()
        if any(other.startswith("pipelines.reports") for other in imported)
    }
    assert {
        name for name in users if not name.startswith(("pipelines.reports", "pipelines.runs"))
    } == set()


def test_flags_are_defined_in_scripts_commands_and_one_module_alone():
    users = set()
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_absl = isinstance(node, ast.ImportFrom) and node.module == "absl"
            if is_absl and {alias.name for alias in node.names} & {"flags", "app"}:
                users.add(name)
    assert users == {*COMMANDS, "pipelines.runs.flags"}


def test_a_module_is_about_one_subject():
    """Its docstring names the subject in one line, and no module collects leftovers."""
    for name, path in FILES.items():
        summary = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")
        assert summary[0].endswith((".", ":")) and len(summary[0]) <= 96, name
        assert len(summary) == 1 or not summary[1], name
        last = name.rpartition(".")[2]
        assert last not in ("utils", "util", "helpers", "common", "misc", "tools"), name


@pytest.mark.parametrize(
    ("package", "name", "place"),
    [
        ("dbl_tf", "evaluation", "dbl_tf.prediction"),
        ("dbl_tf", "files", "dbl_tf.atomic"),
        ("pipelines", "config", "pipelines.runs.config"),
        ("pipelines", "training_run", "pipelines.runs.train"),
    ],
)
def test_modules_of_earlier_versions_are_refused_with_their_new_place(package, name, place):
    with pytest.raises(ImportError, match=rf"{package}\.{name} has moved to {place}"):
        exec(f"from {package} import {name}")
