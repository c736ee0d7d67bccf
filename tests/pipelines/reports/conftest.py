"""What the tests of the pages share: a parser, and names that try to break out of the text."""

import html.parser
import re

import pytest

VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """What a browser would make of a page.

    Attributes:
        tags: names of all elements.
        rows: cells of all tables.
        words: pieces of text outside figures.
        text: all of them, with blanks collapsed.
        source: the file.
    """

    def __init__(self, path):
        super().__init__()
        self.tags, self.rows, self.words = [], [], []
        self._open, self._addresses = [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open, f"never closed: {self._open}"
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "data", "action", "srcset", "xlink:href"):
                self._addresses.append(value)
            assert not name.startswith("on")
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self._open and self._open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" in self._open or "svg" in self._open:
            return
        self.words.append(data)
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def row(self, first):
        return next(row for row in self.rows if row and row[0] == first)

    def check_self_contained(self):
        assert all(address.startswith("data:image/") for address in self._addresses)
        assert "script" not in self.tags and "link" not in self.tags
        assert "@import" not in self.source and "url(" not in self.source


@pytest.fixture
def read_page():
    """Parses an HTML file, and checks that it is well-formed and loads nothing."""

    def read(path):
        page = Page(path)
        page.check_self_contained()
        return page

    return read


@pytest.fixture
def hostile():
    """A name that would run a script if a page did not escape it."""
    return '<script>alert("x")</script>&\'\x00'
