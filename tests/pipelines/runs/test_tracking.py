"""Runs in MLflow and Weights & Biases, and what TensorBoard has of them."""

import csv
import importlib.util
import json
import logging
import pathlib
import signal

import keras
import numpy as np
import programs
import pytest
import tensorflow as tf
from run_results import weights_of
from sklearn.metrics import average_precision_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from dbl_tf import training
from pipelines.runs import board, tracking
from pipelines.runs.config import ConfigError, RunConfig
from pipelines.runs.train import train_and_evaluate

CLASS_NAMES = ("sun", "sea", "tree", "boat")
EPOCHS, STEPS_PER_EPOCH = 4, 3
needs_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed (extra mlflow)"
)
needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="W&B is not installed (extra wandb)"
)


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    """An archive of features from which the classes can be told, most of the time."""
    random = np.random.default_rng(0)
    labels = (random.random((200, 4)) < (0.5, 0.4, 0.3, 0.2)).astype(np.uint8)
    values = labels @ random.standard_normal((4, 6)) + random.standard_normal((200, 6))
    split = np.array(["train"] * 100 + ["val"] * 40 + ["test"] * 60)
    path = tmp_path_factory.mktemp("features") / "views.npz"
    np.savez(
        path,
        features=values.astype(np.float32),
        labels=labels,
        split=split,
        class_names=np.array(CLASS_NAMES),
    )
    return path


def make_config(features, run_dir, **arguments):
    return RunConfig.of(
        dataset="features",
        examples=str(features),
        method="erm",
        epochs=EPOCHS,
        keep="last",
        export=False,
        run_dir=str(run_dir),
        cache_dir=str(features.parent / "cache"),
        **arguments,
    )


@pytest.fixture(scope="module")
def untracked(features, tmp_path_factory):
    """The directory of a run without trackers."""
    run_dir = tmp_path_factory.mktemp("runs") / "untracked"
    train_and_evaluate(make_config(features, run_dir))
    return run_dir


def assert_same_weights(run_dir, other):
    ours, theirs = (weights_of(path) for path in (run_dir, other))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


def train_killed(config, monkeypatch):
    """Trains, killed twice where an epoch is logged and its checkpoint is not written."""
    save = training.Checkpoints.save
    for last in (2 * STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH):

        def save_or_die(checkpoints, model, step, loss_sum=0.0, last=last):
            if step >= last:
                raise KilledError
            save(checkpoints, model, step, loss_sum)

        with monkeypatch.context() as patch:
            patch.setattr(training.Checkpoints, "save", save_or_die)
            with pytest.raises(KilledError):
                train_and_evaluate(config)
    return train_and_evaluate(config)


def history(run_dir):
    rows = training.read_history(run_dir / "history.csv")
    return [{name: float(value) for name, value in row.items()} for row in rows]


@needs_mlflow
def test_a_killed_run_continues_in_mlflow(features, untracked, tmp_path, monkeypatch):
    import mlflow

    folder, run_dir = tmp_path / "tracked", tmp_path / "run"
    config = make_config(features, run_dir, mlflow=str(folder), mlflow_experiment="views")
    scores = train_killed(config, monkeypatch)
    assert_same_weights(run_dir, untracked)

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("views")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "run"
    for name in ("loss", "val_map"):
        logged = client.get_metric_history(run.info.run_id, name)
        assert [m.step for m in logged] == [0, 1, 2, 3]
        assert [m.value for m in logged] == [row[name] for row in history(run_dir)]
    assert run.data.metrics["test/mAP/total"] == scores["mAP"]["total"]
    assert run.data.params["method"] == "erm"
    assert run.data.params["seed"] == "0"
    files = client.download_artifacts(run.info.run_id, "", str(tmp_path))
    for name in ("config.json", "metrics.json", "report.html"):
        assert (pathlib.Path(files, name)).read_bytes() == (run_dir / name).read_bytes()

    # The finished run is evaluated again, and its scores are there once.
    train_and_evaluate(config)
    assert len(client.get_metric_history(run.info.run_id, "test/mAP/total")) == 1


@needs_mlflow
def test_a_tracker_that_fails_in_the_middle_does_not_end_the_training(
    features, untracked, tmp_path, monkeypatch, caplog
):
    import mlflow

    folder, run_dir = tmp_path / "tracked", tmp_path / "run"
    config = make_config(features, run_dir, mlflow=str(folder))
    database = folder / "mlflow.db"
    whole = []
    save = training.Checkpoints.save

    def save_and_break(checkpoints, model, step, loss_sum=0.0):
        save(checkpoints, model, step, loss_sum)
        if not whole:
            whole.append(database.read_bytes())
            database.write_bytes(b"no database " * 1000)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(training.Checkpoints, "save", save_and_break)
        train_and_evaluate(config)
    assert_same_weights(run_dir, untracked)
    warnings = [r.getMessage() for r in caplog.records if "--mlflow" in r.getMessage()]
    assert len(warnings) == 1
    assert "--mlflow has failed, and the run goes on without it: " in warnings[0]
    assert "\n" not in warnings[0]

    # Once it works again, the next start of the run brings what it has missed.
    for suffix in ("-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(whole[0])
    train_and_evaluate(config)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{database}")
    (run,) = client.search_runs([client.get_experiment_by_name("views").experiment_id])
    logged = client.get_metric_history(run.info.run_id, "loss")
    assert [m.value for m in logged] == [row["loss"] for row in history(run_dir)]


@needs_mlflow
def test_a_tracker_that_cannot_begin_is_refused_before_the_training(features, tmp_path):
    config = make_config(features, tmp_path / "run", mlflow=f"sqlite:////proc/{'x' * 9}/mlflow.db")
    with pytest.raises(ConfigError, match="cannot be used: ") as error:
        train_and_evaluate(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "checkpoints").exists()


# Trains with the settings that follow, and is killed where the second epoch is logged and its
# checkpoint is not written.
KILLED_IN_THE_SECOND_EPOCH = f"""
import json, os, signal, sys
from dbl_tf import training
from pipelines.runs.config import RunConfig
from pipelines.runs.train import train_and_evaluate

save = training.Checkpoints.save

def save_or_die(checkpoints, model, step, loss_sum=0.0):
    if step >= {2 * STEPS_PER_EPOCH}:
        os.kill(os.getpid(), signal.SIGKILL)
    save(checkpoints, model, step, loss_sum)

training.Checkpoints.save = save_or_die
train_and_evaluate(RunConfig.of(**json.loads(sys.argv[1])))
"""
# A file of W&B is a log in the format of LevelDB behind a header of its own.
FILE_HEADER, RECORD_HEADER, BLOCK = 7, 7, 1 << 15


def wandb_records(path):
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, joined = path.read_bytes(), FILE_HEADER, b""
    while place + RECORD_HEADER <= len(content):
        if BLOCK - place % BLOCK < RECORD_HEADER:
            place += BLOCK - place % BLOCK
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        is_last = content[place + 6] in (1, 4)  # a whole record, or the last part of one
        place += RECORD_HEADER
        joined += content[place : place + length]
        place += length
        if is_last:
            yield Record.FromString(joined)
            joined = b""


def items_of(updates):
    return {u.key or "/".join(u.nested_key): json.loads(u.value_json) for u in updates}


@needs_wandb
def test_a_killed_run_continues_in_wandb(features, untracked, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = tmp_path / "run"
    config = make_config(features, run_dir, wandb="team/views")
    killed = programs.run("-c", KILLED_IN_THE_SECOND_EPOCH, json.dumps(config.flat()))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    scores = train_and_evaluate(config)
    train_and_evaluate(config)  # evaluates once more
    assert_same_weights(run_dir, untracked)

    ids, rows, summary, files = set(), [], {}, set()
    logs = sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))
    assert len(logs) == 2  # what the killed process has left is set aside
    assert len(list(run_dir.glob("wandb/unfinished-*/*.wandb"))) == 1
    for record in (record for path in logs for record in wandb_records(path)):
        if record.HasField("run"):
            ids.add((record.run.entity, record.run.project, record.run.run_id))
        items = items_of(record.history.item)
        rows += [items] if "epoch" in items else []
        summary |= items_of(record.summary.update)
        files |= {entry.path for entry in record.artifact.manifest.contents}
        logged = record.request.log_artifact.artifact
        files |= {entry.path for entry in logged.manifest.contents}
    assert len(ids) == 1
    assert ids.pop()[:2] == ("team", "views")
    expected = history(run_dir)
    assert [{name: row[name] for name in expected[0]} for row in rows] == expected
    assert summary["test/mAP/total"] == scores["mAP"]["total"]
    assert files >= {"config.json", "metrics.json", "report.html"}


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_in_one_line(name, features, tmp_path):
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed")
    config = make_config(features, tmp_path / "run", **{name: "views"})
    with pytest.raises(ConfigError, match=rf"^--{name} needs .*: pip install 'dbl-tf\[{name}\]'$"):
        train_and_evaluate(config)
    assert not (tmp_path / "run").exists()


@needs_mlflow
def test_a_password_is_kept_out_of_the_files(features, tmp_path):
    config = make_config(features, tmp_path / "run", mlflow="http://me:secret@host:5000")
    with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_USERNAME and ") as error:
        train_and_evaluate(config)
    assert "secret" not in str(error.value)


def test_tensorboard_has_the_ap_of_labels_curves_and_settings(features, untracked):
    log = EventAccumulator(str(untracked / "tensorboard" / "classes")).Reload()
    with np.load(features) as file:
        val, test = (file["split"] == split for split in ("val", "test"))
        labels, values = file["labels"], file["features"]
    model = keras.models.load_model(untracked / "model.keras", compile=False)
    logits = keras.ops.convert_to_numpy(model(values))
    for c, name in enumerate(CLASS_NAMES):
        events = log.Tensors(f"AP of labels/{name}")
        assert [event.step for event in events] == [0, 1, 2, 3]
        expected = average_precision_score(labels[val, c], logits[val, c])
        assert tf.make_ndarray(events[-1].tensor_proto) == pytest.approx(expected, rel=1e-6)

    log = EventAccumulator(str(untracked / "tensorboard" / "test")).Reload()
    with open(untracked / "predictions.csv", newline="") as file:
        probabilities = np.array([float(row["sun"]) for row in csv.DictReader(file)])
    (curve,) = log.Tensors("labels/sun/pr_curves")
    counts = tf.make_ndarray(curve.tensor_proto)
    for k in (100, 500, 900):
        given = probabilities >= k / 1000
        assert counts[0, k] == np.sum(given & (labels[test, 0] == 1))
        assert counts[1, k] == np.sum(given & (labels[test, 0] == 0))
    scores = json.loads((untracked / "metrics.json").read_text())
    (total,) = log.Tensors("test/mAP/total")
    assert tf.make_ndarray(total.tensor_proto) == pytest.approx(scores["mAP"]["total"], rel=1e-6)
    content = log.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    settings = HParamsPluginData.FromString(content).session_start_info.hparams
    assert settings["method"].string_value == "erm"
    assert settings["batch_size"].number_value == 32


def test_tensorboard_shows_the_worst_images(picture_table, tmp_path):
    config = RunConfig.of(
        dataset="table",
        examples=str(picture_table),
        image_size=16,
        backbone="small_resnet",
        backbone_weights="none",
        backbone_options={"width": 4},
        method="erm",
        steps=1,
        export=False,
        run_dir=str(tmp_path / "run"),
        cache_dir=str(tmp_path / "cache"),
    )
    train_and_evaluate(config)
    log = EventAccumulator(str(tmp_path / "run" / "tensorboard" / "test")).Reload()
    tags = [tag for tag in log.Tags()["tensors"] if tag.startswith("worst images/")]
    assert len(tags) == 12  # all images of the test split
    with open(tmp_path / "run" / "predictions.csv", newline="") as file:
        rows = {row.pop("image"): row for row in csv.DictReader(file)}
    losses = []
    for tag in tags:
        said = log.SummaryMetadata(tag).summary_description
        name, _, rest = said.partition(": log loss ")
        number = int(pathlib.Path(name).stem)
        truth = {"red": number % 2, "green": 1 - number % 2, "blue": number % 4 == 0}
        row = rows[name]
        loss = -np.mean(
            [np.log(float(row[c]) if t else 1 - float(row[c])) for c, t in truth.items()]
        )
        losses.append(float(rest.split(";")[0]))
        assert losses[-1] == pytest.approx(loss, abs=2e-3)
    assert losses == sorted(losses, reverse=True)
    _, _, picture = tf.make_ndarray(log.Tensors(tags[0])[0].tensor_proto)
    assert tf.io.decode_png(picture).shape == (20, 24, 3)


def test_unknown_labels_cost_an_image_nothing():
    losses = board.image_losses(
        np.array([[1, 0, -1], [0, -1, -1]]), np.float32([[0.5, 0.25, 0.9], [0.0, 1.0, 1.0]])
    )
    np.testing.assert_allclose(losses, [(np.log(2) - np.log(0.75)) / 2, 0])


def test_scores_of_single_labels_stay_in_the_file():
    scores = {"mAP": {"total": 0.5, "tail": None}, "per_class": {"a": {"ap": 1.0}}, "curves": {}}
    assert dict(tracking.flat_scores(scores)) == {"test/mAP/total": 0.5}
