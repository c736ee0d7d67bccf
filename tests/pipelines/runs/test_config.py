import json
import re

import pytest
from absl import flags
from run_data import make_data

from dbl_tf import settings
from dbl_tf.parameters import LossParameters
from pipelines import datasets
from pipelines.datasets import table
from pipelines.runs import config
from pipelines.runs import flags as run_flags
from pipelines.runs.config import ConfigError, ResolvedConfig, RunConfig
from pipelines.runs.resolution import resolve


def test_saved_and_loaded_configurations_do_not_differ(tmp_path):
    resolved = resolve(RunConfig.of(backbone_options={"width": 8}, steps=7), make_data())
    resolved.save(tmp_path / "config.json")
    loaded = ResolvedConfig.load(tmp_path / "config.json")
    assert loaded == resolved and not loaded.differences(resolved)


def test_differences_name_what_decides_a_run_and_nothing_else():
    saved = resolve(RunConfig.of(), make_data())
    now = saved.with_settings(beta=5.0, seed=2, run_dir="elsewhere", export=False)
    assert now.differences(saved) == {
        "seed": "--seed: 0 there, 2 now",
        "beta": "--beta: 10.0 there, 5.0 now",
    }
    now = saved.with_settings(lambda_=3.0)
    assert now.differences(saved) == {"lambda_": "--lambda: 2.0 there, 3.0 now"}


def test_what_was_left_open_differs_from_no_run():
    saved = resolve(RunConfig.of(method="erm", learning_rate=0.3, steps=7), make_data())
    assert RunConfig.of(steps=7).open_differences(saved) == {}
    assert RunConfig.of(method="db", steps=8).open_differences(saved) == {
        "method": "--method: 'erm' there, 'db' now",
        "steps": "--steps: 7 there, 8 now",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"dataset": "coco"},
            r"--dataset must be one of digits_mlt, table, .*shards; got 'coco'",
        ),
        ({"method": "dbl"}, r"--method must be one of erm, focal, .*db_focal, auto; got 'dbl'"),
        ({"metod": "rs"}, r"there is no setting metod; .*; did you mean 'method'\?"),
        ({"sampler": "balanced"}, "--sampler must be one of uniform, class_aware, class_cycle"),
        ({"margin": "none"}, "--margin must be one of paper, released"),
        ({"precision": "half"}, "--precision must be one of float32, mixed_bfloat16"),
        ({"check_images": "some"}, "--check_images must be one of exists, header, all"),
        (
            {"backbone": "AlexNet"},
            r"--backbone must be hub:PRESET_OR_FOLDER or one of small_resnet, .*VGG16",
        ),
        ({"alpha": -0.1}, "--alpha must be at least 0; got -0.1"),
        ({"beta": 0.0}, "--beta must be greater than 0; got 0.0"),
        ({"lambda_": -2.0}, "--lambda must be greater than 0; got -2.0"),
        ({"kappa": float("inf")}, "--kappa must be a finite number"),
        ({"momentum": 1.0}, r"--momentum must be in \[0, 1\)"),
        ({"batch_size": 0}, "--batch_size must be greater than 0"),
        ({"val_fraction": 1.0}, r"--val_fraction must be in \[0, 1\)"),
        ({"run_dir": "gs://bucket/run"}, "--run_dir must be a local path; got 'gs://bucket/run'"),
        ({"cache_dir": "s3://bucket"}, "--cache_dir must be a local path"),
        ({"dataset": "shards", "shards_dir": "gs://b/x"}, "--shards_dir must be a local path"),
        ({"steps": 5, "epochs": 1}, "--epochs and --steps both say how long"),
        ({"dataset": "table"}, "--dataset=table needs --examples"),
        ({"examples": "x.csv"}, "--examples goes with --dataset=table or features, not digits_mlt"),
        ({"seed": -1}, r"--seed must be in \[0, 2\^32\); got -1"),
    ],
)
def test_values_out_of_range_name_their_flag(arguments, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.of(**arguments)


def test_files_to_start_from_must_exist_when_a_run_starts():
    with pytest.raises(ConfigError, match=r"there is no file no\.h5"):
        RunConfig.of(backbone_weights="no.h5").check_files()
    with pytest.raises(ConfigError, match="--init_from: there is no no_run"):
        RunConfig.of(init_from="no_run").check_files()


def test_backbone_options():
    assert config.parse_options("alpha=0.75, depth=2,name='x'") == {
        "alpha": 0.75,
        "depth": 2,
        "name": "x",
    }
    assert config.parse_options("") == {}
    for text in ("alpha", "alpha=", "alpha=x", "1a=2"):
        with pytest.raises(ConfigError, match="name=value"):
            config.parse_options(text)


def test_data_are_called_by_their_folder_or_name():
    examples = "pictures/birds/examples.csv"
    assert RunConfig.of(dataset="table", examples=examples).data_name == "birds"
    assert RunConfig.of(dataset="shards", shards_dir="shards/birds/").data_name == "birds"
    assert RunConfig.of(dataset="tfds", tfds_name="a/b", label_feature="c").data_name == "a/b"
    assert RunConfig.of().data_name == "digits_mlt"


def test_what_a_data_set_does_not_take_is_refused():
    with pytest.raises(ConfigError, match="--image_ids goes with --dataset=voc_mlt or coco_mlt, "):
        RunConfig.of(image_ids="ids.txt")
    with pytest.raises(ConfigError, match="--dataset=tfds needs --label_feature, the name of its"):
        RunConfig.of(dataset="tfds", tfds_name="voc")


def test_settings_without_a_part_in_the_run_are_named():
    def unused(**values):
        return resolve(RunConfig.of(**values), make_data()).unused()

    assert unused(method="erm", kappa=0.1, lambda_=3.0) == ["--lambda", "--kappa"]
    assert unused(method="r_bce", beta=5.0, kappa=0.1) == ["--kappa"]
    assert unused(method="db", beta=5.0, kappa=0.1, margin="released") == []
    assert unused(method="erm", momentum=0.5) == []
    assert unused(method="erm", momentum=0.5, optimizer="adamw") == ["--momentum"]


def test_word_vectors_go_with_the_graph_of_labels(tmp_path):
    with pytest.raises(ConfigError, match="--word_vectors goes with --method=ml_gcn, not db"):
        RunConfig.of(method="db", word_vectors="glove.txt")
    with pytest.raises(ConfigError, match="--word_vectors: there is no file "):
        RunConfig.of(method="ml_gcn", word_vectors=str(tmp_path / "none.txt"))


def test_every_field_is_a_flag_and_the_flags_make_the_configuration():
    values = flags.FlagValues()
    run_flags.define(RunConfig, values)
    assert {name.rstrip("_") for name in RunConfig.of().flat()} <= set(values)
    values(["program"])
    assert run_flags.read(RunConfig, values) == RunConfig.of()
    arguments = "--method=db --lambda=3 --mu=0.5 --frozen_layers=a,b --steps=7 --noexport"
    values(["program", *arguments.split(), "--backbone_options=alpha=0.75"])
    expected = RunConfig.of(
        method="db",
        lambda_=3.0,
        frozen_layers=["a", "b"],
        backbone_options={"alpha": 0.75},
        export=False,
        steps=7,
        mu=0.5,
    )
    assert run_flags.read(RunConfig, values) == expected
    assert "lambda" in run_flags.given(RunConfig, values)
    assert "beta" not in run_flags.given(RunConfig, values)


def test_configurations_of_earlier_versions_load(tmp_path):
    content = {
        **{"dataset": "table", "examples": "/data/examples.csv", "images_dir": None},
        **{"class_names": None, "label_separator": ";", "data_dir": None, "image_ids": None},
        **{"download": False, "tfds_name": None, "label_feature": None, "image_feature": None},
        **{"train_split": "train", "val_split": None, "test_split": "test", "shards_dir": None},
        **{"check_images": "header", "skip_bad_images": False, "val_fraction": 0.1},
        **{"data_seed": 3, "cache_dir": None, "method": "db", "sampler": "class_aware"},
        **{"alpha": 0.1, "beta": 10.0, "mu": 0.3, "lambda_": 5.0, "kappa": 0.05},
        **{"margin": "released", "word_vectors": None, "rebalance_in": "loss"},
        **{"allow_empty_classes": True, "backbone": "MobileNet"},
        **{"backbone_options": {"alpha": 0.75}, "backbone_weights": "none", "frozen_layers": []},
        **{"freeze_backbone": False, "init_from": None, "image_size": 128},
        **{"flip_probability": None, "batch_size": 32, "epochs": None, "steps": 200},
        **{"learning_rate": 0.005, "warmup_steps": None, "momentum": 0.9, "weight_decay": 1e-4},
        **{"seed": 1, "precision": "float32", "xla": False, "strategy": "auto"},
        **{"checkpoint_every": 50, "run_dir": "runs/mine", "export": True},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    loaded = ResolvedConfig.load(path)
    assert (loaded.rebalance, loaded.clamp_counts) == ("labels", True)
    assert loaded.source == table.TableOptions(examples="/data/examples.csv", label_separator=";")
    assert (loaded.loss.lambda_, loaded.loss.focal_gamma) == (5.0, 2.0)
    asked = RunConfig.of(
        dataset="table",
        examples="/data/examples.csv",
        label_separator=";",
        val_fraction=0.1,
        data_seed=3,
        method="db",
        mu=0.3,
        lambda_=5.0,
        margin="released",
        rebalance="labels",
        clamp_counts=True,
        backbone="MobileNet",
        backbone_options={"alpha": 0.75},
        backbone_weights="none",
        image_size=128,
        steps=200,
        seed=1,
    )
    assert asked.open_differences(loaded) == {}
    assert resolve(asked, make_data(), loaded).differences(loaded) == {}

    path.write_text(json.dumps({**content, "tfds_name": "voc"}))
    with pytest.raises(
        ConfigError, match=r"config\.json holds no settings of a run: --tfds_name goes with"
    ):
        ResolvedConfig.load(path)
    path.write_text(json.dumps({**content, "rebalance_in": "nowhere"}))
    with pytest.raises(ConfigError, match=r"config\.json holds .* field rebalance_in must"):
        ResolvedConfig.load(path)
    path.write_text(json.dumps({**content, "color": "red"}))
    with pytest.raises(ConfigError, match=r"no setting color; it may be of another version; rest"):
        ResolvedConfig.load(path)
    path.write_text("[]")
    with pytest.raises(
        ConfigError,
        match=r"config\.json holds no settings of a run: Expected `object`, got `array`",
    ):
        ResolvedConfig.load(path)


def read_flags(*arguments):
    values = flags.FlagValues()
    run_flags.define(RunConfig, values)
    values(["program", *arguments])
    return run_flags.read(RunConfig, values)


def test_flags_of_earlier_versions_are_accepted_and_said_to_be_old(caplog):
    config = read_flags("--rebalance_in=loss", "--allow_empty_classes")
    assert (config.rebalance, config.clamp_counts) == ("labels", True)
    messages = [record.getMessage() for record in caplog.records]
    assert "--rebalance_in is the old name of --rebalance=labels" in messages
    assert "--allow_empty_classes is the old name of --clamp_counts=True" in messages
    with pytest.raises(ConfigError, match="--rebalance_in is the old name of --rebalance; give"):
        read_flags("--rebalance_in=loss", "--rebalance=labels")


def test_every_parameter_of_a_loss_is_a_flag():
    config = read_flags(
        *("--focal_gamma=1.5", "--gamma_negative=2", "--clip=0.1", "--effective_number_beta=0.99")
    )
    assert config.loss == LossParameters(
        focal_gamma=1.5, gamma_negative=2.0, clip=0.1, effective_number_beta=0.99
    )
    with pytest.raises(ConfigError, match=r"--clip must be in \[0, 1\); got 1.5"):
        read_flags("--clip=1.5")


def test_help_shows_the_flags_in_groups_and_each_once():
    values = flags.FlagValues()
    run_flags.define(RunConfig, values)
    text = run_flags.help_text("Trains.", "train.py", values)
    shown = re.findall(r"^  --(?:\[no\])?(\w+)$", text, flags=re.MULTILINE)
    assert sorted(shown) == sorted(set(values) - set(config.RENAMED))
    assert shown[:3] == ["dataset", "examples", "method"]
    headings = re.findall(r"^(\S[^\n]*):$", text, flags=re.MULTILINE)
    assert headings[0] == "Most used" and {"Training", "Data source"} <= set(headings)
    assert "for --dataset=voc_mlt, coco_mlt, tfds" in text


def test_an_evaluation_takes_no_flags_that_concern_training_alone():
    values = flags.FlagValues()
    run_flags.define(config.DataConfig, values, for_evaluation=True)
    assert not {"train_split", "val_split", "val_fraction", "image_ids"} & set(values)
    assert {"dataset", "examples", "test_split", "check_images"} <= set(values)


def test_options_of_sources_with_one_name_are_one_option():
    by_name = {}
    for source in datasets.SOURCES.values():
        for field, details in settings.settings_of(source.options):
            default, first = by_name.setdefault(field.name, (field.default, details))
            assert (field.default, details) == (default, first), field.name
    others = {name for name in RunConfig.of().flat() if name not in by_name}
    assert not set(by_name) & (others - {"dataset"})


def test_values_of_a_sweep_are_parsed_as_the_flag_parses_them():
    assert run_flags.parse_values("xla", "false,true") == ("xla", (False, True))
    assert run_flags.parse_values("frozen_layers", "conv1_,conv2_;conv1_") == (
        "frozen_layers",
        (["conv1_", "conv2_"], ["conv1_"]),
    )
    assert run_flags.parse_values("backbone_options", "alpha=0.5;alpha=1.0")[1] == (
        {"alpha": 0.5},
        {"alpha": 1.0},
    )
    assert run_flags.parse_values("lambda", "1,2.5") == ("lambda_", (1.0, 2.5))
    for name, text in (("xla", "maybe"), ("beta", "low"), ("margin", "wide"), ("steps", "1.5")):
        with pytest.raises(ConfigError, match=f"--{name} does not take '{text}'"):
            run_flags.parse_values(name, text)
    with pytest.raises(ConfigError, match="there is no flag --gamma"):
        run_flags.parse_values("gamma", "1")
