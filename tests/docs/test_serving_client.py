"""The client's messages against the exported model, in place of the server that passes them on."""

import base64
import contextlib
import http.client
import importlib.util
import json
import os
import pathlib
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent import futures
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from dbl_tf import LabelStatistics, models, serving
from pipelines import images

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
NAMES = ("Katze", "chien", "émeu", "狐")


def load_client():
    spec = importlib.util.spec_from_file_location("client", DOCS / "serving" / "client.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


client = load_client()


@pytest.fixture(scope="module")
def signature(tmp_path_factory):
    keras.utils.set_random_seed(3)
    backbone = models.build_backbone("small_resnet", 32, options={"width": 4})
    network = models.join(backbone, models.build_head(backbone.output_shape[-1], len(NAMES)))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), np.uint8)
    good = [tf.io.encode_png(picture).numpy() for picture in pixels]
    version = serving.export(
        network,
        LabelStatistics.from_labels(np.eye(4, dtype=int), NAMES),
        lambda encoded: images.read_batch(encoded, 32),
        lambda image: images.resize(image, 32),
        tmp_path_factory.mktemp("saved_model"),
        thresholds=np.full(4, 0.5),
        thresholds_from="train",
        example_image=good[0],
    )
    loaded = tf.saved_model.load(str(version))
    serve = loaded.signatures["serving_default"]
    serve.keep = loaded  # its variables
    return serve, [good[0], b"no image", good[1]]


def check_answer(answer, signature):
    serve, batch = signature
    expected = {key: value.numpy() for key, value in serve(tf.constant(batch)).items()}
    text = [[name.decode() for name in row] for row in expected["top_classes"]]
    assert answer["top_classes"] == text and text[0][0] in NAMES
    np.testing.assert_allclose(
        answer["top_probabilities"], expected["top_probabilities"], atol=1e-6
    )
    assert answer["error"] == [error.decode() for error in expected["error"]]
    lines = list(client.describe(["a.png", "b.txt", "c.png"], answer))
    assert lines[0].startswith(f"a.png: {text[0][0]} {expected['top_probabilities'][0][0]:.3f}, ")
    assert lines[1].startswith("b.txt: cannot be read: ") and "no known image format" in lines[1]


def serve_message(serve, request: predict_pb2.PredictRequest) -> predict_pb2.PredictResponse:
    assert request.model_spec.signature_name == "serving_default"
    inputs = {key: tf.constant(tf.make_ndarray(t)) for key, t in request.inputs.items()}
    outputs = serve(**inputs)
    response = predict_pb2.PredictResponse()
    for name in request.output_filter:
        response.outputs[name].CopyFrom(tf.make_tensor_proto(outputs[name]))
    return response


def test_grpc_messages(signature):
    serve, batch = signature
    request = predict_pb2.PredictRequest.FromString(
        client.grpc_request(batch, "dbl_tf", 3).SerializeToString()
    )
    assert request.model_spec.name == "dbl_tf" and request.model_spec.version.value == 3
    received = serve_message(serve, request).SerializeToString()
    answer = client.read_grpc_response(predict_pb2.PredictResponse.FromString(received))
    check_answer(answer, signature)


def test_grpc_client_over_a_channel(signature):
    serve, batch = signature

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            if request.model_spec.name != "dbl_tf":
                context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found")
            return serve_message(serve, request)

    server = grpc.server(
        futures.ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", -1)]
    )
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    place = f"localhost:{server.add_insecure_port('localhost:0')}"
    server.start()
    try:
        check_answer(client.ask_grpc(batch, place, "dbl_tf", None, 30.0), signature)
        # Larger than the message that gRPC sends unless told.
        large = client.ask_grpc([b"x" * 5_000_000], place, "dbl_tf", None, 30.0)
        assert "no known image format" in large["error"][0]
        with pytest.raises(client.ServerError, match="NOT_FOUND: Servable not found"):
            client.ask_grpc(batch, place, "x", None, 30.0)
    finally:
        server.stop(None).wait()


def column_of_json(rows: list) -> tf.Tensor:
    if isinstance(rows[0], dict):
        return tf.constant([base64.b64decode(row["b64"], validate=True) for row in rows])
    return tf.constant(rows, tf.float32)


def serve_json(serve, body: bytes) -> bytes:
    """What TensorFlow Serving documents of its REST interface, for requests in columns."""
    request = json.loads(body)
    assert set(request) <= {"signature_name", "inputs"}
    inputs = {name: column_of_json(column) for name, column in request["inputs"].items()}
    outputs = {}
    for name, tensor in serve(**inputs).items():
        assert not name.endswith("_bytes")  # such outputs would be sent as base64
        value = tensor.numpy()
        if value.dtype == object:
            value = np.vectorize(bytes.decode, otypes=[object])(value)
        outputs[name] = value.tolist()
    return json.dumps({"outputs": outputs}, ensure_ascii=False).encode()


def test_rest_messages(signature):
    serve, batch = signature
    answer = client.read_rest_response(serve_json(serve, client.rest_request(batch)))
    check_answer(answer, signature)
    assert answer["class_names"] == [list(NAMES)] * 3 and answer["thresholds"] == [[0.5] * 4] * 3


@contextlib.contextmanager
def serving_over_http(serve):
    """An HTTP server with the REST interface of one model, and the paths that it was asked for."""
    paths = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            paths.append(self.path)
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if "/models/dbl_tf" in self.path:
                status, answer = 200, serve_json(serve, body)
            else:
                status, answer = 404, b'{ "error": "Servable not found for request: Latest(x)" }'
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = HTTPServer(("localhost", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"localhost:{server.server_port}", paths
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def rest_server(signature):
    with serving_over_http(signature[0]) as server_and_paths:
        yield server_and_paths


def run(*arguments):
    # -I -S: the standard library alone.
    command = [sys.executable, "-I", "-S", DOCS / "serving" / "client.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, encoding="utf-8")


def test_rest_client_needs_the_standard_library_alone(signature, rest_server, tmp_path):
    server, paths = rest_server
    files = [tmp_path / name for name in ("a.png", "b.txt", "c.png")]
    for file, content in zip(files, signature[1], strict=True):
        file.write_bytes(content)
    done = run(f"--server={server}", "--batch_size=2", "--model_version=4", *files)
    assert done.returncode == 1, done.stderr  # one of them is no image
    assert paths == ["/v1/models/dbl_tf/versions/4:predict"] * 2
    expected = client.read_rest_response(
        serve_json(signature[0], client.rest_request(signature[1]))
    )
    assert done.stdout.splitlines() == list(client.describe(map(str, files), expected))
    assert run(f"--server={server}", files[0]).returncode == 0

    unknown = run(f"--server={server}", "--model=x", files[0])
    assert unknown.returncode == 2 and "404: Servable not found" in unknown.stderr


def test_a_file_that_cannot_be_read_leaves_the_others(signature, rest_server, tmp_path):
    good, pipe = tmp_path / "good.png", tmp_path / "pipe.png"
    good.write_bytes(signature[1][0])
    os.mkfifo(pipe)
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[2J.png")
    done = run(f"--server={rest_server[0]}", tmp_path / "none.png", good, pipe, odd, tmp_path)
    assert done.returncode == 1 and done.stderr == ""
    lines = done.stdout.splitlines()
    (labeled,) = (line for line in lines if "cannot be read" not in line)
    assert labeled.startswith(f"{good}: ")
    assert len(lines) == 5 and "pipe.png: cannot be read: not a file" in done.stdout
    assert r"/\udcff\x1b[2J.png: cannot be read: No such file" in done.stdout


GOOD = {"top_classes": [["a", "b"]], "top_probabilities": [[0.75, 0.25]], "error": [""]}


@contextlib.contextmanager
def answering(raw: bytes | Callable[[socket.socket], None]):
    """A server that answers every connection with bytes, or by a function."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            headers = http.client.parse_headers(self.rfile) if self.rfile.readline() else {}
            self.rfile.read(int(headers.get("Content-Length", 0)))
            with contextlib.suppress(OSError):  # the client ends what takes too long
                raw(self.request) if callable(raw) else self.request.sendall(raw)

    with socketserver.ThreadingTCPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"localhost:{server.server_address[1]}"
        server.shutdown()


def ok(body: bytes | dict, header: bytes = b"") -> bytes:
    body = body if isinstance(body, bytes) else json.dumps({"outputs": body}).encode()
    return b"HTTP/1.1 200 OK\r\n" + header + b"\r\n" + body


WRONG = {
    "no HTTP": (b"SSH-2.0-x\r\n", "no answer of HTTP"),
    "nothing": (b"", "closed connection|reset"),
    "no JSON": (ok(b"<html>"), "no JSON"),
    "not UTF-8": (ok(b"\xff\xfe\xfa"), "no JSON"),
    "deep": (ok(b"[" * 200_000), "no JSON"),
    "a long number": (ok(b"9" * 10_000), "no JSON"),
    "a list": (ok(b"[]"), "no outputs"),
    "no outputs": (ok(b"{}"), "no outputs"),
    "outputs in rows": (ok(b'{"outputs": [1]}'), "no outputs"),
    "cut": (ok(GOOD, b"Content-Length: 10000\r\n")[:-9], "no JSON"),
    "bad chunks": (ok(b"zz\r\n", b"Transfer-Encoding: chunked\r\n"), "no answer of HTTP"),
    "endless header": (b"HTTP/1.1 200 OK\r\na: " + b"x" * 100_000, "no answer of HTTP"),
    "an output missing": (ok({**GOOD, "error": None}), "1 rows of 'error'"),
    "another number": (ok({key: rows * 2 for key, rows in GOOD.items()}), "has not 1 rows"),
    "no text": (ok({**GOOD, "error": [7]}), "'error' of the answer is no text"),
    "no names": (ok({**GOOD, "top_classes": [[1, 2]]}), "no lists of top classes"),
    "no numbers": (ok({**GOOD, "top_probabilities": [["a", True]]}), "no lists of top classes"),
    "uneven": (ok({**GOOD, "top_probabilities": [[0.5]]}), "not one probability for each"),
    "NaN": (ok({**GOOD, "top_probabilities": [[0.5, float("nan")]]}), "not one probability"),
    "huge": (ok({**GOOD, "top_probabilities": [[10**400, 0]]}), "not one probability"),
    "redirection": (b"HTTP/1.1 307 x\r\nLocation: http://x/\r\n\r\n", "answers 307"),
    "an error": (b"HTTP/1.1 500 x\r\n\r\n" + b"\x1b[2J" * 9_000, r"answers 500: .{300}…$"),
}


@pytest.mark.parametrize("raw, message", WRONG.values(), ids=WRONG)
def test_wrong_answers_are_one_error(raw, message):
    with answering(raw) as server, pytest.raises(client.ServerError, match=message):
        client.ask_rest([b"x"], server, "dbl_tf", None, 20.0)


def test_a_good_answer_is_taken():
    with answering(ok(GOOD)) as server:
        assert client.ask_rest([b"x"], server, "dbl_tf", None, 20.0) == GOOD


def drip(connection: socket.socket) -> None:
    for byte in ok(GOOD) + b" " * 1_000:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def flood(connection: socket.socket) -> None:
    connection.sendall(ok(b""))
    while True:
        connection.sendall(b" " * (1 << 20))


def test_the_whole_answer_is_bounded_in_time_and_size(monkeypatch):
    with answering(drip) as server, pytest.raises(client.ServerError, match="no whole answer in 1"):
        client.ask_rest([b"x"], server, "dbl_tf", None, 1.0)
    monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 1 << 16)
    with answering(flood) as server, pytest.raises(client.ServerError, match="more than 4259840 "):
        client.ask_rest([b"x"], server, "dbl_tf", None, 20.0)


def test_a_server_cannot_write_lines_of_its_own(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(b"x")
    forged = {**GOOD, "top_classes": [["a\nb.png: dog 0.999", "\u202ec"]]}
    with answering(ok(forged)) as server:
        done = run(f"--server={server}", file)
    assert done.returncode == 0
    assert done.stdout == f"{file}: a\\nb.png: dog 0.999 0.750, \\u202ec 0.250\n"


@pytest.mark.parametrize("server", ["localhost:x", "a b:1", "localhost:99999", "[::1", ""])
def test_a_server_that_is_no_place_is_said(server):
    with pytest.raises(client.ServerError):
        client.ask_rest([b"x"], server, "dbl_tf", None, 5.0)


def test_unreachable_server_is_said():
    for ask in (client.ask_rest, client.ask_grpc):
        with pytest.raises(client.ServerError, match="localhost:9 "):
            ask([b"x"], "localhost:9", "dbl_tf", None, 5.0)


def test_the_code_for_features_gives_the_answers_of_the_model(tmp_path, monkeypatch, capsys):
    keras.utils.set_random_seed(4)
    version = serving.export_features(
        models.build_head(3, len(NAMES)),
        LabelStatistics.from_labels(np.eye(4, dtype=int), NAMES),
        tmp_path / "runs" / "mine" / "saved_model",
        thresholds=np.full(4, 0.5),
        thresholds_from="train",
        example=np.zeros(3),
    )
    loaded = tf.saved_model.load(str(version))
    serve = loaded.signatures["serving_default"]
    features = np.random.default_rng(0).standard_normal((5, 3))
    np.save(tmp_path / "clips.npy", features)
    expected = serve(features=tf.constant(features[:2], tf.float32))["top_classes"].numpy()
    assert len({tuple(row) for row in expected.tolist()}) == 2
    monkeypatch.chdir(tmp_path)

    section = (
        (DOCS / "serving.md").read_text(encoding="utf-8").partition("## Models of features")[2]
    )
    over_rest, in_process = re.findall(
        r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE
    )[:2]
    with serving_over_http(serve) as (server, paths):
        assert "localhost:8501" in over_rest
        exec(over_rest.replace("localhost:8501", server), {})
        assert paths == ["/v1/models/dbl_tf:predict"]
        assert capsys.readouterr().out == f"{[[n.decode() for n in row] for row in expected]}\n"
        # What `curl --data` sends.
        (body,) = re.findall(r"curl --data '(.*?)'", section)
        answer = json.loads(serve_json(serve, body.encode()))["outputs"]
    assert np.shape(answer["probabilities"]) == (2, 4) and answer["error"] == ["", ""]
    names: dict = {}
    exec(in_process, names)
    shown = names["serve"](features=names["features"])["top_classes"].numpy()
    np.testing.assert_array_equal(shown, expected)
