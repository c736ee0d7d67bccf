r"""Writes a long-tailed table of examples: the train split of another one, thinned.

    python -m pipelines.write_longtail --examples=FILE.csv --max_count=800 --output_dir=DIR

The folder gets the table, which `train.py --dataset=table --examples=DIR/examples.csv` takes, the
counts of its classes, and a picture of them.
"""

import os
import shlex

from absl import app, flags

from pipelines import longtail_table
from pipelines.datasets import image_checks
from pipelines.runs.config import DataConfig

_EXAMPLES = flags.DEFINE_string(
    "examples", None, "CSV or JSON lines of image, split, labels.", required=True
)
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "A folder to be made.", required=True)
_MAX_COUNT = flags.DEFINE_integer(
    "max_count", None, "Train images that the most frequent class aims at.", required=True
)
_MIN_COUNT = flags.DEFINE_integer("min_count", 1, "What the counts fall towards.")
_POWER = flags.DEFINE_float("power", 6.0, "Of the Pareto law; larger: fewer classes in the middle.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the random choice of images.")
_IMAGES_DIR = flags.DEFINE_string("images_dir", None, "Where relative image paths start.")
_CLASS_NAMES = flags.DEFINE_string("class_names", None, "Text file, a class on each line.")
_LABEL_SEPARATOR = flags.DEFINE_string("label_separator", None, "What parts the labels.")
_CHECK_IMAGES = flags.DEFINE_enum(
    "check_images", "exists", image_checks.LEVELS, "How images are checked first."
)
_SKIP_BAD_IMAGES = flags.DEFINE_bool(
    "skip_bad_images", False, "Drop and count images that fail the check."
)
_CACHE_DIR = flags.DEFINE_string("cache_dir", None, "Of results that runs share; ~/.cache/dbl_tf.")
_PICTURE = flags.DEFINE_bool("picture", True, "Draw the counts; needs the extra `plots`.")


def main(argv: list[str]) -> None:
    """Writes what the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        thinned = longtail_table.write(
            _EXAMPLES.value,
            _OUTPUT_DIR.value,
            max_count=_MAX_COUNT.value,
            min_count=_MIN_COUNT.value,
            power=_POWER.value,
            seed=_SEED.value,
            images_dir=_IMAGES_DIR.value,
            class_names=_CLASS_NAMES.value,
            label_separator=_LABEL_SEPARATOR.value,
            check_images=_CHECK_IMAGES.value,
            skip_bad_images=_SKIP_BAD_IMAGES.value,
            cache_dir=DataConfig(cache_dir=_CACHE_DIR.value).cache_path,
            picture=_PICTURE.value,
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise SystemExit(f"write_longtail: {error}") from error
    print(thinned)
    folder = os.path.dirname(thinned.examples)
    print(f"{folder}: {', '.join(sorted(os.listdir(folder)))}")
    arguments = [f"--examples={thinned.examples}"]
    arguments += [
        f"--{flag.name}={flag.value}" for flag in (_CLASS_NAMES, _LABEL_SEPARATOR) if flag.present
    ]
    print(f"to train on it: python train.py --dataset=table {shlex.join(arguments)}")


if __name__ == "__main__":
    app.run(main)
