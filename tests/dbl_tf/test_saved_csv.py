"""CSV files with a digest in each row, which earlier versions did not write."""

import csv

import numpy as np
import pytest

from dbl_tf import saved_csv

ROWS = [
    {"epoch": 0, "loss": 1 / 3, "note": 'a "quoted", wide\ncell'},
    {"epoch": 1, "loss": np.float32(0.1), "val_map": None},
]
TEXTS = [
    {"epoch": "0", "loss": repr(1 / 3), "note": 'a "quoted", wide\ncell', "val_map": ""},
    {"epoch": "1", "loss": "0.1", "note": "", "val_map": ""},
]


@pytest.fixture
def path(tmp_path):
    saved_csv.write(ROWS, tmp_path / "rows.csv")
    return tmp_path / "rows.csv"


def test_rows_come_back_as_text_and_are_written_the_same_again(path):
    assert saved_csv.read(path, ["epoch"]) == TEXTS
    content = path.read_bytes()
    saved_csv.write(TEXTS, path)
    assert path.read_bytes() == content


def test_the_digest_is_the_last_column_and_no_number(path):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[-1] == "digest"
    for row in rows:
        assert set(row["digest"]) & set("#") and len(row["digest"]) == 9
    assert rows[0]["digest"] != rows[1]["digest"]


def test_files_without_digests_are_read(path):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(TEXTS[0]))
        writer.writeheader()
        writer.writerows(TEXTS)
    assert saved_csv.read(path, ["epoch"]) == TEXTS


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("0.1", "0.2"), "line 4 was changed since it was written"),
        (lambda text: text.replace("loss", "less"), "line 3 was changed since it was written"),
        (lambda text: text.replace("epoch", "apoch"), "line 1 does not name columns, among them"),
        (lambda text: text.replace("loss", "epoch"), "line 1 names a column twice"),
        (lambda text: text.replace("0.1", "0,1"), "line 4 has 6 values for 5 columns"),
        (lambda text: text.replace("wide\n", 'wide"\n'), "line 2"),
        (lambda text: "", "line 1 does not name columns"),
    ],
)
def test_what_was_changed_is_refused_with_its_line(change, message, path):
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message) as info:
        saved_csv.read(path, ["epoch"])
    assert "\n" not in str(info.value)
