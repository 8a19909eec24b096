"""GET /openapi.json: the API over HTTP, described by OpenAPI 3.1.

The schemas are made from the messages of the proto file and its comments, and the parameters from
the table of options, so that the description cannot say anything else than the server does.
"""

from functools import cache
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server import __version__
from gradcam_server.transport.http.negotiation import FORM, JSON, RAW_PIXELS, Answer
from gradcam_server.transport.http.options import OPTIONS, SIZE
from gradcam_server.transport.http.problems import CONTENT_TYPE, STATUS_MEANINGS
from gradcam_server.transport.http.proto_comments import read_comments

_IMAGES = ("image/jpeg", "image/png", "image/webp", "image/bmp")
_INTEGERS = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32}
_LONGS = {FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}
_FLOATS = {FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE}
_BINARY = {"type": "string", "format": "binary"}


@cache
def describe() -> dict[str, Any]:
    """Returns the description of the API."""
    schemas: dict[str, Any] = {}
    for message in (pb.ExplainImageRequest, pb.ExplainImageResponse, pb.ListModelsResponse):
        _add_message(cast("Descriptor", message.DESCRIPTOR), schemas)
    schemas["Problem"] = _problem()
    explain = _explain()
    model = _read("Describes a model, with its classes and layers.", "Model")
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gradcam-server",
            "version": __version__,
            "description": (
                "Predicts and explains images. JSON is the proto3 JSON form of gradcam.v1: "
                "names as in the proto file, bytes in base64, fields of default value left out. "
                "Errors are problem details (RFC 9457)."
            ),
        },
        "paths": {
            "/v1/models": {
                "get": _read("Lists the models, without classes and layers.", "ListModelsResponse")
            },
            "/v1/models/{name}": {"parameters": [_place("name")], "get": model},
            "/v1/models/{name}/versions/{version}": {
                "parameters": [_place("name"), _place("version")],
                "get": model,
            },
            "/v1/models/{name}:explain": {"parameters": [_place("name")], "post": explain},
            "/v1/models/{name}/versions/{version}:explain": {
                "parameters": [_place("name"), _place("version")],
                "post": explain,
            },
            **_probes(),
        },
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _explain() -> dict[str, Any]:
    form = {
        "type": "object",
        "required": ["image"],
        "properties": {"image": _BINARY, **{name: _option(name) for name in OPTIONS}},
    }
    content: dict[str, Any] = {
        **{kind: {"schema": _BINARY} for kind in _IMAGES},
        RAW_PIXELS: {"schema": _BINARY},
        FORM: {"schema": form},
        JSON: {"schema": _reference("ExplainImageRequest")},
    }
    answers: dict[str, Any] = {
        answer.value: {"schema": _BINARY} for answer in Answer if answer is not Answer.JSON
    }
    answers[JSON] = {"schema": _reference("ExplainImageResponse")}
    return {
        "summary": "Predicts the classes of an image, and explains where the model looked.",
        "description": (
            "The body is an image file, raw pixels (uint8 RGB, row by row, with height and width), "
            "a form with the part image, or an ExplainImageRequest in JSON. The options are query "
            "parameters or fields of the form; with JSON they are fields of the message. Accept "
            "chooses the answer: JSON, the overlay as a picture, or arrays of NumPy."
        ),
        "parameters": [
            *(_parameter(name, "query", _option(name)) for name in OPTIONS),
            *(
                _parameter(
                    name,
                    "query",
                    {"type": "integer", "description": f"The {name} of raw pixels, in pixels."},
                )
                for name in SIZE
            ),
            _parameter(
                "X-Request-Timeout",
                "header",
                {"type": "number", "description": "Deadline of the answer, in seconds."},
            ),
            _parameter(
                "X-Request-Id",
                "header",
                {"type": "string", "description": "Id for the log; the answer has it, too."},
            ),
        ],
        "requestBody": {"required": True, "content": content},
        "responses": {
            "200": {"description": "The predictions and explanations.", "content": answers},
            **_errors(),
        },
    }


def _read(summary: str, schema: str) -> dict[str, Any]:
    content = {JSON: {"schema": _reference(schema)}}
    return {
        "summary": summary,
        "responses": {"200": {"description": "The answer.", "content": content}, **_errors()},
    }


def _errors() -> dict[str, Any]:
    content = {CONTENT_TYPE: {"schema": _reference("Problem")}}
    return {
        str(int(status)): {"description": meaning, "content": content}
        for status, meaning in STATUS_MEANINGS.items()
    }


def _probes() -> dict[str, Any]:
    meanings = {
        "/metrics": "The metrics, for Prometheus.",
        "/healthz": "Whether the process can heal itself; else 503 with the reason.",
        "/readyz": "Whether requests are admitted; else 503 with the reason.",
    }
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {
        path: {
            "get": {
                "summary": meaning,
                "security": [],
                "responses": {"200": {"description": "It is well.", "content": content}},
            }
        }
        for path, meaning in meanings.items()
    }


def _option(name: str) -> dict[str, Any]:
    option = OPTIONS[name]
    schema: dict[str, Any] = {"type": option.kind}
    if option.values:
        schema["enum"] = list(option.values)
    if option.repeats:
        schema = {"type": "array", "items": schema}
    return {**schema, "description": option.description}


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    rest = {key: value for key, value in schema.items() if key != "description"}
    return {"name": name, "in": place, "description": schema["description"], "schema": rest}


def _place(name: str) -> dict[str, Any]:
    description = f"The {'name' if name == 'name' else 'version'} of the model."
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": description,
        "schema": {"type": "string"},
    }


def _problem() -> dict[str, Any]:
    texts = {
        "type": "Always about:blank: the status says what kind of problem it is.",
        "title": "The name of the status.",
        "detail": "What was wrong.",
        "code": "The name of gRPC's code.",
        "field": "The field, parameter or header that is wrong.",
        "remedy": "What would be right.",
    }
    properties: dict[str, Any] = {
        name: {"type": "string", "description": text} for name, text in texts.items()
    }
    properties["status"] = {"type": "integer", "description": "The status."}
    properties["retry_after_s"] = {"type": "number", "description": "When to try again."}
    return {
        "type": "object",
        "description": "An error, as problem details (RFC 9457).",
        "required": ["type", "title", "status", "detail", "code"],
        "properties": properties,
    }


def _reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


@cache
def _comments() -> dict[str, str]:
    return read_comments("gradcam.v1", "explanation_service.proto")


def _add_message(message: Descriptor, schemas: dict[str, Any]) -> None:
    """Adds the schema of a message, and of the messages and enumerations that it has."""
    if message.name in schemas:
        return
    schema = schemas[message.name] = {
        "type": "object",
        "description": _comments().get(message.name, ""),
        "properties": {},
    }
    for field in message.fields:
        found = _value(field, schemas)
        if field.is_repeated:
            found = {"type": "array", "items": found}
        description = _comments().get(f"{message.name}.{field.name}", "")
        schema["properties"][field.name] = {**found, "description": description}


def _value(field: FieldDescriptor, schemas: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of a value of a field in proto3's JSON."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        message = cast("Descriptor", field.message_type)
        _add_message(message, schemas)
        return _reference(message.name)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        enum = cast("EnumDescriptor", field.enum_type)
        _add_enum(enum, schemas)
        return _reference(enum.name)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return {"type": "string", "contentEncoding": "base64"}
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return {"type": "boolean"}
    if kind in _INTEGERS:
        return {"type": "integer", "format": "int32"}
    if kind in _LONGS:
        return {"type": "string", "format": "int64"}
    if kind in _FLOATS:
        return {"type": "number", "format": "float"}
    return {"type": "string"}


def _add_enum(enum: EnumDescriptor, schemas: dict[str, Any]) -> None:
    names = [value.name for value in enum.values]
    meanings = [f"{name}: {_comments().get(name, '')}" for name in names]
    text = " ".join([_comments().get(enum.name, ""), *meanings])
    schemas[enum.name] = {"type": "string", "enum": names, "description": text.strip()}
