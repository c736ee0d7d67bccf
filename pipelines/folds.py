"""Stratified parts of labeled examples: folds of the training split, and a test split."""

import dataclasses

import numpy as np
import scipy.sparse

from pipelines.examples import LabelledData

# The split "val", as what is held out.
VAL = "val"
_MOST_PASSES = 20


def stratified_folds(
    labels: scipy.sparse.csr_array, num_folds: int, *, seed: int = 0
) -> np.ndarray:
    """Divides multi-label examples into folds in which every class has its share.

    The examples are dealt one by one, those of rare classes first: each goes to the fold that has
    the fewest examples of its rarest class, then of its next class, and so on, and then the fewest
    examples (after Sechidis et al., On the Stratification of Multi-Label Data, ECML 2011). A class
    whose examples are then all in one fold, if it has two or more, gives one of them to another
    fold, so that it can be both learned and judged. (Two folds cannot always part all such classes:
    three examples of which each two share a class of their own are the smallest case.)

    Args:
        labels: the labels, bool (N, C).
        num_folds: the number K ≥ 2 of folds.
        seed: the seed of the order of equal examples and of ties.

    Returns:
        The fold of each example, int64 (N,), from 0 to K − 1. Their sizes differ by a few examples.

    Raises:
        ValueError: there are fewer examples than folds, or fewer than two folds.
    """
    num_examples = labels.shape[0]
    if not 2 <= num_folds <= num_examples:
        raise ValueError(
            f"{num_examples} examples cannot be divided into {num_folds} folds; the number of "
            "folds must be at least 2 and at most that of the examples"
        )
    folds, of_class = _deal(labels, np.full(num_folds, 1 / num_folds), seed)
    _part_classes_in_one_fold(labels, folds, of_class, of_class.sum(axis=1))
    return folds


def stratified_share(labels: scipy.sparse.csr_array, fraction: float, *, seed: int) -> np.ndarray:
    """Chooses the examples of a test split, in which every class has its share.

    They are dealt as those of `stratified_folds`. A class of two or more examples has some in
    either part, as far as the classes that it shares examples with allow, so that more examples
    than a small fraction may be chosen. No class loses all of its examples to the test split.

    Args:
        labels: the labels, bool (N, C).
        fraction: the fraction of the examples to choose, in (0, 1).
        seed: the seed of the order of equal examples and of ties.

    Returns:
        Whether an example is chosen, bool (N,).

    Raises:
        ValueError: no example would be chosen.
    """
    parts, of_class = _deal(labels, np.array([1 - fraction, fraction]), seed)
    _part_classes_in_one_fold(labels, parts, of_class, of_class.sum(axis=1))
    columns = labels.tocsc()
    for c in np.flatnonzero((of_class[:, 0] == 0) & (of_class[:, 1] > 0)):
        if of_class[c, 0] == 0:  # an earlier class may have brought an example of it back
            i = columns.indices[columns.indptr[c]]
            parts[i] = 0
            classes = labels.indices[labels.indptr[i] : labels.indptr[i + 1]]
            of_class[classes] += (1, -1)
    if not parts.any():
        raise ValueError(
            f"test_fraction = {fraction:g} sets nothing aside: there are {labels.shape[0]} train "
            "images, and every class keeps one; give a larger fraction, or data with a test split"
        )
    return parts == 1


def _deal(
    labels: scipy.sparse.csr_array, shares: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Deals examples to parts of given shares, those of rare classes first.

    Returns:
        The part of each example, int64 (N,), and the examples of each class in it, (C, K).
    """
    num_examples, num_parts = labels.shape[0], len(shares)
    random = np.random.default_rng(seed)
    counts = np.asarray(labels.sum(axis=0, dtype=np.int64))
    num_labels = np.diff(labels.indptr)
    rows = np.repeat(np.arange(num_examples), num_labels)
    # The classes of each example, the rarest first.
    classes = labels.indices[np.lexsort((counts[labels.indices], rows))]
    rarest = np.full(num_examples, num_examples + 1)
    rarest[num_labels > 0] = counts[classes[labels.indptr[:-1][num_labels > 0]]]
    order = np.lexsort((random.permutation(num_examples), rarest))
    parts = np.empty(num_examples, np.int64)
    # What a part still lacks of its share: of each class, and of all examples.
    lacking = counts[:, None] * shares
    room = num_examples * shares
    starts = labels.indptr.tolist()
    for i in order.tolist():
        classes_of = classes[starts[i] : starts[i + 1]]
        candidates = random.permutation(num_parts)
        for c in classes_of:
            wanted = lacking[c, candidates]
            candidates = candidates[wanted == wanted.max()]
            if len(candidates) == 1:
                break
        part = candidates[np.argmax(room[candidates])]
        parts[i] = part
        lacking[classes_of, part] -= 1
        room[part] -= 1
    of_class = np.stack([labels[parts == k].sum(axis=0, dtype=np.int64) for k in range(num_parts)])
    return parts, of_class.T.copy()


def _part_classes_in_one_fold(
    labels: scipy.sparse.csr_array, folds: np.ndarray, of_class: np.ndarray, counts: np.ndarray
) -> None:
    """Moves examples, in place, until every class of two or more examples is in two folds."""
    columns = labels.tocsc()
    for _ in range(_MOST_PASSES):
        together = (counts >= 2) & (np.count_nonzero(of_class, axis=1) == 1)
        if not together.any():
            return
        for c in np.flatnonzero(together):
            holders = columns.indices[columns.indptr[c] : columns.indptr[c + 1]]
            if (folds[holders] == folds[holders[0]]).all():  # no earlier move has mended it
                _move_one(holders, labels, folds, of_class, counts)


def _move_one(
    holders: np.ndarray,
    labels: scipy.sparse.csr_array,
    folds: np.ndarray,
    of_class: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Moves one of the examples to another fold, such that the fewest other classes suffer."""
    best = None
    for i in holders:
        home = folds[i]
        classes = labels.indices[labels.indptr[i] : labels.indptr[i + 1]]
        for fold in range(of_class.shape[1]):
            if fold != home:
                moved = of_class[classes]
                moved[:, home] -= 1
                moved[:, fold] += 1
                in_one = (np.count_nonzero(moved, axis=1) == 1) & (counts[classes] >= 2)
                loss = (np.count_nonzero(in_one), moved[:, fold].sum())
                if best is None or loss < best[0]:
                    best = (loss, i, fold)
    assert best is not None
    _, i, fold = best
    classes = labels.indices[labels.indptr[i] : labels.indptr[i + 1]]
    of_class[classes, folds[i]] -= 1
    of_class[classes, fold] += 1
    folds[i] = fold


def held_out(data: LabelledData, folds: np.ndarray, fold: int) -> LabelledData:
    """Returns the other folds of the training split as "train" and this one as "test".

    The data have no other splits then: what is chosen on them has seen neither val nor test.

    Args:
        data: the data, of which the training split alone is used.
        folds: the fold of each training example, (N,).
        fold: the fold that is held out.
    """
    train, test = data.splits["train"].divide(folds == fold)
    return dataclasses.replace(data, splits={"train": train, "test": test})


def name_of(fold: int, num_folds: int) -> str:
    """Returns the name of a fold, such as "2/5" for the second (1) of five."""
    return f"{fold + 1}/{num_folds}"


def check_held_out(name: str) -> None:
    """Refuses what is neither "val" nor the name of a fold.

    Raises:
        ValueError: the message says what would be right.
    """
    if name != VAL:
        _parse(name)


def without_test(data: LabelledData, name: str, *, seed: int) -> LabelledData:
    """Returns data in which the val split or a fold of the training split takes the place of test.

    Args:
        data: the data. A val split stays where a fold is held out.
        name: "val" or the name of a fold.
        seed: the seed of the folds.

    Raises:
        ValueError: there is no val split, or the training split cannot be divided in this way.
    """
    if name != VAL:
        fold, num_folds = _parse(name)
        fold_of = stratified_folds(data.splits["train"].labels, num_folds, seed=seed)
        parts = held_out(data, fold_of, fold).splits
        val = {VAL: data.splits[VAL]} if VAL in data.splits else {}
        return dataclasses.replace(data, splits={**parts, **val})
    if VAL not in data.splits:
        raise ValueError("the data have no val split to hold out; pass --val_fraction=0.2")
    splits = {"train": data.splits["train"], "test": data.splits[VAL]}
    return dataclasses.replace(data, splits=splits)


def _parse(name: str) -> tuple[int, int]:
    fold, slash, num_folds = name.partition("/")
    if slash and fold.isdecimal() and num_folds.isdecimal() and 1 <= int(fold) <= int(num_folds):
        return int(fold) - 1, int(num_folds)
    raise ValueError(
        f"held_out must be val, or a fold of the training split such as 2/5, the second of five; "
        f"got {name!r}"
    )
