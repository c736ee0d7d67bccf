"""Scores a trained run or an exported model, or predicts a folder of images.

    python evaluate.py --run_dir=runs/digits_mlt-db_focal
    python evaluate.py --saved_model=DIR/saved_model/1 --dataset=table --examples=FILE.csv \
        --output_dir=scores
    python evaluate.py --saved_model=DIR/saved_model/1 --images=FOLDER --output_dir=predictions
"""

from absl import app, flags

from pipelines.runs import config, evaluate
from pipelines.runs import flags as run_flags
from pipelines.runs import scores as run_scores

_RUN_DIR = flags.DEFINE_string("run_dir", None, "A run, scored on its own test split.")
_SAVED_MODEL = flags.DEFINE_string("saved_model", None, "An exported model's version directory.")
_IMAGES = flags.DEFINE_string("images", None, "Folder of unlabelled images to predict.")
_OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "For what is written.")
# What concerns training data alone does not come into it.
_OF_TRAINING = ("train_split", "val_split", "val_fraction", "image_ids")
run_flags.define(config.DataConfig, without=_OF_TRAINING)
flags.adopt_module_key_flags(run_flags)


def main(argv: list[str]) -> None:
    """Runs the evaluation that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if (_RUN_DIR.value is None) == (_SAVED_MODEL.value is None):
        raise app.UsageError("one of --run_dir and --saved_model says what is evaluated")
    if _SAVED_MODEL.value is not None and _OUTPUT_DIR.value is None:
        raise app.UsageError("--saved_model needs --output_dir, for what is written")
    if _IMAGES.value is not None and _SAVED_MODEL.value is None:
        raise app.UsageError("--images goes with --saved_model")
    given = run_flags.given(config.DataConfig)
    if given and (_RUN_DIR.value is not None or _IMAGES.value is not None):
        raise app.UsageError(f"--{given[0]} goes with --saved_model and labelled images")
    try:
        if _RUN_DIR.value is not None:
            scores = evaluate.evaluate_run(_RUN_DIR.value, _OUTPUT_DIR.value)
        elif _IMAGES.value is not None:
            model = evaluate.SavedModel(_SAVED_MODEL.value)
            print(evaluate.predict_folder(model, _IMAGES.value, _OUTPUT_DIR.value))
            return
        else:
            data = run_flags.read(config.DataConfig)
            scores = evaluate.evaluate_saved_model(_SAVED_MODEL.value, data, _OUTPUT_DIR.value)
    except (ValueError, FloatingPointError, OSError) as error:
        raise SystemExit(f"evaluate.py: {error}") from error
    print(run_scores.format_table(scores))


if __name__ == "__main__":
    app.run(main)
