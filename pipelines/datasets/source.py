"""The parts of a data source: its options, its default network, and its reader."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from dbl_tf.settings import FRACTION_BELOW_ONE, SEED, check, setting
from pipelines import folds
from pipelines.datasets import image_checks
from pipelines.examples import LabelledData


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """Base class of the options of a data source, which become flags."""

    @property
    def data_name(self) -> str | None:
        """A short name of the data for people; None if that is the name of the source."""
        return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of loading any data source.

    Attributes:
        cache_path: `cache_dir`, or the user's cache folder.
    """

    check_images: str = setting(
        "all",
        "How images are checked before training: by decoding each one, by its header, or only by "
        "whether the file exists.",
        choices=image_checks.LEVELS,
        affects_result=False,
    )
    skip_bad_images: bool = setting(
        False, "Leave out images that fail the check, and count them, instead of refusing them."
    )
    val_fraction: float = setting(
        0.0,
        "Fraction of the training images to set aside as the val split.",
        range=FRACTION_BELOW_ONE,
        for_training=True,
    )
    held_out: str | None = setting(
        None,
        "What takes the place of the test split, which is then not used: val, or a fold of the "
        "training split, such as 2/5 for the second of five.",
        for_training=True,
    )
    data_seed: int = setting(0, "Seed for composing, drawing or splitting the data.", range=SEED)
    cache_dir: str | None = setting(
        None,
        "Cache shared between runs: image checks and features of frozen backbones. The default is "
        "~/.cache/dbl_tf.",
        affects_result=False,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.held_out is not None:
            folds.check_held_out(self.held_out)

    @property
    def cache_path(self) -> pathlib.Path:
        """`cache_dir`, or the user's cache folder."""
        default = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "dbl_tf")
        return pathlib.Path(self.cache_dir or default).expanduser()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Defaults:
    """The default network of runs on a data source.

    Attributes:
        backbone: the name of the network.
        backbone_weights: the initial weights, "imagenet" or "none".
        image_size: the side of the images that the network sees; None for features.
        steps: the number of training steps; None for the epochs of the method.
        freeze_backbone: whether a pre-trained network serves for features alone, on which the head
            is trained, as suits a few thousand examples of somebody's own.
    """

    backbone: str
    backbone_weights: str
    image_size: int | None
    steps: int | None = None
    freeze_backbone: bool = False


# Benchmarks are trained as in the paper, all layers at once.
BENCHMARKS = Defaults(backbone="ResNet50", backbone_weights="imagenet", image_size=224)
PHOTOGRAPHS = dataclasses.replace(BENCHMARKS, freeze_backbone=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data source, as the registry of `pipelines.datasets` holds it.

    Attributes:
        options: the class of its options.
        defaults: the default network of runs on it.
        load: a function that reads the data from options, load options, and the names of the splits
            to load. None instead of names loads all splits, which must include train and test.
    """

    options: type[SourceOptions]
    defaults: Defaults
    load: Callable[[Any, LoadOptions, Sequence[str] | None], LabelledData]
