"""The configuration of a run: one frozen, validated record, made from flags or in code."""

import ast
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from dbl_tf import atomic, losses, methods, models, training
from pipelines import datasets, sampling
from pipelines.datasets import image_checks

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
REBALANCE_PLACES = ("pipeline", "loss")
IMAGENET, NO_WEIGHTS = "imagenet", "none"

# What some data sets cannot do without.
_NEEDED_BY = {
    "table": {"examples": "a CSV or JSON-lines file"},
    "tfds": {
        "tfds_name": "the name of a data set of TensorFlow Datasets",
        "label_feature": "the name of its feature that holds the labels",
    },
    "shards": {"shards_dir": "a folder that python -m pipelines.write_shards wrote"},
}
_BENCHMARKS = ("voc_mlt", "coco_mlt")
_FROM_TFDS = (*_BENCHMARKS, "tfds")


class ConfigError(ValueError):
    """A value that a run cannot be started with; the message names the flag."""


def _setting(
    default: Any,
    description: str,
    *,
    choices: Sequence[str] | None = None,
    only: Sequence[str] = (),
    path: bool = False,
) -> Any:
    """A field that is also a flag (`pipelines.run_flags`).

    Args:
        default: where nothing is said.
        description: what it means.
        choices: the only values.
        only: data sets that take it; all if empty.
        path: whether it names a file or folder.
    """
    metadata = {"description": description, "choices": choices, "only": only, "path": path}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which labelled images, and how they are checked before anything long is started."""

    dataset: str = _setting(
        "digits_mlt", "Where images and labels come from.", choices=datasets.NAMES
    )
    examples: str | None = _setting(
        None, "CSV or JSON lines of image, split, labels.", only=("table",), path=True
    )
    images_dir: str | None = _setting(
        None,
        "Where relative image paths start; the folder of --examples if not given.",
        only=("table",),
        path=True,
    )
    class_names: str | None = _setting(
        None, "Text file with a class on each line, in their order.", only=("table",), path=True
    )
    label_separator: str | None = _setting(
        None, "What stands between labels; | where there is one, else spaces.", only=("table",)
    )
    data_dir: str | None = _setting(
        None,
        "Folder that holds VOCdevkit or coco, or that of TensorFlow Datasets, whose default holds "
        "if not given.",
        only=_FROM_TFDS,
        path=True,
    )
    image_ids: str | None = _setting(
        None,
        "Text file with the ids of the training images; drawn anew if not given.",
        only=_BENCHMARKS,
        path=True,
    )
    download: bool = _setting(
        False, "Let TensorFlow Datasets download what is not there.", only=_FROM_TFDS
    )
    tfds_name: str | None = _setting(None, "Name of the data set.", only=("tfds",))
    label_feature: str | None = _setting(None, "The feature with the labels.", only=("tfds",))
    image_feature: str | None = _setting(
        None, "The feature with the image; not needed where there is one.", only=("tfds",)
    )
    train_split: str = _setting("train", "What to train on.", only=("tfds",))
    val_split: str | None = _setting(None, "What to validate on.", only=("tfds",))
    test_split: str = _setting("test", "What to test on.", only=("tfds",))
    shards_dir: str | None = _setting(
        None, "Folder that python -m pipelines.write_shards wrote.", only=("shards",), path=True
    )
    check_images: str = _setting(
        "all",
        "How images are checked first: decoded, by their header, or by their name.",
        choices=image_checks.LEVELS,
    )
    skip_bad_images: bool = _setting(
        False, "Drop and count images that fail the check, instead of refusing them."
    )
    val_fraction: float = _setting(0.0, "Share of the training images that is set aside as val.")
    data_seed: int = _setting(0, "Of what is drawn when data are made or split.")
    cache_dir: str | None = _setting(
        None, "For what other runs can use: checked files, features; ~/.cache/dbl_tf if not given."
    )

    @property
    def data_name(self) -> str:
        """What a person calls the data: the folder of a table or of shards, a name elsewhere."""
        if self.dataset == "table":
            return os.path.basename(os.path.dirname(os.path.abspath(self.examples)))
        if self.dataset == "shards":
            return os.path.basename(os.path.abspath(self.shards_dir))
        return self.tfds_name or self.dataset

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, only = getattr(self, field.name), field.metadata["only"]
            choices = field.metadata["choices"]
            if choices is not None and value is not None and value not in choices:
                raise ConfigError(
                    f"--{flag_name(field)} must be one of {', '.join(choices)}; got {value!r}"
                )
            if only and self.dataset not in only and value != field.default:
                raise ConfigError(
                    f"--{flag_name(field)} goes with --dataset={' or '.join(only)}, not "
                    f"{self.dataset}"
                )
        for name, what in _NEEDED_BY.get(self.dataset, {}).items():
            if not getattr(self, name):
                raise ConfigError(f"--dataset={self.dataset} needs --{name}, {what}")
        _in_range("data_seed", self.data_seed, 0 <= self.data_seed < 2**32, "in [0, 2^32)")
        _in_range("val_fraction", self.val_fraction, 0 <= self.val_fraction < 1, "in [0, 1)")

    @property
    def cache_path(self) -> pathlib.Path:
        """`cache_dir`, or the user's cache folder."""
        default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dbl_tf")
        return pathlib.Path(self.cache_dir or default).expanduser()


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(DataConfig):
    """Everything that decides a training run. None means: as the method or the data have it."""

    method: str = _setting("db_focal", "What is trained.", choices=tuple(methods.METHODS))
    sampler: str | None = _setting(
        None, "How examples are drawn; as the method says if not given.", choices=sampling.NAMES
    )
    alpha: float = _setting(0.1, "α of Eq. 4, a lift of all weights.")
    beta: float = _setting(10.0, "β of Eq. 4, the slope of the weights.")
    mu: float = _setting(0.2, "μ of Eq. 4, where the weights are half way.")
    lambda_: float = _setting(2.0, "λ of Eq. 7, the tolerance of negatives.")
    kappa: float = _setting(0.05, "κ of Eq. 9, the scale of the margins.")
    margin: str = _setting(
        "paper", "How ν enters: as printed, or ν/λ as in the released code.", choices=losses.MARGINS
    )
    word_vectors: str | None = _setting(
        None,
        "Text file of word vectors (a word and its numbers on each line) for the labels of ml_gcn; "
        "one-hot if not given.",
        path=True,
    )
    rebalance_in: str = _setting(
        "pipeline", "Where weights are computed; no figure depends on it.", choices=REBALANCE_PLACES
    )
    allow_empty_classes: bool = _setting(False, "Accept classes without training images.")
    backbone: str | None = _setting(
        None, "The network below the head.", choices=tuple(models.backbone_names())
    )
    backbone_options: Mapping[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata={
            "description": "Further arguments of the network, name=value,name=value.",
            "choices": None,
            "only": (),
            "path": False,
        },
    )
    backbone_weights: str | None = _setting(None, "imagenet, none, or a file.")
    frozen_layers: Sequence[str] | None = _setting(
        None, "Prefixes of backbone layers that do not train."
    )
    freeze_backbone: bool = _setting(
        False, "Train the head alone, on features that are computed once."
    )
    init_from: str | None = _setting(
        None, "Run directory or .keras file whose weights the run starts from.", path=True
    )
    image_size: int | None = _setting(None, "Side of the square images that the network sees.")
    flip_probability: float | None = _setting(None, "How often a training image is mirrored.")
    batch_size: int = _setting(32, "Images of a step, over all replicas.")
    epochs: int | None = _setting(None, "To train; as the method has it if not given.")
    steps: int | None = _setting(None, "To train, instead of epochs.")
    learning_rate: float | None = _setting(
        None, "After warm-up; as the backbone bears it if not given."
    )
    warmup_steps: int | None = _setting(
        None, "Of the learning rate; a tenth of the steps, 500 at most, if not given."
    )
    momentum: float = _setting(0.9, "Of SGD.")
    weight_decay: float = _setting(1e-4, "Coupled, of every trainable variable.")
    seed: int = _setting(0, "Of weights, sampling, augmentation and dropout.")
    precision: str = _setting("float32", "Keras's policy of the network.", choices=PRECISIONS)
    xla: bool = _setting(
        False, "Compile the training step with XLA, which draws other dropout masks; on one device."
    )
    strategy: str = _setting("auto", "Devices used.", choices=training.STRATEGIES)
    checkpoint_every: int | None = _setting(
        None, "Steps between checkpoints; every epoch's end has one anyway."
    )
    run_dir: str | None = _setting(
        None, "Where everything is written; runs/DATASET-METHOD if not given."
    )
    export: bool = _setting(True, "Write a SavedModel.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.word_vectors is not None:
            if methods.get(self.method).classifier != "graph":
                raise ConfigError(f"--word_vectors goes with --method=ml_gcn, not {self.method}")
            if not os.path.isfile(self.word_vectors):
                raise ConfigError(f"--word_vectors: there is no file {self.word_vectors}")
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
            for name in (field.name for field in dataclasses.fields(self) if field.metadata["path"])
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
            learning_rate=self.learning_rate
            or models.default_learning_rate(backbone, frozen=self.freeze_backbone),
            epochs=epochs,
            steps=steps,
            run_dir=self.run_dir or os.path.join("runs", f"{self.dataset}-{self.method}"),
        )

    def unused(self) -> list[str]:
        """Flags of the paper's parameters that are given and that the method has no use for."""
        parameters = ("alpha", "beta", "mu", "lambda_", "kappa", "margin")
        return [
            f"--{flag_name(field)}"
            for field in dataclasses.fields(self)
            if field.name in parameters
            and field.name not in methods.get(self.method).parameters
            and getattr(self, field.name) != field.default
        ]

    def save(self, path: str | os.PathLike) -> None:
        """Writes the configuration as JSON."""
        content = json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1)
        with atomic.replacing(path) as beside:
            beside.write_text(content, encoding="utf-8")

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
        ignored = {"run_dir", "cache_dir", "check_images", "export", "checkpoint_every", "download"}
        return [
            f"--{flag_name(field)}: {getattr(self, field.name)!r} there, "
            f"{getattr(other, field.name)!r} now"
            for field in dataclasses.fields(self)
            if field.name not in ignored and getattr(self, field.name) != getattr(other, field.name)
        ]


def flag_name(field: dataclasses.Field) -> str:
    """The name of a field without what keeps it apart from a word of Python."""
    return field.name.rstrip("_")


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


def _in_range(flag: str, value: Any, holds: bool, condition: str) -> None:
    if not holds:
        raise ConfigError(f"--{flag} must be {condition}; got {value}")
