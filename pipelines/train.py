"""Trains, evaluates and exports a classifier of long-tailed, multi-label images.

python train.py
python train.py --dataset=table --examples=my_pictures/examples.csv --check_only
python train.py --dataset=table --examples=my_pictures/examples.csv --method=db_focal
"""

from absl import flags

from dbl_tf import messages, methods
from pipelines import locations, start
from pipelines.runs import flags as run_flags
from pipelines.runs.config import RunConfig

__doc__ += f"\nMethods:\n{methods.describe()}\n"

_CHECK_ONLY = flags.DEFINE_bool(
    "check_only",
    False,
    "Show how the data were understood and what is wrong with them, and train nothing. Nothing is "
    "written but the cache. The status is 1 if the training would be refused.",
)
run_flags.define(RunConfig)


def main(argv: list[str]) -> None:
    """Runs the training that the flags describe."""
    if len(argv) > 1:
        raise SystemExit(f"train: unexpected arguments: {argv[1:]}")
    try:
        asked = run_flags.read(RunConfig)
        if not _CHECK_ONLY.value:
            locations.check_output_folder(asked.directory, "--run_dir")
    except ValueError as error:
        raise SystemExit(f"train: {messages.explained(error)}") from error

    start.import_tensorflow()
    from dbl_tf import training
    from pipelines.runs import check, closing
    from pipelines.runs.train import train_and_evaluate

    try:
        with training.exiting_when_stopped("train"):
            if _CHECK_ONLY.value:
                check.check(asked)
                return
            scores = train_and_evaluate(asked)
    except (ValueError, FloatingPointError, OSError, training.LostWorkerError) as error:
        raise SystemExit(f"train: {messages.explained(error)}") from error
    if scores is not None:
        has_images = asked.dataset != "features"
        print(closing.describe(scores, asked.directory, has_images=has_images))


def run() -> None:
    """Runs the command with the flags of the command line."""
    run_flags.run(main)
