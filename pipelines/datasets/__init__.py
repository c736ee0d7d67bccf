"""Where labelled images come from: one module for each data set."""

import dataclasses
import functools
from typing import TYPE_CHECKING

from pipelines.examples import Examples, LabelledData, set_aside_val

if TYPE_CHECKING:
    from pipelines.runs.config import DataConfig

__all__ = ["DEFAULTS", "NAMES", "Defaults", "Examples", "LabelledData", "load"]


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a run on a data set uses where no flag says otherwise."""

    backbone: str
    backbone_weights: str
    image_size: int
    steps: int | None = None  # None: the epochs of the method


_PHOTOGRAPHS = Defaults("ResNet50", "imagenet", image_size=224)
DEFAULTS = {
    # Small images and no pre-training, so a small network of the project's own.
    "digits_mlt": Defaults("small_resnet", "none", image_size=32, steps=1500),
    "table": _PHOTOGRAPHS,
    "voc_mlt": _PHOTOGRAPHS,
    "coco_mlt": _PHOTOGRAPHS,
    "tfds": _PHOTOGRAPHS,
    "shards": _PHOTOGRAPHS,
}
NAMES = tuple(DEFAULTS)


def load(config: "DataConfig", splits: tuple[str, ...] | None = None) -> LabelledData:
    """Loads and checks the data set of a configuration.

    Args:
        config: of the data.
        splits: the only ones that are needed, and whose images are checked; None for all, of which
            there must be train and test.

    Raises:
        ValueError: what is wrong with the data, with file and row.
    """
    data = _load(config, splits)
    if config.val_fraction:
        data = set_aside_val(data, config.val_fraction, seed=config.data_seed)
    return data


def _load(config: "DataConfig", splits: tuple[str, ...] | None) -> LabelledData:
    # Each module is imported where it is used: some bring large libraries.
    checks = {
        "check_images": config.check_images,
        "skip_bad_images": config.skip_bad_images,
        "cache_dir": config.cache_path,
        "only_splits": splits,
    }
    match config.dataset:
        case "digits_mlt":
            return _digits_mlt(config.data_seed)
        case "table":
            from pipelines.datasets import table

            return table.load(
                config.examples,
                images_dir=config.images_dir,
                class_names=config.class_names,
                label_separator=config.label_separator,
                **checks,
            )
        case "voc_mlt" | "coco_mlt":
            from pipelines.datasets import coco_mlt, voc_mlt

            load_benchmark = {"voc_mlt": voc_mlt, "coco_mlt": coco_mlt}[config.dataset].load
            return load_benchmark(
                data_dir=config.data_dir,
                image_ids=config.image_ids,
                download=config.download,
                seed=config.data_seed,
                **checks,
            )
        case "tfds":
            from pipelines.datasets import tfds_source

            return tfds_source.load(
                config.tfds_name,
                label_feature=config.label_feature,
                image_feature=config.image_feature,
                data_dir=config.data_dir,
                download=config.download,
                train_split=config.train_split,
                val_split=config.val_split,
                test_split=config.test_split,
                **checks,
            )
        case "shards":
            from pipelines.shards import reading

            return reading.load(config.shards_dir, only_splits=splits)


@functools.lru_cache(maxsize=2)  # several runs in one process need not compose them again
def _digits_mlt(seed: int) -> LabelledData:
    from pipelines.datasets import digits_mlt

    return digits_mlt.load(seed)
