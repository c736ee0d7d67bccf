import re
import xml.etree.ElementTree

import numpy as np
import pytest
import scipy.sparse

from dbl_tf import LabelStatistics, losses
from pipelines.reports import charts

NAMES = ("person", "dog", "kite")
# 120 persons of whom 30 with a dog; 5 kites, all with persons.
LABELS = np.array([[1, 0, 0]] * 85 + [[1, 1, 0]] * 30 + [[1, 0, 1]] * 5 + [[0, 0, 0]] * 80)
STATISTICS = LabelStatistics.from_labels(LABELS, NAMES)


def marks(chart):
    """The descriptions of the marks that are drawn, which tell their data."""
    drawing = xml.etree.ElementTree.fromstring(chart.svg())
    return [e.get("aria-label") for e in drawing.iter() if e.get("aria-label")]


def test_files_stand_alone():
    document = charts.class_shares(STATISTICS).svg()
    assert not re.search(r"(?<!xlink:)href|url\((?!#)|<script|<image", document)
    assert "How often training sees each label" in document


def test_class_shares_by_hand():
    chart = charts.class_shares(STATISTICS, observed_counts=[400, 200, 100], num_draws=400)
    kite = {row["series"]: row["share"] for row in chart.rows if row["label"] == "kite"}
    # p̂ = 1/3 · n_(i∩j)/n_j summed over j = 1/3 · (5/120 + 0/30 + 5/5)
    assert list(kite.values()) == pytest.approx([0.025, 0.25, (5 / 120 + 1) / 3])
    assert [row["rank"] for row in chart.rows[:3]] == [1, 2, 3]
    drawn = [mark for mark in marks(chart) if mark.startswith("label: kite")]
    assert [float(re.search(r"share: ([\d.]+)%", mark)[1]) for mark in drawn] == [2.5, 25, 34.72]


def test_a_class_without_examples_is_not_drawn_on_the_logarithmic_scale():
    statistics = LabelStatistics.from_labels(np.c_[LABELS, np.zeros(200, int)], [*NAMES, "moa"])
    assert {row["label"] for row in charts.class_shares(statistics).rows} == set(NAMES)


def one_axis(title, values):
    return {"epoch": range(len(values)), title: values}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: charts.conditional_probability_matrix(STATISTICS), ["label", "also has label"]),
        (
            lambda: charts.confusion_matrix([{"missed": "dog", "given": "kite", "images": 12345}]),
            ["missed label", "wrongly given label", "12,345"],
        ),
        (
            lambda: charts.training_curves(one_axis("images_per_second", [8000, 15033, 14100]))[0],
            ["5,000", "10,000", "15,000", "1", "2", "3"],
        ),
        (
            lambda: charts.training_curves(one_axis("learning_rate", [4e-5, 2e-5, 1e-6]))[0],
            ["0.00001", "0.00004"],
        ),
        (
            lambda: charts.map_by_value(
                "x", "x", "steps", [1000, 20000], {"total": [0.2, 0.3]}, {"total": [0.1, 0.1]}
            ),
            ["1,000", "10,000"],
        ),
    ],
)
def test_axes_have_words_of_the_field_and_numbers_without_exponents(make, named):
    drawing = xml.etree.ElementTree.fromstring(make().svg())
    texts = [e.text for e in drawing.iter() if e.tag.endswith("text")]
    assert set(named) <= set(texts)
    assert not {"row", "column"} & set(texts)
    unreadable = re.compile(r"\de[+-]?\d|(?<![\d.])\d{4,}")
    assert not [text for text in texts if unreadable.search(text)]
    epochs = [t for t in texts if t in {"1", "2", "3"}]
    assert len(epochs) == len(set(epochs))


EXTREMES = np.array([1.0, 0.0, 1.0, 0.0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: charts.average_precision(
            ["a", "b", "c", "d"],
            ["tail", "tail", "head", "head"],
            [0, 1, 10**5, 10**5],
            EXTREMES,
            np.c_[EXTREMES, EXTREMES],
            EXTREMES,
        ),
        lambda: charts.gain_by_class(
            "x", "x", "", "abcd", ["head"] * 4, [1, 1, 100, 100], 30 * EXTREMES - 20
        ),
        lambda: charts.variance_by_class(STATISTICS, np.array([0.0, 3.0, 0.0])),
        lambda: charts.class_shares(STATISTICS, [1, 200, 200], 200),
        lambda: charts.precision_recall(
            "x",
            "x",
            [
                {"label": "a", "threshold": t, "precision": p, "recall": r, "chosen": True}
                for t, p, r in ((0.9, 0, 0), (0.7, 1, 0), (0.6, 1, 1), (0.5, 0, 1))
            ],
        ),
        lambda: charts.training_curves(one_axis("loss", [2.0, 0.0, 1.0]))[0],
        lambda: charts.map_by_value(
            "x", "x", "β", [1, 10], {"total": [0.2, 0.4]}, {"total": [np.nan, np.nan]}
        ),
        lambda: charts.average_precision(
            [f"{i}" for i in range(300)],
            ["head"] * 300,
            range(100, 400),
            np.linspace(0, 1, 300),
            np.zeros((300, 2)),
            np.zeros(300),
        ),
    ],
)
def test_no_mark_is_cut_off_at_an_end_of_an_axis(make):
    drawing = xml.etree.ElementTree.fromstring(make().svg())
    parts = list(drawing.iter())
    view = next(e.get("d") for e in parts if e.get("class") == "background" and e.get("d"))
    width, height = map(float, re.search(r"h([\d.]+)v([\d.]+)h", view).groups())
    points = [e for e in parts if e.get("aria-roledescription") == "point"]
    assert points
    for point in points:
        x, y = map(float, re.findall(r"-?\d+\.?\d*", point.get("transform")))
        reach = max(map(float, re.findall(r"\d+\.?\d*", point.get("d"))))
        assert reach <= x <= width - reach and reach <= y <= height - reach


def test_matrix_has_column_i_row_j():
    rows = charts.conditional_probability_matrix(STATISTICS).rows
    found = {(row["column"], row["row"]): row["p"] for row in rows}
    assert found["person", "kite"] == 1  # p(person given kite)
    assert found["kite", "person"] == pytest.approx(5 / 120)
    assert found["dog", "person"] == pytest.approx(30 / 120)
    assert found["dog", "kite"] == 0


@pytest.mark.parametrize("convert", [np.asarray, scipy.sparse.csr_array])
def test_within_class_variance_by_definition(convert):
    rng = np.random.default_rng(0)
    labels = rng.random((300, 6)) < [0.5, 0.3, 0.1, 0.05, 0.02, 0]
    statistics = LabelStatistics.from_labels(labels)
    variance = charts.within_class_variance(statistics, convert(labels))
    draws = statistics.instance_probability(labels)
    for i in range(5):
        own = draws[labels[:, i]]
        assert variance[i] == pytest.approx(np.var(own / own.mean()))
    assert np.isnan(variance[5])
    assert len(charts.variance_by_class(statistics, variance).rows) == 5


def test_gradient_of_plain_bce_is_the_closed_form():
    z = np.linspace(-6, 6, 25)
    loss = losses.negative_tolerant_crossentropy
    for target in (0.0, 1.0):
        gradient = charts.gradient_by_logit(loss, 3, 1, target, z)
        np.testing.assert_allclose(gradient, 1 / (1 + np.exp(-z)) - target, atol=1e-3)


def test_gradient_of_the_negative_tolerant_loss_is_the_closed_form():
    loss = losses.DistributionBalancedLoss(
        STATISTICS.class_counts, 200, lambda_=5, kappa=0.05, focal_gamma=0, rebalance=None
    )
    z = np.linspace(-3, 3, 25)
    for i in range(3):
        nu = 0.05 * np.log(200 / STATISTICS.class_counts[i] - 1)
        gradient = charts.gradient_by_logit(loss.call, 3, i, 0.0, z)
        np.testing.assert_allclose(gradient, 1 / (1 + np.exp(-5 * (z - nu))), atol=2e-3)
        gradient = charts.gradient_by_logit(loss.call, 3, i, 1.0, z)
        np.testing.assert_allclose(gradient, -1 / (1 + np.exp(z - nu)), atol=1e-3)


def test_loss_gradients_draw_one_line_where_classes_do_not_differ():
    plain = charts.loss_gradients(losses.negative_tolerant_crossentropy, STATISTICS, "erm")
    margin = losses.DistributionBalancedLoss(STATISTICS.class_counts, 200, rebalance=None)
    shifted = charts.loss_gradients(margin.call, STATISTICS, "db_focal")
    assert {row["curve"] for row in plain[0].rows} == {"erm, all labels", "binary cross-entropy"}
    assert "db_focal, rarest label (kite)" in {row["curve"] for row in shifted[1].rows}
    assert [p.name for p in plain] == ["loss_gradient_positives", "loss_gradient_negatives"]


def test_average_precision_is_drawn_where_it_is_defined():
    chart = charts.average_precision(
        NAMES,
        ["head", "medium", "tail"],
        [120, 30, 0],
        np.array([1.0, 0.75, np.nan]),
        np.array([[0.9, 1.0], [0.5, 0.9], [np.nan, np.nan]]),
        np.array([0.5, 0.25, 0.0]),
    )
    assert [(row["id"], row["ap"], row["chance"]) for row in chart.rows] == [
        (0, 1.0, 0.5),
        (1, 0.75, 0.25),
    ]
    points = [mark for mark in marks(chart) if "average precision: 75" in mark]
    assert len(points) == 1 and "guessing: 25.00%" in points[0] and "label: dog" in points[0]


def test_map_by_value_draws_the_means_with_their_deviations():
    nan = [float("nan")] * 3
    means = {"total": [0.2, 0.4, 0.3], "head": [0.5, 0.5, 0.5], "medium": nan, "tail": nan}
    deviations = dict.fromkeys(means, nan) | {"head": [0.1] * 3}
    chart = charts.map_by_value("name", "title", "β", [1.0, 10.0, 100.0], means, deviations)
    assert {row["labels"] for row in chart.rows} == {"total", "head"}
    ends = [(row["low"], row["high"]) for row in chart.rows]
    assert ends[0] == (0.2, 0.2) and ends[3] == (pytest.approx(0.4), pytest.approx(0.6))
    assert chart.specification()["layer"][0]["encoding"]["x"]["scale"]["type"] == "log"


def test_training_curves_of_what_was_measured():
    nan = float("nan")
    history = {"epoch": [0, 1, 2], "loss": [0.4, 0.2, 0.1], "val_loss": [nan] * 3}
    (chart,) = charts.training_curves(history)
    assert chart.name == "training_loss" and chart.rows[1] == {"epoch": 2, "value": 0.2}
    history["val_map"] = [nan, 0.5, 0.6]
    loss, quality = charts.training_curves(history)
    assert [row["epoch"] for row in quality.rows] == [2, 3]
    scales = [c.specification()["encoding"]["y"]["scale"]["zero"] for c in (loss, quality)]
    assert scales == [True, False]  # the course of val_map would not show from 0


def test_many_classes_are_drawn_by_rank():
    rng = np.random.default_rng(3)
    labels = rng.random((500, 200)) < np.geomspace(0.5, 0.01, 200)
    statistics = LabelStatistics.from_labels(labels)
    encoding = charts.class_shares(statistics).specification()["encoding"]
    assert encoding["x"]["title"] == "labels by rank, most frequent first"
    matrix = charts.conditional_probability_matrix(statistics)
    assert "40 of the 200 labels" in matrix.caption and len(matrix.rows) == 1600
