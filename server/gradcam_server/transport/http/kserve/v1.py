"""KServe V1: instances to images, and answers to predictions and explanations."""

from dataclasses import dataclass
from typing import Any

from gradcam_server.domain.requests import RawImage
from gradcam_server.errors import InvalidRequestError
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
from gradcam_server.transport.open_inference.tensors import MAX_IMAGES

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
    check_keys(body, _KEYS, "body")
    instances = as_list(body.get("instances"), "instances")
    if not 1 <= len(instances) <= MAX_IMAGES:
        raise InvalidRequestError(
            "instances",
            f"the request has {len(instances)} instances; there must be 1 to {MAX_IMAGES}",
        )
    images = tuple(_image(value, f"instances[{index}]") for index, value in enumerate(instances))
    return Instances(images, tuple(_options(as_object(body.get("parameters"), "parameters"))))


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
    shape, part = [], rows
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
