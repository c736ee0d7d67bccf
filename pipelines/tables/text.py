"""Text files of tables: whether they exist, their encoding, and errors that show two readings."""

import difflib
import io
import os
from collections.abc import Iterator, Sequence

from dbl_tf.messages import SHOWN, first_few, first_lines
from pipelines import locations

# Suffixes of image files, by which columns and folders of images are known. Which of these formats
# can be decoded is for the checks of images to say.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx"),
)

# Files that are no text, by their first bytes.
_OTHER_KINDS = {
    b"PAR1": "a Parquet file; pandas.read_parquet(FILE).to_csv('examples.csv', index=False)",
    b"PK\x03\x04": "an Excel workbook or another archive; save the sheet as CSV, UTF-8",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save the sheet as CSV, UTF-8",
    b"\xff\xfe": 'text in UTF-16; save it as UTF-8 (in Excel, as "CSV UTF-8")',
    b"\xfe\xff": "text in UTF-16; save it as UTF-8",
    b"\x1f\x8b": "compressed; decompress it with gunzip",
    b"SQLite format": "a database; write its rows to a CSV file",
    b"\x80\x04": "a pickle, which is never opened, because that can run a program; write CSV",
    b"\x80\x05": "a pickle, which is never opened, because that can run a program; write CSV",
}


class TableError(ValueError):
    """A table of examples or a list of classes cannot be used."""


def existing_file(path: str | os.PathLike, what: str) -> str:
    """Returns the absolute path or the URL of a file.

    Raises:
        TableError: there is no such file; the message gives similar names.
    """
    path = existing(path, what)
    if locations.status(path).is_file:
        return path
    raise TableError(f"{path} is not a file; {what} must be one")


def existing(path: str | os.PathLike, what: str) -> str:
    """Returns the absolute path of a file or a local folder, or the URL of a file.

    Raises:
        TableError: there is none; the message gives similar names.
    """
    locations.check_schemes([path], what)
    path = locations.absolute(path)
    if locations.scheme_of(path):
        try:
            is_file = locations.status(path).is_file
        except OSError as error:
            raise TableError(f"{what} {path} was not found: {error}") from error
        if is_file:
            return path
        raise TableError(f"{path} is not a file; {what} must be one, or a local folder")
    if os.path.exists(path):
        return path
    folder, name = os.path.split(path)
    if not os.path.isdir(folder):
        raise TableError(f"{what} {path} was not found, and neither was its folder")
    near = difflib.get_close_matches(name, os.listdir(folder), n=SHOWN)
    hint = f"; similar names there: {', '.join(near)}" if near else ""
    raise TableError(f"{what} {path} was not found{hint}")


def check_is_text(path: str) -> None:
    """Refuses files of well-known kinds that are no text, and says how to make text of them."""
    with locations.open_binary(path) as file:
        start = file.read(16)
    for first_bytes, kind in _OTHER_KINDS.items():
        if start.startswith(first_bytes):
            raise TableError(f"{path} is not CSV or JSON; it is {kind}")
    if b"\0" in start:
        raise TableError(
            f"{path} is not CSV or JSON: it begins with {start!r}, as a binary file or text in "
            "UTF-16 does; write CSV in UTF-8"
        )


def text_lines(path: str, start: int = 0) -> Iterator[str]:
    """Yields the lines of a UTF-8 file with their ends; a byte order mark is skipped.

    Args:
        path: the file.
        start: the byte at which the first line begins.

    Raises:
        TableError: a line is not UTF-8.
    """
    try:
        with locations.open_binary(path) as binary:
            binary.seek(start)
            encoding = "utf-8" if start else "utf-8-sig"
            with io.TextIOWrapper(binary, encoding=encoding, newline="") as file:
                yield from file
    except UnicodeDecodeError:
        with locations.open_binary(path) as binary:
            for line, encoded in enumerate(binary, start=1):
                try:
                    encoded.decode()
                except UnicodeDecodeError as error:
                    raise TableError(
                        f"{path}, line {line}: byte {encoded[error.start]:#04x} is not UTF-8; "
                        "save the file as UTF-8"
                    ) from None
        raise


def is_image_name(text: object) -> bool:
    """Returns whether a text ends in the suffix of an image file."""
    return isinstance(text, str) and text.strip().lower().endswith(IMAGE_SUFFIXES)


def show(items: Sequence[object]) -> str:
    """Lists the first five items with quotes."""
    return first_few([repr(item) for item in items])


def two_readings(question: str, readings: Sequence[tuple[str, str]], reason: str) -> TableError:
    """Returns an error that shows several readings, each with the flag that decides for it.

    Args:
        question: what can be read in several ways, with the path of the file.
        readings: for each reading the flag and what it gives.
        reason: why none of them is taken, as a sentence.
    """
    lines = first_lines([f"{flag} reads {text}" for flag, text in readings])
    return TableError(f"{question} can be read in {len(readings)} ways:\n{lines}\n{reason}")
