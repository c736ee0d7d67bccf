"""The parts of a data source: its options, its default network, and its reader."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dbl_tf.settings import FRACTION_BELOW_ONE, SEED, check, setting

if TYPE_CHECKING:
    import numpy as np
    import scipy.sparse

    from pipelines.examples import LabelledData

# How images are checked; each level includes those before it.
CHECK_LEVELS = ("exists", "header", "all")


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
        choices=CHECK_LEVELS,
        affects_result=False,
    )
    skip_bad_images: bool = setting(
        False, "Leave out images that fail the check, and count them, instead of refusing them."
    )
    check_content: bool = setting(
        False,
        "Read all files of the data to their end: shards are compared with their digests, and "
        "the data of a run with those that it was started with, by content and not by time.",
        affects_result=False,
    )
    test_fraction: float = setting(
        0.0,
        "Fraction of the training images to set aside as the test split, for data without one. The "
        "choice depends on the data and --data_seed alone.",
        range=FRACTION_BELOW_ONE,
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
            from pipelines import folds

            folds.check_held_out(self.held_out)

    def needed(self, splits: Sequence[str] | None = None) -> tuple[str, ...]:
        """Returns the splits that the data themselves must have.

        Args:
            splits: the splits to load; None for all.
        """
        if not self.test_fraction:
            return tuple(splits or ("train", "test"))
        names = [name for name in splits or () if name != "test"]
        return tuple(dict.fromkeys(["train", *names]))

    def check_no_test(self, source: str, num_test: int | None = None) -> None:
        """Refuses `test_fraction` where there is a test split already.

        Args:
            source: the name of the data in the message.
            num_test: the number of its test examples; None if it is not known.

        Raises:
            ValueError: see above.
        """
        if self.test_fraction and num_test != 0:
            number = "" if num_test is None else f" of {num_test} images"
            raise ValueError(
                f"{source} has a test split{number} already, so --test_fraction must not be given"
            )

    def test_share(self, labels: scipy.sparse.csr_array) -> np.ndarray:
        """Chooses the train examples that `test_fraction` sets aside, bool (N,).

        It must see all train examples, before any of them are left out for another reason: which
        ones are chosen depends on the data and the seed alone.
        """
        from pipelines import folds

        return folds.stratified_share(labels, self.test_fraction, seed=self.data_seed)

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
        full_decoding: whether large JPEGs are decoded at their full size.
        steps: the number of training steps; None for the epochs of the method.
        freeze_backbone: whether a pre-trained network serves for features alone, on which the head
            is trained, as suits a few thousand examples of somebody's own.
    """

    backbone: str
    backbone_weights: str
    image_size: int | None
    full_decoding: bool = True
    steps: int | None = None
    freeze_backbone: bool = False


# Benchmarks are trained as in the paper, all layers at once.
BENCHMARKS = Defaults(backbone="ResNet50", backbone_weights="imagenet", image_size=224)
PHOTOGRAPHS = dataclasses.replace(BENCHMARKS, freeze_backbone=True, full_decoding=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """A data source, as the registry of `pipelines.datasets` holds it.

    Attributes:
        options: the class of its options.
        defaults: the default network of runs on it.
        module: the name of its module in `pipelines.datasets`, which holds a function `load`. It is
            imported when data are loaded, so that flags are defined without TensorFlow.
    """

    options: type[SourceOptions]
    defaults: Defaults
    module: str

    def load(
        self, options: Any, load_options: LoadOptions, splits: Sequence[str] | None = None
    ) -> LabelledData:
        """Reads the data.

        Args:
            options: the options of the source.
            load_options: the options that all sources have. `test_fraction` of the train examples
                is set aside as test.
            splits: the names of the splits to load. None loads all splits, which must include train
                and test.
        """
        module = importlib.import_module(f"pipelines.datasets.{self.module}")
        return module.load(options, load_options, splits)
