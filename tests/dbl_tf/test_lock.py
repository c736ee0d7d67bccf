import errno
import logging
import os

import pytest

from dbl_tf import lock as lock_module
from dbl_tf.lock import InUseError, Lock

SECONDS = 600  # after which something hangs

HOLDER = """
import sys, time
from dbl_tf.lock import Lock
lock = Lock(sys.argv[1])
print(lock.acquire(), flush=True)
time.sleep(600)
"""
TRIES = """
import sys
from dbl_tf.lock import InUseError, Lock
try:
    print(Lock(sys.argv[1]).acquire())
except InUseError as error:
    print(error)
"""


@pytest.fixture
def ask(start_plain):
    """Lets a second process try to acquire the lock of a directory; gives what it prints."""

    def ask(directory):
        out, err = start_plain(TRIES, directory).communicate(timeout=SECONDS)
        assert not err
        return out.strip()

    return ask


def test_a_second_process_is_refused_and_told_who_holds_the_directory(tmp_path, ask):
    with Lock(tmp_path) as lock:
        assert lock.acquire()
        assert lock.acquire()  # again, by the same object
        message = ask(tmp_path)
        assert f"{tmp_path} is in use by another run (process {os.getpid()} on " in message
    assert ask(tmp_path) == "True"
    assert [path.name for path in tmp_path.iterdir()] == [Lock.NAME]


def test_a_killed_holder_loses_it(tmp_path, start_plain):
    holder = start_plain(HOLDER, tmp_path)
    assert holder.stdout.readline() == "True\n"
    with pytest.raises(InUseError, match=rf"\(process {holder.pid} on "):
        Lock(tmp_path).acquire()
    holder.kill()
    holder.communicate()
    with Lock(tmp_path) as lock:
        assert lock.acquire()


def test_a_second_lock_of_this_process_is_refused_and_leaves_the_first_held(tmp_path, ask):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with Lock(tmp_path) as lock:
        lock.acquire()
        for directory in (tmp_path, tmp_path / "link"):
            with pytest.raises(InUseError, match=f"process {os.getpid()}"), Lock(directory) as two:
                two.acquire()
        assert "is in use" in ask(tmp_path)
    with Lock(tmp_path / "link") as lock:
        assert lock.acquire()


FORKS = """
import os, sys
from dbl_tf.lock import InUseError, Lock
lock = Lock(sys.argv[1])
lock.acquire()
if os.fork() == 0:
    lock.release()
    try:
        Lock(sys.argv[1]).acquire()
    except InUseError:
        os._exit(7)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_child_neither_holds_nor_releases_what_its_parent_holds(tmp_path, start_plain, ask):
    parent = start_plain(FORKS, tmp_path)
    assert parent.stdout.readline() == "7\n"
    assert f"(process {parent.pid} on " in ask(tmp_path)
    parent.communicate("end\n", timeout=SECONDS)
    assert ask(tmp_path) == "True"


def test_a_file_system_without_locks_is_reported_and_nothing_is_held(tmp_path, monkeypatch, caplog):
    # The real thing needs a file system of another machine.
    def refuse(file):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock_module, "_lock_file", refuse)
    with Lock(tmp_path) as one, Lock(tmp_path) as two, caplog.at_level(logging.WARNING):
        assert not one.acquire()
        assert not two.acquire()
        assert not one.acquire()
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert f"{tmp_path} cannot be locked (No locks available)" in messages[0]


def test_a_directory_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), Lock(tmp_path / "nowhere") as lock:
        lock.acquire()
