import pytest
from absl import flags

from pipelines.runs import config
from pipelines.runs import flags as run_flags
from pipelines.runs.config import ConfigError, ResolvedConfig, RunConfig


def test_no_flag_at_all_is_the_embedded_data_set_without_a_download():
    resolved = RunConfig.of().resolve()
    assert (resolved.dataset, resolved.method) == ("digits_mlt", "db_focal")
    assert (resolved.backbone, resolved.backbone_weights) == ("small_resnet", "none")
    assert resolved.sampler == "class_aware"


def test_imagenet_weights_bring_resnet50_and_its_frozen_stage():
    resolved = RunConfig.of(dataset="table", examples="x.csv").resolve()
    assert (resolved.backbone, resolved.backbone_weights) == ("ResNet50", "imagenet")
    assert resolved.frozen_layers == ("conv1_", "conv2_") and resolved.image_size == 224
    asked = RunConfig.of(backbone_weights="imagenet").resolve()
    assert asked.backbone == "ResNet50"


def test_a_method_s_own_values_hold_unless_said_otherwise():
    table = {"dataset": "table", "examples": "x.csv"}
    assert RunConfig.of(method="erm", **table).resolve().epochs == 80
    assert RunConfig.of(method="erm", **table).resolve().sampler == "uniform"
    assert RunConfig.of(method="db", **table).resolve().epochs == 8
    changed = RunConfig.of(method="db", sampler="class_cycle", epochs=3, **table).resolve()
    assert (changed.sampler, changed.epochs) == ("class_cycle", 3)


def test_the_learning_rate_is_what_the_backbone_bears():
    assert RunConfig.of().resolve().learning_rate == 0.05
    table = {"dataset": "table", "examples": "x.csv"}
    assert RunConfig.of(**table).resolve().learning_rate == 0.02
    assert RunConfig.of(backbone="MobileNet", **table).resolve().learning_rate == 0.005
    frozen = RunConfig.of(backbone="MobileNet", freeze_backbone=True, **table).resolve()
    assert frozen.learning_rate == 0.02
    asked = RunConfig.of(backbone="MobileNet", learning_rate=0.01, **table).resolve()
    assert asked.learning_rate == 0.01


def test_saved_and_loaded_configurations_do_not_differ(tmp_path):
    resolved = RunConfig.of(backbone_options={"width": 8}, steps=7).resolve()
    resolved.save(tmp_path / "config.json")
    loaded = ResolvedConfig.load(tmp_path / "config.json")
    assert loaded == resolved and not loaded.differences(resolved)


def test_differences_name_what_decides_a_run_and_nothing_else():
    run = RunConfig.of().resolve()
    other = run.with_settings(beta=5.0, seed=2, run_dir="elsewhere", export=False)
    assert run.differences(other) == ["--seed: 0 there, 2 now", "--beta: 10.0 there, 5.0 now"]
    assert run.differences(run.with_settings(lambda_=3.0)) == ["--lambda: 2.0 there, 3.0 now"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"dataset": "coco"},
            r"--dataset must be one of digits_mlt, table, .*shards; got 'coco'",
        ),
        ({"method": "dbl"}, r"--method must be one of erm, focal, .*db_focal; got 'dbl'"),
        ({"sampler": "balanced"}, "--sampler must be one of uniform, class_aware, class_cycle"),
        ({"margin": "none"}, "--margin must be one of paper, released"),
        ({"precision": "half"}, "--precision must be one of float32, mixed_bfloat16"),
        ({"check_images": "some"}, "--check_images must be one of exists, header, all"),
        ({"backbone": "AlexNet"}, r"--backbone must be one of small_resnet, .*VGG16"),
        ({"alpha": -0.1}, "--alpha must be at least 0; got -0.1"),
        ({"beta": 0.0}, "--beta must be greater than 0; got 0.0"),
        ({"lambda_": -2.0}, "--lambda must be greater than 0; got -2.0"),
        ({"kappa": float("inf")}, "--kappa must be a finite number"),
        ({"momentum": 1.0}, r"--momentum must be in \[0, 1\)"),
        ({"batch_size": 0}, "--batch_size must be greater than 0"),
        ({"val_fraction": 1.0}, r"--val_fraction must be in \[0, 1\)"),
        ({"steps": 5, "epochs": 1}, "--epochs and --steps both say how long"),
        ({"dataset": "table"}, "--dataset=table needs --examples"),
        ({"examples": "x.csv"}, "--examples goes with --dataset=table, not digits_mlt"),
        ({"seed": -1}, r"--seed must be in \[0, 2\^32\); got -1"),
        ({"freeze_backbone": True, "precision": "mixed_bfloat16"}, "--freeze_backbone computes"),
    ],
)
def test_values_out_of_range_name_their_flag(arguments, message):
    with pytest.raises(ConfigError, match=message):
        RunConfig.of(**arguments)


def test_files_to_start_from_must_exist_when_a_run_starts():
    with pytest.raises(ConfigError, match=r"there is no file no\.h5"):
        RunConfig.of(backbone_weights="no.h5").resolve()
    with pytest.raises(ConfigError, match="--init_from: there is no no_run"):
        RunConfig.of(init_from="no_run").resolve()


def test_the_schedule_is_that_of_the_sampler():
    table = {"dataset": "table", "examples": "x.csv"}
    assert RunConfig.of(method="db", sampler="uniform", **table).resolve().epochs == 80
    assert RunConfig.of(method="erm", sampler="class_aware", **table).resolve().epochs == 8


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


def test_parameters_without_a_part_in_the_method_are_named():
    assert RunConfig.of(method="erm", kappa=0.1, lambda_=3.0).unused() == ["--lambda", "--kappa"]
    assert RunConfig.of(method="r_bce", beta=5.0, kappa=0.1).unused() == ["--kappa"]
    assert RunConfig.of(method="db", beta=5.0, kappa=0.1, margin="released").unused() == []


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
