import hashlib
import pathlib
import re

import pytest
import tensorflow as tf

from pipelines import cache, locations


@pytest.fixture
def bucket(tmp_path) -> str:
    """A folder in memory with `a.txt`, `b/c.txt`."""
    folder = f"ram://{tmp_path.name}/data"
    tf.io.gfile.makedirs(f"{folder}/b")
    for name, content in (("a.txt", b"first"), ("b/c.txt", b"second")):
        with tf.io.gfile.GFile(f"{folder}/{name}", "wb") as file:
            file.write(content)
    return folder


@pytest.mark.parametrize(
    ("location", "scheme"),
    [
        ("gs://bucket/a.jpg", "gs"),
        ("https://host/a.jpg", "https"),
        ("file:///a.jpg", "file"),
        ("/data/a.jpg", None),
        ("C:/data/a.jpg", None),
        ("C:\\data\\a.jpg", None),
        ("x://a.jpg", None),  # one letter is a drive
        ("images/what is://this.jpg", None),
        ("", None),
    ],
)
def test_a_scheme_has_two_letters_or_more_and_two_slashes(location, scheme):
    assert locations.scheme_of(location) == scheme
    assert locations.scheme_of(pathlib.PurePosixPath("images/a.jpg")) is None


@pytest.mark.parametrize(
    ("folder", "name", "joined"),
    [
        ("/data", "a.jpg", "/data/a.jpg"),
        ("/data", "/other/a.jpg", "/other/a.jpg"),
        ("/data/x", ".././a.jpg", "/data/a.jpg"),
        ("/data", "gs://bucket//odd/../a.jpg", "gs://bucket//odd/../a.jpg"),
        ("gs://bucket", "a.jpg", "gs://bucket/a.jpg"),
        ("gs://bucket/", "x/a.jpg", "gs://bucket/x/a.jpg"),
        ("gs://bucket/x", "../a.jpg", "gs://bucket/a.jpg"),
        ("gs://bucket/x", "../../../a.jpg", "gs://bucket/a.jpg"),
        ("gs://bucket/x", "./a.jpg", "gs://bucket/x/a.jpg"),
        ("gs://bucket/x", "/data/a.jpg", "/data/a.jpg"),
        ("gs://bucket/x", "ram://y/a.jpg", "ram://y/a.jpg"),
        ("file:///data", "a.jpg", "file:///data/a.jpg"),
    ],
)
def test_names_are_joined_to_folders_of_either_kind(folder, name, joined):
    assert locations.join(folder, name) == joined


def test_absolute_and_relative_keep_urls(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert locations.absolute("gs://bucket/../a") == "gs://bucket/../a"
    assert locations.absolute("a") == str(tmp_path / "a")
    assert locations.absolute("~/a") == "/home/me/a"
    assert locations.relative("gs://bucket/x/a.jpg", "gs://bucket/x/") == "a.jpg"
    assert locations.relative("gs://bucket/x/a.jpg", "/data") == "gs://bucket/x/a.jpg"
    assert locations.relative("/data/x/a.jpg", "/data/y") == "../x/a.jpg"


def test_status_is_that_of_the_file_system(tmp_path, bucket):
    path = tmp_path / "a.txt"
    path.write_bytes(b"first")
    found = path.stat()
    for location in (path, str(path), f"file://{path}"):
        assert locations.status(location) == (True, False, 5, str(found.st_mtime_ns))
    assert locations.status(tmp_path)[:2] == (False, True)
    assert locations.status(f"{bucket}/a.txt")[:3] == (True, False, 5)
    assert locations.status(f"{bucket}/b")[:2] == (False, True)
    for missing in (tmp_path / "b.txt", f"{bucket}/b.txt"):
        with pytest.raises(FileNotFoundError):
            locations.status(missing)
    assert locations.is_folder(bucket) and locations.is_folder(tmp_path)
    assert not locations.is_folder(f"{bucket}/a.txt") and not locations.is_folder(path)


def test_content_stands_for_the_time_where_none_is_kept(bucket):
    kind = cache.Kind("things", version=1)
    path = f"{bucket}/a.txt"
    before = locations.status(path), kind.digest([], [path])
    assert before[0].version == f"content {hashlib.blake2b(b'first', digest_size=16).hexdigest()}"
    assert (locations.status(path), kind.digest([], [path])) == before
    tf.io.gfile.remove(path)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(b"other")
    assert locations.status(path) != before[0] and kind.digest([], [path]) != before[1]


def test_files_are_read_and_listed_behind_a_scheme(tmp_path, bucket):
    with locations.open_binary(f"{bucket}/b/c.txt") as file:
        assert file.read() == b"second"
    with pytest.raises(FileNotFoundError):
        locations.open_binary(f"{bucket}/missing.txt")
    assert locations.files_below(bucket) == [f"{bucket}/a.txt", f"{bucket}/b/c.txt"]
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "b.txt").touch()
    (tmp_path / "a.txt").touch()
    assert locations.files_below(tmp_path) == [f"{tmp_path}/a.txt", f"{tmp_path}/x/b.txt"]


def test_known_schemes_and_local_paths_pass():
    paths = ["/a.jpg", "C:/a.jpg", "gs://bucket/a.jpg", "ram://a.jpg", "file:///a.jpg", "a:/b"]
    locations.check_schemes(paths, "images")


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        (["s3://bucket/a.jpg"], ["images: 1 start with s3://", "tensorflow-io"]),
        (["https://host/a.jpg"] * 3 + ["a.jpg"], ["3 start with https://", "download the files"]),
        (["http://host/a.jpg", "s3://b/a"], ["2 start with http:// or s3://"]),
        (["hdfs://host/a.jpg"], ["hdfs://", "copy the files"]),
        (["GS://bucket/a.jpg"], ["GS://", "write gs://"]),
        (["gs:/bucket/a.jpg"], ["gs:/", "'gs:/bucket/a.jpg'", "write gs://"]),
        (["s3:/bucket/a.jpg"], ["s3:/"]),
        (["azfs+x://a"], ["azfs+x://"]),
    ],
)
def test_other_schemes_are_refused_in_one_line(paths, words):
    with pytest.raises(ValueError, match="it reads local paths, file://, gs://") as error:
        locations.check_schemes(paths, "images")
    message = str(error.value)
    assert "\n" not in message and all(each in message for each in [*words, repr(paths[0])])


def test_places_for_results_are_tried_and_left_as_they_were(tmp_path):
    (tmp_path / "file").touch()
    locations.check_output_folder(tmp_path / "new" / "run", "--run_dir")
    locations.check_output_folder(tmp_path, "--run_dir")
    locations.check_output_file(tmp_path / "new.csv", "--output")
    locations.check_output_file(tmp_path / "file", "--output")
    for check, place, words in (
        (locations.check_output_folder, "/proc/run", "nothing can be written to /proc (no such"),
        (
            locations.check_output_folder,
            tmp_path / "file" / "run",
            "file (not a directory);",
        ),
        (locations.check_output_folder, "gs://bucket/run", "must be a local folder"),
        (locations.check_output_file, tmp_path / "a" / "b.csv", f"no folder {tmp_path}/a; create"),
        (locations.check_output_file, tmp_path, "is a folder; give the file"),
        (locations.check_output_file, "/proc/b.csv", "nothing can be written to /proc"),
        (locations.check_output_file, "gs://bucket/b.csv", "must be a local file"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)) as caught:
            check(place, "--place")
        assert str(caught.value).startswith("--place") and str(place) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
