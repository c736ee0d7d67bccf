"""Trains, evaluates and exports a classifier of long-tailed, multi-label images.

python train.py
python train.py --dataset=table --examples=my_pictures/examples.csv --method=db_focal
"""

from absl import app, flags

from dbl_tf import evaluation, methods, training
from pipelines import config, config_flags, training_run

__doc__ += f"\nMethods:\n{methods.describe()}\n"

config_flags.define(config.RunConfig)
flags.adopt_module_key_flags(config_flags)


def main(argv: list[str]) -> None:
    """Runs the training that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    try:
        scores = training_run.train_and_evaluate(config_flags.read(config.RunConfig))
    except (ValueError, FloatingPointError, OSError, training.LostWorkerError) as error:
        raise SystemExit(f"train.py: {error}") from error
    if scores is not None:
        print(evaluation.format_table(scores))


if __name__ == "__main__":
    app.run(main)
