"""The paper's figures, of anyone's data: arrays and scores → `dbl_tf.svg.Picture`.

Nothing is read, and nothing is known of samplers or models. Where there are more classes than a
reader can tell apart, a figure shows every class by its rank, without names, or says which it
leaves out.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from dbl_tf.statistics import GROUP_NAMES, LabelStatistics, is_sparse
from pipelines.reports.svg import (
    MAX_ROW_LABEL,
    NAME_LINE,
    Axis,
    Key,
    Panel,
    Picture,
    percent,
    shortened,
    wrapped,
)

MAX_NAMED_CLASSES = 60
MAX_NAMED_FIELDS = 30
MAX_MATRIX_CLASSES = 100
MAX_CURVE_POINTS = 300
GROUP_COLOURS = {"head": "--blue", "medium": "--orange", "tail": "--red"}
GROUP_LABELS = {
    "head": "head, 100 or more",
    "medium": "medium, 20 to 99",
    "tail": "tail, fewer than 20 training images",
}
MEAN_COLOURS = {"total": "--ink", **GROUP_COLOURS}

_FRACTION = dict(low=0.0, high=1.0, percent=True)
_LOGITS = np.linspace(-6.0, 6.0, 121)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a figure, from the most to the least frequent.

    Attributes:
        index: their columns in labels and scores, (C,).
        names: C names, in this order.
        groups: C names of groups, in this order.
    """

    index: np.ndarray
    names: list[str]
    groups: list[str]

    @classmethod
    def of(cls, names: Sequence[str], counts: Any, groups: Sequence[str]):
        """Sorts the classes by their training examples."""
        index = np.argsort(-np.asarray(counts), kind="stable")
        return cls(index, [names[i] for i in index], [groups[i] for i in index])

    @classmethod
    def of_statistics(cls, statistics: LabelStatistics):
        """The classes of a training set."""
        group_of = {int(i): name for name in GROUP_NAMES for i in statistics.groups[name]}
        groups = [group_of[i] for i in range(statistics.num_classes)]
        return cls.of(statistics.class_names, statistics.class_counts, groups)

    @classmethod
    def of_scores(cls, scores: Mapping[str, Any]):
        """The classes of `dbl_tf.evaluation.score`."""
        entries = scores["per_class"]
        counts = [entry["train_count"] for entry in entries.values()]
        return cls.of(list(entries), counts, [entry["group"] for entry in entries.values()])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def by_rank(self) -> bool:
        """Whether there are too many to name each."""
        return len(self) > MAX_NAMED_CLASSES

    def keys(self) -> list[Key]:
        """The groups that occur, for a legend."""
        mark = "dot" if self.by_rank else "bar"
        return [
            Key(GROUP_LABELS[name], GROUP_COLOURS[name], mark)
            for name in GROUP_NAMES
            if name in self.groups
        ]

    def rank_axis(self) -> Axis:
        """For figures of all classes without their names."""
        return Axis("classes by rank, most frequent first", 0, len(self) + 1, whole=True)


def within_class_variance(statistics: LabelStatistics, labels: Any) -> np.ndarray:
    """How unequally class-aware re-sampling draws the examples of each class (section 4.4).

    The variance, over the examples of a class, of their expected draws P^I(x) divided by the mean
    over the class.

    Args:
        statistics: of the training set.
        labels: multi-hot (N, C) of the training set, dense or `scipy.sparse`.

    Returns:
        float64 (C,): 0 where all examples are drawn equally often, NaN for a class without any.
    """
    probability = statistics.instance_probability(labels)
    if not is_sparse(labels):
        labels = np.asarray(labels, np.float64)
    counts = np.asarray(labels.sum(axis=0), np.float64).reshape(-1)
    transposed = labels.T
    with np.errstate(invalid="ignore"):
        mean = np.asarray(transposed @ probability) / counts
        # Two passes would need the examples of each class; the ratio is at most N²·C², in float64.
        variance = np.asarray(transposed @ probability**2) / counts / mean**2 - 1.0
    return np.maximum(variance, 0.0)


def precision_recall_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision of one class at each distinct score, in falling order of scores.

    Args:
        labels: zeros and ones, (N,), at least a one.
        scores: (N,).

    Returns:
        recall and precision, float64 (K,). The area under steps that end at these points is the
        average precision.
    """
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    hits = np.cumsum(np.asarray(labels, bool)[order])[last]
    return hits / hits[-1], hits / (last + 1.0)


def gradient_by_logit(
    loss: Callable[[Any, Any], Any],
    num_classes: int,
    index: int,
    target: float,
    logits: np.ndarray = _LOGITS,
) -> np.ndarray:
    """dℓ/dz of one class's loss element, by central differences, for any loss and backend.

    Args:
        loss: targets and logits, float32 (B, C) → elements (B, C), as `call` of a Keras loss.
        num_classes: C.
        index: the class.
        target: 1 for positives, 0 for negatives.
        logits: z, (K,).

    Returns:
        float64 (K,). The differences are off by less than 1e-3.
    """
    step = 0.02
    values = np.zeros((2 * len(logits), num_classes), np.float32)
    values[:, index] = np.concatenate([logits - step, logits + step])
    targets = np.zeros_like(values)
    targets[:, index] = target
    elements = keras.ops.convert_to_numpy(loss(targets, values))[:, index].astype(np.float64)
    # float32 has rounded the logits: the distance is not exactly twice the step.
    below, above = np.split(values[:, index].astype(np.float64), 2)
    return (elements[len(logits) :] - elements[: len(logits)]) / (above - below)


def class_shares(
    statistics: LabelStatistics, observed_counts: Any = None, num_draws: int | None = None
) -> Picture:
    """Fig. 2: how often each class is seen, before and after re-sampling.

    Args:
        statistics: of the training set.
        observed_counts: (C,), how many of the examples that training drew hold each class.
        num_draws: how many it drew.
    """
    classes = Classes.of_statistics(statistics)
    before = statistics.priors[classes.index]
    expected = statistics.resampled_probability[classes.index]
    series = [("in the data, n/N", before, "--grey")]
    if observed_counts is not None:
        observed = np.asarray(observed_counts, np.float64)[classes.index] / num_draws
        series.append(("in the images that training drew", observed, "--blue"))
    series.append(("class-aware re-sampling by Eq. 1, p̂", expected, "--red"))
    keys = [
        Key(
            label,
            colour,
            "dot" if values is not expected else "line" if classes.by_rank else "ring",
        )
        for label, values, colour in series
    ]
    shown = np.concatenate([values for _, values, _ in series])
    low = 10.0 ** math.floor(math.log10(min(shown[shown > 0], default=0.1)))
    axis = Axis("share of the images that hold the class", low, 1.0, log=True, percent=True)
    name, title = "class_shares", "How often training sees each class"
    caption = (
        " shows how frequent a class is in the data and among the images that training is shown; "
        "Eq. 1 is what drawing a class first, then an image of it, should give (the paper's Fig. "
        "2). The scale is logarithmic."
    )
    if classes.by_rank:
        x, axis = classes.rank_axis(), dataclasses.replace(axis, label="share of the images")
        panel = Panel(name, title, f"Each place from left to right{caption}", x, axis, keys)
        for _, values, colour in series:
            if values is expected:
                line = np.where(values > 0, values, np.nan)
                panel.line(np.arange(1, len(values) + 1), line, colour)
                continue
            for rank in np.flatnonzero(values > 0):
                panel.dot(rank + 1, values[rank], colour, r=1.8)
        return panel.picture()
    panel = Panel(name, title, f"Each row{caption}", axis, classes.names, keys, height=17)
    for row, label in enumerate(classes.names):
        after = series[-2][1][row]
        if after > 0 and before[row] > 0:
            panel.bar(before[row], after, row, "--grid", thick=0.16)
        tip = (
            f"{label}: {percent(before[row], 2)} in the data, {percent(expected[row], 2)} by Eq. 1"
        )
        if observed_counts is not None:
            tip += f", {percent(observed[row], 2)} drawn"
        for _, values, colour in series:
            if values[row] > 0:
                panel.dot(values[row], row, colour, tip, ring=values is expected)
    return panel.picture()


def conditional_probability_matrix(statistics: LabelStatistics) -> Picture:
    """Fig. 5, upper part: p(i given j), column i, row j, from the most frequent class on."""
    classes = Classes.of_statistics(statistics)
    chosen = np.arange(len(classes))
    left_out = ""
    if len(classes) > MAX_MATRIX_CLASSES:
        chosen = np.linspace(0, len(classes) - 1, MAX_NAMED_FIELDS).round().astype(int)
        left_out = (
            f" Shown are {len(chosen)} of the {len(classes):,} classes, evenly spaced from the "
            "most to the least frequent."
        )
    names = [classes.names[i] for i in chosen]
    index = classes.index[chosen]
    # From [i, j] to the paper's column i, row j.
    matrix = statistics.conditional_probability[np.ix_(index, index)].T
    size = len(names)
    if size > MAX_NAMED_FIELDS:
        names = [""] * size
        left_out = " Names have no room here; both ways, the most frequent class comes first."
    panel = Panel(
        "conditional_probability",
        "Which classes come together",
        "The stronger a field's colour, the more of the training images that hold the row's class "
        "hold the column's class too, p(column given row) (the paper's Fig. 5). Columns that are "
        "strong throughout are classes which come along whenever others are re-sampled." + left_out,
        names,
        names,
        [Key("none to all of the row's images", "--blue", "ramp")],
        height=max(3, round(250 / size)),
    )
    panel.shade(matrix, "of images with {row}, {value} hold {column}" if any(names) else "")
    return panel.picture()


def variance_by_class(statistics: LabelStatistics, variance: np.ndarray) -> Picture:
    """Fig. 5, lower part: what `within_class_variance` gives.

    Args:
        statistics: of the training set.
        variance: (C,), NaN for a class without examples.
    """
    return _bars_by_class(
        "within_class_variance",
        "How unequally images of a class are drawn",
        "Variance of the expected draws of the images within a class, their mean being 1: 0 means "
        "that every image of the class is shown equally often; a high value, that a few images "
        "which hold rare classes too stand for the whole class (the paper's Fig. 5).",
        Classes.of_statistics(statistics),
        variance,
        Axis("variance of normalised draws", 0, _round_up(np.nanmax(variance, initial=0.1))),
    )


def average_precision_by_class(scores: Mapping[str, Any]) -> Picture:
    """AP of each class, with what guessing would reach.

    Args:
        scores: of `dbl_tf.evaluation.score`.
    """
    entries = list(scores["per_class"].values())
    values = np.array([math.nan if e["ap"] is None else e["ap"] for e in entries])
    chance = np.array([e["test_count"] for e in entries]) / max(scores["num_test_examples"], 1)
    return _bars_by_class(
        "average_precision",
        "How well each class is found",
        "Average precision on the test images: 100 % puts every image of the class before all "
        "others. Guessing would reach the upright mark, the share of test images that hold the "
        "class. Classes are ordered by their number of training images.",
        Classes.of_scores(scores),
        values,
        Axis("average precision", **_FRACTION),
        chance,
    )


def gain_by_class(
    name: str, title: str, caption: str, scores: Mapping[str, Any], gain: np.ndarray
) -> Picture:
    """Fig. 6: what a method adds to the AP of each class.

    Args:
        name: stem of the file.
        title: of the figure.
        caption: what is compared.
        scores: of any of the runs: names, counts and groups of the classes.
        gain: (C,), differences of AP, fractions of 1; NaN where AP is not defined.
    """
    points = 100 * np.asarray(gain, np.float64)
    bound = _round_up(np.nanmax(np.abs(points), initial=5.0))
    return _bars_by_class(
        name,
        title,
        caption,
        Classes.of_scores(scores),
        points,
        Axis("change of average precision, percentage points", -bound, bound),
    )


def loss_gradients(
    loss: Callable[[Any, Any], Any], statistics: LabelStatistics, label: str
) -> list[Picture]:
    """Fig. 3: gradient of a loss by logit, of positives and of negatives, beside BCE.

    Args:
        loss: as of `gradient_by_logit`, without weights of examples or classes.
        statistics: of the training set; the most and the least frequent class are drawn.
        label: what the loss is called.
    """
    classes = Classes.of_statistics(statistics)
    present = [i for i in classes.index if statistics.class_counts[i] > 0]
    ends = {"most frequent": present[0], "rarest": present[-1]}
    pictures = []
    for target, name, pull, high, low in (
        (1.0, "positives", "upwards where the image holds the class", 0, -1),
        (0.0, "negatives", "downwards where it does not", 1, 0),
    ):
        bce = 1.0 / (1.0 + np.exp(-_LOGITS)) - target
        curves = {
            f"{label}, {which} class ({statistics.class_names[i]})": gradient_by_logit(
                loss, statistics.num_classes, i, target
            )
            for which, i in ends.items()
        }
        first, second = curves.values()
        if np.allclose(first, second, atol=1e-3):
            curves = {f"{label}, all classes": first}
        colours = ("--blue", "--red")
        drawn = np.concatenate([bce, *curves.values()])
        panel = Panel(
            f"loss_gradient_{name}",
            f"Pull of the loss on {name}",
            f"How strongly one image pulls the logit {pull}, dℓ/dz, before weights; to the right "
            "the model is surer that the class is present (the paper's Fig. 3). Where the curve is "
            "at 0, training no longer pushes.",
            Axis("logit z", -6, 6),
            Axis("gradient dℓ/dz", min(low, np.min(drawn)), max(high, np.max(drawn))),
            [
                Key("binary cross-entropy", "--grey", "dash"),
                *(Key(k, c, "line") for k, c in zip(curves, colours, strict=False)),
            ],
            height=170,
        )
        for curve, colour in zip(curves.values(), colours, strict=False):
            panel.line(_LOGITS, curve, colour)
        panel.line(_LOGITS, bce, "--grey", dashed=True)
        pictures.append(panel.picture())
    return pictures


def precision_recall(
    labels: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    statistics: LabelStatistics,
    scores: Mapping[str, Any],
) -> list[Picture]:
    """Precision–recall curves of up to three classes of each group: its best, middle and worst.

    Args:
        labels: multi-hot (N, C) of the test split.
        probabilities: (N, C).
        thresholds: (C,), where each class counts as present.
        statistics: of the training set.
        scores: of `dbl_tf.evaluation.score` for these.
    """
    labels = np.asarray(labels, bool)
    entries = [scores["per_class"][name] for name in statistics.class_names]
    average_precision = np.array([math.nan if e["ap"] is None else e["ap"] for e in entries])
    pictures = []
    for group, members in statistics.groups.items():
        members = members[~np.isnan(average_precision[members])]
        if not len(members):
            continue
        ranked = members[np.argsort(-average_precision[members], kind="stable")]
        examples = dict.fromkeys([ranked[0], ranked[len(ranked) // 2], ranked[-1]])
        styles = (("--blue", False), ("--green", True), ("--red", False))
        keys = [
            Key(
                f"{shortened(statistics.class_names[i], 190)}, AP {percent(average_precision[i])}",
                colour,
                "dash" if dashed else "line",
            )
            for i, (colour, dashed) in zip(examples, styles, strict=False)
        ]
        panel = Panel(
            f"precision_recall_{group}",
            f"Precision and recall: {group} classes",
            f"Best, middle and worst of the {len(members)} {group} classes with test images: how "
            "many of the images that get the tag really have it (precision), as more and more of "
            "those that have it are found (recall). Dots: at the chosen threshold.",
            Axis("recall", **_FRACTION),
            Axis("precision", **_FRACTION),
            keys,
        )
        for i, (colour, dashed) in zip(examples, styles, strict=False):
            recall, precision = precision_recall_curve(labels[:, i], probabilities[:, i])
            kept = _thinned(recall)
            panel.line(
                np.append(0.0, recall[kept]),
                np.append(precision[0], precision[kept]),
                colour,
                dashed=dashed,
                steps=True,
            )
            predicted = probabilities[:, i] >= thresholds[i]
            if predicted.any():
                hits = np.count_nonzero(predicted & labels[:, i])
                panel.dot(
                    hits / np.count_nonzero(labels[:, i]),
                    hits / np.count_nonzero(predicted),
                    colour,
                    f"{statistics.class_names[i]} from probability {thresholds[i]:.3f} on",
                )
        pictures.append(panel.picture())
    return pictures


def training_curves(history: Mapping[str, Sequence[float]]) -> list[Picture]:
    """Loss, and mAP of the val split where there is one, by epoch.

    Args:
        history: columns "epoch", "loss" and "val_map" where it was measured; NaN where it was not.
    """
    epochs = np.asarray(history["epoch"], np.float64) + 1
    pictures = []
    for column, title, label, caption in (
        ("loss", "Loss in training", "mean loss", "Mean loss of the training images by epoch."),
        (
            "val_map",
            "Quality in training",
            "mAP of val",
            "Mean average precision on the images set aside (val), after each epoch.",
        ),
    ):
        values = np.asarray(history.get(column, ()), np.float64)
        finite = values[np.isfinite(values)]
        if not len(finite):
            continue
        if column == "loss":
            axis = Axis(label, 0, _round_up(finite.max()) or 1.0)
        else:
            axis = Axis(label, **_FRACTION)
        x = Axis("epoch", 0, max(epochs[-1], 1), whole=True)
        panel = Panel(f"training_{column}", title, caption, x, axis, height=170)
        panel.line(epochs, values, "--blue")
        if len(finite) <= 30:
            for epoch, value in zip(epochs, values, strict=True):
                if math.isfinite(value):
                    panel.dot(epoch, value, "--blue", f"epoch {epoch:g}: {value:.4g}")
        pictures.append(panel.picture())
    return pictures


def map_by_variant(
    names: Sequence[str],
    means: Mapping[str, Sequence[float]],
    deviations: Mapping[str, Sequence[float]],
) -> Picture:
    """mAP in total and by group of several variants.

    Args:
        names: K variants.
        means: K mean mAP of "total" and each group, fractions of 1; NaN where not defined.
        deviations: K standard deviations over seeds likewise, NaN where there is one seed.
    """
    shown = {group: mean for group, mean in means.items() if np.isfinite(mean).any()}
    lines = max(len(wrapped(name, MAX_ROW_LABEL)) for name in names)
    panel = Panel(
        "comparison_map",
        "mAP of each variant",
        "Mean average precision over all classes (ring) and by group; bars are one standard "
        "deviation over seeds to each side.",
        Axis("mAP", **_FRACTION),
        names,
        [Key(g, MEAN_COLOURS[g], "ring" if g == "total" else "dot") for g in shown],
        height=max(22, lines * NAME_LINE + 3),
    )
    for group, mean in shown.items():
        for row, (value, deviation) in enumerate(zip(mean, deviations[group], strict=True)):
            if not math.isfinite(value):
                continue
            if math.isfinite(deviation):
                ends = (value - deviation, value + deviation)
                panel.bar(*ends, row, MEAN_COLOURS[group], thick=0.1)
            tip = f"{names[row]}: {group} {percent(value)}"
            panel.dot(value, row, MEAN_COLOURS[group], tip, ring=group == "total")
    return panel.picture()


def map_by_value(
    name: str,
    title: str,
    parameter: str,
    values: Sequence[float],
    means: Mapping[str, Sequence[float]],
    deviations: Mapping[str, Sequence[float]],
) -> Picture:
    """Fig. 7: mAP against one parameter of the loss.

    Args:
        name: stem of the file.
        title: of the figure.
        parameter: its symbol.
        values: K values, rising.
        means: K mean mAP of "total" and each group, fractions of 1; NaN where not defined.
        deviations: K standard deviations over seeds likewise, NaN where there is one seed.
    """
    log = values[0] > 0 and values[-1] / values[0] >= 8
    margin = 0 if log else 0.05 * (values[-1] - values[0])
    low, high = (values[0] / 1.15, values[-1] * 1.15) if log else (values[0], values[-1])
    shown = {group: mean for group, mean in means.items() if np.isfinite(mean).any()}
    finite = np.array([v for mean in shown.values() for v in mean if math.isfinite(v)])
    bottom, top = max(0.0, finite.min() - 0.05), min(1.0, finite.max() + 0.05)
    panel = Panel(
        name,
        title,
        f"Mean average precision of runs that differ in {parameter} alone (the paper's Fig. 7); "
        "upright lines are one standard deviation over seeds.",
        Axis(f"{parameter}, logarithmic" if log else parameter, low - margin, high + margin, log),
        Axis("mAP", bottom, top, percent=True),
        [Key(g, MEAN_COLOURS[g], "dash" if g == "total" else "line") for g in shown],
    )
    for group, mean in shown.items():
        panel.line(values, mean, MEAN_COLOURS[group], dashed=group == "total")
        for x, value, deviation in zip(values, mean, deviations[group], strict=True):
            if math.isfinite(value):
                tip = f"{parameter} = {x:g}: {group} {percent(value)}"
                panel.dot(x, value, MEAN_COLOURS[group], tip)
                if math.isfinite(deviation):
                    panel.whisker(x, value - deviation, value + deviation, MEAN_COLOURS[group])
    return panel.picture()


def _bars_by_class(
    name: str,
    title: str,
    caption: str,
    classes: Classes,
    values: np.ndarray,
    axis: Axis,
    marks: np.ndarray | None = None,
) -> Picture:
    """A bar for each class; a dot by rank where there are too many to name."""
    values = values[classes.index]
    marks = None if marks is None else marks[classes.index]
    keys = classes.keys()
    if marks is not None:
        keys.append(Key("guessing", "--ink", "tick" if not classes.by_rank else "line"))
    missing = int(np.isnan(values).sum())
    if missing:
        caption += f" {missing:,} of {len(classes):,} have no value: nothing to measure it on."
    if classes.by_rank:
        panel = Panel(name, title, caption, classes.rank_axis(), axis, keys, height=240)
        for rank in np.flatnonzero(~np.isnan(values)):
            panel.dot(rank + 1, values[rank], GROUP_COLOURS[classes.groups[rank]], r=1.8)
        if marks is not None:
            panel.line(np.arange(1, len(marks) + 1), marks, "--ink")
        return panel.picture()
    panel = Panel(name, title, caption, axis, classes.names, keys, height=17)
    for row, label in enumerate(classes.names):
        if not math.isnan(values[row]):
            shown = percent(values[row]) if axis.percent else f"{values[row]:.3g}"
            colour = GROUP_COLOURS[classes.groups[row]]
            panel.bar(0, values[row], row, colour, f"{label}: {shown}")
        if marks is not None:
            panel.tick(marks[row], row, "--ink")
    return panel.picture()


def _thinned(recall: np.ndarray) -> np.ndarray:
    """Points of a curve that can be told apart: where recall rises, evenly spaced."""
    risen = np.flatnonzero(np.diff(recall, prepend=0.0) > 0)
    if len(risen) > MAX_CURVE_POINTS:
        risen = risen[np.linspace(0, len(risen) - 1, MAX_CURVE_POINTS).round().astype(int)]
    return risen


def _round_up(value: float) -> float:
    """The next round number: 1, 2, 2.5, 5 times a power of ten."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= value * 0.999999)
