"""Asks TensorFlow Serving for the labels of image files, over REST or gRPC.

    python docs/serving/client.py picture.jpg other.png
    python docs/serving/client.py --grpc --server=localhost:8500 picture.jpg

Over REST it needs only Python; over gRPC it needs the package tensorflow-serving-api. The exit
status is 1 if an image could not be read, and 2 if the server did not answer.
"""

import argparse
import base64
import json
import pathlib
import sys
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorflow_serving.apis import predict_pb2

Answer = dict[str, Any]  # the name of an output → its rows, numbers and str

# The class names and thresholds, which are the same for every image, are left out.
OUTPUTS = ("top_classes", "top_probabilities", "error")


class ServerError(Exception):
    """The server cannot be reached, or refused a request as a whole."""


def rest_request(images: Sequence[bytes]) -> bytes:
    """Returns the JSON body of a predict request: images as base64, in columns."""
    encoded = [{"b64": base64.b64encode(image).decode("ascii")} for image in images]
    return json.dumps({"inputs": {"image_bytes": encoded}}).encode("ascii")


def read_rest_response(body: bytes) -> Answer:
    """Returns all outputs in the response to a request of `rest_request`."""
    return json.loads(body)["outputs"]


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
    """Returns the outputs of a predict response."""
    import tensorflow as tf

    return {
        name: _as_text(tf.make_ndarray(tensor).tolist())
        for name, tensor in response.outputs.items()
    }


def ask_rest(
    images: Sequence[bytes], server: str, model: str, version: int | None, timeout: float
) -> Answer:
    """Sends a predict request over REST.

    Raises:
        ServerError: the server cannot be reached, or refuses the request.
    """
    place = f"models/{model}" if version is None else f"models/{model}/versions/{version}"
    request = urllib.request.Request(
        f"http://{server}/v1/{place}:predict",
        data=rest_request(images),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return read_rest_response(response.read())
    except urllib.error.HTTPError as error:
        raise ServerError(f"{server} answers {error.code}: {_rest_error(error.read())}") from error
    except OSError as error:
        raise ServerError(f"{server} cannot be reached: {error}") from error


def ask_grpc(
    images: Sequence[bytes], server: str, model: str, version: int | None, timeout: float
) -> Answer:
    """Sends a predict request over gRPC.

    Raises:
        ServerError: the server cannot be reached, or refuses the request.
    """
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    request = grpc_request(images, model, version)
    # By default, gRPC refuses messages of more than 4 MiB.
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(server, options=options) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            return read_grpc_response(service.Predict(request, timeout=timeout))
        except grpc.RpcError as error:
            raise ServerError(f"{server} answers {error.code().name}: {error.details()}") from error


def describe(names: Iterable[str], answer: Answer) -> Iterator[str]:
    """Yields a line for each image: its most likely labels, or why it could not be read."""
    rows = zip(names, *(answer[output] for output in OUTPUTS), strict=True)
    for name, classes, probabilities, error in rows:
        labels = ", ".join(f"{c} {p:.3f}" for c, p in zip(classes, probabilities, strict=True))
        yield f"{name}: {f'cannot be read: {error}' if error else labels}"


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
    ask = ask_grpc if options.grpc else ask_rest
    server = options.server or ("localhost:8500" if options.grpc else "localhost:8501")
    status = 0
    for start in range(0, len(options.images), options.batch_size):
        paths = options.images[start : start + options.batch_size]
        try:
            images = [path.read_bytes() for path in paths]
            answer = ask(images, server, options.model, options.model_version, options.timeout)
        except (OSError, ServerError) as error:
            print(f"client.py: {error}", file=sys.stderr)
            return 2
        print("\n".join(describe(map(str, paths), answer)))
        status |= any(answer["error"])
    return int(status)


def _as_text(values: Any) -> Any:
    if isinstance(values, list):
        return [_as_text(value) for value in values]
    return values.decode() if isinstance(values, bytes) else values


def _rest_error(body: bytes) -> str:
    try:
        return json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
