import pytest

from pipelines.findings import Findings


def test_nothing_found_is_no_error():
    findings = Findings("t.csv")
    findings.add_all("rows without an image", [], lambda i: "never")
    findings.add_names("columns not used", [])
    findings.add_count("labels repeated", 0)
    findings.raise_if_any(ValueError)
    assert not findings
    assert findings.text("t.csv: 3 rows") == "t.csv: 3 rows"


def test_findings_are_shown_by_kind_in_their_order():
    findings = Findings("t.csv")
    findings.add("unknown splits", 7, "'dev'")
    findings.add("rows without an image", 8, "''")
    findings.add("unknown splits", 9, "'trian'")
    findings.add_names("columns not used", ["width", "height"])
    findings.add_count("labels repeated", 12)
    findings.add_items("doubles", ["'a' and 'A'"], count=3)
    findings.add_text("images left out", 7, "  no such file: 7\n    line 3: a.jpg\n  in b.csv")
    assert findings
    assert findings.text("what was found").splitlines() == [
        "what was found",
        "  unknown splits: 2",
        "    line 7: 'dev'",
        "    line 9: 'trian'",
        "  rows without an image: 1",
        "    line 8: ''",
        "  columns not used: 2",
        "    'width'",
        "    'height'",
        "  labels repeated: 12",
        "  doubles: 3",
        "    'a' and 'A'",
        "    and 2 more",
        "  images left out: 7",
        "    no such file: 7",
        "      line 3: a.jpg",
        "    in b.csv",
    ]


def test_only_the_first_five_of_a_kind_are_shown_and_described():
    one_by_one, at_once, described = Findings("t.csv"), Findings("t.csv"), []

    def describe(i):
        described.append(i)
        return f"row {i}"

    for i in range(8):
        one_by_one.add("bad rows", i + 2, f"row {i}")
    at_once.add_all("bad rows", range(2, 10), describe)
    expected = ["title", "  bad rows: 8", *(f"    line {i + 2}: row {i}" for i in range(5))]
    expected.append("    and 3 more")
    assert one_by_one.text("title").splitlines() == expected
    assert at_once.text("title").splitlines() == expected
    assert described == [0, 1, 2, 3, 4]


def test_the_error_names_the_file_and_has_the_type_asked_for():
    class TableError(ValueError):
        pass

    findings = Findings("/data/t.csv")
    findings.add("unknown splits", 7, "'dev'")
    with pytest.raises(TableError) as error:
        findings.raise_if_any(TableError)
    assert str(error.value) == (
        "/data/t.csv cannot be used:\n  unknown splits: 1\n    line 7: 'dev'"
    )
