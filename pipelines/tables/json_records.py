"""Tables in JSON: an object on each line, or one array of objects; and COCO documents."""

import io
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from dbl_tf.messages import first_few
from pipelines import locations
from pipelines.findings import Findings
from pipelines.tables import text
from pipelines.tables.text import TableError

COCO_KEYS = ("images", "annotations", "categories")

_SAMPLE = 1000  # objects by which fields are recognized
_DEPTH = 3  # objects within objects whose fields are columns, as in objects.categories
_NOT_OBJECTS = "lines that are not one JSON object each"


class Absent:
    """The value of a field that an object does not have."""

    def __repr__(self) -> str:
        return "no such field"


ABSENT = Absent()


class JsonTable:
    """JSON lines, or an array of objects; a field of an object within is named `outer.inner`.

    Args:
        path: the file.
        entries: the objects of an array; None to read lines of the file.

    Attributes:
        path: the file.
        place: what the numbers of rows count: "line", or "entry" of an array.
        names: the fields of the first objects.
    """

    def __init__(self, path: str, entries: list[Any] | None = None):
        self.path, self._entries = path, entries
        self.place = "line" if entries is None else "entry"
        objects = itertools.islice(self._objects(Findings(path)), _SAMPLE)
        self._first = [value for _, value in objects]
        self.names = list(dict.fromkeys(name for value in self._first for name in value))
        self._further: dict[str, None] = {}
        if not self._first and entries is not None:
            raise TableError(f"{path} holds an array without objects; it must hold one per image")

    def sample(self) -> list[list[Any]]:
        """Returns the values of the first objects, by which fields are recognized."""
        return [[value.get(name, ABSENT) for name in self.names] for value in self._first]

    def rows(self, problems: Findings) -> Iterator[tuple[int, list[Any]]]:
        """Yields the line or entry of each object, and its values in the order of `names`.

        Args:
            problems: receives lines that are no objects; they are left out.
        """
        known = set(self.names)
        for number, value in self._objects(problems):
            if not value.keys() <= known:
                self._further |= dict.fromkeys(name for name in value if name not in known)
            yield number, [value.get(name, ABSENT) for name in self.names]

    @property
    def further_names(self) -> list[str]:
        """Fields that `rows` has met and that `names` does not hold."""
        return list(self._further)

    def _objects(self, problems: Findings) -> Iterator[tuple[int, dict[str, Any]]]:
        source = enumerate(
            text.text_lines(self.path) if self._entries is None else self._entries, start=1
        )
        for number, value in source:
            if self._entries is None:
                if value.isspace():
                    continue
                parsed, found = _parse(value)
                if found:
                    problems.add(_NOT_OBJECTS, number, found)
                    continue
                value = parsed
            if not isinstance(value, dict):
                shown = json.dumps(value, ensure_ascii=False)[:40]
                kind = "array" if isinstance(value, list) else "value"
                problems.add(_NOT_OBJECTS, number, f"a JSON {kind}, {shown}")
                continue
            yield number, _flat(value)


def open_json(path: str) -> JsonTable | Mapping[str, Any]:
    """Opens a file of JSON: lines of objects, an array of objects, or a COCO document.

    Args:
        path: the file.

    Returns:
        A table, or the COCO document with its keys `images`, `annotations` and `categories`.

    Raises:
        TableError: it is none of these.
    """
    if path.lower().endswith((".jsonl", ".ndjson")) or _is_lines(path):
        return JsonTable(path)
    with (
        locations.open_binary(path) as binary,
        io.TextIOWrapper(binary, encoding="utf-8-sig") as file,
    ):
        try:
            document = json.load(file)
        except json.JSONDecodeError as error:
            raise TableError(
                f"{path}, line {error.lineno}: column {error.colno}: {error.msg}; it must hold an "
                "object on each line, an array of objects, or a COCO document"
            ) from None
        except UnicodeDecodeError:
            for _ in text.text_lines(path):  # which names the line
                pass
            raise
        except (ValueError, RecursionError) as error:
            raise TableError(f"{path} cannot be read as JSON: {_reason(error)}") from None
    if isinstance(document, list):
        return JsonTable(path, document)
    if isinstance(document, dict) and all(isinstance(document.get(k), list) for k in COCO_KEYS):
        return document
    found = (
        f"an object with {first_few([repr(key) for key in document]) or 'no fields'}"
        if isinstance(document, dict)
        else "a single value"
    )
    raise TableError(
        f"{path} holds {found}; a COCO document has the lists {', '.join(COCO_KEYS)}, and a table "
        'is an array of objects or one object on each line, such as {"image": "images/0001.jpg", '
        '"split": "train", "labels": ["dog"]}'
    )


def is_json(path: str) -> bool:
    """Returns whether a file is JSON by its name or its first character."""
    if path.lower().endswith((".jsonl", ".ndjson", ".json")):
        return True
    with locations.open_binary(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"[{"))


def _is_lines(path: str) -> bool:
    """Returns whether the first line is an object by itself, and no COCO document."""
    lines = (line for line in text.text_lines(path) if not line.isspace())
    first = next(lines, None)
    if first is None:
        return True
    if not first.lstrip().startswith("{"):
        return False
    value, found = _parse(first)
    if found:
        # An object that ends on this line is malformed; one that goes on is a document.
        return first.rstrip().endswith("}") and next(lines, "").lstrip().startswith("{")
    if next(lines, None) is not None:
        return True
    return not any(isinstance(value.get(key), list | dict) for key in COCO_KEYS[:2])


def _parse(line: str) -> tuple[Any, str]:
    """Returns the value of a line, and what is wrong with it, "" if nothing is."""
    try:
        return json.loads(line), ""
    except json.JSONDecodeError as error:
        return None, f"column {error.colno}: {error.msg}"
    except (ValueError, RecursionError) as error:
        return None, _reason(error)


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "lists or objects are nested too deeply"
    return str(error)


def _flat(value: Mapping[str, Any], depth: int = _DEPTH) -> dict[str, Any]:
    """Returns the fields of an object, where those of objects within are named outer.inner."""
    if not any(isinstance(field, dict) for field in value.values()):
        return dict(value)
    flat: dict[str, Any] = {}
    for name, field in value.items():
        if isinstance(field, dict) and field and depth > 1:
            inner = _flat(field, depth - 1)
            flat |= {f"{name}.{key}": part for key, part in inner.items()}
        else:
            flat[name] = field
    return flat


def as_text(value: Any) -> str:
    """Returns a value as a cell of delimited text would hold it."""
    if isinstance(value, str):
        return value
    if value is None or value is ABSENT:
        return ""
    return json.dumps(value, ensure_ascii=False)
