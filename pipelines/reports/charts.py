"""Charts of runs and comparisons as Vega-Lite specifications, from arrays and scores.

A `Chart` is shown in a page, where the pointer tells names and numbers, and written as an SVG file.
The functions read no files and know neither samplers nor models. Texts for readers call a class a
label.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import altair as alt
import keras
import numpy as np
import vl_convert

from dbl_tf.statistics import (
    GROUP_NAMES,
    HEAD_MIN_COUNT,
    TAIL_MAX_COUNT,
    LabelStatistics,
    is_sparse,
)
from pipelines.reports.text import plain, shortened

# With more labels than this, an axis shows them by rank, or a matrix shows some of them.
MAX_NAMED_CLASSES = 40
# With more points than this, they are smaller.
_MANY_POINTS = 200
# At least 3 : 1 against white and against the dark background; shapes tell groups apart too.
GROUP_COLORS = {"head": "#3b82c4", "medium": "#c77700", "tail": "#d1495b"}
_GREY = "#7a7f87"
MEAN_COLORS = {"total": _GREY, **GROUP_COLORS}
# The number of training images that a label of each group has.
GROUP_RANGES = {
    "head": f"{HEAD_MIN_COUNT} or more",
    "medium": f"{TAIL_MAX_COUNT} to {HEAD_MIN_COUNT - 1}",
    "tail": f"fewer than {TAIL_MAX_COUNT}",
}
# The chart of one curve, whose data the script of a page exchanges.
CURVE = "curve"
_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
_STATIC_WIDTH = 640
_ROWS = alt.Chart(alt.NamedData("rows"))
_PERCENT = alt.Axis(format="%")
# Pixels between the end of an axis and the middle of a mark, which would be cut off there.
_ROOM = 10
_LOGITS = np.linspace(-6.0, 6.0, 121)
_NAME_LIMIT = 220  # pixels


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart with its data and the words around it.

    Attributes:
        name: the name of its file without the suffix.
        title: the heading.
        caption: sentences that explain what is drawn.
        drawing: the Altair chart, which refers to its data by the name "rows".
        rows: the data, a dictionary for each mark.
        height: the height in pixels.
        wide: whether it takes the whole width of a page.
    """

    name: str
    title: str
    caption: str
    drawing: alt.TopLevelMixin
    rows: Sequence[Mapping[str, Any]]
    height: int = 260
    wide: bool = False

    def specification(self, width: int | str = "container") -> dict[str, Any]:
        """Returns the Vega-Lite specification, with its data."""
        content = self.drawing.to_dict() | {"datasets": {"rows": self.rows}}
        size = {"width": width, "height": self.height, "background": None}
        # The library that draws ends the process where a text has a control character.
        return _plain(content | size)

    def svg(self) -> str:
        """Draws the chart with its title on white."""
        content = self.specification(_STATIC_WIDTH) | {"background": "white"}
        content["title"] = plain(self.title)
        return vl_convert.vegalite_to_svg(content, vl_version=_VEGA_LITE)


@functools.cache
def javascript() -> str:
    """Returns Vega, Vega-Lite and Vega-Embed as one script, made without a network in seconds."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGA_LITE)


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


def average_precision(
    names: Sequence[str],
    groups: Sequence[str],
    train_counts: Sequence[int],
    values: np.ndarray,
    intervals: np.ndarray,
    chance: np.ndarray,
) -> Chart:
    """Draws the average precision of each class against its number of training examples.

    Args:
        names: the names of the C classes.
        groups: the names of their groups.
        train_counts: their numbers of training examples.
        values: the average precision, (C,); NaN if not defined.
        intervals: the lower and upper ends of its confidence intervals, (C, 2).
        chance: what guessing would reach, (C,).
    """
    rows = [
        {
            "id": i,
            "label": names[i],
            "group": groups[i],
            "count": train_counts[i],
            "x": max(train_counts[i], 0.5),
            "ap": values[i],
            "low": intervals[i, 0],
            "high": intervals[i, 1],
            "chance": chance[i],
        }
        for i in np.flatnonzero(~np.isnan(values)).tolist()
    ]
    y = alt.Y("ap:Q", title="average precision", axis=_PERCENT, scale=_roomy(domain=[0, 1]))
    points = _points_of_groups(
        _count_axis(),
        y,
        len(rows),
        _count("training images"),
        alt.Tooltip("ap:Q", title="average precision", format=".1%"),
        *_interval_tooltips(".1%"),
        alt.Tooltip("chance:Q", title="guessing", format=".2%"),
    )
    dash = _ROWS.mark_tick(color=_GREY, thickness=2, size=9, orient="horizontal")
    drawing = alt.layer(
        dash.encode(x=_count_axis(), y=alt.Y("chance:Q")),
        _interval_rules(_count_axis(), len(rows)),
        points.add_params(_chosen()),
    )
    return Chart(
        "average_precision",
        "How well each label is found",
        "Average precision on the test images: 100 % ranks every image with the label before all "
        "others. A horizontal dash is what guessing would reach; a vertical line, the 95 % "
        "interval over draws of the test images.",
        drawing,
        rows,
        340,
    )


def class_shares(
    statistics: LabelStatistics, observed_counts: Any = None, num_draws: int | None = None
) -> Chart:
    """Draws Fig. 2: how often training sees each class, before and after re-sampling.

    Args:
        statistics: the statistics of the training set.
        observed_counts: the number of drawn examples with each class, (C,).
        num_draws: the number of drawn examples.
    """
    series = {"in the data, n/N": statistics.priors}
    if observed_counts is not None and num_draws is not None:
        drawn = np.asarray(observed_counts, np.float64) / num_draws
        series["in the images that training drew"] = drawn
    series["class-aware re-sampling by Eq. 1"] = statistics.resampled_probability
    rows = [
        {**row, "series": name, "share": share}
        for name, values in series.items()
        for row, share in _by_rank(statistics, values)
        if share > 0
    ]
    colors = [_GREY, GROUP_COLORS["head"], GROUP_COLORS["tail"]]
    scale = alt.Scale(domain=list(series), range=[colors[0], *colors[-len(series) + 1 :]])
    drawing = _ROWS.mark_point(filled=True, size=34, opacity=1).encode(
        x=_rank_axis(statistics),
        y=alt.Y("share:Q", title="share of the images", scale=_roomy(type="log"), axis=_PERCENT),
        color=alt.Color("series:N", scale=scale, legend=_legend()),
        shape=alt.Shape("series:N", scale=alt.Scale(domain=list(series))),
        tooltip=[
            "label:N",
            "series:N",
            alt.Tooltip("share:Q", format=".2%"),
            _count("training images"),
        ],
    )
    return Chart(
        "class_shares",
        "How often training sees each label",
        "How frequent a label is in the data and among the images that training is shown. Eq. 1 is "
        "the share to expect where each draw picks a label first and then an image with it (the "
        "paper's Fig. 2).",
        drawing,
        rows,
        300,
    )


def variance_by_class(statistics: LabelStatistics, variance: np.ndarray) -> Chart:
    """Draws the variance of draws within each class (Fig. 5, bottom).

    Args:
        statistics: the statistics of the training set.
        variance: the result of `within_class_variance`, (C,).
    """
    rows = [
        {**row, "variance": value}
        for row, value in _by_rank(statistics, variance)
        if not math.isnan(value)
    ]
    drawing = _points_of_groups(
        _rank_axis(statistics),
        alt.Y("variance:Q", title="variance of normalized draws", scale=_roomy()),
        len(rows),
        alt.Tooltip("variance:Q", format=",.3~r"),
        _count("training images"),
    )
    return Chart(
        "within_class_variance",
        "How unequally the images of a label are drawn",
        "Variance of the expected draws of the images with a label, relative to their mean: 0 "
        "means that training is shown every image of the label equally often; a high value, that a "
        "few images, which have rare labels too, stand for all of them (the paper's Fig. 5).",
        drawing,
        rows,
    )


def conditional_probability_matrix(statistics: LabelStatistics) -> Chart:
    """Draws p(i given j), i to the right and j downwards, the most frequent first (Fig. 5, top)."""
    order = np.argsort(-statistics.class_counts, kind="stable")
    left_out = ""
    if len(order) > MAX_NAMED_CLASSES:
        places = np.linspace(0, len(order) - 1, MAX_NAMED_CLASSES).round().astype(int)
        left_out = (
            f" Shown are {MAX_NAMED_CLASSES} of the {len(order):,} labels, evenly spaced from the "
            "most to the least frequent."
        )
        order = order[places]
    names = statistics.class_names
    rows = [
        {"row": names[j], "column": names[i], "p": statistics.conditional_probability[i, j]}
        for j in order.tolist()
        for i in order.tolist()
    ]
    drawing = _matrix(
        alt.X("column:N", title="also has label"),
        alt.Y("row:N", title="label"),
        alt.Color("p:Q", title="share", scale=alt.Scale(scheme="blues"), legend=_legend("%")),
        [names[i] for i in order],
        [names[i] for i in order],
        [
            alt.Tooltip("row:N", title="of the images with"),
            alt.Tooltip("p:Q", title="this share", format=".1%"),
            alt.Tooltip("column:N", title="also have"),
        ],
    )
    return Chart(
        "conditional_probability",
        "Which labels occur together",
        "The stronger the color of a field, the more of the training images with the label at its "
        "left also have the label below it (the paper's Fig. 5). A column that is strong "
        "throughout belongs to a label that comes along whenever others are re-sampled." + left_out,
        drawing,
        rows,
        max(180, 16 * len(order)),
        wide=True,
    )


def confusion_matrix(pairs: Sequence[Mapping[str, Any]]) -> Chart:
    """Draws how often one label was given wrongly to images that miss another.

    Args:
        pairs: dictionaries with the "missed" and the "given" label and the number of "images".
    """
    missed, given = (
        list(dict.fromkeys(pair[side] for pair in pairs)) for side in ("missed", "given")
    )
    drawing = _matrix(
        alt.X("given:N", title="wrongly given label"),
        alt.Y("missed:N", title="missed label"),
        alt.Color(
            "images:Q", title="test images", scale=alt.Scale(scheme="oranges"), legend=_legend(",")
        ),
        given,
        missed,
        [
            alt.Tooltip("missed:N", title="missed label"),
            alt.Tooltip("given:N", title="wrongly given label"),
            _count("test images", "images"),
        ],
    )
    return Chart(
        "confusion",
        "Which label is given where another is missed",
        f"The {len(pairs):,} most frequent pairs: the test images that have the label at the left, "
        "are not given it, and are wrongly given the label below.",
        drawing,
        pairs,
        max(140, 20 * len(missed)),
        wide=True,
    )


def precision_recall(name: str, title: str, rows: Sequence[Mapping[str, Any]]) -> Chart:
    """Draws precision-recall curves, and the points at the thresholds.

    Args:
        name: the name of the file without its suffix.
        title: the heading.
        rows: dictionaries with the "label", the "threshold" of a point, its "precision" and
            "recall", and whether it is "chosen". The points of a curve are in rising recall.
    """
    percent: dict[str, Any] = {"axis": _PERCENT, "scale": _roomy(domain=[0, 1])}
    encoding: dict[str, Any] = {
        "x": alt.X("recall:Q", **percent),
        "y": alt.Y("precision:Q", **percent),
        "color": alt.Color("label:N", legend=None if name == CURVE else _legend()),
        "tooltip": [
            "label:N",
            alt.Tooltip("threshold:Q", format=".5~r"),
            alt.Tooltip("precision:Q", format=".1%"),
            alt.Tooltip("recall:Q", format=".1%"),
        ],
    }
    drawing = alt.layer(
        _ROWS.mark_line(interpolate="step-before").encode(
            order=alt.Order("threshold:Q", sort="descending"), **encoding
        ),
        _ROWS.mark_point(filled=True, size=110).transform_filter("datum.chosen").encode(**encoding),
    )
    return Chart(
        name,
        title,
        "How many of the images that are given the label have it (precision), as more and more of "
        "those that have it are found (recall). The dot is at the threshold.",
        drawing,
        rows,
    )


def loss_gradients(
    loss: Callable[[Any, Any], Any], statistics: LabelStatistics, label: str
) -> list[Chart]:
    """Draws Fig. 3: the gradients of a loss and of BCE by logit, for positives and for negatives.

    Args:
        loss: see `gradient_by_logit`; it must not apply weights of examples or classes.
        statistics: the statistics of the training set, whose most and least frequent classes are
            drawn.
        label: the name of the loss.
    """
    order = np.argsort(-statistics.class_counts, kind="stable")
    present = [i for i in order.tolist() if statistics.class_counts[i] > 0]
    ends = {"most frequent": present[0], "rarest": present[-1]}
    charts = []
    for target, name, pull in (
        (1.0, "positives", "up where the image has the label"),
        (0.0, "negatives", "down where the image does not have the label"),
    ):
        curves = {
            f"{label}, {which} label ({shortened(statistics.class_names[i])})": gradient_by_logit(
                loss, statistics.num_classes, i, target
            )
            for which, i in ends.items()
        }
        first, second = curves.values()
        if np.allclose(first, second, atol=1e-3):
            curves = {f"{label}, all labels": first}
        curves["binary cross-entropy"] = 1.0 / (1.0 + np.exp(-_LOGITS)) - target
        drawing = _ROWS.mark_line().encode(
            x=alt.X("logit:Q", title="logit z"),
            y=alt.Y("gradient:Q", title="gradient dℓ/dz"),
            color=alt.Color("curve:N", sort=None, legend=_legend()),
            strokeDash=alt.StrokeDash("curve:N", sort=None),
            tooltip=["curve:N", "logit:Q", alt.Tooltip("gradient:Q", format=".3f")],
        )
        rows = [
            {"curve": curve, "logit": round(z, 2), "gradient": round(value, 5)}
            for curve, values in curves.items()
            for z, value in zip(_LOGITS.tolist(), values.tolist(), strict=True)
        ]
        charts.append(
            Chart(
                f"loss_gradient_{name}",
                f"Pull of the loss on {name}",
                f"How strongly one image pulls the logit {pull}: dℓ/dz, before weights (the "
                "paper's Fig. 3). Further to the right, the model is surer that the image has the "
                "label. Where a curve is at 0, training no longer pushes.",
                drawing,
                rows,
                220,
            )
        )
    return charts


_HISTORY = {
    "loss": ("Loss in training", "Mean loss of the training images, by epoch."),
    "val_map": (
        "Quality in training",
        "Mean average precision on the images set aside (val), after each epoch.",
    ),
    "learning_rate": ("Learning rate", "The learning rate at the end of each epoch."),
    "images_per_second": ("Speed", "Training images per second in each epoch."),
}


def training_curves(history: Mapping[str, Sequence[float]]) -> list[Chart]:
    """Draws what the history has of loss, mAP on val, learning rate and speed, by epoch.

    Args:
        history: the columns "epoch", "loss" and, optionally, others by name; NaN if an epoch has no
            value.
    """
    charts = []
    for column, (title, caption) in _HISTORY.items():
        rows = [
            {"epoch": epoch + 1, "value": value}
            for epoch, value in zip(history["epoch"], history.get(column, ()), strict=False)
            if math.isfinite(value)
        ]
        if not rows:
            continue
        is_map = column == "val_map"
        y = alt.Y(
            "value:Q",
            title="mAP on val" if is_map else column.replace("_", " "),
            axis=_PERCENT if is_map else alt.Axis(),
            # A course of a few points is not seen on an axis from 0 to 100 %.
            scale=_roomy(zero=not is_map),
        )
        # Between a few epochs, there would be ticks at halves.
        few = {"values": [row["epoch"] for row in rows]} if len(rows) <= 12 else {"tickMinStep": 1}
        drawing = _ROWS.mark_line(point=len(rows) <= 60, color=GROUP_COLORS["head"]).encode(
            x=alt.X("epoch:Q", axis=alt.Axis(format=",d", **few), scale=_roomy(zero=False)),
            y=y,
            tooltip=[
                alt.Tooltip("epoch:Q", format=",d"),
                alt.Tooltip("value:Q", format=".2%" if is_map else ",.5~r", title=title),
            ],
        )
        charts.append(Chart(f"training_{column}", title, caption, drawing, rows, 200))
    return charts


def map_by_variant(
    names: Sequence[str],
    means: Mapping[str, Sequence[float]],
    deviations: Mapping[str, Sequence[float]],
) -> Chart:
    """Draws the mAP of several variants, in total and by group.

    Args:
        names: the names of K variants.
        means: for "total" and each group, the mean mAP of the K variants as fractions of 1; NaN if
            not defined.
        deviations: the standard deviations over runs in the same form; NaN for a single run.
    """
    rows = _mean_rows("variant", names, means, deviations)
    y = alt.Y("variant:N", sort=None, title=None, axis=alt.Axis(labelLimit=_NAME_LIMIT))
    x = alt.X("mean:Q", title="mAP", axis=_PERCENT, scale=_roomy())
    drawing = _means(x, y, "x", "variant")
    return Chart(
        "comparison_map",
        "mAP of each variant",
        "Mean average precision over the labels with test images, in total and by group."
        + _explain_deviations(deviations),
        drawing,
        rows,
        max(120, 34 * len(names)),
    )


def map_by_value(
    name: str,
    title: str,
    parameter: str,
    values: Sequence[float],
    means: Mapping[str, Sequence[float]],
    deviations: Mapping[str, Sequence[float]],
) -> Chart:
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
    x = alt.X("value:Q", title=parameter, scale=_roomy(type="log" if log else "linear", zero=False))
    y = alt.Y("mean:Q", title="mAP", axis=_PERCENT, scale=_roomy(zero=False))
    return Chart(
        name,
        title,
        f"Mean average precision of runs that differ only in {parameter} (the paper's Fig. 7)."
        + _explain_deviations(deviations),
        _means(x, y, "y", "value", line=True),
        _mean_rows("value", values, means, deviations),
    )


def gain_by_class(
    name: str,
    title: str,
    caption: str,
    names: Sequence[str],
    groups: Sequence[str],
    train_counts: Sequence[int],
    gain: np.ndarray,
    intervals: np.ndarray | None = None,
) -> Chart:
    """Draws Fig. 6: how much one variant changes the average precision of each class.

    Args:
        name: the name of the file without its suffix.
        title: the title of the figure.
        caption: a sentence that says what is compared.
        names: the names of the C classes.
        groups: the names of their groups.
        train_counts: their numbers of training examples.
        gain: the differences of average precision in points, (C,); NaN if not defined.
        intervals: the ends of the confidence intervals of the differences, (C, 2). Where they are
            given, a click on a point chooses its label.
    """
    rows = [
        {
            "id": i,
            "label": names[i],
            "group": groups[i],
            "count": train_counts[i],
            "x": max(train_counts[i], 0.5),
            "gain": gain[i],
            **({} if intervals is None else dict(zip(("low", "high"), intervals[i], strict=True))),
        }
        for i in np.flatnonzero(~np.isnan(gain)).tolist()
    ]
    points = _points_of_groups(
        _count_axis(),
        alt.Y("gain:Q", title="change of AP, points", scale=_roomy()),
        len(rows),
        alt.Tooltip("gain:Q", title="points", format="+.1f"),
        *(() if intervals is None else _interval_tooltips("+.1f")),
        _count("training images"),
    )
    layers: list[alt.Chart] = [_ROWS.mark_rule(color=_GREY).encode(y=alt.datum(0))]
    if intervals is not None:
        layers.append(_interval_rules(_count_axis(), len(rows)))
        points = points.add_params(_chosen())
    drawing = alt.layer(*layers, points)
    caption = f"{caption} Points below 0 are losses."
    return Chart(name, title, caption, drawing, rows, 260 if intervals is None else 340)


def _points_of_groups(x: alt.X, y: alt.Y, num_points: int, *tooltip: Any) -> alt.Chart:
    """A point for each label, whose group is told by its color and its shape."""
    shape = alt.Shape("group:N", scale=alt.Scale(domain=list(GROUP_NAMES)))
    size = 60 if num_points <= _MANY_POINTS else 20
    encoded = _ROWS.mark_point(filled=True, size=size, opacity=1, cursor="pointer").encode(
        x=x, y=y, color=_group_color(), shape=shape, tooltip=["label:N", *tooltip]
    )
    # Dragging moves. The wheel zooms with Shift alone, because otherwise it scrolls the page.
    zoom = alt.selection_interval(
        bind="scales",
        zoom="wheel![event.shiftKey]",
        encodings=["y"] if str(x["shorthand"]).endswith(":N") else ["x", "y"],
    )
    return encoded.add_params(zoom)


def _roomy(**options: Any) -> alt.Scale:
    """A scale at whose ends a mark is not cut off."""
    return alt.Scale(padding=_ROOM, nice=False, **options)


def _count_axis() -> alt.X:
    return alt.X("x:Q", title="training images of the label", scale=_roomy(type="log"))


def _count(title: str, field: str = "count") -> alt.Tooltip:
    return alt.Tooltip(f"{field}:Q", title=title, format=",")


def _interval_rules(x: alt.X, num_points: int) -> alt.Chart:
    opacity = 0.4 if num_points <= _MANY_POINTS else 0.1
    encoding: dict[str, Any] = {"y": alt.Y("low:Q"), "y2": "high:Q", "color": _group_color()}
    return _ROWS.mark_rule(opacity=opacity).encode(x=x, **encoding)


def _interval_tooltips(number_format: str) -> list[alt.Tooltip]:
    ends = (("low:Q", "95 % interval from"), ("high:Q", "to"))
    return [alt.Tooltip(end, title=title, format=number_format) for end, title in ends]


def _chosen() -> alt.Parameter:
    """The label of the point that is clicked, of which the script of a page is told."""
    return alt.selection_point(name="chosen", fields=["id"], on="click")


def _plain(value: Any) -> Any:
    """Returns a specification whose texts have no control characters, and with null for NaN."""
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _mean_rows(
    key: str,
    values: Sequence[Any],
    means: Mapping[str, Sequence[float]],
    deviations: Mapping[str, Sequence[float]],
) -> list[dict[str, Any]]:
    rows = []
    for group in means:
        for value, mean, sd in zip(values, means[group], deviations[group], strict=True):
            if math.isfinite(mean):
                spread = sd if math.isfinite(sd) else 0.0
                low, high = mean - spread, mean + spread
                rows.append({key: value, "labels": group, "mean": mean, "low": low, "high": high})
    return rows


def _means(x: alt.X, y: alt.Y, along: str, key: str, line: bool = False) -> alt.TopLevelMixin:
    """Points with lines of one deviation to each side along an axis."""
    encoded = _ROWS.encode(
        x=x,
        y=y,
        color=alt.Color(
            "labels:N",
            scale=alt.Scale(domain=list(MEAN_COLORS), range=list(MEAN_COLORS.values())),
            legend=_legend(),
        ),
    )
    ends: dict[str, Any] = {
        along: alt.X("low:Q") if along == "x" else alt.Y("low:Q"),
        f"{along}2": "high:Q",
    }
    layers: list[alt.Chart] = [encoded.mark_rule(opacity=0.5).encode(**ends)]
    if line:
        layers.append(encoded.mark_line())
    tooltip = [
        alt.Tooltip(f"{key}:Q", format=",.5~r") if line else f"{key}:N",
        "labels:N",
        alt.Tooltip("mean:Q", title="mAP", format=".2%"),
    ]
    shape = alt.Shape("labels:N", scale=alt.Scale(domain=list(MEAN_COLORS)))
    layers.append(
        encoded.mark_point(filled=True, size=70, opacity=1).encode(tooltip=tooltip, shape=shape)
    )
    return alt.layer(*layers)


def _matrix(
    x: alt.X,
    y: alt.Y,
    color: alt.Color,
    columns: Sequence[str],
    rows: Sequence[str],
    tooltip: list[Any],
) -> alt.Chart:
    axis: dict[str, Any] = {"labelLimit": 130, "labelOverlap": False, "labelFontSize": 9}
    return _ROWS.mark_rect().encode(
        x=x.sort(list(columns)).axis(labelAngle=-60, **axis),
        y=y.sort(list(rows)).axis(**axis),
        color=color,
        tooltip=tooltip,
    )


def _by_rank(
    statistics: LabelStatistics, values: np.ndarray
) -> Iterable[tuple[dict[str, Any], float]]:
    """Yields what a chart tells of each class, and its value, the most frequent class first."""
    group_of = {int(i): name for name in GROUP_NAMES for i in statistics.groups[name]}
    counts = statistics.class_counts
    for rank, i in enumerate(np.argsort(-counts, kind="stable").tolist(), start=1):
        row = {"rank": rank, "label": statistics.class_names[i], "count": int(counts[i])}
        yield {**row, "group": group_of[i]}, float(values[i])


def _rank_axis(statistics: LabelStatistics) -> alt.X:
    if statistics.num_classes > MAX_NAMED_CLASSES:
        title = "labels by rank, most frequent first"
        return alt.X("rank:Q", title=title, scale=_roomy(zero=False))
    axis = alt.Axis(labelLimit=120, labelAngle=-60, labelOverlap=False)
    return alt.X("label:N", sort=None, title=None, axis=axis)


def _group_color() -> alt.Color:
    words = " : ".join(f"datum.value == '{g}' ? '{g}, {GROUP_RANGES[g]}'" for g in GROUP_NAMES)
    legend = alt.Legend(
        orient="top",
        title="training images",
        labelExpr=f"{words} : ''",
        labelLimit=_NAME_LIMIT,
        symbolOpacity=1,
    )
    scale = alt.Scale(domain=list(GROUP_NAMES), range=list(GROUP_COLORS.values()))
    return alt.Color("group:N", scale=scale, legend=legend)


def _legend(number_format: str | None = None) -> alt.Legend:
    options: dict[str, Any] = {"format": number_format} if number_format else {}
    options |= {"labelLimit": 320, "columns": 1, "symbolOpacity": 1}
    return alt.Legend(orient="top", title=None, **options)


def _explain_deviations(deviations: Mapping[str, Sequence[float]]) -> str:
    """Returns a sentence about the lines of standard deviations, if there are any."""
    if not any(np.isfinite(values).any() for values in deviations.values()):
        return ""
    return " The lines reach one standard deviation over runs to each side."
