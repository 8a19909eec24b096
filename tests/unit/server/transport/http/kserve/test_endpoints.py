"""The paths of KServe's protocols, on the HTTP port of a front end."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradcam_server.transport.security.tokens import Token, hash_token, to_toml
from support.http_port import Answer, HttpFrontEnd

NAME = "instant"
B64 = {"b64": base64.b64encode(b"no image").decode()}
PIXELS: list[Any] = [[[1, 2, 3]] * 4] * 5
TENSOR = {"name": "image", "shape": [5, 4, 3], "datatype": "UINT8", "data": PIXELS}
MODELS = (f"/v1/models/{NAME}", f"/v2/models/{NAME}")


@pytest.fixture(scope="module")
def server() -> Iterator[HttpFrontEnd]:
    """A front end that is ready."""
    with HttpFrontEnd() as server:
        yield server


def post(server: HttpFrontEnd, path: str, body: object, **headers: str) -> Answer:
    return server.post(path, json.dumps(body).encode(), Content_Type="application/json", **headers)


def assert_error(answer: Answer, status: int, code: str, text: str) -> None:
    """Asserts that an error is one that clients of KServe and Triton show."""
    assert answer.headers["content-type"] == "application/json"
    assert (answer.status, answer.json["status"], answer.json["code"]) == (status, status, code)
    assert answer.json["error"] == answer.json["detail"]
    assert text in answer.json["error"]


def test_instances_are_answered_by_both_methods(server: HttpFrontEnd) -> None:
    """An answer for each instance, and a call counted as the gRPC method that does the same."""
    labels = {"rpc": "ExplainImage", "code": "OK"}
    before = server.counted("gradcam_requests_total", **labels)
    predicted = post(server, f"{MODELS[0]}:predict", {"instances": [PIXELS, {"image": PIXELS}]})
    assert [list(one[0]) for one in predicted.json["predictions"]] == [
        ["class_index", "class_name", "probability", "logit"]
    ] * 2
    explained = post(server, f"{MODELS[0]}:explain", {"instances": [PIXELS] * 3})
    assert [one["model"] for one in explained.json["explanations"]] == [NAME] * 3
    assert all(one["explanations"][0]["heatmaps"] for one in explained.json["explanations"])
    assert server.counted("gradcam_requests_total", **labels) == before + 2


def test_tensors_are_answered_in_the_form_of_the_request(server: HttpFrontEnd) -> None:
    """JSON by default, and binary data with the length of the JSON in a header."""
    path = f"{MODELS[1]}/infer"
    text = post(server, path, {"inputs": [TENSOR]})
    assert text.headers["content-type"] == "application/json"
    assert "inference-header-content-length" not in text.headers
    names = [one["name"] for one in text.json["outputs"]]
    assert names == ["logits", "probabilities", "heatmap"]
    body = {"inputs": [TENSOR], "parameters": {"binary_data_output": True}}
    binary = post(server, path, body)
    length = int(binary.headers["inference-header-content-length"])
    outputs = json.loads(binary.body[:length])["outputs"]
    sizes = [one["parameters"]["binary_data_size"] for one in outputs]
    assert sum(sizes) == len(binary.body) - length


def test_errors_have_the_form_that_the_clients_show(server: HttpFrontEnd) -> None:
    """``error`` in plain JSON, whatever refuses the request; :explain of others keeps problems."""
    predict, explain, infer = f"{MODELS[0]}:predict", f"{MODELS[0]}:explain", f"{MODELS[1]}/infer"
    invalid = 400, "INVALID_ARGUMENT"
    bad = {"instances": [PIXELS, B64]}
    for path in (predict, explain):
        assert_error(post(server, path, bad), *invalid, "image 1: ")
        assert_error(post(server, path, {"instances": []}), *invalid, "has 0 instances")
    assert_error(post(server, f"{predict}?top_k=1", bad), *invalid, "no query parameters")
    picture = post(server, explain, {"instances": [PIXELS]}, Accept="image/png")
    assert (picture.status, picture.json["field"]) == (400, "Accept")
    assert_error(post(server, infer, {}), *invalid, "must be an array")
    assert_error(server.get("/v2/models/n"), 404, "NOT_FOUND", "unknown model 'n'")
    assert_error(server.get("/v2/logging"), 404, "NOT_FOUND", "no such path")
    assert_error(server.get(infer), 405, "UNIMPLEMENTED", "no such method")
    packed = post(server, infer, {"inputs": [TENSOR]}, Content_Encoding="gzip")
    assert_error(packed, 415, "INVALID_ARGUMENT", "'gzip'")
    late = post(server, infer, {"inputs": [TENSOR]}, X_Request_Timeout="never")
    assert_error(late, 400, "INVALID_ARGUMENT", "X-Request-Timeout".lower())
    problem = post(server, explain, {"top_k": "x"})
    assert problem.headers["content-type"] == "application/problem+json"


def test_fields_are_those_of_the_request(server: HttpFrontEnd) -> None:
    """Fields that gradcam.v1 has elsewhere are named as they are in these bodies."""
    instances = {"instances": [PIXELS], "parameters": {"class": "no such"}}
    answer = post(server, f"{MODELS[0]}:explain", instances)
    assert answer.json["field"] == "parameters.class"
    answer = post(server, f"{MODELS[0]}:predict", {"instances": [B64]})
    assert answer.json["field"] == "instances"
    for parameter, value in (("class", "no such"), ("layer", "no such")):
        body = {"inputs": [TENSOR], "parameters": {parameter: value}}
        answer = post(server, f"{MODELS[1]}/infer", body)
        assert answer.json["field"] == f"parameters.{parameter}"
    tensor = {**TENSOR, "name": "encoded_image", "datatype": "BYTES", "shape": [1], "data": ["x"]}
    answer = post(server, f"{MODELS[1]}/infer", {"inputs": [tensor]})
    assert answer.json["field"] == "inputs.data"


def test_a_length_that_comes_twice_is_refused(server: HttpFrontEnd) -> None:
    """Two proxies could read two lengths, so none of them counts."""
    body = json.dumps({"inputs": [TENSOR]}).encode()
    lines = f"Inference-Header-Content-Length: {len(body)}\r\n" * 2
    head = (
        f"POST {MODELS[1]}/infer HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{lines}"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with server.connect(head.encode() + body) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"Inference-Header-Content-Length" in answer


def test_a_server_that_is_not_ready_says_so() -> None:
    """It is live; readiness and inference are 503, and V1's clients read that as not ready."""
    with HttpFrontEnd(ready=False) as server:
        assert server.get("/v2/health/live").json == {"live": True}
        assert server.get("/v2").json["name"] == "gradcam-server"
        ready = server.get("/v2/health/ready")
        assert (ready.status, ready.json) == (503, {"ready": False})
        model = server.get(f"{MODELS[1]}/ready")
        assert (model.status, model.json) == (503, {"name": NAME, "ready": False})
        assert server.get(MODELS[0]).status == 503
        answer = post(server, f"{MODELS[1]}/infer", {"inputs": [TENSOR]})
        assert_error(answer, 503, "UNAVAILABLE", "warming up")


def test_each_path_needs_the_token(tmp_path: Path) -> None:
    """Paths of KServe's protocols are refused without the token, with the same error."""
    file, token = tmp_path / "tokens.toml", "secret"
    file.write_text(to_toml(Token("alice", (hash_token(token),))))
    with HttpFrontEnd(token_file=str(file)) as server:
        for path in ("/v2", "/v2/health/live", "/v2/health/ready", f"{MODELS[1]}/ready"):
            assert_error(server.get(path), 401, "UNAUTHENTICATED", "no token")
            assert server.get(path, Authorization=f"Bearer {token}").status == 200
        for path in (f"{MODELS[0]}:predict", f"{MODELS[1]}/infer", "/v2/repository/index"):
            assert_error(post(server, path, {}), 401, "UNAUTHENTICATED", "no token")
