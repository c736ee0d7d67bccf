"""The configuration of a run: one frozen, validated record, made from flags or in code."""

import ast
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dbl_tf import losses, methods, models, training
from pipelines import datasets, sampling
from pipelines.datasets import image_files

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
REBALANCE_PLACES = ("pipeline", "loss")
IMAGENET, NO_WEIGHTS = "imagenet", "none"


# Fields that some data sets take, and what they cannot do without.
_TAKEN_BY = {
    "table": ("examples", "images_dir", "class_names", "label_separator"),
    "voc_mlt": ("data_dir", "image_ids", "download"),
    "coco_mlt": ("data_dir", "image_ids", "download"),
    "tfds": (
        *("tfds_name", "label_feature", "image_feature", "data_dir", "download"),
        *("train_split", "val_split", "test_split"),
    ),
    "shards": ("shards_dir",),
}
_NEEDED_BY = {
    "table": {"examples": "a CSV or JSON-lines file"},
    "tfds": {
        "tfds_name": "the name of a data set of TensorFlow Datasets",
        "label_feature": "the name of its feature that holds the labels",
    },
    "shards": {"shards_dir": "a folder that python -m pipelines.write_shards wrote"},
}
_PATHS = ("examples", "images_dir", "class_names", "data_dir", "image_ids", "shards_dir")


class ConfigError(ValueError):
    """A value that a run cannot be started with; the message names the flag."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which labelled images, and how they are checked before anything long is started.

    Attributes:
        dataset: name of a data set of `pipelines.datasets`.
        examples: of `table`, the CSV or JSON-lines file.
        images_dir: of `table`, where relative image paths start; the folder of `examples` if None.
        class_names: of `table`, a text file with a class on each line, in their order.
        label_separator: of `table`, what stands between labels.
        data_dir: of `voc_mlt` and `coco_mlt`, the folder that holds VOCdevkit or coco; of these and
            `tfds`, the folder of TensorFlow Datasets, whose default holds if None.
        image_ids: of `voc_mlt` and `coco_mlt`, a text file with the ids of the training images.
        download: whether TensorFlow Datasets may download what is not there.
        tfds_name: of `tfds`, the name of the data set.
        label_feature: of `tfds`, the feature with the labels.
        image_feature: of `tfds`, the feature with the image; may be None where there is one.
        train_split: of `tfds`, likewise val_split and test_split; val_split may be None.
        shards_dir: of `shards`, the folder that `pipelines.write_shards` wrote.
        check_images: "all" decodes every image, "header" reads its header, "exists" its name.
        skip_bad_images: whether images that fail the check are dropped and counted, not refused.
        val_fraction: share of the training examples that is set aside as `val`.
        data_seed: of what is drawn when the data are made or split.
        cache_dir: where results are kept that other runs can use: checked files, features.
    """

    dataset: str = "digits_mlt"
    examples: str | None = None
    images_dir: str | None = None
    class_names: str | None = None
    label_separator: str | None = None
    data_dir: str | None = None
    image_ids: str | None = None
    download: bool = False
    tfds_name: str | None = None
    label_feature: str | None = None
    image_feature: str | None = None
    train_split: str = "train"
    val_split: str | None = None
    test_split: str = "test"
    shards_dir: str | None = None
    check_images: str = "all"
    skip_bad_images: bool = False
    val_fraction: float = 0.0
    data_seed: int = 0
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        _one_of("dataset", self.dataset, datasets.NAMES)
        _one_of("check_images", self.check_images, image_files.LEVELS)
        for name, what in _NEEDED_BY.get(self.dataset, {}).items():
            if not getattr(self, name):
                raise ConfigError(f"--dataset={self.dataset} needs --{name}, {what}")
        defaults = {field.name: field.default for field in dataclasses.fields(DataConfig)}
        for name in dict.fromkeys(name for taken in _TAKEN_BY.values() for name in taken):
            takers = [dataset for dataset, taken in _TAKEN_BY.items() if name in taken]
            if self.dataset not in takers and getattr(self, name) != defaults[name]:
                raise ConfigError(
                    f"--{name} goes with --dataset={' or '.join(takers)}, not {self.dataset}"
                )
        _in_range("data_seed", self.data_seed, 0 <= self.data_seed < 2**32, "in [0, 2^32)")
        _in_range("val_fraction", self.val_fraction, 0 <= self.val_fraction < 1, "in [0, 1)")

    @property
    def cache_path(self) -> pathlib.Path:
        """`cache_dir`, or the user's cache folder."""
        default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dbl_tf")
        return pathlib.Path(self.cache_dir or default).expanduser()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(DataConfig):
    """Everything that decides a training run. None means: as the method or the data set has it.

    Attributes:
        method: name of a method of `dbl_tf.methods.METHODS`.
        sampler: "uniform", "class_aware" or "class_cycle".
        alpha: α of Eq. 4.
        beta: β of Eq. 4.
        mu: μ of Eq. 4.
        lambda_: λ of Eq. 7.
        kappa: κ of Eq. 9.
        margin: "paper" or "released", how ν enters.
        rebalance_in: "pipeline" or "loss", where r̂ is computed; no figure depends on it.
        allow_empty_classes: whether classes without training examples are allowed.
        backbone: "small_resnet" or a network of `keras.applications`.
        backbone_options: further arguments of the network.
        backbone_weights: "imagenet", "none", or a file.
        frozen_layers: prefixes of backbone layers that do not train.
        freeze_backbone: whether features are computed once and only the head trains.
        init_from: run directory or `.keras` file whose weights the run starts from.
        image_size: S, the side of the square images that the network sees.
        flip_probability: how often a training image is mirrored.
        batch_size: B, over all replicas.
        epochs: to train.
        steps: to train, instead of epochs.
        learning_rate: after warm-up; that of `dbl_tf.models.default_learning_rate` if None.
        warmup_steps: of the learning rate.
        momentum: of SGD.
        weight_decay: coupled, of every trainable variable.
        seed: of weights, sampling, augmentation and dropout.
        precision: Keras's policy.
        strategy: "auto", "one_device", "mirrored" or "multi_worker".
        checkpoint_every: steps between checkpoints; every epoch's end has one anyway.
        run_dir: where everything is written.
        export: whether a SavedModel is written.
    """

    method: str = "db_focal"
    sampler: str | None = None
    alpha: float = 0.1
    beta: float = 10.0
    mu: float = 0.2
    lambda_: float = 2.0
    kappa: float = 0.05
    margin: str = "paper"
    rebalance_in: str = "pipeline"
    allow_empty_classes: bool = False
    backbone: str | None = None
    backbone_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    backbone_weights: str | None = None
    frozen_layers: Sequence[str] | None = None
    freeze_backbone: bool = False
    init_from: str | None = None
    image_size: int | None = None
    flip_probability: float | None = None
    batch_size: int = 32
    epochs: int | None = None
    steps: int | None = None
    learning_rate: float | None = None
    warmup_steps: int | None = None
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0
    precision: str = "float32"
    strategy: str = "auto"
    checkpoint_every: int | None = None
    run_dir: str | None = None
    export: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("method", self.method, methods.METHODS)
        _one_of("margin", self.margin, losses.MARGINS)
        _one_of("rebalance_in", self.rebalance_in, REBALANCE_PLACES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("strategy", self.strategy, training.STRATEGIES)
        if self.sampler is not None:
            _one_of("sampler", self.sampler, sampling.SAMPLERS)
        if self.backbone is not None:
            _one_of("backbone", self.backbone, models.backbone_names())
        if self.freeze_backbone and self.precision != "float32":
            raise ConfigError(
                "--freeze_backbone computes its features in float32; leave --precision out"
            )
        finite = {"mu": self.mu, "kappa": self.kappa}
        for name, value in finite.items():
            _in_range(name, value, math.isfinite(value), "a finite number")
        at_least_zero = {"alpha": self.alpha, "weight_decay": self.weight_decay}
        for name, value in at_least_zero.items():
            _in_range(name, value, 0 <= value < math.inf, "at least 0")
        _in_range("seed", self.seed, 0 <= self.seed < 2**32, "in [0, 2^32)")
        _in_range("momentum", self.momentum, 0 <= self.momentum < 1, "in [0, 1)")
        positive = {
            "beta": self.beta,
            "lambda": self.lambda_,
            "batch_size": self.batch_size,
            "image_size": self.image_size,
            "epochs": self.epochs,
            "steps": self.steps,
            "learning_rate": self.learning_rate,
            "checkpoint_every": self.checkpoint_every,
        }
        for name, value in positive.items():
            if value is not None:
                _in_range(name, value, 0 < value < math.inf, "greater than 0")
        if self.warmup_steps is not None:
            _in_range("warmup_steps", self.warmup_steps, self.warmup_steps >= 0, "at least 0")
        if self.flip_probability is not None:
            probability = self.flip_probability
            _in_range("flip_probability", probability, 0 <= probability <= 1, "in [0, 1]")
        if self.epochs is not None and self.steps is not None:
            raise ConfigError("--epochs and --steps both say how long to train; give one of them")

    def resolved(self) -> "RunConfig":
        """The configuration with the values of method and data set in place of None.

        What depends on the data themselves stays None: warm-up steps, and whether images are
        mirrored.

        Raises:
            ConfigError: files to start from that do not exist.
        """
        defaults = datasets.DEFAULTS[self.dataset]
        weights = self.backbone_weights or (
            NO_WEIGHTS if self.backbone == models.SMALL_RESNET else defaults.backbone_weights
        )
        if weights not in (IMAGENET, NO_WEIGHTS) and not os.path.isfile(weights):
            raise ConfigError(
                f"--backbone_weights must be {IMAGENET}, {NO_WEIGHTS} or a file; there is no file "
                f"{weights}"
            )
        if self.init_from is not None and not os.path.exists(self.init_from):
            raise ConfigError(f"--init_from: there is no {self.init_from}")
        backbone = self.backbone or (
            defaults.backbone if weights == defaults.backbone_weights else "ResNet50"
        )
        sampler = self.sampler or methods.get(self.method).sampler
        frozen = self.frozen_layers
        if frozen is None:
            frozen = models.default_frozen_layers(
                backbone, weights != NO_WEIGHTS or self.init_from is not None
            )
        epochs, steps = self.epochs, self.steps
        if epochs is None and steps is None:
            steps = defaults.steps
            epochs = methods.schedule_of(sampler).epochs if steps is None else None
        paths = {
            name: os.path.abspath(os.path.expanduser(getattr(self, name)))
            for name in (*_PATHS, "init_from")
            if getattr(self, name) is not None
        }
        if weights not in (IMAGENET, NO_WEIGHTS):
            weights = os.path.abspath(weights)
        return dataclasses.replace(
            self,
            **paths,
            sampler=sampler,
            backbone=backbone,
            backbone_weights=weights,
            backbone_options=dict(self.backbone_options),
            frozen_layers=tuple(frozen),
            image_size=self.image_size or defaults.image_size,
            learning_rate=self.learning_rate or models.default_learning_rate(backbone),
            epochs=epochs,
            steps=steps,
            run_dir=self.run_dir or os.path.join("runs", f"{self.dataset}-{self.method}"),
        )

    def save(self, path: str | os.PathLike) -> None:
        """Writes the configuration as JSON."""
        content = json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)
        incomplete = pathlib.Path(f"{path}.incomplete")
        incomplete.write_text(content, encoding="utf-8")
        os.replace(incomplete, path)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "RunConfig":
        """Reads what `save` wrote."""
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        unknown = set(content) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ConfigError(f"{path} has fields of another version: {sorted(unknown)}")
        content["frozen_layers"] = tuple(content["frozen_layers"])
        return cls(**content)

    def differences(self, other: "RunConfig") -> list[str]:
        """Fields in which two runs differ and that decide what is trained, as readable lines."""
        ignored = {"run_dir", "cache_dir", "check_images", "export", "checkpoint_every"}
        return [
            f"--{field.name.rstrip('_')}: {getattr(self, field.name)!r} there, "
            f"{getattr(other, field.name)!r} now"
            for field in dataclasses.fields(self)
            if field.name not in ignored and getattr(self, field.name) != getattr(other, field.name)
        ]


def parse_options(text: str) -> dict[str, Any]:
    """Reads `name=value,name=value`, values as Python literals, for `--backbone_options`.

    Raises:
        ConfigError: a part that is not of this form.
    """
    options = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        try:
            if not (equals and name.isidentifier()):
                raise ValueError
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise ConfigError(
                f"--backbone_options takes name=value,name=value with numbers, True, False, None "
                f"or quoted text as values; {part!r} is not of that form"
            ) from None
    return options


def _one_of(flag: str, value: str, choices: Any) -> None:
    if value not in choices:
        raise ConfigError(f"--{flag} must be one of {', '.join(choices)}; got {value!r}")


def _in_range(flag: str, value: Any, holds: bool, condition: str) -> None:
    if not holds:
        raise ConfigError(f"--{flag} must be {condition}; got {value}")
