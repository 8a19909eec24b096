"""The paths of KServe's protocols in openapi.json."""

import re
from typing import Any, cast

from gradcam_server.transport.http.kserve.endpoints import V1Endpoint, V2Endpoint
from gradcam_server.transport.http.kserve.openapi import paths


def test_each_path_is_described() -> None:
    """Each route has its method in openapi.json, with its parameters, and nothing else is there."""
    unused = cast("Any", None)
    routes = [*V1Endpoint(unused, unused).routes(), *V2Endpoint(unused, unused).routes()]
    served = {
        (re.sub(r":model\}", "}", route.path), method.lower())
        for route in routes
        for method in (route.methods or set()) - {"HEAD"}
    }
    described = {
        (path, method)
        for path, item in paths().items()
        for method in item
        if method != "parameters"
    }
    assert described == served
    for path, item in paths().items():
        assert [one["name"] for one in item["parameters"]] == re.findall(r"\{(\w+)\}", path)
