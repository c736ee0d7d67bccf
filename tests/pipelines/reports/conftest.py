"""What the tests of the pages share: a parser, and names that try to break out of the text."""

import base64
import hashlib
import html.parser
import json
import re

import pytest

VOID = {"meta", "img", "br", "input"}


class Page(html.parser.HTMLParser):
    """What a browser would make of a page.

    Attributes:
        tags: names of all elements.
        rows: cells of all tables.
        words: pieces of text outside styles and scripts.
        data: what the script of the page reads.
        text: all of them, with blanks collapsed.
        source: the file.
    """

    def __init__(self, path):
        super().__init__()
        self.tags, self.rows, self.words = [], [], []
        self._open, self._addresses, self._scripts, self._policy = [], [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self._open, f"never closed: {self._open}"
        self.text = re.sub(r"\s+([.,;:])", r"\1", re.sub(r"\s+", " ", "".join(self.words)))
        (data,) = [script for attributes, script in self._scripts if attributes]
        self.data = json.loads(data)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if dict(attributes).get("http-equiv") == "Content-Security-Policy":
            self._policy = dict(attributes)["content"]
        if tag == "script":
            self._scripts.append((dict(attributes), ""))
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
        if "style" in self._open:
            return
        if "script" in self._open:
            attributes, before = self._scripts[-1]
            self._scripts[-1] = (attributes, before + data)
            return
        self.words.append(data)
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def row(self, first):
        return next(row for row in self.rows if row and row[0] == first)

    def table(self, name, label):
        """The cells of a label in a table that the script fills, by heading."""
        columns = self.data["tables"][name]
        at = columns[0]["values"].index(label)
        return {column["heading"]: column["values"][at] for column in columns}

    def chart(self, name):
        return self.data["charts"][name]["datasets"]["rows"]

    def check_self_contained(self):
        """No address leads elsewhere, and the policy allows the page's own two scripts alone."""
        for address in self._addresses:
            assert re.match(r"#|data:image/|[\w./%-]+$", address) and "//" not in address
        assert "link" not in self.tags and "iframe" not in self.tags
        own = [script for attributes, script in self._scripts if not attributes]
        hashes = [
            f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
            for script in own
        ]
        assert len(own) == 2 and f"script-src {' '.join(hashes)}" in self._policy
        assert "default-src 'none'" in self._policy and "http" not in self._policy


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
