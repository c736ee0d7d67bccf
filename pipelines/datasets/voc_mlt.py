"""VOC-MLT: a long-tailed part of VOC 2012 train-val, tested on VOC 2007 test.

An image has the label of a class if an object of the class is annotated, even one marked
`difficult`. The data are the folders `VOCdevkit/VOC2012` and `VOCdevkit/VOC2007`, or `voc/2012`
and `voc/2007` of TensorFlow Datasets. A newly drawn train split has a maximum count of 800.

Reference: Wu et al., Distribution-Balanced Loss for Multi-Label Classification in Long-Tailed
Datasets, ECCV 2020, section 4.1.
"""

import concurrent.futures
import functools
import os
import re
import xml.etree.ElementTree
from collections.abc import Sequence

import numpy as np
import scipy.sparse

from dbl_tf import terminal
from dbl_tf.messages import first_lines
from pipelines.datasets import assembly, benchmark_sets, tfds_source

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
MAX_COUNT = 800

_LISTS = {"train": ("VOC2012", "trainval"), "test": ("VOC2007", "test")}
_THREADS = 16  # on a network drive opening a file waits, it does not compute
_BLOCK = 64


def _read_folder(root: str, split: str) -> tuple[list[str], list[str], scipy.sparse.csr_array]:
    """Reads names, paths and labels of the images that ImageSets/Main lists."""
    year, list_name = _LISTS[split]
    folder = os.path.join(root, year)
    path = os.path.join(folder, "ImageSets", "Main", f"{list_name}.txt")
    with open(path, encoding="utf-8") as file:
        ids = [line.strip() for line in file if not line.isspace()]
    if not ids:
        raise benchmark_sets.BenchmarkError(f"{path} lists no images")
    paths = [os.path.join(folder, "Annotations", f"{image_id}.xml") for image_id in ids]
    labels = _read_annotations(paths, path)
    names = [f"{image_id}.jpg" for image_id in ids]
    return names, [os.path.join(folder, "JPEGImages", name) for name in names], labels


def _read_annotations(paths: Sequence[str], image_list: str) -> scipy.sparse.csr_array:
    """Reads the labels of annotation files; raises one error that names all faulty files."""
    index = {name: code for code, name in enumerate(CLASSES)}
    blocks = [paths[start : start + _BLOCK] for start in range(0, len(paths), _BLOCK)]
    codes: list[int] = []
    num_labels: list[int] = []
    problems: list[str] = []
    print(f"reading the {len(paths):,} annotations that {image_list} lists")
    with (
        terminal.Counter("reading annotations", len(paths), "files") as counter,
        concurrent.futures.ThreadPoolExecutor(_THREADS) as threads,
    ):
        for block in threads.map(lambda block: [_names_in(path) for path in block], blocks):
            for found in block:
                path = paths[len(num_labels)]
                names = set() if isinstance(found, str) else found & index.keys()
                if isinstance(found, str):
                    problems.append(f"{path}: {found}")
                elif unknown := sorted(found - index.keys()):
                    problems.append(f"{path}: unknown class {', '.join(map(repr, unknown))}")
                codes += [index[name] for name in names]
                num_labels.append(len(names))
            counter.show(len(num_labels))
    if problems:
        raise benchmark_sets.BenchmarkError(
            f"{len(problems):,} of the {len(paths):,} annotations that {image_list} lists cannot "
            f"be used:\n{first_lines(problems)}"
        )
    return assembly.label_matrix(np.array(codes, np.int64), np.array(num_labels), len(CLASSES))


def _names_in(path: str) -> set[str] | str:
    """Returns the classes in an annotation file, or a string that says why it cannot be used."""
    try:
        with open(path, "rb") as file:
            annotation = xml.etree.ElementTree.parse(file).getroot()
    except OSError as error:
        return error.strerror or str(error)
    except xml.etree.ElementTree.ParseError as error:
        line, column = error.position
        return f"line {line}, column {column + 1}: malformed XML, {error}"
    if annotation.tag != "annotation":
        return f"its root is <{annotation.tag}>, not <annotation>"
    # Only objects count; their parts (head, hand, foot) have names too.
    names = {(box.findtext("name") or "").strip() for box in annotation.iterfind("object")}
    return "an object without a name" if "" in names else names


def _read_tfds(split: tfds_source.Split, cache_dir: str | os.PathLike) -> tfds_source.Columns:
    names = tuple(split.builder.info.features["labels"].feature.names)
    if names != CLASSES:
        raise benchmark_sets.BenchmarkError(f"{split} has other classes: {names}")
    return tfds_source.read_columns(
        split,
        features={"image/filename": True, "labels": True},
        parse=lambda example: (example["image/filename"], example["labels"]),
        key="image/filename labels",
        cache_dir=cache_dir,
    )


def _id_of(text: str) -> str | None:
    """Returns the id in an id, a file name or a path."""
    found = re.fullmatch(r"(?:.*[/\\])?(\d{4}_\d{6}|\d{6})(?:\.\w+)?", text)
    return found and found[1]


BENCHMARK = benchmark_sets.Benchmark(
    name="voc_mlt",
    class_names=CLASSES,
    max_count=MAX_COUNT,
    folder="VOCdevkit",
    pieces={
        split: (f"{year}/JPEGImages", f"{year}/Annotations", f"{year}/ImageSets/Main/{name}.txt")
        for split, (year, name) in _LISTS.items()
    },
    read_folder=_read_folder,
    tfds_splits={"train": ("voc/2012", "train+validation"), "test": ("voc/2007", "test")},
    read_tfds=_read_tfds,
    id_of=_id_of,
)
load = functools.partial(benchmark_sets.load, BENCHMARK)
