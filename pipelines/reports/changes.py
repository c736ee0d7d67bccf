"""What changes from one model to another on the same images: labels, decisions and images."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dbl_tf import label_values, metrics
from pipelines import resampling
from pipelines.reports.diagnosis import Pairs

OLD, NEW = 0, 1
# What became of a decision that changed: the number of each kind, and its name.
FOUND, LOST, ALARM, CORRECTED = range(4)
KINDS = ("found now", "lost", "new false alarm", "false alarm gone")
# With fewer images of a label, not even a gain on each of them is told from chance by a sign test:
# 2 · 2⁻⁵ is more than 5 %.
MIN_IMAGES = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChangedDecisions(Pairs):
    """The pairs of an image and a label that one of two models gives and the other does not.

    Attributes:
        kind: the number of each of the `KINDS`, int (K,).
        probabilities: the probabilities of the old and of the new model, (2, K).
    """

    kind: np.ndarray
    probabilities: np.ndarray

    def by_image(self) -> np.ndarray:
        """Counts the changes of each image by kind, int (N, 4)."""
        return self._by(self.image, self.shape[0])

    def by_label(self) -> np.ndarray:
        """Counts the changes of each label by kind, int (C, 4)."""
        return self._by(self.label, self.shape[1])

    def _by(self, positions: np.ndarray, number: int) -> np.ndarray:
        counts = np.bincount(len(KINDS) * positions + self.kind, minlength=len(KINDS) * number)
        return counts.reshape(number, len(KINDS))


def gains(counts: np.ndarray) -> np.ndarray:
    """How many more decisions became right than wrong, int (…,), from counts by kind (…, 4)."""
    return counts[..., [FOUND, CORRECTED]].sum(-1) - counts[..., [LOST, ALARM]].sum(-1)


@dataclasses.dataclass(frozen=True)
class Total:
    """A score of all labels together, of the old and of the new model, as fractions of 1.

    Attributes:
        values: the two scores.
        low: the lower end of the 95 % interval of the difference, new − old.
        high: its upper end.
    """

    values: tuple[float, float]
    low: float
    high: float

    @property
    def difference(self) -> float:
        """New − old."""
        return self.values[NEW] - self.values[OLD]

    @property
    def direction(self) -> int:
        """1 for a gain beyond chance, −1 for a loss beyond chance, otherwise 0."""
        return int(self.low > 0) - int(self.high < 0)

    def content(self) -> dict[str, float | None]:
        """Returns the numbers as JSON has them."""
        return {
            "old": defined(self.values[OLD]),
            "new": defined(self.values[NEW]),
            "difference": defined(self.difference),
            "low": defined(self.low),
            "high": defined(self.high),
        }


@dataclasses.dataclass(frozen=True)
class Changes:
    """What changes from an old to a new model.

    Attributes:
        test_counts: the number of images that are known to have each label, int (C,).
        average_precision: that of each model and label, (2, C); NaN without such images.
        intervals: the ends of the 95 % interval of the difference of both, (C, 2).
        at_threshold: the results of `metrics.precision_recall_f1` of each model at its thresholds.
        given: the number of images that each model gives each label, int (2, C).
        right: the number of these that have it, int (2, C).
        mean: the mean average precision over the labels with test images.
        f1: the F1 of all decisions together.
        decisions: the decisions that changed.
        num_images: the number N of images.
        num_resamples: how often the images were drawn anew.
    """

    test_counts: np.ndarray
    average_precision: np.ndarray
    intervals: np.ndarray
    at_threshold: Sequence[Mapping[str, Any]]
    given: np.ndarray
    right: np.ndarray
    mean: Total
    f1: Total
    decisions: ChangedDecisions
    num_images: int
    num_resamples: int

    @classmethod
    def of(
        cls,
        labels: np.ndarray,
        probabilities: Sequence[np.ndarray],
        thresholds: Sequence[np.ndarray],
        num_resamples: int | None = None,
    ) -> "Changes":
        """Compares two models.

        Args:
            labels: the labels, 0 and 1 (N, C), with −1 (or NaN) for unknown ones, whose decisions
                are left out.
            probabilities: those of the old and of the new model, (N, C).
            thresholds: those of the old and of the new model, (C,).
            num_resamples: how often the images are drawn anew for the intervals; see
                `resampling.number_of_resamples` if None.
        """
        labels = np.asarray(labels)
        has, unknown = labels == 1, label_values.is_unknown(labels)
        accepted = [
            (p >= np.asarray(t)) & ~unknown for p, t in zip(probabilities, thresholds, strict=True)
        ]
        if num_resamples is None:
            num_resamples = resampling.number_of_resamples(*labels.shape)
        blocks, of_f1 = [], []
        for weights in resampling.weights(len(labels), num_resamples):
            blocks.append(resampling.average_precision_of_models(labels, probabilities, weights))
            of_f1.append(_resampled_f1(has, accepted, weights))
        values = np.concatenate(blocks, axis=-1)
        precision = np.array([metrics.average_precision(labels, p) for p in probabilities])
        tested = ~np.isnan(precision[OLD])
        return cls(
            test_counts=np.count_nonzero(has, axis=0),
            average_precision=precision,
            intervals=resampling.interval(values[NEW] - values[OLD]),
            at_threshold=[
                metrics.precision_recall_f1(labels, p, t)
                for p, t in zip(probabilities, thresholds, strict=True)
            ],
            given=np.array([np.count_nonzero(a, axis=0) for a in accepted]),
            right=np.array([np.count_nonzero(a & has, axis=0) for a in accepted]),
            mean=_mean(precision[:, tested], values[:, tested]),
            f1=_f1(has, accepted, np.concatenate(of_f1, axis=-1)),
            decisions=_changed(has, accepted, probabilities),
            num_images=len(labels),
            num_resamples=num_resamples,
        )

    @property
    def difference(self) -> np.ndarray:
        """How much the average precision of each label rises, (C,)."""
        return self.average_precision[NEW] - self.average_precision[OLD]

    @property
    def judged(self) -> np.ndarray:
        """Whether a label has images enough to tell a change from chance, bool (C,)."""
        return self.test_counts >= MIN_IMAGES

    @property
    def gained(self) -> np.ndarray:
        """Whether a label is found better, beyond chance, bool (C,)."""
        return self.judged & (self.intervals[:, 0] > 0)

    @property
    def lost(self) -> np.ndarray:
        """Whether a label is found worse, beyond chance, bool (C,)."""
        return self.judged & (self.intervals[:, 1] < 0)


def defined(value: float) -> float | None:
    """Returns a number as JSON has it: None for NaN."""
    return None if np.isnan(value) else float(value)


def _mean(precision: np.ndarray, resampled: np.ndarray) -> Total:
    """The mean over the labels, (2, C) and (2, C, R); in a resample, over those that it has."""
    if not precision.size:
        return Total((np.nan, np.nan), np.nan, np.nan)
    known = ~np.isnan(resampled[OLD])
    rise = np.where(known, resampled[NEW] - resampled[OLD], 0).sum(axis=0)
    with np.errstate(invalid="ignore"):
        low, high = resampling.interval(rise / known.sum(axis=0))
    old, new = precision.mean(axis=1)
    return Total((float(old), float(new)), float(low), float(high))


def _f1(has: np.ndarray, accepted: Sequence[np.ndarray], resampled: np.ndarray) -> Total:
    """The F1 of all decisions, with that of the resamples, (2, R)."""
    old, new = _resampled_f1(has, accepted, np.ones((len(has), 1)))[:, 0]
    low, high = resampling.interval(resampled[NEW] - resampled[OLD])
    return Total((float(old), float(new)), float(low), float(high))


def _resampled_f1(
    has: np.ndarray, accepted: Sequence[np.ndarray], weights: np.ndarray
) -> np.ndarray:
    num_has = np.count_nonzero(has, axis=1)
    found = []
    for given in accepted:
        hits = 2.0 * np.count_nonzero(given & has, axis=1)
        with np.errstate(invalid="ignore"):
            found.append(hits @ weights / ((np.count_nonzero(given, axis=1) + num_has) @ weights))
    return np.array(found)


def _changed(
    has: np.ndarray, accepted: Sequence[np.ndarray], probabilities: Sequence[np.ndarray]
) -> ChangedDecisions:
    image, label = np.nonzero(accepted[OLD] != accepted[NEW])
    is_new, is_right = accepted[NEW][image, label], has[image, label]
    kind = np.where(is_right, np.where(is_new, FOUND, LOST), np.where(is_new, ALARM, CORRECTED))
    return ChangedDecisions(
        image=image,
        label=label,
        shape=has.shape,
        kind=kind,
        probabilities=np.array([p[image, label] for p in probabilities], np.float64),
    )
