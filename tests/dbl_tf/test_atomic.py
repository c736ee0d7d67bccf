"""Files and folders are written whole or not at all, whoever else writes and whatever happens."""

import contextlib
import pathlib
import resource
import signal

import keras
import numpy as np
import pytest

from dbl_tf import LabelStatistics, atomic

SECONDS = 600  # after which something hangs


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@contextlib.contextmanager
def files_of_at_most(size):
    """Makes writing beyond this size fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_appears_at_the_end_of_the_block_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "config.json"
    for content in ("first", "second"):
        before = path.read_text() if path.exists() else None
        with atomic.replacing(str(path)) as temporary:
            temporary.write_text(content)
            assert temporary.parent == tmp_path and temporary.suffix == ".json"
            assert not list(tmp_path.glob("c*.json"))[1:]  # no pattern of the user's matches it
            assert (path.read_text() if path.exists() else None) == before
        assert path.read_text() == content
    assert names_in(tmp_path) == ["config.json"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "config.json"
    path.write_text("old")
    with pytest.raises(type(error)), atomic.replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["config.json"]


def test_errors_name_the_file_and_not_its_temporary_name(tmp_path):
    with pytest.raises(FileNotFoundError) as error, atomic.replacing(tmp_path / "no" / "a") as tmp:
        tmp.write_text("content")
    assert error.value.filename == str(tmp_path / "no" / "a")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError) as error, atomic.replacing(tmp_path / "folder") as tmp:
        tmp.write_text("content")
    assert error.value.filename == str(tmp_path / "folder")
    with pytest.raises(FileNotFoundError) as error, atomic.replacing(tmp_path / "never written"):
        pass
    assert error.value.filename == str(tmp_path / "never written")
    assert names_in(tmp_path) == ["folder"]


WRITES_AGAIN_AND_AGAIN = """
import sys
from dbl_tf import atomic
path, letter = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(150):
    with atomic.replacing(path) as temporary, open(temporary, "w") as file:
        for _ in range(50):
            file.write(letter * 1000)
            file.flush()
print("done")
"""


def test_two_processes_that_write_one_file_never_meet(tmp_path, start_plain):
    path = tmp_path / "shared.txt"
    writers = [start_plain(WRITES_AGAIN_AND_AGAIN, path, letter) for letter in "ab"]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    seen = set()
    while any(writer.poll() is None for writer in writers):
        with contextlib.suppress(FileNotFoundError):  # before the first one is done
            content = path.read_text()
            assert content in ("a" * 50_000, "b" * 50_000)
            seen.add(content[0])
    for writer in writers:
        out, err = writer.communicate(timeout=SECONDS)
        assert (out, writer.returncode) == ("done\n", 0), err
    assert seen == {"a", "b"}
    assert names_in(tmp_path) == ["shared.txt"]


KILLED = """
import os, signal, sys
from dbl_tf import atomic
with atomic.replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file_and_what_can_be_cleared_away(tmp_path, start_plain):
    path = tmp_path / "deep" / "config.json"
    path.parent.mkdir()
    path.write_text("old")
    process = start_plain(KILLED, path)
    process.communicate(timeout=SECONDS)
    assert process.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (left,) = set(names_in(path.parent)) - {"config.json"}
    assert atomic.target_name(left) == "config.json"
    # What earlier versions called such files and folders.
    (tmp_path / "statistics.json.incomplete").touch()
    (tmp_path / "1.incomplete" / "variables").mkdir(parents=True)
    (tmp_path / "1.incomplete" / "variables" / "model.incomplete.keras").touch()
    (tmp_path / "complete.txt").touch()
    atomic.remove_incomplete(tmp_path)
    assert names_in(tmp_path) == ["complete.txt", "deep"]
    assert names_in(tmp_path / "deep") == ["config.json"]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        (".config.incomplete-0123456789abcdef.json", "config.json"),
        (".digest.incomplete-0123456789abcdef", "digest"),
        ("..hidden.incomplete-0123456789abcdef.txt", ".hidden.txt"),
        ("config.incomplete.json", "config.json"),
        ("statistics.json.incomplete", "statistics.json"),
        ("config.json", "config.json"),
        ("thesis.incomplete.chapter.tex", "thesis.incomplete.chapter.tex"),
        ("incomplete.txt", "incomplete.txt"),
    ],
)
def test_temporary_names_tell_what_they_were_for(name, target):
    assert atomic.target_name(name) == target


def write_text(path):
    path.write_text("x" * 100_000)


def write_npy(path):
    np.save(path, np.zeros(100_000))


def write_npz(path):
    np.savez(path, weights=np.random.default_rng(0).random(100_000))


def write_network(path):
    keras.Sequential([keras.Input((300,)), keras.layers.Dense(300)]).save(path)


def save_statistics(path):
    LabelStatistics.from_labels(np.eye(2000, dtype=np.int8)).save(path)


@pytest.mark.parametrize(
    ("write", "suffix"),
    [
        (write_text, ".txt"),
        (write_npy, ".npy"),
        (write_npz, ".npz"),
        (write_network, ".keras"),
        (save_statistics, ".json"),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path, write, suffix):
    path = tmp_path / f"file{suffix}"
    path.write_text("old")
    with (
        files_of_at_most(20_000),
        pytest.raises(OSError) as error,
        atomic.replacing(path) as temporary,
    ):
        write(temporary)
    assert str(path) in str(error.value)
    assert path.read_text() == "old"
    assert names_in(tmp_path) == [path.name]
    with atomic.replacing(path) as temporary:
        write(temporary)
    assert path.stat().st_size > 20_000


def test_statistics_on_a_full_disk_leave_the_old_file_and_are_named(tmp_path):
    path = tmp_path / "statistics.json"
    small = LabelStatistics.from_labels(np.eye(3, dtype=int))
    small.save(path)
    with files_of_at_most(20_000), pytest.raises(OSError, match=r"File too large: .*statistics\.j"):
        save_statistics(path)
    assert names_in(tmp_path) == ["statistics.json"]
    assert LabelStatistics.load(path).num_classes == 3


def test_a_folder_is_published_whole(tmp_path):
    with atomic.temporary_folder(tmp_path / "models") as folder:
        assert names_in(folder) == []
        (folder / "variables").mkdir()
        (folder / "variables" / "data").write_text("content")
        atomic.publish(folder, tmp_path / "models" / "1")
        assert not folder.exists()
    assert (tmp_path / "models" / "1" / "variables" / "data").read_text() == "content"
    assert names_in(tmp_path / "models") == ["1"]


def test_a_place_that_is_taken_stays_as_it_is(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter").write_text("dear")
    (tmp_path / "file").write_text("text")
    (tmp_path / "dangling").symlink_to("nowhere")
    taken = ("empty", "full", "file", "dangling")
    with atomic.temporary_folder(tmp_path) as folder:
        (folder / "new").touch()
        for name in taken:
            with pytest.raises(FileExistsError) as error:
                atomic.publish(folder, tmp_path / name)
            assert error.value.filename == str(tmp_path / name)
        atomic.publish(folder, tmp_path / "free")
    assert names_in(tmp_path) == sorted([*taken, "free"])
    assert names_in(tmp_path / "empty") == []
    assert (tmp_path / "full" / "letter").read_text() == "dear"
    assert names_in(tmp_path / "free") == ["new"]


def test_a_folder_that_is_not_published_is_removed(tmp_path):
    with pytest.raises(ValueError), atomic.temporary_folder(tmp_path) as folder:
        (folder / "data").touch()
        raise ValueError
    with atomic.temporary_folder(tmp_path):
        pass
    assert names_in(tmp_path) == []


WAITS_IN_A_FOLDER = """
import sys, time
from dbl_tf import atomic
with atomic.temporary_folder(sys.argv[1]) as folder:
    (folder / "data").write_text("half")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_only_folders_of_killed_processes_are_cleared_away(tmp_path, start_plain):
    own = tmp_path / "incomplete-notes"  # of the user
    own.mkdir()
    before = tmp_path / f"incomplete-{'0a' * 16}"  # as earlier versions left them
    before.mkdir()
    (before / "saved_model.pb").touch()
    killed, living = (start_plain(WAITS_IN_A_FOLDER, tmp_path) for _ in range(2))
    killed_folder, living_folder = (
        pathlib.Path(process.stdout.readline().strip()) for process in (killed, living)
    )
    killed.kill()
    killed.communicate()
    assert (killed_folder / "data").exists()
    with atomic.temporary_folder(tmp_path) as here, atomic.temporary_folder(tmp_path) as again:
        assert here.is_dir() and again.is_dir()  # of a living process too: this one
        assert not killed_folder.exists() and not before.exists()
        assert (living_folder / "data").read_text() == "half"
        assert own.is_dir()
    living.kill()
    living.communicate()
    with atomic.temporary_folder(tmp_path):
        pass
    assert names_in(tmp_path) == ["incomplete-notes"]


PUBLISHES_AGAIN_AND_AGAIN = """
import sys
from dbl_tf import atomic
for i in range(150):
    with atomic.temporary_folder(sys.argv[1]) as folder:
        for k in range(5):
            (folder / str(k)).write_text(sys.argv[2])
        atomic.publish(folder, f"{sys.argv[1]}/{sys.argv[2]}-{i}")
"""


def test_processes_that_start_and_clear_at_once_lose_no_folder(tmp_path, start_plain):
    writers = [start_plain(PUBLISHES_AGAIN_AND_AGAIN, tmp_path, name) for name in "abc"]
    for writer in writers:
        _, err = writer.communicate(timeout=SECONDS)
        assert writer.returncode == 0, err
    assert names_in(tmp_path) == sorted(f"{name}-{i}" for name in "abc" for i in range(150))
    for path in tmp_path.iterdir():
        assert [file.read_text() for file in sorted(path.iterdir())] == [path.name[0]] * 5
