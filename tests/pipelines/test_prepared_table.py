"""Tests of tables of small JPEGs: their files, their rows, and runs that are killed."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal

import numpy as np
import programs
import pytest
import tensorflow as tf
from PIL import Image

from dbl_tf import terminal
from dbl_tf.lock import InUseError, Lock
from pipelines import prepared_table, shrinking
from pipelines.datasets.image_checks import BadImagesError
from pipelines.prepared_table import PreparationError
from pipelines.runs.config import DataConfig
from pipelines.shrinking import Settings

FORMATS = ("jpg", "png", "webp", "tiff", "gif", "bmp")
SETTINGS = Settings(max_side=32, quality=90)


def picture(seed: int, size: tuple[int, int] = (80, 60)) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(80, 176, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path) -> pathlib.Path:
    """24 images of six formats in two folders, and `examples.csv`."""
    folder = tmp_path / "photos"
    lines = ["image,split,labels"]
    for i in range(24):
        name = f"{'ab'[i % 2]}/x{i // 6}.{FORMATS[i % 6]}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / name)
        split = ("train", "train", "val", "test")[i % 4]
        lines.append(f"{name},{split},{('dog', 'dog|traffic light', '')[i % 3]}")
    (folder / "examples.csv").write_text("\n".join(lines))
    return folder


def config_of(examples, tmp_path, **arguments) -> DataConfig:
    arguments = {"cache_dir": str(tmp_path / "cache")} | arguments
    return DataConfig.of(dataset="table", examples=str(examples), **arguments)


@pytest.fixture
def write(tmp_path):
    """`prepared_table.write` in one process."""

    def write(examples, output_dir=tmp_path / "out", settings=SETTINGS, **arguments):
        config = config_of(examples, tmp_path, **arguments)
        return prepared_table.write(
            config.source, config.loading, output_dir, settings, num_processes=1
        )

    return write


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """All files of a folder but the lock, which names a process."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def states(folder: pathlib.Path) -> dict[str, tuple]:
    return {
        path: (content, (folder / path).stat().st_mtime_ns)
        for path, content in contents(folder).items()
    }


def test_the_new_table_is_read_as_it_is_with_the_same_labels(photos, write, tmp_path):
    before = states(photos)
    prepared = write(photos / "examples.csv")
    assert states(photos) == before
    old = config_of(photos / "examples.csv", tmp_path, check_images="exists").load_data()
    new = config_of(prepared.examples, tmp_path).load_data()  # decodes every image
    assert new.class_names == old.class_names == ("dog", "traffic light")
    assert list(new.splits) == list(old.splits)
    for name, split in old.splits.items():
        assert (new.splits[name].labels != split.labels).nnz == 0
        for source, file in zip(split.files, new.splits[name].files, strict=True):
            expected = shrinking.shrink(
                pathlib.Path(source).read_bytes(), max_side=32, quality=90
            ).encoded
            assert pathlib.Path(file).read_bytes() == expected
            assert pathlib.Path(file).is_relative_to(tmp_path / "out" / "images")
    assert "24 images" in str(prepared) and "24 made now" in str(prepared)


def test_finished_images_are_not_made_again_and_changed_ones_are(photos, write, tmp_path):
    write(photos / "examples.csv")
    first = states(tmp_path / "out" / "images")
    assert write(photos / "examples.csv").num_new == 0
    assert states(tmp_path / "out" / "images") == first
    changed = photos / "a" / "x0.jpg"
    picture(99).save(changed)
    os.utime(changed, ns=(1, 1))
    again = write(photos / "examples.csv")
    second = states(tmp_path / "out" / "images")
    assert again.num_new == 1
    assert [path for path in first if first[path] != second[path]] == [
        path for path in first if path.startswith("a/x0") and first[path][0] != second[path][0]
    ]
    shutil.rmtree(tmp_path / "out" / "images" / "b")
    assert write(photos / "examples.csv").num_new == 12
    assert contents(tmp_path / "out" / "images") == {p: c for p, (c, _) in second.items()}


def test_a_file_that_merely_exists_is_not_taken_for_finished(photos, write, tmp_path):
    write(photos / "examples.csv")
    expected = contents(tmp_path / "out")
    for path in (tmp_path / "out" / "images").rglob("*.jpg"):
        path.write_bytes(b"\0" * path.stat().st_size)  # as a crash of the machine may leave it
    manifest = tmp_path / "out" / "prepared.jsonl"
    manifest.write_text(manifest.read_text().splitlines(keepends=True)[0])
    assert write(photos / "examples.csv").num_new == 24
    assert contents(tmp_path / "out") == expected


# Each kills the program at one moment, where `count` says how often that has come before.
MOMENTS = {
    "the first manifest is written, not renamed": "before_replacing('prepared', 0)",
    "a JPEG is written, not renamed": "before_replacing('x', 5)",
    "a JPEG is renamed, the manifest does not name it": "after_replacing('x', 9)",
    "a line of the manifest is half-written": "within_line(13)",
    "all JPEGs are there, the table is not renamed": "before_replacing('examples', 0)",
}
KILLED = """
import os, signal, sys
from pipelines.shrinking import Settings
from pipelines import prepared_table
from pipelines.runs.config import DataConfig

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before_replacing(start, count):
    replace = os.replace
    seen = []
    def replacing(source, target):
        if os.path.basename(target).startswith(start):
            if len(seen) == count:
                die()
            seen.append(target)
        replace(source, target)
    os.replace = replacing

def after_replacing(start, count):
    replace = os.replace
    seen = []
    def replacing(source, target):
        replace(source, target)
        seen.extend([target] * os.path.basename(target).startswith(start))
        if len(seen) > count:
            die()
    os.replace = replacing

def within_line(count):
    append = prepared_table._append
    seen = []
    def appending(manifest, prepared):
        if len(seen) == count:
            manifest.write('{"source": "/half')
            manifest.flush()
            die()
        seen.append(prepared)
        append(manifest, prepared)
    prepared_table._append = appending

examples, output_dir, cache_dir, moment = sys.argv[1:]
config = DataConfig.of(dataset="table", examples=examples, cache_dir=cache_dir)
exec(moment)
settings = Settings(max_side=32, quality=90)
prepared_table.write(config.source, config.loading, output_dir, settings, num_processes=2)
"""


@pytest.fixture
def run_killed(photos, tmp_path):
    def run(moment: str) -> None:
        arguments = [photos / "examples.csv", tmp_path / "out", tmp_path / "cache", moment]
        program = programs.run("-c", KILLED, *arguments)
        assert program.returncode == -signal.SIGKILL, program.stderr

    return run


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_is_continued_to_the_same_bytes(moment, photos, write, run_killed, tmp_path):
    write(photos / "examples.csv", tmp_path / "whole")
    run_killed(MOMENTS[moment])
    for path in (tmp_path / "out" / "images").rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            Image.open(path).load()  # nothing is half-written under its own name
    assert not (tmp_path / "out" / "examples.jsonl").exists()
    write(photos / "examples.csv")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_that_is_killed_five_times_ends_with_the_same_bytes(
    photos, write, run_killed, tmp_path
):
    write(photos / "examples.csv", tmp_path / "whole")
    for moment in (
        ("before_replacing('x', 3)",) * 2 + ("within_line(4)",) * 2 + ("after_replacing('x', 3)",)
    ):
        run_killed(moment)
    assert write(photos / "examples.csv").num_new < 24
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        (Settings(max_side=33, quality=90), "max_side 32 and not 33"),
        (Settings(max_side=32, quality=91), "quality 90 and not 91"),
        (Settings(max_side=32, quality=90, pillow="1.0"), "pillow .* and not '1.0'"),
    ],
)
def test_other_settings_are_refused(settings, difference, photos, write, tmp_path):
    write(photos / "examples.csv")
    before = states(tmp_path / "out")
    with pytest.raises(PreparationError, match=rf"other settings \({difference}\)"):
        write(photos / "examples.csv", settings=settings)
    assert states(tmp_path / "out") == before


@pytest.mark.parametrize(
    "line",
    ["[]", "7", "{", "[" * 100_000, '{"source": 1}', '{"source": "a.jpg", "image": "b.jpg"}'],
)
def test_a_damaged_manifest_is_named_in_one_line(line, photos, write, tmp_path):
    write(photos / "examples.csv")
    manifest = tmp_path / "out" / prepared_table.MANIFEST_NAME
    first, *rows = manifest.read_text().splitlines(keepends=True)
    manifest.write_text("".join([first, f"{line}\n", *rows]))
    with pytest.raises(PreparationError, match=rf"{manifest} is damaged") as info:
        write(photos / "examples.csv")
    assert "\n" not in str(info.value)


@pytest.mark.parametrize(
    "arguments", [{"max_side": 0}, {"max_side": 65501}, {"quality": 0}, {"quality": 101}]
)
def test_settings_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="must be"):
        Settings(**arguments)


@pytest.mark.parametrize("place", [".", "a", ".."])
def test_a_folder_that_holds_originals_is_refused(place, photos, write, tmp_path):
    before = states(tmp_path)
    output_dir = photos / place
    with pytest.raises(PreparationError, match="choose a new output_dir"):
        write(photos / "examples.csv", output_dir)
    link = tmp_path.parent / f"{tmp_path.name}-link"
    link.symlink_to(output_dir)
    with pytest.raises(PreparationError, match="choose a new output_dir"):
        write(photos / "examples.csv", link)
    assert states(tmp_path) == before


def test_a_folder_among_folders_of_labels_is_refused(write, tmp_path):
    for name in ("train/cat/1.jpg", "test/cat/2.jpg"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True)
        picture(len(name)).save(file)
    with pytest.raises(PreparationError, match="whose folders are labels or splits"):
        write(tmp_path / "photos", tmp_path / "photos" / "small")
    write(tmp_path / "photos", tmp_path / "small")


def test_a_folder_of_other_files_is_refused(photos, write, tmp_path):
    other = tmp_path / "out" / "examples.jsonl"
    other.parent.mkdir()
    other.write_text("mine")
    with pytest.raises(PreparationError, match=r"'examples\.jsonl', which this command has not"):
        write(photos / "examples.csv")
    assert other.read_text() == "mine"


def test_a_link_out_of_the_folder_is_not_followed(photos, write, tmp_path):
    write(photos / "examples.csv")
    shutil.rmtree(tmp_path / "out" / "images")
    (tmp_path / "out" / "images").symlink_to(photos)
    before = contents(photos)
    with pytest.raises(PreparationError, match="is a link that leads out"):
        write(photos / "examples.csv")
    assert contents(photos) == before


def test_a_folder_inside_the_folder_of_the_images_may_be_new(photos, write):
    assert len(write(photos / "examples.csv", photos / "small").images) == 24
    assert len(write(photos / "examples.csv", photos / "small").images) == 24


def test_names_are_unique_and_stay_inside(write, tmp_path):
    names = [
        "x.png",
        "x.jpg",
        "X.jpg",
        "a/x.png",
        "../outside.png",
        str(tmp_path / "absolute.png"),
        "con.png",
        "a b\n; rm -rf $HOME.png",
        ".hidden.png",
        "é" * 80 + ".png",
        "d/" * 40 + "deep.png",
        "x:y|z?*.png",
    ]
    folder = tmp_path / "photos"
    lines = []
    for i, name in enumerate(names):
        path = pathlib.Path(os.path.normpath(folder / name))
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path, "JPEG" if name.endswith("jpg") else "PNG")
        split = "test" if i == 0 else "train"
        lines.append(json.dumps({"image": name, "split": split, "labels": [f"class {i}"]}))
    (folder / "examples.jsonl").write_text("\n".join(lines))
    prepared = write(folder / "examples.jsonl")
    rows = [json.loads(line) for line in pathlib.Path(prepared.examples).read_text().splitlines()]
    assert len(rows) == len({row["image"].casefold() for row in rows}) == len(names)
    out = tmp_path / "out"
    for row in rows:
        assert (out / row["image"]).resolve().is_relative_to(out / "images")
        assert set(row["image"]) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-"
        )
        i = int(row["labels"][0].split()[1])
        found = np.asarray(Image.open(out / row["image"]), int)
        expected = np.asarray(picture(i).resize((32, 24), Image.Resampling.LANCZOS), int)
        assert np.abs(found - expected).mean() < 6


def test_bad_images_are_all_listed_and_the_others_finished(photos, write, tmp_path):
    (photos / "a" / "x0.jpg").write_bytes(b"no image")
    (photos / "b" / "x1.png").unlink()
    with pytest.raises(BadImagesError, match="2 of 24 images") as raised:
        write(photos / "examples.csv")
    assert len(raised.value.bad) == 2
    with open(tmp_path / "out" / "bad_images.csv", newline="") as file:
        reasons = {row["image"]: row["reason"] for row in csv.DictReader(file)}
    assert reasons.keys() == {str(photos / "a" / "x0.jpg"), str(photos / "b" / "x1.png")}
    assert reasons[str(photos / "b" / "x1.png")] == "no such file"
    assert "is no image that Pillow reads" in reasons[str(photos / "a" / "x0.jpg")]
    assert not (tmp_path / "out" / "examples.jsonl").exists()

    skipped = write(photos / "examples.csv", skip_bad_images=True)
    assert skipped.num_new == 0 and len(skipped.images) == 22 and len(skipped.bad) == 2
    new = config_of(skipped.examples, tmp_path).load_data()
    assert sum(map(len, new.splits.values())) == 22

    picture(0).save(photos / "a" / "x0.jpg")
    picture(7).save(photos / "b" / "x1.png")
    assert len(write(photos / "examples.csv").images) == 24
    assert not (tmp_path / "out" / "bad_images.csv").exists()


def test_an_image_that_was_finished_and_is_gone_is_bad(photos, write):
    write(photos / "examples.csv")
    (photos / "a" / "x0.jpg").unlink()
    with pytest.raises(BadImagesError, match="1 of 24 images"):
        write(photos / "examples.csv")
    skipped = write(photos / "examples.csv", skip_bad_images=True)
    assert len(skipped.images) == 23 and len(skipped.bad) == 1
    assert "x0.jpg" not in {os.path.basename(each.source) for each in skipped.images}


def test_images_behind_a_scheme_are_read(photos, write, tmp_path):
    location = f"ram://{tmp_path.name}"
    for path in ("a/x0.jpg", "b/x0.png"):
        tf.io.gfile.makedirs(os.path.dirname(f"{location}/{path}"))
        with tf.io.gfile.GFile(f"{location}/{path}", "wb") as file:
            file.write((photos / path).read_bytes())
    (tmp_path / "t.csv").write_text("image,split,labels\na/x0.jpg,train,dog\nb/x0.png,test,dog\n")
    prepared = write(tmp_path / "t.csv", images_dir=location)
    for each in prepared.images:
        local = photos / each.source.removeprefix(f"{location}/")
        expected = shrinking.shrink(local.read_bytes(), max_side=32, quality=90).encoded
        assert (tmp_path / "out" / each.image).read_bytes() == expected


def test_a_test_split_that_is_set_aside_is_that_of_the_new_table(photos, write, tmp_path):
    lines = (photos / "examples.csv").read_text().replace(",test,", ",train,")
    (photos / "examples.csv").write_text(lines)
    loading = {"test_fraction": 0.25, "data_seed": 3}
    prepared = write(photos / "examples.csv", **loading)
    old = config_of(photos / "examples.csv", tmp_path, check_images="exists", **loading)
    sources = {each.image: each.source for each in prepared.images}
    rows = [json.loads(line) for line in pathlib.Path(prepared.examples).read_text().splitlines()]
    test = [sources[row["image"]] for row in rows if row["split"] == "test"]
    assert test == list(old.load_data().splits["test"].files)


def test_progress_is_shown_as_by_the_other_commands(photos, write, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(terminal, "SECONDS_BETWEEN_LINES", 0.0)
    write(photos / "examples.csv", check_images="exists")
    lines = [line for line in capsys.readouterr().out.splitlines() if "preparing" in line]
    assert len(lines) == 24
    assert re.fullmatch(
        r"preparing images: 6 of 24 images, [\d.,]+ a second, about \d+ s left", lines[5]
    )
    shutil.rmtree(tmp_path / "out" / "images" / "b")
    write(photos / "examples.csv", check_images="exists")
    assert f"{tmp_path / 'out'}: 12 of 24 images are finished" in capsys.readouterr().out


@pytest.mark.parametrize("skip", [False, True])
def test_the_command_tells_what_it_has_done(skip, photos, tmp_path):
    (photos / "a" / "x0.jpg").write_bytes(b"no image")
    frames = [picture(i) for i in range(3)]
    frames[0].save(photos / "b" / "x0.png", save_all=True, append_images=frames[1:])
    program = programs.run(
        "-m",
        "pipelines.prepare",
        f"--examples={photos / 'examples.csv'}",
        f"--output_dir={tmp_path / 'out'}",
        "--max_side=32",
        "--processes=2",
        *(["--skip_bad_images"] if skip else []),
    )
    assert program.returncode == (0 if skip else 1), program.stderr
    # What is logged is plain lines.
    assert re.search(rf"^{photos}/examples\.csv: list layout", program.stderr, re.MULTILINE)
    assert not re.search(r"\.py:\d+\]", program.stderr)
    if skip:
        assert "preparing" not in program.stdout + program.stderr  # short work says nothing
        assert "which the first is taken: 1" in program.stdout
        assert "left out: 1" in program.stdout
        assert f"--examples={tmp_path / 'out' / 'examples.jsonl'}" in program.stdout
    else:
        assert "prepare: 1 of 24 images" in program.stderr
        assert "--skip_bad_images" in program.stderr


def test_a_second_run_in_the_same_folder_is_refused(photos, write, tmp_path):
    (tmp_path / "out").mkdir()
    with Lock(tmp_path / "out") as lock:
        lock.acquire()
        with pytest.raises(InUseError):
            write(photos / "examples.csv")
