"""What a model does with each label: its best finds, misses, false alarms and confusions."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse

from dbl_tf import label_values
from dbl_tf.statistics import LabelStatistics, is_sparse

_ELEMENTS_PER_BLOCK = 4_000_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs:
    """Pairs of an image and a label.

    Attributes:
        image: the positions of the images, int (K,).
        label: the columns of the labels, int (K,).
        shape: the numbers N of images and C of labels.
    """

    image: np.ndarray
    label: np.ndarray
    shape: tuple[int, int]

    def counts(self, chosen: np.ndarray) -> np.ndarray:
        """Counts the chosen pairs (K,) of each label, (C,)."""
        return np.bincount(self.label[chosen], minlength=self.shape[1])

    def extremes(self, chosen: np.ndarray, number: int, rank: np.ndarray) -> list[np.ndarray]:
        """Returns for each label its chosen pairs of the lowest rank.

        Args:
            chosen: which pairs are considered, bool (K,).
            number: the largest number of pairs of a label.
            rank: the rank of each pair, (K,).

        Returns:
            For each of the C labels the positions of its pairs, the lowest rank first.
        """
        pairs = np.flatnonzero(chosen)
        pairs = pairs[np.lexsort((rank[pairs], self.label[pairs]))]
        ends = np.searchsorted(self.label[pairs], np.arange(self.shape[1] + 1))
        return [pairs[start : min(start + number, end)] for start, end in itertools.pairwise(ends)]

    def of_images(self, images: Sequence[int], number: int, *ranks: np.ndarray) -> list[np.ndarray]:
        """Returns for each of some images its pairs, those of the lowest last rank first."""
        order = np.lexsort((*ranks, self.image))
        ends = np.searchsorted(self.image[order], [[i, i + 1] for i in images]).reshape(-1, 2)
        return [order[start : min(start + number, end)] for start, end in ends]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decisions(Pairs):
    """The pairs of an image and a label that the image has or is given.

    Attributes:
        probability: the probabilities, (K,).
        distance: how far the probability is above the threshold of the label, as a difference of
            logits, (K,); negative below it.
        has: whether the image has the label, bool (K,).
        given: whether it is given the label, bool (K,).
        num_known: of how many images it is known whether they have each label, int (C,).
    """

    probability: np.ndarray
    distance: np.ndarray
    has: np.ndarray
    given: np.ndarray
    num_known: np.ndarray

    @classmethod
    def of(cls, labels: Any, probabilities: np.ndarray, thresholds: np.ndarray) -> "Decisions":
        """Compares probabilities with thresholds and labels.

        Args:
            labels: the labels, 0 and 1 (N, C), dense or `scipy.sparse`, with −1 (or NaN) for
                unknown ones, whose decisions are left out.
            probabilities: the probabilities, (N, C).
            thresholds: the thresholds, (C,).
        """
        found = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0, bool), np.zeros(0, bool))]
        num_known = np.zeros(probabilities.shape[1], int)
        rows_per_block = max(1, _ELEMENTS_PER_BLOCK // max(probabilities.shape[1], 1))
        for start in range(0, len(probabilities), rows_per_block):
            rows = slice(start, start + rows_per_block)
            block = labels[rows].toarray() if is_sparse(labels) else labels[rows]
            truth, unknown = np.asarray(block) == 1, label_values.is_unknown(block)
            accepted = (probabilities[rows] >= thresholds) & ~unknown
            num_known += np.count_nonzero(~unknown, axis=0)
            row, column = np.nonzero(truth | accepted)
            found.append((row + start, column, truth[row, column], accepted[row, column]))
        image, label, has, given = map(np.concatenate, zip(*found, strict=True))
        probability = probabilities[image, label].astype(np.float64)
        return cls(
            image=image,
            label=label,
            shape=probabilities.shape,
            probability=probability,
            distance=_logit(probability) - _logit(np.asarray(thresholds, np.float64))[label],
            has=has,
            given=given,
            num_known=num_known,
        )

    def confusions(self) -> scipy.sparse.coo_array:
        """Counts the images that miss label i and are wrongly given label j at [i, j], (C, C)."""
        missed, wrong = (self._matrix(self.has & ~self.given), self._matrix(~self.has & self.given))
        return (missed.T @ wrong).tocoo()

    def mistakes(self) -> tuple[np.ndarray, np.ndarray]:
        """Ranks images by how far their probabilities are on the wrong side of the thresholds.

        Returns:
            The positions of the images with a wrong decision, the worst first, and the sums of the
            distances of their wrong decisions.
        """
        wrong = self.has != self.given
        # A wrong decision counts even where the probability equals the threshold.
        total = np.bincount(
            self.image[wrong], np.abs(self.distance[wrong]) + 1e-9, minlength=self.shape[0]
        )
        order = np.argsort(-total, kind="stable")
        order = order[total[order] > 0]
        return order, total[order]

    def _matrix(self, chosen: np.ndarray) -> scipy.sparse.csr_array:
        pairs = (self.image[chosen], self.label[chosen])
        return scipy.sparse.csr_array((np.ones(chosen.sum(), np.int64), pairs), shape=self.shape)


def strongest(counts: scipy.sparse.coo_array, number: int) -> list[tuple[int, int, int]]:
    """Returns the row, the column and the value of the largest elements, the largest first."""
    order = np.argsort(-counts.data, kind="stable")[:number]
    rows, columns = counts.coords
    return list(
        zip(rows[order].tolist(), columns[order].tolist(), counts.data[order].tolist(), strict=True)
    )


def strongest_by_row(
    counts: scipy.sparse.coo_array, number: int
) -> list[list[tuple[int, int | float]]]:
    """Returns for each row the columns and values of its largest elements, the largest first."""
    rows, columns = counts.coords
    order = np.lexsort((-counts.data, rows))
    ends = np.searchsorted(rows[order], np.arange(counts.shape[0] + 1))
    return [
        [(int(columns[k]), counts.data[k].item()) for k in order[start : min(start + number, end)]]
        for start, end in itertools.pairwise(ends)
    ]


def companions(statistics: LabelStatistics) -> scipy.sparse.coo_array:
    """Counts the training images that have label i and another label j at [i, j], (C, C)."""
    joint = scipy.sparse.coo_array(statistics.cooccurrence)
    others = joint.coords[0] != joint.coords[1]
    pairs = tuple(positions[others] for positions in joint.coords)
    return scipy.sparse.coo_array((joint.data[others], pairs), shape=joint.shape)


def suspected_errors(
    decisions: Decisions,
    class_names: Sequence[str],
    image_names: Sequence[str],
    thresholds: np.ndarray,
    number: int,
) -> list[dict[str, Any]]:
    """Lists the images whose labels a model contradicts most, as rows of a table.

    Args:
        decisions: the decisions.
        class_names: the names of the C labels.
        image_names: the names of the N images.
        thresholds: the thresholds, (C,).
        number: the largest number of images of each label and kind.

    Returns:
        Rows with the "label", the "image", whether it is in the "data" ("has it" or "has it not"),
        the "probability", the "threshold" and their "contradiction", a distance of logits. The rows
        of a label follow each other, the largest contradiction first.
    """
    missed = decisions.extremes(decisions.has & ~decisions.given, number, decisions.probability)
    wrong = decisions.extremes(~decisions.has & decisions.given, number, -decisions.probability)
    rows = []
    for pairs in map(np.concatenate, zip(missed, wrong, strict=True)):
        for k in pairs[np.argsort(-np.abs(decisions.distance[pairs]), kind="stable")].tolist():
            label = decisions.label[k]
            rows.append(
                {
                    "label": class_names[label],
                    "image": image_names[decisions.image[k]],
                    "data": "has it" if decisions.has[k] else "has it not",
                    "probability": float(f"{decisions.probability[k]:.6g}"),
                    "threshold": float(f"{thresholds[label]:.6g}"),
                    "contradiction": round(abs(float(decisions.distance[k])), 3),
                }
            )
    return rows


def _logit(probability: np.ndarray) -> np.ndarray:
    clipped = np.clip(probability, 1e-6, 1 - 1e-6)
    return np.log(clipped) - np.log1p(-clipped)
