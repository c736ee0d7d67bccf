"""The configuration of a run, as it is requested and with all defaults resolved."""

import ast
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import msgspec

from dbl_tf import methods, names, saved_json, settings
from dbl_tf.messages import did_you_mean
from dbl_tf.parameters import LossParameters
from dbl_tf.settings import (
    AT_LEAST_TWO,
    FRACTION_BELOW_ONE,
    NON_NEGATIVE,
    POSITIVE,
    SEED,
    Range,
    flag_name,
    setting,
)
from pipelines import datasets, locations, sampling
from pipelines.datasets import LoadOptions, SourceOptions
from pipelines.images import Augmentation

if TYPE_CHECKING:
    from pipelines.examples import LabelledData

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
REBALANCE_MODES = ("sample_weight", "labels")
IMAGENET, NO_WEIGHTS = "imagenet", "none"
OPTIMIZERS, SCHEDULES, KEPT = ("sgd", "adamw"), ("step", "cosine"), ("last", "best")
DEFAULT_METHOD, AUTO = "db_focal", "auto"
# What runs are compared on: folds of the training split, the val split or the test split.
JUDGES = ("cv", "val", "test")
CRITERIA = ("total", "tail", "macro_f1")

# Names of settings in earlier versions, which flags and `config.json` still accept: the present
# names, and the present values for the old ones.
RENAMED: dict[str, tuple[str, dict[Any, Any]]] = {
    "rebalance_in": ("rebalance", {"pipeline": "sample_weight", "loss": "labels"}),
    "allow_empty_classes": ("clamp_counts", {False: False, True: True}),
}
# What runs of version 1 of the format did, where their `config.json` does not hold these settings.
# A new setting of which earlier runs had another value than its default needs a new version.
_EARLIER = {
    "optimizer": "sgd",
    "schedule": "step",
    "keep": "last",
    "calibrate": False,
    "full_decoding": True,
    "scale_features": False,
    "frozen_layers": (),
    "chosen": (),
    "export_format": (names.SAVED_MODEL,),
}

# Paths of what is written, memory-mapped, or read by libraries that know no schemes.
_LOCAL = (
    "run_dir",
    "cache_dir",
    "shards_dir",
    "features",
    "image_ids",
    "init_from",
    "word_vectors",
)

_TOO_LARGE = 2**53
_BATCH_SIZES = Range(1, 2**24, words="greater than 0 and at most 2^24")

_Record = TypeVar("_Record", bound="DataConfig")
_Shared = TypeVar("_Shared", bound="SharedConfig")


class ConfigError(ValueError):
    """A setting with which a run cannot be started; the message names the flag."""


def _from_version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a `config.json` without a format under their present names."""
    content = dict(content)
    for old, (new, value_names) in RENAMED.items():
        if old in content:
            value = content.pop(old)
            if not isinstance(value, str | bool) or value not in value_names:
                raise ValueError(f"field {old} must be one of {[*value_names]}; got {value!r}")
            content.setdefault(new, value_names[value])
    return {**_EARLIER, **content}


_FORMAT = saved_json.Format(
    "dbl_tf.Config",
    "settings of a run",
    dict[str, Any],
    "restore it from a copy, or start again with another --run_dir",
    migrations={1: _from_version_1},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The labeled images of a run or an evaluation, and how they are checked beforehand.

    `DataConfig.of(dataset="table", examples="FILE.csv")` makes one from the names of settings.

    Attributes:
        dataset: the name of the data source.
        source: the options of this source.
        loading: the options that all sources have.
    """

    dataset: str = setting("digits_mlt", "Source of the labeled images.", choices=datasets.NAMES)
    source: SourceOptions
    loading: LoadOptions

    @classmethod
    def of(cls: type[_Record], **values: Any) -> _Record:
        """Makes a configuration from settings by name, including those of its nested records.

        Raises:
            ConfigError: a setting does not exist, does not go with the data source, is required but
                missing, or has a value with which a run cannot be started.
        """
        known = {field.name: field for field, _ in settings.settings_of(cls)}
        dataset = values.get("dataset", "digits_mlt")
        settings.check(cls, values, name_of=_flag, error=ConfigError)
        records = {"source": datasets.SOURCES[dataset].options, **records_of(cls)}
        for name in _LOCAL:
            if values.get(name) and locations.scheme_of(values[name]):
                raise ConfigError(f"--{name} must be a local path; got {values[name]!r}")
        own = {name: values.pop(name) for name in list(values) if name in known}
        held = {name: _make_record(record, dataset, values) for name, record in records.items()}
        for name, value in values.items():
            _check_foreign(name, value, dataset, _names_of(cls))
        return cls(**own, **held)

    def flat(self) -> dict[str, Any]:
        """Returns all settings by name, including those of nested records, as types of JSON."""
        return json.loads(json.dumps({name: value for _, name, value in self._settings()}))

    def with_settings(self: _Record, **values: Any) -> _Record:
        """Returns a copy in which the settings with these names have new values.

        Raises:
            ConfigError: see `of`.
        """
        return type(self).of(**{name: value for _, name, value in self._settings()} | values)

    def _settings(self) -> Iterator[tuple[dataclasses.Field, str, Any]]:
        for record in (
            self,
            *(getattr(self, name) for name in ("source", *records_of(type(self)))),
        ):
            for field, _ in settings.settings_of(record):
                yield field, field.name, getattr(record, field.name)

    def load_data(self, splits: Sequence[str] | None = None) -> "LabelledData":
        """Loads and checks the data; see `pipelines.datasets.load`."""
        return datasets.load(self.dataset, self.source, self.loading, splits)

    @property
    def data_name(self) -> str:
        """A short name of the data for people, such as the name of the folder of a table."""
        return self.source.data_name or self.dataset


@dataclasses.dataclass(frozen=True, kw_only=True)
class SharedConfig(DataConfig):
    """The settings whose defaults do not depend on others, which both configurations share."""

    loss: LossParameters
    augmentation: Augmentation
    word_vectors: str | None = setting(
        None,
        "Text file of word vectors (a word and its numbers on each line) for the labels of ml_gcn. "
        "The default is one-hot vectors.",
        is_path=True,
    )
    rebalance: str = setting(
        "sample_weight",
        "Where the weights of the loss are computed: in the input pipeline (sample_weight) or in "
        "the loss (labels). The results are equivalent up to rounding.",
        choices=REBALANCE_MODES,
    )
    clamp_counts: bool = setting(False, "Accept classes without training images.")
    backbone_options: Mapping[str, Any] = setting(
        {}, "Further arguments of the backbone: name=value,name=value."
    )
    init_from: str | None = setting(
        None, "Run directory or .keras file whose weights the run starts from.", is_path=True
    )
    batch_size: int = setting(32, "Images per step, over all replicas.", range=_BATCH_SIZES)
    momentum: float = setting(0.9, "Momentum of sgd.", range=FRACTION_BELOW_ONE)
    ema: float = setting(
        0.0,
        "Decay of a moving average of the weights, such as 0.999, which is evaluated and exported "
        "in place of the weights; 0 for none.",
        range=FRACTION_BELOW_ONE,
    )
    head_steps: int = setting(
        0,
        "Steps in which the head is trained on features that are computed once, before all layers "
        "are trained.",
        range=NON_NEGATIVE,
    )
    patience: int | None = setting(
        None,
        "Epochs without a higher val_map after which the training stops, with --keep=best.",
        range=POSITIVE,
    )
    seed: int = setting(
        0, "Seed of initial weights, sampling, augmentation and dropout.", range=SEED
    )
    precision: str = setting("float32", "Keras dtype policy of the network.", choices=PRECISIONS)
    xla: bool = setting(
        False,
        "Compile the training step with XLA, on one device. Dropout masks then differ.",
    )
    strategy: str = setting("auto", "Devices to train on.", choices=names.STRATEGIES)
    checkpoint_every: int | None = setting(
        None,
        "Steps between checkpoints, in addition to the one at the end of each epoch.",
        range=POSITIVE,
        affects_result=False,
    )
    export: bool = setting(True, "Write a SavedModel.", affects_result=False)
    accept_changed_data: bool = setting(
        False,
        "Continue a run whose data have changed since it was started. Its report says so.",
        affects_result=False,
    )
    new_version: bool = setting(
        False,
        "Write another version of the SavedModel where a finished run has one already.",
        affects_result=False,
    )
    export_format: Sequence[str] = setting(
        (names.SAVED_MODEL,),
        "Formats of the export: saved_model, onnx and litert. The last two need the extras of "
        "their names, are written next to the SavedModel, and are compared with it.",
        choices=(names.SAVED_MODEL, names.ONNX, names.LITERT),
        affects_result=False,
    )
    mlflow: str | None = setting(
        None,
        "Log the run to MLflow (extra mlflow): a tracking URI, such as http://HOST:5000, or a "
        "folder for its database mlflow.db and files.",
        is_path=True,
        affects_result=False,
    )
    mlflow_experiment: str | None = setting(
        None,
        "Experiment in MLflow. The default is that of the variable MLFLOW_EXPERIMENT_NAME, or the "
        "name of the data.",
        affects_result=False,
    )
    wandb: str | None = setting(
        None,
        "Log the run to this project, PROJECT or ENTITY/PROJECT, of Weights & Biases (extra "
        "wandb). The variable WANDB_MODE=offline writes to the run directory alone.",
        affects_result=False,
    )

    def with_absolute_paths(self: _Shared) -> _Shared:
        """Returns a copy whose paths are absolute, as those of a saved configuration are."""
        absolute = settings.with_absolute_paths(self, locations.absolute)
        if (backbone := getattr(self, "backbone", None)) and names.is_hub(backbone):
            from dbl_tf import hub

            absolute = dataclasses.replace(absolute, backbone=hub.absolute(backbone))
        source = settings.with_absolute_paths(self.source, locations.absolute)
        return dataclasses.replace(absolute, source=source)

    def _differing(self, saved: "SharedConfig") -> Iterator[tuple[str, str]]:
        """Yields the settings that affect the result and that a saved run has otherwise."""
        ours, theirs = self.flat(), saved.flat()
        fields = {name: field for field, name, _ in (*saved._settings(), *self._settings())}
        for name, field in fields.items():
            if settings.details_of(field).affects_result and ours.get(name) != theirs.get(name):
                yield name, f"{_flag(field)}: {theirs.get(name)!r} there, {ours.get(name)!r} now"

    def decisive(self) -> dict[str, Any]:
        """Returns the settings that affect the result, by their flags, as types of JSON."""
        flat = self.flat()
        return {
            _flag(field): flat[name]
            for field, name, _ in self._settings()
            if settings.details_of(field).affects_result
        }

    def save(self, path: str | os.PathLike) -> None:
        """Writes the configuration as JSON."""
        _FORMAT.write(path, self.flat(), indent=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResolvedConfig(SharedConfig):
    """All settings of a training run. Only `resolution.resolve` and `load` make one.

    Attributes:
        image_size: the side of the images; None for data that are features.
        epochs: the number of epochs to train; None if `steps` is given.
        steps: the number of steps to train; None if `epochs` is given.
        warmup_steps: the number of warm-up steps; None for a tenth of the steps.
        chosen: the names of settings that cross-validation has chosen.
    """

    method: str = setting(settings.REQUIRED, "", choices=tuple(methods.METHODS))
    sampler: str = setting(settings.REQUIRED, "", choices=sampling.NAMES)
    backbone: str = setting(settings.REQUIRED, "")
    backbone_weights: str = setting(settings.REQUIRED, "")
    frozen_layers: Sequence[str] = setting(settings.REQUIRED, "")
    image_size: int | None = setting(settings.REQUIRED, "", range=POSITIVE)
    full_decoding: bool = setting(settings.REQUIRED, "")
    scale_features: bool = setting(settings.REQUIRED, "")
    freeze_backbone: bool = setting(settings.REQUIRED, "")
    epochs: int | None = setting(settings.REQUIRED, "", range=POSITIVE)
    steps: int | None = setting(settings.REQUIRED, "", range=POSITIVE)
    optimizer: str = setting(settings.REQUIRED, "", choices=OPTIMIZERS)
    schedule: str = setting(settings.REQUIRED, "", choices=SCHEDULES)
    learning_rate: float = setting(settings.REQUIRED, "", range=POSITIVE)
    head_rate: float | None = setting(None, "", range=POSITIVE)
    backbone_rate: float = setting(1.0, "", range=NON_NEGATIVE)
    weight_decay: float = setting(settings.REQUIRED, "", range=NON_NEGATIVE)
    keep: str = setting(settings.REQUIRED, "", choices=KEPT)
    calibrate: bool = setting(settings.REQUIRED, "")
    warmup_steps: int | None = setting(settings.REQUIRED, "", range=NON_NEGATIVE)
    run_dir: str = setting(settings.REQUIRED, "", affects_result=False)
    chosen: Sequence[str] = setting((), "", affects_result=False)

    @property
    def has_trained_backbone(self) -> bool:
        """Whether the network below the head starts from weights that have been trained."""
        return self.backbone_weights != NO_WEIGHTS or self.init_from is not None

    def differences(self, saved: "ResolvedConfig") -> dict[str, str]:
        """Returns a line, by name, for each setting that differs from a saved run and matters."""
        return dict(self._differing(saved))

    def unused(self) -> list[str]:
        """Returns the flags that were changed but that have no effect on this run."""
        used = methods.get(self.method).parameters
        changed = [
            _flag(field)
            for field, _ in settings.settings_of(self.loss)
            if field.name not in used and getattr(self.loss, field.name) != field.default
        ]
        if self.optimizer != "sgd" and self.momentum != 0.9:
            changed.append("--momentum")
        return changed

    def num_steps(self, steps_per_epoch: int) -> int:
        """Returns the number of steps to train."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * steps_per_epoch

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ResolvedConfig":
        """Reads a configuration that `save` wrote, in this version or an earlier one.

        Raises:
            ConfigError: the file is not such a document, or was changed; the message names the file
                and the field.
        """
        try:
            content = _FORMAT.read(path)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        try:
            _check_types(cls, content)
            for name in ("frozen_layers", "chosen", "export_format"):
                if name in content:
                    content[name] = tuple(content[name])
            return cls.of(**content)
        except (ValueError, TypeError) as error:
            raise ConfigError(str(_FORMAT.unusable(path, error))) from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(SharedConfig):
    """A training run as requested; None stands for a default of the method, data or backbone."""

    method: str | None = setting(
        None,
        f"Training method, one of those above, or {AUTO}: the one that cross-validation on the "
        f"training split finds best. The default is {AUTO} where the head alone is trained on your "
        f"own data, on one device, and {DEFAULT_METHOD} elsewhere.",
        choices=(*methods.METHODS, AUTO),
    )
    sampler: str | None = setting(
        None,
        "Sampler of training examples. The default depends on the method.",
        choices=sampling.NAMES,
    )
    backbone: str | None = setting(
        None,
        "Network below the head: small_resnet, any network of keras.applications, or hub: and a "
        "preset of KerasHub or a folder of one (extra hub). The default depends on the data: "
        "small_resnet for digits_mlt, ResNet50 for photographs.",
    )
    backbone_weights: str | None = setting(
        None, "Initial weights of the backbone: imagenet, none, or a file; preset for hub:."
    )
    frozen_layers: Sequence[str] | None = setting(
        None,
        "Prefixes of the names of backbone layers that are not trained. The default is the stem "
        "and the first stage of a pre-trained ResNet.",
    )
    image_size: int | None = setting(
        None,
        "Side of the square images that the network sees. The default depends on the data.",
        range=POSITIVE,
    )
    full_decoding: bool | None = setting(
        None,
        "Decode JPEGs at their full size. Otherwise, large ones are decoded at a half, a quarter "
        "or an eighth of it, such that what is resized still has twice the side that the network "
        "sees. The default is to decode the data sets of the paper fully, and your own scaled.",
    )
    scale_features: bool | None = setting(
        None,
        "Bring the features of --dataset=features to one scale, as they may be in units of their "
        "own. The default does.",
    )
    freeze_backbone: bool | None = setting(
        None,
        "Train only the head, on features that are computed once. The default depends on the data.",
    )
    epochs: int | None = setting(
        None,
        "Training epochs. The default depends on the method, and on the number of images where the "
        "head alone is trained.",
        range=POSITIVE,
    )
    steps: int | None = setting(None, "Training steps, instead of --epochs.", range=POSITIVE)
    learning_rate: float | str | None = setting(
        None,
        "Peak learning rate after warm-up. The default depends on the optimizer, the backbone and, "
        f"for sgd, the number of classes; {AUTO} is chosen by cross-validation.",
        range=POSITIVE,
        words=(AUTO,),
    )
    optimizer: str | None = setting(
        None,
        "sgd, with momentum and weight decay in the gradient as in the paper; or adamw, with "
        "weight decay beside it. The default is adamw where the head alone is trained on your own "
        "data, and sgd elsewhere.",
        choices=OPTIMIZERS,
    )
    schedule: str | None = setting(
        None,
        "Learning rate after warm-up: divided by ten at two steps, as in the paper, or falling "
        "along a cosine to 0. The default is step for sgd and cosine for adamw.",
        choices=SCHEDULES,
    )
    weight_decay: float | None = setting(
        None,
        "Weight decay. The default is 1e-4 for sgd, which decays every trainable variable, and "
        "0.01 for adamw, which decays matrices and kernels alone.",
        range=NON_NEGATIVE,
    )
    backbone_rate: float | None = setting(
        None,
        "Factor of the learning rate for the layers below the head. The default is 1; for sgd, the "
        "root of 20 over the number of classes where there are more than 20.",
        range=NON_NEGATIVE,
    )
    head_rate: float | None = setting(
        None,
        "Peak learning rate of the stage of --head_steps. The default is that of a head alone.",
        range=POSITIVE,
    )
    keep: str | None = setting(
        None,
        "Weights to evaluate and export: those of the last step, or of the epoch with the highest "
        "val_map. The default is best where there is a val split.",
        choices=KEPT,
    )
    warmup_steps: int | None = setting(
        None,
        "Warm-up steps of the learning rate. The default is a tenth of the steps, at most 500.",
        range=NON_NEGATIVE,
    )
    calibrate: bool | None = setting(
        None,
        "Fit probabilities on the val split, or, for a head on fixed features, on predictions out "
        "of fold; --nocalibrate leaves the sigmoid of the logits.",
    )
    folds: int = setting(
        5,
        f"Folds of the training split for what is {AUTO}.",
        range=AT_LEAST_TWO,
        affects_result=False,
    )
    auto_for: str = setting(
        "total",
        f"What {AUTO} maximizes: mAP in total or of the tail, or macro F1.",
        choices=CRITERIA,
        affects_result=False,
    )
    run_dir: str | None = setting(
        None,
        "Directory of the run. The default is runs/DATASET-METHOD, where METHOD is "
        f"{AUTO} for your own data if it is not given.",
        affects_result=False,
    )

    def __post_init__(self) -> None:
        if self.backbone is not None:
            from dbl_tf import models

            try:
                models.check_backbone(self.backbone)
            except ValueError as error:
                raise ConfigError(f"--{error}") from None
        if self.epochs is not None and self.steps is not None:
            raise ConfigError("--epochs and --steps both say how long to train; give one of them")
        if self.word_vectors is not None:
            method = self.method or DEFAULT_METHOD
            if method == AUTO or not methods.get(method).classifier.takes_label_embeddings:
                given = f", not {self.method}" if self.method else "; pass it"
                raise ConfigError(f"--word_vectors goes with --method=ml_gcn{given}")
            if not os.path.isfile(self.word_vectors):
                raise ConfigError(f"--word_vectors: there is no file {self.word_vectors}")
        if self.freeze_backbone and self.precision != "float32":
            raise ConfigError(
                "--freeze_backbone computes its features in float32; leave --precision out"
            )

    def check_files(self) -> None:
        """Refuses files and libraries that do not exist, before the data are loaded.

        Raises:
            ConfigError: the message names the flag, and the file or the extra.
        """
        from dbl_tf import hub, portable

        for name in self.export_format if self.export else ():
            try:
                portable.check_installed(name)
            except ValueError as error:
                raise ConfigError(f"--export_format: {error}") from None
        weights = self.backbone_weights
        if names.is_hub(self.backbone):
            try:
                hub.check_installed()
            except ValueError as error:
                raise ConfigError(f"--backbone: {error}") from None
        if names.is_hub(self.backbone) != (weights == names.HUB_PRESET) and weights is not None:
            raise ConfigError(
                f"--backbone_weights={names.HUB_PRESET} goes with --backbone={names.HUB_PREFIX}…, "
                "and no other weights do; "
                f"got --backbone_weights={weights} with --backbone={self.backbone}"
            )
        if weights not in (None, IMAGENET, NO_WEIGHTS, names.HUB_PRESET) and not os.path.isfile(
            weights
        ):
            raise ConfigError(
                f"--backbone_weights must be {IMAGENET}, {NO_WEIGHTS} or a file; there is no "
                f"file {weights}"
            )
        if self.init_from is not None and not os.path.exists(self.init_from):
            raise ConfigError(f"--init_from: there is no {self.init_from}")

    def left_to_choice(self) -> tuple[str, ...]:
        """Returns the names of the settings that cross-validation is to choose."""
        return tuple(name for name in ("method", "learning_rate") if getattr(self, name) == AUTO)

    @property
    def directory(self) -> pathlib.Path:
        """The directory of the run."""
        is_own = datasets.SOURCES[self.dataset].defaults.freeze_backbone
        method = self.method or (AUTO if is_own else DEFAULT_METHOD)
        return pathlib.Path(self.run_dir or os.path.join("runs", f"{self.dataset}-{method}"))

    def open_differences(self, saved: ResolvedConfig) -> dict[str, str]:
        """Returns a line for each setting that was asked for and that a saved run has otherwise.

        What was left open (None) does not count: a run that goes on keeps what it has.
        """
        return {
            name: line
            for name, line in self.with_absolute_paths()._differing(saved)
            if getattr(self, name, self) is not None
            and not (getattr(self, name, None) == AUTO and name in saved.chosen)
        }


def parse_options(text: str) -> dict[str, Any]:
    """Parses `--backbone_options`: `name=value,name=value`, where values are Python literals.

    Raises:
        ConfigError: a part does not have this form.
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


def records_of(config_class: type[DataConfig]) -> dict[str, type]:
    """Returns the nested records of a configuration by field, except the options of its source."""
    records: dict[str, type] = {"loading": LoadOptions}
    if issubclass(config_class, SharedConfig):
        records |= {"loss": LossParameters, "augmentation": Augmentation}
    return records


def _make_record(record: type, dataset: str, values: dict[str, Any]) -> Any:
    """Makes a record from the values that are its settings, and removes them from `values`."""
    fields = {field.name: (field, details) for field, details in settings.settings_of(record)}
    own = {name: values.pop(name) for name in list(values) if name in fields}
    for name, (field, details) in fields.items():
        if details.required_as and not own.get(name):
            raise ConfigError(f"--dataset={dataset} needs {_flag(field)}, {details.required_as}")
    settings.check(record, own, name_of=_flag, error=ConfigError)
    try:
        return record(**own)
    except ValueError as error:
        raise ConfigError(f"--{error}") from error


def _check_types(config_class: type[SharedConfig], content: Mapping[str, Any]) -> None:
    """Refuses values of settings that are not of the types of their fields.

    Raises:
        ConfigError: the message names the field.
    """
    dataset = content.get("dataset", "digits_mlt")
    if not isinstance(dataset, str) or dataset not in datasets.SOURCES:
        raise ConfigError(f"dataset must be one of {', '.join(datasets.NAMES)}; got {dataset!r}")
    options = datasets.SOURCES[dataset].options
    for record in (config_class, options, *records_of(config_class).values()):
        types = get_type_hints(record)
        for field, _ in settings.settings_of(record):
            if field.name not in content:
                if settings.default_of(field) is settings.REQUIRED:
                    raise ConfigError(f"there is no field {field.name}")
                continue
            value = content[field.name]
            try:
                msgspec.convert(value, types[field.name])
            except msgspec.ValidationError as error:
                raise ConfigError(f"field {field.name}: {error}") from error
            if isinstance(value, int) and abs(value) >= _TOO_LARGE:
                raise ConfigError(f"field {field.name} must be less than 2^53; got {value}")


def _names_of(config_class: type[DataConfig]) -> list[str]:
    """Returns the names of the settings of a configuration but those of its data source."""
    records = (config_class, *records_of(config_class).values())
    return [field.name for record in records for field, _ in settings.settings_of(record)]


def _check_foreign(name: str, value: Any, dataset: str, known: Sequence[str]) -> None:
    """Refuses a setting that does not exist, or that only another data source has."""
    field = datasets.all_options().get(name)
    if field is None:
        raise ConfigError(
            f"there is no setting {name}; it may be of another version"
            f"{did_you_mean(name, [*known, *datasets.all_options()])}"
        )
    default = settings.default_of(field)
    if value is not None and value != default:
        raise ConfigError(
            f"{_flag(field)} goes with --dataset={' or '.join(datasets.sources_with(name))}, not "
            f"{dataset}"
        )


def _flag(field: dataclasses.Field) -> str:
    return f"--{flag_name(field)}"
