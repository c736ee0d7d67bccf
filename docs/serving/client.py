"""Asks TensorFlow Serving for the labels of image files, over REST or gRPC.

    python docs/serving/client.py picture.jpg other.png
    python docs/serving/client.py --grpc --server=localhost:8500 picture.jpg

Over REST it needs only Python; over gRPC it needs the package tensorflow-serving-api. The exit
status is 1 if an image could not be read, and 2 if the server did not answer, or not as such a
model does.
"""

import argparse
import base64
import contextlib
import http.client
import json
import os
import pathlib
import socket
import stat
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorflow_serving.apis import predict_pb2

Answer = dict[str, Any]  # the name of an output → its rows, numbers and str

# The class names and thresholds, which are the same for every image, are left out.
OUTPUTS = ("top_classes", "top_probabilities", "error")
# Larger files are not sent, and larger answers are not read.
MAX_FILE_BYTES = 1 << 28
MAX_ANSWER_BYTES, MAX_ANSWER_BYTES_PER_IMAGE = 1 << 24, 1 << 22
_MAX_SHOWN = 300  # characters of what a server says


class ServerError(Exception):
    """The server cannot be reached, refused a request, or answers as no such model does."""


def rest_request(images: Sequence[bytes]) -> bytes:
    """Returns the JSON body of a predict request: images as base64, in columns."""
    encoded = [{"b64": base64.b64encode(image).decode("ascii")} for image in images]
    return json.dumps({"inputs": {"image_bytes": encoded}}).encode("ascii")


def read_rest_response(body: bytes) -> Answer:
    """Returns all outputs in the response to a request of `rest_request`.

    Raises:
        ServerError: the body is not that of such a response.
    """
    try:
        response = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServerError(f"the answer is no JSON: {error}") from error
    outputs = response.get("outputs") if isinstance(response, dict) else None
    if not isinstance(outputs, dict):
        raise ServerError("the answer has no outputs by name")
    return outputs


def grpc_request(
    images: Sequence[bytes], model: str, version: int | None = None
) -> "predict_pb2.PredictRequest":
    """Returns a predict request that asks for `OUTPUTS` alone."""
    from tensorflow.core.framework import tensor_pb2, types_pb2
    from tensorflow_serving.apis import predict_pb2

    request = predict_pb2.PredictRequest(output_filter=OUTPUTS)
    request.model_spec.name = model
    request.model_spec.signature_name = "serving_default"
    if version is not None:
        request.model_spec.version.value = version
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_STRING, string_val=images)
    tensor.tensor_shape.dim.add(size=len(images))
    request.inputs["image_bytes"].CopyFrom(tensor)
    return request


def read_grpc_response(response: "predict_pb2.PredictResponse") -> Answer:
    """Returns the outputs of a predict response.

    Raises:
        ServerError: an output is no tensor.
    """
    import tensorflow as tf

    try:
        return {
            name: _as_text(tf.make_ndarray(tensor).tolist())
            for name, tensor in response.outputs.items()
        }
    except (ValueError, TypeError) as error:
        raise ServerError(f"an output of the answer is no tensor: {error}") from error


def checked(answer: Answer, num_images: int) -> Answer:
    """Returns the `OUTPUTS` of an answer, once they are known to be those of so many images.

    Raises:
        ServerError: an output is missing, or is of another shape or type.
    """
    for name in OUTPUTS:
        rows = answer.get(name)
        if not isinstance(rows, list) or len(rows) != num_images:
            raise ServerError(f"the answer has not {num_images} rows of {name!r}")
    for classes, probabilities, error in zip(*(answer[name] for name in OUTPUTS), strict=True):
        if not isinstance(error, str):
            raise ServerError("an 'error' of the answer is no text")
        if not _are_all(classes, str) or not _are_all(probabilities, int | float):
            raise ServerError("an image has no lists of top classes and their probabilities")
        if len(classes) != len(probabilities) or not all(0 <= p <= 1 for p in probabilities):
            raise ServerError("an image has not one probability for each of its top classes")
    return {name: answer[name] for name in OUTPUTS}


def ask_rest(
    images: Sequence[bytes], server: str, model: str, version: int | None, timeout: float
) -> Answer:
    """Sends a predict request over REST. A redirection is not followed.

    Args:
        images: the bytes of image files.
        server: HOST:PORT.
        model: the name under which the model is served.
        version: its version; None for the newest.
        timeout: the seconds in which the answer must have come as a whole.

    Raises:
        ServerError: the server cannot be reached, refuses the request, or answers as no such model
            does.
    """
    place = f"/v1/models/{urllib.parse.quote(model, safe='')}"
    place += ":predict" if version is None else f"/versions/{version}:predict"
    limit = MAX_ANSWER_BYTES + MAX_ANSWER_BYTES_PER_IMAGE * len(images)
    started, is_over = time.monotonic(), threading.Event()
    try:
        connection = http.client.HTTPConnection(server, timeout=timeout)
        connection.connect()
        # The time limit of a socket bounds each read, and not the sum of them.
        left = max(timeout - (time.monotonic() - started), 0.0)
        timer = threading.Timer(left, _end, [connection.sock, is_over])
        timer.start()
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", place, rest_request(images), headers)
            response = connection.getresponse()
            body = response.read(limit + 1)
        finally:
            timer.cancel()
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        if is_over.is_set() or isinstance(error, TimeoutError):
            raise ServerError(f"{server} gave no whole answer in {timeout:g} s") from error
        reason = str(error) or type(error).__name__
        what = "cannot be reached" if isinstance(error, OSError) else "gives no answer of HTTP"
        raise ServerError(f"{server} {what}: {reason}") from error
    if is_over.is_set():
        raise ServerError(f"{server} gave no whole answer in {timeout:g} s")
    if response.status != http.client.OK:
        raise ServerError(f"{server} answers {response.status}: {_rest_error(body)}")
    if len(body) > limit:
        raise ServerError(f"{server} answers with more than {limit} bytes")
    try:
        return checked(read_rest_response(body), len(images))
    except ServerError as error:
        raise ServerError(f"{server}: {error}") from error


def ask_grpc(
    images: Sequence[bytes], server: str, model: str, version: int | None, timeout: float
) -> Answer:
    """Sends a predict request over gRPC; see `ask_rest`."""
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    request = grpc_request(images, model, version)
    limit = MAX_ANSWER_BYTES + MAX_ANSWER_BYTES_PER_IMAGE * len(images)
    # By default, gRPC refuses messages of more than 4 MiB.
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", limit)]
    with grpc.insecure_channel(server, options=options) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            response = service.Predict(request, timeout=timeout)
        except grpc.RpcError as error:
            raise ServerError(f"{server} answers {error.code().name}: {error.details()}") from error
    try:
        return checked(read_grpc_response(response), len(images))
    except ServerError as error:
        raise ServerError(f"{server}: {error}") from error


def read_file(path: pathlib.Path) -> bytes:
    """Returns the bytes of an image file.

    Raises:
        OSError: it is no file, which a pipe is not either, is too large, or cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a file")
    if status.st_size > MAX_FILE_BYTES:
        raise OSError(f"{status.st_size} bytes are more than {MAX_FILE_BYTES}")
    return path.read_bytes()


def describe(names: Iterable[str], answer: Answer) -> Iterator[str]:
    """Yields a line for each image: its most likely labels, or why it could not be read."""
    rows = zip(names, *(answer[output] for output in OUTPUTS), strict=True)
    for name, classes, probabilities, error in rows:
        labels = ", ".join(f"{c} {p:.3f}" for c, p in zip(classes, probabilities, strict=True))
        yield printable(f"{name}: {f'cannot be read: {error}' if error else labels}")


def printable(text: str) -> str:
    """Returns a text with escapes for what could end a line or move the cursor.

    Names of files and classes may hold any characters, and a server may answer anything.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def main() -> int:
    """Reads the files, sends them, and prints the answers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", type=pathlib.Path, help="image files")
    parser.add_argument("--grpc", action="store_true", help="use gRPC instead of REST")
    parser.add_argument(
        "--server", help="HOST:PORT; the default is localhost:8501, or localhost:8500 with --grpc"
    )
    parser.add_argument("--model", default="dbl_tf", help="name under which the model is served")
    parser.add_argument("--model_version", type=int, help="version to ask; the newest by default")
    parser.add_argument("--batch_size", type=int, default=8, help="images per request")
    parser.add_argument(
        "--timeout", type=float, default=30.0, help="seconds before a request is given up"
    )
    options = parser.parse_args()
    if options.batch_size < 1:
        parser.error(f"--batch_size must be at least 1; got {options.batch_size}")
    if not 0 < options.timeout <= threading.TIMEOUT_MAX:
        parser.error(f"--timeout must be positive; got {options.timeout}")
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # where they are not UTF-8
    ask = ask_grpc if options.grpc else ask_rest
    server = options.server or ("localhost:8500" if options.grpc else "localhost:8501")
    status = 0
    for start in range(0, len(options.images), options.batch_size):
        paths, images = [], []
        for path in options.images[start : start + options.batch_size]:
            try:
                images.append(read_file(path))
                paths.append(path)
            except OSError as error:
                print(printable(f"{path}: cannot be read: {error.strerror or error}"))
                status = 1
        if not images:
            continue
        try:
            answer = ask(images, server, options.model, options.model_version, options.timeout)
        except ServerError as error:
            print(printable(f"client.py: {error}"), file=sys.stderr)
            return 2
        print("\n".join(describe(map(str, paths), answer)))
        status |= any(answer["error"])
    return int(status)


def _end(connected: socket.socket, is_over: threading.Event) -> None:
    is_over.set()
    with contextlib.suppress(OSError):  # the other side has ended it
        connected.shutdown(socket.SHUT_RDWR)


def _are_all(values: Any, kind: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(value, kind) and not isinstance(value, bool) for value in values
    )


def _as_text(values: Any) -> Any:
    if isinstance(values, list):
        return [_as_text(value) for value in values]
    return values.decode(errors="replace") if isinstance(values, bytes) else values


def _rest_error(body: bytes) -> str:
    try:
        text = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        text = body[: 4 * _MAX_SHOWN].decode(errors="replace")
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


if __name__ == "__main__":
    sys.exit(main())
