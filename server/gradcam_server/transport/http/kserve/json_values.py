"""Values of a JSON document that a client sends, checked; base64 and pixels among them."""

import base64
import binascii
from collections.abc import Sequence
from itertools import chain
from typing import Any

from gradcam_server.errors import InvalidRequestError


def check_keys(value: dict[str, Any], known: Sequence[str], field: str) -> None:
    """Checks that an object has no unknown keys, which may be typos.

    Raises:
        InvalidRequestError: It has one.
    """
    for key in value:
        if key not in known:
            raise InvalidRequestError(
                field, f"unknown key {key!r}; there are: {', '.join(known) or 'none'}"
            )


def as_text(value: Any, field: str) -> str:
    """Returns a value that must be a string, of Unicode without lone surrogates.

    Raises:
        InvalidRequestError: It is not.
    """
    if not isinstance(value, str):
        raise InvalidRequestError(field, f"it is {kind(value)}; it must be a string")
    if not value.isascii():  # else a long text in base64 would be copied
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError(
                field, "the string has a surrogate without its pair"
            ) from None
    return value


def as_object(value: Any, field: str) -> dict[str, Any]:
    """Returns a value that must be an object; an empty object for null.

    Raises:
        InvalidRequestError: It is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequestError(field, f"it is {kind(value)}; it must be an object")
    return value


def as_list(value: Any, field: str) -> list[Any]:
    """Returns a value that must be an array.

    Raises:
        InvalidRequestError: It is something else.
    """
    if not isinstance(value, list):
        raise InvalidRequestError(field, f"it is {kind(value)}; it must be an array")
    return value


def as_bool(value: Any, field: str) -> bool:
    """Returns a value that must be true or false.

    Raises:
        InvalidRequestError: It is something else.
    """
    if not isinstance(value, bool):
        raise InvalidRequestError(field, f"it is {kind(value)}; it must be true or false")
    return value


def as_integer(value: Any, field: str, low: int, high: int) -> int:
    """Returns a value that must be a whole number in a range, both ends included.

    Raises:
        InvalidRequestError: It is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequestError(field, f"it is {kind(value)}; it must be a whole number")
    if not low <= value <= high:
        raise InvalidRequestError(field, f"the number is not in the range {low} to {high}")
    return value


def decode_base64(value: Any, field: str) -> bytes:
    """Returns the bytes of a string of base64 (RFC 4648, section 4, padded).

    Raises:
        InvalidRequestError: It is not.
    """
    try:
        return base64.b64decode(as_text(value, field), validate=True)
    except (binascii.Error, ValueError) as error:  # the second: the text is not ASCII
        raise InvalidRequestError(field, f"not valid base64: {error}") from None


def flatten(values: list[Any], shape: Sequence[int], field: str) -> list[Any]:
    """Returns the elements of nested arrays, row-major.

    Args:
        values: Arrays of this shape, or a flat array, whose length is not checked.
        shape: The size of each dimension.
        field: The field that errors name.

    Raises:
        InvalidRequestError: It is nested, but not as the shape says.
    """
    if not any(isinstance(value, list) for value in values):
        return values
    level = [values]
    for depth, size in enumerate(shape):
        if any(not isinstance(part, list) or len(part) != size for part in level):
            raise InvalidRequestError(
                field,
                f"the nested arrays do not have the shape {list(shape)}, in dimension {depth}",
            )
        level = list(chain.from_iterable(level))
    return level


def to_pixels(elements: list[Any], field: str) -> bytes:
    """Returns elements that must be whole numbers 0 to 255.

    Raises:
        InvalidRequestError: One of them is something else.
    """
    others = set(map(type, elements)) - {int}
    if others:
        example = next(value for value in elements if type(value) in others)
        raise InvalidRequestError(
            field, f"an element is {kind(example)}; UINT8 elements are whole numbers 0 to 255"
        )
    try:
        return bytes(elements)
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            field, "an element is negative or over 255, the maximum of UINT8"
        ) from None


def kind(value: Any) -> str:
    """Returns the JSON type of a value, with its article."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int():
            return "a whole number"
        case float():
            return "a floating-point number"
        case str():
            return "a string"
        case list():
            return "an array"
    return "an object"
