import itertools
import os
import re
import resource

import numpy as np
import pytest

from pipelines import cache, locations

KIND = cache.Kind("things", version=3, suffix=".npy")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(b"four")
    return path


def test_a_result_lies_in_the_folder_of_its_kind(tmp_path, file):
    path = KIND.path(tmp_path, ["a", b"b"], [file])
    assert path.parent == tmp_path / "things" and path.suffix == ".npy"
    assert path == KIND.path(tmp_path, ["a", b"b"], [file, str(file)][:1])
    assert path.stem == KIND.digest(["a", b"b"], [file])
    assert not path.parent.exists()


def test_no_two_dependencies_share_a_digest(tmp_path, file, monkeypatch):
    other = tmp_path / "other.bin"
    other.write_bytes(b"four")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    digests = [
        KIND.digest([]),
        KIND.digest([""]),
        KIND.digest(["", ""]),
        KIND.digest(["ab"]),
        KIND.digest(["a", "b"]),
        KIND.digest(["a\nb"]),
        KIND.digest(["b", "a"]),
        KIND.digest(["ab"], [file]),
        KIND.digest(["ab"], [other]),
        KIND.digest(["ab"], [file, other]),
        KIND.digest(["ab"], [other, file]),
        cache.Kind("things", version=4).digest(["ab"]),
        cache.Kind("others", version=3).digest(["ab"]),
    ]
    file.write_bytes(b"fives")
    digests.append(KIND.digest(["ab"], [file]))
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    digests.append(KIND.digest(["ab"], [file]))
    for a, b in itertools.combinations(range(len(digests)), 2):
        assert digests[a] != digests[b], (a, b)
    # By absolute path, and each file once.
    monkeypatch.chdir(tmp_path)
    assert KIND.digest(["ab"], ["data.bin"]) == digests[-1]
    assert KIND.digest(["ab"], [file, file]) == digests[-1]
    assert KIND.digest([b"ab"]) == digests[3]


def test_names_that_are_not_utf_8_have_digests_too():
    names = [os.fsdecode(b"caf\xe9.jpg"), os.fsdecode(b"caf\xe8.jpg")]
    assert KIND.digest(names[:1]) != KIND.digest(names[1:])


def test_the_digest_of_a_file_follows_its_state_and_the_version(file):
    first = KIND.file_digest(file, locations.status(file))
    assert len(first) == 8 and first == KIND.file_digest(str(file), locations.status(file))
    assert cache.Kind("things", version=4).file_digest(file, locations.status(file)) != first
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert KIND.file_digest(file, locations.status(file)) != first


def test_a_result_comes_back_until_its_version_changes(tmp_path, file):
    path = KIND.path(tmp_path / "cache", ["a"], [file])
    assert cache.load(path, np.load) is None
    keep(path, np.arange(3))
    assert cache.load(KIND.path(tmp_path / "cache", ["a"], [file]), np.load).tolist() == [0, 1, 2]
    newer = cache.Kind("things", version=4, suffix=".npy")
    assert cache.load(newer.path(tmp_path / "cache", ["a"], [file]), np.load) is None
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def keep(path, array):
    with cache.writing(path) as file:
        np.save(file, array)


def read_archive(file):
    with np.load(file) as content:
        return content["names"], content["codes"]


def outcomes_of_flips(path, read, number, random):
    """Loads a kept result with one flipped bit, again and again; counts what is refused."""
    intact, refused = path.read_bytes(), 0
    for _ in range(number):
        damaged = bytearray(intact)
        damaged[int(random.integers(len(intact)))] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        refused += cache.load(path, read) is None and not path.exists()
    path.write_bytes(intact)
    assert cache.load(path, read) is not None
    return refused


@pytest.fixture(params=["array", "archive"])
def kept(request, tmp_path):
    """A kept result of each form, and the function that reads it."""
    path = tmp_path / "result"
    if request.param == "array":
        keep(path, np.arange(40.0).reshape(5, 8))
        return path, np.load
    with cache.writing(path) as file:
        np.savez(file, names=np.array(["a", "bc"]), codes=np.arange(5))
    return path, read_archive


def test_no_flipped_bit_is_used(kept):
    assert outcomes_of_flips(*kept, 300, np.random.default_rng(0)) == 300


@pytest.mark.slow
def test_none_of_ten_thousand_flipped_bits_is_used(kept):
    assert outcomes_of_flips(*kept, 10_000, np.random.default_rng(19)) == 10_000


def test_a_cut_file_is_named_and_removed(kept, caplog):
    path, read = kept
    intact = path.read_bytes()
    for size in range(len(intact)):
        path.write_bytes(intact[:size])
        caplog.clear()
        assert cache.load(path, read) is None
        assert not path.exists()
        assert f"{path} is damaged (" in caplog.text and "computed again" in caplog.text
    path.write_bytes(intact + b"\0")
    assert cache.load(path, read) is None


def test_a_full_disk_leaves_nothing_and_names_the_file(tmp_path):
    path = tmp_path / "cache" / "result.npy"
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(OSError, match=re.escape(str(path))):
            keep(path, np.zeros(10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert list(path.parent.iterdir()) == []


def test_what_reads_as_something_else_is_removed(tmp_path, caplog):
    keep(tmp_path / "result.npy", np.arange(3))

    def read(file):
        raise ValueError("it holds three numbers")

    assert cache.load(tmp_path / "result.npy", read) is None
    assert "result.npy is damaged (it holds three numbers)" in caplog.text


def test_a_file_that_may_not_be_read_stays_and_is_an_error(tmp_path):
    (tmp_path / "result.npy").mkdir()
    with pytest.raises(IsADirectoryError):
        cache.load(tmp_path / "result.npy", np.load)
    assert (tmp_path / "result.npy").is_dir()
