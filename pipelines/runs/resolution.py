"""What a run does where no flag says otherwise, since data, method and network decide it."""

import dataclasses
from collections.abc import Sequence

from dbl_tf import hub, methods, models, names, settings
from dbl_tf.parameters import LossParameters
from pipelines import datasets
from pipelines.datasets.source import Defaults
from pipelines.examples import LabelledData
from pipelines.runs import config as run_config
from pipelines.runs.config import (
    AUTO,
    DEFAULT_METHOD,
    NO_WEIGHTS,
    ConfigError,
    ResolvedConfig,
    RunConfig,
)

# A head on fixed features is trained on so many times its examples, whatever the sampler draws, and
# at least for so many steps.
HEAD_PASSES = 18
MIN_HEAD_STEPS = 1000
DEFAULT_WEIGHT_DECAY = {"sgd": 1e-4, "adamw": 0.01}
# After a stage of the head, all layers are trained at this share of their usual rate.
RATE_AFTER_HEAD = 0.4
# Settings of the network from images to features.
_OF_IMAGES = (
    "backbone",
    "backbone_weights",
    "backbone_options",
    "backbone_rate",
    "frozen_layers",
    "image_size",
    "full_decoding",
    "freeze_backbone",
    "head_steps",
)


def with_default_method(asked: RunConfig, data: LabelledData) -> RunConfig:
    """Leaves the method to cross-validation where the head alone is trained on your own data.

    Which method is best there depends on the data by several points of mAP, and a head is trained
    in seconds. A sampler or parameters of a loss that are given are those of `DEFAULT_METHOD`.

    Args:
        asked: the configuration of a new run. If it has a method, it is returned as it is.
        data: the data of the run.

    Raises:
        ConfigError: see `resolve`.
    """
    says_how = asked.sampler is not None or asked.loss != LossParameters()
    if asked.method is not None or says_how or len(data.splits["train"]) < asked.folds:
        return asked
    resolved = resolve(asked.with_settings(method=DEFAULT_METHOD, learning_rate=None), data)
    is_own = datasets.SOURCES[asked.dataset].defaults.freeze_backbone
    has_features = resolved.image_size is None or resolved.has_trained_backbone
    if not is_own or not resolved.freeze_backbone or not has_features:
        return asked
    return asked.with_settings(method=AUTO)


@dataclasses.dataclass(frozen=True)
class Backbone:
    """The network from images to features that a run asks for, whatever its data hold.

    Attributes:
        name: its name.
        weights: its initial weights.
        image_size: the side of its images.
        is_pretrained: whether it starts from weights that have been trained.
        frozen_layers: the prefixes of the names of layers that are not trained.
    """

    name: str
    weights: str
    image_size: int
    is_pretrained: bool
    frozen_layers: tuple[str, ...]

    @classmethod
    def of(cls, asked: RunConfig) -> "Backbone":
        """Returns the network of a run on images."""
        defaults = datasets.SOURCES[asked.dataset].defaults
        weights = asked.backbone_weights or _usual_weights(asked.backbone, defaults)
        name = hub.absolute(
            asked.backbone
            or (defaults.backbone if weights == defaults.backbone_weights else "ResNet50")
        )
        own_size = hub.image_size(name) if names.is_hub(name) else None
        image_size = asked.image_size or own_size or defaults.image_size
        assert image_size is not None
        is_pretrained = weights != NO_WEIGHTS or asked.init_from is not None
        frozen_layers = (
            models.default_frozen_layers(name, is_pretrained)
            if asked.frozen_layers is None
            else tuple(asked.frozen_layers)
        )
        return cls(name, weights, image_size, is_pretrained, frozen_layers)


def resolve(
    asked: RunConfig,
    data: LabelledData,
    saved: ResolvedConfig | None = None,
    chosen: Sequence[str] = (),
) -> ResolvedConfig:
    """Replaces None by the defaults of data, method and network.

    Args:
        asked: the configuration as it was asked for.
        data: the data of the run.
        saved: the configuration of the run that goes on, whose values take the place of the
            defaults; None for a new run.
        chosen: the names of settings that cross-validation has chosen.

    Raises:
        ConfigError: a file of initial weights does not exist, or a setting does not go with the
            data or with another setting.
    """
    asked.check_files()
    run_dir = str(asked.directory)  # its name does not follow a method that is filled in
    if saved is not None:
        asked = _adopt(asked, saved)
    source = datasets.SOURCES[asked.dataset]
    defaults = source.defaults
    train = data.splits["train"]
    if asked.left_to_choice():
        raise ConfigError(f"{asked.left_to_choice()[0]} is still to be chosen")
    method = asked.method or DEFAULT_METHOD
    sampler = asked.sampler or methods.get(method).sampler
    rate_classes = methods.get(method).classes_of_rate(len(data.class_names))

    if train.features is not None:
        _refuse_image_settings(asked)
        backbone, weights = names.NO_BACKBONE, NO_WEIGHTS
        image_size: int | None = None
        frozen_layers: tuple[str, ...] = ()
        freeze = full_decoding = True
        scale_features = asked.scale_features is not False
    else:
        if asked.scale_features:
            raise ConfigError("--scale_features goes with features, and the examples are images")
        scale_features = False
        found = Backbone.of(asked)
        backbone, weights, image_size = found.name, found.weights, found.image_size
        frozen_layers = found.frozen_layers
        full_decoding = (
            defaults.full_decoding if asked.full_decoding is None else asked.full_decoding
        )
        freeze = (
            defaults.freeze_backbone and found.is_pretrained and not asked.head_steps
            if asked.freeze_backbone is None
            else asked.freeze_backbone
        )
    is_own_head = freeze and defaults.freeze_backbone
    optimizer = asked.optimizer or ("adamw" if is_own_head else "sgd")

    epochs, steps = asked.epochs, asked.steps
    if epochs is None and steps is None:
        if is_own_head:
            steps = default_head_steps(len(train), asked.batch_size)
        elif defaults.steps is not None:
            steps = defaults.steps
        else:
            epochs = methods.schedule_of(sampler).epochs
    has_val = "val" in data.splits
    keep = asked.keep or ("best" if has_val else "last")
    if keep == "best" and not has_val:
        raise ConfigError(
            "--keep=best compares epochs on a val split, which the data do not have; pass "
            "--val_fraction=0.1, or --keep=last"
        )
    if asked.patience is not None and keep != "best":
        raise ConfigError("--patience goes with --keep=best")
    if asked.head_steps and freeze:
        raise ConfigError(
            "--head_steps trains the head before all layers; it does not go with "
            "--freeze_backbone, which trains the head alone"
        )
    if freeze and asked.precision != "float32":
        raise ConfigError(
            "a head on fixed features is trained in float32; leave --precision out, or pass "
            "--nofreeze_backbone"
        )
    absolute = asked.with_absolute_paths()
    shared = {
        field.name: getattr(absolute, field.name)
        for field in dataclasses.fields(run_config.SharedConfig)
    }
    return ResolvedConfig(
        **shared,
        method=method,
        sampler=sampler,
        backbone=backbone,
        backbone_weights=weights if image_size is None else absolute.backbone_weights or weights,
        frozen_layers=frozen_layers,
        image_size=image_size,
        full_decoding=full_decoding,
        scale_features=scale_features,
        freeze_backbone=freeze,
        epochs=epochs,
        steps=steps,
        optimizer=optimizer,
        schedule=asked.schedule or ("cosine" if optimizer == "adamw" else "step"),
        learning_rate=float(asked.learning_rate)
        if asked.learning_rate
        else models.default_learning_rate(
            backbone, rate_classes, frozen=freeze, optimizer=optimizer
        )
        * (RATE_AFTER_HEAD if asked.head_steps else 1.0),
        head_rate=(asked.head_rate or models.ADAMW_HEAD_RATE) if asked.head_steps else None,
        backbone_rate=models.default_backbone_rate(rate_classes, optimizer)
        if asked.backbone_rate is None
        else asked.backbone_rate,
        weight_decay=DEFAULT_WEIGHT_DECAY[optimizer]
        if asked.weight_decay is None
        else asked.weight_decay,
        keep=keep,
        calibrate=True if asked.calibrate is None else asked.calibrate,
        warmup_steps=asked.warmup_steps,
        run_dir=run_dir,
        chosen=tuple(saved.chosen if saved is not None else chosen),
    )


def _usual_weights(backbone: str | None, defaults: Defaults) -> str:
    if names.is_hub(backbone):
        return names.HUB_PRESET
    return NO_WEIGHTS if backbone == names.SMALL_RESNET else defaults.backbone_weights


def head_stage(config: ResolvedConfig) -> ResolvedConfig:
    """Returns the configuration of the stage of `head_steps`, which trains the head alone."""
    assert config.head_rate is not None
    return dataclasses.replace(
        config,
        steps=config.head_steps,
        epochs=None,
        optimizer="adamw",
        schedule="cosine",
        learning_rate=config.head_rate,
        weight_decay=DEFAULT_WEIGHT_DECAY["adamw"],
        ema=0.0,
        keep="last",
        patience=None,
        warmup_steps=None,
    )


def head_alone(config: ResolvedConfig, num_examples: int) -> ResolvedConfig:
    """Returns the configuration of a head on fixed features in place of a run of all layers.

    Args:
        config: the configuration of a run. One that trains the head alone is returned as it is.
        num_examples: the number of training examples.
    """
    if config.freeze_backbone:
        return config
    num_steps = config.head_steps or default_head_steps(num_examples, config.batch_size)
    rate = config.head_rate or models.ADAMW_HEAD_RATE
    stage = dataclasses.replace(config, head_steps=num_steps, head_rate=rate, precision="float32")
    return dataclasses.replace(head_stage(stage), freeze_backbone=True, head_steps=0)


def default_head_steps(num_examples: int, batch_size: int) -> int:
    """Returns the number of steps for which a head on fixed features is trained by default."""
    return max(MIN_HEAD_STEPS, -(-HEAD_PASSES * num_examples // batch_size))


def _adopt(asked: RunConfig, saved: ResolvedConfig) -> RunConfig:
    """Fills in what was left open, or to a choice, with what a run that goes on has."""
    taken = [name for name in asked.left_to_choice() if name in saved.chosen]
    asked = asked.with_settings(**dict.fromkeys(taken))
    kept = {"run_dir", "checkpoint_every"}
    if asked.epochs is not None or asked.steps is not None:
        kept |= {"epochs", "steps"}
    if saved.image_size is None:
        kept |= set(_OF_IMAGES)
    names = [field.name for field, _ in settings.settings_of(RunConfig)]
    adopted = [name for name in names if getattr(asked, name) is None and name not in kept]
    return dataclasses.replace(asked, **{name: getattr(saved, name) for name in adopted})


def _refuse_image_settings(asked: RunConfig) -> None:
    fields = {field.name: field for field, _ in settings.settings_of(RunConfig)}
    for name in _OF_IMAGES:
        if getattr(asked, name) != settings.default_of(fields[name]):
            raise ConfigError(
                f"--{settings.flag_name(fields[name])} goes with images, and the examples of "
                f"--dataset={asked.dataset} are features"
            )
