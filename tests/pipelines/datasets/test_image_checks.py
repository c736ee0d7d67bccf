import csv
import hashlib
import io
import os
import pathlib

import numpy as np
import PIL.Image
import pytest
import scipy.sparse
import tensorflow as tf

from benchmarks import hostile_images
from dbl_tf import terminal
from pipelines import cache
from pipelines.datasets import image_checks
from pipelines.datasets.image_checks import (
    BadImage,
    bad_images_error,
    check_images,
    check_records,
)
from pipelines.examples import Examples


@pytest.fixture
def cache_dir(tmp_path) -> pathlib.Path:
    return tmp_path / "cache"


def jpeg(seed: int = 0, size: tuple[int, int] = (48, 40)) -> bytes:
    return in_format("JPEG", seed, size)


def in_format(name: str, seed: int = 0, size: tuple[int, int] = (48, 40)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    encoded = io.BytesIO()
    PIL.Image.fromarray(pixels).save(encoded, name)
    return encoded.getvalue()


def overwrite_unnoticed(path: pathlib.Path, content: bytes) -> None:
    """Other content, with the size and the modification time that the file had."""
    status = path.stat()
    assert len(content) == status.st_size
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_good_images_of_every_format_pass(tmp_path, cache_dir):
    picture = PIL.Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    paths = []
    for name in ("a.jpg", "b.png", "c.gif", "d.bmp"):
        picture.save(tmp_path / name)
        paths.append(tmp_path / name)
    assert check_images(paths, level="all", cache_dir=cache_dir) == []


def test_each_level_finds_what_it_looks_for(tmp_path, cache_dir):
    contents = {
        "good.jpg": jpeg(),
        "truncated.jpg": jpeg()[:1000],
        "truncated.png": in_format("PNG")[:-80],
        "truncated.gif": in_format("GIF")[:-200],
        "text.jpg": b"This is no picture at all, whatever it may be called.\n" * 9,
        "empty.jpg": b"",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    names = [*contents, "folder.jpg", "pipe.jpg", "missing.jpg", "null\0byte.jpg"]
    paths = [str(tmp_path / name) for name in names]

    def found(level: str) -> dict[str, str]:
        bad = check_images(paths, level=level, cache_dir=cache_dir)
        assert [paths[image.position] for image in bad] == [image.path for image in bad]
        return {names[image.position]: image.reason for image in bad}

    reasons = found("exists")
    assert reasons == {
        "empty.jpg": "is empty (0 bytes)",
        "folder.jpg": "is a folder, not a file",
        "pipe.jpg": "is not a regular file",
        "missing.jpg": "no such file",
        "null\0byte.jpg": "not a path: embedded null byte",
    }
    assert found("header").keys() == reasons.keys() | {"text.jpg"}
    reasons = found("all")
    assert reasons.keys() == set(names) - {"good.jpg"}
    assert "JPEG" in reasons["truncated.jpg"]
    assert reasons["truncated.png"].startswith("Invalid PNG data")
    assert reasons["truncated.gif"].startswith("the GIF data are truncated")
    for reason in reasons.values():
        assert len(reason) < 120 and "{{" not in reason and "[Op" not in reason, reason


def test_files_that_would_cost_too_much_are_found_before_they_do(tmp_path, cache_dir):
    contents = {
        "good.jpg": jpeg(),
        "scans.jpg": hostile_images.jpeg(10_000, 10_000, 1_000),
        "texts.png": hostile_images.png(
            8, 8, after=hostile_images.compressed_text(b"zTXt", 7_900_000) * 600
        ),
        "deep.png": hostile_images.png(8, 8, color_type=6, depth=16).replace(
            b"\0\0\0\x08\0\0\0\x08", b"\0\0\x27\x10\0\0\x27\x10", 1
        ),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with open(tmp_path / "huge.jpg", "wb") as file:
        file.truncate(20 * 10**9)  # sparse
    paths = [str(tmp_path / name) for name in [*contents, "huge.jpg"]]
    for level, count in (("exists", 1), ("header", 4), ("all", 4)):
        bad = check_images(paths, level=level, cache_dir=cache_dir)
        reasons = {os.path.basename(image.path): image.reason for image in bad}
        assert len(bad) == count
        assert reasons["huge.jpg"] == "has 20000000000 bytes; at most 816777216 are read"
    assert "more than 10 scans" in reasons["scans.jpg"]
    assert "more than 16 compressed texts" in reasons["texts.png"]
    assert "unpacks to 800000000 bytes" in reasons["deep.png"]


def test_unknown_level_is_refused_with_the_choices(cache_dir):
    with pytest.raises(ValueError, match=r"exists, header, all.*'deep'"):
        check_images([], level="deep", cache_dir=cache_dir)


def test_no_images_are_no_bad_images(cache_dir):
    assert check_images([], level="all", cache_dir=cache_dir) == []


def test_positions_hold_among_many_files_with_errors_anywhere(tmp_path, cache_dir):
    good, truncated = jpeg(), jpeg()[:700]
    bad = set(np.random.default_rng(0).choice(150, 20, replace=False).tolist()) | {0, 149}
    paths = [tmp_path / f"{i}.jpg" for i in range(150)]
    for i, path in enumerate(paths):
        path.write_bytes(truncated if i in bad else good)
    found = check_images(paths, level="all", cache_dir=cache_dir)
    assert [image.position for image in found] == sorted(bad)
    # Nothing but what passed is remembered, and the second answer is the first.
    assert len(cache.load(cache_dir / image_checks.CACHE_NAME, np.load)) == 150 - len(bad)
    assert check_images(paths, level="all", cache_dir=cache_dir) == found


def test_file_that_passed_is_read_again_only_when_it_changed(tmp_path, cache_dir):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    assert check_images([path], level="all", cache_dir=cache_dir) == []
    overwrite_unnoticed(path, b"x" * len(jpeg()))
    for level in image_checks.CHECK_LEVELS:  # a pass of the strictest level holds for the others
        assert check_images([path], level=level, cache_dir=cache_dir) == []
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert len(check_images([path], level="all", cache_dir=cache_dir)) == 1


def test_new_size_or_other_path_is_read_again(tmp_path, cache_dir):
    path, other = tmp_path / "a.jpg", tmp_path / "b.jpg"
    path.write_bytes(jpeg())
    assert check_images([path], level="all", cache_dir=cache_dir) == []
    status = path.stat()
    path.write_bytes(jpeg()[:-500])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.write_bytes(b"x" * status.st_size)
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = check_images([path, other], level="all", cache_dir=cache_dir)
    assert [image.position for image in found] == [0, 1]


def test_pass_of_the_header_is_no_pass_of_all(tmp_path, cache_dir):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg()[:1000])
    assert check_images([path], level="header", cache_dir=cache_dir) == []
    assert len(check_images([path], level="all", cache_dir=cache_dir)) == 1


def test_relative_paths_are_remembered_by_where_they_lead(tmp_path, cache_dir, monkeypatch):
    for folder, content in (("one", jpeg()), ("two", b"x" * len(jpeg()))):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(content)
        os.utime(tmp_path / folder / "a.jpg", ns=(1, 1))
    monkeypatch.chdir(tmp_path / "one")
    assert check_images(["a.jpg"], level="all", cache_dir=cache_dir) == []
    monkeypatch.chdir(tmp_path / "two")
    [found] = check_images(["a.jpg"], level="all", cache_dir=cache_dir)
    assert (found.position, found.path) == (0, "a.jpg")


def test_cache_serves_several_lists(tmp_path, cache_dir):
    paths = [tmp_path / f"{i}.jpg" for i in range(3)]
    for path in paths:
        path.write_bytes(jpeg())
        assert check_images([path], level="all", cache_dir=cache_dir) == []
    for path in paths:
        overwrite_unnoticed(path, b"x" * len(jpeg()))
    assert check_images(paths, level="all", cache_dir=cache_dir) == []
    assert sorted(os.listdir(cache_dir)) == [image_checks.CACHE_NAME]


def damaged_caches(path) -> dict[str, bytes]:
    intact, digests = path.read_bytes(), cache.load(path, np.load)
    contents = {
        "empty": b"",
        "text": b"not an array",
        "cut": intact[:-3],
        "longer": intact + b"\0",
        "an array alone": intact[intact.index(b"\x93NUMPY") :],
    }
    for name, other in (
        ("other type", digests.astype(np.int64)),
        ("pickled", np.array([{}], object)),
    ):
        with cache.writing(path) as file:
            np.save(file, other)
        contents[name] = path.read_bytes()
    return contents


def test_damaged_cache_is_named_and_rebuilt_and_not_trusted(tmp_path, cache_dir, caplog):
    paths = [tmp_path / f"{i}.jpg" for i in range(4)]
    for path in paths:
        path.write_bytes(jpeg())
    assert check_images(paths, level="all", cache_dir=cache_dir) == []
    overwrite_unnoticed(paths[0], b"x" * len(jpeg()))
    path = cache_dir / image_checks.CACHE_NAME
    for damage, content in damaged_caches(path).items():
        path.write_bytes(content)
        caplog.clear()
        found = check_images(paths, level="all", cache_dir=cache_dir)
        assert [image.position for image in found] == [0], damage
        [warning] = [r.getMessage() for r in caplog.records if "damaged" in r.getMessage()]
        assert str(path) in warning, damage
        assert len(cache.load(path, np.load)) == 3, damage


def test_cache_of_an_earlier_version_is_not_trusted(tmp_path, cache_dir):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"no picture")
    status = path.stat()
    state = f"{path}\0{status.st_size}\0{status.st_mtime_ns}".encode()
    digest = hashlib.blake2b(state, digest_size=8, key=b"1").digest()  # as version 1 had it
    passed = np.frombuffer(digest, np.uint64) & ~np.uint64(3) | np.uint64(2)
    cache_dir.mkdir()
    with cache.writing(cache_dir / image_checks.CACHE_NAME) as file:
        np.save(file, passed)
    (found,) = check_images([path], level="all", cache_dir=cache_dir)
    assert found.path == str(path)


def test_flipped_bytes_in_the_cache_never_stop_the_check(tmp_path, cache_dir):
    path = tmp_path / "a.jpg"
    path.write_bytes(jpeg())
    assert check_images([path], level="all", cache_dir=cache_dir) == []
    cached = cache_dir / image_checks.CACHE_NAME
    intact = cached.read_bytes()
    random = np.random.default_rng(0)
    for place in range(0, len(intact), 9):
        damaged = bytearray(intact)
        damaged[place] ^= int(random.integers(1, 256))
        cached.write_bytes(damaged)
        assert check_images([path], level="all", cache_dir=cache_dir) == []


def test_check_at_level_exists_leaves_no_cache(tmp_path, cache_dir):
    (tmp_path / "a.jpg").write_bytes(b"not even a picture")
    assert check_images([tmp_path / "a.jpg"], level="exists", cache_dir=cache_dir) == []
    assert not cache_dir.exists()


def test_short_check_shows_no_progress(tmp_path, cache_dir, capfd):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    check_images([tmp_path / "a.jpg"], level="all", cache_dir=cache_dir)
    assert "image" not in capfd.readouterr().out


def test_error_gives_counts_the_first_five_and_what_to_do():
    bad = [BadImage(i, f"/data/{i}.jpg", "no such file") for i in range(3, 10)]
    bad.append(BadImage(10, "/data/10.jpg", "is empty (0 bytes)"))
    error = bad_images_error(bad, num_images=90, examples="/data/t.csv", lines=range(100, 190))
    message = str(error)
    assert isinstance(error, ValueError) and error.bad == tuple(bad)
    assert "8 of 90 images of /data/t.csv" in message
    shown = "".join(f"    line {100 + i}: '/data/{i}.jpg'\n" for i in range(3, 8))
    assert f"  no such file: 7\n{shown}    and 2 more\n  is empty (0 bytes): 1\n" in message
    assert "/data/8.jpg" not in message
    assert "--skip_bad_images" in message and "--check_images=exists" in message


def test_error_without_a_table_names_no_lines():
    message = str(bad_images_error([BadImage(0, "a.jpg", "no such file")], num_images=1))
    assert "1 of 1 images cannot" in message and "line" not in message and "more" not in message


def test_all_bad_images_are_listed_where_they_are_too_many_to_show(tmp_path, cache_dir):
    bad = [BadImage(i, f"/data/{i}, or so.jpg", "no such file") for i in range(6)]
    arguments = {"num_images": 9, "examples": "/data/t.jsonl", "lines": range(2, 11)}
    short = str(bad_images_error(bad[:5], cache_dir=cache_dir, **arguments))
    assert "listed" not in short and not cache_dir.exists()
    listed = cache_dir / "bad_images_of_t.jsonl.csv"
    assert f"listed in {listed}" in str(bad_images_error(bad, cache_dir=cache_dir, **arguments))
    with open(listed, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [image.path for image in bad]
    assert [row["line"] for row in rows] == ["2", "3", "4", "5", "6", "7"]
    assert {row["reason"] for row in rows} == {"no such file"}


@pytest.mark.parametrize("level", ["exists", "header"])
def test_check_that_lasts_shows_how_far_it_is(tmp_path, cache_dir, monkeypatch, capfd, level):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0)
    paths = [tmp_path / f"{i}.jpg" for i in range(60)]
    for path in paths:
        path.write_bytes(jpeg())
    check_images(paths, level=level, cache_dir=cache_dir, progress=False)
    assert "60 of 60 images" not in capfd.readouterr().out
    check_images(paths, level=level, cache_dir=cache_dir / "other")
    assert "60 of 60 images" in capfd.readouterr().out


def in_records(encoded: list[bytes], file: pathlib.Path) -> Examples:
    """Images of one record file; `file` stands for it, and is not read."""
    with tf.device("CPU"):
        table = tf.constant(encoded)
    return Examples(
        names=[f"train/{i}" for i in range(len(encoded))],
        labels=scipy.sparse.csr_array((len(encoded), 2), dtype=bool),
        read=lambda position: table[position],
        files=[str(file)] * len(encoded),
    )


@pytest.mark.parametrize("num_images", [9, 150])
def test_bad_images_in_records_are_found_wherever_they_are(tmp_path, cache_dir, num_images):
    file = tmp_path / "records"
    file.write_bytes(b"records")
    bad = {0: b"", 4: jpeg()[:700], num_images - 1: b"no picture"}
    examples = in_records([bad.get(i, jpeg(i)) for i in range(num_images)], file)
    found = {
        level: check_records(examples, level=level, cache_dir=cache_dir)
        for level in image_checks.CHECK_LEVELS
    }
    assert found["exists"] == []
    assert [image.position for image in found["header"]] == [0, num_images - 1]
    assert [image.position for image in found["all"]] == sorted(bad)
    assert [image.path for image in found["all"]] == [f"train/{i}" for i in sorted(bad)]
    assert all(image.reason for image in found["all"])
    assert check_records(examples, level="all", cache_dir=cache_dir) == found["all"]
    with pytest.raises(ValueError, match=r"exists, header, all.*'deep'"):
        check_records(examples, level="deep", cache_dir=cache_dir)


def test_records_that_passed_are_read_again_only_when_their_file_changed(tmp_path, cache_dir):
    file = tmp_path / "records"
    file.write_bytes(b"records")
    good, spoilt = [jpeg(i) for i in range(3)], [jpeg(0), b"no picture", jpeg(2)]
    assert check_records(in_records(good, file), level="all", cache_dir=cache_dir) == []
    assert check_records(in_records(spoilt, file), level="all", cache_dir=cache_dir) == []
    assert len(check_records(in_records(spoilt, file), level="header", cache_dir=cache_dir)) == 1
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    assert len(check_records(in_records(spoilt, file), level="all", cache_dir=cache_dir)) == 1
