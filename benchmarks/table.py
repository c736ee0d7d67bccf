r"""Measures time and memory of a large table, from its file to batches of class-aware indices.

    python -m benchmarks.table --rows=1000000 --classes=1203 [--wide]

Makes the table in a scratch folder, with class counts that fall by a factor of 10⁴ along a Pareto
law and, with 600 classes or more, a mean of three labels per row. Every row names a separate image
file, which exists: the files are hard links to one small picture, one copy of it for
each 10 000 names, so that the file system has as many entries to look up as with real images. No
image is image is decoded.

With --wide, the same labels are also written as a wide table, a column of zeros and ones for each
class, and read from there: 2.4 GB for the numbers above.

Each stage runs in a separate process. "peak" is the peak memory of this process, and "before" is
the peak when the stage began, with Python, TensorFlow and the input of the stage. "CPU s" is the
CPU time of all its threads, which says more than the clock on a machine with other work.
"""

import csv
import json
import os
import pathlib
import tempfile
from typing import Any

import numpy as np
from absl import flags

from benchmarks import measuring

_TEST_SHARE = 0.01
_MAX_LINKS = 10_000
_LABELS_PER_ROW = 3


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    return [
        flags.DEFINE_integer("rows", 1_000_000, "Rows of the table.", lower_bound=100),
        flags.DEFINE_integer("classes", 1203, "Classes.", lower_bound=2),
        flags.DEFINE_integer("batch_size", 32, "Indices in a batch.", lower_bound=1),
        flags.DEFINE_integer("batches", 20_000, "Batches timed after the first.", lower_bound=1),
        flags.DEFINE_bool("wide", False, "Also read the labels from a wide table."),
        flags.DEFINE_string("scratch_dir", None, "Where the table is made; needs room."),
    ]


def measure(
    rows: int, classes: int, batch_size: int, batches: int, wide: bool, scratch_dir: str | None
) -> dict[str, Any]:
    """Runs the stages, each in a process of its own."""
    with tempfile.TemporaryDirectory(dir=scratch_dir) as scratch:
        folder = pathlib.Path(scratch)
        stages = {
            "make the table and its files": (make, folder, rows, classes),
            "index the table": (index, folder),
            "  of which: look at the files": (look_at_files, folder),
            "LabelStatistics": (label_statistics, folder),
            "class-aware indices, first batch": (first_batch, folder, batch_size),
            "class-aware indices, then": (later_batches, folder, batch_size, batches),
        }
        if wide:
            stages["write the wide table"] = (make_wide, folder)
            stages["read the wide table"] = (read_wide, folder)
        results = {name: measuring.in_process_of_its_own(*stage) for name, stage in stages.items()}
    return {"rows": rows, "classes": classes, "stages": results}


def make(folder: pathlib.Path, num_rows: int, num_classes: int) -> dict[str, Any]:
    """Writes `examples.csv` and a file for each of its rows."""
    from pipelines import longtail

    # The law of power 1 has labels_per_row · rows labels in all where its maximum is 100/C of that.
    max_count = min(num_rows // 2, 100 * _LABELS_PER_ROW * num_rows // num_classes)
    counts = longtail.reference_counts(num_classes, max_count=max_count, power=1.0)
    generator = np.random.default_rng(0)
    label_rows = generator.integers(num_rows, size=counts.sum())
    label_classes = np.repeat(np.arange(num_classes), counts)
    order = np.argsort(label_rows, kind="stable")
    ends = np.cumsum(np.bincount(label_rows, minlength=num_rows))
    names = [f"class {i:05}" for i in range(num_classes)]
    num_test = int(num_rows * _TEST_SHARE)
    picture = _picture()
    with measuring.Stage() as stage, open(folder / "examples.csv", "w", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", "split", "labels"])
        start = 0
        for row, end in enumerate(ends):
            part = folder / f"{row // _MAX_LINKS:06}"
            image = part / f"{row:09}.png"
            if row % _MAX_LINKS == 0:
                part.mkdir()
                image.write_bytes(picture)
                original = image
            else:
                os.link(original, image)
            labels = dict.fromkeys(names[c] for c in label_classes[order[start:end]])
            start = end
            split = "test" if row < num_test else "train"
            writer.writerow([f"{part.name}/{image.name}", split, "|".join(labels)])
    return stage.figures()


def index(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the table; keeps the train labels for the other stages."""
    import scipy.sparse

    from pipelines.runs.config import DataConfig

    with measuring.Stage() as stage:
        data = DataConfig.of(
            dataset="table",
            examples=str(folder / "examples.csv"),
            check_images="exists",
            cache_dir=str(folder),
        ).load_data()
    labels = data.splits["train"].labels
    scipy.sparse.save_npz(folder / "labels.npz", labels, compressed=False)
    (folder / "files.json").write_text(
        json.dumps([file for split in data.splits.values() for file in split.files])
    )
    counts = np.sort(labels.sum(axis=0))[::-1]
    return stage.figures(
        train_images=len(data.splits["train"]),
        train_labels=int(labels.nnz),
        largest_count=int(counts[0]),
        smallest_count=int(counts[-1]),
    )


def look_at_files(folder: pathlib.Path) -> dict[str, Any]:
    """Looks whether the images are there, as `index` has done among other things."""
    from pipelines.datasets import image_checks

    files = json.loads((folder / "files.json").read_text())
    with measuring.Stage() as stage:
        bad = image_checks.check_images(files, level="exists", cache_dir=folder)
    assert not bad
    return stage.figures()


def label_statistics(folder: pathlib.Path) -> dict[str, Any]:
    """Counts and co-occurrences of the train labels."""
    from dbl_tf.statistics import LabelStatistics

    labels = _labels(folder)
    with measuring.Stage() as stage:
        LabelStatistics.from_labels(labels)
    return stage.figures()


def first_batch(folder: pathlib.Path, batch_size: int) -> dict[str, Any]:
    """Sets up class-aware sampling and draws once."""
    from pipelines import sampling

    labels = _labels(folder)
    with measuring.Stage() as stage:
        next(iter(sampling.class_aware_indices(labels, batch_size, seed=0)))
    return stage.figures()


def make_wide(folder: pathlib.Path) -> dict[str, Any]:
    """Writes the train labels as `wide.csv`."""
    labels = _labels(folder).astype(np.uint8)
    header = ["image", "split", *(f"class {i:05}" for i in range(labels.shape[1]))]
    with measuring.Stage() as stage, open(folder / "wide.csv", "wb") as file:
        file.write((",".join(header) + "\n").encode())
        for start in range(0, labels.shape[0], _MAX_LINKS):
            part = labels[start : start + _MAX_LINKS].toarray() + ord("0")
            cells = np.full((len(part), 2 * part.shape[1]), ord(","), np.uint8)
            cells[:, ::2], cells[:, -1] = part, ord("\n")
            for row, text in enumerate(cells, start=start):
                file.write(f"{row // _MAX_LINKS:06}/{row:09}.png,train,".encode() + text.tobytes())
    return stage.figures(mib_of_file=(folder / "wide.csv").stat().st_size / 2**20)


def read_wide(folder: pathlib.Path) -> dict[str, Any]:
    """Reads `wide.csv`, without looking at the files that it names."""
    from pipelines.findings import Findings
    from pipelines.tables import reading

    path = str(folder / "wide.csv")
    with measuring.Stage() as stage:
        rows = reading.read(path, Findings(path))
    assert len(rows.label_codes) == _labels(folder).nnz
    return stage.figures(images=len(rows.images))


def later_batches(folder: pathlib.Path, batch_size: int, num_batches: int) -> dict[str, Any]:
    """Draws many batches and takes them one by one, as a Python program sees them."""
    from pipelines import sampling

    batches = sampling.class_aware_indices(_labels(folder), batch_size, seed=0).as_numpy_iterator()
    next(batches)
    with measuring.Stage() as stage:
        for _ in range(num_batches):
            next(batches)
    return stage.figures(batches_per_second=num_batches / stage.seconds)


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as a table."""
    lines = [
        f"{result['rows']} rows, {result['classes']} classes",
        "",
        f"{'stage':<34}{'seconds':>9}{'CPU s':>8}{'before, MiB':>13}{'peak, MiB':>11}",
    ]
    for name, figures in result["stages"].items():
        further = ", ".join(
            f"{key.replace('_', ' ')} {value:.0f}"
            for key, value in figures.items()
            if key not in ("seconds", "cpu_seconds", "mib_before", "mib_peak")
        )
        lines.append(
            f"{name:<34}{figures['seconds']:9.2f}{figures['cpu_seconds']:8.2f}"
            f"{figures['mib_before']:13.0f}{figures['mib_peak']:11.0f}  {further}".rstrip()
        )
    return "\n".join(lines)


def _labels(folder: pathlib.Path) -> Any:
    import scipy.sparse

    return scipy.sparse.load_npz(folder / "labels.npz")


def _picture() -> bytes:
    import tensorflow as tf

    return tf.io.encode_png(tf.zeros((8, 8, 3), tf.uint8)).numpy()


if __name__ == "__main__":
    measuring.run("table", define_flags, measure, describe)
