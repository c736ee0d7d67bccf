r"""Measures the peak memory of training by the number of rows of its table.

    python -m benchmarks.memory --rows=1000,10000,100000,1000000 --output=memory.json

Makes tables as `benchmarks.table` does, with an image file for every row, and trains on each in a
separate process some steps of a small network, as `train.py` does: it indexes the table, counts
labels and their co-occurrences, samples by class, reads, augments, weighs and steps. Only labels
and paths should grow with the rows; the table also shows how much memory they take as bare text.
"""

import pathlib
import tempfile
from typing import Any

import numpy as np
from absl import flags

from benchmarks import measuring, table

ROWS = ("1000", "10000", "100000", "1000000")


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    return [
        flags.DEFINE_list("rows", list(ROWS), "Rows of the tables, rising."),
        flags.DEFINE_integer("classes", 1203, "Classes.", lower_bound=2),
        flags.DEFINE_integer("steps", 20, "Training steps.", lower_bound=1),
        flags.DEFINE_integer("batch_size", 32, "Images in a batch.", lower_bound=1),
        flags.DEFINE_string("scratch_dir", None, "Where the tables are made; needs room."),
    ]


def measure(
    rows: list[str], classes: int, steps: int, batch_size: int, scratch_dir: str | None
) -> dict[str, Any]:
    """Trains on every table."""
    results = {}
    for text in rows:
        if not (text.isdigit() and int(text) >= 100):
            raise ValueError(f"--rows takes numbers of at least 100, got {text!r}")
        with tempfile.TemporaryDirectory(dir=scratch_dir) as scratch:
            folder = pathlib.Path(scratch)
            measuring.in_process_of_its_own(table.make, folder, int(text), classes)
            results[text] = measuring.in_process_of_its_own(train, folder, steps, batch_size)
    first = results[rows[0]]
    for figures in results.values():
        figures["mib_beyond_first"] = figures["mib_trained"] - first["mib_trained"]
        figures["data_mib_beyond_first"] = figures["data_mib"] - first["data_mib"]
    return {"rows": results}


def train(folder: pathlib.Path, steps: int, batch_size: int) -> dict[str, float]:
    """Trains in this process; its peak memory after each part, and what the data hold."""
    import keras

    from dbl_tf import models, training
    from dbl_tf.statistics import LabelStatistics
    from pipelines.runs import build, config, resolution

    asked = config.RunConfig.of(
        dataset="table",
        examples=str(folder / "examples.csv"),
        check_images="exists",
        cache_dir=str(folder),
        backbone="small_resnet",
        backbone_weights="none",
        image_size=32,
        batch_size=batch_size,
        steps=steps,
        clamp_counts=True,
    )
    imported = measuring.peak_mib()
    data = asked.load_data()
    settings = resolution.resolve(asked, data)
    examples = data.splits["train"]
    indexed = measuring.peak_mib()
    statistics = LabelStatistics.from_labels(examples.labels, data.class_names)
    plan = build.make_plan(settings, statistics)
    strategy = training.make_strategy(settings.strategy)
    keras.utils.set_random_seed(settings.seed)
    with strategy.scope():
        model = models.join(*build.build_networks(settings, statistics))
        model.compile(
            build.make_optimizer(settings, plan),
            build.make_loss(settings, statistics),
            jit_compile=False,
        )
    training.fit(
        model,
        build.make_image_batches(settings, data, statistics),
        steps=steps,
        steps_per_epoch=steps,
        checkpoints=training.Checkpoints(folder / "checkpoints"),
        verbose=0,
    )
    return {
        "mib_imported": imported,
        "mib_indexed": indexed,
        "mib_trained": measuring.peak_mib(),
        "data_mib": sum(map(_held_bytes, data.splits.values())) / 2**20,
    }


def _held_bytes(examples: Any) -> int:
    """Labels as they are stored, names and paths as text."""
    labels = examples.labels
    arrays = (labels.data, labels.indices, labels.indptr)
    texts = {id(text): len(text) for texts in (examples.names, examples.files) for text in texts}
    return sum(int(np.asarray(array).nbytes) for array in arrays) + sum(texts.values())


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as a table."""
    keys = (
        "mib_imported",
        "mib_indexed",
        "mib_trained",
        "mib_beyond_first",
        "data_mib_beyond_first",
    )
    rows = [
        [name, *(f"{figures[key]:.0f}" for key in keys)] for name, figures in result["rows"].items()
    ]
    header = [
        "rows; peak in MiB",
        "imported",
        "indexed",
        "trained",
        "more than first",
        "of it labels and paths",
    ]
    return measuring.table(header, rows)


if __name__ == "__main__":
    measuring.run("memory", define_flags, measure, describe)
