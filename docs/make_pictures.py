"""Draws the pictures of the README and the documentation.

python -m docs.make_pictures                             # the README's picture
python -m docs.make_pictures --labels=voc_mlt_train.csv  # and Fig. 2 and 5 for a list of labels
"""

import base64
import io
import pathlib
import re

import numpy as np
import scipy.sparse
import tensorflow as tf
from absl import app, flags
from PIL import Image

from benchmarks import label_lists
from dbl_tf import LabelStatistics
from pipelines import sampling
from pipelines.datasets import digits_mlt
from pipelines.reports import charts

NUM_DRAWS = 100_000
NUM_DRAWS_OF_LIST = 1_000_000
ROWS, COLUMNS = 4, 5
SCENES_WIDTH = 330
DOCS = pathlib.Path(__file__).parent

_LABELS = flags.DEFINE_string("labels", None, "CSV file with a column `labels`.")


def main(argv: list[str]) -> None:
    """Writes `digits_mlt.svg` and, given a list of labels, `figures/LIST_FIGURE.svg`."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    draw_scenes()
    if _LABELS.value is not None:
        draw_statistics(pathlib.Path(_LABELS.value))


def draw_scenes() -> None:
    """Draws scenes of the embedded data set, and how often training sees each label."""
    data = digits_mlt.compose()
    train = data.splits["train"]
    statistics = LabelStatistics.from_labels(train.labels, data.class_names)
    draws = draw(train.labels, NUM_DRAWS)
    shares = charts.class_shares(statistics, train.labels[draws].sum(axis=0), NUM_DRAWS)

    pictures = [tf.io.decode_png(train.read(tf.constant(i))).numpy() for i in range(ROWS * COLUMNS)]
    rows = [np.hstack(pictures[i : i + COLUMNS]) for i in range(0, len(pictures), COLUMNS)]
    scenes = io.BytesIO()
    Image.fromarray(np.vstack(rows)).save(scenes, "png")
    encoded = base64.b64encode(scenes.getvalue()).decode()
    drawing = shares.svg()
    width, height = map(float, re.findall(r'(?:width|height)="([\d.]+)"', drawing)[:2])
    scenes_height = SCENES_WIDTH * ROWS // COLUMNS
    (DOCS / "digits_mlt.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {SCENES_WIDTH + 20 + width:.0f} {height:.0f}">'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<image x="10" y="{(height - scenes_height) / 2:.0f}" width="{SCENES_WIDTH}" '
        f'height="{scenes_height}" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{encoded}"/>'
        f'<svg x="{SCENES_WIDTH + 20}">{drawing}</svg></svg>\n',
        encoding="utf-8",
    )


def draw_statistics(path: pathlib.Path) -> None:
    """Draws Fig. 2 and 5 for a list of labels, and prints their numbers, a line for each label."""
    names, labels = label_lists.read(path)
    statistics = LabelStatistics.from_labels(labels, names)
    observed = labels[draw(labels, NUM_DRAWS_OF_LIST)].sum(axis=0)
    variance = charts.within_class_variance(statistics, labels)
    expected = statistics.resampled_probability
    error = np.sqrt(expected * (1 - expected) / NUM_DRAWS_OF_LIST)
    # Without the diagonal of the matrix, which is always 1.
    others = (statistics.num_classes * expected - 1) / (statistics.num_classes - 1)
    print("label, n, Eq. 1, observed, (observed - Eq. 1)/s.e., mean p(label | another), variance")
    for i in np.argsort(-expected):
        share = observed[i] / NUM_DRAWS_OF_LIST
        print(
            f"{names[i]}, {statistics.class_counts[i]}, {expected[i]:.4f}, {share:.4f}, "
            f"{(share - expected[i]) / error[i]:+.2f}, {others[i]:.4f}, {variance[i]:.3f}"
        )
    directory = DOCS / "figures"
    directory.mkdir(exist_ok=True)
    for picture in (
        charts.class_shares(statistics, observed, NUM_DRAWS_OF_LIST),
        charts.conditional_probability_matrix(statistics),
        charts.variance_by_class(statistics, variance),
    ):
        file = directory / f"{path.stem}_{picture.name}.svg"
        file.write_text(picture.svg(), encoding="utf-8")


def draw(labels: scipy.sparse.csr_array, number: int) -> np.ndarray:
    """Positions of examples drawn by class-aware re-sampling, (number,)."""
    return next(iter(sampling.class_aware_indices(labels, number, seed=0))).numpy()


if __name__ == "__main__":
    app.run(main)
