"""Runs of heads on features, and choices by cross-validation."""

import csv
import dataclasses
import json
import shutil

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from run_results import weights_of

from dbl_tf import metrics
from dbl_tf.calibration import Calibration
from pipelines import folds
from pipelines.runs import against, evaluate, heads, labeling, select, trials
from pipelines.runs.config import ConfigError, DataConfig, ResolvedConfig, RunConfig
from pipelines.runs.resolution import resolve
from pipelines.runs.train import train_and_evaluate

CLASS_NAMES = ("sun", "sea", "tree", "boat", "gull")
SHARES = (0.5, 0.4, 0.2, 0.1, 0.06)


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Features of 12 numbers from which the classes can be told, most but not all of the time."""
    random = np.random.default_rng(0)
    labels = (random.random((300, 5)) < SHARES).astype(np.uint8)
    signal = labels @ random.standard_normal((5, 12))
    features = signal + 0.7 * random.standard_normal((300, 12))
    split = np.array(["train"] * 180 + ["val"] * 40 + ["test"] * 80)
    path = tmp_path_factory.mktemp("features") / "views.npz"
    np.savez(
        path,
        features=features.astype(np.float32),
        labels=labels,
        split=split,
        class_names=np.array(CLASS_NAMES),
    )
    return path


def make_config(path, run_dir, **arguments):
    return RunConfig.of(
        dataset="features",
        examples=str(path),
        run_dir=str(run_dir),
        **{"steps": 60, "batch_size": 16, **arguments},
    )


def read_rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def finished(examples, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("runs") / "db"
    return run_dir, train_and_evaluate(make_config(examples, run_dir, method="db"))


def test_labels_that_were_exchanged_after_a_run_are_noticed(examples, tmp_path):
    with np.load(examples) as file:
        arrays = dict(file)
    path, run_dir = tmp_path / "views.npz", tmp_path / "run"
    np.savez(path, **arrays)
    config = make_config(path, run_dir, method="erm", export=False)
    train_and_evaluate(config)
    rows = np.flatnonzero(arrays["split"] == "test")
    different = next(i for i in rows if (arrays["labels"][i] != arrays["labels"][rows[0]]).any())
    arrays["labels"][[rows[0], different]] = arrays["labels"][[different, rows[0]]]
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match="test: labels"):
        evaluate.evaluate_run(str(run_dir), str(tmp_path / "elsewhere"))
    with pytest.raises(ValueError, match=r"test: labels.*--accept_changed_data"):
        train_and_evaluate(config)
    train_and_evaluate(config.with_settings(accept_changed_data=True))
    caution = "The data changed while the run was stopped: test: labels."
    assert caution in (run_dir / "report.html").read_text()
    evaluate.evaluate_run(str(run_dir), str(tmp_path / "elsewhere"))
    assert caution in (tmp_path / "elsewhere" / "report.html").read_text()


def test_a_run_on_features_is_evaluated_as_one_on_images(finished, examples, tmp_path):
    run_dir, scores = finished
    assert scores["mAP"]["total"] > 0.6  # chance is the mean share of the classes, 0.25
    again = evaluate.evaluate_run(str(run_dir), str(tmp_path / "again"))
    assert again["mAP"] == scores["mAP"]
    exported = evaluate.evaluate_saved_model(
        str(run_dir / "saved_model" / "1"),
        DataConfig.of(dataset="features", examples=str(examples)),
        str(tmp_path / "exported"),
    )
    assert exported["mAP"] == pytest.approx(scores["mAP"], abs=1e-6, nan_ok=True)
    config = json.loads((run_dir / "config.json").read_text())
    assert (config["backbone"], config["image_size"], config["optimizer"]) == (
        "none",
        None,
        "adamw",
    )
    page = (run_dir / "report.html").read_text()
    assert '"pictures":[]' in page and "of test examples" in page
    # The best epoch is kept, since there is a val split.
    history = [float(row["val_map"]) for row in read_rows(run_dir / "history.csv")]
    with np.load(run_dir / "checkpoints" / "best.npz") as file:
        assert int(file["epoch"]) == int(np.argmax(history))
        assert float(file["score"]) == max(history)


@pytest.fixture(scope="module")
def older(examples, tmp_path_factory):
    """A run that does not know the gulls of the others, but whales."""
    with np.load(examples) as file:
        arrays = dict(file)
    folder = tmp_path_factory.mktemp("older")
    arrays["class_names"] = np.array(["whale", *CLASS_NAMES[:-1]])
    arrays["labels"] = np.roll(arrays["labels"], 1, axis=1)
    np.savez(folder / "views.npz", **arrays)
    train_and_evaluate(make_config(folder / "views.npz", folder / "run", method="erm", steps=8))
    return folder / "run"


def test_two_models_are_compared_by_the_labels_that_both_know(finished, older, examples, tmp_path):
    run_dir, scores = finished
    done = programs.run(
        "evaluate.py", f"--run_dir={run_dir}", f"--against={older}", f"--output_dir={tmp_path}"
    )
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "against.json").read_text())
    assert tuple(content["labels"]) == CLASS_NAMES[:-1]
    assert content["left out"] == {
        "old": ["whale"],
        "new": ["gull"],
        "data": ["gull"],
        "untested": [],
    }
    for name, row in content["labels"].items():
        entry = scores["per_class"][name]
        assert row["AP %, new"] == pytest.approx(100 * entry["ap"], abs=1e-4)
        assert row["F1 %, new"] == pytest.approx(100 * entry["at_threshold"]["f1"], abs=1e-4)
        assert row["images"] == entry["test_count"]
    changed = sum(content["changed decisions"].values())
    rows = read_rows(tmp_path / "against_images.csv")
    assert changed and len(rows) == changed
    assert f"{100 * content['mAP']['new']:.2f}" in done.stdout
    # The exported model on the same data, as files, has the same result.
    again = against.compare_models(
        str(run_dir / "saved_model" / "1"),
        str(older),
        DataConfig.of(dataset="features", examples=str(examples)),
        str(tmp_path / "again"),
    )
    assert again["labels"] == content["labels"]


def test_no_comparison_of_models_takes_the_place_of_another(finished, older, examples, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(finished[0], run_dir)
    another = tmp_path / "another" / "saved_model" / "1"
    shutil.copytree(older / "saved_model" / "1", another)
    for old in (older, another, older):  # the last writes the first anew
        against.of_run(str(run_dir), str(old), None)
    kept = {path.parent.name for path in run_dir.glob("against/*/against.html")}
    assert kept == {older.name, "another_saved_model_1"}
    for name, old in ((older.name, older), ("another_saved_model_1", another)):
        content = json.loads((run_dir / "against" / name / "against.json").read_text())
        assert (content["old"], content["new"]) == (str(old), str(run_dir))
    # A directory that was named holds one comparison too.
    output = run_dir / "against" / older.name
    before = {path.name: path.read_bytes() for path in output.glob("against*")}
    pattern = (
        rf"holds the comparison of {run_dir} with {older} on {examples.stem}.*; choose another"
    )
    with pytest.raises(ValueError, match=pattern):
        against.of_run(str(run_dir), str(another), str(output))
    elsewhere = shutil.copy(examples, tmp_path / "others.npz")
    other = DataConfig.of(dataset="features", examples=str(elsewhere))
    with pytest.raises(ValueError, match=pattern):
        against.compare_models(str(run_dir), str(older), other, str(output))
    assert before == {path.name: path.read_bytes() for path in output.glob("against*")}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--against={run}"], "--against names the model that it is compared with"),
        (["--against=/nowhere"], "/nowhere is neither a run nor a model"),
        (["--against={older}", "--examples=x.npz"], "--examples goes with --saved_model"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(flags, message, finished, older, tmp_path):
    given = [flag.format(run=finished[0], older=older) for flag in flags]
    output = tmp_path / "out"
    done = programs.run("evaluate.py", f"--run_dir={finished[0]}", f"--output_dir={output}", *given)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert message in done.stderr.splitlines()[-1] and not output.exists()


def test_models_without_a_common_label_or_of_other_data_are_refused(
    finished, older, examples, picture_table, tmp_path
):
    run_dir, old = str(finished[0]), str(older)
    features = DataConfig.of(dataset="features", examples=str(examples))
    pictures = DataConfig.of(dataset="table", examples=str(picture_table))
    with pytest.raises(ValueError, match=r"saved_model/1: the model takes 12 features, .* images"):
        against.compare_models(run_dir, old, pictures, str(tmp_path))
    copy = tmp_path / "copy"
    shutil.copytree(older / "saved_model" / "1", copy)
    for file in copy.rglob("*.json"):
        text = file.read_text()
        for name in CLASS_NAMES:
            text = text.replace(f'"{name}"', f'"another {name}"')
        content = json.loads(text)
        content.pop("digest", None)  # the change is meant
        file.write_text(json.dumps(content))
    with np.load(examples) as file:
        strange = {**file, "class_names": np.array(["v", "w", "x", "y", "z"])}
    np.savez(tmp_path / "strange.npz", **strange)
    other = DataConfig.of(dataset="features", examples=str(tmp_path / "strange.npz"))
    with pytest.raises(ValueError, match=r"in common sun, .*, and the data none of these: .* v, w"):
        against.compare_models(run_dir, old, other, str(tmp_path))
    with pytest.raises(ValueError, match=r"no label in common: .*another sun.*; .* knows sun, sea"):
        against.compare_models(run_dir, str(copy), features, str(tmp_path))


def test_a_damaged_export_is_named_in_one_line(older, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(older / "saved_model" / "1", copy)
    (data,) = copy.glob("variables/variables.data-*")
    data.write_bytes(bytes(8) + data.read_bytes()[8:])
    with pytest.raises(ValueError, match=r"copy holds a model that is damaged: .*") as info:
        evaluate.SavedModel(str(copy))
    assert "\n" not in str(info.value)


def test_features_in_units_of_their_own_are_learned_as_well(finished, examples, tmp_path):
    _, scores = finished
    with np.load(examples) as file:
        arrays = dict(file)
    random = np.random.default_rng(1)
    units = 10.0 ** random.uniform(-4, 4, 12)
    arrays["features"] = (arrays["features"] * units + 3 * units).astype(np.float32)
    path, kept = tmp_path / "units.npz", tmp_path / "kept"
    np.savez(path, **arrays)
    scaled = train_and_evaluate(make_config(path, kept, method="db"))
    assert scaled["mAP"]["total"] > scores["mAP"]["total"] - 0.05
    served = evaluate.evaluate_saved_model(
        str(kept / "saved_model" / "1"),
        DataConfig.of(dataset="features", examples=str(path)),
        str(tmp_path / "exported"),
    )
    assert served["mAP"] == pytest.approx(scaled["mAP"], abs=1e-6, nan_ok=True)
    unscaled = make_config(path, tmp_path / "as_given", method="db", scale_features=False)
    assert train_and_evaluate(unscaled)["mAP"]["total"] < scaled["mAP"]["total"] - 0.1
    # Weights that were trained with a scaling, or without one, go on in the same way.
    with pytest.raises(ValueError, match=r"no layer feature_scaling \(pass --noscale_features\)"):
        train_and_evaluate(
            make_config(path, tmp_path / "on", method="db", init_from=str(tmp_path / "as_given"))
        )
    going_on = make_config(path, tmp_path / "on", method="db", init_from=str(kept), steps=1)
    assert train_and_evaluate(going_on)["mAP"]["total"] > scaled["mAP"]["total"] - 0.05


def test_the_exported_head_takes_features_and_names_bad_rows(finished, examples):
    run_dir, _ = finished
    served = tf.saved_model.load(str(run_dir / "saved_model" / "1")).signatures["serving_default"]
    model = keras.models.load_model(run_dir / "model.keras", compile=False)
    with np.load(examples) as file:
        features = file["features"][-4:]
    expected = Calibration.load(run_dir / "calibration.json")(model(features).numpy())
    broken = features.copy()
    broken[1, 3] = np.nan
    answer = served(features=tf.constant(broken))
    good = [0, 2, 3]
    np.testing.assert_allclose(answer["probabilities"].numpy()[good], expected[good], atol=1e-6)
    assert answer["class_names"].numpy()[0].tolist() == [n.encode() for n in CLASS_NAMES]
    assert answer["error"].numpy().tolist()[1] == b"some of the features are not finite numbers"
    assert (answer["probabilities"].numpy()[1] == 0).all()
    assert (answer["top_classes"].numpy()[1] == b"").all()


def test_data_that_the_model_does_not_take_are_refused(finished, examples, tmp_path):
    run_dir, _ = finished
    path = str(run_dir / "saved_model" / "1")
    model = evaluate.SavedModel(path)
    with pytest.raises(ValueError, match="the model takes 12 features, and the data are images"):
        next(labeling.label(model, []))
    with np.load(examples) as file:
        narrow = {**file, "features": file["features"][:, :7]}
    np.savez(tmp_path / "narrow.npz", **narrow)
    config = DataConfig.of(dataset="features", examples=str(tmp_path / "narrow.npz"))
    with pytest.raises(ValueError, match="the model takes 12 features, and the data are 7 feat"):
        evaluate.evaluate_saved_model(path, config, str(tmp_path))
    with pytest.raises(ConfigError, match=r"--backbone goes with images"):
        train_and_evaluate(make_config(examples, tmp_path / "run", backbone="ResNet50"))


def test_probabilities_are_calibrated_on_val_or_out_of_fold(finished, examples, tmp_path):
    _, scores = finished
    assert scores["calibration"]["fitted_on"] == scores["F1"]["thresholds_from"] == "val"
    before, after, alone = (scores["calibration"][n] for n in ("before", "after", "prevalence"))
    assert scores["probabilities"] == after
    for name in ("log_loss", "brier_score"):
        assert after[name] < before[name] and after[name] < alone[name]
    assert after["calibration_error"] < before["calibration_error"]

    plain = train_and_evaluate(
        make_config(examples, tmp_path / "plain", method="db", calibrate=False, export=False)
    )
    assert plain["mAP"] == scores["mAP"]
    assert plain["probabilities"] == before == plain["calibration"]["after"]

    with np.load(examples) as file:
        content = dict(file)
    content["split"] = np.where(content["split"] == "val", "train", content["split"])
    np.savez(tmp_path / "no_val.npz", **content)
    config = make_config(tmp_path / "no_val.npz", tmp_path / "no_val", method="db", export=False)
    without_val = train_and_evaluate(config)
    assert without_val["F1"]["thresholds_from"] == "train, out of fold"
    before, after = (without_val["calibration"][name] for name in ("before", "after"))
    assert after["log_loss"] < before["log_loss"]


def test_all_the_states_of_training_are_in_a_checkpoint(examples, tmp_path):
    """A run that is resumed half way ends as one that was not, with every option on."""
    options = {"method": "db_focal", "ema": 0.98, "checkpoint_every": 7, "export": False}
    whole = train_and_evaluate(make_config(examples, tmp_path / "whole", **options))
    config = make_config(examples, tmp_path / "part", **options)
    train_and_evaluate(config)
    checkpoints = tmp_path / "part" / "checkpoints"
    kept = sorted(checkpoints.glob("step-*.npz"))
    kept[-1].unlink()
    (tmp_path / "part" / "metrics.json").unlink()
    assert train_and_evaluate(config)["mAP"] == whole["mAP"]
    ours, theirs = (weights_of(tmp_path / name) for name in ("whole", "part"))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


class KilledError(Exception):
    pass


AUTO = {"method": "auto", "learning_rate": "auto", "folds": 2, "export": False, "steps": 30}
NUM_FOLDS, NUM_ROWS = 2, 6


@pytest.fixture(scope="module", autouse=True)
def few_candidates():
    """Two methods, and two rates for the better one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "METHODS", ("erm", "db"))
        patch.setattr(select, "RATE_FACTORS", (1.0, 3.0))
        yield


@pytest.fixture(scope="module")
def chosen(examples, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("auto") / "run"
    # The method is left to the choice without being asked for.
    train_and_evaluate(make_config(examples, run_dir, **{**AUTO, "method": None}))
    return run_dir


def test_the_choice_and_what_led_to_it_are_written(chosen, examples):
    rows = read_rows(chosen / "selection.csv")
    expected = ["method", "learning_rate", "fold", "total", "head", "medium", "tail", "macro_f1"]
    expected += ["digest"]
    assert list(rows[0]) == expected
    # Each method with its default rate, and the best one with the others, on each fold.
    pairs = {(row["method"], row["learning_rate"]) for row in rows}
    assert len(rows) == NUM_FOLDS * len(pairs) == NUM_ROWS
    assert {row["method"] for row in rows} == set(select.METHODS)
    config = ResolvedConfig.load(chosen / "config.json")
    assert config.chosen == ("method", "learning_rate")
    summary = read_rows(chosen / "selection_summary.csv")
    assert [float(row["mean"]) for row in summary] == sorted(
        (float(row["mean"]) for row in summary), reverse=True
    )
    best = [row for row in summary if float(row["behind_best"]) == 0]
    assert len(best) == 1
    taken = [
        row
        for row in summary
        if (row["method"], float(row["learning_rate"])) == (config.method, config.learning_rate)
    ]
    assert float(taken[0]["behind_best"]) <= float(taken[0]["behind_best_standard_error"])
    assert not (chosen / "selection").exists()
    # The same command goes on; another method is another run.
    assert train_and_evaluate(make_config(examples, chosen, **AUTO)) is not None
    with pytest.raises(ConfigError, match=r"--method: .* now"):
        train_and_evaluate(make_config(examples, chosen, **{**AUTO, "method": "focal"}))


def test_a_choice_that_was_killed_goes_on_and_ends_the_same(
    chosen, examples, tmp_path, monkeypatch
):
    config = make_config(examples, tmp_path / "run", **AUTO)
    add = trials.Trials.add

    for num_rows in (1, 3, 5):

        def add_or_die(made, *arguments, num_rows=num_rows):
            if len(made._trials) == num_rows:
                raise KilledError
            add(made, *arguments)

        monkeypatch.setattr(trials.Trials, "add", add_or_die)
        with pytest.raises(KilledError):
            train_and_evaluate(config)
        assert len(read_rows(tmp_path / "run" / "selection.csv")) == num_rows
    monkeypatch.setattr(trials.Trials, "add", add)
    train_and_evaluate(config)
    for name in ("selection.csv", "selection_summary.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (chosen / name).read_bytes()


def test_a_choice_reads_neither_val_nor_test(chosen, examples, tmp_path):
    config = make_config(examples, tmp_path / "run", **AUTO)
    data = config.load_data()
    blind = dataclasses.replace(data, splits={"train": data.splits["train"]})
    select.choose(config, blind)
    ours = (tmp_path / "run" / "selection.csv").read_bytes()
    assert ours == (chosen / "selection.csv").read_bytes()


def test_a_class_without_training_examples_is_named_before_a_choice(examples, tmp_path):
    with np.load(examples) as file:
        content = dict(file)
    content["labels"][content["split"] == "train", 3] = 0
    np.savez(tmp_path / "gap.npz", **content)
    with pytest.raises(ValueError, match="no training example has this class: boat"):
        train_and_evaluate(make_config(tmp_path / "gap.npz", tmp_path / "run", **AUTO))
    assert not (tmp_path / "run").exists()


def test_a_choice_of_another_configuration_is_refused(chosen, examples):
    config = make_config(examples, chosen, **{**AUTO, "folds": 3})
    with pytest.raises(ConfigError, match="a choice that was started with other settings: folds"):
        select.choose(config, config.load_data())


def test_ties_go_to_the_simpler_method():
    """Scores are given here: r_bce is best, and rs within one standard error of it."""
    behind = {"r_bce": (0, 0), "rs": (0.01, 0.02), "db": (0.01, 0.02), "erm": (0.05, 0.04)}
    summaries = [
        trials.Summary(trials.Candidate(name, 0.1), 0.6 - distance, 0.03, distance, error)
        for name, (distance, error) in behind.items()
    ]
    assert select._best(summaries).method == "rs"


def test_a_tail_that_is_not_there_is_not_chosen_for(examples, tmp_path):
    with np.load(examples) as file:
        content = {
            name: np.repeat(file[name], 4, axis=0) for name in ("features", "labels", "split")
        }
    np.savez(tmp_path / "large.npz", **content, class_names=np.array(CLASS_NAMES))
    config = make_config(tmp_path / "large.npz", tmp_path / "run", **AUTO, auto_for="tail")
    with pytest.raises(ConfigError, match="fewer than 20 training examples, and there is none"):
        train_and_evaluate(config)


def test_images_without_a_trained_network_have_no_features_to_choose_on(tmp_path):
    config = RunConfig.of(method="auto", run_dir=str(tmp_path / "run"), steps=3)
    with pytest.raises(ConfigError, match='"auto" compares heads on the features of a trained'):
        train_and_evaluate(config)


def test_logits_out_of_fold_are_of_heads_that_have_not_seen_the_example(examples, tmp_path):
    asked = make_config(
        examples, tmp_path / "run", method="erm", steps=500, learning_rate=0.02, keep="last"
    )
    data = asked.load_data()
    # Labels that nothing can be told from: only a head that has seen them can know them.
    train = data.splits["train"]
    shuffled = train.labels[np.random.default_rng(1).permutation(len(train))]
    data = dataclasses.replace(data, splits={"train": dataclasses.replace(train, labels=shuffled)})
    config = resolve(asked, data)
    fold_of = folds.stratified_folds(shuffled, 3)
    logits = heads.out_of_fold_logits(config, data, fold_of)
    seen = heads.logits_of_splits(config, data)["train"]
    labels = shuffled.toarray()
    share = labels.mean()
    unseen_map = metrics.mean_average_precision(labels, logits)["total"]
    seen_map = metrics.mean_average_precision(labels, seen)["total"]
    assert unseen_map < share + 0.1 < seen_map - 0.05
