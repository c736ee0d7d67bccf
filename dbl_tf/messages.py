"""Lists in messages: the first few items of many, and how many more there are."""

from collections.abc import Sequence

SHOWN = 5


def first_few(
    items: Sequence[object], separator: str = ", ", limit: int = SHOWN, *, count: int | None = None
) -> str:
    """The first few items on one line.

    Args:
        items: What to list.
        separator: What stands between two items.
        limit: How many items are listed at most.
        count: How many items there are, where `items` holds only the first of them.

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
    """The first few items, each on an indented line of its own.

    Args:
        items: What to list.
        indent: What every line begins with.
        limit: How many items are listed at most.
        count: How many items there are, where `items` holds only the first of them.

    Example:

    >>> print(first_lines(["ant", "bee", "cat", "dog"], limit=2))
      ant
      bee
      and 2 more
    """
    more = _num_more(items, limit, count)
    lines = [*map(str, items[:limit]), *([f"and {more} more"] if more else [])]
    return "\n".join(f"{indent}{line}" for line in lines)


def _num_more(items: Sequence[object], limit: int, count: int | None) -> int:
    return (len(items) if count is None else count) - min(len(items), limit)
