r"""Compares training images per second with decoding alone and with a loader based on PIL.

    python -m benchmarks.inputs --examples=FILE.csv --image_size=224 --output=inputs.json

All take the same photographs, which class-aware re-sampling draws, in the same batches:

* `read`: the bytes only;
* `decode`: also decoded; `decode and resize`: also resized, as for evaluation, in batches;
* `training`: `pipelines.inputs.training_batches`, cropped, resized, mirrored and recolored, with
  labels and the weights r̂;
* `TensorFlow's own`: decoded by `tf.io.decode_image` and resized by `tf.image.resize`, antialiased,
  whatever the file is, not augmented: the least that one would write without `pipelines.images`;
* `PIL`: the same augmentation in a pool of as many processes as there are cores, which decode with
  PIL, crop and resize in one call, recolor by PIL's own matrix, and pass batches of bytes.

Everything is timed in turns, each time from the first batch of a new iterator to its last. The time
of the first batch is given separately (the processes of PIL have started by then). The files are in
the cache of the system ("warm"), or their pages are dropped before every iterator ("cold",
`posix_fadvise`). The shares of the stages are of the CPU time of `training`, by difference.
"""

import concurrent.futures
import functools
import multiprocessing
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags
from PIL import Image, ImageOps

from benchmarks import measuring

_STAGES = ("read", "decode", "decode and resize", "training")
_BARE = "TensorFlow's own"
_RGB_TO_YIQ = np.array(
    [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]
)


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    return [
        flags.DEFINE_string("examples", None, "Table of photographs.", required=True),
        flags.DEFINE_integer("image_size", 224, "Side of the images.", lower_bound=1),
        flags.DEFINE_integer("batch_size", 32, "Images in a batch.", lower_bound=1),
        flags.DEFINE_integer("batches", 40, "Batches timed after the first.", lower_bound=1),
        flags.DEFINE_integer("rounds", 5, "Timings of each.", lower_bound=1),
        flags.DEFINE_bool("cold", True, "Measure with an empty file cache as well."),
    ]


def measure(
    examples: str, image_size: int, batch_size: int, batches: int, rounds: int, cold: bool
) -> dict[str, Any]:
    """Times all of them, warm and cold."""
    from dbl_tf.cores import usable_cores
    from pipelines import sampling
    from pipelines.runs.config import DataConfig

    with tempfile.TemporaryDirectory() as cache:
        data = DataConfig.of(
            dataset="table", examples=examples, check_images="header", cache_dir=cache
        ).load_data()
    train = data.splits["train"]
    indices = sampling.class_aware_indices(train.labels, batch_size, seed=0).take(1 + batches)
    drawn = [[train.files[i] for i in batch] for batch in indices.as_numpy_iterator()]
    files = sorted({path for batch in drawn for path in batch})
    cores = usable_cores()
    context = multiprocessing.get_context("spawn")
    results = {}
    with concurrent.futures.ProcessPoolExecutor(cores, mp_context=context) as executor:
        makers = make_pipelines(train, indices, image_size)
        makers["PIL"] = functools.partial(load_with_pil, executor, drawn, image_size)
        for cache in ("warm", "cold") if cold else ("warm",):
            timed = Iterators(makers, files if cache == "cold" else ())
            candidates = {name: functools.partial(timed.exhaust, name) for name in makers}
            timings = measuring.in_turns(candidates, rounds=rounds, before=timed.start)
            results[cache] = _figures(timings, timed, batches * batch_size)
    return {"cores": cores, "images": batches * batch_size, "caches": results}


class Iterators:
    """Starts an iterator, untimed, and takes what is left of it, timed.

    Args:
        makers: a function for each name, which gives a new iterator of batches.
        dropped: the files whose pages are dropped before each start.

    Attributes:
        first: seconds to the first batch, of every iterator, by name.
        elsewhere: CPU seconds of other processes, of every iterator, by name.
    """

    def __init__(self, makers: dict[str, Callable[[], Iterator]], dropped: Sequence[str] = ()):
        self._makers, self._dropped = makers, dropped
        self._started: Iterator = iter(())
        self.first, self.elsewhere = defaultdict(list), defaultdict(list)

    def start(self, name: str) -> None:
        """Makes an iterator, once the pages of the files are dropped, and takes its first batch."""
        _drop_from_cache(self._dropped)
        start = time.perf_counter()
        self._started = self._makers[name]()
        next(self._started)
        self.first[name].append(time.perf_counter() - start)

    def exhaust(self, name: str) -> None:
        """Takes the other batches."""
        # A batch is a tensor, or the seconds that another process took to make it.
        taken = [batch if isinstance(batch, float) else 0.0 for batch in self._started]
        self.elsewhere[name].append(sum(taken))

    def all_cpu_seconds(self, timings: measuring.Timings) -> dict[str, np.ndarray]:
        """Returns the CPU seconds of each round, those of other processes included."""
        # The calls before the rounds were not timed.
        return {
            name: np.add(values, self.elsewhere[name][-len(values) :])
            for name, values in timings.cpu_seconds.items()
        }


def make_pipelines(train: Any, indices: Any, image_size: int) -> dict[str, Callable[[], Iterator]]:
    """What tf.data does, each a function that gives a new iterator of batches."""
    import tensorflow as tf

    from dbl_tf import weighting
    from pipelines import images, inputs

    counts = train.labels.sum(axis=0, dtype=np.int64)
    batch_size = int(indices.element_spec.shape[0])

    def decode(encoded: tf.Tensor) -> tf.Tensor:
        return tf.shape(images.decode(encoded))

    def resized(encoded: tf.Tensor) -> tf.Tensor:
        return images.read_for_evaluation(encoded, image_size)

    def bare(encoded: tf.Tensor) -> tf.Tensor:
        pixels = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return tf.image.resize(pixels, (image_size, image_size), antialias=True)

    encoded = indices.unbatch().map(train.read, num_parallel_calls=tf.data.AUTOTUNE)

    def of_each(function: Callable[[tf.Tensor], tf.Tensor]) -> tf.data.Dataset:
        def read(index: tf.Tensor) -> tf.Tensor:
            return function(train.read(index))

        images_read = indices.unbatch().map(read, num_parallel_calls=tf.data.AUTOTUNE)
        return images_read.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    training = inputs.training_batches(
        train,
        indices,
        image_size=image_size,
        seed=0,
        weighting=lambda labels: weighting.rebalanced_weights(labels, np.maximum(counts, 1)),
    )
    stages = (
        encoded.batch(batch_size).prefetch(tf.data.AUTOTUNE),
        of_each(decode),
        of_each(resized),
        training,
        of_each(bare),
    )
    return {
        name: functools.partial(iter, stage)
        for name, stage in zip((*_STAGES, _BARE), stages, strict=True)
    }


def load_with_pil(
    executor: concurrent.futures.Executor,
    drawn: Sequence[Sequence[str]],
    image_size: int,
    draft: bool = False,
) -> Iterator[float]:
    """Makes the same batches, float32 (B, S, S, 3), by PIL in other processes.

    Yields:
        Seconds of CPU time that another process took to make a batch, for each.
    """
    make = functools.partial(_make_batch, image_size=image_size, draft=draft)
    for batch, cpu_seconds in executor.map(make, range(len(drawn)), drawn):
        batch.astype(np.float32)
        yield cpu_seconds


def _make_batch(
    seed: int, paths: Sequence[str], image_size: int, draft: bool
) -> tuple[np.ndarray, float]:
    start = time.process_time()
    random = np.random.default_rng(seed)
    batch = np.stack([augment_with_pil(path, image_size, random, draft) for path in paths])
    return batch, time.process_time() - start


def augment_with_pil(
    path: str, image_size: int, random: np.random.Generator, draft: bool = False
) -> np.ndarray:
    """The augmentation of `pipelines.images.augment`, uint8 (S, S, 3), as one writes it with PIL.

    The bounds of the aspect are left out, which photographs hardly ever meet. With `draft`, libjpeg
    decodes at the smallest scale that leaves the image twice the side of the result.
    """
    with Image.open(path) as file:
        if draft:
            file.draft("RGB", (2 * image_size, 2 * image_size))
        image = ImageOps.exif_transpose(file).convert("RGB")
    width, height = image.size
    crop_width, crop_height = (round(side * random.uniform(0.8, 1.0)) for side in (width, height))
    left = random.integers(width - crop_width + 1)
    top = random.integers(height - crop_height + 1)
    box = (left, top, left + crop_width, top + crop_height)
    image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, box=box)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    brightness, contrast, saturation, hue = np.where(
        random.random(4) < 0.5, random.uniform(-1.0, 1.0, 4), 0.0
    )
    angle = np.deg2rad(18.0 * hue)
    cosine, sine = (1.0 + 0.5 * saturation) * np.array([np.cos(angle), np.sin(angle)])
    in_yiq = [[1.0, 0.0, 0.0], [0.0, cosine, -sine], [0.0, sine, cosine]]
    matrix = np.linalg.inv(_RGB_TO_YIQ) @ in_yiq @ _RGB_TO_YIQ * (1.0 + 0.5 * contrast)
    offset = np.full((3, 1), 32.0 * brightness * (1.0 + 0.5 * contrast))
    affine = np.concatenate([matrix, offset], axis=1)
    return np.asarray(image.convert("RGB", tuple(affine.ravel().tolist())))


def _drop_from_cache(paths: Sequence[str]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _figures(timings: measuring.Timings, timed: Iterators, num_images: int) -> dict[str, Any]:
    seconds = timings.seconds
    cpu = {name: float(np.median(timings.cpu_seconds[name])) for name in _STAGES}
    cpu_seconds = timed.all_cpu_seconds(timings)
    previous = dict(zip(_STAGES, (None, *_STAGES), strict=False))
    return {
        "seconds_to_first_batch": {
            name: measuring.quartiles(timed.first[name][-len(values) :])
            for name, values in seconds.items()
        },
        "images_per_second": {
            name: measuring.quartiles([num_images / value for value in values])
            for name, values in seconds.items()
        },
        "training_times_as_fast": {
            name: measuring.ratio(values, seconds["training"]) for name, values in seconds.items()
        },
        "training_times_as_fast_by_cpu": {
            name: measuring.ratio(values, cpu_seconds["training"])
            for name, values in cpu_seconds.items()
        },
        "share_of_cpu": {
            name: (cpu[name] - (cpu[before] if before else 0.0)) / cpu["training"]
            for name, before in previous.items()
        },
    }


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as a table."""
    rows = []
    for cache, figures in result["caches"].items():
        for name, rate in figures["images_per_second"].items():
            share = figures["share_of_cpu"].get(name)
            by_cpu = figures["training_times_as_fast_by_cpu"][name]
            rows.append(
                [
                    f"{cache}, {name}",
                    measuring.show(rate, digits=0),
                    measuring.show(figures["training_times_as_fast"][name]),
                    measuring.show(by_cpu),
                    "" if share is None else f"{share:.0%}",
                    measuring.show(figures["seconds_to_first_batch"][name]),
                ]
            )
    header = [
        f"{result['images']} images",
        "images/s",
        "training is × as fast",
        "by CPU time",
        "share of the last stage",
        "first batch, s",
    ]
    return measuring.table(header, rows)


if __name__ == "__main__":
    measuring.run("inputs", define_flags, measure, describe)
