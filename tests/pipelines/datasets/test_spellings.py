import os
import pathlib
import unicodedata

import pytest

from pipelines.datasets import spellings

BLANKS = "blanks, quotes or invisible characters"
NFC, NFD = (unicodedata.normalize(form, "café.jpg") for form in ("NFC", "NFD"))


def make(folder: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def find(folder: pathlib.Path, name: str) -> tuple[str, str] | None:
    """The file that a name means, relative to the folder, and in what the name differs."""
    found = spellings.Folders().find(os.path.join(folder, name))
    return None if found is None else (os.path.relpath(found.path, folder), found.differences)


@pytest.mark.parametrize(
    ("file", "written", "differences"),
    [
        ("a.JPG", "a.jpg", "upper and lower case"),
        ("a.jpg", "A.Jpg", "upper and lower case"),
        ("Images/a.jpg", "images/a.jpg", "upper and lower case"),
        ("a.jpg", "a.jpg ", BLANKS),
        ("a.jpg", " a.jpg\t", BLANKS),
        ("a.jpg", "a.jpg\u00a0", BLANKS),
        ("a.jpg", "\ufeffa.jpg", BLANKS),
        ("a.jpg", "a\u200b.jpg", BLANKS),
        ("a.jpg ", "a.jpg", BLANKS),
        ("x/a.jpg", "'x/a.jpg'", BLANKS),
        ("x/a.jpg", "x /a.jpg", BLANKS),
        (NFC, NFD, "Unicode normalization"),
        (NFD, NFC, "Unicode normalization"),
        ("x/a.jpg", "x\\a.jpg", "backslashes"),
        ("x/y/a.jpg", ".\\x\\y/a.jpg", "backslashes"),
        ("x/a.jpg", "x\\y\\..\\a.jpg", "backslashes"),
        ("0001.jpg", "0001", "the suffix .jpg"),
        ("x/0001.PNG", "x/0001", "the suffix .PNG"),
        ("photo.2024.webp", "photo.2024", "the suffix .webp"),
        ("X/a b.JPG", "x\\A b ", f"the suffix .JPG, backslashes, {BLANKS}, upper and lower case"),
        (NFD.upper(), NFC, "Unicode normalization, upper and lower case"),
    ],
)  # fmt: skip
def test_a_path_means_the_one_file_that_differs_in_spelling_alone(
    tmp_path, file, written, differences
):
    make(tmp_path, file, "other.jpg", "x/other.jpg")
    assert find(tmp_path, written) == (file, differences)


def test_of_several_files_the_one_that_differs_in_less_is_meant(tmp_path):
    make(tmp_path, "x/a.jpg", "x/A.jpg", "X/a.JPG")
    assert find(tmp_path, "x\\a.jpg") == ("x/a.jpg", "backslashes")
    assert find(tmp_path, "x/A.jpg ") == ("x/A.jpg", BLANKS)
    assert find(tmp_path, "x/a.Jpg") is None


@pytest.mark.parametrize(
    "written",
    [
        "a.jpg",  # there
        "x",  # a folder
        "b.jpg",
        "y/a.jpg",
        "a.jpg/b.jpg",
        "twice.jpg",  # TWICE.jpg or Twice.jpg
        "two",  # two.jpg or two.png
        "notes",  # no image
        "a.jpeg",
        "C:\\data\\a.jpg",
        "C:/data/a.jpg",
        "\\\\server\\share\\a.jpg",
        "\\a.jpg",
        "../elsewhere/a.jpg",
        "null\0byte.jpg",
        "",
    ],
)
def test_no_file_is_taken_where_it_is_not_certain(tmp_path, written):
    folder = make(
        tmp_path / "images", "a.jpg", "TWICE.jpg", "Twice.jpg", "two.jpg", "two.png", "notes.txt"
    )
    make(folder, "x/c.jpg")
    assert find(folder, written) is None


def test_urls_are_not_looked_up():
    folders = spellings.Folders()
    assert folders.find("gs://bucket/a.jpg") is None
    assert folders.suggest("gs://bucket/a.jpg", "/") == []


def test_a_folder_that_is_not_there_or_may_not_be_read_has_no_files(tmp_path):
    assert spellings.find_all([str(tmp_path / "x" / "a.jpg"), "/no/such/folder/a.jpg"]) == {}


@pytest.mark.parametrize(
    ("written", "suggested"),
    [
        ("a.JPEG", ["a.jpg"]),
        ("twice.jpg", ["TWICE.jpg", "Twice.jpg"]),
        ("two", ["two.jpg", "two.png"]),
        ("C:\\data\\x\\c.jpg", ["x/c.jpg"]),
        ("C:/data/x/c.jpg", ["x/c.jpg"]),
        ("\\\\server\\share\\a.jpg", ["a.jpg"]),
        ("/home/me/data/x/c.jpg", ["x/c.jpg"]),
        ("data/x/c.jpg", ["x/c.jpg"]),
        ("x%2Fc.jpg", ["x/c.jpg"]),
        ("../data/a.jpg", ["a.jpg"]),
        ("unknown.jpg", []),
        ("/home/me/unknown.jpg", []),
    ],
)
def test_files_that_may_be_meant_are_suggested(tmp_path, written, suggested):
    folder = make(tmp_path / "images", "a.jpg", "TWICE.jpg", "Twice.jpg", "two.jpg", "two.png")
    make(folder, "x/c.jpg")
    path = os.path.normpath(os.path.join(folder, written))
    found = spellings.Folders().suggest(path, str(folder))
    assert [os.path.relpath(each, folder) for each in found] == suggested


def test_the_folder_that_was_meant_is_near(tmp_path):
    make(tmp_path, "lists/t.csv", "lists/images/a.jpg", "lists/deep/er/b.jpg", "c.jpg", "z/d.jpg")
    folder = str(tmp_path / "lists")
    assert spellings.folder_with("a.jpg", folder) == f"{folder}/images"
    assert spellings.folder_with("b.jpg", folder) == f"{folder}/deep/er"
    assert spellings.folder_with("c.jpg", folder) == str(tmp_path)
    assert spellings.folder_with("d.jpg", folder) is None
