"""Labels that are not known, from tables, archives and shards to batches, runs and reports."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import PIL.Image
import pytest
import scipy.sparse
import sklearn.metrics
import tensorflow as tf

from benchmarks import hidden_labels
from dbl_tf import weighting
from dbl_tf.statistics import LabelStatistics
from pipelines import data_summary, inputs, longtail, prepared_table, record_formats, sampling
from pipelines.datasets import table
from pipelines.examples import Examples, FeatureRows, LabelledData, set_aside_val
from pipelines.runs.config import DataConfig, RunConfig
from pipelines.runs.train import train_and_evaluate
from pipelines.shards import layout, reading, writing
from pipelines.shards.manifest import Manifest
from pipelines.shrinking import Settings
from pipelines.tables.text import TableError

CLASS_NAMES = ("sun", "sea", "tree", "boat")


def draw(num_examples, seed=0, shares=(0.5, 0.4, 0.3, 0.2)):
    """Labels, and which of them are known."""
    rng = np.random.default_rng(seed)
    labels = rng.random((num_examples, len(shares))) < shares
    return labels, rng.random(labels.shape) < 0.7


def as_examples(labels, known, **arguments):
    return Examples(
        names=[f"{i}" for i in range(len(labels))],
        labels=scipy.sparse.csr_array(labels & known),
        unknown=scipy.sparse.csr_array(~known),
        **arguments,
    )


def targets_of(labels, known):
    return np.where(known, labels, -1)


def test_examples_carry_unknown_labels_along():
    labels, known = draw(60)
    examples = as_examples(labels, known)
    targets = targets_of(labels, known)
    np.testing.assert_array_equal(examples.targets.toarray(), targets)
    assert examples.num_unknown == (~known).sum()
    part = examples.take(np.arange(5, 20))
    np.testing.assert_array_equal(part.targets.toarray(), targets[5:20])
    all_known = dataclasses.replace(examples, unknown=None)
    assert all_known.targets is all_known.labels
    assert examples.label_checksum() != all_known.label_checksum()
    data = LabelledData(CLASS_NAMES, {"train": examples})
    moved = data.with_classes(("boat", "sun", "gull", "tree", "sea")).splits["train"]
    np.testing.assert_array_equal(moved.targets.toarray()[:, [1, 4, 3, 0]], targets)
    assert not moved.targets.toarray()[:, 2].any()
    divided = set_aside_val(data, 0.25, seed=0).splits
    rows = [int(name) for split in divided.values() for name in split.names]
    joined = np.concatenate([split.targets.toarray() for split in divided.values()])
    np.testing.assert_array_equal(joined, targets[rows])


def test_batches_have_minus_one_where_a_label_is_not_known():
    labels, known = draw(50)
    examples = as_examples(labels, known)
    order = np.random.default_rng(1).permutation(50)
    indices = tf.data.Dataset.from_tensor_slices(order.reshape(5, 10))
    features = FeatureRows.of(np.arange(50, dtype=np.float32)[:, None])
    counts = LabelStatistics.from_labels(examples.targets).class_counts
    batches = inputs.feature_batches(
        features,
        examples.targets,
        indices,
        lambda labels: weighting.rebalanced_weights(labels, counts),
    )
    for of_batch, (rows, found, weights) in zip(order.reshape(5, 10), batches, strict=True):
        np.testing.assert_array_equal(rows[:, 0], of_batch)
        assert found.dtype == tf.int8
        np.testing.assert_array_equal(found, targets_of(labels, known)[of_batch])
        expected = weighting.rebalanced_weights((labels & known)[of_batch], counts)
        np.testing.assert_allclose(weights, expected, rtol=1e-6)
    known_labels = inputs.dense_labels(examples.labels)(tf.constant(order))
    assert known_labels.dtype == tf.uint8


@pytest.mark.parametrize("convert", [np.asarray, scipy.sparse.csr_array])
@pytest.mark.parametrize("sampler", ["class_aware", "class_cycle"])
def test_no_example_is_drawn_by_an_unknown_label(sampler, convert):
    labels, known = draw(40)
    known[:10], labels[:10] = [False, True, True, True], [True, False, False, False]
    for dtype in (np.int8, np.float32):
        unknown = -1 if dtype is np.int8 else np.nan
        given = convert(np.where(known, labels, unknown).astype(dtype))
        draws = sampling.SAMPLERS[sampler](given, 64, seed=0).take(4)
        drawn = np.concatenate(list(draws.as_numpy_iterator()))
        same = sampling.SAMPLERS[sampler](labels & known, 64, seed=0).take(4)
        np.testing.assert_array_equal(drawn, np.concatenate(list(same.as_numpy_iterator())))
        assert drawn.min() >= 10


def test_no_record_of_a_stream_is_drawn_by_an_unknown_label():
    labels, known = draw(40)
    counts = (labels & known).sum(axis=0)

    def drawn(given):
        records = tf.data.Dataset.from_tensor_slices({"id": np.arange(40), "labels": given})
        draws = sampling.class_aware_stream(records, counts, 40, seed=0, start_draw=7).take(100)
        return [int(draw["id"]) for draw in draws]

    expected = drawn((labels & known).astype(np.uint8))
    targets = targets_of(labels, known).astype(np.int8)
    assert drawn(targets) == expected
    assert drawn(np.where(targets < 0, np.nan, targets).astype(np.float32)) == expected
    with pytest.raises(tf.errors.InvalidArgumentError, match="labels must be 0 or 1"):
        drawn(targets.astype(np.float32))


def test_a_long_tailed_subset_does_not_depend_on_what_is_unknown():
    labels, known = draw(300)
    chosen = longtail.pareto_subset(targets_of(labels, known), max_count=60, seed=0)
    expected = longtail.pareto_subset(labels & known, max_count=60, seed=0)
    np.testing.assert_array_equal(chosen, expected)


@pytest.mark.parametrize("record_format", record_formats.FORMATS)
def test_shards_hold_unknown_labels(small_data, record_format, tmp_path):
    train = small_data.splits["train"]
    rng = np.random.default_rng(0)
    unknown = scipy.sparse.csr_array((rng.random((237, 3)) < 0.3) & ~train.labels.toarray())
    splits = {**small_data.splits, "train": dataclasses.replace(train, unknown=unknown)}
    data = dataclasses.replace(small_data, splits=splits)
    plan = layout.make_plan(data, record_format=record_format, examples_per_shard=100)
    without = layout.make_plan(small_data, record_format=record_format, examples_per_shard=100)
    assert plan.data_digest != without.data_digest
    manifest = writing.write(data, tmp_path, plan)
    assert Manifest.load(tmp_path) == manifest
    assert json.loads((tmp_path / layout.MANIFEST).read_text())["has_unknown"]
    assert not without.to_json()["has_unknown"]
    loaded = reading.load(tmp_path)
    position = [train.names.index(name) for name in loaded.splits["train"].names]
    expected = splits["train"].targets.toarray()[position]
    np.testing.assert_array_equal(loaded.splits["train"].targets.toarray(), expected)
    assert loaded.splits["test"].unknown is None
    statistics = LabelStatistics.load(tmp_path / layout.STATISTICS)
    np.testing.assert_array_equal(statistics.unknown_counts, unknown.sum(axis=0))
    if record_format == "tfrecord":
        streamed = loaded.splits["train"].stream(0).map(lambda example: example["labels"])
        found = np.stack(list(streamed.as_numpy_iterator()))
        assert found.dtype == np.int8
        np.testing.assert_array_equal(found, expected)
        draws = loaded.splits["train"].stream(0)
        batches = inputs.streamed_batches(draws, 20, image_size=8, seed=0).take(2)
        streamed = np.concatenate([labels for _, labels in batches.as_numpy_iterator()])
        np.testing.assert_array_equal(streamed, expected[:40])


@pytest.fixture
def wide_table(tmp_path):
    """A wide table of six images, of which the last row repeats the first image."""
    lines = [
        "image,split,sun,sea,tree",
        "0.jpg,train,1,-1,0",
        "1.jpg,train,0,1,-1",
        "2.jpg,train,NaN,,1",
        "3.jpg,val,1,0,0",
        "4.jpg,test,-1,1,0",
        "5.jpg,test,0,0,1",
        "0.jpg,train,-1,-1,-1",
    ]
    for i in range(6):
        PIL.Image.new("RGB", (16, 16), (20 * i, 0, 0)).save(tmp_path / f"{i}.jpg")
    (tmp_path / "examples.csv").write_text("\n".join(lines))
    return tmp_path / "examples.csv"


def load(path, tmp_path, **arguments):
    return DataConfig.of(
        dataset="table", examples=str(path), cache_dir=str(tmp_path / "cache"), **arguments
    ).load_data()


@pytest.mark.parametrize("empty_labels", ["absent", "unknown"])
def test_a_wide_table_says_which_labels_are_not_known(wide_table, tmp_path, empty_labels):
    data = load(wide_table, tmp_path, empty_labels=empty_labels)
    empty = -1 if empty_labels == "unknown" else 0
    # Of an image in two rows, what one of them knows is known.
    expected = [[1, -1, 0], [0, 1, -1], [-1, empty, 1]]
    np.testing.assert_array_equal(data.splits["train"].targets.toarray(), expected)
    np.testing.assert_array_equal(data.splits["test"].targets.toarray(), [[-1, 1, 0], [0, 0, 1]])
    assert data.splits["val"].num_unknown == 0
    counted = f"Labels that are not known, and are left out: {3 - empty} train, 0 val, 1 test"
    summary = data_summary.summarize(data)
    assert counted in summary
    # Of each label: images of train, val and test that have it, and those where it is not known.
    named = dict(line.rsplit(maxsplit=1)[::-1] for line in summary.splitlines()[2:6])
    assert named["class"].split() == ["train", "val", "test", "unknown"]
    all_labels = np.concatenate([split.targets.toarray() for split in data.splits.values()])
    for c, name in enumerate(data.class_names):
        *_, unknown = map(int, named[name].split())
        assert unknown == np.count_nonzero(all_labels[:, c] == -1)


def test_the_classes_of_a_file_choose_among_the_columns(wide_table, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("tree\nsea\nsun\n")
    data = load(wide_table, tmp_path, class_names=str(names))
    expected = [[0, -1, 1], [-1, 1, 0], [1, 0, -1]]
    np.testing.assert_array_equal(data.splits["train"].targets.toarray(), expected)


def test_written_tables_keep_unknown_labels(wide_table, tmp_path):
    data = load(wide_table, tmp_path)
    folder = tmp_path / "copy"
    folder.mkdir()
    files = {file for split in data.splits.values() for file in split.files}
    copied = table.copy_rows(table.TableOptions(examples=str(wide_table)), folder, files)
    config = DataConfig.of(
        dataset="table", examples=str(wide_table), cache_dir=str(tmp_path / "cache")
    )
    prepared = prepared_table.write(
        config.source, config.loading, tmp_path / "small", Settings(), num_processes=1
    )
    for path in (copied, prepared.examples):
        first = pathlib.Path(path).read_text().splitlines()[0]
        assert json.loads(first)["sea"] == -1
        again = load(path, tmp_path)
        assert again.class_names == data.class_names
        for name, split in data.splits.items():
            np.testing.assert_array_equal(
                again.splits[name].targets.toarray(), split.targets.toarray()
            )


def test_a_class_that_could_not_be_a_column_is_refused(tmp_path):
    path = tmp_path / "examples.jsonl"
    path.write_text('{"image": "0.jpg", "split": "train", "sun": 1, "image_id": -1}\n')
    with pytest.raises(TableError, match="rename the class"):
        table.check_classes(str(path), ("sun", "image_id"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Features from which the labels can be told, where those that are hidden would mislead."""
    rng = np.random.default_rng(0)
    labels, known = draw(400)
    signal = labels @ rng.standard_normal((4, 12))
    features = signal + 0.5 * rng.standard_normal((400, 12))
    split = np.repeat(["train", "val", "test"], [220, 60, 120])
    path = tmp_path_factory.mktemp("features") / "views.npz"
    np.savez(
        path,
        features=features.astype(np.float32),
        labels=np.where(known, labels, np.nan).astype(np.float32),
        split=split,
        class_names=np.array(CLASS_NAMES),
    )
    return path, labels, known, split


@pytest.mark.parametrize("method", ["db_focal", "two_way"])
def test_a_run_trains_and_is_judged_on_the_known_labels(archive, method, tmp_path):
    path, labels, known, split = archive
    run_dir = tmp_path / "run"
    config = RunConfig.of(
        dataset="features",
        examples=str(path),
        run_dir=str(run_dir),
        method=method,
        steps=80,
        batch_size=16,
    )
    scores = train_and_evaluate(config)
    with open(run_dir / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    test = split == "test"
    for i, name in enumerate(CLASS_NAMES):
        k = known[test, i]
        probabilities = np.array([float(row[name]) for row in rows])[k]
        y, entry = labels[test, i][k], scores["per_class"][name]
        assert entry["test_count"] == y.sum()
        assert entry["train_count"] == (labels & known)[split == "train", i].sum()
        assert entry["ap"] == pytest.approx(
            sklearn.metrics.average_precision_score(y, probabilities), abs=1e-6
        )
        assert entry["brier_score"] == pytest.approx(np.mean((probabilities - y) ** 2), abs=1e-6)
    statistics = LabelStatistics.load(run_dir / "statistics.json")
    np.testing.assert_array_equal(statistics.known_counts, known[split == "train"].sum(axis=0))
    # Continuing the finished run finds the labels that it was started with.
    assert train_and_evaluate(config)["mAP"] == scores["mAP"]
    report = (run_dir / "report.html").read_text()
    assert f"Of {(~known[test]).sum()} labels of the test images it is not known" in report


def test_loading_features_tells_known_from_unknown(archive):
    path, labels, known, split = archive
    data = DataConfig.of(dataset="features", examples=str(path)).load_data()
    for name, examples in data.splits.items():
        expected = targets_of(labels, known)[split == name]
        np.testing.assert_array_equal(examples.targets.toarray(), expected)
    parts = DataConfig.of(dataset="features", examples=str(path), held_out="2/3").load_data()
    assert all(part.unknown is not None for part in parts.splits.values())


def test_labels_are_hidden_as_unknown_or_as_negative():
    labels, _ = draw(200)
    examples = as_examples(labels, np.ones_like(labels))
    unknown, negative = (
        hidden_labels.hide(examples, 0.3, treatment, seed=1)
        for treatment in (hidden_labels.UNKNOWN, hidden_labels.NEGATIVE)
    )
    assert abs(unknown.num_unknown - 240) < 4 * np.sqrt(800 * 0.3 * 0.7)
    assert (unknown.labels != negative.labels).nnz == 0 and negative.num_unknown == 0
    hidden = unknown.unknown.toarray()
    np.testing.assert_array_equal(unknown.labels.toarray(), labels & ~hidden)
    assert hidden[labels].any() and hidden[~labels].any()
    assert hidden_labels.hide(examples, 0.3, hidden_labels.SHOWN, seed=1) is examples
