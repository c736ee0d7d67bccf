"""Texts in messages: short lists, numbers with nouns, and names that can be told apart."""

import difflib
import os
import unicodedata
from collections.abc import Iterable, Sequence

SHOWN = 5


def first_few(
    items: Sequence[object], separator: str = ", ", limit: int = SHOWN, *, count: int | None = None
) -> str:
    """Lists the first few items on one line.

    Args:
        items: the items to list.
        separator: the text between two items.
        limit: the largest number of items to list.
        count: the number of all items, if `items` holds only the first of them.

    Example:

    >>> first_few(["ant", "bee", "cat", "dog"], limit=2)
    'ant, bee and 2 more'
    """
    shown = separator.join(map(str, items[:limit]))
    more = _num_more(items, limit, count)
    return f"{shown} and {more} more" if more else shown


def first_lines(
    items: Sequence[object], indent: str = "  ", limit: int = SHOWN, *, count: int | None = None
) -> str:
    """Lists the first few items on separate, indented lines.

    Args:
        items: see `first_few`.
        indent: the beginning of every line.
        limit: see `first_few`.
        count: see `first_few`.

    Example:

    >>> print(first_lines(["ant", "bee", "cat", "dog"], limit=2))
      ant
      bee
      and 2 more
    """
    more = _num_more(items, limit, count)
    lines = [*map(str, items[:limit]), *([f"and {more} more"] if more else [])]
    return "\n".join(f"{indent}{line}" for line in lines)


def counted(number: int, noun: str) -> str:
    """Returns a number with a regular noun, in the singular or the plural.

    Example:

    >>> counted(1, "file"), counted(2000, "file")
    ('1 file', '2,000 files')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def nearest(found: object, known: Iterable[str]) -> str | None:
    """Returns the known name that was probably meant; None if none is similar.

    Args:
        found: the unknown name, whose case does not count. What is no text is not similar to any.
        known: the known names.

    Example:

    >>> nearest("DB-focal", ["db", "db_focal", "rs"])
    'db_focal'
    """
    names = {name.casefold(): name for name in known}
    near = difflib.get_close_matches(found.casefold(), names, n=1) if isinstance(found, str) else []
    return names[near[0]] if near else None


def did_you_mean(found: object, known: Iterable[str]) -> str:
    """Returns a question for the end of a message, empty if no known name is similar.

    Example:

    >>> did_you_mean("DB-focal", ["db", "db_focal", "rs"]), did_you_mean("x", ["db"])
    ("; did you mean 'db_focal'?", '')
    """
    near = nearest(found, known)
    return "" if near is None else f"; did you mean {near!r}?"


def explained(error: BaseException) -> str:
    """Returns the message of an error for the end of a program.

    An error of the system begins with the file and has no number.

    Example:

    >>> explained(FileNotFoundError(2, "No such file or directory", "runs/a.json"))
    'runs/a.json: no such file or directory'
    """
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    reason = error.strerror[:1].lower() + error.strerror[1:]
    files = [os.fsdecode(file) for file in (error.filename, error.filename2) if file is not None]
    return f"{' to '.join(files)}: {reason}" if files else reason


def one_line(error: BaseException) -> str:
    r"""Returns the message of an error on one line, or the name of its type if it has none.

    Example:

    >>> one_line(ValueError("not found:\n  a.jpg")), one_line(KeyboardInterrupt())
    ('not found: a.jpg', 'KeyboardInterrupt')
    """
    return " ".join(str(error).split()) or type(error).__name__


def quoted(text: str) -> str:
    r"""Returns a text in quotes, such that one that looks the same but is another is told apart.

    Blanks at its ends show, what is invisible is escaped, and so are the accents of letters that
    are not composed.

    Example:

    >>> quoted("caf\u00e9 "), quoted("cafe\u0301")
    ("'café '", "'cafe\\u0301'")
    """
    if unicodedata.is_normalized("NFC", text):
        return repr(text)
    parts = [
        rf"\u{ord(c):04x}" if unicodedata.combining(c) else repr(c)[1:-1] if c != "'" else r"\'"
        for c in text
    ]
    return f"'{''.join(parts)}'"


def printable(text: str) -> str:
    r"""Returns a text for a line of a terminal, in which control characters are escaped.

    Example:

    >>> printable("caf\u00e9\n\x1b[2J.jpg")
    'café\\n\\x1b[2J.jpg'
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def _num_more(items: Sequence[object], limit: int, count: int | None) -> int:
    return (len(items) if count is None else count) - min(len(items), limit)
