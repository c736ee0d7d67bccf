r"""Scores a trained run or an exported model, predicts a folder of images, or compares two models.

    python evaluate.py --run_dir=runs/digits_mlt-db_focal
    python evaluate.py --saved_model=DIR/saved_model/1 --dataset=table --examples=FILE.csv \
        --output_dir=scores
    python evaluate.py --saved_model=DIR/saved_model/1 --images=FOLDER --output_dir=predictions
    python evaluate.py --run_dir=runs/new --against=runs/old
"""

import os
from typing import Any

from absl import flags

from dbl_tf import messages
from pipelines import locations, start
from pipelines.runs import flags as run_flags
from pipelines.runs.config import DataConfig

_RUN_DIR = flags.DEFINE_string(
    "run_dir", None, "Directory of a run to score on its own test split."
)
_SAVED_MODEL = flags.DEFINE_string(
    "saved_model", None, "Version directory of an exported model, such as saved_model/1."
)
_AGAINST = flags.DEFINE_string(
    "against",
    None,
    "Another run or exported model: write a page of which labels and images change from it to the "
    "exported model of --run_dir or --saved_model, on the test split of that run or on given data.",
)
_IMAGES = flags.DEFINE_string("images", None, "Folder of unlabeled images to predict.")
_OUTPUT_DIR = flags.DEFINE_string(
    "output_dir",
    None,
    "Directory for the results. By default that of --run_dir, or against/NAME in it, where NAME is "
    "that of the model of --against. One with a comparison of other models or data is refused.",
)
run_flags.define(DataConfig, for_evaluation=True)


def main(argv: list[str]) -> None:
    """Runs the evaluation that the flags describe."""
    try:
        _check_flags(argv)
        if _OUTPUT_DIR.value is not None:
            locations.check_output_folder(_OUTPUT_DIR.value, "--output_dir")
        elif os.path.isdir(_RUN_DIR.value):
            locations.check_output_folder(_RUN_DIR.value, "--run_dir")
        data = None
        if _RUN_DIR.value is None and _IMAGES.value is None:
            data = run_flags.read(DataConfig)
    except ValueError as error:
        raise SystemExit(f"evaluate: {messages.explained(error)}") from error

    start.import_tensorflow()
    from dbl_tf import training
    from pipelines.runs import against, closing, evaluate

    try:
        with training.exiting_when_stopped("evaluate", continues=False):
            if _AGAINST.value is not None:
                print(against.format_summary(_compare(data)))
                return
            if _RUN_DIR.value is not None:
                scores = evaluate.evaluate_run(_RUN_DIR.value, _OUTPUT_DIR.value)
            elif data is None:
                _predict_folder()
                return
            else:
                scores = evaluate.evaluate_saved_model(_SAVED_MODEL.value, data, _OUTPUT_DIR.value)
    except (ValueError, FloatingPointError, OSError) as error:
        raise SystemExit(f"evaluate: {messages.explained(error)}") from error
    print(closing.describe(scores, _OUTPUT_DIR.value or _RUN_DIR.value))


def _compare(data: DataConfig | None) -> dict[str, Any]:
    from pipelines.runs import against

    if data is None:
        return against.of_run(_RUN_DIR.value, _AGAINST.value, _OUTPUT_DIR.value)
    return against.compare_models(_SAVED_MODEL.value, _AGAINST.value, data, _OUTPUT_DIR.value)


def _predict_folder() -> None:
    from dbl_tf import terminal
    from pipelines.runs import evaluate, labeling

    files = labeling.images_of_folder(_IMAGES.value)
    os.makedirs(_OUTPUT_DIR.value, exist_ok=True)
    path = os.path.join(_OUTPUT_DIR.value, "predictions.csv")
    summary = labeling.Summary()
    for row in labeling.label(evaluate.SavedModel(_SAVED_MODEL.value), files, [path]):
        summary.add(row)
    print(f"{summary}\n{terminal.link(path)}")


def _check_flags(argv: list[str]) -> None:
    """Refuses flags that do not go together."""
    if len(argv) > 1:
        raise ValueError(f"unexpected arguments: {argv[1:]}")
    if (_RUN_DIR.value is None) == (_SAVED_MODEL.value is None):
        raise ValueError("give either --run_dir or --saved_model, the model to evaluate")
    if _SAVED_MODEL.value is not None and _OUTPUT_DIR.value is None:
        raise ValueError("--saved_model needs --output_dir, where the results are written")
    if _IMAGES.value is not None and _SAVED_MODEL.value is None:
        raise ValueError("--images goes with --saved_model")
    if _AGAINST.value is not None and _IMAGES.value is not None:
        raise ValueError("--against compares on labeled images, and --images has no labels")
    given = run_flags.given(DataConfig)
    if given and (_RUN_DIR.value is not None or _IMAGES.value is not None):
        raise ValueError(f"--{given[0]} goes with --saved_model and labeled images")


def run() -> None:
    """Runs the command with the flags of the command line."""
    run_flags.run(main)
