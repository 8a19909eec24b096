"""The API over HTTP of a real server, beside gRPC's."""

import io
import json
import urllib.error
import urllib.request
from collections.abc import Mapping

import cv2
import numpy as np
import pytest
from google.protobuf import json_format

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_client import Client, ImageArray, OverlayPng, Raw, build_request
from support.calls import connect
from support.server import RunningServer

MODEL = "/v1/models/efficientnet-lite0"


def ask(
    server: RunningServer, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, Mapping[str, str]]:
    """Sends a request; underscores of header names count as hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(f"{server.http_address}{path}", body, named)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), dict(error.headers)


def over_grpc(server: RunningServer, message: pb.ExplainImageRequest) -> pb.ExplainImageResponse:
    """Answers a request over gRPC, without the times."""
    with connect(server.address) as channel:
        found = pb_grpc.ExplanationServiceStub(channel).ExplainImage(message, timeout=60)
    found.ClearField("stats")
    return found


def parsed(body: bytes) -> pb.ExplainImageResponse:
    """Reads an answer in JSON, without the times."""
    found = json_format.Parse(body, pb.ExplainImageResponse())
    found.ClearField("stats")
    return found


def test_every_form_of_a_request_has_the_answer_of_grpc(
    server: RunningServer, cat_jpeg: bytes
) -> None:
    """File, form, pixels and JSON give the bits of gRPC's answer: maps, logits, probabilities."""
    options = {"top_k": 2, "heatmaps": [Raw(), ImageArray()], "logits": True}
    expected = over_grpc(server, build_request(cat_jpeg, **options))  # type: ignore[arg-type]
    query = "?top_k=2&heatmap=raw&heatmap=image&logits=true"
    path = f"{MODEL}:explain"

    status, body, headers = ask(server, path + query, cat_jpeg, Content_Type="image/jpeg")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert parsed(body) == expected

    message = build_request(cat_jpeg, **options)  # type: ignore[arg-type]
    as_json = json_format.MessageToJson(message).encode()
    status, body, _ = ask(server, path, as_json, Content_Type="application/json")
    assert parsed(body) == expected

    form = b""
    for name, value in (("top_k", "2"), ("heatmap", "raw"), ("heatmap", "image"), ("logits", "1")):
        form += f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
    form += b'--b\r\nContent-Disposition: form-data; name="image"; filename="c.jpg"\r\n'
    form += b"Content-Type: image/jpeg\r\n\r\n" + cat_jpeg + b"\r\n--b--\r\n"
    status, body, _ = ask(server, path, form, Content_Type="multipart/form-data; boundary=b")
    assert parsed(body) == expected

    pixels = cv2.cvtColor(cv2.imdecode(np.frombuffer(cat_jpeg, np.uint8), 1), cv2.COLOR_BGR2RGB)
    expected = over_grpc(server, build_request(pixels, **options))  # type: ignore[arg-type]
    size = f"&height={pixels.shape[0]}&width={pixels.shape[1]}"
    kind = "application/x-uint8-rgb"
    status, body, _ = ask(server, path + query + size, pixels.tobytes(), Content_Type=kind)
    assert parsed(body) == expected


def test_pictures_and_arrays_are_those_of_grpc(server: RunningServer, cat_jpeg: bytes) -> None:
    """``Accept`` chooses the overlay as JPEG or PNG, or the arrays."""
    path = f"{MODEL}:explain?alpha=0.6&colormap=viridis"
    forms = [OverlayPng(alpha=0.6, colormap="viridis"), Raw()]
    request = build_request(cat_jpeg, heatmaps=forms, logits=True)
    (explanation,) = over_grpc(server, request).explanations
    overlay, raw = explanation.heatmaps

    status, body, headers = ask(server, path, cat_jpeg, Accept="image/png")
    assert (status, headers["content-type"]) == (200, "image/png")
    assert body == overlay.data
    status, body, headers = ask(server, path, cat_jpeg, Accept="image/*;q=0.5, text/html")
    assert (status, headers["content-type"]) == (200, "image/jpeg")
    picture = cv2.imdecode(np.frombuffer(body, np.uint8), 1)
    assert picture is not None
    assert picture.shape == (300, 451, 3)
    status, body, _ = ask(server, path, cat_jpeg, Accept="application/x-npz")
    with np.load(io.BytesIO(body)) as arrays:
        assert arrays["heatmaps"].astype("<f4").tobytes() == raw.data
        assert arrays["classes"].tolist() == [285]
        assert arrays["logits"].shape == (1000,)


def test_models_are_described_as_over_grpc(server: RunningServer, client: Client) -> None:
    """The list, and one model with its classes and layers."""
    status, body, _ = ask(server, "/v1/models")
    assert status == 200
    with connect(server.address) as channel:
        stub = pb_grpc.ExplanationServiceStub(channel)
        models = stub.ListModels(pb.ListModelsRequest(), timeout=30)
        model = stub.GetModel(pb.GetModelRequest(), timeout=30).model
    assert json_format.Parse(body, pb.ListModelsResponse()) == models
    document = json.loads(ask(server, MODEL)[1])
    assert document.pop("ready") is True
    assert json_format.ParseDict(document, pb.Model()) == model
    status, body, _ = ask(server, "/v1/models/other")
    assert (status, json.loads(body)["field"]) == (404, "model")


@pytest.mark.parametrize(
    ("query", "body", "headers", "status", "code", "field"),
    [
        ("?class=no+such", None, {}, 400, "INVALID_ARGUMENT", "class"),
        ("?layer=no_such", None, {}, 404, "NOT_FOUND", "layer"),
        ("?top_k=99", None, {}, 400, "INVALID_ARGUMENT", "top_k"),
        ("?height=2", b"x", {}, 400, "INVALID_ARGUMENT", "image"),
        ("?alpha=2", None, {}, 400, "INVALID_ARGUMENT", "alpha"),
        ("", b"no image", {"Content-Type": "image/jpeg"}, 400, "INVALID_ARGUMENT", "image"),
        ("", b"{}", {"Content-Type": "application/json"}, 400, "INVALID_ARGUMENT", "image"),
        ("", None, {"X-Request-Timeout": "0.000001"}, 504, "DEADLINE_EXCEEDED", ""),
        ("", None, {"X-Request-Timeout": "soon"}, 400, "INVALID_ARGUMENT", "x-request-timeout"),
        ("", None, {"Accept": "text/html"}, 406, "INVALID_ARGUMENT", "Accept"),
        ("", None, {"Content-Type": "text/plain"}, 415, "INVALID_ARGUMENT", "Content-Type"),
    ],
)
def test_errors_have_field_and_code(
    server: RunningServer,
    cat_jpeg: bytes,
    query: str,
    body: bytes | None,
    headers: dict[str, str],
    status: int,
    code: str,
    field: str,
) -> None:
    """Errors are problem details, with the code that gRPC would have."""
    found, content, answered = ask(
        server, f"{MODEL}:explain{query}", body if body is not None else cat_jpeg, **headers
    )
    assert answered["content-type"] == "application/problem+json"
    problem = json.loads(content)
    assert (found, problem["code"], problem.get("field", "")) == (status, code, field), problem
    assert problem["status"] == status
    assert problem["title"]


def test_requests_are_counted_with_those_of_grpc(server: RunningServer, cat_jpeg: bytes) -> None:
    """One metric has both, by the name of the method, the model and the code."""
    labels = {"rpc": "ExplainImage", "model": "efficientnet-lite0"}
    before = server.metric("gradcam_requests_total", code="OK", **labels)
    refused = server.metric("gradcam_requests_total", rpc="ExplainImage", code="INVALID_ARGUMENT")
    assert ask(server, f"{MODEL}:explain", cat_jpeg)[0] == 200
    assert ask(server, f"{MODEL}:explain?class=no+such", cat_jpeg)[0] == 400
    assert server.metric("gradcam_requests_total", code="OK", **labels) == before + 1
    now = server.metric("gradcam_requests_total", rpc="ExplainImage", code="INVALID_ARGUMENT")
    assert now == refused + 1
