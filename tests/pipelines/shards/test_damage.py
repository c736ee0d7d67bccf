"""Shards that have changed since they were written: exchanged, edited, with flipped bits."""

import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import programs
import pytest
import tensorflow as tf
from array_record.python import array_record_module

from pipelines import images, inputs, record_files, record_formats
from pipelines.datasets import LoadOptions, shards
from pipelines.datasets.options import ShardsOptions
from pipelines.examples import Examples
from pipelines.runs.network_inputs import ImageInputs
from pipelines.shards import layout, reading, writing

SIZE = 8


def train_shards(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob("train-0*"))


def flip(path: pathlib.Path, byte: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(content)


def flip_in_image(path: pathlib.Path, number: int) -> None:
    """Flips a bit in the middle of the image of a record."""
    content = path.read_bytes()
    starts = [i for i in range(len(content)) if content.startswith(b"\x89PNG", i)]
    flip(path, starts[number] + 100)


def read_all(examples: Examples) -> list[bytes]:
    """Reads all images as training and evaluation do, or fails with the error that they show."""
    with ImageInputs(SIZE, True).naming_unreadable(examples):
        return list(examples.encoded().as_numpy_iterator())


def originals(small_data, split: str) -> dict[str, tuple[bytes, bytes]]:
    """Image and labels by name."""
    examples = small_data.splits[split]
    labels = examples.labels.toarray()
    images = [examples.read(i).numpy() for i in range(len(examples))]
    return {
        name: (image, row.tobytes())
        for name, image, row in zip(examples.names, images, labels, strict=True)
    }


@pytest.mark.parametrize("splits", [("train", "train"), ("train", "test")])
def test_exchanged_shards_of_equal_size_are_noticed_when_they_are_read(folder, small_data, splits):
    """They pass the checks of sizes where the names of their images are equally long."""
    manifest = json.loads((folder / "shards.json").read_text())
    by_size = {}
    for split in dict.fromkeys(splits):
        for shard in manifest["splits"][split]["shards"]:
            by_size.setdefault(shard["records"], []).append(folder / shard["file"])
    first, second = next(
        (files[0], files[-1])
        for files in by_size.values()
        if {file.name.split("-")[0] for file in files} == set(splits)
    )
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    for path in (first, second):  # as if the sizes were equal, which nobody can rely on
        entry = next(
            shard
            for split in manifest["splits"].values()
            for shard in split["shards"]
            if shard["file"] == path.name
        )
        entry["bytes"] = path.stat().st_size
    rewrite(folder, manifest)
    examples = reading.load(folder).splits["train"]
    with pytest.raises(inputs.UnreadableImageError) as caught:
        read_all(examples)
    message = str(caught.value)
    assert "\n" not in message and "--skip_bad_images" in message
    assert f"{first}, record 0, does not belong there: it holds " in message
    held = message.split("it holds ")[1].split(". Restore")[0]
    assert held in small_data.splits[splits[1]].names
    name = message.split(" cannot be read")[0].removeprefix("image ")
    assert examples.files[list(examples.names).index(name)] == os.fspath(first)


def rewrite(folder: pathlib.Path, manifest: dict) -> None:
    """Writes a manifest with a digest that is right, as somebody might who wants to deceive."""
    del manifest["digest"]
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    manifest["digest"] = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    (folder / "shards.json").write_text(json.dumps(manifest))


def test_labels_that_were_changed_after_the_shards_are_noticed(folder, small_data, tmp_path):
    """The labels of another version of the data, put next to shards with equal names."""
    train = small_data.splits["train"]
    order = np.r_[1, 0, 2 : len(train)]
    labels = train.labels[order]
    assert (labels[:2] != train.labels[:2]).nnz
    changed = reading.LabelledData(
        small_data.class_names,
        {"train": Examples(train.names, labels, train.read), "test": small_data.splits["test"]},
        0.25,
    )
    record_format = train_shards(folder)[0].suffix[1:]
    plan = layout.make_plan(changed, record_format=record_format, examples_per_shard=10)
    writing.write(changed, tmp_path / "changed", plan)
    shutil.copy(tmp_path / "changed" / "train-labels.npz", folder)
    manifest = json.loads((folder / "shards.json").read_text())
    other = json.loads((tmp_path / "changed" / "shards.json").read_text())
    manifest["splits"]["train"]["labels"] = other["splits"]["train"]["labels"]
    rewrite(folder, manifest)
    with pytest.raises(inputs.UnreadableImageError, match="does not belong there: it holds train"):
        read_all(reading.load(folder).splits["train"])


def test_a_corrupt_record_is_named_in_one_line(folder):
    shard = train_shards(folder)[9]
    flip_in_image(shard, 4)
    examples = reading.load(folder).splits["train"]
    with pytest.raises(inputs.UnreadableImageError) as caught:
        read_all(examples)
    message = str(caught.value)
    assert f"{shard}, record 4, is damaged: " in message and "\n" not in message
    name = message.split(" cannot be read")[0].removeprefix("image ")
    of_shard = [n for n, f in zip(examples.names, examples.files, strict=True) if f == str(shard)]
    assert of_shard[4] == name


def test_bad_records_are_left_out_and_nothing_else(folder, small_data, tmp_path, caplog):
    damaged = train_shards(folder)[3], train_shards(folder)[11]
    whole = reading.load(folder).splits["train"]
    for shard, number in zip(damaged, (2, 7), strict=True):
        flip_in_image(shard, number)
    options = LoadOptions(skip_bad_images=True, cache_dir=str(tmp_path / "cache"))
    data = shards.load(ShardsOptions(shards_dir=str(folder)), options)
    assert "2 of 237 images cannot be used and are left out" in caplog.text
    train = data.splits["train"]
    bad = []
    for shard, number in zip(damaged, (2, 7), strict=True):
        places = [i for i, file in enumerate(whole.files) if file == str(shard)]
        bad.append(places[number])
    kept = np.delete(np.arange(237), bad)
    assert list(train.names) == [whole.names[i] for i in kept]
    expected = originals(small_data, "train")
    assert read_all(train) == [expected[name][0] for name in train.names]
    assert [labels.tobytes() for labels in train.labels.toarray()] == [
        expected[name][1] for name in train.names
    ]
    if train.is_stream:
        for start in (0, 100, 235):
            streamed = list(train.stream(start).as_numpy_iterator())
            assert [(e["image"], e["labels"].tobytes()) for e in streamed] == [
                expected[name] for name in train.names[start:]
            ]
    assert len(data.splits["test"]) == 41


def test_all_contents_are_compared_on_request(folder):
    shard = train_shards(folder)[5]
    flip_in_image(shard, 0)
    options = ShardsOptions(shards_dir=str(folder))
    shards.load(options, LoadOptions())
    with pytest.raises(layout.ShardsError, match=f"{shard} is not the file .*digest differs"):
        shards.load(options, LoadOptions(check_content=True))


def edit_digit(text):
    return text.replace('"shuffle_seed": 0', '"shuffle_seed": 1')


def edit_class(text):
    return text.replace('"person", ', '"people", ').replace('"person"', '"people"')


@pytest.mark.parametrize("edit", [edit_digit, edit_class, lambda text: text.replace("/3", "/1")])
def test_an_edited_manifest_is_refused(folder, edit):
    path = folder / "shards.json"
    text = path.read_text()
    assert edit(text) != text
    path.write_text(edit(text))
    with pytest.raises(
        layout.ShardsError, match=r"shards\.json holds no manifest of shards"
    ) as caught:
        reading.load(folder)
    assert "\n" not in str(caught.value)


def reverse(manifest):
    manifest["splits"]["train"]["shards"].reverse()


def climb(manifest):
    manifest["splits"]["train"]["shards"][0]["file"] = (
        "../shards/" + "train-00000-of-00024.tfrecord"
    )


def absolute(manifest):
    manifest["statistics"]["file"] = "/etc/passwd"


def repeat(manifest):
    shards_of_train = manifest["splits"]["train"]["shards"]
    shards_of_train[1] = shards_of_train[0]


def backslash(manifest):
    manifest["splits"]["train"]["names"]["file"] = "..\\train-names.json"


def climbing_split(manifest):
    for key in ("splits", "num_examples", "num_shards"):
        manifest[key]["../a"] = manifest[key].pop("test")


def fewer_records(manifest):
    manifest["splits"]["train"]["shards"][2]["records"] -= 1


def fewer_shards(manifest):
    manifest["splits"]["train"]["shards"].pop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reverse, "names the file 'train-00023-of-00024.* in place of train-00000-of-00024"),
        (climb, r"names the file '\.\./shards/train-00000.* in place of train-00000"),
        (absolute, r"names the file '/etc/passwd' in place of statistics\.json"),
        (repeat, "names the file 'train-00000-of-.* in place of train-00001-of-00024"),
        (backslash, r"names the file '\.\.\\\\train-names.json' in place of train-names.json"),
        (climbing_split, r"has a split '\.\./a', which is no plain name"),
        (fewer_records, "gives train-00002-of-00024.* records in place of"),
        (fewer_shards, "lists 23 shards of train in place of 24"),
        (lambda manifest: manifest.update(surplus=1), "holds no manifest of shards: .*surplus"),
        (lambda manifest: manifest.update(shuffle_seed="0"), "field shuffle_seed"),
    ],
)
def test_files_are_those_of_the_plan_even_where_digests_are_right(folder, change, message):
    manifest = json.loads((folder / "shards.json").read_text())
    change(manifest)
    rewrite(folder, manifest)
    with pytest.raises(layout.ShardsError, match=message) as caught:
        reading.load(folder)
    assert "\n" not in str(caught.value)


def test_shards_of_an_earlier_version_are_read_with_a_warning(folder, small_data, caplog, recwarn):
    """Made anew from those of this version: records without identities, manifest without digest."""
    write_as_format_1(folder)
    expected = originals(small_data, "train")
    data = reading.load(folder)
    assert caplog.text.count("were written by an earlier version") == 1
    train = data.splits["train"]
    assert read_all(train) == [expected[name][0] for name in train.names]
    if train.is_stream:
        streamed = list(train.stream(0).as_numpy_iterator())
        assert [e["labels"].tobytes() for e in streamed] == [expected[n][1] for n in train.names]
    # A finished folder is kept as it is.
    record_format = train_shards(folder)[0].suffix[1:]
    plan = layout.make_plan(small_data, record_format=record_format, examples_per_shard=10)
    assert not writing.write(small_data, folder, plan).has_identities
    flip_in_image(train_shards(folder)[3], 1)
    with pytest.raises(inputs.UnreadableImageError, match="record 1, is damaged"):
        read_all(reading.load(folder).splits["train"])


def write_as_format_1(folder: pathlib.Path) -> None:
    content = json.loads((folder / "shards.json").read_text())
    for split in content["splits"].values():
        for info in split["shards"]:
            path = folder / info["file"]
            files = record_files.RecordFiles([path], content["record_format"])
            examples = [tf.train.Example.FromString(r) for r in files.fetch(np.arange(len(files)))]
            del files
            if content["record_format"] == "tfrecord":
                writer = tf.io.TFRecordWriter(str(path))
                for example in examples:
                    del example.features.feature["image/identity"]
                    writer.write(example.SerializeToString(deterministic=True))
            else:
                options = "group_size:1,uncompressed,max_parallelism:1"
                writer = array_record_module.ArrayRecordWriter(str(path), options)
                for example in examples:
                    writer.write(example.features.feature["image/encoded"].bytes_list.value[0])
            writer.close()
            info["bytes"] = path.stat().st_size
            info["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    del content["digest"], content["has_unknown"]
    content["format"] = "dbl_tf.Shards/1"
    (folder / "shards.json").write_text(json.dumps(content))


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_run_on_a_damaged_record_ends_in_one_line_or_goes_on_without_it(
    folder, small_data, tmp_path, split
):
    shard = sorted(folder.glob(f"{split}-0*"))[1]
    flip_in_image(shard, 4)
    command = [
        "train.py",
        "--method=erm",
        "--dataset=shards",
        f"--shards_dir={folder}",
        "--backbone=small_resnet",
        "--backbone_weights=none",
        "--image_size=8",
        "--batch_size=32",
        "--epochs=2",
        "--noexport",
        f"--cache_dir={tmp_path / 'cache'}",
    ]
    stopped = programs.run(*command, f"--run_dir={tmp_path / 'run'}")
    assert stopped.returncode == 1
    assert "Traceback" not in stopped.stderr
    last = stopped.stderr.splitlines()[-1]
    assert last.startswith("train: image ") and f"{shard}, record 4, is damaged: " in last
    goes_on = [*command, f"--run_dir={tmp_path / 'other'}", "--skip_bad_images"]
    assert programs.run(*goes_on).returncode == 0


def read_by_pipeline(train: Examples) -> list[tuple[bytes, bytes]]:
    """Reads images and labels as training does."""
    if not train.is_stream:
        return list(
            zip(read_all(train), map(np.ndarray.tobytes, train.labels.toarray()), strict=True)
        )
    with ImageInputs(SIZE, True).naming_unreadable(train):
        streamed = list(train.stream(0).as_numpy_iterator())
    return [(example["image"], example["labels"].tobytes()) for example in streamed]


def read_by_position(train: Examples) -> list[tuple[bytes, bytes]]:
    """Reads images by position, outside of a graph, which takes a few milliseconds."""
    found = train.read(tf.range(len(train), dtype=tf.int64)).numpy()
    return list(zip(found, map(np.ndarray.tobytes, train.labels.toarray()), strict=True))


def outcome_of_flip(path: pathlib.Path, byte: int, bit: int, expected, read) -> str:
    """Reads shards of which one file has one flipped bit; returns how it ended."""
    content = path.read_bytes()
    flip(path, byte, bit)
    try:
        train = reading.load(path.parent).splits["train"]
        assert read(train) == [expected[name] for name in train.names], (path, byte, bit)
        return "read right"
    except (
        layout.ShardsError,
        record_files.RecordFileError,
        inputs.UnreadableImageError,
        tf.errors.InvalidArgumentError,
    ) as error:
        is_raw = isinstance(error, tf.errors.OpError)
        message = images.reason_of(error) if is_raw else str(error)
        assert path.name in message, (path, byte, bit, message)
        assert message.count("\n") <= 2 and "Traceback" not in message, (path, byte, bit, message)
        return "refused" if isinstance(error, layout.ShardsError) else "named when read"
    finally:
        path.write_bytes(content)


def count_outcomes(small_data, folder, record_format: str, number: int, read) -> dict[str, int]:
    """Flips bits of all files of a small folder of shards, and counts how it ended."""
    part = {"train": small_data.splits["train"].take(np.arange(6))}
    data = reading.LabelledData(small_data.class_names, part)
    plan = layout.make_plan(data, record_format=record_format, examples_per_shard=3)
    writing.write(data, folder, plan)
    (folder / "lock").unlink()
    expected = originals(data, "train")
    paths = sorted(folder.iterdir())
    assert [path.suffix for path in paths[2:4]] == [f".{record_format}"] * 2 and len(paths) == 6
    # Most of an ArrayRecord file is zeros up to the end of a block.
    bytes_of = [np.flatnonzero(np.frombuffer(path.read_bytes(), np.uint8)) for path in paths]
    random = np.random.default_rng(19)
    counts: dict[str, int] = {}
    for _ in range(number):
        # Every second one in a shard.
        file = int(random.integers(2, 4) if random.random() < 0.5 else random.integers(len(paths)))
        size, anywhere = paths[file].stat().st_size, random.random() < 0.2
        byte = int(random.integers(size) if anywhere else random.choice(bytes_of[file]))
        outcome = outcome_of_flip(paths[file], byte, int(random.integers(8)), expected, read)
        counts[outcome] = counts.get(outcome, 0) + 1
    print(record_format, read.__name__, counts)
    return counts


@pytest.mark.parametrize("record_format", record_formats.FORMATS)
@pytest.mark.parametrize(("read", "number"), [(read_by_position, 150), (read_by_pipeline, 8)])
def test_no_flipped_bit_is_used_in_silence(small_data, tmp_path, record_format, read, number):
    counts = count_outcomes(small_data, tmp_path, record_format, number, read)
    assert sum(counts.values()) == number and counts["refused"] and counts["named when read"]


@pytest.mark.slow
@pytest.mark.parametrize("record_format", record_formats.FORMATS)
@pytest.mark.parametrize(("read", "number"), [(read_by_position, 10_000), (read_by_pipeline, 300)])
def test_none_of_ten_thousand_flipped_bits_is_used_in_silence(
    small_data, tmp_path, record_format, read, number
):
    counts = count_outcomes(small_data, tmp_path, record_format, number, read)
    assert sum(counts.values()) == number
