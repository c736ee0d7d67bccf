"""Writes the features of images, for `--dataset=features` and for other programs.

    python -m pipelines.write_features --output=FILE.npz --dataset=table --examples=FILE.csv

The features are those on which `train.py --freeze_backbone` trains a head, with the same flags:
those of a pre-trained network of `keras.applications`, or of a run that is given by --init_from.
"""

from absl import flags

from dbl_tf import messages
from pipelines import locations, start
from pipelines.runs import flags as run_flags
from pipelines.runs.config import RunConfig

_OUTPUT = flags.DEFINE_string("output", None, "Path of the .npz file.", required=True)
run_flags.define(RunConfig, without=("freeze_backbone", "run_dir", "held_out"))


def main(argv: list[str]) -> None:
    """Computes the features that the flags describe."""
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments: {argv[1:]}")
        if not _OUTPUT.value.endswith(".npz"):
            raise ValueError(f"--output must end in .npz; got {_OUTPUT.value}")
        locations.check_output_file(_OUTPUT.value, "--output")
        config = run_flags.read(RunConfig).with_settings(freeze_backbone=True)
    except ValueError as error:
        raise SystemExit(f"write_features: {messages.explained(error)}") from error

    start.import_tensorflow()
    from dbl_tf import training
    from pipelines.runs import build, features, resolution

    try:
        with training.exiting_when_stopped("write_features"):
            config.check_files()
            build.check_backbone(config)
            data = config.load_data()
            shape = features.write(resolution.resolve(config, data), data, _OUTPUT.value)
            print(f"{_OUTPUT.value}: {shape[0]:,} rows of {shape[1]:,} features")
    except (ValueError, OSError) as error:
        raise SystemExit(f"write_features: {messages.explained(error)}") from error


if __name__ == "__main__":
    run_flags.run(main)
