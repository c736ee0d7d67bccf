"""Writes a long-tailed table of examples: the train split of another one, thinned.

    python -m pipelines.write_longtail --examples=FILE.csv --max_count=800 --output_dir=DIR

The folder receives the table, which `train.py --dataset=table --examples=DIR/examples.csv` takes,
the counts of its classes, and a picture of them.
"""

import os
import shlex

from absl import flags

from dbl_tf import messages
from pipelines import locations, start
from pipelines.datasets import LoadOptions
from pipelines.datasets.options import TableOptions
from pipelines.runs import flags as run_flags
from pipelines.runs.config import DataConfig

_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder to create.", required=True)
_MAX_COUNT = flags.DEFINE_integer(
    "max_count",
    None,
    "Number of training images to aim at for the most frequent class.",
    required=True,
)
_MIN_COUNT = flags.DEFINE_integer(
    "min_count", 1, "Number of training images towards which the counts of the other classes fall."
)
_POWER = flags.DEFINE_float(
    "power",
    6.0,
    "Exponent of the Pareto law. The larger it is, the fewer classes are in the middle.",
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed for the choice of images.")
_PICTURE = flags.DEFINE_bool("picture", True, "Draw a chart of the counts.")
run_flags.define(
    (TableOptions, LoadOptions),
    without=("val_fraction", "test_fraction", "data_seed"),
    defaults={"check_images": "exists"},
)


def main(argv: list[str]) -> None:
    """Writes the table that the flags describe."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments: {argv[1:]}")
        locations.check_output_folder(_OUTPUT_DIR.value, "--output_dir")
        settings = run_flags.read_settings((TableOptions, LoadOptions))
        config = DataConfig.of(dataset="table", **settings)
        assert isinstance(config.source, TableOptions)
    except ValueError as error:
        raise SystemExit(f"write_longtail: {messages.explained(error)}") from error

    start.import_tensorflow()
    from dbl_tf import training
    from pipelines import longtail_table

    try:
        with training.exiting_when_stopped("write_longtail", continues=False):
            thinned = longtail_table.write(
                config.source,
                config.loading,
                _OUTPUT_DIR.value,
                max_count=_MAX_COUNT.value,
                min_count=_MIN_COUNT.value,
                power=_POWER.value,
                seed=_SEED.value,
                picture=_PICTURE.value,
            )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        raise SystemExit(f"write_longtail: {messages.explained(error)}") from error
    print(thinned)
    folder = os.path.dirname(thinned.examples)
    print(f"{folder}: {', '.join(sorted(os.listdir(folder)))}")
    arguments = [f"--examples={thinned.examples}"]
    arguments += [
        f"--{name}={settings[name]}"
        for name in ("class_names", "label_separator")
        if settings[name] is not None
    ]
    print(f"to train on it: python train.py --dataset=table {shlex.join(arguments)}")


if __name__ == "__main__":
    run_flags.run(main)
