"""The measurements run, tiny, and give what they promise; their figures are not judged."""

import csv
import pathlib

import numpy as np
import pytest
from PIL import Image

from benchmarks import (
    evaluation,
    head_steps,
    hostile_images,
    inputs,
    jax_training,
    large_photographs,
    losses,
    memory,
    reports,
    sampler,
    training,
)
from pipelines import images


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> pathlib.Path:
    """A table of twelve images of 40 × 30 pixels and three classes."""
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    with open(folder / "examples.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "split", "labels"])
        for i in range(12):
            pixels = random.integers(256, size=(30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.jpg")
            split = "test" if i > 8 else "train"
            writer.writerow([f"{i}.jpg", split, ("a", "b", "a|c")[i % 3]])
    return folder / "examples.csv"


def check_quartiles(figures):
    assert 0 <= figures["low"] <= figures["median"] <= figures["high"]


SAME_LOSS = [
    f"db_focal, {source}"
    for source in (
        "labels",
        "pipeline, soft",
        "labels, soft",
        "pipeline, by hand",
        "pipeline, by hand, γ = 2",
    )
]


def test_losses_of_tensorflow():
    shapes = losses.measure_engine("tf.function", [(4, 5)], rounds=2, min_seconds=0.0)
    candidates = shapes["4x5"]
    assert set(candidates) == {"bce", "copy", "db_focal, pipeline", *SAME_LOSS}
    assert candidates["bce"]["times_bce"]["median"] == 1.0
    for figures in candidates.values():
        check_quartiles(figures["seconds"])
    text = losses.describe(
        {"engines": {"tf.function": shapes}, "skipped": {"torch, eager": "torch is not installed"}}
    )
    assert "db_focal, labels" in text and "torch, eager: left out" in text


def test_losses_refuse_a_shape_that_is_none():
    with pytest.raises(ValueError, match="takes BxC, as 256x1203; got '32'"):
        losses.measure(["32"], list(losses.ENGINES), 1, 0.0)


def test_sources_of_the_weights_give_one_loss_and_gradient():
    data = losses.make_data(8, 5)
    candidates = losses._with_tensorflow(*data, jit_compile=False)
    value, gradient = candidates["db_focal, pipeline"]()
    for name in SAME_LOSS:
        same = candidates[name]()
        np.testing.assert_allclose(same[0], value, rtol=1e-5)
        np.testing.assert_allclose(same[1], gradient, rtol=1e-5, atol=1e-9)


def test_evaluation_agrees_with_scikit_learn():
    figures = evaluation.measure_time(300, 12, cores=1, rounds=2, scikit_learn_classes=5)
    assert figures["scikit_learn_classes"] == 5
    assert figures["largest_difference"] < 1e-12
    check_quartiles(figures["times_faster"])


def test_made_up_labels_have_the_shape_they_should():
    labels = sampler.make_labels(20_000, 300)
    counts = labels.sum(axis=0)
    assert labels.shape == (20_000, 300) and labels.dtype == bool
    assert counts.min() == 1 and counts.max() > 1_000
    assert 2 < labels.nnz / 20_000 < 3.1
    coco = sampler.make_coco_like()
    assert coco.shape == (1909, 80)


def test_sampler_measures_every_way(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("image_id,labels\n1,a b\n2,a\n3,a c\n4,a\n")
    result = sampler.measure(
        labels=str(table),
        sizes=["200x5"],
        coco_like=False,
        batch_size=4,
        batches=8,
        rounds=1,
        most_of_others=100,
    )
    of_file, made_up = result["labels"]["labels.csv"], result["labels"]["200x5"]
    assert (of_file["examples"], of_file["classes"], of_file["labels"]) == (4, 3, 6)
    ways = {"class_aware_indices", "class_cycle_indices", "uniform_indices", "filter"}
    ways |= {"rejection_resample", "NumPy choice", "Python cycle"}
    assert set(of_file["seconds_to_set_up"]) == ways
    assert set(made_up["seconds_to_set_up"]) == {"class_aware_indices"}
    for figures in of_file["indices_per_second"].values():
        check_quartiles(figures)
    assert "million/s" in sampler.describe(result)


def test_other_samplers_draw_as_equation_2_says():
    labels = sampler.make_labels(40, 4)
    probability = sampler._instance_probability(labels)
    for draws in (
        sampler._by_filter(probability, 400).as_numpy_iterator(),
        sampler._by_choice(probability, 400),
        sampler._by_python(labels, 400),
    ):
        drawn = np.concatenate([next(draws) for _ in range(10)])
        observed = np.bincount(drawn, minlength=40) / len(drawn)
        # Of 4 000 draws the standard deviation is below 0.008 everywhere.
        np.testing.assert_allclose(observed, probability, atol=0.04)


def test_inputs(photographs):
    result = inputs.measure(
        str(photographs), image_size=16, batch_size=4, batches=2, rounds=1, cold=True
    )
    assert result["images"] == 8 and set(result["caches"]) == {"warm", "cold"}
    for figures in result["caches"].values():
        assert set(figures["images_per_second"]) == {*inputs._STAGES, inputs._BARE, "PIL"}
        assert set(figures["seconds_to_first_batch"]) == set(figures["images_per_second"])
        assert sum(figures["share_of_cpu"].values()) == pytest.approx(1.0)
    assert "cold, PIL" in inputs.describe(result)


def test_large_photographs(photographs):
    result = large_photographs.measure(
        str(photographs),
        ["80x60", "200x150"],
        photographs=3,
        image_size=16,
        batch_size=4,
        batches=1,
        rounds=1,
    )
    for figures in result["sizes"].values():
        assert set(figures) == {
            "full",
            "scaled",
            "prepared",
            "PIL",
            "PIL, draft",
            "mean_difference",
        }
        assert figures["full"]["by_cpu"]["median"] == 1.0
    # Half of 60 is less than twice 16 pixels; a quarter of 150 is more.
    assert result["sizes"]["80x60"]["mean_difference"] == 0
    assert result["sizes"]["200x150"]["mean_difference"] > 0
    assert "200x150" in large_photographs.describe(result)
    with pytest.raises(ValueError, match="WIDTHxHEIGHT, as 4032x3024; got '4032'"):
        large_photographs.measure(str(photographs), ["4032"], 3, 16, 4, 1, 1)


def test_pil_recolors_as_the_pipeline_does(tmp_path):
    path = tmp_path / "plain.png"
    Image.new("RGB", (20, 20), (120, 90, 60)).save(path)
    for seed in range(8):
        pixels = inputs.augment_with_pil(str(path), 4, np.random.default_rng(seed))
        # The same draws, in the order in which it takes them.
        random = np.random.default_rng(seed)
        crop = [round(20 * random.uniform(0.8, 1.0)) for _ in range(2)]
        for side in crop:
            random.integers(20 - side + 1)
        random.random()
        gate = random.random(4) < 0.5
        brightness, contrast, saturation, hue = np.where(gate, random.uniform(-1.0, 1.0, 4), 0.0)
        matrix, offset = images.color_matrix(
            32.0 * brightness, 1.0 + 0.5 * contrast, 1.0 + 0.5 * saturation, 18.0 * hue
        )
        expected = np.clip(matrix.numpy() @ [120.0, 90.0, 60.0] + offset.numpy(), 0, 255)
        np.testing.assert_allclose(pixels, np.broadcast_to(expected, (4, 4, 3)), atol=1.0)


def test_jax_training(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # most of the time is compiling
    result = jax_training.measure(
        ["mixed_bfloat16"],
        backbone="small_resnet",
        image_size=8,
        batch_size=2,
        classes=3,
        matrix_size=16,
        steps=1,
        rounds=1,
    )
    figures = result["precisions"]["mixed_bfloat16"]
    rates = {name: rate["median"] for name, rate in figures["operations_per_second"].items()}
    for name in jax_training._LOSSES:
        share = figures["share_of_matrix_rate"][name]["median"]
        assert share == pytest.approx(rates[name] / rates["matrix product"])
        assert figures["images_per_second"][name]["median"] > 0
    assert "mixed_bfloat16, db_focal" in jax_training.describe(result)


@pytest.mark.slow
def test_training(photographs):
    result = training.measure(
        str(photographs),
        backbone="small_resnet",
        backbone_options="",
        image_size=16,
        batch_size=4,
        steps=1,
        rounds=1,
    )
    assert set(result["steps_per_second"]) == {
        f"{method}, {source}" for method in ("db_focal", "rs") for source in training._INPUTS
    }
    check_quartiles(result["db_focal_time_beside_bce"])
    assert "a step of db_focal takes" in training.describe(result)


def test_steps_of_a_head(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "features.npz"
    np.savez(
        path,
        features=random.normal(size=(40, 6)).astype(np.float32),
        labels=random.random((40, 3)) < 0.4,
        split=np.array(["train"] * 30 + ["test"] * 10),
        class_names=np.array(["a", "b", "c"]),
    )
    result = head_steps.measure(str(path), "db_focal", batch_size=4, calls=1, rounds=1)
    assert set(result["steps_per_second"]) == set(head_steps.NAMES)
    assert result["time"]["many in a call"]["median"] == 1.0
    for figures in result["time"].values():
        check_quartiles(figures)
    assert "Keras's model.fit" in head_steps.describe(result)


@pytest.mark.slow
def test_memory_of_a_table(tmp_path):
    (scratch := tmp_path / "scratch").mkdir()
    result = memory.measure(["150"], classes=5, steps=1, batch_size=4, scratch_dir=str(scratch))
    assert not list(scratch.iterdir())
    figures = result["rows"]["150"]
    assert 50 < figures["mib_imported"] <= figures["mib_indexed"] <= figures["mib_trained"]
    assert 0 < figures["data_mib"] < 1
    assert "150" in memory.describe(result)


def test_reports():
    result = {"examples": 150, "pages": {"12": reports.of_labels(12, 150)}}
    figures = result["pages"]["12"]
    assert set(figures["stages"]) == {"scores", "first", "page"}
    assert figures["bytes"]["report.html"] > figures["bytes"]["metrics.json"] > 1000
    row = reports.describe(result).splitlines()[-1].split()
    assert row[0] == "12" and len(row) == 9


def test_costs_of_hostile_images():
    assert all(len(hostile_images.COSTLIEST[name]()) <= 1e6 for name in ("BMP", "GIF"))
    with pytest.raises(ValueError, match=r"--files: no \['TIFF'\]; there are \['progressive JPEG'"):
        hostile_images.measure(["TIFF"], [], [])
    costs = hostile_images.measure(["GIF of a tiny frame"], [], [])["costs"]
    (figures,) = costs.values()
    assert figures["error"] == "" and figures["bytes"] == 40
    assert figures["mib_peak"] >= figures["mib_before"] > 0
    waiting = {"8": {"2": {"alone": {"median": 0.01}, "beside": {"median": 0.2}, "longest": 1.5}}}
    text = hostile_images.describe({"costs": costs, "waiting": waiting})
    assert "GIF of a tiny frame" in text and "0.200" in text
