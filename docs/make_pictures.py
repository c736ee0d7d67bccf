"""Draws the picture of the README: `python docs/make_pictures.py`, with the extra `plots`."""

import pathlib

import matplotlib
import numpy as np
import tensorflow as tf

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from dbl_tf import LabelStatistics
from pipelines import sampling
from pipelines.datasets import digits_mlt

NUM_DRAWS = 100_000
BEFORE, OBSERVED, EXPECTED = "#999999", "#0072B2", "#D55E00"  # told apart by the colour-blind


def main() -> None:
    """Writes `docs/digits_mlt.png`."""
    train = digits_mlt.load().splits["train"]
    statistics = LabelStatistics.from_labels(train.labels)
    order = np.argsort(-statistics.class_counts)
    draws = next(iter(sampling.class_aware_indices(train.labels, NUM_DRAWS, seed=0))).numpy()
    observed = train.labels[draws].sum(axis=0) / NUM_DRAWS

    figure, (scenes, bars) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(1, 1.5))
    pictures = [tf.io.decode_png(train.read(tf.constant(i))).numpy() for i in range(24)]
    scenes.imshow(np.vstack([np.hstack(pictures[i : i + 6]) for i in range(0, 24, 6)]))
    scenes.set_title("Scenes of digits_mlt")
    scenes.axis("off")
    place = np.arange(len(order))
    bars.bar(place - 0.2, statistics.priors[order], 0.4, color=BEFORE, label="as they are, n/N")
    bars.bar(place + 0.2, observed[order], 0.4, color=OBSERVED, label="after re-sampling, observed")
    bars.plot(
        place + 0.2,
        statistics.resampled_probability[order],
        "o",
        color=EXPECTED,
        label="after re-sampling, Eq. 1",
    )
    bars.axhline(0.1, color="black", linewidth=0.8, linestyle=":", label="balanced, 1/C")
    bars.set_xticks(place, [f"{i}\nn = {statistics.class_counts[i]}" for i in order], fontsize=8)
    bars.set_yscale("log")
    bars.set_ylabel("share of the images seen")
    bars.set_title("How often each digit is seen in training")
    bars.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(pathlib.Path(__file__).with_name("digits_mlt.png"), dpi=110)


if __name__ == "__main__":
    main()
