"""Files that other programs read: they parse, and they agree with setup.cfg."""

import configparser
import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
yaml = pytest.importorskip("yaml", reason="PyYAML, which the extra `docs` brings, is not installed")


def load(name):
    # mkdocs.yml may hold tags of Python objects, which a safe loader refuses.
    return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def setup():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def test_citation_has_the_version_and_license_of_the_package(setup):
    citation = load("CITATION.cff")
    assert citation["version"] == setup["metadata"]["version"]
    assert citation["license"] == setup["metadata"]["license"]
    assert citation["references"][0]["doi"] == "10.1007/978-3-030-58548-8_10"


def test_ci_installs_what_the_tests_on_jax_need(setup):
    """They are skipped where it is not installed."""
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    before, _, _ = script.partition("python -m pytest")
    assert ".[tests,docs]" in shlex.split(before, comments=True)
    assert "jax" in setup["options.extras_require"]["tests"]


def test_navigation_names_pages_that_exist():
    def pages(entries):
        for entry in entries:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    named = list(pages(load("mkdocs.yml")["nav"]))
    in_root = {"CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"}
    assert named[0] == "index.md"  # made of README.md
    for page in named[1:]:
        assert (ROOT / ("" if page in in_root else "docs") / page).is_file(), page
    in_docs = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert set(named) - {"index.md"} == in_docs | in_root


def test_workflow_tests_every_python_and_the_oldest_keras(setup):
    matrix = load(".github/workflows/ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["include"]
    versions = re.findall(r"Python :: (3\.\d+)", setup["metadata"]["classifiers"])
    assert sorted({row["python"] for row in matrix}) == sorted(versions)
    oldest = re.search(r"^keras>=([\d.]+)", setup["options"]["install_requires"], re.MULTILINE)[1]
    tested = [row["keras"].removeprefix("keras==") for row in matrix if "==" in row["keras"]]
    assert tested == [f"{oldest}.0" if oldest.count(".") == 1 else oldest]
    assert {"python": versions[0], "keras": "keras"} in matrix  # the newest


def test_hooks_of_commits_need_nothing_that_the_extras_do_not_install(setup):
    tools = {
        re.match(r"[\w-]+", line).group()
        for line in setup["options.extras_require"]["tests"].split("\n")
        if line and not line.startswith("#")
    }
    for repo in load(".pre-commit-config.yaml")["repos"]:
        assert repo["repo"] == "local"
        for hook in repo["hooks"]:
            assert hook["language"] == "system" and shlex.split(hook["entry"])[0] in tools


def test_packages_carry_their_type_marker(setup):
    for package in ("dbl_tf", "pipelines"):
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in setup["options.package_data"][package].split()
