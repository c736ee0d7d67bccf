import numpy as np
import pytest
import scipy.sparse

from dbl_tf import LabelStatistics

LABELS = np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]])


def test_counts_cooccurrence_and_eq_1_by_hand():
    statistics = LabelStatistics.from_labels(LABELS, ["a", "b", "c"])
    assert statistics.num_examples == 5
    assert statistics.class_counts.tolist() == [3, 2, 1]
    assert statistics.cooccurrence.tolist() == [[3, 2, 0], [2, 2, 0], [0, 0, 1]]
    np.testing.assert_allclose(
        statistics.conditional_probability, [[1, 1, 0], [2 / 3, 1, 0], [0, 0, 1]]
    )
    np.testing.assert_allclose(statistics.resampled_probability, [2 / 3, 5 / 9, 1 / 3])
    np.testing.assert_allclose(statistics.priors, [0.6, 0.4, 0.2])


def test_instance_probability_is_eq_2_and_sums_to_one():
    statistics = LabelStatistics.from_labels(LABELS)
    probability = statistics.instance_probability(LABELS)
    np.testing.assert_allclose(probability, [1 / 9, 5 / 18, 5 / 18, 1 / 3, 0])
    # Eq. 1 is the chance that a draw by Eq. 2 holds class i.
    np.testing.assert_allclose(probability @ LABELS, statistics.resampled_probability)


def test_voc_mlt_is_the_published_set(voc_mlt_labels):
    statistics = LabelStatistics.from_labels(voc_mlt_labels)
    assert statistics.num_examples == 1142
    assert (statistics.class_counts.min(), statistics.class_counts.max()) == (4, 775)
    assert [len(index) for index in statistics.groups.values()] == [6, 6, 8]
    assert statistics.instance_probability(voc_mlt_labels).sum() == pytest.approx(1, abs=1e-12)


def test_head_classes_of_voc_mlt_come_along_most(voc_mlt_labels):
    """Fig. 5: its strongest columns are those of the head."""
    statistics = LabelStatistics.from_labels(voc_mlt_labels)
    given_another = statistics.conditional_probability - np.eye(20)
    strongest = np.argsort(-given_another.sum(axis=1))[:6]
    assert set(strongest) == set(statistics.groups["head"])


def test_groups_at_their_borders():
    counts = np.array([100, 99, 20, 19, 0])
    statistics = LabelStatistics(counts, 100, np.diag(counts), tuple("abcde"))
    groups = {name: index.tolist() for name, index in statistics.groups.items()}
    assert groups == {"head": [0], "medium": [1, 2], "tail": [3, 4]}


@pytest.mark.parametrize("kind", [scipy.sparse.csr_array, scipy.sparse.coo_matrix])
def test_sparse_equals_dense(kind):
    labels = np.random.default_rng(0).random((500, 40)) < 0.1
    dense, sparse = LabelStatistics.from_labels(labels), LabelStatistics.from_labels(kind(labels))
    np.testing.assert_array_equal(dense.cooccurrence, sparse.cooccurrence)
    np.testing.assert_allclose(
        dense.instance_probability(labels), sparse.instance_probability(kind(labels)), rtol=1e-14
    )


def test_save_and_load(tmp_path):
    statistics = LabelStatistics.from_labels(LABELS, ["chat", "chien", "bœuf"])
    statistics.save(tmp_path / "statistics.json")
    loaded = LabelStatistics.load(tmp_path / "statistics.json")
    np.testing.assert_array_equal(loaded.cooccurrence, statistics.cooccurrence)
    np.testing.assert_array_equal(loaded.class_counts, statistics.class_counts)
    assert loaded.class_names == ("chat", "chien", "bœuf") and loaded.num_examples == 5


def test_load_refuses_another_file(tmp_path):
    (tmp_path / "other.json").write_text('{"format": "something else"}')
    with pytest.raises(ValueError, match=r"other\.json holds no label statistics"):
        LabelStatistics.load(tmp_path / "other.json")
    (tmp_path / "broken.json").write_text('{"format": ')
    with pytest.raises(ValueError, match=r"broken\.json holds no label statistics: \S"):
        LabelStatistics.load(tmp_path / "broken.json")


def test_empty_classes_are_left_out_of_the_means():
    labels = np.array([[1, 0, 0], [1, 0, 1]])
    statistics = LabelStatistics.from_labels(labels)
    np.testing.assert_allclose(statistics.resampled_probability, [1, 0, 0.75])
    np.testing.assert_allclose(statistics.instance_probability(labels), [0.25, 0.75])
    with pytest.raises(ValueError, match="classes without training examples: '1'"):
        statistics.instance_probability(np.array([[0, 1, 0]]))


@pytest.mark.parametrize("convert", [np.asarray, scipy.sparse.csr_array])
def test_a_label_that_is_not_0_or_1_is_named(convert):
    labels = np.array([[1.0, 0.0], [0.0, 2.0]])
    with pytest.raises(ValueError, match=r"found 2\.0 in row 1, class 'dog'"):
        LabelStatistics.from_labels(convert(labels), ["cat", "dog"])


@pytest.mark.parametrize("convert", [np.asarray, scipy.sparse.csr_array])
def test_minus_one_among_floating_point_numbers_is_refused(convert):
    with pytest.raises(ValueError, match=r"found -1\.0 in row 0, class '1'; an unknown label is"):
        LabelStatistics.from_labels(convert([[0.0, -1.0]]))


def test_names_and_shapes_must_fit():
    with pytest.raises(ValueError, match="3 columns and 2 class names"):
        LabelStatistics.from_labels(LABELS, ["a", "b"])
    with pytest.raises(ValueError, match=r"found more than once: 'a'"):
        LabelStatistics.from_labels(LABELS, ["a", "b", "a"])
    with pytest.raises(ValueError, match=r"shape \(N, C\)"):
        LabelStatistics.from_labels([1, 0])
    with pytest.raises(ValueError, match="2 columns, the statistics 3 classes"):
        LabelStatistics.from_labels(LABELS).instance_probability([[1, 0]])
