import csv
import json
import os
import shutil
import signal
import socket

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from PIL import Image
from run_data import make_data

from benchmarks import hostile_images
from dbl_tf import serving
from dbl_tf.calibration import Calibration
from dbl_tf.statistics import LabelStatistics
from pipelines import images
from pipelines.runs import evaluate, labeling
from pipelines.runs.config import RunConfig
from pipelines.runs.resolution import resolve

NAMES = ("red", "green", "blue|dark")
SIZE = 8
SLOPE, OFFSETS = 2.0, np.array([0.0, 0.5, -0.5])
THRESHOLDS = np.array([0.5, 0.9, 0.5])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A directory with an exported model whose logits are mean/64 − 2 of each channel."""
    pixels = keras.Input((SIZE, SIZE, 3))
    means = keras.layers.GlobalAveragePooling2D()(pixels)
    model = keras.Model(pixels, keras.layers.Rescaling(1 / 64, -2.0)(means))
    folder = tmp_path_factory.mktemp("run")
    serving.export(
        model,
        LabelStatistics.from_labels(np.eye(3, dtype=int), NAMES),
        lambda encoded: images.read_batch(encoded, SIZE),
        lambda image: images.resize(image, SIZE),
        folder / "saved_model",
        thresholds=THRESHOLDS,
        thresholds_from="val",
        example_image=tf.io.encode_png(np.zeros((1, 1, 3), np.uint8)).numpy(),
        calibration=Calibration(SLOPE, OFFSETS, "val"),
    )
    return folder


@pytest.fixture(scope="module")
def model(run_dir):
    return evaluate.SavedModel(labeling.find_model(str(run_dir)))


def save(path, color):
    Image.new("RGB", (20, 12), color).save(path, "PNG")


def expected(color):
    logits = np.array(color) / 64 - 2
    return 1 / (1 + np.exp(-(SLOPE * logits + OFFSETS)))


def label_all(model, files, paths=()):
    return list(labeling.label(model, files, [str(path) for path in paths]))


def test_bad_files_are_rows_with_reasons_and_stop_no_other(model, tmp_path):
    folder = tmp_path / "new"
    (folder / "below").mkdir(parents=True)
    colors = {"a.png": (200, 30, 128), "below/b.png": (0, 250, 0), "z\n.png": (0, 0, 0)}
    for name, color in colors.items():
        save(folder / name, color)
    save(os.fsencode(folder) + b"/caf\xe9.png", (255, 255, 255))
    with open(folder / "huge.png", "wb") as file:
        file.truncate(20 * 10**9)  # a sparse file of 20 GB
    (folder / "empty.png").touch()
    (folder / "lost.png").symlink_to("nowhere")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "memory.png").symlink_to("/proc/self/mem")  # its first byte cannot be read
    os.mkfifo(folder / "pipe.png")
    save(folder / "gone.png", (9, 9, 9))
    files = labeling.images_of_folder(str(folder))
    (folder / "gone.png").unlink()
    outputs = [tmp_path / "labels.csv", tmp_path / "labels.jsonl"]
    rows = label_all(model, files, outputs)

    with open(outputs[0], newline="", encoding="utf-8") as file:
        table = {row["image"]: row for row in csv.DictReader(file)}
    lines = [json.loads(line) for line in outputs[1].read_text(encoding="utf-8").splitlines()]
    assert [row.name for row in rows] == [line["image"] for line in lines] == list(table)
    reasons = {
        "empty.png": "",
        "gone.png": "No such file",
        "huge.png": "it has 20,000,000,000 bytes, and at most 816,777,216 are read",
        "lost.png": "No such file",
        "loop.png": "Too many levels",
        "memory.png": "Input/output error",
        "pipe.png": "it is a pipe",
    }
    colors[r"caf\xe9.png"] = (255, 255, 255)
    assert set(table) == {*reasons, *colors}
    for line in lines:
        row = table[line["image"]]
        if line["image"] in reasons:
            assert line["error"] and line["error"].startswith(reasons[line["image"]])
            assert row["error"] == line["error"] and row["labels"] == row["red"] == ""
            continue
        true = expected(colors[line["image"]])
        assert line["labels"] == [NAMES[i] for i in np.flatnonzero(true >= THRESHOLDS)]
        assert row["labels"] == "|".join(line["labels"]) and row["error"] == ""
        assert list(line["probabilities"]) == list(NAMES)
        np.testing.assert_allclose(list(line["probabilities"].values()), true, atol=1e-6)
        np.testing.assert_allclose([float(row[name]) for name in NAMES], true, atol=1e-6)

    summary = labeling.Summary()
    for row in rows:
        summary.add(row)
    assert str(summary).splitlines() == [
        "11 files: 3 with labels, 1 without any above its threshold, 7 that could not be read",
        # (200, 30, 128) is red, (0, 250, 0) green, and white has all three labels.
        "1.7 labels for each image that has any: green 2, red 2, blue|dark 1",
    ]


def test_folders_that_cannot_be_listed_and_files_that_do_not_exist_are_rows(
    model, tmp_path, monkeypatch
):
    save(tmp_path / "a.png", (255, 0, 0))
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refusing(path):  # permissions do not stop root
        if os.path.basename(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    files = labeling.find_images([str(tmp_path), str(tmp_path / "none.png")])
    rows = label_all(model, files)
    assert [(row.name, row.error) for row in rows] == [
        (str(tmp_path / "a.png"), ""),
        (str(tmp_path / "closed"), "Permission denied"),
        (str(tmp_path / "none.png"), "No such file or directory"),
    ]


def test_sockets_links_and_folders_named_like_images_are_rows(model, tmp_path, monkeypatch):
    save(tmp_path / "a.png", (255, 0, 0))
    (tmp_path / "b.jpg").mkdir()  # empty, so that there is nothing to label
    (tmp_path / "c.jpg").symlink_to(tmp_path)  # which would lead in circles
    monkeypatch.chdir(tmp_path)  # the paths of sockets are short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("d.jpg")
        (tmp_path / "e.jpg").symlink_to("d.jpg")
        rows = label_all(model, labeling.images_of_folder(str(tmp_path)))
    assert [(row.name, row.error) for row in rows] == [
        ("a.png", ""),
        ("c.jpg", "it is a folder, and not a file"),
        ("d.jpg", "it is a pipe, socket or device, and not a file"),
        ("e.jpg", "it is a pipe, socket or device, and not a file"),
    ]


def test_images_that_cost_too_much_are_rows(model, tmp_path):
    text = hostile_images.compressed_text(b"iTXt", 7_900_000)
    save(tmp_path / "a.png", (255, 0, 0))
    (tmp_path / "b.png").write_bytes(hostile_images.png(8, 8, after=text * 600))
    (tmp_path / "c.jpg").write_bytes(hostile_images.jpeg(10_000, 10_000, 1_000))
    rows = label_all(model, labeling.images_of_folder(str(tmp_path)))
    assert [row.name for row in rows] == ["a.png", "b.png", "c.jpg"]
    for row, reason in zip(
        rows, ("", "more than 16 compressed", "more than 10 scans"), strict=True
    ):
        assert reason in row.error and bool(row.error) == bool(reason)


def test_images_of_several_batches_stay_in_order_and_are_bounded_in_bytes(
    model, tmp_path, monkeypatch
):
    shades = [3 * i for i in range(80)]
    for i, shade in enumerate(shades):
        save(tmp_path / f"{i:02d}.png", (shade, 0, 0))
    monkeypatch.setattr(labeling, "BATCH_SIZE", 7)
    monkeypatch.setattr(labeling, "_BATCH_BYTES", 3 * (tmp_path / "00.png").stat().st_size)
    sizes = []
    answer = model.predict_encoded

    def counted(encoded):
        sizes.append(len(encoded))
        return answer(encoded)

    monkeypatch.setattr(model, "predict_encoded", counted)
    rows = label_all(model, labeling.images_of_folder(str(tmp_path)))
    found = [float(row.probabilities[0]) for row in rows]
    np.testing.assert_allclose(found, [expected((s, 0, 0))[0] for s in shades], atol=1e-6)
    assert sum(sizes) == 80 and max(sizes) <= 3


def test_hidden_files_and_those_of_file_managers_are_labeled_only_when_named(model, tmp_path):
    save(tmp_path / "a.png", (255, 0, 0))
    folder = tmp_path / ".hidden"  # which is searched, because it is named
    (folder / "__MACOSX").mkdir(parents=True)
    (folder / ".git").mkdir()
    for name in (".b.png", "._a.png", ".DS_Store", "Thumbs.db", "desktop.ini", "Desktop.INI"):
        (folder / name).write_bytes(b"no image")
    for name in ("a.png", ".git/a.png", "__MACOSX/a.png", ".b.png"):
        save(folder / name, (255, 0, 0))
    (folder / ".loop").symlink_to(folder)
    found = labeling.find_images([str(tmp_path), str(folder), str(folder / ".b.png")])
    rows = label_all(model, found)
    wanted = [tmp_path / "a.png", folder / "a.png", folder / ".b.png"]
    assert [(row.name, row.labels) for row in rows] == [(str(path), ("red",)) for path in wanted]
    remote = f"ram://{tmp_path.name}/.seen"
    for name in ("a.png", ".b.png", ".git/a.png", "Thumbs.db"):
        tf.io.gfile.makedirs(os.path.dirname(f"{remote}/{name}"))
        tf.io.gfile.copy(str(tmp_path / "a.png"), f"{remote}/{name}")
    assert [image.location for image in labeling.find_images([remote])] == [f"{remote}/a.png"]


def test_files_behind_a_scheme_are_labeled_alike(model, tmp_path):
    folder = f"ram://{tmp_path.name}/new"
    tf.io.gfile.makedirs(folder)
    save(tmp_path / "a.png", (250, 0, 0))
    tf.io.gfile.copy(str(tmp_path / "a.png"), f"{folder}/a.png")
    rows = label_all(model, labeling.find_images([folder, f"{folder}/none.png"]))
    assert [row.labels for row in rows] == [("red",), ()]
    assert rows[1].error.startswith("no such file")
    with pytest.raises(ValueError, match="the images: 1 start with s3://"):
        labeling.find_images(["s3://bucket/new"])


def test_outputs_are_complete_or_absent(model, tmp_path):
    save(tmp_path / "a.png", (250, 0, 0))
    files = labeling.find_images([str(tmp_path / "a.png")])
    path = tmp_path / "labels.csv"
    rows = labeling.label(model, files, [str(path)])
    next(rows)
    rows.close()  # as an interrupt does
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(ValueError, match=r"that end in \.csv or \.jsonl; got .*labels\.txt"):
        label_all(model, files, [path, tmp_path / "labels.txt"])
    with pytest.raises(FileNotFoundError):
        label_all(model, files, [tmp_path / "none" / "labels.csv"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.png"]


def test_models_are_found_by_run_by_base_and_by_version(run_dir, tmp_path):
    base = tmp_path / "run" / "saved_model"
    base.mkdir(parents=True)
    for version in ("2", "10"):
        shutil.copytree(run_dir / "saved_model" / "1", base / version)
    newest = str(base / "10")
    assert labeling.find_model(str(tmp_path / "run")) == newest
    assert labeling.find_model(str(base)) == newest
    assert labeling.find_model(str(base / "2")) == str(base / "2")
    with pytest.raises(ValueError, match="is neither a run nor a model"):
        labeling.find_model(str(tmp_path))


def test_a_run_without_a_model_is_told_apart_from_one_that_has_not_finished(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ValueError, match=r"holds no run: there is no config\.json"):
        evaluate.evaluate_run(str(tmp_path))
    for exports in (True, False):
        resolve(RunConfig.of(run_dir=str(tmp_path), export=exports), make_data()).save(path)
        for begin in (labeling.find_model, evaluate.evaluate_run):
            with pytest.raises(ValueError, match=r"not finished, .*; the same training command"):
                begin(str(tmp_path))
    (tmp_path / "metrics.json").touch()
    with pytest.raises(ValueError, match=r"no exported model: start .* without --noexport"):
        labeling.find_model(str(tmp_path))
    resolve(RunConfig.of(run_dir=str(tmp_path)), make_data()).save(path)  # killed before its export
    with pytest.raises(ValueError, match="not finished, as there is no saved_model"):
        labeling.find_model(str(tmp_path))


# Runs a module whose output goes into a pipe that nobody reads.
CLOSED_PIPE = """
import os, runpy, sys
reader, writer = os.pipe()
os.close(reader)
os.dup2(writer, 1)
del sys.argv[0]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_the_command_prints_labels_and_a_summary(run_dir, tmp_path):
    save(tmp_path / "\x1b[2J.png", (250, 0, 0))
    save(tmp_path / "b.png", (0, 0, 0))
    (tmp_path / "c.txt").write_text("no image")
    output = tmp_path.parent / "labels.jsonl"
    command = ("-m", "pipelines.tag", f"--model={run_dir}", f"--output={output}")
    done = programs.run(*command, tmp_path)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == rf"{tmp_path}/\x1b[2J.png: red 0.98"
    assert lines[1] == f"{tmp_path}/b.png: no label"
    assert lines[2].startswith(f"{tmp_path}/c.txt: ")
    assert lines[3].startswith("3 files: 1 with labels, 1 without any")
    assert [json.loads(line)["labels"] for line in output.read_text().splitlines()[:2]] == [
        ["red"],
        [],
    ]
    (tmp_path / "c.txt").rename(tmp_path / ".DS_Store")
    (tmp_path / "\x1b[2J.png").unlink()
    done = programs.run(*command, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("1 file: 0 with labels, 1 without any")
    done = programs.run("-c", CLOSED_PIPE, *command[1:], tmp_path)  # as `| head` leaves it
    assert done.returncode == 128 + signal.SIGPIPE and "tag: " not in done.stderr
    assert "Traceback" not in done.stderr and "Errno" not in done.stderr
    done = programs.run(*command[:-1], f"--output={tmp_path}/none/labels.csv", tmp_path)
    assert done.returncode == 1
    assert f"tag: --output={tmp_path}/none/labels.csv: there is no folder" in done.stderr
    done = programs.run("-m", "pipelines.tag", f"--model={tmp_path}", tmp_path)
    assert done.returncode == 1 and "tag: " in done.stderr and "Traceback" not in done.stderr
