"""The registry against the other places where methods are listed."""

import re
from pathlib import Path

import pytest

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client import requests as client
from gradcam_server.domain.registry import MANY_PASS_METHODS, ONE_PASS_METHODS, REGISTRY
from gradcam_server.domain.requests import Method
from gradcam_server.methods import many_pass

DOCS = Path(__file__).parents[4] / "docs" / "methods.md"


def test_every_method_has_a_row() -> None:
    """Each method has a row, in the order of the enum."""
    assert [*REGISTRY] == [*Method]
    assert {*ONE_PASS_METHODS, *MANY_PASS_METHODS} == {*Method}


def test_the_proto_and_the_client_have_the_same_methods() -> None:
    """Server, proto and client agree on names, numbers and which methods take many passes."""
    assert {method: pb.Method.Value(f"METHOD_{method.name}") for method in Method} == client.METHODS
    assert client.MANY_PASS_METHODS == MANY_PASS_METHODS
    assert len(pb.Method.values()) == 1 + len(Method)


@pytest.mark.parametrize("method", MANY_PASS_METHODS)
def test_the_functions_of_many_passes_exist(method: Method) -> None:
    """The rows of many passes name functions; rows of one pass are resolved at import."""
    assert callable(getattr(many_pass, REGISTRY[method].function))


def test_the_documentation_has_a_row_for_each_method() -> None:
    """docs/methods.md has a row for each method, with its default number of passes."""
    rows = re.findall(r"^\| `([^`]+)` \|.*\| ([^|]+) \|$", DOCS.read_text("utf-8"), re.MULTILINE)
    passes = {name: count for name, count in rows if count == "one" or "(" in count}
    assert [*passes] == [*Method]
    for method, row in REGISTRY.items():
        expected = f"({row.default_passes})" if row.default_passes else "one"
        assert expected in passes[method]
