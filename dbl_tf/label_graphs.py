"""Inputs of a graph classifier: the graph of co-occurring labels, and word vectors of labels."""

import os
import re
from collections.abc import Sequence

import numpy as np

from dbl_tf.messages import first_few
from dbl_tf.statistics import LabelStatistics


def label_graph(
    statistics: LabelStatistics, *, threshold: float = 0.4, reweighting: float = 0.2
) -> np.ndarray:
    """Computes the normalized graph Â of co-occurring labels, for `GraphClassifier`.

    With P_ij = P(j given i) = n_(i∩j)/n_i, the share of the examples of class i that also have
    class j:

    * A_ij = 1 where P_ij ≥ τ, else 0 (Eq. 7 of the publication).
    * A'_ij = p A_ij / Σ_(k≠i) A_ik for i ≠ j, and A'_ii = 1 − p (Eq. 8, whose printed numerator
      omits A_ij). If a label has no neighbors, A'_ii = 1 − p is the only non-zero entry of its row.
      This is the diagonal of the publication; the released code normalizes I + A' instead.
    * Â = D^(−1/2) A' D^(−1/2), where D holds the row sums of A'. If a label has no neighbors,
      Â_ii is 1.

    Row i contains the contributions of all labels j to the weights of class i. The matrix is not
    symmetric.

    Args:
        statistics: the statistics of the training labels. A class without examples has no
            neighbors.
        threshold: the threshold τ in (0, 1].
        reweighting: the share p in [0, 1) that neighbors contribute to the weights of a label.

    Returns:
        Â, float64 (C, C).

    Raises:
        ValueError: if τ or p is out of range.

    References: Chen et al., Multi-Label Image Recognition with Graph Convolutional Networks, CVPR
    2019, section 3.4; Kipf and Welling, Semi-Supervised Classification with Graph Convolutional
    Networks, ICLR 2017.

    Example:

    >>> statistics = LabelStatistics.from_labels([[1, 1, 0], [1, 0, 0], [0, 0, 1]])
    >>> label_graph(statistics).round(1).tolist()
    [[0.8, 0.2, 0.0], [0.2, 0.8, 0.0], [0.0, 0.0, 1.0]]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be in (0, 1]; got {threshold}")
    if not 0 <= reweighting < 1:
        raise ValueError(f"reweighting must be in [0, 1); got {reweighting}")
    probability = statistics.conditional_probability.T
    edges = probability >= threshold
    np.fill_diagonal(edges, False)
    num_neighbors = edges.sum(axis=1, keepdims=True)
    graph = reweighting * edges / np.maximum(num_neighbors, 1)
    np.fill_diagonal(graph, 1.0 - reweighting)
    inverse_roots = graph.sum(axis=1) ** -0.5
    return inverse_roots[:, None] * graph * inverse_roots


def read_label_embeddings(path: str | os.PathLike, class_names: Sequence[str]) -> np.ndarray:
    """Reads embeddings of labels from a text file of word vectors.

    Args:
        path: the path of a UTF-8 file in GloVe's format, with a word and its numbers on each line,
            separated by spaces.
        class_names: the C names of the classes. If the file contains the whole name, with "_" for
            spaces, the name gets that vector. Otherwise the name is split at spaces, "_" and "-",
            and gets the mean of the vectors of its words. Where the file does not contain the
            original spelling, the lower-case spelling is looked up.

    Returns:
        The label embeddings E, float32 (C, D).

    Raises:
        ValueError: if the file does not contain a word, which the message names, or a line is
            truncated.
    """
    whole = {name: "_".join(name.split()) for name in class_names}
    words = {name: re.findall(r"[^\s_-]+", name) or [name] for name in class_names}
    wanted = {form for name in class_names for form in (whole[name], *words[name])}
    wanted |= {form.lower() for form in wanted}
    vectors: dict[str, np.ndarray] = {}
    # Bytes that are not UTF-8 cannot belong to a wanted word, so they need no exact decoding.
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            word, _, values = line.rstrip().partition(" ")
            if word not in wanted or word in vectors:
                continue
            try:
                vector = np.array(values.split(), np.float32)
            except ValueError:  # an entry of several words, which starts with this one
                continue
            size = len(next(iter(vectors.values()), vector))
            if not len(vector) or len(vector) != size:
                raise ValueError(
                    f"{path}, line {number}: {word!r} has {len(vector)} numbers"
                    f"{f', but earlier words have {size}' if size else ''}"
                )
            vectors[word] = vector
    rows, missing = [], []
    for name in class_names:
        parts = [whole[name]] if _form(whole[name], vectors) else words[name]
        forms = [_form(part, vectors) for part in parts]
        missing += [
            part if part == name else f"{part} (of {name!r})"
            for part, form in zip(parts, forms, strict=True)
            if form is None
        ]
        rows.append([vectors[form] for form in forms if form is not None])
    if missing:
        raise ValueError(
            f"{path} has no vectors for {len(missing)} words: {first_few(missing, limit=20)}. Add "
            "a line for each of them, with '_' in place of spaces"
        )
    return np.stack([np.mean(vectors_of_name, axis=0) for vectors_of_name in rows])


def _form(word: str, vectors: dict[str, np.ndarray]) -> str | None:
    """The spelling under which the vectors contain a word; None if they do not."""
    return next((form for form in (word, word.lower()) if form in vectors), None)
