"""Networks of KerasHub from saved folders: features, training, continuing, export."""

import json
import os
import subprocess
import sys

import hub_presets
import numpy as np
import pytest

from dbl_tf import hub, models, training
from pipelines.runs import evaluate
from pipelines.runs.config import ConfigError, RunConfig
from pipelines.runs.train import train_and_evaluate

keras_hub = pytest.importorskip("keras_hub", reason="the extra hub is not installed")
SIDE = hub_presets.SIDE


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """A function from a family to the folder of its preset."""
    folders = {}

    def folder(family):
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            hub_presets.save(family, folders[family])
        return folders[family]

    return folder


def make_config(table, run_dir, backbone, **arguments):
    return RunConfig.of(
        **{
            "dataset": "table",
            "examples": str(table),
            "backbone": backbone,
            "batch_size": 8,
            "steps": 4,
            "method": "erm",
            "freeze_backbone": False,
            "checkpoint_every": 1,
            "run_dir": str(run_dir),
            "cache_dir": str(run_dir.parent / "cache"),
            **arguments,
        }
    )


def own_features(family, folder, pixels):
    """The features that KerasHub itself computes."""
    network = keras_hub.models.Backbone.from_preset(str(folder))
    converter = keras_hub.layers.ImageConverter.from_preset(str(folder))
    converted = converter(pixels)
    if family in ("siglip", "clip"):
        return np.asarray(network.get_vision_embeddings(converted))
    taken = network.input
    inputs = {next(iter(taken)): converted} if isinstance(taken, dict) else converted
    output = np.asarray(network(inputs, training=False))
    return output[:, 0] if family != "resnet" else output.mean(axis=(1, 2))


@pytest.mark.parametrize("family", hub_presets.FAMILIES)
def test_features_are_those_of_keras_hub(family, folder_of):
    folder = folder_of(family)
    pixels = np.random.default_rng(0).uniform(0, 255, (3, SIDE, SIDE, 3)).astype(np.float32)
    assert hub.image_size(f"hub:{folder}") == (None if family == "resnet" else SIDE)
    backbone = models.build_backbone(f"hub:{folder}", SIDE, weights="preset")
    features = np.asarray(backbone(pixels, training=True))  # dropout and BatchNorm stay as they are
    expected = own_features(family, folder, pixels)
    assert np.ptp(expected, axis=0).max() > 1e-3
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)


PROGRAM = """
import sys
import numpy as np, tensorflow as tf

serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
images = [open(path, "rb").read() for path in sys.argv[3:]]
np.save(sys.argv[2], serve(image_bytes=tf.constant(images))["probabilities"].numpy())
assert not {"dbl_tf", "keras_hub"} & set(sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", ["vit", "dinov2", "siglip"])
def test_a_network_trains_continues_and_is_served_by_tensorflow_alone(
    family, folder_of, picture_table, tmp_path
):
    run_dir, name = tmp_path / "run", f"hub:{folder_of(family)}"
    config = make_config(picture_table, run_dir, name)
    scores = train_and_evaluate(config)
    saved = json.loads((run_dir / "config.json").read_text())
    assert (saved["image_size"], saved["backbone_weights"]) == (SIDE, "preset")
    trained = models.load(run_dir / "model.keras").get_weights()
    start = models.build_backbone(name, SIDE, weights="preset").get_weights()
    moved = [not np.array_equal(a, b) for a, b in zip(start, trained, strict=False)]
    assert np.mean(moved) > 0.5  # all layers train

    # As if killed in the last step.
    training.Checkpoints(run_dir / "checkpoints").path(4).unlink()
    (run_dir / "model.keras").unlink()
    assert train_and_evaluate(config)["mAP"] == scores["mAP"]
    for a, b in zip(trained, models.load(run_dir / "model.keras").get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert evaluate.evaluate_run(str(run_dir), str(tmp_path / "scores"))["mAP"] == scores["mAP"]

    with open(run_dir / "predictions.csv") as file:
        head, *rows = [line.strip().split(",") for line in file]
    subprocess.run(
        [
            *(sys.executable, "-I", "-c", PROGRAM),
            *(run_dir / "saved_model" / "1", tmp_path / "out.npy"),
            *(picture_table.parent / row[0] for row in rows),
        ],
        cwd=tmp_path,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        check=True,
    )
    served = np.load(tmp_path / "out.npy")
    columns = [
        head.index(c) for c in json.loads((run_dir / "statistics.json").read_text())["class_names"]
    ]
    expected = np.float64([[row[i] for i in columns] for row in rows])
    np.testing.assert_allclose(served, expected, atol=1e-5)


def test_features_are_kept_for_a_head_and_follow_the_preprocessing(
    folder_of, picture_table, tmp_path, capsys, monkeypatch
):
    folder = folder_of("dinov3")
    monkeypatch.chdir(folder.parent)
    options = {"freeze_backbone": True, "export": False, "calibrate": False}
    relative = make_config(picture_table, tmp_path / "run", f"hub:{folder.name}", **options)
    train_and_evaluate(relative)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["backbone"] == f"hub:{folder}"
    assert "computing features" in capsys.readouterr().out
    train_and_evaluate(make_config(picture_table, tmp_path / "b", f"hub:{folder}", **options))
    assert "computing features" not in capsys.readouterr().out
    hub._scale_and_offset.cache_clear()
    converter = keras_hub.layers.DINOV3ImageConverter(image_size=(SIDE, SIDE), scale=1 / 255)
    converter.save_to_preset(str(folder))
    train_and_evaluate(make_config(picture_table, tmp_path / "c", f"hub:{folder}", **options))
    assert "computing features" in capsys.readouterr().out


def test_presets_that_cannot_be_used_are_refused(folder_of, picture_table, tmp_path):
    vit = f"hub:{folder_of('vit')}"

    def refused(message, backbone, **arguments):
        with pytest.raises(ValueError, match=message):
            train_and_evaluate(make_config(picture_table, tmp_path / "run", backbone, **arguments))
        assert not (tmp_path / "run").exists()

    refused(f"takes images of {SIDE} × {SIDE} pixels alone", vit, image_size=48)
    refused("--backbone_weights=preset goes with --backbone=hub:", vit, backbone_weights="none")
    refused("KerasHub cannot load '/nowhere'", "hub:/nowhere")
    refused("is a ViTBackbone, which has no option no_such", vit, backbone_options={"no_such": 1})
    refused("its layers are images, vi", vit, frozen_layers=["no_such"])
    text = keras_hub.models.BertBackbone(50, 1, 2, 16, 32, max_sequence_length=8)
    text.save_to_preset(str(tmp_path / "bert"))
    refused("is a BertBackbone, which takes no images", f"hub:{tmp_path / 'bert'}")
    alone = tmp_path / "alone"
    keras_hub.models.Backbone.from_preset(vit.removeprefix("hub:")).save_to_preset(str(alone))
    refused("cannot load the image converter of", f"hub:{alone}")
    with pytest.raises(ConfigError, match="--backbone must be hub:PRESET_OR_FOLDER or one of"):
        make_config(picture_table, tmp_path / "run", "ViT")


def test_without_keras_hub_the_extra_is_named(picture_table, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--backbone: .* pip install 'dbl-tf\[hub\]'"):
        train_and_evaluate(make_config(picture_table, tmp_path / "run", "hub:vit_base"))
