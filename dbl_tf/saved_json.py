"""One way to write and read the JSON files of the project: with format, digest and schema.

A file begins with its format, such as `dbl_tf.Thresholds/2`, and a digest of its content, so that
no value that has changed since is used in silence. Files of earlier versions have no digest, and
some do not name their format. Numbers are finite, since JSON has no other ones and
larger ones than float64 holds are refused.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from dbl_tf import atomic

# An index into an array, or a count.
Count = Annotated[int, msgspec.Meta(ge=0, lt=2**53)]
Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Fields = dict[str, Any]

FORMAT, DIGEST = "format", "digest"

_T = TypeVar("_T")
_PLACE = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")


@dataclasses.dataclass(frozen=True)
class Format(Generic[_T]):
    """The format of one kind of file.

    Attributes:
        name: its name, such as "dbl_tf.Thresholds".
        what: what such a file holds, for messages.
        schema: the type of its content, such as a `msgspec.Struct`; without format and digest.
        remedy: what to do about a file that cannot be used, for messages: an imperative clause.
        version: the version that is written.
        migrations: for each earlier version whose fields differ, a function from its fields to
            those of the next version. It may raise a `ValueError`.
        first_with_digest: the first version whose files have a digest.
        is_edited_by_hand: whether people are expected to change such files. A change is then
            accepted with a warning, and otherwise refused.
    """

    name: str
    what: str
    schema: type[_T]
    remedy: str
    version: int = 2
    migrations: Mapping[int, Callable[[Fields], Fields]] = dataclasses.field(default_factory=dict)
    first_with_digest: int = 2
    is_edited_by_hand: bool = False

    def document(self, content: Mapping[str, Any]) -> Fields:
        """Returns content with format and digest before it, as `read` takes it from a file.

        Args:
            content: fields that fit the schema, in the types of JSON.

        Raises:
            ValueError: a number is not finite.
        """
        named = {FORMAT: f"{self.name}/{self.version}", **content}
        return {FORMAT: named[FORMAT], DIGEST: _digest(named), **content}

    def write(
        self, path: str | os.PathLike, content: Mapping[str, Any], indent: int | None = None
    ) -> None:
        """Writes a file, as a whole or not at all.

        Args:
            path: the file.
            content: see `document`.
            indent: the blanks before a field of the file; None for all fields on one line.

        Raises:
            OSError: the file cannot be written.
            ValueError: a number is not finite.
        """
        text = json.dumps(self.document(content), ensure_ascii=False, indent=indent)
        with atomic.replacing(path) as tmp_path:
            tmp_path.write_text(text, encoding="utf-8")

    def read(self, path: str | os.PathLike) -> _T:
        """Reads a file of this version or an earlier one.

        Someone who changes a file on purpose removes its digest. This is a warning.

        Raises:
            OSError: the file cannot be read; the error names it.
            ValueError: it holds something else, or was changed. The message is one line with file
                and field.
        """
        try:
            fields = msgspec.json.decode(pathlib.Path(path).read_bytes(), type=dict[str, Any])
            version = self._version(fields)
            self._check_digest(path, fields, version)
            for earlier in range(version, self.version):
                fields = self.migrations.get(earlier, lambda same: same)(fields)
            return msgspec.convert(fields, self.schema)
        except (ValueError, RecursionError) as error:
            raise self.unusable(path, error) from error

    def unusable(self, path: str | os.PathLike, reason: Exception) -> ValueError:
        """Returns the error of a file that cannot be used, on one line that says what to do."""
        return ValueError(
            f"{os.fspath(path)} holds no {self.what}: {_reason(reason)}; {self.remedy}"
        )

    def _version(self, fields: Mapping[str, Any]) -> int:
        """Returns the version of a file."""
        found = fields.get(FORMAT, f"{self.name}/1")
        known = [f"{self.name}/{version}" for version in range(1, self.version + 1)]
        if found not in known:
            raise ValueError(
                f"field {FORMAT}: this version reads {' and '.join(known)}; found {found!r}"
            )
        return known.index(found) + 1

    def _check_digest(self, path: str | os.PathLike, fields: Fields, version: int) -> None:
        """Compares content and digest, and removes format and digest from `fields`."""
        digest = fields.pop(DIGEST, None)
        changed = digest is not None and digest != _digest(fields)
        fields.pop(FORMAT, None)
        if digest is None and version >= self.first_with_digest:
            logging.warning(
                "%s has no field %s: whether its %s are as they were written cannot be told",
                path,
                DIGEST,
                self.what,
            )
        if changed and self.is_edited_by_hand:
            logging.warning(
                "%s was changed since it was written; its %s are used as they are now",
                path,
                self.what,
            )
        elif changed:
            raise ValueError(
                f"its field {DIGEST} is not that of its content, which was changed since it was "
                f"written: remove the field {DIGEST} if the change is meant"
            )


def _digest(content: Mapping[str, Any]) -> str:
    """A digest of content, hexadecimal, which does not depend on blanks or the order of fields."""
    text = json.dumps(content, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def _reason(error: Exception) -> str:
    reason = str(error)
    if place := _PLACE.search(reason):
        reason = reason[: place.start()]
        if place[1] and not place[1].startswith("["):
            reason = f"field {place[1]}: {reason}"
    return " ".join(reason.split())
