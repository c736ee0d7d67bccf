"""The documentation site asks no other server for anything."""

import importlib.util
import pathlib
import types

import pytest

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
HOOKS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "mkdocs_hooks.py"


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("mkdocs_hooks", HOOKS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("element", "address"),
    [
        ('<script src="https://a.example/x.js">', "https://a.example/x.js"),
        ('<link rel="stylesheet" href="//fonts.example/css">', "//fonts.example/css"),
        ('<img src="http://a.example/x.png">', "http://a.example/x.png"),
    ],
)
def test_a_page_that_fetches_from_another_server_is_refused(hooks, element, address):
    from mkdocs.exceptions import PluginError

    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="guide.md"))
    with pytest.raises(PluginError, match=f"guide.md would fetch {address}"):
        hooks.on_post_page(f"<html>{element}</html>", page=page)


def test_links_and_files_of_the_site_are_allowed(hooks):
    html = (
        '<a href="https://arxiv.org/abs/2007.09654">paper</a><img src="figures/run.png">'
        '<script src="assets/x.js"></script><link rel="canonical" href="https://here.example/">'
    )
    assert hooks.external_requests(html) == []


def test_links_between_root_and_docs_are_adapted(hooks):
    markdown = "[a](docs/guide.md#methods) [b](../CONTRIBUTING.md) [c](results.md)"
    assert hooks.on_page_markdown(markdown, page=None) == (
        "[a](guide.md#methods) [b](CONTRIBUTING.md) [c](results.md)"
    )
