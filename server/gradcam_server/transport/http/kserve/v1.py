"""KServe V1: instances to images, and answers to predictions and explanations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.domain.requests import RawImage
from gradcam_server.errors import InvalidRequestError
from gradcam_server.transport.gradcam_v1.wire import ReceivedRequest
from gradcam_server.transport.http.documents import BODY, to_document
from gradcam_server.transport.http.kserve.json_values import (
    as_list,
    as_object,
    as_text,
    check_keys,
    decode_base64,
    flatten,
    kind,
    to_pixels,
)
from gradcam_server.transport.http.options import FIELDS as OPTION_FIELDS
from gradcam_server.transport.http.options import OPTIONS, to_message
from gradcam_server.transport.open_inference.tensors import MAX_IMAGES

FIELDS: Mapping[str, str] = {
    **{name: f"parameters.{name}" for name in OPTIONS},
    **{field: f"parameters.{name}" for field, name in OPTION_FIELDS.items()},
    "encoded_image": "instances",
    "raw_image": "instances",
    "raw_image.data": "instances",
}
"""Names of fields, by the options and the fields of the proto file that errors name."""

_PREDICT_OPTIONS = ("predictions", "resize", "priority")
_KEYS = ("instances", "parameters")
_FORMS = '{"b64": "..."}, {"image": {"b64": "..."}} or pixels [height][width][3]'


@dataclass(frozen=True)
class Instances:
    """A parsed request.

    Attributes:
        images: The images: files, which are not decoded, or pixels.
        parameters: The options, by name, as texts; an option may have several values.
    """

    images: tuple[bytes | RawImage, ...]
    parameters: tuple[tuple[str, str], ...]


def has_instances(body: dict[str, Any]) -> bool:
    """Returns whether a JSON body is of KServe V1, and not an ``ExplainImageRequest``."""
    return "instances" in body


def parse_instances(body: dict[str, Any]) -> Instances:
    """Reads a request.

    Args:
        body: The JSON object: ``instances``, 1 to ``MAX_IMAGES``, each an image as base64 or as
            nested arrays of uint8 RGB; and ``parameters``, an object.

    Raises:
        InvalidRequestError: It is not such a request.
    """
    check_keys(body, _KEYS, BODY)
    instances = as_list(body.get("instances"), "instances")
    if not 1 <= len(instances) <= MAX_IMAGES:
        raise InvalidRequestError(
            "instances",
            f"the request has {len(instances)} instances; there must be 1 to {MAX_IMAGES}",
        )
    images = tuple(_image(value, f"instances[{index}]") for index, value in enumerate(instances))
    return Instances(images, tuple(_options(as_object(body.get("parameters"), "parameters"))))


def to_requests(
    instances: Instances, model: str, version: str, *, explain: bool
) -> list[ReceivedRequest]:
    """Returns a request for each image.

    Args:
        instances: The images and options.
        model: The model's name.
        version: The model's version; empty means the first.
        explain: Whether the images are explained; else they are only classified.

    Raises:
        InvalidRequestError: An option is unknown, or has no such value.
    """
    message = to_message(instances.parameters if explain else _predicting(instances.parameters))
    message.model, message.model_version = model, version
    options = message.SerializeToString()
    return [
        ReceivedRequest(image, options, model, version, message.include_logits)
        for image in instances.images
    ]


def to_answer(responses: Sequence[pb.ExplainImageResponse], *, explain: bool) -> dict[str, Any]:
    """Returns the answer for all instances, in their order.

    Args:
        responses: The answer for each image.
        explain: Whether the images are explained.

    Returns:
        ``explanations``: for each instance the ``ExplainImageResponse`` in the JSON form of
        proto3; or ``predictions``: for each instance its classes, the most probable first.
    """
    if explain:
        return {"explanations": [to_document(response) for response in responses]}
    return {
        "predictions": [
            [_prediction(prediction) for prediction in response.predictions]
            for response in responses
        ]
    }


def _predicting(parameters: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    for name, _ in parameters:
        if name in OPTIONS and name not in _PREDICT_OPTIONS:
            raise InvalidRequestError(
                name,
                f"{name} has no effect on predictions; the options of :predict are: "
                f"{', '.join(_PREDICT_OPTIONS)}",
            )
    return [*parameters, ("top_k", "0")]


def _prediction(prediction: pb.Prediction) -> dict[str, Any]:
    """Returns all fields, while proto3's JSON leaves out class 0."""
    return json_format.MessageToDict(
        prediction, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _image(value: Any, field: str) -> bytes | RawImage:
    if isinstance(value, dict) and "image" in value:
        check_keys(value, ("image",), field)
        value, field = value["image"], f"{field}.image"
    match value:
        case {"b64": text}:
            check_keys(value, ("b64",), field)
            return decode_base64(text, f"{field}.b64")
        case list():
            return _pixels(value, field)
    raise InvalidRequestError(field, f"an instance is {_FORMS}; this instance is {kind(value)}")


def _pixels(rows: list[Any], field: str) -> RawImage:
    shape: list[int] = []
    part: Any = rows
    while isinstance(part, list) and len(shape) < 3:
        shape.append(len(part))
        part = part[0] if part else None
    if len(shape) != 3 or shape[2] != 3:
        raise InvalidRequestError(
            field, f"pixels have the shape {shape}; it must be [height, width, 3]"
        )
    height, width, _ = shape
    return RawImage(to_pixels(flatten(rows, shape, field), field), height, width)


def _options(parameters: dict[str, Any]) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for name, value in parameters.items():
        values = value if isinstance(value, list) else [value]
        found.extend((as_text(name, "parameters"), _option(one)) for one in values)
    return found


def _option(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case str():
            return as_text(value, "parameters")
    raise InvalidRequestError(
        "parameters",
        f"an option is {kind(value)}; it must be a string, number, boolean, or an array of these",
    )
