"""COCO-MLT from folders in the layout of the originals, and from TensorFlow Datasets."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.object_detection import coco

from pipelines.datasets import coco_mlt, image_checks
from pipelines.runs.config import DataConfig

# The category ids run from 1 to 90 and leave these out.
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
_IDS = [i for i in range(1, 91) if i not in _UNUSED_IDS]
CATEGORIES = [
    {"supercategory": "thing", "id": i, "name": name}
    for i, name in zip(_IDS, coco_mlt.CLASSES, strict=True)
]
ID_OF = {category["name"]: category["id"] for category in CATEGORIES}
# Image: its objects, of which "!" marks a crowd, "-" one without area.
TRAIN = {
    391895: "motorcycle person person bicycle",
    9: "bowl broccoli !orange",
    200365: "hot dog -oven",
    30: "",
    25: "-zebra",
}
TEST = {139: "tv chair", 285: "toothbrush", 632: "", 724: "stop sign"}


def _annotation(number, image_id, name, width, height):
    box = [8.5, 10.25, width / 4, 0.0 if name.startswith("-") else height / 3]
    crowd = name.startswith("!")
    outline = {"counts": [272, 2, 4], "size": [height, width]} if crowd else [[8.5, 10.25, 9.0]]
    return {
        "segmentation": outline,
        "area": box[2] * box[3] * 0.7,
        "iscrowd": int(crowd),
        "image_id": image_id,
        "bbox": box,
        "category_id": ID_OF[name.lstrip("!-")],
        "id": number,
    }


def _names(objects):
    """The objects of a line: two words are one name where COCO has it so."""
    names, words = [], objects.split()
    while words:
        size = 2 if " ".join(words[:2]).lstrip("!-") in ID_OF and len(words) > 1 else 1
        names.append(" ".join(words[:size]))
        words = words[size:]
    return names


def _write_part(folder, part, photographs, objects_of):
    (folder / part).mkdir(parents=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for (image_id, objects), photograph in zip(objects_of.items(), photographs, strict=False):
        name = f"{image_id:012d}.jpg"
        shutil.copy(photograph, folder / part / name)
        height, width, _ = tf.io.decode_jpeg(tf.io.read_file(str(photograph))).shape
        images.append(
            {
                "license": 3,
                "file_name": name,
                "coco_url": f"http://images.cocodataset.org/{part}/{name}",
                "height": height,
                "width": width,
                "date_captured": "2013-11-14 11:18:45",
                "flickr_url": "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg",
                "id": image_id,
            }
        )
        for name in _names(objects):
            number = 1768 + len(annotations)
            annotations.append(_annotation(number, image_id, name, width, height))
    content = {
        "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
        "licenses": [{"url": "http://creativecommons.org/licenses/by-nc-nd/2.0/", "id": 3}],
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def originals(drawn_photographs, tmp_path_factory) -> pathlib.Path:
    """A folder that holds a small coco; only to be read."""
    folder = tmp_path_factory.mktemp("originals")
    _write_part(folder / "coco", "train2017", drawn_photographs, TRAIN)
    _write_part(folder / "coco", "val2017", drawn_photographs[5:], TEST)
    return folder


@pytest.fixture
def damaged(originals, tmp_path) -> pathlib.Path:
    """A copy to be damaged."""
    return shutil.copytree(originals, tmp_path / "damaged")


def _load(data_dir, cache_dir, seed=0, only_splits=None, **options):
    config = DataConfig.of(
        dataset="coco_mlt",
        data_dir=str(data_dir),
        cache_dir=str(cache_dir),
        data_seed=seed,
        **options,
    )
    return config.load_data(only_splits)


def _labels(examples):
    return {
        name: {coco_mlt.CLASSES[c] for c in np.flatnonzero(row)}
        for name, row in zip(examples.names, examples.labels.toarray(), strict=True)
    }


def _expected(objects_of):
    return {
        f"{image_id:012d}.jpg": {n.lstrip("!") for n in _names(objects) if not n.startswith("-")}
        for image_id, objects in objects_of.items()
    }


def _bytes(examples):
    positions = tf.data.Dataset.range(len(examples))
    return list(positions.map(examples.read).as_numpy_iterator())


def test_folders(originals, tmp_path):
    data = _load(originals, tmp_path)
    assert len(data.class_names) == 80
    assert data.class_names[0] == "person" and data.class_names[-1] == "toothbrush"
    drawn = {name: labels for name, labels in _expected(TRAIN).items() if labels}
    assert _labels(data.splits["train"]) == drawn
    assert _labels(data.splits["test"]) == _expected(TEST)
    for examples in data.splits.values():
        assert _bytes(examples) == [pathlib.Path(path).read_bytes() for path in examples.files]
        assert [pathlib.Path(path).name for path in examples.files] == list(examples.names)


def test_the_folder_itself_with_a_list_of_ids(originals, tmp_path):
    path = tmp_path / "img_id.pkl"
    path.write_text("000000000030.jpg\n391895\n")
    train = _load(originals / "coco", tmp_path, image_ids=path).splits["train"]
    assert _labels(train) == {
        "000000000030.jpg": set(),
        "000000391895.jpg": {"person", "bicycle", "motorcycle"},
    }
    path.write_text("30\n139\n")
    with pytest.raises(ValueError, match=r"1 of its 2 ids are not among the 5 .*: 000000000139"):
        _load(originals, tmp_path, image_ids=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"][0].update(image_id=77), "annotation 1768: no image 77"),
        (lambda c: c["annotations"][0].update(category_id=12), "annotation 1768: no category 12"),
        (
            lambda c: c["annotations"][0].pop("bbox"),
            r"annotations\[0\] must have .*'id': 1768.*'bbox'",
        ),
        (lambda c: c["annotations"][0].update(area=None), "annotation 1768: area None"),
        (lambda c: c["images"][0].pop("file_name"), "'file_name'"),
        (lambda c: c.pop("images"), "must hold lists of images, annotations, categories"),
        (lambda c: c["categories"].pop(3), "it has 79; missing: motorcycle"),
        (lambda c: c["categories"][79].update(name="brush"), "missing: toothbrush; unknown: brush"),
    ],
)
def test_annotations_of_another_form_are_named(damaged, tmp_path, change, message):
    path = damaged / "coco" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as raised:
        _load(damaged, tmp_path, only_splits=["test"])
    assert str(path) in str(raised.value)


def test_malformed_json_has_a_place(damaged, tmp_path):
    path = damaged / "coco" / "annotations" / "instances_train2017.json"
    content = json.dumps(json.loads(path.read_text()), indent=1).splitlines()
    content[40] = content[40].rstrip(",") + " ]"
    path.write_text("\n".join(content))
    with pytest.raises(ValueError, match=r"instances_train2017.json, line 4[12], column \d+"):
        _load(damaged, tmp_path)


def test_bad_images_are_named_or_left_out(damaged, tmp_path):
    images = damaged / "coco" / "val2017"
    whole = (images / "000000000285.jpg").read_bytes()
    (images / "000000000285.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "000000000632.jpg").unlink()
    with pytest.raises(image_checks.BadImagesError, match="2 of 4 images") as raised:
        _load(damaged, tmp_path)
    assert [pathlib.Path(bad.path).name for bad in raised.value.bad] == [
        "000000000285.jpg",
        "000000000632.jpg",
    ]
    data = _load(damaged, tmp_path, skip_bad_images=True)
    assert list(data.splits["test"].names) == ["000000000139.jpg", "000000000724.jpg"]


def test_absent_and_incomplete_data(damaged, tmp_path):
    with pytest.raises(ValueError, match="train images were not found") as raised:
        _load(tmp_path, tmp_path)
    assert str(tmp_path / "coco" / "2017") in str(raised.value)
    (damaged / "coco" / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(ValueError, match=r"no annotations/instances_val2017\.json"):
        _load(damaged, tmp_path)


with tfds.core.registered.skip_registration():

    class Coco(coco.Coco):
        """TFDS's own COCO, fed with folders that are here already in place of its downloads."""

        originals: pathlib.Path

        def _split_generators(self, dl_manager):
            folder = str(self.originals / "coco")
            boxes = coco.AnnotationType.BBOXES
            parts = {"train": "train2017", "validation": "val2017"}
            return {
                name: self._generate_examples(folder, folder, part, boxes, None)
                for name, part in parts.items()
            }


@pytest.fixture(scope="module")
def prepared(originals, tmp_path_factory) -> pathlib.Path:
    """A folder of TFDS with COCO 2017 prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    Coco.originals = originals
    builder = Coco(config="2017", data_dir=folder, file_format="tfrecord")
    builder.download_and_prepare()
    return folder


def test_tensorflow_datasets_give_what_the_folders_give(prepared, originals, tmp_path):
    ids = tmp_path / "img_id.txt"
    ids.write_text("\n".join(map(str, TRAIN)))
    there = _load(originals, tmp_path, image_ids=ids)
    for _ in range(2):  # the second time from what the first remembered
        here = _load(prepared, tmp_path, image_ids=ids)
        for split in ("train", "test"):
            assert _labels(here.splits[split]) == _labels(there.splits[split])
            assert list(here.splits[split].names) == list(there.splits[split].names)
            assert _bytes(here.splits[split]) == _bytes(there.splits[split])


def test_the_recipe_trains_another_network(originals, train_by_recipe, tmp_path):
    scores = train_by_recipe(
        "coco_mlt",
        f"--data_dir={originals}",
        "--allow_empty_classes",
        "--backbone=small_resnet",
        "--backbone_options=width=4",
    )
    assert len(scores["per_class"]) == 80


@pytest.mark.slow
def test_the_recipe_trains_and_evaluates(originals, train_by_recipe, tmp_path):
    scores = train_by_recipe("coco_mlt", f"--data_dir={originals}", "--allow_empty_classes")
    assert len(scores["per_class"]) == 80
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["backbone"], config["lambda_"], config["mu"]) == ("ResNet50", 2.0, 0.2)
    assert (config["margin"], config["learning_rate"]) == ("released", 0.02)
