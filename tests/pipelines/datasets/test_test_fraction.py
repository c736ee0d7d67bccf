"""A test split that is set aside, for sources that have none."""

import json
import pathlib

import numpy as np
import pytest
import scipy.sparse
import tensorflow as tf

from pipelines import data_summary
from pipelines.examples import Examples, LabelledData
from pipelines.runs.config import ConfigError, DataConfig, RunConfig
from pipelines.runs.train import train_and_evaluate
from pipelines.shards import layout, writing

NAMES = ("cat", "dog", "ox", "yak", "emu")
SHARES = (0.6, 0.4, 0.2, 0.06, 0.03)


def random_labels(num_examples: int, seed: int = 0) -> np.ndarray:
    labels = np.random.default_rng(seed).random((num_examples, len(NAMES))) < SHARES
    labels[:2] = np.eye(5, dtype=bool)[4]  # two of the rarest class at least
    return labels


def write_table(
    folder: pathlib.Path, labels: np.ndarray, *, split: str | None = None, form: str = "csv"
) -> pathlib.Path:
    """A table without a column of splits, or with one that names a single split."""
    path = folder / f"t.{form}"
    rows = []
    for i, row in enumerate(labels):
        pixels = np.full((8, 8, 3), i % 256, np.uint8)
        pixels[0, 0] = i // 256
        (folder / f"{i}.png").write_bytes(tf.io.encode_png(pixels).numpy())
        rows.append({"image": f"{i}.png", "labels": [NAMES[c] for c in np.flatnonzero(row)]})
        if split is not None:
            rows[-1]["split"] = split
    if form == "jsonl":
        lines = [json.dumps(row) for row in rows]
    else:
        header = "image,labels" if split is None else "image,labels,split"
        lines = [header]
        for row in rows:
            cells = [row["image"], "|".join(row["labels"]), *([split] if split else [])]
            lines.append(",".join(cells))
    path.write_text("\n".join([*lines, ""]))
    return path


def load(path, splits=None, **options):
    options = {"check_images": "exists", "test_fraction": 0.2} | options
    return DataConfig.of(dataset="table", examples=str(path), **options).load_data(splits)


def names_of(data, split):
    return list(data.splits[split].names)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("split", [None, "train"])
def test_a_table_without_test_rows_gets_a_stratified_test_split(tmp_path, form, split):
    labels = random_labels(300)
    path = write_table(tmp_path, labels, split=split, form=form)
    data = load(path)
    assert list(data.splits) == ["train", "test"]
    assert abs(len(data.splits["test"]) - 60) <= 3
    assert sorted(names_of(data, "train") + names_of(data, "test")) == sorted(
        f"{i}.png" for i in range(300)
    )
    counts, order = labels.sum(axis=0), [NAMES.index(name) for name in data.class_names]
    in_test = data.splits["test"].labels.sum(axis=0)
    assert np.abs(in_test - 0.2 * counts[order]).max() <= 2 and in_test.min() >= 1
    for name, examples in data.splits.items():
        rows = [int(image.removesuffix(".png")) for image in names_of(data, name)]
        np.testing.assert_array_equal(examples.labels.toarray(), labels[rows][:, order])


def test_the_test_split_depends_on_the_data_and_their_seed_alone(tmp_path):
    path = write_table(tmp_path, random_labels(120))
    for i in (3, 50, 77, 101):
        (tmp_path / f"{i}.png").write_bytes(b"no picture")
    cache_dir = str(tmp_path / "cache")
    expected = names_of(load(path), "test")
    for options in (
        {"val_fraction": 0.3},
        {"held_out": "1/3", "val_fraction": 0.2},
        {"check_images": "header", "skip_bad_images": True, "cache_dir": cache_dir},
        {"check_images": "all", "skip_bad_images": True, "cache_dir": cache_dir},
    ):
        data = load(path, **options)
        found = names_of(data, "test")
        if "skip_bad_images" in options:
            bad = {"3.png", "50.png", "77.png", "101.png"}
            assert found == [name for name in expected if name not in bad]
        elif "held_out" in options:
            assert not set(expected) & {*found, *names_of(data, "train"), *names_of(data, "val")}
        else:
            assert found == expected
    assert names_of(load(path, splits=("test",)), "test") == expected
    assert names_of(load(path, data_seed=1), "test") != expected
    assert names_of(load(path, test_fraction=0.3), "test") != expected


def test_the_test_split_is_the_same_whichever_splits_are_loaded(tmp_path):
    labels = random_labels(40)
    path = write_table(tmp_path, labels)
    # One file under two spellings: a row less, which both ways of loading must see.
    path.write_text(path.read_text() + "0.PNG,dog\n5.Png,cat\n")
    assert names_of(load(path, splits=("test",)), "test") == names_of(load(path), "test")
    assert sum(len(split) for split in load(path).splits.values()) == 40


def test_val_rows_stay_where_they_are(tmp_path):
    path = write_table(tmp_path, random_labels(60), split="train")
    text = path.read_text().replace(",train\n", ",val\n", 10)
    path.write_text(text)
    data = load(path)
    assert names_of(data, "val") == [f"{i}.png" for i in range(10)]
    assert len(data.splits["train"]) + len(data.splits["test"]) == 50


def test_a_split_of_val_alone_is_refused(tmp_path):
    path = write_table(tmp_path, random_labels(60), split="val")
    with pytest.raises(ValueError, match="has no train rows; train rows are needed"):
        load(path)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_missing_test_rows_or_splits_name_the_flag(tmp_path, form):
    path = write_table(tmp_path, random_labels(20), split="train", form=form)
    message = r"no test rows.*--test_fraction=0\.2 sets a fifth of train aside as test"
    with pytest.raises(ValueError, match=message):
        load(path, test_fraction=0.0)
    path = write_table(tmp_path, random_labels(20), form=form)  # without a column of splits
    with pytest.raises(ValueError, match=message):
        load(path, test_fraction=0.0)


def test_a_test_split_that_is_there_is_not_replaced(picture_table):
    with pytest.raises(ValueError, match=r"test split of 12 images already, so --test_fraction"):
        load(picture_table)
    with pytest.raises(ValueError, match="digits_mlt has a test split already"):
        DataConfig.of(test_fraction=0.2).load_data()
    for dataset in ("voc_mlt", "coco_mlt"):
        with pytest.raises(ValueError, match=f"{dataset} has a test split already"):
            DataConfig.of(dataset=dataset, test_fraction=0.2).load_data()


def test_a_fraction_of_one_is_refused():
    with pytest.raises(ConfigError, match=r"--test_fraction must be in \[0, 1\)"):
        DataConfig.of(test_fraction=1.0)


@pytest.mark.parametrize("with_split", [False, True])
def test_features_without_test_examples(tmp_path, with_split):
    labels = random_labels(200)
    arrays = {"split": np.array(["train"] * 200)} if with_split else {}
    path = tmp_path / "f.npz"
    features = np.arange(400, dtype=np.float32).reshape(200, 2)
    np.savez(path, features=features, labels=labels, class_names=np.array(NAMES), **arrays)

    def load_features(splits=None, **options):
        config = DataConfig.of(dataset="features", examples=str(path), **options)
        return config.load_data(splits)

    data = load_features(test_fraction=0.25)
    test = data.splits["test"]
    assert abs(len(test) - 50) <= 3 and (test.labels.sum(axis=0) >= 1).all()
    rows = (test.features[:][:, 0] / 2).astype(int)
    np.testing.assert_array_equal(test.labels.toarray(), labels[rows])
    assert len(data.splits["train"]) == 200 - len(test)
    alone = load_features(splits=("test",), test_fraction=0.25)
    assert list(alone.splits) == ["test"] and names_of(alone, "test") == names_of(data, "test")
    with pytest.raises(ValueError, match=r"--test_fraction=0\.2"):
        load_features()


@pytest.mark.parametrize("with_split", [False, True])
def test_features_of_a_table_without_test_rows(tmp_path, with_split):
    path = write_table(tmp_path, random_labels(60), split="train" if with_split else None)
    np.save(tmp_path / "f.npy", np.zeros((60, 3), np.float32))
    data = DataConfig.of(
        dataset="features",
        examples=str(path),
        features=str(tmp_path / "f.npy"),
        test_fraction=0.2,
    ).load_data()
    assert abs(len(data.splits["test"]) - 12) <= 3


@pytest.mark.parametrize("record_format", ["array_record", "tfrecord"])
def test_shards_without_a_test_split(tmp_path, record_format):
    labels = random_labels(80)
    encoded = [f"image {i}".encode() for i in range(80)]
    with tf.device("CPU"):
        table = tf.constant(encoded)
    train = Examples(
        [f"{i}" for i in range(80)],
        scipy.sparse.csr_array(labels),
        read=lambda position: table[position],
    )
    data = LabelledData(NAMES, {"train": train})
    plan = layout.make_plan(data, record_format=record_format, examples_per_shard=30)
    writing.write(data, tmp_path / "shards", plan)
    config = DataConfig.of(dataset="shards", shards_dir=str(tmp_path / "shards"), test_fraction=0.2)
    divided = config.load_data()
    assert list(divided.splits) == ["train", "test"]
    assert abs(len(divided.splits["test"]) - 16) <= 3
    for examples in divided.splits.values():
        images = [f"image {name}".encode() for name in examples.names]
        assert list(examples.encoded().as_numpy_iterator()) == images
        rows = [int(name) for name in examples.names]
        np.testing.assert_array_equal(examples.labels.toarray(), labels[rows])
    sizes = f"{len(divided.splits['train'])} train, 0 val, {len(divided.splits['test'])} test"
    summary = data_summary.summarize(divided)
    assert summary.startswith(f"{record_format} shards: {sizes} images; 5 classes\n")
    assert "same bytes" not in summary
    alone = config.load_data(("test",))
    assert list(alone.splits) == ["test"] and names_of(alone, "test") == names_of(divided, "test")
    with pytest.raises(ValueError, match=r"no split test.*--test_fraction"):
        DataConfig.of(dataset="shards", shards_dir=str(tmp_path / "shards")).load_data(("test",))


def test_a_run_is_evaluated_on_the_test_split_that_was_set_aside(tmp_path):
    path = write_table(tmp_path, random_labels(60))
    asked = RunConfig.of(
        dataset="table",
        examples=str(path),
        test_fraction=0.25,
        val_fraction=0.25,
        backbone="small_resnet",
        backbone_weights="none",
        backbone_options={"width": 4},
        image_size=16,
        batch_size=8,
        steps=2,
        cache_dir=str(tmp_path / "cache"),
        run_dir=str(tmp_path / "run"),
        method="erm",
        clamp_counts=True,
        export=False,
    )
    train_and_evaluate(asked)
    written = (tmp_path / "run" / "predictions.csv").read_text().splitlines()[1:]
    expected = names_of(load(path, test_fraction=0.25), "test")
    assert [line.partition(",")[0] for line in written] == expected
    assert json.loads((tmp_path / "run" / "config.json").read_text())["test_fraction"] == 0.25
