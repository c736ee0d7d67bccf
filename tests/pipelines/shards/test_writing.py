import dataclasses
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import time

import numpy as np
import programs
import pytest
import tensorflow as tf
from scipy import stats

from dbl_tf.lock import InUseError
from dbl_tf.statistics import LabelStatistics
from pipelines import record_formats, shrinking
from pipelines.datasets import digits_mlt
from pipelines.examples import LabelledData
from pipelines.shards import layout, reading, writing
from pipelines.shards.manifest import Manifest


def contents(directory) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in pathlib.Path(directory).iterdir()
        if path.name != "lock"  # it names the last process that wrote
    }


def test_tfrecords_hold_the_documented_fields(small_data, tmp_path):
    plan = layout.make_plan(small_data, record_format="tfrecord", examples_per_shard=100)
    writing.write(small_data, tmp_path, plan)
    paths = sorted(str(path) for path in tmp_path.glob("train-*.tfrecord"))
    assert [os.path.basename(path) for path in paths] == [
        f"train-0000{k}-of-00003.tfrecord" for k in range(3)
    ]
    train, seen = small_data.splits["train"], []
    for record in tf.data.TFRecordDataset(paths).as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        position = train.names.index(feature["image/name"].bytes_list.value[0].decode())
        seen.append(position)
        assert feature["image/encoded"].bytes_list.value[0] == train.read(position).numpy()
        assert feature["image/labels"].int64_list.value == train.labels[[position]].indices.tolist()
    assert sorted(seen) == list(range(237))
    assert seen != sorted(seen)
    loaded = LabelStatistics.load(tmp_path / "statistics.json")
    expected = LabelStatistics.from_labels(train.labels, small_data.class_names)
    np.testing.assert_array_equal(loaded.cooccurrence, expected.cooccurrence)
    assert loaded.class_names == small_data.class_names


def test_the_shuffle_leaves_every_shard_a_fair_share_of_a_sorted_data_set(small_data):
    # A chi-squared test of how the first half of the data set is spread over the shards.
    train = small_data.splits["train"]
    data = LabelledData(small_data.class_names, {"train": train.take(np.arange(236))})
    plan = layout.make_plan(data, examples_per_shard=59)
    first_half = [np.sum(plan.positions("train", k) < 118) for k in range(4)]
    assert stats.chisquare(first_half).pvalue > 0.001


_KILLED = """
import os, signal, sys
import tensorflow as tf
from pipelines.datasets import digits_mlt
from pipelines.shards import layout, reading, writing
data = digits_mlt.compose()
train, left = data.splits["train"], [300]
def read(position):
    def count(position):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return position
    return train.read(tf.numpy_function(count, [position], tf.int64))
import dataclasses
data = dataclasses.replace(
    data, splits={**data.splits, "train": dataclasses.replace(train, read=read)}
)
writing.write(data, sys.argv[1], layout.make_plan(data, examples_per_shard=100))
"""


def test_a_writer_that_is_killed_goes_on_and_ends_with_the_same_bytes(tmp_path):
    data = digits_mlt.compose()
    plan = layout.make_plan(data, examples_per_shard=100)
    writing.write(data, tmp_path / "whole", plan)
    killed = tmp_path / "killed"
    assert programs.run("-c", _KILLED, killed).returncode == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in killed.glob("train-*.array_record")}
    assert 0 < len(kept) < plan.num_shards["train"]
    assert not (killed / "shards.json").exists()
    (killed / f"{plan.shard_name('train', 5)}.0.incomplete").write_bytes(b"half")
    writing.write(data, killed, plan)
    assert contents(killed) == contents(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


@pytest.mark.parametrize("record_format", record_formats.FORMATS)
def test_a_full_disk_leaves_nothing_half_written_and_the_writer_goes_on(
    small_data, tmp_path, record_format
):
    plan = layout.make_plan(small_data, record_format=record_format, examples_per_shard=200)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(OSError, match=rf"cannot write .*{plan.shard_name('train', 0)}"):
            writing.write(small_data, tmp_path / "shards", plan)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert list(contents(tmp_path / "shards")) == ["shards.unfinished.json"]
    writing.write(small_data, tmp_path / "shards", plan)
    writing.write(small_data, tmp_path / "whole", plan)
    assert contents(tmp_path / "shards") == contents(tmp_path / "whole")


def test_another_data_set_or_form_in_the_folder_is_refused(small_data, tmp_path):
    plan = layout.make_plan(small_data, examples_per_shard=100)
    writing.write(small_data, tmp_path / "a", plan)
    before = contents(tmp_path / "a")
    part = {name: split.take(np.arange(40)) for name, split in small_data.splits.items()}
    other = LabelledData(small_data.class_names, part, 0.25)
    with pytest.raises(layout.ShardsError, match=r"other data.*num_examples"):
        writing.write(other, tmp_path / "a", layout.make_plan(other, examples_per_shard=100))
    with pytest.raises(layout.ShardsError, match="differs: num_shards"):
        writing.write(small_data, tmp_path / "a", layout.make_plan(small_data))
    assert contents(tmp_path / "a") == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "letter.txt").write_text("dear")
    with pytest.raises(layout.ShardsError, match="not empty"):
        writing.write(small_data, tmp_path / "b", plan)


@pytest.mark.parametrize("record_format", record_formats.FORMATS)
def test_shards_of_small_jpegs_hold_what_shrink_makes_of_the_files(
    small_data, tmp_path, record_format
):
    settings = shrinking.Settings(max_side=8)
    plan = layout.make_plan(
        small_data, record_format=record_format, examples_per_shard=100, shrinking=settings
    )
    manifest = writing.write(small_data, tmp_path, plan)
    assert manifest.plan == plan == Manifest.load(tmp_path).plan
    assert json.loads((tmp_path / "shards.json").read_text())["shrinking"]["max_side"] == 8
    test, read = small_data.splits["test"], reading.load(tmp_path).splits["test"]
    for i in range(3):
        encoded = test.read(tf.constant(i)).numpy()
        expected = shrinking.shrink(encoded, max_side=8, quality=92).encoded
        if record_format == "tfrecord":
            found = next(iter(read.stream(i)))["image"].numpy()
        else:
            found = read.read(tf.constant(i, tf.int64)).numpy()
        assert found == expected
    for other in (None, shrinking.Settings(max_side=9)):
        with pytest.raises(layout.ShardsError, match="other settings"):
            writing.write(small_data, tmp_path, dataclasses.replace(plan, shrinking=other))
    before = contents(tmp_path)
    (tmp_path / "shards.json").rename(tmp_path / "shards.unfinished.json")
    (tmp_path / "shards.unfinished.json").write_text(json.dumps(plan.to_json()))
    (tmp_path / plan.shard_name("train", 1)).unlink()
    writing.write(small_data, tmp_path, plan)
    assert contents(tmp_path) == before


def test_an_image_that_cannot_be_shrunk_is_named(small_data, tmp_path):
    train = small_data.splits["train"]
    broken = dataclasses.replace(train, read=lambda position: tf.constant(b"no image"))
    data = dataclasses.replace(small_data, splits={**small_data.splits, "train": broken})
    plan = layout.make_plan(data, shrinking=shrinking.Settings(max_side=8))
    with pytest.raises(layout.ShardsError, match=r"the image train/ä \d+\.png is no image"):
        writing.write(data, tmp_path, plan)
    assert list(contents(tmp_path)) == ["shards.unfinished.json"]


@pytest.mark.parametrize("record_format", record_formats.FORMATS)
def test_kept_shards_with_other_images_under_the_same_names_are_refused(
    small_data, tmp_path, record_format
):
    plan = layout.make_plan(small_data, record_format=record_format, examples_per_shard=100)
    writing.open_directory(tmp_path, plan)
    train = small_data.splits["train"]
    writing.write_shard(train, tmp_path, plan, "train", 0)
    train = train.take(np.roll(np.arange(237), 1))
    with pytest.raises(layout.ShardsError, match=r"00000-of-00003.* holds other images"):
        writing.write_shard(train, tmp_path, plan, "train", 0)


def test_verification_finds_a_byte_that_has_changed(small_data, tmp_path):
    manifest = writing.write(small_data, tmp_path, layout.make_plan(small_data))
    assert writing.find_problems(tmp_path, manifest) == []
    path = tmp_path / "test-00000-of-00001.array_record"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert writing.find_problems(tmp_path, manifest, content=False) == []
    (problem,) = writing.find_problems(tmp_path, manifest)
    assert str(path) in problem


def test_the_manifest_says_what_is_there(small_data, tmp_path):
    writing.write(small_data, tmp_path, layout.make_plan(small_data, examples_per_shard=100))
    content = json.loads((tmp_path / "shards.json").read_text())
    assert [shard["records"] for shard in content["splits"]["train"]["shards"]] == [79, 79, 79]
    for part in content["splits"].values():
        for shard in part["shards"]:
            assert (tmp_path / shard["file"]).stat().st_size == shard["bytes"]


def damage(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def test_a_finished_shard_that_has_changed_is_written_again(small_data, tmp_path, caplog):
    plan = layout.make_plan(small_data, examples_per_shard=60)
    writing.write(small_data, tmp_path / "whole", plan)
    folder, train = tmp_path / "stopped", small_data.splits["train"]
    with writing.open_directory(folder, plan):
        for shard in range(3):
            writing.write_shard(train, folder, plan, "train", shard)
    first, second, third = (folder / plan.shard_name("train", shard) for shard in range(3))
    damage(first)
    second.with_name(f"{second.name}.sha256").unlink()
    kept = third.stat().st_mtime_ns
    caplog.clear()
    writing.write(small_data, folder, plan)
    warnings = [r.getMessage() for r in caplog.records if "is written again" in r.getMessage()]
    assert len(warnings) == 2 and str(first) in warnings[0] and str(second) in warnings[1]
    assert third.stat().st_mtime_ns == kept
    assert contents(folder) == contents(tmp_path / "whole")


def test_digests_next_to_unfinished_shards_are_those_of_sha256sum(small_data, tmp_path):
    plan = layout.make_plan(small_data, examples_per_shard=60)
    with writing.open_directory(tmp_path, plan):
        writing.write_shard(small_data.splits["test"], tmp_path, plan, "test", 0)
    name = f"{plan.shard_name('test', 0)}.sha256"
    subprocess.run(["sha256sum", "--check", "--strict", name], cwd=tmp_path, check=True)


def test_a_second_writer_is_told_who_is_first(small_data, tmp_path):
    plan = layout.make_plan(small_data)
    with (
        writing.open_directory(tmp_path, plan),
        pytest.raises(InUseError, match=rf"{tmp_path} is in use .*process {os.getpid()}"),
    ):
        writing.write(small_data, tmp_path, plan)
    writing.write(small_data, tmp_path, plan)


def test_unfinished_shards_of_an_earlier_version_are_left_to_it(small_data, tmp_path):
    plan = layout.make_plan(small_data)
    begun = plan.to_json() | {"format": "dbl_tf.Shards/1"}
    del begun["has_unknown"]
    (tmp_path / "shards.unfinished.json").write_text(json.dumps(begun))
    with pytest.raises(layout.ShardsError, match=r"of an earlier version.*Shards/1; finish them"):
        writing.write(small_data, tmp_path, plan)


def test_names_that_are_not_utf_8_come_back(small_data, tmp_path):
    test = small_data.splits["test"]
    names = [os.fsdecode(b"caf\xe9 %d.png" % i) for i in range(len(test))]
    data = LabelledData(small_data.class_names, {"train": dataclasses.replace(test, names=names)})
    for record_format in record_formats.FORMATS:
        folder = tmp_path / record_format
        writing.write(data, folder, layout.make_plan(data, record_format=record_format))
        train = reading.load(folder).splits["train"]
        assert sorted(train.names) == sorted(names)
        assert len(list(train.encoded().as_numpy_iterator())) == len(names)


_WRITER = """
import sys
from pipelines.datasets import digits_mlt
from pipelines.shards import layout, writing
data = digits_mlt.compose()
plan = layout.make_plan(data, record_format=sys.argv[2], examples_per_shard=100)
writing.write(data, sys.argv[1], plan)
"""


@pytest.mark.slow
@pytest.mark.parametrize("record_format", record_formats.FORMATS)
def test_a_writer_killed_ten_times_beside_flipped_bytes_ends_with_the_same_bytes(
    tmp_path, record_format, caplog
):
    data = digits_mlt.compose()
    plan = layout.make_plan(data, record_format=record_format, examples_per_shard=100)
    writing.write(data, tmp_path / "whole", plan)
    folder, random, kills, num_flipped = tmp_path / "killed", np.random.default_rng(7), 0, 0
    while kills < 10:
        if (folder / "shards.json").exists():  # it was finished before it could be killed
            shutil.rmtree(folder)
        before = names_of_shards(folder, record_format)
        writer = programs.Program(["-c", _WRITER, folder, record_format])
        # Some are killed within a shard and some between two, after at least one more.
        while writer.returncode is None and names_of_shards(folder, record_format) == before:
            time.sleep(0.01)
        time.sleep(random.random() / 2)
        if writer.returncode is None:
            os.kill(writer.pid, signal.SIGKILL)
        kills += writer.wait() == -signal.SIGKILL
        finished = sorted(names_of_shards(folder, record_format))
        if not (folder / "shards.json").exists():
            path = folder / finished[random.integers(len(finished))]
            content = bytearray(path.read_bytes())
            content[random.integers(len(content))] ^= 1 << int(random.integers(8))
            path.write_bytes(content)
            num_flipped += 1
    caplog.clear()
    writing.write(data, folder, plan)
    assert "is written again" in caplog.text and num_flipped >= 10
    assert contents(folder) == contents(tmp_path / "whole")


def names_of_shards(folder: pathlib.Path, record_format: str) -> set[str]:
    return {path.name for path in folder.glob(f"[!.]*-of-*.{record_format}")}
