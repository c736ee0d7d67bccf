import pytest
from run_data import make_data

from pipelines.runs.config import ConfigError, RunConfig
from pipelines.runs.resolution import head_stage, resolve, with_default_method

OF_TABLE = {"dataset": "table", "examples": "x.csv"}
ALL_LAYERS = {**OF_TABLE, "freeze_backbone": False}


def resolved(data=None, **values):
    return resolve(RunConfig.of(**values), make_data() if data is None else data)


def test_no_flag_at_all_is_the_embedded_data_set_without_a_download():
    run = resolved(make_data(10))
    assert (run.dataset, run.method) == ("digits_mlt", "db_focal")
    assert (run.backbone, run.backbone_weights) == ("small_resnet", "none")
    assert (run.sampler, run.steps) == ("class_aware", 1500)
    assert (run.optimizer, run.schedule, run.learning_rate) == ("sgd", "step", 0.05)
    assert (run.keep, run.freeze_backbone, run.head_steps) == ("last", False, 0)


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        (OF_TABLE, "auto"),
        ({"dataset": "features", "examples": "x.npz"}, "auto"),
        ({"dataset": "shards", "shards_dir": "x", "learning_rate": "auto"}, "auto"),
        ({**OF_TABLE, "method": "rs"}, "rs"),
        # All layers are trained, or there is no trained network whose features could be kept.
        (ALL_LAYERS, None),
        ({**OF_TABLE, "head_steps": 10}, None),
        ({**OF_TABLE, "backbone_weights": "none"}, None),
        ({**OF_TABLE, "backbone_weights": "none", "freeze_backbone": True}, None),
        ({"freeze_backbone": True}, None),
        # These are parts of the method that is the default elsewhere.
        ({**OF_TABLE, "sampler": "uniform"}, None),
        ({**OF_TABLE, "mu": 0.4}, None),
        ({**OF_TABLE, "folds": 101}, None),
    ],
)
def test_the_head_on_own_data_leaves_its_method_to_cross_validation(settings, method):
    num_features = 3 if settings.get("dataset") == "features" else None
    asked = with_default_method(RunConfig.of(**settings), make_data(num_features=num_features))
    assert asked.method == method


def test_large_photographs_of_your_own_are_decoded_scaled():
    assert not resolved(**OF_TABLE).full_decoding
    assert resolved(**OF_TABLE, full_decoding=True).full_decoding
    assert resolved().full_decoding
    assert resolved(dataset="voc_mlt", data_dir="x").full_decoding
    with pytest.raises(ConfigError, match="--full_decoding goes with images"):
        resolved(
            make_data(num_features=3), dataset="features", examples="x.npz", full_decoding=True
        )


def test_imagenet_weights_bring_resnet50_and_its_frozen_stage():
    run = resolved(**OF_TABLE)
    assert (run.backbone, run.backbone_weights) == ("ResNet50", "imagenet")
    assert run.frozen_layers == ("conv1_", "conv2_") and run.image_size == 224
    assert resolved(backbone_weights="imagenet").backbone == "ResNet50"


def test_the_schedule_is_that_of_the_method_and_its_sampler():
    assert resolved(method="erm", **ALL_LAYERS).epochs == 80
    assert resolved(method="erm", **ALL_LAYERS).sampler == "uniform"
    assert resolved(method="db", **ALL_LAYERS).epochs == 8
    assert resolved(method="db", sampler="uniform", **ALL_LAYERS).epochs == 80
    assert resolved(method="erm", sampler="class_aware", **ALL_LAYERS).epochs == 8
    changed = resolved(method="db", sampler="class_cycle", epochs=3, **ALL_LAYERS)
    assert (changed.sampler, changed.epochs) == ("class_cycle", 3)


@pytest.mark.parametrize("num_classes", [2, 20, 371])
def test_the_rate_of_sgd_gives_a_logit_the_step_that_it_has_at_20_classes(num_classes):
    data = make_data(num_classes, 742)
    of_sgd = {"optimizer": "sgd", **ALL_LAYERS}
    rates = {
        "ResNet50": 0.02,
        "MobileNet": 0.005,
        "small_resnet": 0.1,
    }
    for backbone, rate in rates.items():
        run = resolved(data, backbone=backbone, **of_sgd)
        # The loss is a mean over B × C: its gradient for one logit is 1/C times as large.
        assert run.learning_rate / num_classes == pytest.approx(rate / 20)
    frozen = resolved(data, **{**of_sgd, "freeze_backbone": True})
    assert frozen.learning_rate / num_classes == pytest.approx(0.02 / 20)
    assert resolved(data, backbone="MobileNet", learning_rate=0.01, **of_sgd).learning_rate == 0.01


@pytest.mark.parametrize("method", ["two_way", "zlpr"])
def test_the_rate_of_a_loss_that_is_a_mean_over_examples_does_not_depend_on_the_classes(method):
    of_sgd = {"optimizer": "sgd", "backbone": "ResNet50", **ALL_LAYERS}
    for num_classes in (2, 371):
        run = resolved(make_data(num_classes, 742), method=method, **of_sgd)
        assert (run.learning_rate, run.backbone_rate) == (pytest.approx(0.02), 1.0)


def test_the_rate_below_the_head_rises_with_the_root_of_the_number_of_classes():
    def below_the_head(num_classes):
        run = resolved(make_data(num_classes, 400), **ALL_LAYERS)
        return run.learning_rate * run.backbone_rate

    assert below_the_head(80) == pytest.approx(2 * below_the_head(20))
    assert below_the_head(320) == pytest.approx(4 * below_the_head(20))
    assert resolved(**ALL_LAYERS).backbone_rate == 1.0
    assert resolved(make_data(5), **ALL_LAYERS).backbone_rate == 1.0


def test_adamw_has_rates_of_its_own_whatever_the_number_of_classes():
    for num_classes in (20, 371):
        data = make_data(num_classes, 400)
        run = resolved(data, optimizer="adamw", **ALL_LAYERS)
        assert (run.learning_rate, run.backbone_rate) == (1e-4, 1.0)
        assert (run.weight_decay, run.schedule) == (0.01, "cosine")
        given = resolved(make_data(num_classes, 400, num_features=3), **OF_TABLE)
        assert (given.optimizer, given.learning_rate) == ("adamw", 0.002)


def test_given_features_have_a_head_alone():
    run = resolved(make_data(num_examples=8000, num_features=3), method="erm", **OF_TABLE)
    assert (run.backbone, run.image_size, run.freeze_backbone) == ("none", None, True)
    assert (run.optimizer, run.schedule, run.epochs) == ("adamw", "cosine", None)
    assert run.steps == 8000 * 18 / 32
    assert resolved(make_data(num_features=3), **OF_TABLE).steps == 1000
    for name, value in {
        "backbone": "ResNet50",
        "image_size": 32,
        "freeze_backbone": False,
        "head_steps": 5,
        "backbone_options": {"alpha": 0.5},
    }.items():
        with pytest.raises(ConfigError, match=f"--{name} goes with images"):
            resolved(make_data(num_features=3), **{name: value}, **OF_TABLE)


def test_the_best_weights_are_kept_where_there_is_a_val_split():
    with_val = make_data(splits=("train", "val", "test"))
    assert resolved(with_val).keep == "best"
    assert resolved(with_val, keep="last").keep == "last"
    assert resolved().keep == "last"
    with pytest.raises(ConfigError, match="--keep=best compares epochs on a val split"):
        resolved(keep="best")
    with pytest.raises(ConfigError, match="--patience goes with --keep=best"):
        resolved(with_val, keep="last", patience=3)


def test_the_head_first_and_then_all_layers_more_slowly():
    run = resolved(backbone="MobileNet", head_steps=300, steps=50, **OF_TABLE)
    assert not run.freeze_backbone
    assert (run.optimizer, run.learning_rate) == ("sgd", pytest.approx(0.002))
    head = head_stage(run)
    assert (head.optimizer, head.learning_rate, head.steps) == ("adamw", 0.002, 300)
    assert (
        head_stage(
            resolved(backbone="MobileNet", head_steps=300, head_rate=0.01, **OF_TABLE)
        ).learning_rate
        == 0.01
    )
    with pytest.raises(ConfigError, match="--head_steps trains the head before all layers"):
        resolved(head_steps=3, freeze_backbone=True, **OF_TABLE)


def test_fixed_features_are_in_float32():
    with pytest.raises(ConfigError, match="leave --precision out"):
        resolved(freeze_backbone=True, precision="mixed_bfloat16", **OF_TABLE)
    with pytest.raises(ConfigError, match="leave --precision out"):
        resolved(make_data(num_features=3), precision="mixed_float16", **OF_TABLE)


def test_a_run_that_goes_on_keeps_what_was_left_open():
    saved = resolved(method="erm", learning_rate=0.3, steps=7, optimizer="adamw", **ALL_LAYERS)
    # Other data would give other defaults.
    data = make_data(371, 742, splits=("train", "val", "test"))
    again = resolve(RunConfig.of(**OF_TABLE, run_dir=saved.run_dir), data, saved)
    assert again == saved
    features = resolved(make_data(num_features=3), **OF_TABLE)
    assert resolve(RunConfig.of(**OF_TABLE), make_data(num_features=3), features) == features
