"""Signals that end a training: after the step that is under way, with a checkpoint, or at once."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from dbl_tf.terminal import is_terminal
from dbl_tf.training.preemption import noticing_preemption

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Programs such as `timeout` send one notice to the process and again to its group.
_SECONDS_OF_ONE_NOTICE = 0.2
_SECONDS_UNTIL_AGAIN = 0.01


class StoppedError(KeyboardInterrupt):
    """A signal has ended the work, which can be continued.

    It is no `Exception`, so that what handles errors does not take it for one.

    Args:
        number: the number of the signal.
        where: how far the work was, for the message.
        continues: whether the same command continues the work.

    Attributes:
        signal: the signal.
    """

    def __init__(self, number: int, where: str = "", *, continues: bool = True):
        super().__init__(f"stopped{where}{'; the same command continues' if continues else ''}")
        self.signal = signal.Signals(number)

    @property
    def status(self) -> int:
        """The exit status by which a shell knows the signal: 130 or 143."""
        return 128 + self.signal


class Notice:
    """Whether a signal has asked for the end of a training.

    Attributes:
        signal: the number of the first signal; None if there was none.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def watch(self, wakeups: socket.socket) -> None:
        """Reads the numbers of signals until the socket is closed; the second ends the process."""
        first_at = 0.0
        while numbers := wakeups.recv(1):
            if numbers[0] not in SIGNALS:
                continue
            if self.signal is None:
                self.signal, first_at = numbers[0], time.monotonic()
                name = signal.Signals(numbers[0]).name
                start = "\n" if is_terminal(sys.stderr) else ""  # behind ^C
                print(
                    f"{start}{name}: stopping after this step, with a checkpoint; a second one "
                    "stops at once",
                    file=sys.stderr,
                    flush=True,
                )
            elif time.monotonic() - first_at > _SECONDS_OF_ONE_NOTICE:
                os._exit(128 + numbers[0])


@contextlib.contextmanager
def noticing_signals() -> Iterator[Notice]:
    """Inside, the first SIGINT or SIGTERM is only noticed, and the second ends the process.

    A thread of its own reads the signals, so that the second one works while the main thread is in
    a long operation of TensorFlow. Outside the main thread, and for signals that the process
    ignores, nothing changes.
    """
    notice = Notice()
    if threading.current_thread() is not threading.main_thread():
        yield notice
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    noticed = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    # Without a handler in Python, Python does not write to the wake-up descriptor.
    before = {number: signal.signal(number, _ignore) for number in noticed}
    descriptor_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher = threading.Thread(target=notice.watch, args=(reader,), daemon=True)
    watcher.start()
    try:
        with noticing_preemption():
            yield notice
    finally:
        signal.set_wakeup_fd(descriptor_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        watcher.join()
        reader.close()


@contextlib.contextmanager
def exiting_when_stopped(program: str, *, continues: bool = True) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM end the program with one line, and status 130 or 143.

    Work that cannot finish a step is left where it is; a second signal ends the process at once.

    Args:
        program: the name of the program in the line.
        continues: whether the same command continues the work.

    Raises:
        SystemExit: a signal was received.
    """

    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise StoppedError(number, continues=continues)

    def stop_later(lost: "sys.UnraisableHookArgs") -> None:
        if isinstance(lost.exc_value, StoppedError):
            for each in before:
                signal.signal(each, stop)
            # At once, it would be handled in this hook, which raises nothing either.
            again = threading.Timer(
                _SECONDS_UNTIL_AGAIN, os.kill, (os.getpid(), lost.exc_value.signal)
            )
            again.daemon = True
            again.start()
        else:
            hook_before(lost)

    handled = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in handled}
    # A signal may be handled in a callback, such as that of a weak reference, out of which Python
    # raises nothing; the signal is then handled again.
    hook_before, sys.unraisablehook = sys.unraisablehook, stop_later
    try:
        yield
    except BaseException as error:
        if isinstance(error, StoppedError):
            stopped = error
        elif received:  # native code puts an error of its own in place of one that it meets
            stopped = StoppedError(received[0], continues=continues)
        else:
            raise
        print(f"{program}: {stopped}", file=sys.stderr)
        raise SystemExit(stopped.status) from error
    finally:
        sys.unraisablehook = hook_before
        for number, handler in before.items():
            signal.signal(number, handler)


def _ignore(number: int, frame: FrameType | None) -> None:
    """Does nothing: `Notice.watch` reads the signal."""
