"""Export of a trained classifier as an ONNX or a LiteRT file, which is run before it is kept.

The files hold the network from pixels, or features, to calibrated probabilities. Reading and
resizing images is left to the program that uses them; see `README.md` beside each file.
"""

import dataclasses
import importlib.util
import os
import pathlib
import statistics as python_statistics
import time
from collections.abc import Callable

import keras
import msgspec
import numpy as np
import tensorflow as tf

from dbl_tf import atomic, serving
from dbl_tf.calibration import Calibration
from dbl_tf.names import LITERT, ONNX, SAVED_MODEL

DETAILS_FILE = "dbl_tf.json"
# Of probabilities. Another order of summation changes the float32 logits of large networks by 1e-5.
MAX_DIFFERENCE = 1e-4
_INPUTS, _PROBABILITIES = "inputs", "probabilities"
_TIMED_CALLS = 20

# float32 (B, …) → probabilities, float32 (B, C).
Predict = Callable[[np.ndarray], np.ndarray]


class PortableExportError(ValueError):
    """A file gives other probabilities than the SavedModel, or could not be made or run."""


@dataclasses.dataclass(frozen=True)
class Format:
    """A format besides the SavedModel.

    Attributes:
        file_name: the name of the file.
        modules: what writing and running it needs besides TensorFlow, as Python imports it.
        load: a function from the path of a file to the function that it holds.
    """

    file_name: str
    modules: tuple[str, ...]
    load: Callable[[pathlib.Path], Predict]


@dataclasses.dataclass(frozen=True)
class Check:
    """What running a file has shown.

    Attributes:
        num_examples: the number of inputs on which it was compared with the SavedModel.
        max_difference: the largest difference of a probability.
        num_bytes: the size of the file.
        milliseconds: the median time of one input.
        saved_model_milliseconds: the same of the SavedModel.
    """

    num_examples: int
    max_difference: float
    num_bytes: int
    milliseconds: float
    saved_model_milliseconds: float

    def __str__(self) -> str:
        return (
            f"{self.num_bytes / 1e6:.1f} MB; probabilities differ from those of the SavedModel by "
            f"{self.max_difference:.1g} at most on {self.num_examples:,} examples; "
            f"{self.milliseconds:.1f} ms for one, where the SavedModel takes "
            f"{self.saved_model_milliseconds:.1f} ms"
        )


def check_installed(name: str) -> None:
    """Refuses a format whose libraries are not installed.

    Raises:
        ValueError: the message names the libraries and the extra that brings them.
    """
    if name == SAVED_MODEL:
        return
    missing = [m for m in FORMATS[name].modules if importlib.util.find_spec(m) is None]
    if missing:
        raise ValueError(
            f"the format {name} needs {', '.join(missing)}, not installed here: "
            f"pip install 'dbl-tf[{name}]'"
        )


def export(
    model: keras.Model,
    name: str,
    directory: str | os.PathLike,
    *,
    saved_model: str | os.PathLike,
    examples: np.ndarray,
    calibration: Calibration | None = None,
    card: str | None = None,
) -> tuple[pathlib.Path, Check]:
    """Writes a file as a new version, as a whole or not at all, once it agrees with a SavedModel.

    The version `directory/N` holds the file, `model.onnx` or `model.tflite`; `dbl_tf.json` with the
    class names, the thresholds, the shape of the inputs and what the check has shown; and the
    card. The file takes float32 (B, S, S, 3) in [0, 255], images of the size of the network, or
    features (B, F), and returns probabilities (B, C).

    Args:
        model: the network from images or features to logits (B, C).
        name: "onnx" or "litert".
        directory: the directory of all versions.
        saved_model: the version directory of the SavedModel of the same network.
        examples: inputs of the network on which the two are compared, float32 (N, …).
        calibration: the map from logits to probabilities; None for σ(z).
        card: the text of `README.md`; None for no such file.

    Returns:
        The version directory, and what the check has shown.

    Raises:
        ValueError: see `check_installed`.
        PortableExportError: a probability differs by more than `MAX_DIFFERENCE`, or the format
            cannot hold the network.
        OSError: the directory cannot be written.
    """
    check_installed(name)
    directory, form = pathlib.Path(directory), FORMATS[name]
    details = serving.DETAILS.read(pathlib.Path(saved_model, serving.DETAILS_FILE))
    calibration = calibration or Calibration.identity(len(details.class_names))
    network = _with_probabilities(model, calibration)
    network(examples[:1], training=False)  # Keras exports what has been called
    with atomic.reraise_full_disk(directory), atomic.temporary_folder(directory) as folder:
        path = folder / form.file_name
        try:
            with serving.only_warnings():
                network.export(str(path), format=name, verbose=False)
            check = _compare(form.load(path), path, pathlib.Path(saved_model), examples)
        except OSError:
            raise
        except Exception as error:  # each of the libraries has classes of its own
            raise PortableExportError(f"{name} cannot hold this network: {error}") from error
        if not check.max_difference <= MAX_DIFFERENCE:  # NaN is refused, too
            raise PortableExportError(
                f"the {name} file gives probabilities that differ from those of the SavedModel by "
                f"{check.max_difference:.2g}, and {MAX_DIFFERENCE:g} is the most that is rounding"
            )
        content = {
            **msgspec.to_builtins(details),
            "input_shape": [None, *model.input_shape[1:]],
            "input_range": [0, 255] if len(model.input_shape) == 4 else None,
            "check": dataclasses.asdict(check),
        }
        serving.DETAILS.write(folder / DETAILS_FILE, content, indent=1)
        if card is not None:
            (folder / serving.CARD_FILE).write_text(card, encoding="utf-8")
        return serving.publish_version(folder, directory), check


def load_onnx(path: str | os.PathLike) -> Predict:
    """Loads an ONNX file with ONNX Runtime, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    return lambda examples: session.run([given.name], {taken.name: examples})[0]


def load_litert(path: str | os.PathLike) -> Predict:
    """Loads a LiteRT file with its interpreter, on the CPU."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=os.fspath(path))
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()
    shape: list[int] = []

    def predict(examples: np.ndarray) -> np.ndarray:
        if shape != list(examples.shape):
            shape[:] = examples.shape
            interpreter.resize_tensor_input(taken["index"], shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(taken["index"], examples)
        interpreter.invoke()
        return interpreter.get_tensor(given["index"])

    return predict


FORMATS = {
    ONNX: Format("model.onnx", ("onnx", "onnxruntime", "tf2onnx"), load_onnx),
    LITERT: Format("model.tflite", ("ai_edge_litert",), load_litert),
}


def _with_probabilities(model: keras.Model, calibration: Calibration) -> keras.Model:
    inputs = keras.Input(model.input_shape[1:], name=_INPUTS)
    scaled = keras.layers.Rescaling(
        calibration.slope, offset=calibration.offsets.tolist(), dtype="float32"
    )
    sigmoid = keras.layers.Activation("sigmoid", dtype="float32", name=_PROBABILITIES)
    return keras.Model(inputs, sigmoid(scaled(model(inputs))))


def _compare(
    predict: Predict, path: pathlib.Path, saved_model: pathlib.Path, examples: np.ndarray
) -> Check:
    loaded = tf.saved_model.load(str(saved_model))  # holds the variables of its signatures
    is_image = examples.ndim == 4
    signature = loaded.signatures["serve_images" if is_image else "serving_default"]
    (name,) = signature.structured_input_signature[1]

    def expected(examples: np.ndarray) -> np.ndarray:
        return signature(**{name: tf.constant(examples)})[_PROBABILITIES].numpy()

    differences = np.abs(predict(examples) - expected(examples))
    return Check(
        num_examples=len(examples),
        max_difference=float(differences.max()),
        num_bytes=path.stat().st_size,
        milliseconds=_median_milliseconds(predict, examples[:1]),
        saved_model_milliseconds=_median_milliseconds(expected, examples[:1]),
    )


def _median_milliseconds(predict: Predict, example: np.ndarray) -> float:
    times = []
    predict(example)  # the first call prepares what the others use
    for _ in range(_TIMED_CALLS):
        start = time.perf_counter()
        predict(example)
        times.append(time.perf_counter() - start)
    return 1e3 * python_statistics.median(times)
