import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import scipy.sparse

from dbl_tf import LabelStatistics, losses
from pipelines.reports import charts, svg
from pipelines.runs import scores as run_scores

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("person", "dog", "kite")
# 120 persons of whom 30 with a dog; 5 kites, all with persons.
LABELS = np.array([[1, 0, 0]] * 85 + [[1, 1, 0]] * 30 + [[1, 0, 1]] * 5 + [[0, 0, 0]] * 80)
STATISTICS = LabelStatistics.from_labels(LABELS, NAMES)


def elements(picture, tag):
    return list(ElementTree.fromstring(picture.document()).iter(SVG + tag))


def tips(picture):
    return [title.text for title in elements(picture, "title")]


def texts(picture):
    return [text.text for text in elements(picture, "text")]


def marks(picture, tag, color):
    return [
        e for e in elements(picture, tag) if f"var({color})" in (e.get("fill"), e.get("stroke"))
    ]


def points(path):
    """Ends of the segments of a path, in pixels."""
    return np.array(
        [[float(v) for v in pair] for pair in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]
    )


def score(labels, probabilities, statistics):
    thresholds = run_scores.Thresholds(np.full(statistics.num_classes, 0.5), "val")
    return run_scores.score(labels, probabilities, statistics, thresholds)


def test_files_stand_alone_and_follow_the_background():
    document = charts.class_shares(STATISTICS).document()
    ElementTree.fromstring(document)
    assert "prefers-color-scheme:dark" in document
    assert not re.search(r"href|url\(|<script|<image", document)
    used = set(re.findall(r"var\((--\w+)\)", document))
    assert used and all(f"{color}:" in svg.STYLE for color in used)


def test_class_shares_by_hand():
    picture = charts.class_shares(STATISTICS, observed_counts=[400, 200, 100], num_draws=400)
    tip = next(tip for tip in tips(picture) if tip.startswith("kite"))
    # p̂ = 1/3 · n_(i∩j)/n_j summed over j = 1/3 · (5/120 + 0/30 + 5/5)
    assert tip.replace("\u00a0", " ") == "kite: 2.50 % in the data, 34.72 % by Eq. 1, 25.00 % drawn"
    rows = [text for text in texts(picture) if text in NAMES]
    assert rows == ["person", "dog", "kite"]
    # On a logarithmic axis from 1 to 100 %: a tenth lies in the middle.
    first, second, third = (float(dot.get("cx")) for dot in marks(picture, "circle", "--blue")[1:])
    assert first > second > third
    assert (first - second) == pytest.approx(second - third, abs=0.2)


def test_a_class_without_examples_is_not_drawn_on_the_logarithmic_scale():
    statistics = LabelStatistics.from_labels(np.c_[LABELS, np.zeros(200, int)], [*NAMES, "moa"])
    picture = charts.class_shares(statistics)
    assert len(marks(picture, "circle", "--red")) == 1 + 3
    assert "moa" in texts(picture)


def test_matrix_has_column_i_row_j():
    picture = charts.conditional_probability_matrix(STATISTICS)
    found = {tip.replace("\u00a0", " ") for tip in tips(picture)}
    assert "of the images with kite, 100.0 % have person" in found
    assert "of the images with person, 4.2 % have kite" in found
    fields = [e for e in elements(picture, "rect") if e.find(SVG + "title") is not None]
    lefts = sorted({float(e.get("x")) for e in fields})
    tops = sorted({float(e.get("y")) for e in fields})
    by_place = {
        (lefts.index(float(e.get("x"))), tops.index(float(e.get("y")))): float(e.get("opacity"))
        for e in fields
    }
    # Column person (0), row kite (2) is p(person given kite) = 1; the other way it is 5/120.
    assert by_place[0, 2] == 1
    assert by_place[2, 0] == pytest.approx(5 / 120, abs=0.005)
    assert by_place[1, 0] == pytest.approx(30 / 120, abs=0.005)
    assert (1, 2) not in by_place


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
    assert "1 of 6 labels has no images" in charts.variance_by_class(statistics, variance).caption


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
    assert "erm, all labels" in texts(plain[0])
    assert "db_focal, rarest label (kite)" in texts(shifted[1])
    assert [p.name for p in plain] == ["loss_gradient_positives", "loss_gradient_negatives"]


def test_precision_recall_panels_of_groups_that_can_be_tested():
    probabilities = np.random.default_rng(2).random((200, 3))
    test_labels = LABELS.copy()
    test_labels[:, 2] = 0
    scores = score(test_labels, probabilities, STATISTICS)
    pictures = charts.precision_recall(
        test_labels, probabilities, np.full(3, 0.5), STATISTICS, scores
    )
    # The kite, the only tail class, has no test image.
    assert [p.name for p in pictures] == ["precision_recall_head", "precision_recall_medium"]
    shown = svg.percent(scores["per_class"]["person"]["ap"])
    assert f"person, AP {shown}" in texts(pictures[0])


def test_average_precision_bars_have_the_length_of_the_scores():
    labels = np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]])
    probabilities = np.array([[0.9, 0.9, 0.1], [0.8, 0.5, 0.2], [0.1, 0.8, 0.3], [0.2, 0.1, 0.4]])
    picture = charts.average_precision_by_class(score(labels, probabilities, STATISTICS))
    # person: perfect; dog: first and last of four, (1 + 2/4)/2; kite: no test image.
    head, medium = (
        float(marks(picture, "rect", color)[-1].get("width")) for color in ("--blue", "--orange")
    )
    assert medium / head == pytest.approx(0.75, abs=0.005)
    assert len(marks(picture, "rect", "--red")) == 1  # of the legend
    assert "1 of 3 labels has no images" in picture.caption


def test_gain_points_to_the_right_where_it_is_one():
    scores = score(LABELS, np.zeros((200, 3)), STATISTICS)
    picture = charts.gain_by_class("gain", "title", "", scores, np.array([0.1, -0.2, np.nan]))
    gained, lost = (marks(picture, "rect", color)[-1] for color in ("--blue", "--orange"))
    zero = float(gained.get("x"))
    assert float(lost.get("x")) + float(lost.get("width")) == pytest.approx(zero, abs=0.2)
    assert float(lost.get("width")) == pytest.approx(2 * float(gained.get("width")), abs=0.3)
    assert "person: 10" in tips(picture) and "dog: -20" in tips(picture)


def test_guessing_is_called_what_is_drawn():
    def caption(num_classes):
        labels = np.random.default_rng(0).random((50, num_classes)) < 0.3
        statistics = LabelStatistics.from_labels(labels)
        return charts.average_precision_by_class(score(labels, labels * 0.5, statistics)).caption

    assert "the vertical mark" in caption(5) and "the line" in caption(100)


def test_map_by_value_draws_the_means_in_their_places():
    nan = [float("nan")] * 3
    means = {"total": [0.2, 0.4, 0.3], "head": [0.5, 0.5, 0.5], "medium": nan, "tail": nan}
    picture = charts.map_by_value(
        "name", "title", "β", [1.0, 10.0, 100.0], means, dict.fromkeys(means, nan)
    )
    line = points(marks(picture, "path", "--ink")[-1].get("d"))
    assert line[1, 0] - line[0, 0] == pytest.approx(line[2, 0] - line[1, 0], abs=0.2)  # logarithmic
    assert line[0, 1] - line[1, 1] == pytest.approx(2 * (line[0, 1] - line[2, 1]), abs=0.3)
    assert "medium" not in texts(picture)


def test_training_curves_of_what_was_measured():
    nan = float("nan")
    history = {"epoch": [0, 1, 2], "loss": [0.4, 0.2, 0.1], "val_loss": [nan] * 3}
    (picture,) = charts.training_curves(history)
    assert picture.name == "training_loss" and "epoch 2: 0.2" in tips(picture)
    history["val_map"] = [nan, 0.5, 0.6]
    assert [p.name for p in charts.training_curves(history)] == [
        "training_loss",
        "training_val_map",
    ]


def test_color_values_of_many_classes_are_drawn_by_rank():
    rng = np.random.default_rng(3)
    labels = rng.random((500, 200)) < np.geomspace(0.5, 0.01, 200)
    statistics = LabelStatistics.from_labels(labels)
    picture = charts.class_shares(statistics)
    assert "labels by rank, most frequent first" in texts(picture)
    matrix = charts.conditional_probability_matrix(statistics)
    assert "30 of the 200 labels" in matrix.caption


@pytest.mark.parametrize(
    ("low", "high", "log", "expected"),
    [
        (0, 1, False, ["0 %", "20 %", "40 %", "60 %", "80 %", "100 %"]),
        (-0.5, 0.5, False, ["−40 %", "−20 %", "0 %", "20 %", "40 %"]),
        (0.001, 1, True, ["0.1 %", "1 %", "10 %", "100 %"]),
        (0.1, 1, True, ["10 %", "20 %", "50 %", "100 %"]),
    ],
)
def test_ticks_are_round(low, high, log, expected):
    ticks = svg.Axis("", low, high, log, percent=True).ticks()
    assert [label.replace("\u00a0", " ") for _, label in ticks] == expected


def test_text_is_escaped_and_cut():
    assert svg.escape("<b a='\"&\x00\ud800") == "&lt;b a=&#x27;&quot;&amp;\ufffd\ufffd"
    assert svg.shortened("a very long name of a class", 60) == "a very l…"
    assert svg.wrapped("one two three", 45) == ["one two", "three"]
    assert svg.percent(float("nan")) == "–"
    assert svg.percent(0.4567, deviation=0.0123) == "45.7 ± 1.2\u00a0%"
    assert svg.percent(0.00004) == "0.004\u00a0%"
