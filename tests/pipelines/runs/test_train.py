import contextlib
import csv
import pathlib
import resource

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from PIL import Image
from run_results import weights_of

from dbl_tf import LabelStatistics, serving, training
from pipelines.runs import build, costs, directory, evaluate
from pipelines.runs import scores as run_scores
from pipelines.runs.config import ConfigError, DataConfig, RunConfig
from pipelines.runs.resolution import resolve
from pipelines.runs.train import train_and_evaluate

SMALL = {"backbone": "small_resnet", "backbone_weights": "none", "backbone_options": {"width": 4}}


def make_config(table, run_dir, **arguments):
    return RunConfig.of(
        **{
            "dataset": "table",
            "examples": str(table),
            "image_size": 16,
            "batch_size": 8,
            "steps": 4,
            "run_dir": str(run_dir),
            "cache_dir": str(table.parent / "cache"),
            **SMALL,
            **arguments,
        }
    )


def described(asked):
    """What a run says at its start."""
    data = asked.load_data()
    config = resolve(asked, data)
    statistics = LabelStatistics.from_labels(data.splits["train"].labels, data.class_names)
    plans = [build.make_plan(config, statistics)]
    return costs.describe(config, data, statistics, plans, tf.distribute.OneDeviceStrategy("CPU:0"))


@pytest.fixture(scope="module")
def finished(picture_table, tmp_path_factory):
    """Directory and scores of a run."""
    run_dir = tmp_path_factory.mktemp("runs") / "db_focal"
    # The first epoch hardly tells the images apart, and its AP turns on roundings.
    config = make_config(picture_table, run_dir, val_fraction=0.2, keep="last")
    scores = train_and_evaluate(config)
    return run_dir, scores


def read_predictions(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_directory_holds_the_whole_run(finished):
    run_dir, scores = finished
    for name in (
        "config.json",
        "statistics.json",
        "history.csv",
        "metrics.json",
        "predictions.csv",
        "model.keras",
        "thresholds.json",
        "saved_model/1/saved_model.pb",
    ):
        assert (run_dir / name).is_file(), name
    assert list(run_dir.glob("tensorboard/train/events*"))
    assert run_scores.read_scores(run_dir / "metrics.json") == scores
    assert not list(run_dir.rglob("*incomplete*"))
    history = read_predictions(run_dir / "history.csv")
    assert all(0 <= float(row["val_map"]) <= 1 for row in history)
    assert LabelStatistics.load(run_dir / "statistics.json").num_examples == 32
    assert scores["F1"]["thresholds_from"] == "val"


def test_run_and_exported_model_give_the_same_figures(finished, picture_table, tmp_path):
    run_dir, scores = finished
    evaluated = evaluate.evaluate_run(str(run_dir), str(tmp_path / "run"))
    assert evaluated["mAP"] == pytest.approx(scores["mAP"], abs=1e-6, nan_ok=True)
    data = DataConfig.of(dataset="table", examples=str(picture_table), cache_dir=str(tmp_path))
    exported = evaluate.evaluate_saved_model(
        str(run_dir / "saved_model" / "1"), data, str(tmp_path / "exported")
    )
    assert exported["mAP"] == pytest.approx(scores["mAP"], abs=1e-4, nan_ok=True)
    ours = read_predictions(run_dir / "predictions.csv")
    theirs = read_predictions(tmp_path / "exported" / "predictions.csv")
    assert [row["image"] for row in ours] == [row["image"] for row in theirs]
    for name in ("red", "green", "blue"):
        np.testing.assert_allclose(
            np.float64([row[name] for row in ours]),
            np.float64([row[name] for row in theirs]),
            atol=1e-6,
        )


def test_large_photographs_are_read_alike_in_training_and_after_export(tmp_path):
    random = np.random.default_rng(0)
    lines = ["image,split,labels"]
    for i in range(20):
        pixels = random.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        image = Image.fromarray(pixels).resize((320, 240), Image.Resampling.NEAREST)
        image.save(tmp_path / f"{i}.jpg")
        lines.append(f"{i}.jpg,{'test' if i % 4 == 3 else 'train'},{'cat' if i % 2 else 'dog'}")
    table = tmp_path / "examples.csv"
    table.write_text("\n".join(lines))

    def probabilities(folder):
        rows = read_predictions(folder / "predictions.csv")
        return np.float64([[row["cat"], row["dog"]] for row in rows])

    found = {}
    for name, full in (("scaled", None), ("full", True)):
        config = make_config(table, tmp_path / name, full_decoding=full, method="erm")
        train_and_evaluate(config)
        found[name] = probabilities(tmp_path / name)
        data = DataConfig.of(dataset="table", examples=str(table), cache_dir=str(tmp_path))
        model = str(tmp_path / name / "saved_model" / "1")
        evaluate.evaluate_saved_model(model, data, str(tmp_path / f"{name} exported"))
        exported = probabilities(tmp_path / f"{name} exported")
        np.testing.assert_allclose(exported, found[name], atol=1e-6)
    large = make_config(table, tmp_path / "large", image_size=100)
    assert "around" not in described(large)
    for i in range(20):
        shape = (200, 600, 3)
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{i}.jpg")
    assert "Caution: the images are around 600×200 pixels" in described(large)
    # 240 rows hold 16 fifteen times: they are decoded at a quarter.
    assert np.abs(found["full"] - found["scaled"]).max() > 1e-4


def test_a_folder_of_unlabeled_images_is_predicted(finished, picture_table, tmp_path):
    run_dir, _ = finished
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "a.png").write_bytes((picture_table.parent / "44.png").read_bytes())
    (folder / "notes.txt").write_text("no image")
    flags = (f"--saved_model={run_dir / 'saved_model' / '1'}", f"--images={folder}")
    done = programs.run("evaluate.py", *flags, f"--output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "predictions.csv")
    rows = read_predictions(tmp_path / "out" / "predictions.csv")
    assert [row["image"] for row in rows] == ["a.png", "notes.txt"]
    assert rows[0]["error"] == "" and rows[1]["error"] != "" and rows[1]["red"] == ""
    expected = read_predictions(run_dir / "predictions.csv")[4]
    assert expected["image"] == "44.png"
    assert float(rows[0]["red"]) == pytest.approx(float(expected["red"]), abs=1e-6)


def test_the_same_command_continues_and_another_is_refused(finished, picture_table):
    run_dir, scores = finished
    same = make_config(picture_table, run_dir, val_fraction=0.2)
    weights = weights_of(run_dir)
    # As if killed after the last checkpoint, in the evaluation or the export.
    for name in ("metrics.json", "thresholds.json", "model.keras"):
        (run_dir / name).unlink()
    (run_dir / "model.incomplete.keras").write_bytes(b"half")
    (run_dir / "saved_model" / "1.incomplete" / "variables").mkdir(parents=True)
    checkpoint = run_dir / "checkpoints" / "step-00000004.npz"
    trained = checkpoint.stat().st_mtime_ns
    assert train_and_evaluate(same)["mAP"] == scores["mAP"]
    assert checkpoint.stat().st_mtime_ns == trained
    assert serving.versions(run_dir / "saved_model") == [1]
    assert not list(run_dir.rglob("*.incomplete*"))
    again = weights_of(run_dir)
    for a, b in zip(weights, again, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ConfigError, match=r"another configuration(.|\n)*--mu: 0.2 there, 0.4 now"):
        train_and_evaluate(make_config(picture_table, run_dir, val_fraction=0.2, mu=0.4))
    train_and_evaluate(make_config(picture_table, run_dir, val_fraction=0.2, new_version=True))
    assert serving.versions(run_dir / "saved_model") == [1, 2]


def test_the_same_command_continues_with_a_relative_path(finished, picture_table, monkeypatch):
    run_dir, _ = finished
    monkeypatch.chdir(picture_table.parent)
    asked = make_config(pathlib.Path(picture_table.name), run_dir, val_fraction=0.2)
    assert directory.saved_config(asked).source.examples == str(picture_table)
    other = make_config(pathlib.Path("other.csv"), run_dir, val_fraction=0.2)
    with pytest.raises(ConfigError, match=r"--examples: '.*examples.csv' there, '.*other.csv' now"):
        directory.saved_config(other)


@contextlib.contextmanager
def files_of_at_most(size):
    """Makes writing beyond this size fail, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_loses_nothing(picture_table, tmp_path):
    run_dir = tmp_path / "run"
    options = {"checkpoint_every": 1, "freeze_backbone": True, "calibrate": False, "export": False}
    config = make_config(picture_table, run_dir, **options)
    scores = train_and_evaluate(config)
    expected = weights_of(run_dir)
    checkpoints = training.Checkpoints(run_dir / "checkpoints")

    # The last checkpoint does not fit.
    size = checkpoints.path(4).stat().st_size
    checkpoints.path(4).unlink()
    with (
        files_of_at_most(size - 1000),
        pytest.raises(OSError, match=r"File too large: .*checkpoints/step-00000004\.npz"),
    ):
        train_and_evaluate(config)
    assert checkpoints.steps() == [3]
    assert not list(run_dir.rglob("*.incomplete*"))

    # With space it goes on.
    assert train_and_evaluate(config) == scores
    again = weights_of(run_dir)
    for a, b in zip(expected, again, strict=True):
        np.testing.assert_array_equal(a, b)


def test_xla_is_refused_where_it_cannot_work(picture_table, tmp_path):
    config = make_config(picture_table, tmp_path / "run", xla=True, strategy="mirrored")
    with pytest.raises(ConfigError, match=r"--xla .* goes with --strategy=one_device, and not"):
        train_and_evaluate(config)
    assert not (tmp_path / "run").exists()


def test_a_directory_with_other_files_is_left_alone(picture_table, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="is not empty and does not hold a run"):
        train_and_evaluate(make_config(picture_table, tmp_path))


def test_a_step_is_the_same_wherever_r_is_computed(picture_table, tmp_path):
    # One step: the next ones would enlarge what rounding differs by, a thousandfold each.
    weights = {}
    for name, arguments in {
        "pipeline": {"rebalance": "sample_weight"},
        "loss": {"rebalance": "labels"},
        "without": {"method": "nt_bce_focal"},
    }.items():
        config = make_config(picture_table, tmp_path / name, steps=1, export=False, **arguments)
        train_and_evaluate(config)
        model = keras.models.load_model(tmp_path / name / "model.keras", compile=False)
        weights[name] = np.concatenate([array.ravel() for array in model.get_weights()])
    np.testing.assert_allclose(weights["loss"], weights["pipeline"], rtol=0, atol=1e-6)
    assert np.abs(weights["without"] - weights["pipeline"]).max() > 1e-4


def test_only_the_head_trains_on_features_that_are_kept(picture_table, tmp_path, capsys):
    # A cache of its own: other tests compute the same features.
    frozen = {"freeze_backbone": True, "calibrate": False, "export": False}
    frozen["cache_dir"] = str(tmp_path / "cache")
    config = make_config(picture_table, tmp_path / "first", **frozen)
    scores = train_and_evaluate(config)
    assert "computing features of 40 images" in capsys.readouterr().out
    again = make_config(picture_table, tmp_path / "second", **frozen, beta=5.0)
    train_and_evaluate(again)
    assert "computing features" not in capsys.readouterr().out
    evaluated = evaluate.evaluate_run(str(tmp_path / "first"), str(tmp_path / "out"))
    assert evaluated["mAP"] == pytest.approx(scores["mAP"], abs=1e-6)


def test_starting_from_another_run(finished, picture_table, tmp_path):
    source, _ = finished
    config = make_config(
        picture_table, tmp_path / "next", init_from=str(source), learning_rate=1e-12, export=False
    )
    train_and_evaluate(config)
    # With next to no learning rate and kept statistics, the backbone is that of the source.
    before, after = (
        keras.models.load_model(path / "model.keras", compile=False).get_layer("backbone")
        for path in (source, tmp_path / "next")
    )
    for a, b in zip(before.get_weights(), after.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_val_image_that_breaks_in_the_middle_of_a_run_is_named(picture_table, tmp_path):
    for path in picture_table.parent.glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    text = picture_table.read_text().replace("39.png,train", "39.png,val")
    (tmp_path / "examples.csv").write_text(text)
    (tmp_path / "39.png").write_bytes(b"no longer an image")
    config = make_config(
        tmp_path / "examples.csv", tmp_path / "run", check_images="exists", method="erm"
    )
    with pytest.raises(ValueError, match=r"image 39\.png cannot be read"):
        train_and_evaluate(config)


def test_a_class_without_training_examples_is_named(picture_table, tmp_path):
    text = picture_table.read_text() + "\n50.png,test,gold"
    other = picture_table.parent / "gold.csv"
    other.write_text(text.replace("50.png,test,green", "49.png,test,red"))
    config = make_config(other, tmp_path / "refused")
    with pytest.raises(ValueError, match="no training example has this class: gold"):
        train_and_evaluate(config)
    assert not (tmp_path / "refused").exists()
    allowed = make_config(other, tmp_path / "allowed", clamp_counts=True, export=False)
    scores = train_and_evaluate(allowed)
    assert scores["per_class"]["gold"]["train_count"] == 0


def test_an_image_that_breaks_in_the_middle_of_a_run_is_named(picture_table, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for path in picture_table.parent.glob("*.png"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "examples.csv").write_bytes(picture_table.read_bytes())
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:90])
    config = make_config(
        folder / "examples.csv", tmp_path / "run", check_images="exists", method="erm"
    )
    with pytest.raises(ValueError, match=r"image 7\.png cannot be read"):
        train_and_evaluate(config)


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds no run: there is no config\.json"):
        evaluate.evaluate_run(str(tmp_path))
    with pytest.raises(ValueError, match="is not a model that this project exported"):
        evaluate.SavedModel(str(tmp_path))


class KilledError(Exception):
    pass


def test_the_head_first_and_then_all_layers_goes_on_wherever_it_was_killed(
    picture_table, tmp_path, monkeypatch
):
    options = {"head_steps": 5, "checkpoint_every": 2, "export": False, "ema": 0.9}
    whole = train_and_evaluate(make_config(picture_table, tmp_path / "whole", **options))
    killed = make_config(picture_table, tmp_path / "killed", **options)
    save = training.Checkpoints.save

    # Killed in the stage of the head, and then in that of all layers.
    for stage in ("head", "killed"):

        def save_or_die(checkpoints, model, step, loss_sum=0.0, stage=stage):
            if checkpoints.directory.parent.name == stage and step >= 4:
                raise KilledError
            save(checkpoints, model, step, loss_sum)

        with monkeypatch.context() as patch:
            patch.setattr(training.Checkpoints, "save", save_or_die)
            with pytest.raises(KilledError):
                train_and_evaluate(killed)
    assert train_and_evaluate(killed) == whole
    ours, theirs = (
        keras.models.load_model(tmp_path / name / "model.keras", compile=False)
        for name in ("whole", "killed")
    )
    for a, b in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    # The stage of the head leaves the backbone as it was, and the other one trains it.
    with np.load(tmp_path / "whole" / "head" / "checkpoints" / "step-00000005.npz") as file:
        kernel = file["0"]
    head = ours.get_layer("head")
    assert kernel.shape == tuple(head.weights[0].shape)
    assert (kernel != head.get_weights()[0]).any()


def test_a_slower_backbone_moves_less(picture_table, tmp_path):
    moved = {}
    for rate in (0.0, 1.0):
        run_dir = tmp_path / str(rate)
        train_and_evaluate(
            make_config(picture_table, run_dir, backbone_rate=rate, weight_decay=0.0, export=False)
        )
        model = keras.models.load_model(run_dir / "model.keras", compile=False)
        moved[rate] = [
            keras.ops.convert_to_numpy(v) for v in model.get_layer("backbone").trainable_variables
        ]
    keras.utils.set_random_seed(0)
    data = make_config(picture_table, tmp_path).load_data()
    config = resolve(make_config(picture_table, tmp_path), data)
    statistics = LabelStatistics.from_labels(data.splits["train"].labels, data.class_names)
    backbone, _ = build.build_networks(config, statistics)
    start = [keras.ops.convert_to_numpy(v) for v in backbone.trainable_variables]
    assert all((a == b).all() for a, b in zip(start, moved[0.0], strict=True))
    assert any((a != b).any() for a, b in zip(start, moved[1.0], strict=True))


def test_a_run_says_what_it_costs_and_what_looks_like_a_slip(picture_table, tmp_path):
    asked = make_config(
        picture_table, tmp_path, batch_size=64, steps=2, learning_rate=0.9, strategy="mirrored"
    )
    text = described(asked)
    # Two steps of 64 images out of 40.
    assert "2 steps of 64; the class_aware sampler draws 128 times from the 40" in text
    assert "3.2 for each" in text and "on the CPU; in" in text
    assert "Caution: a batch of 64 holds more than the 40 training examples" in text
    assert "Caution: --strategy=mirrored finds no GPU and trains on the CPU." in text
    # The default of the small network is 0.1 at 20 classes, 0.015 at 3.
    assert "Caution: --learning_rate=0.9 is 60 times the default for sgd" in text


def test_a_longer_run_is_told_how_to_go_on(finished, picture_table):
    run_dir, _ = finished
    with pytest.raises(ConfigError, match=rf"pass --init_from={run_dir} with another --run_dir"):
        train_and_evaluate(make_config(picture_table, run_dir, val_fraction=0.2, steps=9))
