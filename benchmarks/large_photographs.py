r"""Training images per second from large photographs: decoded fully, scaled, and prepared.

    python -m benchmarks.large_photographs --examples=FILE.csv --sizes=500x375,4032x3024

Photographs of the table are enlarged to each size and stored as JPEGs of quality 90. Each round
times, in turns:

* `full`: `pipelines.inputs.training_batches` with `full_decoding`;
* `scaled`: the same without it, the default of one's own photographs;
* `prepared`: the same, of the JPEGs that `python -m pipelines.prepare` makes of them;
* `PIL` and `PIL, draft`: the loader of `benchmarks.inputs` in a pool of processes, where `draft`
  asks libjpeg for the smallest scale that leaves the image twice the side of the result.

CPU seconds include those of other processes. The largest mean difference of the evaluation's pixels
between full and scaled decoding is given as well.
"""

import concurrent.futures
import functools
import multiprocessing
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from benchmarks import inputs, measuring

_REFERENCE = "full"


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    return [
        flags.DEFINE_string("examples", None, "Table of photographs.", required=True),
        flags.DEFINE_list("sizes", ["500x375", "1600x1200", "4032x3024"], "WIDTHxHEIGHT of each."),
        flags.DEFINE_integer("photographs", 24, "Different photographs.", lower_bound=1),
        flags.DEFINE_integer("image_size", 224, "Side of the batches' images.", lower_bound=1),
        flags.DEFINE_integer("batch_size", 32, "Images in a batch.", lower_bound=1),
        flags.DEFINE_integer("batches", 6, "Batches timed after the first.", lower_bound=1),
        flags.DEFINE_integer("rounds", 5, "Timings of each.", lower_bound=1),
    ]


def measure(
    examples: str,
    sizes: Sequence[str],
    photographs: int,
    image_size: int,
    batch_size: int,
    batches: int,
    rounds: int,
) -> dict[str, Any]:
    """Times all of them at every size."""
    from dbl_tf.cores import usable_cores

    files = _spaced_files(examples, photographs)
    context = multiprocessing.get_context("spawn")
    results = {}
    with concurrent.futures.ProcessPoolExecutor(usable_cores(), mp_context=context) as executor:
        for size in sizes:
            width, height = _parse(size)
            with tempfile.TemporaryDirectory() as folder:
                enlarged = pathlib.Path(folder, "enlarged")
                table = enlarge(files, width, height, enlarged)
                prepared = prepare(table, pathlib.Path(folder, "prepared"))
                makers = make_loaders(
                    {"enlarged": table, "prepared": prepared},
                    executor,
                    batch_size=batch_size,
                    batches=batches,
                    image_size=image_size,
                )
                timed = inputs.Iterators(makers)
                candidates = {name: functools.partial(timed.exhaust, name) for name in makers}
                timings = measuring.in_turns(candidates, rounds=rounds, before=timed.start)
                results[size] = _figures(timings, timed, batches * batch_size)
                results[size]["mean_difference"] = mean_difference(
                    sorted(enlarged.glob("*.jpg")), image_size
                )
    return {"cores": usable_cores(), "images": batches * batch_size, "sizes": results}


def _parse(size: str) -> tuple[int, int]:
    width, _, height = size.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise ValueError(f"--sizes takes WIDTHxHEIGHT, as 4032x3024; got {size!r}")
    return int(width), int(height)


def _spaced_files(examples: str, count: int) -> list[str]:
    """Returns the paths of evenly spaced training photographs that are wider than high."""
    files = [path for path in _load(examples).files if _is_wide(path)]
    if len(files) < count:
        raise ValueError(f"{examples} has {len(files)} wide training photographs, not {count}")
    return files[:: len(files) // count][:count]


def _is_wide(path: str) -> bool:
    with Image.open(path) as image:
        return image.width > image.height


def _load(examples: str | pathlib.Path) -> Any:
    from pipelines.runs.config import DataConfig

    with tempfile.TemporaryDirectory() as cache:
        config = DataConfig.of(
            dataset="table", examples=str(examples), check_images="header", cache_dir=cache
        )
        return config.load_data().splits["train"]


def enlarge(files: Sequence[str], width: int, height: int, folder: pathlib.Path) -> pathlib.Path:
    """Writes the photographs at another size, and a table of them, whose path it returns."""
    folder.mkdir()
    lines = ["image,split,labels"]
    for i, path in enumerate(files):
        with Image.open(path) as image:
            enlarged = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        enlarged.save(folder / f"{i}.jpg", quality=90)
        lines.append(f"{i}.jpg,train,{'odd' if i % 2 else 'even'}")
    # A data set has a test split, and no image is in two.
    shutil.copy(folder / "0.jpg", folder / "test.jpg")
    lines.append("test.jpg,test,even")
    table = folder / "examples.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def prepare(examples: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Returns the table that `python -m pipelines.prepare` makes, by its function."""
    from pipelines import prepared_table
    from pipelines.runs.config import DataConfig
    from pipelines.shrinking import Settings

    config = DataConfig.of(dataset="table", examples=str(examples))
    prepared_table.write(config.source, config.loading, folder, Settings())
    return folder / "examples.jsonl"


def make_loaders(
    tables: dict[str, pathlib.Path],
    executor: concurrent.futures.Executor,
    *,
    batch_size: int,
    batches: int,
    image_size: int,
) -> dict[str, Callable[[], Iterator]]:
    """Returns a function for each loader, which gives a new iterator of batches."""
    from pipelines import inputs as batches_of
    from pipelines import sampling

    trains = {name: _load(table) for name, table in tables.items()}
    labels = trains["enlarged"].labels
    indices = sampling.uniform_indices(labels.shape[0], batch_size, seed=0).take(1 + batches)
    files = trains["enlarged"].files
    drawn = [[files[i] for i in batch] for batch in indices.as_numpy_iterator()]

    def training(table: str, full_decoding: bool) -> Callable[[], Iterator]:
        dataset = batches_of.training_batches(
            trains[table], indices, image_size=image_size, full_decoding=full_decoding, seed=0
        )
        return functools.partial(iter, dataset)

    def with_pil(draft: bool) -> Callable[[], Iterator]:
        return functools.partial(inputs.load_with_pil, executor, drawn, image_size, draft=draft)

    return {
        _REFERENCE: training("enlarged", full_decoding=True),
        "scaled": training("enlarged", full_decoding=False),
        "prepared": training("prepared", full_decoding=False),
        "PIL": with_pil(draft=False),
        "PIL, draft": with_pil(draft=True),
    }


def mean_difference(files: Sequence[pathlib.Path], image_size: int) -> float:
    """Returns the largest mean difference between full and scaled decoding, of 255."""
    from pipelines import images

    differences = []
    for path in files:
        encoded = path.read_bytes()
        full, scaled = (
            images.read_for_evaluation(encoded, image_size, full_decoding=full).numpy()
            for full in (True, False)
        )
        differences.append(np.abs(full - scaled).mean())
    return float(max(differences))


def _figures(timings: measuring.Timings, timed: inputs.Iterators, images: int) -> dict[str, Any]:
    cpu_seconds = timed.all_cpu_seconds(timings)
    return {
        name: {
            "images_per_second": measuring.quartiles([images / value for value in values]),
            "times_as_fast_as_full": measuring.ratio(timings.seconds[_REFERENCE], values),
            "by_cpu": measuring.ratio(cpu_seconds[_REFERENCE], cpu_seconds[name]),
            "cpu_ms_of_an_image": measuring.quartiles(
                [1000 * value / images for value in cpu_seconds[name]]
            ),
        }
        for name, values in timings.seconds.items()
    }


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as a table for each size."""
    parts = []
    header = ["", "images/s", "× full", "× full by CPU", "CPU ms an image"]
    for size, figures in result["sizes"].items():
        rows = [
            [name, *(measuring.show(row[key], digits) for key, digits in _SHOWN)]
            for name, row in figures.items()
            if name != "mean_difference"
        ]
        difference = f"full and scaled differ by {figures['mean_difference']:.2f} of 255 at most"
        parts.append(f"{size}, {difference}\n{measuring.table(header, rows)}")
    return "\n\n".join(parts)


_SHOWN = (
    ("images_per_second", 1),
    ("times_as_fast_as_full", 2),
    ("by_cpu", 2),
    ("cpu_ms_of_an_image", 2),
)

if __name__ == "__main__":
    measuring.run("large_photographs", define_flags, measure, describe)
