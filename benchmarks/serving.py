r"""Latency of an exported model beside decoding, resizing and the network alone.

    python -m benchmarks.serving --saved_model=runs/mine/saved_model/1 --images=FOLDER

Three ways from the bytes of JPEG images to probabilities, called in turn so that other work on the
machine meets all of them alike:

* `served`: the signature `serving_default` of the SavedModel;
* `bare`: TensorFlow's own JPEG decoder, the resizing of the evaluation and the network, in one
  function; nothing is checked, and one bad image fails the batch;
* `read`: `pipelines.images.read_batch`, which `served` holds, without the network.

`ratio` is that of served over bare, request by request. The network is `model.keras` of the run in
which the SavedModel lies, or `--model`.
"""

import json
import os
import pathlib
import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

# The layers of a saved network are known by name once these are imported.
from dbl_tf import classifiers, models  # noqa: F401
from pipelines import images

_SAVED_MODEL = flags.DEFINE_string("saved_model", None, "Version directory.", required=True)
_IMAGES = flags.DEFINE_string("images", None, "Folder with JPEG images.", required=True)
_MODEL = flags.DEFINE_string("model", None, "The same network as a .keras file.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "32"], "Images in a request.")
_ROUNDS = flags.DEFINE_integer("rounds", 50, "Requests timed of each kind.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")

_MAX_FILES = 256
_WARMING_ROUNDS = 3


def main(argv: list[str]) -> None:
    """Measures, prints and writes."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {argv[1:]}")
    if _OUTPUT.value and os.path.exists(_OUTPUT.value):
        raise SystemExit(f"benchmarks.serving: {_OUTPUT.value} exists; give another --output")
    encoded = read_jpegs(pathlib.Path(_IMAGES.value))
    ways = ways_of(pathlib.Path(_SAVED_MODEL.value), _MODEL.value)
    load_before = os.getloadavg()
    result = {
        "saved_model": _SAVED_MODEL.value,
        "images": len(encoded),
        "mean_bytes": float(np.mean([len(image) for image in encoded])),
        "rounds": _ROUNDS.value,
        "batch_sizes": {size: measure(ways, encoded, int(size)) for size in _BATCH_SIZES.value},
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "load_average": {"before": load_before, "after": os.getloadavg()},
    }
    print(describe(result))
    if _OUTPUT.value:
        with open(_OUTPUT.value, "x", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


def read_jpegs(folder: pathlib.Path) -> list[bytes]:
    """The first JPEG files of a folder, by name."""
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
    if not paths:
        raise SystemExit(f"benchmarks.serving: there is no .jpg or .jpeg file in {folder}")
    return [path.read_bytes() for path in paths[:_MAX_FILES]]


def ways_of(
    saved_model: pathlib.Path, model_file: str | None
) -> dict[str, Callable[[tf.Tensor], tf.Tensor]]:
    """The three ways, each from string (B,) to a tensor, checked to give the same figures."""
    file = pathlib.Path(model_file) if model_file else saved_model.parents[1] / "model.keras"
    if not file.exists():
        raise SystemExit(f"benchmarks.serving: there is no {file}; --model names the network")
    network = keras.models.load_model(file)
    image_size = network.input_shape[1]
    loaded = tf.saved_model.load(str(saved_model))
    signature = [tf.TensorSpec((None,), tf.string)]

    def read_bare(encoded: tf.Tensor) -> tf.Tensor:
        # The transform of `images.decode`: another one would be quicker or slower by itself.
        pixels = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        return images.resize(pixels, image_size)

    @tf.function(input_signature=signature)
    def bare(encoded: tf.Tensor) -> tf.Tensor:
        spec = tf.TensorSpec((image_size, image_size, 3))
        pixels = tf.map_fn(read_bare, encoded, fn_output_signature=spec)
        return tf.sigmoid(tf.cast(network(pixels, training=False), tf.float32))

    @tf.function(input_signature=signature)
    def read(encoded: tf.Tensor) -> tf.Tensor:
        return images.read_batch(encoded, image_size)[0]

    def served(encoded: tf.Tensor) -> tf.Tensor:
        return loaded.signatures["serving_default"](image_bytes=encoded)["probabilities"]

    return {"served": served, "bare": bare, "read": read}


def measure(
    ways: dict[str, Callable[[tf.Tensor], tf.Tensor]], encoded: Sequence[bytes], batch_size: int
) -> dict[str, Any]:
    """Milliseconds of each way: quartiles over the rounds, and the ratio of served to bare."""
    seconds = {name: [] for name in ways}
    difference = 0.0
    for number in range(_WARMING_ROUNDS + _ROUNDS.value):
        places = np.arange(number * batch_size, (number + 1) * batch_size) % len(encoded)
        batch = tf.constant([encoded[i] for i in places])
        answers = {}
        # The order turns, so that none profits from what the one before it has left in caches.
        names = list(ways)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            answers[name] = ways[name](batch).numpy()
            if number >= _WARMING_ROUNDS:
                seconds[name].append(time.perf_counter() - start)
        difference = max(difference, float(np.abs(answers["served"] - answers["bare"]).max()))
    figures = {
        name: dict(zip(("q1", "median", "q3"), _quartiles(np.multiply(values, 1e3)), strict=True))
        for name, values in seconds.items()
    }
    ratios = np.divide(seconds["served"], seconds["bare"])
    figures["ratio"] = dict(zip(("q1", "median", "q3"), _quartiles(ratios), strict=True))
    return {**figures, "largest_difference": difference}


def describe(result: dict[str, Any]) -> str:
    """The figures, for a person."""
    lines = [
        f"{result['images']} JPEG images of {result['mean_bytes'] / 1024:.0f} KiB, "
        f"{result['rounds']} requests of each kind; median (quartiles) in ms; "
        f"{result['cpus']} CPU cores, load average {result['load_average']['before'][0]:.1f} "
        f"before and {result['load_average']['after'][0]:.1f} after"
    ]
    for size, figures in result["batch_sizes"].items():
        parts = [
            f"{name} {figures[name]['median']:.2f} "
            f"({figures[name]['q1']:.2f} to {figures[name]['q3']:.2f})"
            for name in ("served", "bare", "read", "ratio")
        ]
        lines.append(f"  batch {size}: " + ", ".join(parts))
    return "\n".join(lines)


def _quartiles(values: np.ndarray) -> list[float]:
    return np.quantile(values, (0.25, 0.5, 0.75)).tolist()


if __name__ == "__main__":
    app.run(main)
