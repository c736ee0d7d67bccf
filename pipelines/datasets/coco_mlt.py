"""COCO-MLT: a long-tailed part of COCO 2017 train, tested on COCO 2017 val.

The test split is all of COCO 2017 val, including images without labels. An image has the label of a
class if any of its annotations, crowds included, shows the class and has an area. The classes are
in the order of their category ids. The data are `coco/train2017`, `coco/val2017` and
`coco/annotations`, or `coco/2017` of TensorFlow Datasets. A newly drawn train split has a maximum
count of 1 200.

Reference: Wu et al., Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
Datasets, ECCV 2020, section 4.1.
"""

import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.sparse
import tensorflow as tf

from dbl_tf.messages import first_few
from pipelines.datasets import assembly, benchmark_sets, tfds_source

CLASSES = tuple(
    """person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|
    stop sign|parking meter|bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|
    backpack|umbrella|handbag|tie|suitcase|frisbee|skis|snowboard|sports ball|kite|baseball bat|
    baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|cup|fork|knife|spoon|bowl|
    banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|
    potted plant|bed|dining table|toilet|tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|
    toaster|sink|refrigerator|book|clock|vase|scissors|teddy bear|hair drier|toothbrush""".replace(
        "\n    ", ""
    ).split("|")
)
MAX_COUNT = 1200

_PARTS = {"train": "train2017", "test": "val2017"}


def _read_folder(root: str, split: str) -> tuple[list[str], list[str], scipy.sparse.csr_array]:
    """Reads names, paths and labels of the images that the annotation file lists."""
    part = _PARTS[split]
    path = os.path.join(root, "annotations", f"instances_{part}.json")
    print(f"reading {path}")
    content = _read_json(path)
    names, labels = _labels_in(path, content)
    return names, [os.path.join(root, part, name) for name in names], labels


def _read_json(path: str) -> dict[str, Any]:
    def without_outline(item: dict[str, Any]) -> dict[str, Any]:
        item.pop("segmentation", None)  # it takes nine tenths of the memory
        return item

    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file, object_hook=without_outline)
    except json.JSONDecodeError as error:
        raise benchmark_sets.BenchmarkError(
            f"{path}, line {error.lineno}, column {error.colno}: malformed JSON, {error.msg}"
        ) from None
    except UnicodeDecodeError as error:
        raise benchmark_sets.BenchmarkError(f"{path} is not UTF-8: {error}") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in keys):
        raise benchmark_sets.BenchmarkError(f"{path} must hold lists of {', '.join(keys)}")
    return content


def _labels_in(path: str, content: dict[str, Any]) -> tuple[list[str], scipy.sparse.csr_array]:
    """Returns the file names of the images, and their labels."""
    categories = dict(sorted(_fields(path, content, "categories", "id", "name")))
    _check_classes(path, list(categories.values()))
    code_of = {category: code for code, category in enumerate(categories)}
    images = dict(_fields(path, content, "images", "id", "file_name"))
    row_of = {image: row for row, image in enumerate(images)}
    rows, codes, problems = [], [], []
    fields = ("id", "image_id", "category_id", "area", "bbox")
    for annotation, image, category, area, box in _fields(path, content, "annotations", *fields):
        try:
            _, _, width, height = box
            if area <= 0 or width <= 0 or height <= 0:
                continue
        except (TypeError, ValueError):
            problems.append(f"annotation {annotation}: area {area!r} with bbox {box!r}")
            continue
        if image not in row_of:
            problems.append(f"annotation {annotation}: no image {image}")
        elif category not in code_of:
            problems.append(f"annotation {annotation}: no category {category}")
        else:
            rows.append(row_of[image])
            codes.append(code_of[category])
    if problems:
        raise benchmark_sets.BenchmarkError(
            f"{path}: {len(problems)} annotations cannot be used: {first_few(problems, '; ')}"
        )
    order = np.argsort(rows, kind="stable")
    num_labels = np.bincount(np.array(rows, np.int64), minlength=len(images))
    labels = assembly.label_matrix(np.array(codes, np.int64)[order], num_labels, len(CLASSES))
    return list(images.values()), labels


def _fields(path: str, content: dict[str, Any], key: str, *names: str) -> Iterator[tuple]:
    """Yields these fields of every item of a list."""
    for number, item in enumerate(content[key]):
        try:
            yield tuple([item[name] for name in names])
        except (KeyError, TypeError) as error:
            raise benchmark_sets.BenchmarkError(
                f"{path}: {key}[{number}] must have {', '.join(names)}; it is {item!r:.200}: "
                f"{error!r}"
            ) from None


def _check_classes(source: str, names: Sequence[str]) -> None:
    if tuple(names) == CLASSES:
        return
    missing = [name for name in CLASSES if name not in names]
    others = [name for name in names if name not in CLASSES]
    raise benchmark_sets.BenchmarkError(
        f"{source} does not have the {len(CLASSES)} classes of COCO in the order of their ids: it "
        f"has {len(names)}; missing: {first_few(missing) or 'none'}; unknown: "
        f"{first_few(others) or 'none'}"
    )


def _read_tfds(split: tfds_source.Split, cache_dir: str | os.PathLike) -> tfds_source.Columns:
    _check_classes(str(split), split.builder.info.features["objects"]["label"].names)

    def parse(example):
        box = example["objects"]["bbox"]  # ymin, xmin, ymax, xmax
        # TFDS rounds areas down to whole numbers, so a small area and none look the same there.
        has_area = tf.reduce_all(box[:, 2:] > box[:, :2], axis=1)
        return example["image/filename"], tf.boolean_mask(example["objects"]["label"], has_area)

    return tfds_source.read_columns(
        split,
        features={"image/filename": True, "objects": {"bbox": True, "label": True}},
        parse=parse,
        key="image/filename objects with area",
        cache_dir=cache_dir,
    )


def _id_of(text: str) -> str | None:
    """Returns the id in an id, a file name (also of 2014) or a path, as twelve digits."""
    found = re.fullmatch(r"(?:.*[/\\])?(?:COCO_\w+_)?(\d{1,12})(?:\.\w+)?", text)
    return found and found[1].zfill(12)


BENCHMARK = benchmark_sets.Benchmark(
    name="coco_mlt",
    class_names=CLASSES,
    max_count=MAX_COUNT,
    folder="coco",
    pieces={split: (part, f"annotations/instances_{part}.json") for split, part in _PARTS.items()},
    read_folder=_read_folder,
    tfds_splits={"train": ("coco/2017", "train"), "test": ("coco/2017", "validation")},
    read_tfds=_read_tfds,
    id_of=_id_of,
)
load = functools.partial(benchmark_sets.load, BENCHMARK)
