"""Where labelled images come from: one module for each data set."""

import dataclasses
from typing import TYPE_CHECKING

from pipelines.datasets.examples import Examples, LabelledData, set_aside_val

if TYPE_CHECKING:
    from pipelines.config import DataConfig

__all__ = ["DEFAULTS", "NAMES", "Defaults", "Examples", "LabelledData", "load"]


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a run on a data set uses where no flag says otherwise."""

    backbone: str
    backbone_weights: str
    image_size: int
    steps: int | None = None  # None: the epochs of the method


DEFAULTS = {
    # Small images and no pre-training, so a small network of the project's own.
    "digits_mlt": Defaults("small_resnet", "none", image_size=32, steps=1500),
    "table": Defaults("ResNet50", "imagenet", image_size=224),
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
    if config.dataset == "digits_mlt":
        from pipelines.datasets import digits_mlt

        data = digits_mlt.load(config.data_seed)
    else:
        from pipelines.datasets import table

        data = table.load(
            config.examples,
            images_dir=config.images_dir,
            class_names=config.class_names,
            label_separator=config.label_separator,
            check_images=config.check_images,
            skip_bad_images=config.skip_bad_images,
            cache_dir=config.cache_path,
            only_splits=splits,
        )
    if config.val_fraction:
        data = set_aside_val(data, config.val_fraction, seed=config.data_seed)
    return data
