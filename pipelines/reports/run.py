"""The page of one model on a test split: all labels, one label at a time, training and settings."""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.sparse

from dbl_tf import methods, metrics
from dbl_tf.messages import first_few
from dbl_tf.statistics import GROUP_NAMES, LabelStatistics
from pipelines.reports import charts, diagnosis, pages, pictures, published, reliability, text
from pipelines.reports.diagnosis import Decisions
from pipelines.reports.pages import Column

SUSPECTS = "suspected_label_errors.csv"
MAX_WORST_IMAGES = 12
_SUSPECTS_PER_LABEL = 20
_IMAGES_PER_LABEL = 4
_OTHERS_PER_LABEL = 8
_PAIRS = 30
# Of the way from guessing to perfect.
_HARDLY = 0.1


def write_run_report(
    path: str | os.PathLike,
    *,
    title: str,
    statistics: LabelStatistics,
    labels: Any,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    scores: Mapping[str, Any],
    image_names: Sequence[str],
    read_images: pictures.ReadImages | None,
    config: Mapping[str, Any] | None = None,
    made_by: Mapping[str, str] | None = None,
    history: Mapping[str, Sequence[float]] | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    train_labels: Any = None,
    observed_counts: Any = None,
    num_draws: int | None = None,
    cautions: Sequence[str] = (),
    figures_dir: str | os.PathLike | None = None,
) -> None:
    """Writes the page of one model on a test split, its figures, and suspected errors of labels.

    Arguments that only a training run knows may be None. The page says what it leaves out because
    of them.

    Args:
        path: the path of the HTML file. `suspected_label_errors.csv` is written next to it.
        title: the heading of the page.
        statistics: the statistics of the training labels.
        labels: the labels of the test split, multi-hot (N, C), dense or `scipy.sparse`, with −1
            for unknown ones.
        probabilities: the probabilities, (N, C).
        thresholds: the thresholds of the decisions, (C,).
        scores: the content of the `metrics.json` of these predictions.
        image_names: the names of the N test images.
        read_images: a function from positions in the test split to the images in this order, uint8
            (H, W, 3); None if the examples are not images, so that no picture is shown.
        config: the settings of the run by name, of which "method" and "dataset" are interpreted.
        made_by: the command, versions and data of the run, by name.
        history: see `charts.training_curves`.
        loss: see `charts.loss_gradients`.
        train_labels: the labels of the training split, multi-hot (M, C), dense or `scipy.sparse`.
        observed_counts: see `charts.class_shares`.
        num_draws: see `charts.class_shares`.
        cautions: sentences that a reader of the scores must know.
        figures_dir: the folder for the figures; `figures` next to the page if None.

    Raises:
        ValueError: the shapes or classes of arguments do not agree.
    """
    probabilities, thresholds = np.asarray(probabilities), np.asarray(thresholds, np.float64)
    _check_run(statistics, labels, probabilities, thresholds, scores, image_names)
    if (observed_counts is None) != (num_draws is None):
        raise ValueError("observed_counts and num_draws must be given together")
    if observed_counts is not None and np.shape(observed_counts) != (statistics.num_classes,):
        raise ValueError(
            f"observed_counts must be of shape ({statistics.num_classes},), got "
            f"{np.shape(observed_counts)}"
        )
    config = dict(config or {})
    decisions = Decisions.of(labels, probabilities, thresholds)
    suspects = diagnosis.suspected_errors(
        decisions, statistics.class_names, image_names, thresholds, _SUSPECTS_PER_LABEL
    )
    columns = ["label", "image", "data", "probability", "threshold", "contradiction"]
    pages.write_csv(suspects, os.path.join(os.path.dirname(os.fspath(path)), SUSPECTS), columns)

    names = pages.readable_names(statistics.class_names)
    statistics = dataclasses.replace(statistics, class_names=names)
    found = _Labels(statistics, scores, decisions)
    unreliable = reliability.unreliable_labels(
        labels, probabilities, metrics.CALIBRATION_ERROR.read(scores)
    )
    page = pages.Page(path, figures_dir)
    confusions, companions = decisions.confusions(), diagnosis.companions(statistics)
    pairs = [
        {"missed": names[i], "given": names[j], "images": number}
        for i, j, number in diagnosis.strongest(confusions, _PAIRS)
    ]
    page.charts[charts.CURVE] = charts.precision_recall(charts.CURVE, "Precision and recall", [])
    page.data = {
        "chooser": "average_precision",
        "tables": {"labels": [column.content() for column in found.columns()]},
        "flags": {
            "never": found.never.tolist(),
            "hardly": found.hardly.tolist(),
            "unreliable": np.isin(
                np.arange(statistics.num_classes), [of_label.label for of_label in unreliable]
            ).tolist(),
        },
        "curves": [
            _points(curve, entry)
            for curve, entry in zip(scores["curves"].values(), found.entries, strict=True)
        ],
        "with": [
            [(j, number / int(statistics.class_counts[i])) for j, number in of_label]
            for i, of_label in enumerate(diagnosis.strongest_by_row(companions, _OTHERS_PER_LABEL))
        ],
        **_label_details(found, decisions, confusions, image_names, read_images),
    }
    shown = {
        "overview": page.add(found.chart()),
        "confusion": page.add(charts.confusion_matrix(pairs)) if pairs else [],
        "saw": page.add(*_training_charts(statistics, train_labels, observed_counts, num_draws)),
        "learned": page.add(
            *(charts.loss_gradients(loss, statistics, str(config.get("method"))) if loss else ()),
            *(charts.training_curves(history) if history else ()),
        ),
    }
    page.write_figures(*found.curves())
    method = methods.METHODS.get(str(config.get("method")))
    is_of_examples = method is not None and not method.loss.is_mean_over_classes
    page.write(
        "run.html.j2",
        title=title,
        kind="images" if read_images is not None else "examples",
        statistics=statistics,
        scores=scores,
        found=found,
        unreliable=unreliable,
        fitted_on=scores.get("calibration", {}).get("fitted_on"),
        cards=_cards(scores),
        pairs=pairs,
        together=_together(statistics, companions),
        num_suspects=len(suspects),
        suspects_file=SUSPECTS,
        changed=_what_the_method_changed(statistics, loss, observed_counts, num_draws),
        method=method,
        method_name=config.get("method"),
        is_of_examples=is_of_examples,
        published=_published_rows(config, scores),
        curve=page.charts[charts.CURVE],
        further=_further_scores(scores),
        config=config,
        made_by=made_by or {},
        cautions=cautions,
        left_out=[
            part
            for part, given in (
                ("the settings", config),
                ("training curves", history),
                ("the gradient of the loss", loss or is_of_examples),
                ("the variance of draws", train_labels is not None),
                ("how often training drew each label", observed_counts is not None),
            )
            if not given
        ],
        **shown,
    )


class _Labels:
    """What the page tells of each label, and of all of them.

    Attributes:
        names: the C names.
        average_precision: the average precision, (C,); NaN for a label without test images.
        chance: the average precision that guessing would reach, (C,).
        ranked: the labels with test images, the best first.
        hardly: whether a label is hardly better than guessing, bool (C,).
        never: whether a label that test images have is never given, bool (C,).
    """

    def __init__(
        self, statistics: LabelStatistics, scores: Mapping[str, Any], decisions: Decisions
    ):
        self.names = statistics.class_names
        self.scores = scores
        self.entries = list(scores["per_class"].values())
        self.groups = [entry["group"] for entry in self.entries]
        self.average_precision = metrics.AVERAGE_PRECISION.read(scores)
        self.num_test = decisions.shape[0]
        self.test_counts = np.array([entry["test_count"] for entry in self.entries])
        self.chance = self.test_counts / np.maximum(decisions.num_known, 1)
        self.num_unknown = int((self.num_test - decisions.num_known).sum())
        self.given = decisions.counts(decisions.given)
        self.right = decisions.counts(decisions.given & decisions.has)
        defined = np.flatnonzero(~np.isnan(self.average_precision))
        order = np.argsort(-self.average_precision[defined], kind="stable")
        self.ranked = defined[order].tolist()
        above = self.average_precision - self.chance
        with np.errstate(invalid="ignore"):
            self.hardly = above < _HARDLY * (1 - self.chance)
        self.never = ~np.isnan(self.average_precision) & (self.given == 0)
        self.intervals = np.array(
            [entry.get("ap_interval") or (math.nan, math.nan) for entry in self.entries], np.float64
        ).reshape(-1, 2)

    @property
    def best(self) -> list[int]:
        """The labels that are found best."""
        return self.ranked[: min(5, (len(self.ranked) + 1) // 2)]

    @property
    def worst(self) -> list[int]:
        """The labels that are found worst, of which none is among the best."""
        return self.ranked[::-1][: min(5, len(self.ranked) // 2)]

    @property
    def mean_chance(self) -> float:
        """The mean average precision that guessing would reach."""
        return float(self.chance[self.ranked].mean())

    @property
    def share_right(self) -> float:
        """The share of the given labels that is right; NaN if none is given."""
        return self.right.sum() / self.given.sum() if self.given.any() else math.nan

    @property
    def share_found(self) -> float:
        """The share of the labels that images have that is given; NaN if they have none."""
        return self.right.sum() / self.test_counts.sum() if self.test_counts.any() else math.nan

    @property
    def untested(self) -> list[str]:
        """The names of the labels without test images."""
        return [self.names[i] for i in np.flatnonzero(np.isnan(self.average_precision))]

    @property
    def starved(self) -> list[str]:
        """The names of labels that are hardly found and belong to the tail."""
        return self.named(self.hardly & (np.array(self.groups) == "tail"))

    @property
    def puzzling(self) -> list[str]:
        """The names of labels that are hardly found and do not belong to the tail."""
        return self.named(self.hardly & (np.array(self.groups) != "tail"))

    def named(self, chosen: np.ndarray) -> list[str]:
        """Returns the names of chosen labels, bool (C,), the best first."""
        return [self.names[i] for i in self.ranked if chosen[i]]

    def columns(self) -> list[Column]:
        """Returns the columns of the table of all labels."""
        tested = self.test_counts > 0
        train_counts = [entry["train_count"] for entry in self.entries]

        def shown(values: Any, percent: bool = True) -> np.ndarray:
            factor = 100 if percent else 1
            # Without test images there is nothing that a metric could measure.
            return np.where(tested, factor * np.asarray(values, np.float64), math.nan)

        columns = [
            Column("label", self.names),
            Column("group", self.groups, 0, "head, medium or tail, by the number of train images"),
            Column("train images", train_counts, 0, "training images that have the label"),
            Column("test images", self.test_counts, 0, "test images that have the label"),
        ]
        for metric in metrics.METRICS:
            if not metric.heading or metric.over != "class":
                continue
            values = shown(metric.read(self.scores), metric.percent)
            columns.append(
                Column(metric.heading_with_unit, values, metric.digits, metric.description)
            )
            if metric is metrics.AVERAGE_PRECISION:
                words = "end of the 95 % interval of AP over draws of the test images"
                columns += [
                    Column("from", shown(self.intervals[:, 0]), 1, f"lower {words}"),
                    Column("to", shown(self.intervals[:, 1]), 1, f"upper {words}"),
                    Column("guessing %", shown(self.chance), 2, "AP that guessing would reach"),
                ]
        given = "test images that are given the label"
        thresholds = [entry["at_threshold"]["threshold"] for entry in self.entries]
        return [
            *columns,
            Column("given", self.given, 0, given),
            Column("threshold", thresholds, 4, "probability from which on the label is given"),
        ]

    def chart(self) -> charts.Chart:
        """Draws the average precision of all labels."""
        return charts.average_precision(
            self.names,
            self.groups,
            [entry["train_count"] for entry in self.entries],
            self.average_precision,
            self.intervals,
            self.chance,
        )

    def curves(self) -> list[charts.Chart]:
        """Draws the curves of the best, the middle and the worst label of each group."""
        drawn = []
        curves = list(self.scores["curves"].values())
        for group in GROUP_NAMES:
            members = [i for i in self.ranked if self.groups[i] == group]
            if not members:
                continue
            rows = []
            for i in dict.fromkeys([members[0], members[len(members) // 2], members[-1]]):
                curve, own = curves[i], _points(curves[i], self.entries[i])["own"]
                rows += [
                    {
                        "label": self.names[i],
                        "threshold": threshold,
                        "precision": curve["precision"][k],
                        "recall": curve["recall"][k],
                        "chosen": k == own,
                    }
                    for k, threshold in enumerate(curve["thresholds"])
                ]
            title = f"Precision and recall: best, middle and worst {group} label"
            drawn.append(charts.precision_recall(f"precision_recall_{group}", title, rows))
        return drawn


def _check_run(
    statistics: LabelStatistics,
    labels: Any,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    scores: Mapping[str, Any],
    image_names: Sequence[str],
) -> None:
    shape = (len(image_names), statistics.num_classes)
    if np.shape(labels) != shape or probabilities.shape != shape:
        raise ValueError(
            f"{shape[0]} image names and {shape[1]} classes need labels and probabilities of shape "
            f"{shape}, got {np.shape(labels)} and {probabilities.shape}"
        )
    if thresholds.shape != shape[1:]:
        raise ValueError(f"thresholds must be of shape {shape[1:]}, got {thresholds.shape}")
    if tuple(scores["per_class"]) != statistics.class_names:
        raise ValueError(
            f"the scores are of the classes {first_few(list(scores['per_class']))}; the statistics "
            f"are of {first_few(statistics.class_names)}"
        )


def _points(
    curve: Mapping[str, Sequence[float]], entry: Mapping[str, Any]
) -> dict[str, list[float] | int]:
    """Returns the thresholds, and the numbers of images that are given the label and have it.

    The numbers are smaller than the shares that follow from them. "own" is the point of the
    threshold in use.
    """
    own = entry["at_threshold"]["threshold"]
    distances = np.abs(np.array(curve["thresholds"]) - own)  # rounding moves it to either side
    return {
        "thresholds": [float(f"{t:.5g}") for t in curve["thresholds"]],
        "given": list(curve["given"]),
        "right": [round(recall * entry["test_count"]) for recall in curve["recall"]],
        "own": int(np.argmin(distances)) if len(distances) else 0,
    }


def _label_details(
    found: _Labels,
    decisions: Decisions,
    confusions: Any,
    image_names: Sequence[str],
    read_images: pictures.ReadImages | None,
) -> dict[str, Any]:
    """Returns what the page shows of one label at a time, and the images that it refers to.

    The kinds of a label's images are its best finds, its misses and its false alarms; see
    `pictures.choose`. "instead" are the labels that are wrongly given to images that
    miss it; "for", the labels that are missed where it is given wrongly.
    """
    number = _IMAGES_PER_LABEL if len(found.names) <= 400 else 2
    has, given, probability = decisions.has, decisions.given, decisions.probability
    return {
        "headings": [
            "Best finds",
            "Misses, the least probable first",
            "False alarms, the most probable first",
        ],
        "words": [["right", False], ["missed", True], ["wrongly given", True]],
        **pictures.choose(
            decisions,
            [
                decisions.extremes(has & given, number, -probability),
                decisions.extremes(has & ~given, number, probability),
                decisions.extremes(~has & given, number, -probability),
            ],
            # Of the labels, the worst get pictures first.
            order=[*reversed(found.ranked), *np.flatnonzero(np.isnan(found.average_precision))],
            galleries={"worst": decisions.mistakes()[0][:MAX_WORST_IMAGES].tolist()},
            kind=np.where(has, np.where(given, 0, 1), 2),
            # Wrong and missed labels are said first, since there may not be room for all.
            rank=has & given,
            probabilities=probability[np.newaxis],
            image_names=image_names,
            read_images=read_images,
        ),
        "instead": diagnosis.strongest_by_row(confusions, _OTHERS_PER_LABEL),
        "for": diagnosis.strongest_by_row(confusions.T.tocoo(), _OTHERS_PER_LABEL),
        "first": int(found.ranked[-1]) if found.ranked else 0,
        "thresholds": [float(f"{e['at_threshold']['threshold']:.3g}") for e in found.entries],
    }


def _training_charts(
    statistics: LabelStatistics, train_labels: Any, observed_counts: Any, num_draws: int | None
) -> list[charts.Chart]:
    drawn = [charts.class_shares(statistics, observed_counts, num_draws)]
    if train_labels is not None:
        variance = charts.within_class_variance(statistics, train_labels)
        drawn.append(charts.variance_by_class(statistics, variance))
    return [*drawn, charts.conditional_probability_matrix(statistics)]


def _together(statistics: LabelStatistics, companions: scipy.sparse.coo_array) -> list[list[str]]:
    """Returns the pairs of labels that are most often on one training image."""
    counts, names = statistics.class_counts, statistics.class_names
    return [
        [
            names[i],
            names[j],
            f"{number:,}",
            text.percent(number / counts[i]),
            text.percent(number / counts[j]),
        ]
        for i, j, number in diagnosis.strongest(scipy.sparse.triu(companions), _PAIRS)
    ]


def _what_the_method_changed(
    statistics: LabelStatistics,
    loss: Callable[[Any, Any], Any] | None,
    observed_counts: Any,
    num_draws: int | None,
) -> dict[str, Any]:
    """Returns the shares of the rarest and the most frequent label, and the force of the loss."""
    present = np.flatnonzero(statistics.class_counts)
    found: dict[str, Any] = {"shares": [], "force": None}
    if not len(present):
        return found
    counts = statistics.class_counts[present]
    rarest, frequent = int(present[np.argmin(counts)]), int(present[np.argmax(counts)])
    if observed_counts is not None:
        found["shares"] = [
            (
                words,
                statistics.class_names[i],
                statistics.priors[i],
                np.asarray(observed_counts)[i] / num_draws,
            )
            for words, i in (("The rarest label", rarest), ("The most frequent label", frequent))
        ]
    if loss is not None:
        logit = np.array([math.log(0.1 / 0.9)])
        pull = charts.gradient_by_logit(loss, statistics.num_classes, rarest, 0.0, logit)
        force = float(pull[0]) / 0.1
        found["force"] = force if abs(force - 1) > 0.02 else None
    return found


def _cards(scores: Mapping[str, Any]) -> list[list[dict[str, str]]]:
    """Returns a row of cards for each metric by group, and a row for those of the whole split."""
    ranges = {name: f"{name}: {charts.GROUP_RANGES[name]} training images" for name in GROUP_NAMES}
    words = {"total": "all", **ranges}
    tested = metrics.num_classes_by_group(scores)
    untested = metrics.num_classes_by_group(scores, tested=False)
    rows, others = [], []

    def card(metric: metrics.Metric, value: float, group: str, rest: str) -> dict[str, str]:
        shown = text.percent(value) if metric.percent else metric.text(value)
        return {"value": shown, "words": f"{metric.heading}{rest}", "group": group}

    for metric in metrics.METRICS:
        if not metric.heading or metric.over == "class":
            continue
        values = metric.read(scores)
        if metric.over == "split":
            others.append(card(metric, values[0], "total", f": {metric.description}"))
            continue
        rows.append(
            [
                card(
                    metric,
                    value,
                    name,
                    f", {words[name]} ({text.labels_in_mean(tested[name], untested[name])})",
                )
                for name, value in zip(metrics.TOTAL_AND_GROUPS, values, strict=True)
            ]
        )
    return [row for row in (*rows, others) if row]


def _published_rows(config: Mapping[str, Any], scores: Mapping[str, Any]) -> list[list[str]]:
    row = published.mean_average_precision(config)
    if row is None:
        return []
    metric = metrics.MEAN_AVERAGE_PRECISION
    ours = [metric.text(value) for value in metric.read(scores)]
    return [["this run", *ours], ["published, ResNet-50", *(f"{value:.2f}" for value in row)]]


def _further_scores(scores: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics that have a cell in small tables, rows of the same columns in one."""
    rows: dict[str, dict[str, str]] = {}
    meanings = {}
    for metric in metrics.METRICS:
        if metric.cell is None:
            continue
        row, column = metric.cell
        columns = metrics.TOTAL_AND_GROUPS if metric.over == "group" else (column,)
        unit = " %" if metric.percent else ""
        cells = map(metric.text, metric.read(scores))
        rows.setdefault(row, {}).update(
            zip((f"{name}{unit}" for name in columns), cells, strict=True)
        )
        meanings[column or row] = metric.description
    tables = [
        (["", *columns], [[name, *cells.values()] for name, cells in alike])
        for columns, alike in itertools.groupby(rows.items(), key=lambda item: tuple(item[1]))
    ]
    explained = "; ".join(f"{name}: {meaning}" for name, meaning in meanings.items())
    return {"tables": tables, "explained": explained}
