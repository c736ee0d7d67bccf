import numpy as np
import pytest

from dbl_tf import LabelStatistics, label_graph, read_label_embeddings


def make_statistics():
    # Class 1 always occurs with 0, class 0 occurs with 1 in half of its examples, class 2 with 0
    # and 1 in a quarter of its examples, and class 3 alone.
    labels = [[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    labels += [[0, 0, 1, 0]] * 3 + [[0, 0, 0, 1]]
    return LabelStatistics.from_labels(labels, ["dog", "fire hydrant", "Cat", "tv_monitor"])


def test_graph_by_hand():
    # P(1 given 0) = 2/4, P(0 given 1) = 1, P(2 given 1) = 1/2, P(0 given 2) = P(1 given 2) = 1/4.
    graph = label_graph(make_statistics(), threshold=0.4, reweighting=0.2)
    reweighted = np.array(
        [[0.8, 0.2, 0, 0], [0.1, 0.8, 0.1, 0], [0, 0, 0.8, 0], [0, 0, 0, 0.8]], np.float64
    )
    roots = np.sqrt([1, 1, 0.8, 0.8])
    np.testing.assert_allclose(graph, reweighted / roots[:, None] / roots, rtol=1e-14)
    assert label_graph(make_statistics(), threshold=0.6)[0, 1] == 0


def test_a_class_without_examples_is_its_own_only_neighbor():
    statistics = LabelStatistics.from_labels([[1, 0], [1, 0]])
    np.testing.assert_allclose(label_graph(statistics), np.eye(2))


def test_label_embeddings_from_word_vectors(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text(
        "the 9 9\ndog 1 2\nfire 3 4\nfire engine 7 7\nhydrant 5 6\ncat -1 0.5\ntv_monitor 2 2\n"
        "monitor 0 0\n\n. . 1 1\n",
        encoding="utf-8",
    )
    embeddings = read_label_embeddings(path, ["dog", "fire hydrant", "Cat", "tv_monitor"])
    np.testing.assert_allclose(embeddings, [[1, 2], [4, 5], [-1, 0.5], [2, 2]])
    with pytest.raises(ValueError, match=r"no vectors for 2 words: emu, tv \(of 'tv-monitor'\)"):
        read_label_embeddings(path, ["dog", "emu", "monitor", "tv-monitor"])


def test_a_truncated_line_of_vectors_is_named(tmp_path):
    path = tmp_path / "vectors.txt"
    path.write_text("dog 1 2 3\ncat 1 2\n")
    with pytest.raises(ValueError, match=r"line 2: 'cat' has 2 numbers, but earlier words have 3"):
        read_label_embeddings(path, ["dog", "cat"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0}, r"threshold must be in \(0, 1\]; got 0"),
        ({"reweighting": 1}, r"reweighting must be in \[0, 1\); got 1"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        label_graph(make_statistics(), **arguments)
