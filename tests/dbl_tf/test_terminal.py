"""Progress in a file and on a terminal, which is a pseudo-terminal of the system."""

import contextlib
import os
import re
import sys
import time

import pytest

from dbl_tf import terminal


class Clock:
    """Stands still until it is moved, so that no test waits."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


@contextlib.contextmanager
def on_a_terminal(monkeypatch):
    """The output is a terminal of 100 columns inside; yields a function that reads what it got."""
    master, slave = os.openpty()
    with monkeypatch.context() as patch, open(slave, "w", encoding="utf-8") as stream:
        patch.setenv("TERM", "xterm-256color")
        patch.setenv("COLUMNS", "100")
        patch.delenv("NO_COLOR", raising=False)
        patch.setattr(sys, "stdout", stream)

        def read():
            print("<end>", end="", file=stream, flush=True)
            got = b""
            while not got.endswith(b"<end>"):  # a terminal passes on what it got bit by bit
                got += os.read(master, 1 << 20)
            return got.removesuffix(b"<end>").decode()

        yield read
    os.close(master)


def test_in_a_file_long_work_says_every_30_seconds_how_far_it_is(clock, capsys):
    with terminal.Counter("checking images", 2000, "images") as counter:
        for _ in range(20):
            clock.now += 8
            counter.advance(100)
    assert capsys.readouterr().out.splitlines() == [
        # at 32, 64, 96, 128 and 160 seconds, of which each is the first 30 after the line before
        f"checking images: {done:,} of 2,000 images, 12 a second, about {left} left"
        for done, left in [
            (400, "2 min 8 s"),
            (800, "1 min 36 s"),
            (1200, "1 min 4 s"),
            (1600, "32 s"),
            (2000, "0 s"),
        ]
    ]


def test_short_or_silent_work_says_nothing_in_a_file(clock, capsys):
    with terminal.Counter("checking images", None, "images") as counter:
        clock.now += 29
        counter.advance(100)
    with terminal.Counter("checking images", None, "images", verbose=0) as counter:
        clock.now += 290
        counter.advance(100)
    assert capsys.readouterr().out == ""


def test_a_terminal_shows_a_bar_that_is_gone_at_the_end(clock, monkeypatch):
    with on_a_terminal(monkeypatch) as read:
        with terminal.Counter("checking images", 200, "images") as counter:
            for _ in range(4):
                clock.now += 1
                counter.advance(50)
            counter.say("[bold]a line stays")
        shown = read()
    assert "checking images: 100 of 200 images, 50 a second, about 2 s left" in shown
    assert "━" in shown and "[bold]a line stays" in shown and "\r" in shown
    assert "\x1b[?25l" not in shown  # the cursor is not hidden, or a kill would leave it so
    assert shown.rstrip().endswith("\x1b[2K")  # the last thing is that the bar's line is cleared


def test_lines_are_to_be_had_on_a_terminal_too(clock, monkeypatch):
    with on_a_terminal(monkeypatch) as read:
        with terminal.Counter("checking images", None, "images", verbose=2) as counter:
            clock.now += 31
            counter.advance(62)
        # The terminal itself adds the \r.
        assert read() == "checking images: 62 images, 2.0 a second\r\n"


def test_paths_are_links_on_a_terminal_alone(tmp_path, monkeypatch):
    path = tmp_path / "a b.html"
    assert terminal.link(path) == str(path)
    with on_a_terminal(monkeypatch):
        linked = terminal.link(path)
        monkeypatch.setenv("TERM", "dumb")
        assert terminal.link(path) == str(path)
    uri = re.escape(path.as_uri())
    assert re.fullmatch(rf"\x1b\]8;[^;]*;{uri}\x1b\\{path}\x1b\]8;;\x1b\\", linked)


def test_durations_and_rates():
    assert [terminal.duration(s) for s in (0, 59.4, 59.6, 3599.4, 86400)] == [
        "0 s",
        "59 s",
        "1 min 0 s",
        "59 min 59 s",
        "24 h 0 min",
    ]
    assert [terminal.rate(r) for r in (0.05, 9.94, 12.3, 54321)] == ["0.05", "9.9", "12", "54,321"]
