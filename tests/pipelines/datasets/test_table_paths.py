"""Paths of a table as people have them: other spellings, other machines, and URLs."""

import io
import logging
import os
import pathlib
import unicodedata

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from dbl_tf.statistics import LabelStatistics
from pipelines import cache, longtail_table
from pipelines.datasets import LoadOptions, image_checks, table
from pipelines.runs import build
from pipelines.runs.config import DataConfig, RunConfig
from pipelines.runs.features import Features
from pipelines.runs.resolution import resolve


def jpeg(shade: int) -> bytes:
    encoded = io.BytesIO()
    PIL.Image.new("RGB", (24, 20), (shade, 255 - shade, 0)).save(encoded, "JPEG")
    return encoded.getvalue()


def make_table(folder: pathlib.Path, files: list[str], names: list[str]) -> pathlib.Path:
    """A table of these names, every third of them to test, and image files."""
    for i, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg(20 * i))
    rows = [
        f'"{name}",{"test" if i % 3 == 2 else "train"},{"cat" if i % 2 else "dog"}'
        for i, name in enumerate(names)
    ]
    path = folder / "t.csv"
    path.write_text("\n".join(["image,split,labels", *rows, ""]), encoding="utf-8")
    return path


def load(path, splits=None, **options):
    options = {name: str(value) for name, value in options.items() if name.endswith("_dir")} | {
        name: value for name, value in options.items() if not name.endswith("_dir")
    }
    return DataConfig.of(dataset="table", examples=str(path), **options).load_data(splits)


NFD = unicodedata.normalize("NFD", "é.jpg")
NFC = unicodedata.normalize("NFC", "é.jpg")


@pytest.mark.parametrize(
    ("file", "written", "difference"),
    [
        ("x/b.jpg", "x\\\\b.jpg", "backslashes"),
        ("b.JPG", "b.jpg", "upper and lower case"),
        ("b.jpg", "b.jpg ", "blanks"),
        ("b.jpg", "b", "the suffix .jpg"),
        (NFC, NFD, "Unicode normalization"),
        (NFD, NFC, "Unicode normalization"),
    ],
)
def test_a_file_in_another_spelling_is_taken_with_a_warning(
    tmp_path, caplog, file, written, difference
):
    written = written.replace("\\\\", "\\")
    path = make_table(tmp_path, ["a.jpg", file, "c.jpg"], ["a.jpg", written, "c.jpg"])
    for level in ("all", "exists"):
        data = load(path, cache_dir=tmp_path / "cache", check_images=level)
        train = data.splits["train"]
        assert list(train.names) == ["a.jpg", written]
        assert list(train.files) == [str(tmp_path / "a.jpg"), str(tmp_path / file)]
        assert train.read(tf.constant(1)) == jpeg(20)
    warning = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING][-1]
    assert "paths of no file that mean one file in another spelling, which is taken: 1" in warning
    assert f"line 3: {table.quoted(written)}: " in warning and difference in warning


def test_rows_that_name_a_file_in_two_spellings_are_one_image_or_a_leak(tmp_path):
    files = ["a.jpg", "b.jpg", "c.jpg"]
    path = make_table(tmp_path, files, ["a.jpg", "A.JPG", "c.jpg", "b.jpg"])
    train = load(path, cache_dir=tmp_path / "cache").splits["train"]
    assert list(train.names) == ["a.jpg", "b.jpg"]
    assert train.labels.toarray().tolist() == [[True, True], [True, False]]
    path = make_table(tmp_path, files, ["a.jpg", "b.jpg", "A.jpg"])
    with pytest.raises(table.TableError, match="in more than one split") as error:
        load(path, cache_dir=tmp_path / "cache")
    assert "line 4: A.jpg in test; line 2 has it in train" in str(error.value)


def test_a_long_tailed_table_keeps_files_in_another_spelling(tmp_path):
    files = ["a.jpg", "x/b.JPG", "c.jpg", "d.jpg"]
    path = make_table(tmp_path, files, ["a", "x\\b.jpg ", str(tmp_path / "C.jpg"), "d.jpg"])
    options = table.TableOptions(examples=str(path))
    load_options = LoadOptions(cache_dir=str(tmp_path / "cache"))
    made = longtail_table.write(options, load_options, tmp_path / "new", max_count=9, picture=False)
    data = load(made.examples, cache_dir=tmp_path / "cache")
    whole = [str(tmp_path / name) for name in files]
    assert sorted(data.splits["test"].files) == [whole[2]]
    assert set(data.splits["train"].files) <= {whole[0], whole[1], whole[3]}
    assert len(data.splits["train"]) >= 2


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("C:\\data\\x\\b.jpg", "x/b.jpg"),
        ("D:/data/x/b.jpg", "x/b.jpg"),
        ("\\\\nas\\photos\\a.jpg", "a.jpg"),
        ("/home/me/photos/x/b.jpg", "x/b.jpg"),
        ("a.jpeg", "a.jpg"),
        ("photos/a.jpg", "a.jpg"),
    ],
)
def test_what_may_be_meant_is_named_and_not_taken(tmp_path, written, near):
    path = make_table(tmp_path, ["a.jpg", "x/b.jpg"], ["a.jpg", "x/b.jpg", written])
    with pytest.raises(image_checks.BadImagesError) as error:
        load(path, cache_dir=tmp_path / "cache")
    joined = written if written[0] in "CD/\\" else f"{tmp_path}/{written}"
    assert f"line 4: {joined!r}; there is '{tmp_path}/{near}'" in str(error.value)
    if written[0] in "CD\\/":
        hint = f"write paths that do, such as {near!r}, in place of paths of another machine"
        assert hint in str(error.value)
    assert str(error.value).count("\n") <= 3


def test_several_files_in_another_spelling_are_all_named(tmp_path):
    path = make_table(tmp_path, ["a.jpg", "B.jpg", "b.JPG"], ["a.jpg", "b.jpg", "B.jpg"])
    with pytest.raises(image_checks.BadImagesError) as error:
        load(path, cache_dir=tmp_path / "cache")
    assert f"there is '{tmp_path}/B.jpg' and '{tmp_path}/b.JPG'" in str(error.value)


def test_the_folder_to_type_is_named(tmp_path):
    (tmp_path / "lists").mkdir()
    path = make_table(tmp_path / "lists", [], [f"{i}.jpg" for i in range(84)])
    (tmp_path / "lists" / "my images").mkdir()
    for i in range(84):
        (tmp_path / "lists" / "my images" / f"{i}.jpg").write_bytes(jpeg(i))
    with pytest.raises(image_checks.BadImagesError) as error:
        load(path, cache_dir=tmp_path / "cache")
    message = str(error.value)
    assert "  no such file: 84\n" in message and "    and 79 more\n" in message
    typed = f"--images_dir='{tmp_path}/lists/my images'"
    assert f"try {typed}, where there is '0.jpg'" in message and len(message) < 2000
    folder = tmp_path / "lists" / "my images"
    assert len(load(path, cache_dir=tmp_path / "cache", images_dir=folder).splits["test"]) == 28


def test_bad_images_are_shown_by_kind_at_most_five_of_each(tmp_path):
    names = [f"{kind}{i}.jpg" for kind in ("empty", "text", "tiff", "missing") for i in range(7)]
    for name in names:
        content = {"empty": b"", "text": b"some text" * 9, "tiff": b"II*\0" + bytes(90)}
        kind = name.rstrip("0123456789.jpg")
        if kind in content:
            (tmp_path / name).write_bytes(content[kind])
    path = make_table(tmp_path, [], names)
    with pytest.raises(image_checks.BadImagesError) as error:
        load(path, cache_dir=tmp_path / "cache")
    lines = str(error.value).splitlines()
    heads = [line for line in lines if line.startswith("  ") and not line.startswith("   ")]
    assert [head.rpartition(": ")[2] for head in heads[:4]] == ["7"] * 4
    assert sum(line == "    and 2 more" for line in lines) == 4
    assert sum("line " in line for line in lines) == 20
    with open(tmp_path / "cache" / "bad_images_of_t.csv.csv") as file:
        assert len(file.readlines()) == 29


@pytest.fixture
def bucket(tmp_path) -> str:
    """A folder in memory with six images."""
    folder = f"ram://{tmp_path.name}/photos"
    tf.io.gfile.makedirs(folder)
    for i in range(6):
        with tf.io.gfile.GFile(f"{folder}/{i}.jpg", "wb") as file:
            file.write(jpeg(40 * i))
    return folder


@pytest.mark.parametrize("by", ["row", "images_dir"])
def test_urls_pass_through_table_checks_inputs_and_features(tmp_path, bucket, by):
    names = [f"{bucket}/{i}.jpg" if by == "row" else f"./{i}.jpg" for i in range(6)]
    path = make_table(tmp_path, [], names)
    settings = {
        "cache_dir": str(tmp_path / "cache"),
        **({"images_dir": bucket} if by == "images_dir" else {}),
    }
    asked = RunConfig.of(
        dataset="table",
        examples=str(path),
        image_size=32,
        backbone="small_resnet",
        backbone_weights="none",
        freeze_backbone=True,
        **settings,
    )
    data = asked.load_data()
    train = data.splits["train"]
    assert list(train.files) == [f"{bucket}/{i}.jpg" for i in (0, 1, 3, 4)]
    assert list(train.encoded().as_numpy_iterator()) == [jpeg(40 * i) for i in (0, 1, 3, 4)]
    # All passed the check, and are remembered.
    kept = cache.load(tmp_path / "cache" / image_checks.CACHE_NAME, np.load)
    assert kept is not None and len(kept) == 6

    config = resolve(asked, data)
    assert config.flat().get("images_dir") == settings.get("images_dir")
    keras.utils.set_random_seed(0)
    statistics = LabelStatistics.from_labels(train.labels, data.class_names)
    backbone, _ = build.build_networks(config, statistics)
    features = Features(config, backbone)(train)[:]
    (kept,) = (tmp_path / "cache" / "features").iterdir()
    with cache.writing(kept) as file:
        np.save(file, features + 1)
    np.testing.assert_array_equal(Features(config, backbone)(train)[:], features + 1)
    # Other content of the same size has other features, though the file system keeps no times.
    black = jpeg(0)
    changed = black[:-10] + bytes([black[-10] ^ 1]) + black[-9:]
    tf.io.gfile.remove(f"{bucket}/0.jpg")
    with tf.io.gfile.GFile(f"{bucket}/0.jpg", "wb") as file:
        file.write(changed)
    again = Features(config, backbone)(train)[:]
    assert np.abs(again - features - 1).max() > 0.5


def test_urls_of_local_files_are_read(tmp_path):
    path = make_table(
        tmp_path, ["a.jpg", "b.jpg", "c.jpg"], [f"file://{tmp_path}/{n}.jpg" for n in "abc"]
    )
    data = load(path, cache_dir=tmp_path / "cache")
    assert list(data.splits["train"].encoded().as_numpy_iterator()) == [jpeg(0), jpeg(20)]
    assert load(path, cache_dir=tmp_path / "cache", images_dir=f"file://{tmp_path}")


def test_a_table_behind_a_scheme_is_read_beside_its_images(tmp_path, bucket):
    path = f"{bucket}/t.csv"
    rows = "0.jpg,train,cat\r\n1.jpg,test,cat é\r\n"
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(f"\ufeffimage,split,labels\r\n{rows}".encode())
    data = load(path, cache_dir=tmp_path / "cache")
    assert data.class_names == ("cat", "é")
    assert list(data.splits["test"].files) == [f"{bucket}/1.jpg"]
    with pytest.raises(table.TableError, match=r"ram://\S+/u\.csv was not found"):
        load(f"{bucket}/u.csv")


def test_images_that_are_not_behind_a_scheme_are_named(tmp_path, bucket):
    with tf.io.gfile.GFile(f"{bucket}/text.jpg", "wb") as file:
        file.write(b"no picture")
    names = [f"{bucket}/{name}.jpg" for name in ("0", "1", "2", "missing", "text")]
    path = make_table(tmp_path, [], [*names, f"{tmp_path.name}.jpg", bucket])
    with pytest.raises(image_checks.BadImagesError) as error:
        load(path, cache_dir=tmp_path / "cache")
    message = str(error.value)
    assert "4 of 7 images" in message and "gs:/" not in message
    assert f"line 5: '{names[3]}'" in message and f"line 6: '{names[4]}'" in message
    assert f"is a folder, not a file: 1\n    line 8: '{bucket}'" in message


def test_a_copied_table_keeps_urls(tmp_path, bucket):
    path = make_table(tmp_path, ["a.jpg"], [f"{bucket}/0.jpg", "a.jpg", f"{bucket}/1.jpg"])
    options = table.TableOptions(examples=str(path))
    (tmp_path / "new").mkdir()
    files = {f"{bucket}/0.jpg", f"{bucket}/1.jpg", str(tmp_path / "a.jpg")}
    copy = table.copy_rows(options, tmp_path / "new", files)
    data = load(copy, cache_dir=tmp_path / "cache")
    assert {*data.splits["train"].files, *data.splits["test"].files} == files


@pytest.mark.parametrize(
    "url", ["s3://bucket/a.jpg", "https://host/a.jpg", "gs:/bucket/a.jpg", "GS://bucket/a.jpg"]
)
def test_unknown_schemes_are_refused_in_one_line(tmp_path, url):
    path = make_table(tmp_path, ["a.jpg", "b.jpg"], ["a.jpg", "b.jpg", *[url] * 90])
    start = url.partition("bucket")[0].partition("host")[0]
    for options in ({}, {"skip_bad_images": True}):
        with pytest.raises(ValueError, match=f"images of {path}: 90 start with {start}") as error:
            load(path, cache_dir=tmp_path / "cache", **options)
        assert "\n" not in str(error.value) and repr(url) in str(error.value)
    with pytest.raises(ValueError, match=f"images_dir: 1 start with {start}"):
        load(path, images_dir=os.path.dirname(url))
    with pytest.raises(ValueError, match=f"table of examples: 1 start with {start}"):
        load(url)
