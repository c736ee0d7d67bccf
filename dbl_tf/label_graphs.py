"""The graph of co-occurring labels, and word vectors for labels: inputs of a graph classifier."""

import os
import re
from collections.abc import Sequence

import numpy as np

from dbl_tf.statistics import LabelStatistics


def label_graph(
    statistics: LabelStatistics, *, threshold: float = 0.4, reweighting: float = 0.2
) -> np.ndarray:
    """The normalised graph Â of labels that occur together, for `GraphClassifier`.

    With P_ij = P(j given i) = n_(i∩j)/n_i, the share of the examples of i that hold j too:

    * A_ij = 1 where P_ij ≥ τ, else 0 (the publication's Eq. 7);
    * A'_ij = p A_ij / Σ_(k≠i) A_ik for i ≠ j, and A'_ii = 1 − p (Eq. 8, whose printed numerator
      leaves out A_ij). A label without neighbours keeps A'_ii = 1 − p alone. This is the
      publication's diagonal, not the one of I + A' that its released code normalises;
    * Â = D^(−1/2) A' D^(−1/2), D the row sums of A', so Â_ii of a label without neighbours is 1.

    Row i says which labels j the weights of class i are mixed from. It is no symmetric matrix.

    Args:
        statistics: of the training labels. A class without examples has no neighbours.
        threshold: τ in (0, 1].
        reweighting: p in [0, 1), how much of a label's weights comes from its neighbours.

    Returns:
        Â, float64 (C, C).

    Raises:
        ValueError: τ or p out of range.

    References: Chen et al., Multi-Label Image Recognition with Graph Convolutional Networks, CVPR
    2019, section 3.4; Kipf and Welling, Semi-Supervised Classification with Graph Convolutional
    Networks, ICLR 2017.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")
    if not 0 <= reweighting < 1:
        raise ValueError(f"reweighting must lie in [0, 1), got {reweighting}")
    probability = statistics.conditional_probability.T
    edges = probability >= threshold
    np.fill_diagonal(edges, False)
    neighbours = edges.sum(axis=1, keepdims=True)
    graph = reweighting * edges / np.maximum(neighbours, 1)
    np.fill_diagonal(graph, 1.0 - reweighting)
    inverse_roots = graph.sum(axis=1) ** -0.5
    return inverse_roots[:, None] * graph * inverse_roots


def read_label_embeddings(path: str | os.PathLike, class_names: Sequence[str]) -> np.ndarray:
    """Embeddings of labels from a text file of word vectors.

    Args:
        path: a file in GloVe's format, UTF-8: on each line a word and its numbers, separated by
            spaces.
        class_names: C names. A name that stands in the file as it is, spaces as "_", has its own
            vector; else the vectors of its words, parted by spaces, "_" and "-", are averaged.
            Where a word is not in the file as it is written, its lower case is looked up.

    Returns:
        E, float32 (C, D).

    Raises:
        ValueError: words that are not in the file, by name; a line that is cut short.
    """
    whole = {name: "_".join(name.split()) for name in class_names}
    words = {name: re.findall(r"[^\s_-]+", name) or [name] for name in class_names}
    wanted = {form for name in class_names for form in (whole[name], *words[name])}
    wanted |= {form.lower() for form in wanted}
    vectors: dict[str, np.ndarray] = {}
    # What is no UTF-8 in the file is no word that is looked for.
    with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
        for number, line in enumerate(file, 1):
            word, _, values = line.rstrip().partition(" ")
            if word not in wanted or word in vectors:
                continue
            try:
                vector = np.array(values.split(), np.float32)
            except ValueError:  # an entry of several words, of which this is the first
                continue
            size = len(next(iter(vectors.values()), vector))
            if not len(vector) or len(vector) != size:
                raise ValueError(
                    f"{path}, line {number}: {len(vector)} numbers after {word!r}"
                    f"{f', {size} after the words before it' if size else ''}"
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
            f"{path} has no vectors of {len(missing)} words: {', '.join(missing[:20])}"
            f"{', …' if len(missing) > 20 else ''}. Lines with them can be added; the spaces of a "
            "name are '_' there"
        )
    return np.stack([np.mean(vectors_of_name, axis=0) for vectors_of_name in rows])


def _form(word: str, vectors: dict[str, np.ndarray]) -> str | None:
    """How a word stands among the vectors."""
    return next((form for form in (word, word.lower()) if form in vectors), None)
