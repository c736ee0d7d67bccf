"""Draws the figures of the paper for any data, from arrays and scores to an `svg.Picture`.

The functions read no files and know neither samplers nor models. With more classes than a reader
can tell apart, a figure shows every class by its rank, without names, or says which ones it leaves
out. Texts for readers call a class a label.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from dbl_tf import metrics
from dbl_tf.statistics import (
    GROUP_NAMES,
    HEAD_MIN_COUNT,
    TAIL_MAX_COUNT,
    LabelStatistics,
    is_sparse,
)
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
GROUP_COLORS = {"head": "--blue", "medium": "--orange", "tail": "--red"}
# The number of training images that a label of each group has.
GROUP_RANGES = {
    "head": f"{HEAD_MIN_COUNT} or more",
    "medium": f"{TAIL_MAX_COUNT} to {HEAD_MIN_COUNT - 1}",
    "tail": f"fewer than {TAIL_MAX_COUNT}",
}
MEAN_COLORS = {"total": "--ink", **GROUP_COLORS}

_LOGITS = np.linspace(-6.0, 6.0, 121)


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes of a figure, from the most to the least frequent.

    Attributes:
        index: the columns of the classes in arrays of labels and scores, (C,).
        names: the C names of the classes, in this order.
        groups: the C names of their groups, in this order.
    """

    index: np.ndarray
    names: list[str]
    groups: list[str]

    @classmethod
    def of(cls, names: Sequence[str], counts: Any, groups: Sequence[str]) -> "Classes":
        """Sorts classes by their numbers of training examples."""
        index = np.argsort(-np.asarray(counts), kind="stable")
        return cls(index, [names[i] for i in index], [groups[i] for i in index])

    @classmethod
    def of_statistics(cls, statistics: LabelStatistics) -> "Classes":
        """Returns the classes of a training set."""
        group_of = {int(i): name for name in GROUP_NAMES for i in statistics.groups[name]}
        groups = [group_of[i] for i in range(statistics.num_classes)]
        return cls.of(statistics.class_names, statistics.class_counts, groups)

    @classmethod
    def of_scores(cls, scores: Mapping[str, Any]) -> "Classes":
        """Returns the classes in the content of a `metrics.json`."""
        entries = scores["per_class"]
        counts = [entry["train_count"] for entry in entries.values()]
        return cls.of(list(entries), counts, [entry["group"] for entry in entries.values()])

    def __len__(self) -> int:
        return len(self.names)

    @property
    def by_rank(self) -> bool:
        """Whether there are too many classes to name each."""
        return len(self) > MAX_NAMED_CLASSES

    def keys(self) -> list[Key]:
        """Returns a legend of the groups that occur."""
        mark = "dot" if self.by_rank else "bar"
        present = [name for name in GROUP_NAMES if name in self.groups]
        units = [""] * (len(present) - 1) + [" training images"]
        return [
            Key(f"{name}, {GROUP_RANGES[name]}{unit}", GROUP_COLORS[name], mark)
            for name, unit in zip(present, units, strict=True)
        ]

    def rank_axis(self) -> Axis:
        """Returns the horizontal axis of figures that show classes without names."""
        return Axis("labels by rank, most frequent first", 0, len(self) + 1, whole=True)


def within_class_variance(statistics: LabelStatistics, labels: Any) -> np.ndarray:
    """Measures how unequally re-sampling draws the examples of each class (section 4.4).

    Args:
        statistics: the statistics of the training set.
        labels: the labels of the training set, multi-hot (N, C), dense or `scipy.sparse`.

    Returns:
        For each class, the variance over its examples of P^I(x), their expected share of the draws,
        divided by its mean over the class; float64 (C,). It is 0 if all examples are drawn equally
        often, and NaN for a class without examples.
    """
    probability = statistics.instance_probability(labels)
    if not is_sparse(labels):
        labels = np.asarray(labels, np.float64)
    counts = np.asarray(labels.sum(axis=0), np.float64).reshape(-1)
    transposed = labels.T
    with np.errstate(invalid="ignore"):
        mean = np.asarray(transposed @ probability) / counts
        # This is E[p²]/E[p]² − 1, which needs only products with the labels; sums of squared
        # deviations would need the examples of each class one after the other.
        variance = np.asarray(transposed @ probability**2) / counts / mean**2 - 1.0
    return np.maximum(variance, 0.0)


def gradient_by_logit(
    loss: Callable[[Any, Any], Any],
    num_classes: int,
    index: int,
    target: float,
    logits: np.ndarray = _LOGITS,
) -> np.ndarray:
    """Computes the gradient dℓ/dz of the loss of one class by central differences.

    Args:
        loss: a function from targets and logits, float32 (B, C), to elements of the loss, (B, C),
            such as `call` of a Keras loss, on any backend.
        num_classes: the number C of classes.
        index: the position of the class.
        target: 1 for positives, 0 for negatives.
        logits: the logits z, (K,).

    Returns:
        The gradients, float64 (K,), with errors below 1e-3.
    """
    step = 0.02
    values = np.zeros((2 * len(logits), num_classes), np.float32)
    values[:, index] = np.concatenate([logits - step, logits + step])
    targets = np.zeros_like(values)
    targets[:, index] = target
    elements = keras.ops.convert_to_numpy(loss(targets, values))[:, index].astype(np.float64)
    # Because of the rounding to float32, the logits are not exactly two steps apart.
    below, above = np.split(values[:, index].astype(np.float64), 2)
    return (elements[len(logits) :] - elements[: len(logits)]) / (above - below)


def class_shares(
    statistics: LabelStatistics, observed_counts: Any = None, num_draws: int | None = None
) -> Picture:
    """Draws Fig. 2: how often training sees each class, before and after re-sampling.

    Args:
        statistics: the statistics of the training set.
        observed_counts: the number of drawn examples with each class, (C,).
        num_draws: the number of drawn examples.
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
            color,
            "dot" if values is not expected else "line" if classes.by_rank else "ring",
        )
        for label, values, color in series
    ]
    shown = np.concatenate([values for _, values, _ in series])
    low = 10.0 ** math.floor(math.log10(min(shown[shown > 0], default=0.1)))
    axis = Axis("share of the images that have the label", low, 1.0, log=True, percent=True)
    name, title = "class_shares", "How often training sees each label"
    caption = (
        " shows how frequent a label is in the data and among the images that training is shown. "
        "Eq. 1 is the share to expect where each draw picks a label first and then an image with "
        "it (the paper's Fig. 2). The scale is logarithmic."
    )
    if classes.by_rank:
        x, axis = classes.rank_axis(), dataclasses.replace(axis, label="share of the images")
        caption = f"Each position from left to right{caption}"
        panel = Panel(name, title, caption, x, axis, keys)
        for _, values, color in series:
            if values is expected:
                line = np.where(values > 0, values, np.nan)
                panel.line(np.arange(1, len(values) + 1), line, color)
                continue
            for rank in np.flatnonzero(values > 0).tolist():
                panel.dot(rank + 1, values[rank], color, r=1.8)
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
        for _, values, color in series:
            if values[row] > 0:
                panel.dot(values[row], row, color, tip, ring=values is expected)
    return panel.picture()


def conditional_probability_matrix(statistics: LabelStatistics) -> Picture:
    """Draws p(i given j) in column i and row j, the most frequent class first (Fig. 5, top)."""
    classes = Classes.of_statistics(statistics)
    chosen = np.arange(len(classes))
    left_out = ""
    if len(classes) > MAX_MATRIX_CLASSES:
        chosen = np.linspace(0, len(classes) - 1, MAX_NAMED_FIELDS).round().astype(int)
        left_out = (
            f" Shown are {len(chosen)} of the {len(classes):,} labels, evenly spaced from the "
            "most to the least frequent."
        )
    names = [classes.names[i] for i in chosen]
    index = classes.index[chosen]
    # From [i, j] to the paper's column i, row j.
    matrix = statistics.conditional_probability[np.ix_(index, index)].T
    size = len(names)
    if size > MAX_NAMED_FIELDS:
        names = [""] * size
        left_out = " There is no room for names; rows and columns start with the most frequent."
    panel = Panel(
        "conditional_probability",
        "Which labels occur together",
        "The stronger the color of a field, the more of the training images with the row's label "
        "also have the column's label, p(column given row) (the paper's Fig. 5). A column that is "
        "strong throughout belongs to a label that comes along whenever others are re-sampled."
        + left_out,
        names,
        names,
        [Key("none to all of the row's images", "--blue", "ramp")],
        height=max(3, round(250 / size)),
    )
    panel.shade(matrix, "of the images with {row}, {value} have {column}" if any(names) else "")
    return panel.picture()


def variance_by_class(statistics: LabelStatistics, variance: np.ndarray) -> Picture:
    """Draws the variance of draws within each class (Fig. 5, bottom).

    Args:
        statistics: the statistics of the training set.
        variance: the result of `within_class_variance`, (C,).
    """
    return _values_by_class(
        "within_class_variance",
        "How unequally the images of a label are drawn",
        "Variance of the expected draws of the images with a label, relative to their mean: 0 "
        "means that training is shown every image of the label equally often; a high value, that a "
        "few images, which have rare labels too, stand for all of them (the paper's Fig. 5).",
        Classes.of_statistics(statistics),
        variance,
        Axis("variance of normalized draws", 0, _round_up(np.nanmax(variance, initial=0.1))),
    )


def average_precision_by_class(scores: Mapping[str, Any]) -> Picture:
    """Draws the average precision of each class, and what guessing would reach.

    Args:
        scores: the content of a `metrics.json`.
    """
    entries = scores["per_class"].values()
    chance = np.array([e["test_count"] for e in entries]) / max(scores["num_test_examples"], 1)
    classes = Classes.of_scores(scores)
    return _values_by_class(
        "average_precision",
        "How well each label is found",
        "Average precision on the test images: 100 % ranks every image with the label before all "
        f"others. Guessing would reach the {'line' if classes.by_rank else 'vertical mark'}, the "
        "share of test images with the label. Labels are ordered by their number of training "
        "images.",
        classes,
        metrics.AVERAGE_PRECISION.read(scores),
        Axis("average precision", 0, 1, percent=True),
        chance,
    )


def gain_by_class(
    name: str, title: str, caption: str, scores: Mapping[str, Any], gain: np.ndarray
) -> Picture:
    """Draws Fig. 6: how much one variant changes the average precision of each class.

    Args:
        name: the name of the file without its suffix.
        title: the title of the figure.
        caption: a sentence that says what is compared.
        scores: the content of the `metrics.json` of any run, for names, counts and groups.
        gain: the differences of average precision as fractions of 1, (C,); NaN if not defined.
    """
    classes = Classes.of_scores(scores)
    points = 100 * np.asarray(gain, np.float64)
    bound = _round_up(np.nanmax(np.abs(points), initial=5.0))
    losses = "Dots below 0" if classes.by_rank else "Bars to the left"
    return _values_by_class(
        name,
        title,
        f"{caption} {losses} are losses.",
        classes,
        points,
        Axis("change of average precision, percentage points", -bound, bound),
    )


def loss_gradients(
    loss: Callable[[Any, Any], Any], statistics: LabelStatistics, label: str
) -> list[Picture]:
    """Draws Fig. 3: the gradients of a loss and of BCE by logit, for positives and for negatives.

    Args:
        loss: see `gradient_by_logit`; it must not apply weights of examples or classes.
        statistics: the statistics of the training set, whose most and least frequent classes are
            drawn.
        label: the name of the loss.
    """
    classes = Classes.of_statistics(statistics)
    present = [i for i in classes.index if statistics.class_counts[i] > 0]
    ends = {"most frequent": present[0], "rarest": present[-1]}
    pictures = []
    for target, name, pull, high, low in (
        (1.0, "positives", "up where the image has the label", 0, -1),
        (0.0, "negatives", "down where the image does not have the label", 1, 0),
    ):
        bce = 1.0 / (1.0 + np.exp(-_LOGITS)) - target
        curves = {
            f"{label}, {which} label ({statistics.class_names[i]})": gradient_by_logit(
                loss, statistics.num_classes, i, target
            )
            for which, i in ends.items()
        }
        first, second = curves.values()
        if np.allclose(first, second, atol=1e-3):
            curves = {f"{label}, all labels": first}
        colors = ("--blue", "--red")
        drawn = np.concatenate([bce, *curves.values()])
        panel = Panel(
            f"loss_gradient_{name}",
            f"Pull of the loss on {name}",
            f"How strongly one image pulls the logit {pull}: dℓ/dz, before weights (the paper's "
            "Fig. 3). Further to the right, the model is surer that the image has the label. Where "
            "a curve is at 0, training no longer pushes.",
            Axis("logit z", -6, 6),
            Axis("gradient dℓ/dz", min(low, np.min(drawn)), max(high, np.max(drawn))),
            [
                Key("binary cross-entropy", "--grey", "dash"),
                *(Key(k, c, "line") for k, c in zip(curves, colors, strict=False)),
            ],
            height=170,
        )
        for curve, color in zip(curves.values(), colors, strict=False):
            panel.line(_LOGITS, curve, color)
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
    """Draws precision-recall curves of the best, the middle and the worst class of each group.

    Args:
        labels: the labels of the test split, multi-hot (N, C), with −1 for unknown ones.
        probabilities: the probabilities, (N, C).
        thresholds: the thresholds of the decisions, (C,).
        statistics: the statistics of the training set.
        scores: the content of the `metrics.json` of these predictions.
    """
    average_precision = metrics.AVERAGE_PRECISION.read(scores)
    pictures = []
    for group, members in statistics.groups.items():
        members = members[~np.isnan(average_precision[members])]
        if not len(members):
            continue
        ranked = members[np.argsort(-average_precision[members], kind="stable")]
        examples = list(dict.fromkeys([ranked[0], ranked[len(ranked) // 2], ranked[-1]]))
        which = {1: f"The one {group} label", 2: f"Both {group} labels"}.get(
            len(members), f"Best, middle and worst of the {len(members)} {group} labels"
        )
        styles = (("--blue", False), ("--green", True), ("--red", False))
        keys = [
            Key(
                f"{shortened(statistics.class_names[i], 190)}, AP {percent(average_precision[i])}",
                color,
                "dash" if dashed else "line",
            )
            for i, (color, dashed) in zip(examples, styles, strict=False)
        ]
        panel = Panel(
            f"precision_recall_{group}",
            f"Precision and recall: {group} labels",
            f"{which} with test images: how many of the images that are given the label have it "
            "(precision), as more and more of those that have it are found (recall). A dot is at "
            "the label's threshold.",
            Axis("recall", 0, 1, percent=True),
            Axis("precision", 0, 1, percent=True),
            keys,
        )
        for i, (color, dashed) in zip(examples, styles, strict=False):
            curve = metrics.precision_recall_curve(labels[:, i], probabilities[:, i])
            kept = _thinned(curve.recall)
            panel.line(
                np.append(0.0, curve.recall[kept]),
                np.append(curve.precision[0], curve.precision[kept]),
                color,
                dashed=dashed,
                steps=True,
            )
            accepted = np.flatnonzero(curve.thresholds >= thresholds[i])
            if len(accepted):
                panel.dot(
                    curve.recall[accepted[-1]],
                    curve.precision[accepted[-1]],
                    color,
                    f"{statistics.class_names[i]} at probability {thresholds[i]:.3f}",
                )
        pictures.append(panel.picture())
    return pictures


def training_curves(history: Mapping[str, Sequence[float]]) -> list[Picture]:
    """Draws the loss by epoch, and the mAP on the val split if it was measured.

    Args:
        history: the columns "epoch", "loss" and, optionally, "val_map" by name; NaN if an epoch has
            no value.
    """
    epochs = np.asarray(history["epoch"], np.float64) + 1
    pictures = []
    for column, title, label, caption in (
        ("loss", "Loss in training", "mean loss", "Mean loss of the training images, by epoch."),
        (
            "val_map",
            "Quality in training",
            "mAP on val",
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
            axis = Axis(label, 0, 1, percent=True)
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
    """Draws the mAP of several variants, in total and by group.

    Args:
        names: the names of K variants.
        means: for "total" and each group, the mean mAP of the K variants as fractions of 1; NaN if
            not defined.
        deviations: the standard deviations over seeds in the same form; NaN for a single seed.
    """
    shown = {group: mean for group, mean in means.items() if np.isfinite(mean).any()}
    lines = max(len(wrapped(name, MAX_ROW_LABEL)) for name in names)
    panel = Panel(
        "comparison_map",
        "mAP of each variant",
        "Mean average precision over all labels (ring) and by group (dots)."
        + _explain_deviations("horizontal", deviations),
        Axis("mAP", 0, 1, percent=True),
        names,
        [Key(g, MEAN_COLORS[g], "ring" if g == "total" else "dot") for g in shown],
        height=max(22, lines * NAME_LINE + 3),
    )
    for group, mean in shown.items():
        for row, (value, deviation) in enumerate(zip(mean, deviations[group], strict=True)):
            if not math.isfinite(value):
                continue
            if math.isfinite(deviation):
                ends = (value - deviation, value + deviation)
                panel.bar(*ends, row, MEAN_COLORS[group], thick=0.1)
            tip = f"{names[row]}: {group} {percent(value)}"
            panel.dot(value, row, MEAN_COLORS[group], tip, ring=group == "total")
    return panel.picture()


def map_by_value(
    name: str,
    title: str,
    parameter: str,
    values: Sequence[float],
    means: Mapping[str, Sequence[float]],
    deviations: Mapping[str, Sequence[float]],
) -> Picture:
    """Draws Fig. 7: mAP against one setting, such as a parameter of the loss.

    Args:
        name: the name of the file without its suffix.
        title: the title of the figure.
        parameter: the symbol of the setting.
        values: the K values of the setting, rising.
        means: see `map_by_variant`.
        deviations: see `map_by_variant`.
    """
    log = values[0] > 0 and values[-1] / values[0] >= 8
    margin = 0 if log else 0.05 * (values[-1] - values[0])
    low, high = (values[0] / 1.15, values[-1] * 1.15) if log else (values[0], values[-1])
    shown = {group: mean for group, mean in means.items() if np.isfinite(mean).any()}
    finite = [v for mean in shown.values() for v in mean if math.isfinite(v)]
    bottom = max(0.0, min(finite, default=0.0) - 0.05)
    top = min(1.0, max(finite, default=1.0) + 0.05)
    panel = Panel(
        name,
        title,
        f"Mean average precision of runs that differ only in {parameter} (the paper's Fig. 7)."
        + _explain_deviations("vertical", deviations),
        Axis(f"{parameter}, logarithmic" if log else parameter, low - margin, high + margin, log),
        Axis("mAP", bottom, top, percent=True),
        [Key(g, MEAN_COLORS[g], "dash" if g == "total" else "line") for g in shown],
    )
    for group, mean in shown.items():
        panel.line(values, mean, MEAN_COLORS[group], dashed=group == "total")
        for x, value, deviation in zip(values, mean, deviations[group], strict=True):
            if math.isfinite(value):
                tip = f"{parameter} = {x:g}: {group} {percent(value)}"
                panel.dot(x, value, MEAN_COLORS[group], tip)
                if math.isfinite(deviation):
                    panel.whisker(x, value - deviation, value + deviation, MEAN_COLORS[group])
    return panel.picture()


def _explain_deviations(direction: str, deviations: Mapping[str, Sequence[float]]) -> str:
    """Returns a sentence about the lines of standard deviations, if there are any."""
    if not any(np.isfinite(values).any() for values in deviations.values()):
        return ""
    return f" The {direction} lines reach one standard deviation over seeds to each side."


def _values_by_class(
    name: str,
    title: str,
    caption: str,
    classes: Classes,
    values: np.ndarray,
    axis: Axis,
    marks: np.ndarray | None = None,
) -> Picture:
    """Draws bars by class, or dots by rank if there are too many classes to name each."""
    values = values[classes.index]
    marks = None if marks is None else marks[classes.index]
    keys = classes.keys()
    if marks is not None:
        keys.append(Key("guessing", "--ink", "tick" if not classes.by_rank else "line"))
    missing = int(np.isnan(values).sum())
    if missing:
        have = "has" if missing == 1 else "have"
        caption += f" {missing:,} of {len(classes):,} labels {have} no images to measure this on."
    if classes.by_rank:
        panel = Panel(name, title, caption, classes.rank_axis(), axis, keys, height=240)
        for rank in np.flatnonzero(~np.isnan(values)).tolist():
            panel.dot(rank + 1, values[rank], GROUP_COLORS[classes.groups[rank]], r=1.8)
        if marks is not None:
            panel.line(np.arange(1, len(marks) + 1), marks, "--ink")
        return panel.picture()
    panel = Panel(name, title, caption, axis, classes.names, keys, height=17)
    for row, label in enumerate(classes.names):
        if not math.isnan(values[row]):
            shown = percent(values[row]) if axis.percent else f"{values[row]:.3g}"
            color = GROUP_COLORS[classes.groups[row]]
            panel.bar(0, values[row], row, color, f"{label}: {shown}")
        if marks is not None:
            panel.tick(marks[row], row, "--ink")
    return panel.picture()


def _thinned(recall: np.ndarray) -> np.ndarray:
    """Returns the positions where recall rises, thinned evenly if there are many."""
    risen = np.flatnonzero(np.diff(recall, prepend=0.0) > 0)
    if len(risen) > MAX_CURVE_POINTS:
        risen = risen[np.linspace(0, len(risen) - 1, MAX_CURVE_POINTS).round().astype(int)]
    return risen


def _round_up(value: float) -> float:
    """Rounds up to 1, 2, 2.5 or 5 times a power of ten."""
    if value <= 0:
        return 0.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= value * 0.999999)
