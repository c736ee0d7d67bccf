import csv

import keras
import numpy as np
import pytest
import tensorflow as tf

from dbl_tf import LabelStatistics, label_graph
from pipelines.runs.config import RunConfig
from pipelines.runs.train import train_and_evaluate


def make_config(picture_table, tmp_path, **arguments):
    return RunConfig.of(
        dataset="table",
        examples=str(picture_table),
        backbone="small_resnet",
        backbone_weights="none",
        backbone_options={"width": 4},
        image_size=16,
        run_dir=str(tmp_path / "run"),
        cache_dir=str(tmp_path / "cache"),
        **arguments,
    )


@pytest.mark.parametrize("method", ["ldam", "ml_gcn"])
def test_methods_with_a_classifier_of_their_own_train_export_and_serve(
    method, picture_table, tmp_path
):
    config = make_config(picture_table, tmp_path, method=method, batch_size=8, steps=2)
    scores = train_and_evaluate(config)
    assert 0 < scores["mAP"]["total"] < 1
    model = keras.models.load_model(tmp_path / "run" / "model.keras", compile=False)
    classifier = model.get_layer("head").get_layer("classifier")
    if method == "ml_gcn":
        statistics = LabelStatistics.load(tmp_path / "run" / "statistics.json")
        np.testing.assert_allclose(classifier.graph, label_graph(statistics), rtol=1e-6)
    # What is served is what was scored.
    served = tf.saved_model.load(str(tmp_path / "run" / "saved_model" / "1"))
    images = np.random.default_rng(0).uniform(0, 255, (3, 40, 40, 3)).astype(np.float32)
    size = model.input_shape[1]
    expected = keras.ops.sigmoid(model(tf.image.resize(images, (size, size), antialias=True)))
    answer = served.signatures["serve_images"](tf.constant(images))["probabilities"]
    np.testing.assert_allclose(answer, expected, atol=1e-3)
    with open(tmp_path / "run" / "history.csv", newline="") as file:
        assert all(np.isfinite(float(row["loss"])) for row in csv.DictReader(file))


@pytest.mark.parametrize("method", ["two_way", "splc"])
def test_losses_of_examples_and_losses_that_change_train_from_flags(
    method, picture_table, tmp_path
):
    config = make_config(
        picture_table,
        tmp_path,
        method=method,
        batch_size=4,
        epochs=3,
        correction_epochs=1.5,
        export=False,
    )
    scores = train_and_evaluate(config)
    assert 0.5 < scores["AUC"]["total"] <= 1
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert ("has no gradient by the logit of a label alone" in page) == (method == "two_way")
    with open(tmp_path / "run" / "history.csv", newline="") as file:
        assert all(np.isfinite(float(row["loss"])) for row in csv.DictReader(file))
