"""One way to read the JSON files that the project wrote: checked against a schema, field by field.

Numbers are finite, since JSON has no other ones and larger ones than float64 holds are refused.
"""

import os
import pathlib
import re
from typing import Annotated, TypeVar

import msgspec

# An index into an array, or a count.
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]

_T = TypeVar("_T")
_PLACE = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")


def read(path: str | os.PathLike, schema: type[_T], what: str) -> _T:
    """Reads a JSON file.

    Args:
        path: the file.
        schema: the type of its content, such as a `msgspec.Struct`.
        what: what the file should hold, for the message of an error.

    Raises:
        OSError: the file cannot be read; the error names it.
        ValueError: it holds something else. The message is one line with file and field.
    """
    try:
        return msgspec.json.decode(pathlib.Path(path).read_bytes(), type=schema)
    except (ValueError, RecursionError) as error:
        reason = str(error)
        if place := _PLACE.search(reason):
            reason = reason[: place.start()]
            if place[1] and not place[1].startswith("["):
                reason = f"field {place[1]}: {reason}"
        raise ValueError(f"{path} holds no {what}: {' '.join(reason.split())}") from error
