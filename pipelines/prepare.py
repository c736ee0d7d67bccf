"""Makes small JPEGs of a table's images, of any format and size, and a table that names them.

    python -m pipelines.prepare --examples=FILE.csv --output_dir=DIR

JPEG, PNG, WebP, AVIF, TIFF, GIF, BMP and JPEG 2000 are read; HEIC with the extra `heif`. The new
table is what `train.py --dataset=table --examples=DIR/examples.jsonl` takes. The same command
continues a run that was stopped.
"""

import shlex

from absl import flags

from dbl_tf import messages
from pipelines import locations, start
from pipelines.datasets import LoadOptions
from pipelines.datasets.options import TableOptions
from pipelines.runs import flags as run_flags
from pipelines.runs.config import DataConfig
from pipelines.shrinking import Settings

_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir", None, "Folder that receives the images and the table.", required=True
)
_MAX_SIDE = flags.DEFINE_integer(
    "max_side",
    Settings.max_side,
    "Largest width and height in pixels; smaller images are not enlarged.",
)
_QUALITY = flags.DEFINE_integer("quality", Settings.quality, "Quality of the JPEGs, from 1 to 100.")
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "Number of processes. The default is the number of usable cores."
)
run_flags.define((TableOptions, LoadOptions), without=("val_fraction", "held_out", "check_images"))


def main(argv: list[str]) -> None:
    """Writes the images and the table that the flags describe."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments: {argv[1:]}")
        locations.check_output_folder(_OUTPUT_DIR.value, "--output_dir")
        settings = run_flags.read_settings((TableOptions, LoadOptions))
        config = DataConfig.of(dataset="table", **settings)
        assert isinstance(config.source, TableOptions)
        shrinking = Settings(max_side=_MAX_SIDE.value, quality=_QUALITY.value)
    except ValueError as error:
        raise SystemExit(f"prepare: {messages.explained(error)}") from error

    start.import_tensorflow()
    from dbl_tf import training
    from pipelines import prepared_table

    try:
        with training.exiting_when_stopped("prepare"):
            prepared = prepared_table.write(
                config.source,
                config.loading,
                _OUTPUT_DIR.value,
                shrinking,
                num_processes=_PROCESSES.value,
            )
    except (ValueError, OSError) as error:
        raise SystemExit(f"prepare: {messages.explained(error)}") from error
    print(prepared)
    arguments = [f"--examples={prepared.examples}"]
    if settings["class_names"] is not None:
        arguments.append(f"--class_names={settings['class_names']}")
    print(f"to train on it: python train.py --dataset=table {shlex.join(arguments)}")


def run() -> None:
    """Runs the command with the flags of the command line."""
    run_flags.run(main)


if __name__ == "__main__":
    run()
