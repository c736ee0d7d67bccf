"""The command as a person starts it."""

import keras
import numpy as np
import programs

from pipelines.runs.config import RunConfig
from pipelines.runs.train import train_and_evaluate

NETWORK = {"backbone": "MobileNet", "backbone_options": {"alpha": 0.25}, "image_size": 32}


def run(*arguments, status=0):
    done = programs.run(
        "-m", "pipelines.write_features", *arguments, environment={"TF_CPP_MIN_LOG_LEVEL": "2"}
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def test_a_head_on_the_file_is_the_head_of_a_run_with_a_frozen_backbone(picture_table, tmp_path):
    keras.utils.set_random_seed(1)
    weights = tmp_path / "small.weights.h5"
    network = {"alpha": 0.25, "include_top": False, "input_shape": (32, 32, 3), "weights": None}
    keras.applications.MobileNet(**network).save_weights(weights)
    path = tmp_path / "features.npz"
    written = run(
        f"--output={path}",
        "--dataset=table",
        f"--examples={picture_table}",
        "--backbone=MobileNet",
        "--backbone_options=alpha=0.25",
        "--image_size=32",
        f"--backbone_weights={weights}",
        "--val_fraction=0.25",
        f"--cache_dir={tmp_path / 'cache'}",
    )
    assert "52 rows of" in written
    with np.load(path, allow_pickle=False) as content:
        assert content["split"].tolist().count("val") == 10
        assert content["class_names"].tolist() == ["blue", "green", "red"]
    shared = {"steps": 8, "batch_size": 8, "export": False}
    cache = str(tmp_path / "cache")
    of_images = RunConfig.of(
        dataset="table",
        examples=str(picture_table),
        freeze_backbone=True,
        backbone_weights=str(weights),
        val_fraction=0.25,
        run_dir=str(tmp_path / "images"),
        cache_dir=cache,
        **NETWORK,
        **shared,
    )
    of_file = RunConfig.of(
        dataset="features",
        examples=str(path),
        run_dir=str(tmp_path / "file"),
        scale_features=False,
        **shared,
    )
    scores = [train_and_evaluate(config) for config in (of_images, of_file)]
    assert scores[0]["mAP"] == scores[1]["mAP"]
    assert scores[0]["num_test_examples"] == 12


def test_a_network_that_is_not_trained_is_refused(picture_table, tmp_path):
    path = tmp_path / "features.npz"
    arguments = (f"--output={path}", "--dataset=table", f"--examples={picture_table}")
    message = run(*arguments, "--backbone=small_resnet", status=1)
    assert "small_resnet starts from random weights; pass --init_from=RUN_DIR" in message
    assert "must end in .npz" in run("--output=features.csv", *arguments[1:], status=1)
    assert "Traceback" not in message and not path.exists()
