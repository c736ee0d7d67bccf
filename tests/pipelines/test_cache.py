import itertools
import os

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
    with cache.writing(path) as tmp:
        np.save(tmp, np.arange(3))
    assert cache.load(KIND.path(tmp_path / "cache", ["a"], [file]), np.load).tolist() == [0, 1, 2]
    newer = cache.Kind("things", version=4, suffix=".npy")
    assert cache.load(newer.path(tmp_path / "cache", ["a"], [file]), np.load) is None
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_a_damaged_file_is_named_removed_and_never_an_error(tmp_path, caplog, suffix):
    path = tmp_path / f"result{suffix}"

    def read(path):
        with np.load(path) as content:
            return content["names"], content["codes"]

    if suffix == ".npz":
        np.savez(path, names=np.array(["a", "bc"]), codes=np.arange(5))
    else:
        np.save(path, np.arange(40.0).reshape(5, 8))
    intact, random = path.read_bytes(), np.random.default_rng(0)
    load = read if suffix == ".npz" else np.load
    num_damaged = 0
    for i in range(len(intact)):
        damaged = bytearray(intact)
        damaged[i] ^= int(random.integers(1, 256))
        path.write_bytes(damaged if i % 4 else intact[:i])
        caplog.clear()
        if cache.load(path, load) is None:
            assert not path.exists()
            assert f"{path} is damaged" in caplog.text
            num_damaged += 1
    assert num_damaged > len(intact) // 8


def test_a_file_that_may_not_be_read_stays_and_is_an_error(tmp_path):
    (tmp_path / "result.npy").mkdir()
    with pytest.raises(IsADirectoryError):
        cache.load(tmp_path / "result.npy", np.load)
    assert (tmp_path / "result.npy").is_dir()
