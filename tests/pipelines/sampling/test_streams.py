"""Training batches from shards: by position and as a stream."""

import csv
import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from run_data import make_data

from dbl_tf import LabelStatistics
from dbl_tf.training import ALL_ROWS, Share
from pipelines import images, inputs, record_formats, sampling
from pipelines.runs import build
from pipelines.runs.config import ConfigError, RunConfig
from pipelines.runs.resolution import resolve
from pipelines.runs.train import train_and_evaluate
from pipelines.shards import layout, reading, writing

BATCH_SIZE = 16


@pytest.fixture(scope="module")
def folders(small_data, tmp_path_factory):
    folders = {}
    for record_format in record_formats.FORMATS:
        folders[record_format] = tmp_path_factory.mktemp(record_format)
        plan = layout.make_plan(small_data, record_format=record_format, examples_per_shard=20)
        writing.write(small_data, folders[record_format], plan)
    return folders


@pytest.fixture(scope="module")
def streamed(folders):
    return reading.load(folders["tfrecord"])


def make_config(directory, **arguments):
    return RunConfig.of(
        **{
            "method": "rs_focal",
            "backbone": "small_resnet",
            "backbone_weights": "none",
            "backbone_options": {"width": 4},
            "image_size": 8,
            "batch_size": BATCH_SIZE,
            "steps": 6,
            "checkpoint_every": 2,
            "run_dir": str(directory / "run"),
            "cache_dir": str(directory / "cache"),
            "export": False,
            **arguments,
        }
    )


def batches(data, config, step):
    statistics = LabelStatistics.from_labels(data.splits["train"].labels, data.class_names)
    return build.make_image_batches(config, data, statistics)(step, ALL_ROWS)


@pytest.mark.parametrize("sampler", sampling.STREAM_SAMPLERS)
def test_a_stream_goes_on_at_any_step_as_if_it_had_run_from_the_first(streamed, tmp_path, sampler):
    train = streamed.splits["train"]
    config = resolve(make_config(tmp_path, sampler=sampler), make_data())
    statistics = LabelStatistics.from_labels(train.labels)
    whole = list(
        build.make_draws(config, train, statistics, 0).take(40 * BATCH_SIZE).as_numpy_iterator()
    )
    for step in (7, 33):  # in the first pass and in the third
        later = build.make_draws(config, train, statistics, step).take(2 * BATCH_SIZE)
        for place, draw in enumerate(later.as_numpy_iterator(), start=step * BATCH_SIZE):
            assert draw["image"] == whole[place]["image"]
            np.testing.assert_array_equal(draw["labels"], whole[place]["labels"])


def counting(counter, function):
    def counted(*arguments, **options):
        with tf.control_dependencies([counter.assign_add(1)]):
            return function(*arguments, **options)

    return counted


def test_images_are_decoded_only_where_they_are_used(streamed, monkeypatch):
    with tf.device("CPU"):
        decoded, read = tf.Variable(0), tf.Variable(0)
    monkeypatch.setattr(images, "read_for_training", counting(decoded, images.read_for_training))
    train = streamed.splits["train"]
    counts = train.labels.sum(axis=0, dtype=np.int64)
    # Half as many draws as records: most records of a pass are left out.
    draws = sampling.class_aware_stream(
        train.stream(0).map(counting(read, lambda example: example)),
        counts,
        len(train),
        seed=0,
        draws_per_record=0.5,
        shuffle_buffer=40,
    )
    num_batches = 4 * len(train) // 2 // BATCH_SIZE
    pipeline = inputs.streamed_batches(
        draws.take(num_batches * BATCH_SIZE), BATCH_SIZE, image_size=8, seed=0
    )
    used = sum(len(batch) for batch, _ in pipeline.as_numpy_iterator())
    assert used == num_batches * BATCH_SIZE
    assert int(decoded) == used
    # Twice the draws, but for chance and the windows that lie ahead.
    assert 2 * used - 80 < int(read) < 2 * used + 200


def test_going_on_reads_no_record_of_the_groups_before(streamed):
    train = streamed.splits["train"]
    with tf.device("CPU"):
        read = tf.Variable(0)
    counted = dataclasses.replace(
        train, stream=lambda start: train.stream(start).map(counting(read, lambda example: example))
    )
    statistics = LabelStatistics.from_labels(train.labels)
    draws = sampling.class_aware_stream(
        counted.stream(0),
        statistics.class_counts,
        statistics.num_examples,
        seed=0,
        shuffle_buffer=40,
        start_draw=10 * len(train) + 200,
        labels_alone=tf.data.Dataset.from_tensor_slices(train.labels.toarray()),
        records_from=counted.stream,
    )
    assert int(read) == 0
    next(draws.as_numpy_iterator())
    assert int(read) < 150


def test_images_labels_and_seeds_belong_together(streamed, tmp_path):
    train = streamed.splits["train"]
    config = resolve(make_config(tmp_path, sampler="uniform"), make_data())
    draws = build.make_draws(config, train, LabelStatistics.from_labels(train.labels), 2)
    draw = next(draws.skip(5).as_numpy_iterator())
    pixels, labels = next(batches(streamed, config, 2).as_numpy_iterator())
    np.testing.assert_array_equal(labels[5], draw["labels"])
    seed = tf.constant([config.seed, 2 * BATCH_SIZE + 5], tf.int64)
    expected = images.read_for_training(
        draw["image"], 8, seed, augmentation=images.Augmentation(flip_probability=0.25)
    )
    np.testing.assert_allclose(pixels[5], expected, atol=1e-3)


@pytest.mark.parametrize("record_format", record_formats.FORMATS)
def test_the_shares_of_two_machines_make_up_the_batch(folders, tmp_path, record_format):
    data = reading.load(folders[record_format])
    config = resolve(make_config(tmp_path), make_data())
    statistics = LabelStatistics.from_labels(data.splits["train"].labels, data.class_names)
    made = build.make_image_batches(config, data, statistics)

    def second(share):
        return next(made(3, share).skip(1).as_numpy_iterator())

    for whole, *parts in zip(second(ALL_ROWS), *(second(Share(i, 2)) for i in (0, 1)), strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_batches_by_position_are_those_of_the_original_images(small_data, folders, tmp_path):
    data = reading.load(folders["array_record"])
    config = resolve(make_config(tmp_path, sampler="class_cycle"), make_data())
    names = small_data.splits["train"].names
    order = [names.index(name) for name in data.splits["train"].names]
    original = dataclasses.replace(
        small_data, splits={"train": small_data.splits["train"].take(order)}
    )
    for a, b in zip(
        batches(data, config, 3).take(3), batches(original, config, 3).take(3), strict=True
    ):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_run_on_a_stream_continues_and_equals_one_that_was_not_stopped(folders, tmp_path):
    config = make_config(
        tmp_path,
        dataset="shards",
        shards_dir=str(folders["tfrecord"]),
        method="db_focal",
    )
    scores = train_and_evaluate(config)
    run = tmp_path / "run"
    with open(run / "predictions.csv", newline="") as file:
        names = [row["image"] for row in csv.DictReader(file)]
    assert sorted(names) == sorted(f"test/ä {i}.png" for i in range(41))
    newest = sorted((run / "checkpoints").glob("step-*.npz"))[-1]
    newest.unlink()  # as if it had been killed before the last checkpoint
    again = train_and_evaluate(config)
    assert again["mAP"] == scores["mAP"]


def test_a_frozen_backbone_takes_a_stream_with_any_sampler(folders, tmp_path):
    config = make_config(
        tmp_path, dataset="shards", shards_dir=str(folders["tfrecord"]), sampler="class_cycle"
    )
    with pytest.raises(ConfigError, match="class_cycle reads images by position"):
        train_and_evaluate(config)
    config = config.with_settings(freeze_backbone=True, calibrate=False)
    assert train_and_evaluate(config)["mAP"]
