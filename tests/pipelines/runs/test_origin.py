"""Data and threads that change while a run is stopped."""

import dataclasses
import os
import shutil

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf
from run_data import make_data

from dbl_tf import LabelStatistics
from pipelines.examples import Examples, FeatureRows
from pipelines.runs import directory
from pipelines.runs.config import ConfigError, RunConfig
from pipelines.runs.origin import Origin
from pipelines.runs.resolution import resolve

LABELS = np.eye(3, dtype=bool)[[0, 0, 1, 2, 1, 0]]
STRATEGY = tf.distribute.OneDeviceStrategy("CPU:0")


@pytest.fixture
def splits(tmp_path):
    files = {}
    for split in ("train", "test"):
        files[split] = [str(tmp_path / f"{split}-{i}.png") for i in range(len(LABELS))]
        for path in files[split]:
            with open(path, "w") as file:
                file.write(path)
    labels = scipy.sparse.csr_array(LABELS)
    names = [f"{i}.png" for i in range(len(LABELS))]
    return {split: Examples(names, labels, files=files[split]) for split in files}


def open_run(run_dir, splits, **settings):
    config = resolve(RunConfig.of(run_dir=str(run_dir), **settings), make_data(3))
    run_dir.mkdir(exist_ok=True)
    statistics = LabelStatistics.from_labels(splits["train"].labels, "abc")
    return directory.open_directory(config, statistics, Origin.of(splits, STRATEGY))


def open_with_content(run_dir, splits, **settings):
    config = resolve(RunConfig.of(run_dir=str(run_dir), **settings), make_data(3))
    run_dir.mkdir(exist_ok=True)
    statistics = LabelStatistics.from_labels(splits["train"].labels, "abc")
    origin = Origin.of(splits, STRATEGY, content=True)
    return directory.open_directory(config, statistics, origin)


def overwrite_unnoticed(path):
    """Changes a file, and neither its size nor its time."""
    before = os.stat(path)
    with open(path, "r+") as file:
        file.write("x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def relabelled(examples, order):
    return dataclasses.replace(examples, labels=examples.labels[order])


def exchange_labels_in_train(splits):
    # Rows 0 and 3: all counts and co-occurrences stay.
    return splits | {"train": relabelled(splits["train"], [3, 1, 2, 0, 4, 5])}


def change_labels_in_test(splits):
    return splits | {"test": relabelled(splits["test"], [0, 0, 0, 0, 0, 0])}


def rename_in_test(splits):
    names = ["other.png", *splits["test"].names[1:]]
    return splits | {"test": dataclasses.replace(splits["test"], names=names)}


def replace_a_file(splits):
    path = splits["train"].files[2]
    before = os.stat(path)
    with open(path, "r+") as file:  # of the same size
        file.write("x")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10_000_000))
    return splits


def change_a_count(splits):
    return splits | {"train": relabelled(splits["train"], [1, 1, 2, 3, 4, 2])}


CHANGES = {
    exchange_labels_in_train: "train: labels",
    change_labels_in_test: "test: labels",
    rename_in_test: "test: names",
    replace_a_file: r"train: files \(path, size or time\)",
    change_a_count: "train: labels",
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_data_are_refused_or_accepted_and_recorded(change, splits, tmp_path):
    run_dir = tmp_path / "run"
    assert open_run(run_dir, splits).accepted_changes == []
    written = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    assert open_run(run_dir, splits).accepted_changes == []
    changed = change(splits)
    with pytest.raises(ValueError, match=f"not those.*: {CHANGES[change]}.*--accept_changed_data"):
        open_run(run_dir, changed)
    assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == written
    accepted = open_run(run_dir, changed, accept_changed_data=True)
    assert len(accepted.accepted_changes) == 1
    # They are the data of the run from now on.
    assert open_run(run_dir, changed) == accepted
    assert Origin.load(run_dir) == accepted
    if change not in (replace_a_file,):
        with pytest.raises(ValueError, match="not those"):
            open_run(run_dir, splits)


def test_content_is_compared_on_request(splits, tmp_path):
    run_dir = tmp_path / "run"
    open_with_content(run_dir, splits)
    open_run(run_dir, splits)  # which keeps what is known of the content
    open_with_content(run_dir, splits)
    overwrite_unnoticed(splits["test"].files[1])
    open_run(run_dir, splits)
    with pytest.raises(ValueError, match=r"test: files \(content\)"):
        open_with_content(run_dir, splits)
    directory.check_data(run_dir, {"test": splits["test"]})
    with pytest.raises(ValueError, match=r"trained and evaluated on: test: files \(content\)"):
        directory.check_data(run_dir, {"test": splits["test"]}, content=True)


def test_copied_files_are_the_same_by_content(splits, tmp_path):
    run_dir = tmp_path / "run"
    open_with_content(run_dir, splits)
    shutil.copytree(tmp_path, tmp_path / "copy", ignore=shutil.ignore_patterns("copy", "run"))
    copied = {
        name: dataclasses.replace(
            split,
            files=[path.replace(str(tmp_path), str(tmp_path / "copy")) for path in split.files],
        )
        for name, split in splits.items()
    }
    with pytest.raises(ValueError, match=r"files \(path, size or time\)"):
        open_run(run_dir, copied)
    open_with_content(run_dir, copied)
    open_run(run_dir, copied)  # they are the files of the run now


@pytest.mark.parametrize("change", [change_labels_in_test, rename_in_test])
def test_changed_test_data_are_not_evaluated(change, splits, tmp_path):
    open_run(tmp_path / "run", splits)
    directory.check_data(tmp_path / "run", {"test": splits["test"]})
    expected = f"not those that .* was trained and evaluated on: {CHANGES[change]}"
    with pytest.raises(ValueError, match=expected):
        directory.check_data(tmp_path / "run", {"test": change(splits)["test"]})


@pytest.mark.parametrize("mmap_mode", [None, "r"])
def test_features_in_memory_and_in_a_file_are_compared(mmap_mode, splits, tmp_path):
    path = tmp_path / "features.npy"
    array = np.random.default_rng(0).standard_normal((12, 4)).astype(np.float32)

    def read():
        array = np.load(path, mmap_mode=mmap_mode)
        return {
            name: dataclasses.replace(
                split, files=(), features=FeatureRows(array, np.arange(len(LABELS)) + first)
            )
            for first, (name, split) in zip((0, 6), splits.items(), strict=True)
        }

    np.save(path, array)
    open_run(tmp_path / "run", read())
    open_run(tmp_path / "run", read())
    array[7, 0] += 1  # in the test split
    np.save(path, array)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match="test: files"):
        open_run(tmp_path / "run", read())


def test_another_number_of_examples_or_other_classes_cannot_be_accepted(splits, tmp_path):
    open_run(tmp_path / "run", splits)
    fewer = splits | {"train": splits["train"].take(np.arange(5))}
    with pytest.raises(ValueError, match=r"has 6 examples of 3 classes, and the data have 5 of 3"):
        open_run(tmp_path / "run", fewer, accept_changed_data=True)


def test_a_run_of_an_earlier_version_continues_with_a_warning(splits, tmp_path, caplog):
    run_dir = tmp_path / "run"
    open_run(run_dir, splits)
    (run_dir / "origin.json").unlink()
    caplog.clear()
    open_run(run_dir, exchange_labels_in_train(splits))
    assert "kept no origin.json: whether its data have changed cannot be told" in caplog.text
    caplog.clear()
    open_run(run_dir, exchange_labels_in_train(splits))
    assert not caplog.text


def test_other_cores_are_warned_of(splits, tmp_path, caplog):
    run_dir = tmp_path / "run"
    first = open_run(run_dir, splits)
    threads = first.threads | {"cores": "64", "TensorFlow": "2.20.0"}
    Origin(first.splits, threads).save(run_dir)
    caplog.clear()
    open_run(run_dir, splits)
    assert "its weights may differ in their last digits" in caplog.text
    assert f"cores: 64 then, {first.threads['cores']} now" in caplog.text
    assert "TensorFlow: 2.20.0 then, " in caplog.text


def test_a_damaged_or_a_missing_file_of_the_run_is_named(splits, tmp_path):
    run_dir = tmp_path / "run"
    open_run(run_dir, splits)
    for text in ("", "{}", '{"splits": {"train": 1}, "threads": {}}'):
        (run_dir / "origin.json").write_text(text)
        with pytest.raises(ValueError, match=r"origin\.json holds no fingerprint of data: "):
            open_run(run_dir, splits)
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "step-00000004.npz").touch()
    (run_dir / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has checkpoints, but its config\.json is gone"):
        directory.saved_config(RunConfig.of(run_dir=str(run_dir)))
