"""Draws the picture of the README: `python docs/make_pictures.py`."""

import base64
import io
import pathlib

import numpy as np
import tensorflow as tf
from PIL import Image

from dbl_tf import LabelStatistics, figures, svg
from pipelines import sampling
from pipelines.datasets import digits_mlt

NUM_DRAWS = 100_000
ROWS, COLUMNS = 4, 5
SCENES_WIDTH = 330


def main() -> None:
    """Writes `docs/digits_mlt.svg`."""
    data = digits_mlt.load()
    train = data.splits["train"]
    statistics = LabelStatistics.from_labels(train.labels, data.class_names)
    draws = next(iter(sampling.class_aware_indices(train.labels, NUM_DRAWS, seed=0))).numpy()
    shares = figures.class_shares(statistics, train.labels[draws].sum(axis=0), NUM_DRAWS)

    pictures = [tf.io.decode_png(train.read(tf.constant(i))).numpy() for i in range(ROWS * COLUMNS)]
    rows = [np.hstack(pictures[i : i + COLUMNS]) for i in range(0, len(pictures), COLUMNS)]
    scenes = io.BytesIO()
    Image.fromarray(np.vstack(rows)).save(scenes, "png")
    encoded = base64.b64encode(scenes.getvalue()).decode()
    height = SCENES_WIDTH * ROWS // COLUMNS
    width = SCENES_WIDTH + 20 + shares.width
    pathlib.Path(__file__).with_name("digits_mlt.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" '
        f'width="{width}" viewBox="0 0 {width} {shares.height}">'
        f'<style>{svg.STYLE}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
        f'<image x="10" y="{(shares.height - height) // 2}" width="{SCENES_WIDTH}" '
        f'height="{height}" style="image-rendering:pixelated" '
        f'href="data:image/png;base64,{encoded}"/>'
        f'<svg x="{SCENES_WIDTH + 20}" width="{shares.width}" height="{shares.height}">'
        f"{shares.inline()}</svg></svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
