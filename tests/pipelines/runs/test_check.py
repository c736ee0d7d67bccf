"""`train.py --check_only`, as a person starts it."""

import os
import pathlib

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf

from pipelines.runs import check, compare, train
from pipelines.runs.config import ConfigError, RunConfig


def run(*flags, status=0):
    """The output of a check, of which nothing but the cache is written."""
    done = programs.run(
        "train.py", "--check_only", *flags, environment={"TF_CPP_MIN_LOG_LEVEL": "2"}
    )
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def files_in(folder: pathlib.Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(root, name), folder)
        for root, _, names in os.walk(folder)
        for name in names
    }


@pytest.fixture
def pictures(picture_table, tmp_path):
    """A copy of the table and its pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in picture_table.parent.iterdir():
        if path.is_file():  # other tests have a cache there
            (folder / path.name).write_bytes(path.read_bytes())
    return folder / "examples.csv"


def test_options_of_the_backbone_are_tried_before_the_data_are_read(tmp_path):
    keras.layers.Dense(1)
    before = keras.layers.Dense(1).name
    settings = {
        "dataset": "table",
        "examples": str(tmp_path / "none.csv"),
        "run_dir": str(tmp_path / "run"),
        "backbone": "small_resnet",
        "image_size": 16,
    }
    for options, words in ({"widht": 4}, "has no option 'widht'"), ({"width": 0}, "with width=0"):
        asked = RunConfig.of(**settings, backbone_options=options)
        for begin in (check.check, train.train_and_evaluate):
            with pytest.raises(ValueError, match=words):
                begin(asked)
        with pytest.raises(ValueError, match=words):
            compare.compare([asked], tmp_path / "comparison")
    with pytest.raises(ValueError, match=r"none\.csv was not found"):
        check.check(RunConfig.of(**settings, backbone_options={"width": 4}))
    # Layers that are numbered keep the numbers that they have without the trial.
    number = int(before.removeprefix("dense_"))
    assert keras.layers.Dense(1).name == f"dense_{number + 1}"
    assert not list(tmp_path.iterdir())


def test_a_method_that_is_left_to_cross_validation_is_not_judged_as_the_default(tmp_path, capsys):
    """The margin of the default is not finite where every training example has a label."""
    labels = np.eye(2, dtype=int)[np.arange(20) % 2]
    labels[:, 0] = 1
    split = np.repeat(["train", "test"], 10)
    path = tmp_path / "features.npz"
    names = np.array(["always", "sometimes"])
    np.savez(path, features=np.eye(20), labels=labels, split=split, class_names=names)
    data = {"dataset": "features", "examples": str(path), "cache_dir": str(tmp_path)}
    check.check(RunConfig.of(**data))
    check.check(RunConfig.of(**data, method="auto"))
    with pytest.raises(
        ConfigError, match=r"^--run_dir=/proc/x: nothing can be written to /proc \("
    ):
        check.check(RunConfig.of(**data, run_dir="/proc/x"))
    assert capsys.readouterr().out.count(": 10 train, 0 val, 10 test images; 2 classes") == 3
    with pytest.raises(ConfigError, match=r"always is in every .* --method=db_focal is not finite"):
        check.check(RunConfig.of(**data, method="db_focal"))
    with pytest.raises(ConfigError, match=r"goes with --method=ml_gcn; pass it$"):
        RunConfig.of(**data, word_vectors=str(path))


def test_a_table_is_summed_up_and_nothing_but_the_cache_is_written(pictures, tmp_path):
    before = files_in(tmp_path)
    run_dir, cache_dir = tmp_path / "run", tmp_path / "cache"
    done = run(
        "--dataset=table",
        f"--examples={pictures}",
        "--val_fraction=0.25",
        f"--run_dir={run_dir}",
        f"--cache_dir={cache_dir}",
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "list layout: 30 train, 10 val, 12 test images; 3 classes"
    for part in ("Classes", "Pairs", "Rows", "Class-aware re-sampling"):
        assert sum(line.startswith(part) for line in lines) == 1
    assert files_in(tmp_path) - before == {"cache/checked_images.digests"}


def test_an_image_in_two_splits_under_two_names_is_shown(pictures, tmp_path):
    (pictures.parent / "50.png").write_bytes((pictures.parent / "3.png").read_bytes())
    done = run("--dataset=table", f"--examples={pictures}", f"--cache_dir={tmp_path / 'cache'}")
    heading = "Images with the same bytes in different splits: 1"
    lines = done.stdout.splitlines()
    assert lines[lines.index(heading) + 1] == "  '3.png' (train) = '50.png' (test)"


@pytest.mark.parametrize(
    ("flags", "first"),
    [
        ([], r"digits_mlt scenes: "),
        (["--test_fraction=0.2"], None),
    ],
)
def test_the_embedded_data_are_summed_up(flags, first):
    done = run(*flags, status=0 if first else 1)
    if first:
        assert done.stdout.startswith(first) and "2000 test images; 10 classes\n" in done.stdout
    else:
        assert done.stdout == "" and "must not be given" in done.stderr


def test_features_are_summed_up(tmp_path):
    labels = np.random.default_rng(0).random((50, 3)) < 0.5
    np.savez(
        tmp_path / "f.npz",
        features=np.zeros((50, 4), np.float32),
        labels=labels,
        class_names=np.array(["cat", "Cat", "dog"]),
    )
    done = run("--dataset=features", f"--examples={tmp_path / 'f.npz'}", "--test_fraction=0.2")
    assert done.stdout.startswith("archive of features: 40 train, 0 val, 10 test images; 3 classes")
    assert "look like doubles: 1\n  'cat' and 'Cat'\n" in done.stdout
    assert "same bytes" not in done.stdout


def test_bad_images_end_with_status_1_after_what_was_read(pictures, tmp_path):
    (pictures.parent / "7.png").unlink()
    (pictures.parent / "9.png").write_bytes(b"")
    done = run(
        "--dataset=table", f"--examples={pictures}", f"--cache_dir={tmp_path / 'cache'}", status=1
    )
    assert done.stdout.startswith("list layout: 40 train, 0 val, 12 test images; 3 classes\n")
    assert "2 of 52 images" in done.stderr and "no such file: 1" in done.stderr
    left_out = run(
        "--dataset=table",
        f"--examples={pictures}",
        f"--cache_dir={tmp_path / 'cache'}",
        "--skip_bad_images",
    )
    assert left_out.stdout.startswith("list layout: 38 train, 0 val, 12 test images; 3 classes\n")


def test_all_that_training_would_refuse_is_named_with_status_1(pictures, tmp_path, capsys):
    (pictures.parent / "classes.txt").write_text("red\ngreen\nblue\nzebra\n")
    config = RunConfig.of(
        dataset="table",
        examples=str(pictures),
        class_names=str(pictures.parent / "classes.txt"),
        keep="best",
        cache_dir=str(tmp_path / "cache"),
    )
    with pytest.raises(ConfigError) as error:
        check.check(config)
    reasons = str(error.value).splitlines()
    assert len(reasons) == 2
    assert reasons[0].startswith("no training example has this class: zebra")
    assert reasons[1].startswith("--keep=best compares epochs on a val split")
    assert "40 train, 0 val, 12 test images; 4 classes" in capsys.readouterr().out


def test_a_class_in_every_example_is_refused_before_training(tmp_path):
    for i in range(4):
        pixels = np.full((8, 8, 3), 60 * i, np.uint8)
        (tmp_path / f"{i}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    rows = ["0.png,train,all", "1.png,train,all one", "2.png,test,all", "3.png,test,one"]
    (tmp_path / "t.csv").write_text("\n".join(["image,split,labels", *rows]))
    config = RunConfig.of(
        dataset="table", examples=str(tmp_path / "t.csv"), cache_dir=str(tmp_path / "cache")
    )
    with pytest.raises(ConfigError, match="all is in every training example"):
        check.check(config)


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("db", {"kappa": 1e300}, "kappa=1e\\+300 makes the margin"),
        ("rs_focal", {"focal_scale": 1e300}, "is inf even for logits of 0, with --focal_scale="),
        ("r_bce", {"alpha": 1e300}, "even for logits of 0, with --alpha=1e\\+300: use"),
        ("poly1", {"poly_epsilon": 1e300}, "--poly_epsilon="),
        ("two_way", {"temperature_negative": 1e300}, "--temperature_negative="),
        ("splc", {"logit_margin": 1e300}, "--logit_margin="),
    ],
)
def test_parameters_with_an_infinite_loss_are_refused_before_training(method, given, message):
    config = RunConfig.of(method=method, **given)
    with pytest.raises(ConfigError, match=message):
        check.check(config)


def test_a_table_that_cannot_be_read_has_no_summary(tmp_path):
    (tmp_path / "t.csv").write_text("image,split,labels\na.jpg,train,cat\n")
    done = run("--dataset=table", f"--examples={tmp_path / 't.csv'}", status=1)
    assert done.stdout == "" and "no test rows" in done.stderr
    assert "--test_fraction" in done.stderr
