"""The paths of KServe's protocols for openapi.json; their bodies are specified by KServe."""

from typing import Any

from gradcam_server.transport.http.negotiation import JSON

INSTANCES: dict[str, Any] = {
    "type": "object",
    "description": "A request of KServe V1.",
    "required": ["instances"],
    "properties": {
        "instances": {
            "type": "array",
            "items": {},
            "description": "Images: files in base64, or pixels as nested arrays.",
        },
        "parameters": {
            "type": "object",
            "description": "The options, by their names as query parameters.",
        },
    },
}
"""The schema of a body with instances."""

_V1, _V2 = "KServe V1", "Open Inference Protocol"
_INFER = (
    "Answers with tensors. With the header Inference-Header-Content-Length the body is JSON of "
    "that many bytes, and then the binary data of the tensors."
)
_GET: dict[str, tuple[str, str]] = {
    "/v2": (_V2, "Describes the server."),
    "/v2/health/live": (_V2, "Says that the server answers."),
    "/v2/health/ready": (_V2, "Says whether the server is ready; else 503."),
    "/v2/models/stats": (_V2, "Returns the statistics of all models."),
    "/v2/models/{name}": (_V2, "Describes the tensors of a model."),
    "/v2/models/{name}/ready": (_V2, "Says whether a model is ready; else 503."),
    "/v2/models/{name}/config": (_V2, "Describes a model."),
    "/v2/models/{name}/stats": (_V2, "Returns the statistics of a model."),
}
_POST: dict[str, tuple[str, str]] = {
    "/v1/models/{name}:predict": (_V1, "Classifies the images of instances."),
    "/v2/models/{name}/infer": (_V2, _INFER),
    "/v2/repository/index": (_V2, "Lists the models."),
}
_VERSION = "/versions/{version}"


def paths() -> dict[str, Any]:
    """Returns the paths, each with its operation; those of a model also with a version."""
    found: dict[str, Any] = {}
    for method, operations in (("get", _GET), ("post", _POST)):
        for path, (tag, summary) in operations.items():
            found[path] = _path(path, method, tag, summary)
            if "{name}" in path:
                versioned = path.replace("{name}", "{name}" + _VERSION)
                found[versioned] = _path(versioned, method, tag, summary)
    return found


def _path(path: str, method: str, tag: str, summary: str) -> dict[str, Any]:
    body = {"content": {JSON: {"schema": {"type": "object"}}}}
    error = {"description": "An error: its text is the member error.", **body}
    operation: dict[str, Any] = {
        "tags": [tag],
        "summary": summary,
        "responses": {"200": {"description": "The answer.", **body}, "default": error},
    }
    if method == "post" and "{name}" in path:
        operation["requestBody"] = {"required": True, **body}
    names = [name for name in ("name", "version") if f"{{{name}}}" in path]
    return {"parameters": [_parameter(name) for name in names], method: operation}


def _parameter(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": f"The {name} of the model.",
        "schema": {"type": "string"},
    }
