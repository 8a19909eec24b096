"""Reads the JSON of clients strictly, and base64 and pixels in it."""

import base64
import binascii
import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from typing import Any, NoReturn

from gradcam_server.errors import InvalidRequestError

BODY = "body"
"""The field that errors name if the body is not valid JSON."""

MAX_VALUES = 500_000
"""Max values of one JSON text: Python needs up to 90 bytes and 100 ns for each."""


def parse_object(data: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        data: UTF-8.

    Returns:
        The object. Its numbers are finite, its keys are unique, and its strings are Unicode.

    Raises:
        InvalidRequestError: It is not valid JSON, or not an object, is nested too deeply, or has
            more than ``MAX_VALUES`` values.
    """
    # Each value follows a comma or a bracket.
    if sum(map(data.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise InvalidRequestError(
            BODY,
            f"the JSON has more than {MAX_VALUES} values; send the image as a file in base64, or "
            "its pixels as binary data",
        )
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise InvalidRequestError(BODY, "the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise InvalidRequestError(BODY, f"the JSON is not UTF-8: {error.reason}") from None
    except ValueError as error:  # of the decoder, or a whole number of too many digits
        raise InvalidRequestError(BODY, f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequestError(BODY, f"the JSON is {kind(value)}; it must be an object")
    return value


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
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(field, "the string has a surrogate without its pair") from None
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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise InvalidRequestError(BODY, f"the key {twice!r} comes twice in an object")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InvalidRequestError(BODY, "a number is too large for float64")
    return value


def _no_constant(text: str) -> NoReturn:
    raise InvalidRequestError(BODY, f"{text} is not valid JSON")
