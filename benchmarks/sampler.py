r"""Compares indices per second of class-aware re-sampling with other ways to draw them.

    python -m benchmarks.sampler --labels=voc_mlt_train.csv --output=sampler.json

The labels are those of a CSV file with a column `labels`, separated by spaces, where it is given,
and made-up ones: of COCO-MLT's size, and of 10⁴ to 10⁷ examples, whose class counts fall along a
geometric series to a rarest class of one example, with some three labels an example. Beside
`pipelines.sampling.class_aware_indices` stand, where they apply,

* `class_cycle_indices`, and `uniform_indices`, which does not re-sample;
* `filter`: shuffled examples one at a time, each accepted with a probability ∝ P^I(x);
* `rejection_resample`: tf.data's own, which knows one class an example (the rarest) and draws
  classes uniformly, fed with the examples' indices and classes;
* `NumPy choice`: `Generator.choice` with P^I(x) as its weights, a batch a call;
* `Python cycle`: a class sampler of lists in plain Python.

Rates are of batches made and skipped inside tf.data, for what is tf.data's, and of a Python loop
over the batches, an eighth as many, for all: `in Python`. Everything is timed in turns, from a new
iterator on, whose start counts. The set-up is the time to the first batch, labels given as a sparse
matrix.
"""

import contextlib
import functools
import itertools
import os
import random as python_random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf
from absl import flags

from benchmarks import label_lists, measuring
from pipelines import longtail, sampling

SIZES = ("10000x1203", "100000x1203", "1000000x1203", "10000000x10000")
_LABELS_PER_EXAMPLE = 3
_IN_PYTHON = ", in Python"
# Ways that draw one element at a time are given so much less to do.
_SLOW = {"filter": 256, "rejection_resample": 256}
_REFERENCE = "class_aware_indices"


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    return [
        flags.DEFINE_string("labels", None, "CSV file with a column of labels."),
        flags.DEFINE_list("sizes", list(SIZES), "Examples and classes of made-up labels, NxC."),
        flags.DEFINE_bool("coco_like", True, "Measure labels of COCO-MLT's size as well."),
        flags.DEFINE_integer("batch_size", 256, "Indices in a batch.", lower_bound=1),
        flags.DEFINE_integer("batches", 16_384, "Batches of a timing.", lower_bound=1),
        flags.DEFINE_integer("rounds", 5, "Timings of each.", lower_bound=1),
        flags.DEFINE_integer(
            "most_of_others", 10_000, "Examples up to which the others are measured.", 0
        ),
    ]


def measure(
    labels: str | None,
    sizes: list[str],
    coco_like: bool,
    batch_size: int,
    batches: int,
    rounds: int,
    most_of_others: int,
) -> dict[str, Any]:
    """Measures every set of labels."""
    makers: dict[str, Callable[[], scipy.sparse.csr_array]] = {}
    if labels is not None:
        makers[os.path.basename(labels)] = lambda: label_lists.read(labels)[1]
    if coco_like:
        makers["like COCO-MLT"] = make_coco_like
    for text in sizes:
        makers[text] = functools.partial(make_labels, *_size(text))
    results = {}
    for name, make in makers.items():
        matrix = make()
        others = matrix.shape[0] <= most_of_others
        results[name] = measure_labels(matrix, batch_size, batches, rounds, others)
    fastest = max(_rate(result) for result in results.values())
    for result in results.values():
        result["times_slower_than_fastest"] = fastest / _rate(result)
    return {"labels": results}


def make_coco_like() -> scipy.sparse.csr_array:
    """1 909 examples of 80 classes with 6 to 1 128 examples, some four labels each."""
    counts = longtail.reference_counts(80, max_count=1128, min_count=6, power=6.0)
    return _with_counts(1909, counts)


def make_labels(num_examples: int, num_classes: int) -> scipy.sparse.csr_array:
    """Labels of classes whose counts fall along a geometric series to one example.

    Of some three labels an example; the counts of the frequent classes are cut at half of all.
    """
    total = _LABELS_PER_EXAMPLE * num_examples

    def counts_from(largest: float) -> np.ndarray:
        counts = np.geomspace(largest, 1, num_classes)
        return np.maximum(np.minimum(counts, num_examples // 2), 1).astype(np.int64)

    low, high = 1.0, 1e15
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if counts_from(middle).sum() < total else (low, middle)
    return _with_counts(num_examples, counts_from(low))


def _with_counts(num_examples: int, counts: np.ndarray) -> scipy.sparse.csr_array:
    random = np.random.default_rng(0)
    rows = random.integers(num_examples, size=counts.sum(), dtype=np.int32)
    columns = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    ones = np.ones(len(rows), bool)
    matrix = scipy.sparse.csr_array((ones, (rows, columns)), (num_examples, len(counts)))
    matrix.sum_duplicates()
    return matrix


def measure_labels(
    labels: scipy.sparse.csr_array, batch_size: int, batches: int, rounds: int, others: bool
) -> dict[str, Any]:
    """Rates and set-up for one set of labels."""
    ways = {_REFERENCE: functools.partial(sampling.class_aware_indices, labels, batch_size, seed=0)}
    iterated: dict[str, Callable[[], Iterator[Any]]] = {}
    if others:
        probability = _instance_probability(labels)
        ways["class_cycle_indices"] = functools.partial(
            sampling.class_cycle_indices, labels, batch_size, seed=0
        )
        ways["uniform_indices"] = functools.partial(
            sampling.uniform_indices, labels.shape[0], batch_size, seed=0
        )
        ways["filter"] = functools.partial(_by_filter, probability, batch_size)
        ways["rejection_resample"] = functools.partial(_by_resampling, labels, batch_size)
        iterated["NumPy choice"] = functools.partial(_by_choice, probability, batch_size)
        iterated["Python cycle"] = functools.partial(_by_python, labels, batch_size)
    setups, candidates, numbers = {}, {}, {}
    for name, make in ways.items():
        start = time.perf_counter()
        dataset = make()
        with _without_stderr():
            next(iter(dataset))
        setups[name] = time.perf_counter() - start
        number = max(1, batches // _SLOW.get(name, 1))
        candidates[name] = _drained(dataset, number)
        numbers[name] = number
        python_name = name + _IN_PYTHON
        numbers[python_name] = max(1, number // 8)
        candidates[python_name] = functools.partial(_iterate, dataset.take(numbers[python_name]))
    for name, make in iterated.items():
        start = time.perf_counter()
        iterator = make()
        next(iterator)
        setups[name] = time.perf_counter() - start
        python_name = name + _IN_PYTHON
        numbers[python_name] = max(1, batches // 8)
        candidates[python_name] = functools.partial(_consume, iterator, numbers[python_name])
    with _without_stderr():  # rejection_resample writes the classes' shares there, again and again
        seconds = measuring.in_turns(candidates, rounds=rounds).seconds
    rates = {
        name: [numbers[name] * batch_size / value for value in values]
        for name, values in seconds.items()
    }
    return {
        "examples": labels.shape[0],
        "classes": labels.shape[1],
        "labels": int(labels.nnz),
        "seconds_to_set_up": setups,
        "indices_per_second": {name: measuring.quartiles(values) for name, values in rates.items()},
        "times_as_fast": {
            name: measuring.ratio(rates[_counterpart(name)], values)
            for name, values in rates.items()
        },
    }


def _counterpart(name: str) -> str:
    """Returns what to compare with: Python with Python, and tf.data with tf.data."""
    return _REFERENCE + _IN_PYTHON if name.endswith(_IN_PYTHON) else _REFERENCE


def _drained(dataset: tf.data.Dataset, number: int) -> Callable[[], None]:
    """Makes so many batches inside tf.data, of which the last comes out."""
    last = dataset.skip(number - 1).take(1)
    return functools.partial(_iterate, last)


def _iterate(dataset: tf.data.Dataset) -> None:
    # A new iterator each time: one that is kept goes on drawing while others are timed.
    for _ in dataset:
        pass


def _consume(iterator: Iterator[Any], number: int) -> None:
    for _ in range(number):
        next(iterator)


def _instance_probability(labels: scipy.sparse.csr_array) -> np.ndarray:
    counts = np.maximum(labels.sum(axis=0, dtype=np.int64), 1)
    probability = labels @ (1.0 / counts)
    return probability / probability.sum()


def _by_filter(probability: np.ndarray, batch_size: int) -> tf.data.Dataset:
    acceptance = tf.constant(probability / probability.max(), tf.float32)
    size = len(probability)

    def draw(_: tf.Tensor) -> tf.Tensor:
        return tf.random.uniform((), maxval=size, dtype=tf.int64)

    def accepted(index: tf.Tensor) -> tf.Tensor:
        return tf.random.uniform(()) < tf.gather(acceptance, index)

    return tf.data.Dataset.counter().map(draw).filter(accepted).batch(batch_size)


def _by_resampling(labels: scipy.sparse.csr_array, batch_size: int) -> tf.data.Dataset:
    counts = labels.sum(axis=0, dtype=np.int64)
    entries = labels.tocoo()
    # The rarest class of each example: of its labels in order of falling count, the last.
    order = np.argsort(-counts[entries.col], kind="stable")
    rarest = np.full(labels.shape[0], -1)
    rarest[entries.row[order]] = entries.col[order]
    indices = np.flatnonzero(rarest >= 0)
    classes, of_example = np.unique(rarest[indices], return_inverse=True)
    present = np.bincount(of_example) / len(indices)
    target = np.full(len(classes), 1.0 / len(classes))
    return (
        tf.data.Dataset.from_tensor_slices((indices, of_example))
        .shuffle(min(len(indices), 10_000))
        .repeat()
        .rejection_resample(
            lambda index, class_: class_, target_dist=target, initial_dist=present, seed=0
        )
        .map(lambda _, example: example[0])
        .batch(batch_size)
    )


def _by_choice(probability: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(0)
    while True:
        yield random.choice(len(probability), batch_size, p=probability)


def _by_python(labels: scipy.sparse.csr_array, batch_size: int) -> Iterator[list[int]]:
    columns = labels.tocsc()
    starts = zip(columns.indptr[:-1], columns.indptr[1:], strict=True)
    members = [columns.indices[start:end].tolist() for start, end in starts if end > start]
    random = python_random.Random(0)

    def cycle(items: list) -> Iterator[Any]:
        while True:
            random.shuffle(items)
            yield from items

    walks = [cycle(of_class) for of_class in members]
    indices = (next(walk) for walk in cycle(walks))
    while True:
        yield list(itertools.islice(indices, batch_size))


def _rate(result: dict[str, Any]) -> float:
    return result["indices_per_second"][_REFERENCE]["median"]


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as a table."""
    lines = []
    for name, figures in result["labels"].items():
        lines.append(
            f"{name}: {figures['examples']} examples, {figures['classes']} classes, "
            f"{figures['labels']} labels; {figures['times_slower_than_fastest']:.1f} times slower "
            "than where class_aware_indices is fastest"
        )
        rows = [
            [
                way,
                f"{rates['median'] / 1e6:.3f}",
                measuring.show(figures["times_as_fast"][way]),
                measuring.show_seconds(figures["seconds_to_set_up"][way.removesuffix(_IN_PYTHON)]),
            ]
            for way, rates in figures["indices_per_second"].items()
        ]
        header = ["", "million/s", "class_aware_indices is × as fast", "to first batch"]
        lines += [measuring.table(header, rows), ""]
    return "\n".join(lines).rstrip()


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _size(text: str) -> tuple[int, int]:
    examples, _, classes = text.partition("x")
    if not (examples.isdigit() and classes.isdigit() and int(examples) > 9 and int(classes) > 1):
        raise ValueError(f"--sizes takes NxC, as 100000x1203; got {text!r}")
    return int(examples), int(classes)


if __name__ == "__main__":
    measuring.run("sampler", define_flags, measure, describe)
