r"""Labels images with a trained model.

    python -m pipelines.tag --model=runs/mine picture.jpg FOLDER
    python -m pipelines.tag --model=runs/mine/saved_model/1 --output=labels.csv,labels.jsonl FOLDER

Each image is printed with the labels whose calibrated probabilities reach their thresholds. A file
that cannot be read is a row with the reason and does not stop the others; the status is 1 if there
is any.
"""

from typing import TYPE_CHECKING

from absl import flags

from dbl_tf import messages
from pipelines import locations, start
from pipelines.runs import flags as run_flags

if TYPE_CHECKING:
    from pipelines.runs.predictions import UnlabeledPrediction

_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Directory of a run, or of an exported model. Of several versions, the newest is taken.",
    required=True,
)
_OUTPUT = flags.DEFINE_list(
    "output",
    [],
    "Files for the labels and the probabilities of all classes: .csv has a row for each image, "
    ".jsonl an object on each line.",
)


def main(argv: list[str]) -> int:
    """Labels the images that the command line names."""
    if len(argv) == 1:
        raise SystemExit("tag: name the images: files, or folders of them")

    try:
        for path in _OUTPUT.value:
            locations.check_output_file(path, "--output")
    except ValueError as error:
        raise SystemExit(f"tag: {error}") from error

    start.import_tensorflow()
    from dbl_tf import training
    from pipelines.runs import evaluate, labeling

    summary = labeling.Summary()
    try:
        with training.exiting_when_stopped("tag", continues=False):
            files = labeling.find_images(argv[1:])
            model = evaluate.SavedModel(labeling.find_model(_MODEL.value))
            for row in labeling.label(model, files, _OUTPUT.value):
                print(messages.printable(_line(row, model.class_names)), flush=True)
                summary.add(row)
    except (ValueError, OSError) as error:
        raise SystemExit(f"tag: {messages.explained(error)}") from error
    print(summary)
    return 1 if summary.num_errors else 0


def _line(row: "UnlabeledPrediction", class_names: tuple[str, ...]) -> str:
    if row.probabilities is None:
        return f"{row.name}: {row.error}"
    probability_of = dict(zip(class_names, row.probabilities, strict=True))
    labels = [f"{name} {probability_of[name]:.2f}" for name in row.labels]
    return f"{row.name}: {', '.join(labels) or 'no label'}"


def run() -> None:
    """Runs the command with the flags of the command line."""
    run_flags.run(main)


if __name__ == "__main__":
    run()
