"""What programs show of work under way: a live bar on a terminal, and plain lines in a file."""

import os
import pathlib
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    import rich.progress

# In a file, work says how far it is so often; short work says nothing.
SECONDS_BETWEEN_LINES = 30.0
# A bar appears when work takes longer than this, and changes so often.
_SECONDS_BEFORE_BAR = 0.5
_SECONDS_BETWEEN_CHANGES = 0.1


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal that moves its cursor."""
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def link(path: str | os.PathLike) -> str:
    """Returns a path for printing, as a hyperlink (OSC 8) where the output is a terminal."""
    text = os.fspath(path)
    if not is_terminal(sys.stdout):
        return text
    from rich.console import Console
    from rich.style import Style
    from rich.text import Text

    console = Console(file=sys.stdout)
    style = Style(link=pathlib.Path(text).absolute().as_uri())
    with console.capture() as captured:
        console.print(Text(text, style), end="", soft_wrap=True)
    return captured.get()


def duration(seconds: float) -> str:
    """Returns a duration in its two largest units.

    Example:

    >>> duration(8.4), duration(75), duration(3 * 3600 + 61)
    ('8 s', '1 min 15 s', '3 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def rate(per_second: float) -> str:
    """Returns a number of items a second with two or more digits.

    Example:

    >>> rate(0.1234), rate(7.81), rate(1234.5)
    ('0.12', '7.8', '1,234')
    """
    if per_second < 1:
        return f"{per_second:.2f}"
    return f"{per_second:.1f}" if per_second < 10 else f"{per_second:,.0f}"


class Progress:
    """Shows how far work has come, on `sys.stdout`; a context manager.

    On a terminal, a bar changes in place, and is gone at the end. Elsewhere, a line is printed
    every 30 seconds, without control characters.

    Args:
        total: the number of items of the work; None if it is not known.
        verbose: 0 shows nothing, and 2 lines on a terminal too.
    """

    def __init__(self, total: int | None, verbose: str | int = "auto"):
        self._total, self._stream = total, sys.stdout
        self._is_shown = verbose != 0
        self._has_bar = self._is_shown and verbose != 2 and is_terminal(self._stream)
        self._bar: rich.progress.Progress | None = None
        now = time.monotonic()
        self._changes_at = now + _SECONDS_BEFORE_BAR
        self._line_at = now + SECONDS_BETWEEN_LINES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def update(self, done: int, text: Callable[[], str]) -> None:
        """Shows that a number of items is done, if it is time to.

        Args:
            done: the number.
            text: returns what to say of it.
        """
        if not self._is_shown:
            return
        now = time.monotonic()
        if self._has_bar and now >= self._changes_at:
            self._changes_at = now + _SECONDS_BETWEEN_CHANGES
            self._show_bar(done, text())
        elif not self._has_bar and now >= self._line_at:
            self.say(text())

    def say(self, text: str) -> None:
        """Prints a line that stays, on a terminal above the bar."""
        if not self._is_shown:
            return
        self._line_at = time.monotonic() + SECONDS_BETWEEN_LINES
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Removes the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show_bar(self, done: int, text: str) -> None:
        if self._bar is None:
            self._bar = _make_bar(self._stream, self._total)
        (task,) = self._bar.task_ids
        self._bar.update(task, completed=done, text=text)
        self._bar.refresh()


def _make_bar(stream: TextIO, total: int | None) -> "rich.progress.Progress":
    # Not needed, nor imported, where the output is a file.
    import rich.console
    import rich.progress

    class Console(rich.console.Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False  # a process that is ended at once would leave it hidden

    bar = rich.progress.Progress(
        rich.progress.BarColumn(bar_width=20),
        rich.progress.TextColumn("{task.fields[text]}", markup=False),
        console=Console(file=stream),
        auto_refresh=False,  # no thread of its own, which a fork would lose
        transient=True,
        redirect_stderr=is_terminal(sys.stderr),  # lines for a file stay there
    )
    bar.add_task("", total=total, text="")
    bar.start()
    return bar


class Counter(Progress):
    """The progress of work on items of one kind: how many are done, how fast, and what is left.

    Args:
        title: a phrase that says what is being done, such as "checking images".
        total: the number of items; None if it is not known.
        unit: what they are, such as "images".
        verbose: as of `Progress`.
    """

    def __init__(self, title: str, total: int | None, unit: str, verbose: str | int = "auto"):
        super().__init__(total, verbose)
        self._title, self._unit, self._done = title, unit, 0
        self._started = time.monotonic()

    def advance(self, num_items: int) -> None:
        """Shows that so many more items are done."""
        self.show(self._done + num_items)

    def show(self, done: int) -> None:
        """Shows that so many items are done in all."""
        self._done = done
        self.update(done, self._describe)

    def _describe(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        of_total = "" if self._total is None else f" of {self._total:,}"
        parts = [
            f"{self._title}: {self._done:,}{of_total} {self._unit}",
            f"{rate(self._done / seconds)} a second",
        ]
        if self._total is not None and self._done:
            left = seconds / self._done * (self._total - self._done)
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)
