r"""Compares the latency of an exported model with decoding, resizing and the network alone.

    python -m benchmarks.serving --saved_model=runs/mine/saved_model/1 --images=FOLDER

Three ways from the bytes of JPEG images to probabilities, called in turn so that other work on the
machine affects all of them equally:

* `served`: the signature `serving_default` of the SavedModel;
* `bare`: TensorFlow's own JPEG decoder, the resizing of the evaluation and the network, in one
  function; nothing is checked, and one bad image fails the batch;
* `read`: `pipelines.images.read_batch`, which `served` holds, without the network.

`ratio` is that of served over bare, request by request. The network is `model.keras` of the run in
which the SavedModel lies, or `--model`.
"""

import functools
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import flags

from benchmarks import measuring

_MAX_FILES = 256


def define_flags() -> list[flags.FlagHolder]:
    """Defines the flags of the program."""
    return [
        flags.DEFINE_string("saved_model", None, "Version directory.", required=True),
        flags.DEFINE_string("images", None, "Folder with JPEG images.", required=True),
        flags.DEFINE_string("model", None, "The same network as a .keras file."),
        flags.DEFINE_list("batch_sizes", ["1", "32"], "Images in a request."),
        flags.DEFINE_integer("rounds", 50, "Requests timed of each kind.", lower_bound=1),
    ]


def measure(
    saved_model: str, images: str, model: str | None, batch_sizes: list[str], rounds: int
) -> dict[str, Any]:
    """Times requests of every size."""
    encoded = read_jpegs(pathlib.Path(images))
    ways = ways_of(pathlib.Path(saved_model), model)
    return {
        "images": len(encoded),
        "mean_bytes": float(np.mean([len(image) for image in encoded])),
        "batch_sizes": {
            size: measure_requests(ways, encoded, int(size), rounds) for size in batch_sizes
        },
    }


def read_jpegs(folder: pathlib.Path) -> list[bytes]:
    """The first JPEG files of a folder, by name."""
    paths = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in (".jpg", ".jpeg")]
    if not paths:
        raise ValueError(f"there is no .jpg or .jpeg file in {folder}")
    return [path.read_bytes() for path in paths[:_MAX_FILES]]


def ways_of(
    saved_model: pathlib.Path, model_file: str | None
) -> dict[str, Callable[[tf.Tensor], tf.Tensor]]:
    """The three ways, each from string (B,) to a tensor, checked to give the same figures."""
    import keras

    # The layers of a saved network are known by name once these are imported.
    from dbl_tf import classifiers, models  # noqa: F401
    from pipelines import images

    file = pathlib.Path(model_file) if model_file else saved_model.parents[1] / "model.keras"
    if not file.exists():
        raise ValueError(f"there is no {file}; --model names the network")
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


def measure_requests(
    ways: dict[str, Callable[[tf.Tensor], tf.Tensor]],
    encoded: Sequence[bytes],
    batch_size: int,
    rounds: int,
) -> dict[str, Any]:
    """Milliseconds of each way and the ratio of served to bare, each request of other images."""
    answers = {"served": [], "bare": []}

    def request(name: str, numbers: itertools.count) -> None:
        first = next(numbers) * batch_size
        batch = [encoded[i % len(encoded)] for i in range(first, first + batch_size)]
        answer = ways[name](tf.constant(batch)).numpy()
        if name in answers:
            answers[name].append(answer)

    candidates = {name: functools.partial(request, name, itertools.count()) for name in ways}
    seconds = measuring.in_turns(candidates, rounds=rounds).seconds
    figures = {name: measuring.quartiles(np.multiply(seconds[name], 1e3)) for name in ways}
    return {
        **figures,
        "ratio": measuring.ratio(seconds["served"], seconds["bare"]),
        "largest_difference": float(np.abs(np.subtract(answers["served"], answers["bare"])).max()),
    }


def describe(result: dict[str, Any]) -> str:
    """Formats the figures as a table."""
    rows = [
        [size, *(measuring.show(figures[name]) for name in ("served", "bare", "read", "ratio"))]
        for size, figures in result["batch_sizes"].items()
    ]
    header = ["images a request", "served, ms", "bare, ms", "read, ms", "served / bare"]
    photographs = f"{result['images']} JPEG images of {result['mean_bytes'] / 1024:.0f} KiB"
    return f"{photographs}\n{measuring.table(header, rows)}"


if __name__ == "__main__":
    measuring.run("serving", define_flags, measure, describe)
