"""Finds image files whose paths are written in another spelling than the disk has.

A path means a file although no file has exactly this path, where one file differs from it in
nothing but some of these, and no other file differs from it in as few of them:

* upper and lower case, as in `a.JPG` for `a.jpg`;
* the Unicode normalization of its letters, composed or decomposed;
* blanks, quotes or invisible characters at the ends of a name;
* backslashes, which separate folders on Windows;
* an image suffix that is left out, as in `0001` for `0001.jpg`.

What is only likely to be meant is suggested and not taken: one of several such files, a file with
another image suffix, one whose path is percent-encoded, and, for a path of another machine, a file
at the end of this path.
"""

import collections
import dataclasses
import os
import posixpath
import re
import unicodedata
import urllib.parse
from collections.abc import Iterable

from pipelines import locations
from pipelines.tables.text import IMAGE_SUFFIXES

_DRIVE = re.compile(r"[A-Za-z]:")
# Ends of a path of another machine that are looked for, from the longest.
_MOST_ENDS = 8
# Folders of a folder in which images are looked for, for a hint.
_MOST_FOLDERS = 100


@dataclasses.dataclass(frozen=True)
class Found:
    """A file that a path means.

    Attributes:
        path: the path of the file.
        differences: in what the path as it is written differs from it, in words.
    """

    path: str
    differences: str


class Folders:
    """The names in local folders, each of which is listed once."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entries | None] = {}

    def find(self, path: str) -> Found | None:
        """Returns the one file that a path of no file means.

        Args:
            path: an absolute local path, or a URL, for which nothing is looked up.

        Returns:
            The file; None if the path is that of a file or folder, or means none or several.
        """
        if locations.scheme_of(path) or "\0" in path or os.path.lexists(path):
            return None
        found = [(each, _differences(path, each)) for each in self._candidates(path)]
        fewest = min((len(differences) for _, differences in found), default=0)
        nearest = [each for each in found if len(each[1]) == fewest]
        if len(nearest) != 1:
            return None
        ((file, differences),) = nearest
        return Found(file, ", ".join(differences))

    def suggest(self, path: str, folder: str) -> list[str]:
        """Returns files that a path of no file may mean, though it is not certain.

        Args:
            path: an absolute local path, or a URL, for which nothing is looked up.
            folder: the folder that relative paths start from, in which the end of a path of another
                machine is looked for.
        """
        if locations.scheme_of(path) or "\0" in path:
            return []
        candidates = self._candidates(path) or self._candidates(urllib.parse.unquote(path))
        if candidates:
            return candidates
        parent, name = os.path.split(path)
        entries = self._of(parent)
        if entries is not None:
            stem = os.path.splitext(name)[0]
            near = [os.path.join(parent, found) for found in entries.by_stem[_key(stem)]]
            if near:
                return near
        parts = _parts(os.path.relpath(path, folder))
        if ".." in parts:  # an absolute path that leads elsewhere
            parts = _parts(path)
        for start in range(max(1, len(parts) - _MOST_ENDS), len(parts)):
            end = os.path.join(folder, *parts[start:])
            if os.path.isfile(end):
                return [end]
        return []

    def _candidates(self, path: str) -> list[str]:
        """Returns all files that differ from a path in spelling alone."""
        existing, parts = path, list[str]()
        while not os.path.isdir(existing):
            existing, name = os.path.split(existing)
            parts[:0] = _parts(name)
            if not name:
                return []
        if any(_DRIVE.fullmatch(part) or not part for part in parts):
            return []  # a path that is absolute on Windows leads nowhere here
        if ".." in parts:
            return self._candidates(os.path.normpath(os.path.join(existing, *parts)))
        folders = [existing]
        for part in parts[:-1]:
            folders = [
                os.path.join(folder, name)
                for folder in folders
                for name in self._folders(folder, part)
            ]
        return [
            os.path.join(folder, name)
            for folder in folders
            for name in self._files(folder, parts[-1])
        ]

    def _folders(self, folder: str, name: str) -> list[str]:
        entries = self._of(folder)
        if entries is None:
            return []
        return [found for found in entries.by_name[_key(name)] if found in entries.folders]

    def _files(self, folder: str, name: str) -> list[str]:
        entries = self._of(folder)
        if entries is None:
            return []
        found = [each for each in entries.by_name[_key(name)] if each not in entries.folders]
        return found or entries.by_stem[_key(name)]

    def _of(self, folder: str) -> "_Entries | None":
        if folder not in self._entries:
            try:
                self._entries[folder] = _Entries.of(folder)
            except OSError:  # it does not exist, or may not be listed: it then has no such file
                self._entries[folder] = None
        return self._entries[folder]


@dataclasses.dataclass(frozen=True)
class _Entries:
    """The names in a folder by key, those of images also by the key of their stem."""

    by_name: collections.defaultdict[str, list[str]]
    by_stem: collections.defaultdict[str, list[str]]
    folders: set[str]

    @classmethod
    def of(cls, folder: str) -> "_Entries":
        by_name: collections.defaultdict[str, list[str]] = collections.defaultdict(list)
        by_stem: collections.defaultdict[str, list[str]] = collections.defaultdict(list)
        folders = set()
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                by_name[_key(entry.name)].append(entry.name)
                if entry.is_dir():
                    folders.add(entry.name)
                    continue
                stem, suffix = os.path.splitext(entry.name)
                if suffix.lower() in IMAGE_SUFFIXES:
                    by_stem[_key(stem)].append(entry.name)
        return cls(by_name, by_stem, folders)


def find_all(paths: Iterable[str]) -> dict[str, Found]:
    """Returns the file of each path that means one in another spelling; see `Folders.find`."""
    folders = Folders()
    found = {path: folders.find(path) for path in paths}
    return {path: file for path, file in found.items() if file is not None}


def is_of_another_machine(name: str) -> bool:
    """Whether a path, relative to where it should start, leads elsewhere or is one of Windows."""
    return _parts(name)[:1] == [".."] or is_of_windows(name)


def is_of_windows(path: str) -> bool:
    """Whether a path ends in one that is absolute on Windows, from a drive or from backslashes."""
    return any(
        name.startswith("\\") or _DRIVE.fullmatch(name.partition("\\")[0])
        for name in path.split("/")
    )


def _parts(name: str) -> list[str]:
    """Returns the names in a path, whether slashes or backslashes separate them."""
    parts = re.split(r"[/\\]", name)
    return [part for i, part in enumerate(parts) if part not in ("", ".") or (i == 0 and not part)]


def _trimmed(path: str) -> str:
    """Returns a path with its names free of invisible characters, and blanks and quotes around."""
    visible = "".join(c for c in path if unicodedata.category(c) != "Cf")
    return "/".join(name.strip().strip("'\"").strip() for name in visible.split("/"))


_STEPS = {
    "backslashes": lambda path: posixpath.normpath(path.replace("\\", "/")),
    "blanks, quotes or invisible characters": _trimmed,
    "Unicode normalization": lambda path: unicodedata.normalize("NFD", path),
    "upper and lower case": str.casefold,
}


def _key(path: str, without: str | None = None) -> str:
    """Returns what is equal for all spellings of a path.

    Args:
        path: a path, or a name.
        without: a difference that is to count.
    """
    for name, step in _STEPS.items():
        if name != without:
            path = step(path)
    return path if without else unicodedata.normalize("NFD", path)


def _differences(written: str, found: str) -> list[str]:
    """Returns in what a path differs from that of a file that it may mean."""
    differences = []
    if _key(written) != _key(found):
        found, suffix = os.path.splitext(found)
        differences.append(f"the suffix {suffix}")
    return differences + [name for name in _STEPS if _key(written, name) != _key(found, name)]


def folder_with(name: str, folder: str) -> str | None:
    """Returns a folder near another one in which there is a file.

    Args:
        name: the relative path of the file.
        folder: the folder that does not have it. The one above it and two levels below it are
            searched.
    """
    candidates = [os.path.dirname(folder)]
    for root, names, _ in os.walk(folder):
        depth = os.path.relpath(root, folder).count(os.sep) + (root != folder)
        names[:] = sorted(names)[:_MOST_FOLDERS] if depth < 2 else []
        candidates += [os.path.join(root, each) for each in names]
    for candidate in candidates:
        if os.path.isfile(os.path.join(candidate, name)):
            return candidate
    return None
