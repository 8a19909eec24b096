"""The description of the API over HTTP, and its page."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.transport.http.openapi import describe
from gradcam_server.transport.http.options import OPTIONS
from support.http_port import HttpFrontEnd


@pytest.fixture(scope="module")
def server() -> Iterator[HttpFrontEnd]:
    with HttpFrontEnd() as server:
        yield server


def references(node: Any) -> Iterator[str]:
    """Yields all references of a document."""
    if isinstance(node, dict):
        yield from ([node["$ref"]] if "$ref" in node else [])
        node = list(node.values())
    for part in node if isinstance(node, list) else ():
        yield from references(part)


def test_the_description_has_all_that_it_refers_to() -> None:
    """Every reference has a schema, and every schema and field a description."""
    document = describe()
    schemas = document["components"]["schemas"]
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas
    for name, schema in schemas.items():
        assert schema["description"], name
        for field, found in schema.get("properties", {}).items():
            assert found["description"], f"{name}.{field}"


def test_the_schemas_are_those_of_the_proto_file() -> None:
    """All fields, by their names, with the comments of the proto file."""
    schemas = describe()["components"]["schemas"]
    for message in (pb.ExplainImageRequest, pb.Heatmap, pb.Target, pb.Model):
        names = {field.name for field in message.DESCRIPTOR.fields}
        assert set(schemas[message.DESCRIPTOR.name]["properties"]) == names
    request = schemas["ExplainImageRequest"]["properties"]
    assert request["model"]["description"].startswith("The model's name; empty means")
    assert request["targets"]["items"] == {"$ref": "#/components/schemas/Target"}
    assert request["encoded_image"]["contentEncoding"] == "base64"
    assert "METHOD_GRAD_CAM: Selvaraju" in schemas["Method"]["description"]


def test_every_path_and_option_is_there(server: HttpFrontEnd) -> None:
    """No path is described that the server does not have, and all options are described."""
    document = json.loads(server.get("/openapi.json").body)
    for path, methods in document["paths"].items():
        known = path.replace("{name}", "instant").replace("{version}", "1")
        for method in {"get", "post"} & set(methods):
            answer = server.request(method.upper(), known, b"")
            assert answer.status != 405, path
            assert b"there is no such path" not in answer.body, path
    explain = document["paths"]["/v1/models/{name}:explain"]["post"]
    assert set(OPTIONS) <= {parameter["name"] for parameter in explain["parameters"]}


def test_the_page_needs_no_other_server(server: HttpFrontEnd) -> None:
    """It has no scripts, loads nothing, and says the address of this server."""
    answer = server.get("/docs")
    page = answer.body.decode()
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"<script|<link|<img|src=|url\(|@import", page)
    assert f"http://127.0.0.1:{server.port}/v1/models/NAME:explain" in page
    for name in (
        "/v1/models/{name}:explain",
        "ExplainImageRequest",
        "colormap",
        "METHOD_LAYER_CAM",
    ):
        assert name in page


@pytest.mark.parametrize(
    "host", ['x"><script>alert(1)</script>', "[::1", "a/b?c", "x:99999999", ""]
)
def test_the_page_does_not_run_what_a_client_sends(server: HttpFrontEnd, host: str) -> None:
    """The header Host is escaped, need not be an address, and does not choose the path."""
    answer = server.get("/docs", Host=host)
    assert answer.status == 200
    assert b"<script>" not in answer.body
    assert server.get("/healthz", Host=host).body == b"ok\n"
    assert server.get("/v1/models", Host=host).status == 200
    assert server.get("/nope", Host=host).status == 404
