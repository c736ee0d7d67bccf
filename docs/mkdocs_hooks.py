"""Hooks of the documentation site: pages from the repository's root, and no external requests."""

import pathlib
import re
from html.parser import HTMLParser
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Files that people read in the repository too, and where the site has them.
ROOT_FILES = {
    "README.md": "index.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "SECURITY.md": "SECURITY.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE",
}
# Attributes that make a browser fetch their value when the page opens.
_FETCHED = {
    "iframe": "src",
    "img": "src",
    "link": "href",
    "script": "src",
    "source": "src",
    "video": "src",
}


def on_files(files: Any, config: Any) -> Any:
    """Adds the files that lie in the repository's root."""
    for source, place in ROOT_FILES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Adapts links between the root and `docs/`, which are one folder on the site."""
    return re.sub(r"\]\((?:docs/|\.\./)", "](", markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuses a page that a browser cannot show without asking another server."""
    addresses = external_requests(output)
    if addresses:
        raise PluginError(f"{page.file.src_uri} would fetch {', '.join(addresses)}")
    return output


def external_requests(html: str) -> list[str]:
    """Addresses on other servers that a browser fetches when it opens a page."""
    parser = _Fetched()
    parser.feed(html)
    return [address for address in parser.addresses if re.match(r"(?:https?:)?//", address)]


class _Fetched(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        address = attributes.get(_FETCHED.get(tag, ""))
        if address and attributes.get("rel") not in ("canonical", "next", "prev"):
            self.addresses.append(address)
