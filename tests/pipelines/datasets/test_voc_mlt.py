"""VOC-MLT from folders in the layout of the originals, and from TensorFlow Datasets."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.object_detection import voc

from pipelines.datasets import image_checks, voc_mlt
from pipelines.runs.config import DataConfig

# Image: its objects, of which "!" marks a difficult one.
TRAINVAL = {
    "2008_000002": "tvmonitor",
    "2008_000003": "train person",
    "2008_000007": "boat boat",
    "2008_000008": "horse !person",
    "2008_000009": "cow",
    "2008_000015": "",
}
VAL = ("2008_000007", "2008_000009")
TEST = {"000001": "dog person", "000002": "!train", "000003": "sofa chair", "000004": ""}

_ANNOTATION = """<annotation>
	<folder>{folder}</folder>
	<filename>{image_id}.jpg</filename>
	<source>
		<database>The {folder} Database</database>
		<annotation>PASCAL {folder}</annotation>
		<image>flickr</image>
		<flickrid>341012865</flickrid>
	</source>
	<owner>
		<flickrid>Fried Camels</flickrid>
		<name>Jinky the Fruit Bat</name>
	</owner>
	<size>
		<width>{width}</width>
		<height>{height}</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>
{objects}</annotation>
"""
_OBJECT = """	<object>
		<name>{name}</name>
		<pose>Left</pose>
		<truncated>1</truncated>
		<occluded>0</occluded>
		<difficult>{difficult}</difficult>
		<bndbox>
			<xmin>8</xmin>
			<ymin>12</ymin>
			<xmax>52</xmax>
			<ymax>98</ymax>
		</bndbox>
		<part>
			<name>head</name>
			<bndbox>
				<xmin>9</xmin>
				<ymin>13</ymin>
				<xmax>20</xmax>
				<ymax>30</ymax>
			</bndbox>
		</part>
	</object>
"""


def _write_year(devkit, year, photographs, objects_of, lists):
    folder = devkit / year
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for (image_id, objects), photograph in zip(objects_of.items(), photographs, strict=False):
        shutil.copy(photograph, folder / "JPEGImages" / f"{image_id}.jpg")
        height, width, _ = tf.io.decode_jpeg(tf.io.read_file(str(photograph))).shape
        boxes = [
            _OBJECT.format(name=name.lstrip("!"), difficult=int(name.startswith("!")))
            for name in objects.split()
        ]
        text = _ANNOTATION.format(
            folder=year, image_id=image_id, width=width, height=height, objects="".join(boxes)
        )
        (folder / "Annotations" / f"{image_id}.xml").write_text(text)
    for name, ids in lists.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))


@pytest.fixture(scope="module")
def originals(drawn_photographs, tmp_path_factory) -> pathlib.Path:
    """A folder that holds a small VOCdevkit; only to be read."""
    folder = tmp_path_factory.mktemp("originals")
    train = [image_id for image_id in TRAINVAL if image_id not in VAL]
    lists = {"trainval": TRAINVAL, "train": train, "val": VAL}
    _write_year(folder / "VOCdevkit", "VOC2012", drawn_photographs, TRAINVAL, lists)
    _write_year(folder / "VOCdevkit", "VOC2007", drawn_photographs[6:], TEST, {"test": TEST})
    return folder


@pytest.fixture
def damaged(originals, tmp_path) -> pathlib.Path:
    """A copy to be damaged."""
    return shutil.copytree(originals, tmp_path / "damaged")


def _load(data_dir, cache_dir, seed=0, only_splits=None, **options):
    config = DataConfig.of(
        dataset="voc_mlt",
        data_dir=str(data_dir),
        cache_dir=str(cache_dir),
        data_seed=seed,
        **options,
    )
    return config.load_data(only_splits)


def _labels(examples):
    return {
        name: {voc_mlt.CLASSES[c] for c in np.flatnonzero(row)}
        for name, row in zip(examples.names, examples.labels.toarray(), strict=True)
    }


def _expected(objects_of):
    return {
        f"{image_id}.jpg": set(objects.replace("!", "").split())
        for image_id, objects in objects_of.items()
    }


def _bytes(examples):
    positions = tf.data.Dataset.range(len(examples))
    return list(positions.map(examples.read).as_numpy_iterator())


def test_folders(originals, tmp_path):
    data = _load(originals, tmp_path)
    assert data.class_names == voc_mlt.CLASSES == tuple(sorted(voc_mlt.CLASSES))
    drawn = {name: labels for name, labels in _expected(TRAINVAL).items() if labels}
    assert _labels(data.splits["train"]) == drawn
    assert _labels(data.splits["test"]) == _expected(TEST)
    for examples in data.splits.values():
        assert _bytes(examples) == [pathlib.Path(path).read_bytes() for path in examples.files]
        assert [pathlib.Path(path).name for path in examples.files] == list(examples.names)


def test_the_devkit_itself_and_a_single_split(originals, tmp_path):
    data = _load(originals / "VOCdevkit", tmp_path, only_splits=("test",))
    assert list(data.splits) == ["test"]
    assert len(data.splits["test"]) == len(TEST)
    with pytest.raises(ValueError, match="no val; --val_fraction"):
        _load(originals, tmp_path, only_splits=("val",))


def test_a_list_of_ids_chooses_train(originals, tmp_path):
    path = tmp_path / "img_id.txt"
    path.write_text("2008_000015\n2008_000003\n")
    train = _load(originals, tmp_path, image_ids=path).splits["train"]
    assert _labels(train) == {"2008_000003.jpg": {"person", "train"}, "2008_000015.jpg": set()}


def test_damaged_annotations_are_named_together(damaged, tmp_path):
    annotations = damaged / "VOCdevkit" / "VOC2012" / "Annotations"
    malformed = annotations / "2008_000003.xml"
    malformed.write_text(malformed.read_text().replace("</difficult>", "", 1))
    renamed = annotations / "2008_000008.xml"
    renamed.write_text(renamed.read_text().replace("<name>horse<", "<name>unicorn<"))
    (annotations / "2008_000009.xml").unlink()
    with pytest.raises(ValueError, match="3 of the 6 annotations") as raised:
        _load(damaged, tmp_path)
    message = str(raised.value)
    assert "trainval.txt" in message
    line = malformed.read_text().splitlines().index("\t\t</bndbox>") + 1
    assert f"{malformed}: line " in message and "column" in message
    assert int(message.split(f"{malformed}: line ")[1].split(",")[0]) >= line
    assert f"{renamed}: unknown class 'unicorn'" in message
    assert f"{annotations / '2008_000009.xml'}: No such file" in message


def test_bad_images_are_named_or_left_out(damaged, tmp_path):
    images = damaged / "VOCdevkit" / "VOC2007" / "JPEGImages"
    whole = (images / "000002.jpg").read_bytes()
    (images / "000002.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "000003.jpg").unlink()
    with pytest.raises(image_checks.BadImagesError, match="2 of 4 images") as raised:
        _load(damaged, tmp_path)
    assert [bad.path for bad in raised.value.bad] == [
        str(images / "000002.jpg"),
        str(images / "000003.jpg"),
    ]
    data = _load(damaged, tmp_path, skip_bad_images=True)
    assert list(data.splits["test"].names) == ["000001.jpg", "000004.jpg"]


def test_incomplete_folders_are_not_passed_over(damaged, tmp_path):
    shutil.rmtree(damaged / "VOCdevkit" / "VOC2007" / "Annotations")
    with pytest.raises(ValueError, match="no VOC2007/Annotations") as raised:
        _load(damaged, tmp_path)
    assert str(damaged / "VOCdevkit") in str(raised.value)


def test_absent_data_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(ValueError, match="train images were not found") as raised:
        _load(tmp_path, tmp_path)
    message = str(raised.value)
    assert str(tmp_path / "VOCdevkit") in message
    assert str(tmp_path / "voc" / "2012") in message
    assert "--download" in message and "--data_dir" in message
    with pytest.raises(ValueError, match="no folder at"):
        _load(tmp_path / "typo", tmp_path)


with tfds.core.registered.skip_registration():

    class Voc(voc.Voc):
        """TFDS's own VOC, fed with folders that are here already in place of its downloads."""

        originals: pathlib.Path

        def _split_generators(self, dl_manager):
            names = ["train", "val"] if self.builder_config.year == "2012" else ["test"]
            return {
                {"val": "validation"}.get(name, name): self._generate_examples(self.originals, name)
                for name in names
            }


@pytest.fixture(scope="module", params=["array_record", "tfrecord"])
def prepared(request, originals, tmp_path_factory) -> pathlib.Path:
    """A folder of TFDS with both years prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    Voc.originals = originals
    for year in ("2012", "2007"):
        builder = Voc(config=year, data_dir=folder, file_format=request.param)
        builder.download_and_prepare()
    return folder


def test_tensorflow_datasets_give_what_the_folders_give(prepared, originals, tmp_path):
    ids = tmp_path / "img_id.txt"
    ids.write_text("\n".join(TRAINVAL))
    there = _load(originals, tmp_path, image_ids=ids)
    for _ in range(2):  # the second time from what the first remembered
        here = _load(prepared, tmp_path, image_ids=ids)
        for split in ("train", "test"):
            assert _labels(here.splits[split]) == _labels(there.splits[split])
            assert list(here.splits[split].names) == list(there.splits[split].names)
            assert _bytes(here.splits[split]) == _bytes(there.splits[split])
            assert all(pathlib.Path(path).is_file() for path in here.splits[split].files)


def test_splits_may_come_from_different_places(prepared, originals, tmp_path):
    mixed = shutil.copytree(prepared, tmp_path / "mixed")
    shutil.rmtree(mixed / "voc" / "2012")
    shutil.copytree(originals / "VOCdevkit" / "VOC2012", mixed / "VOC2012")
    data = _load(mixed, tmp_path)
    assert _labels(data.splits["test"]) == _expected(TEST)
    assert data.splits["train"].files[0].endswith("2008_000002.jpg")


def test_the_recipe_trains_another_network(originals, train_by_recipe, tmp_path):
    scores = train_by_recipe(
        "voc_mlt",
        f"--data_dir={originals}",
        "--allow_empty_classes",
        "--backbone=small_resnet",
        "--backbone_options=width=4",
    )
    assert len(scores["per_class"]) == 20


@pytest.mark.slow
def test_the_recipe_trains_and_evaluates(originals, train_by_recipe, tmp_path):
    scores = train_by_recipe("voc_mlt", f"--data_dir={originals}", "--allow_empty_classes")
    assert len(scores["per_class"]) == 20
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["backbone"], config["lambda_"], config["mu"]) == ("ResNet50", 5.0, 0.3)
    assert (config["margin"], config["learning_rate"]) == ("released", 0.02)
