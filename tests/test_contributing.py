"""What CONTRIBUTING.md promises of the effort to add something."""

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[1]
# The most product files that may have to change.
MOST_FILES = {
    "a loss with a parameter": 3,
    "a parameter of a loss": 3,
    "a source of data": 2,
    "an augmentation": 2,
    "a metric": 2,
    "a chart": 2,
}


def test_table_names_few_files_and_they_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("## To add something, touch these files")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (an? .+?) \| (.+?) \| (.+?) \|$", section, re.MULTILINE)
    assert [kind for kind, _, _ in rows] == list(MOST_FILES)
    for kind, product, tests in rows:
        product, tests = (re.findall(r"`([^`]+)`", cell) for cell in (product, tests))
        assert 0 < len(product) <= MOST_FILES[kind] and tests
        for path in product + tests:
            # A new source has a module of its own, as the table of image files has.
            assert (ROOT / path.replace("NAME", "table")).is_file(), path
