import numpy as np
import pytest
import scipy.sparse

from dbl_tf import LabelStatistics
from pipelines.reports import diagnosis, text
from pipelines.reports.diagnosis import Decisions

LABELS = np.array([[1, 0], [1, 0], [0, 1], [0, 0]], bool)
PROBABILITIES = np.array([[0.9, 0.1], [0.4, 0.1], [0.99, 0.01], [0.5, 0.4]])
THRESHOLDS = np.array([0.5, 0.5])


@pytest.fixture(scope="module")
def random_decisions():
    rng = np.random.default_rng(0)
    labels = rng.random((300, 7)) < 0.3
    probabilities = np.round(np.clip(labels * 0.3 + rng.random((300, 7)) * 0.7, 0, 1), 3)
    return labels, probabilities, rng.random(7)


def test_worst_images_are_those_furthest_on_the_wrong_side():
    positions, distance = Decisions.of(LABELS, PROBABILITIES, THRESHOLDS).mistakes()
    # Image 0 is right; 3 is wrong by the tie at the threshold alone.
    assert positions.tolist() == [2, 1, 3]
    assert distance[0] == pytest.approx(np.log(99) + np.log(99))
    assert distance[1] == pytest.approx(np.log(0.6 / 0.4))
    assert 0 < distance[2] < 1e-6


def test_confusions_are_counted_image_by_image(random_decisions):
    labels, probabilities, thresholds = random_decisions
    given = probabilities >= thresholds
    expected = np.zeros((7, 7), int)
    for has, gets in zip(labels, given, strict=True):
        for i in np.flatnonzero(has & ~gets):
            for j in np.flatnonzero(gets & ~has):
                expected[i, j] += 1
    confusions = Decisions.of(labels, probabilities, thresholds).confusions()
    np.testing.assert_array_equal(confusions.toarray(), expected)
    strongest = diagnosis.strongest(confusions, 5)
    assert [n for _, _, n in strongest] == sorted(expected.ravel())[::-1][:5]
    assert all(expected[i, j] == n for i, j, n in strongest)
    for i, row in enumerate(diagnosis.strongest_by_row(confusions, 3)):
        assert [n for _, n in row] == [n for n in sorted(expected[i])[::-1][:3] if n]
        assert all(expected[i, j] == n for j, n in row)


def test_blocks_of_rows_do_not_matter(random_decisions, monkeypatch):
    whole = Decisions.of(*random_decisions)
    monkeypatch.setattr(diagnosis, "_ELEMENTS_PER_BLOCK", 50)
    parts = Decisions.of(*random_decisions)
    for name in ("image", "label", "probability", "distance", "has", "given"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_suspected_errors_contradict_their_threshold_most():
    decisions = Decisions.of(LABELS, PROBABILITIES, THRESHOLDS)
    rows = diagnosis.suspected_errors(decisions, ["a", "b"], list("wxyz"), THRESHOLDS, 5)
    assert [(r["label"], r["image"], r["data"]) for r in rows] == [
        ("a", "y", "has it not"),
        ("a", "x", "has it"),
        ("a", "z", "has it not"),
        ("b", "y", "has it"),
    ]
    assert rows[0]["contradiction"] == pytest.approx(np.log(99), abs=1e-3)


def test_companions_are_the_most_frequent_others():
    labels = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1]], bool)
    found = diagnosis.companions(LabelStatistics.from_labels(labels))
    assert diagnosis.strongest_by_row(found, 2) == [
        [(1, 3), (2, 1)],
        [(0, 3), (2, 2)],
        [(1, 2), (0, 1)],
    ]
    assert diagnosis.strongest(scipy.sparse.triu(found), 2) == [(0, 1, 3), (1, 2, 2)]


@pytest.mark.parametrize("convert", [np.asarray, scipy.sparse.csr_array, np.float32])
def test_unknown_labels_are_not_judged(convert):
    labels = LABELS.astype(np.int8)
    labels[2, 0] = labels[1, 1] = -1
    given = convert(labels)
    if given.dtype == np.float32:
        given[given == -1] = np.nan
    decisions = Decisions.of(given, PROBABILITIES, THRESHOLDS)
    assert decisions.num_known.tolist() == [3, 3]
    assert (2, 0) not in set(zip(decisions.image.tolist(), decisions.label.tolist(), strict=True))
    positions, distance = decisions.mistakes()
    assert positions.tolist() == [2, 1, 3] and distance[0] == pytest.approx(np.log(99))


def test_no_images_have_no_decisions():
    decisions = Decisions.of(np.zeros((0, 3), bool), np.zeros((0, 3)), np.full(3, 0.5))
    assert decisions.counts(decisions.has).tolist() == [0, 0, 0]
    assert len(decisions.mistakes()[0]) == 0 and decisions.confusions().nnz == 0


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=1+1", "'=1+1"), ("+1", "'+1"), ("-1", "'-1"), ("@A1", "'@A1"), (" =1", "' =1"),
        ("\t=1", "'\t=1"), ("\uff1d1", "'\uff1d1"), ("a=1", "a=1"), ("", ""), (0.5, 0.5),
    ],
)  # fmt: skip
def test_cells_are_inert(cell, shown):
    assert text.inert(cell) == shown


def test_numbers_and_names_in_sentences():
    assert text.plain("a\x00\ud800\u202eb") == "a\ufffd\ufffd\ufffdb"
    assert text.shortened("abcdef", 4) == "abc…" and text.shortened("abcd", 4) == "abcd"
    assert text.percent(float("nan")) == "–"
    assert text.percent(0.4567, deviation=0.0123) == "45.7 ± 1.2\u00a0%"
    assert text.percent(0.00004) == "0.004\u00a0%"
