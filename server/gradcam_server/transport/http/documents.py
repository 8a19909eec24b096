"""JSON of requests: strict, and bounded in what it may cost."""

import base64
import json
import re
from typing import Any, NoReturn, TypeVar

from google.protobuf import descriptor_pool, json_format
from google.protobuf.message import Message

from gradcam_server.errors import InvalidRequestError, quote

MAX_VALUES = 1_000_000
"""Max values of a document: each is an object of Python, made on the event loop."""
MAX_FIELDS = 2000
"""Max values of a message: protobuf takes ten microseconds or more for each."""

_MAX_DEPTH = 20
_URL_SAFE = str.maketrans("-_", "+/")
_OUTER = re.compile(r"Failed to parse (\w+) field: ")
_PLACE = re.compile(r' at "?[A-Z]\w*((?:\.\w+(?:\[\d+\])?)*)"?')
_UNKNOWN = re.compile(r'Message type "([\w.]+)" has no field named "(.*?)" at ', re.DOTALL)
_SEVERAL = re.compile(r'multiple "(\w+)" oneof fields')

_M = TypeVar("_M", bound=Message)


def read_json(body: bytes) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        body: UTF-8.

    Raises:
        InvalidRequestError: It is no JSON object, is nested too deeply, has too many values, a
            name twice, or a number that is not finite.
    """
    if (commas := body.count(b",")) >= MAX_VALUES:
        raise InvalidRequestError(
            "", f"the JSON has {commas:,} commas; it may have {MAX_VALUES:,}: send images as files"
        )
    try:
        found = json.loads(body, object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise InvalidRequestError("", "the JSON is nested too deeply") from None
    except ValueError as error:
        raise InvalidRequestError("", f"the body is not JSON: {quote(error)}") from None
    if not isinstance(found, dict):
        raise InvalidRequestError("", "the JSON is not an object: it must be {...}")
    return found


def to_message(document: dict[str, Any], message: _M) -> _M:
    """Reads a document, in the JSON form of proto3, into a message.

    Raises:
        InvalidRequestError: A field is unknown or has a wrong value.
    """
    _check_size(document)
    try:
        return json_format.ParseDict(document, message, max_recursion_depth=_MAX_DEPTH)
    except (json_format.ParseError, RecursionError, ValueError, TypeError, AttributeError) as error:
        raise _refuse(str(error)) from None


def take_bytes(document: dict[str, Any], *names: str, field: str) -> bytes | None:
    """Takes a field of bytes out of a document; protobuf would copy them several times.

    Args:
        document: The document, which has the field no more.
        names: The names that the field may have.
        field: The name of the field, for errors.

    Returns:
        The bytes; None if the document has no such field.

    Raises:
        InvalidRequestError: It is not base64 (of either alphabet), or is there twice.
    """
    given = [name for name in names if document.get(name) is not None]
    if not given:
        return None
    text = document.pop(given[0])
    if len(given) > 1:
        raise InvalidRequestError(field, f"{field} is there by two names; choose one")
    try:
        return base64.b64decode(text.translate(_URL_SAFE) + "=" * (-len(text) % 4), validate=True)
    except (ValueError, TypeError, AttributeError):
        raise InvalidRequestError(field, f"{field} is not a text in base64") from None


def _check_size(document: dict[str, Any]) -> None:
    """Checks that protobuf can read a document in a few milliseconds.

    Raises:
        InvalidRequestError: It has too many values.
    """
    nodes: list[Any] = [document]
    count = 0
    while nodes:
        node = nodes.pop()
        inner = node.values() if isinstance(node, dict) else node
        count += len(inner)
        if count > MAX_FIELDS:
            raise InvalidRequestError("", f"the JSON has more than {MAX_FIELDS:,} values")
        nodes += [one for one in inner if isinstance(one, dict | list)]


def to_document(message: Message) -> dict[str, Any]:
    """Returns a message in the JSON form of proto3, with the names of the proto file."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def write_json(document: object) -> bytes:
    """Writes JSON in UTF-8."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for twice, _ in pairs:
            if twice in seen:
                break
            seen.add(twice)
        raise ValueError(f"the name {twice[:80]!r} is there twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _refuse(text: str) -> InvalidRequestError:
    """Names the field of an error of protobuf's, which has it in its text alone."""
    outer = ".".join(_OUTER.findall(text))
    place = _PLACE.search(text)
    path = place[1].lstrip(".") if place and place[1] else outer
    if unknown := _UNKNOWN.search(text):
        field = f"{path}.{unknown[2]}" if path else unknown[2]
        known = descriptor_pool.Default().FindMessageTypeByName(unknown[1]).fields_by_name
        return InvalidRequestError(
            field, f"unknown field {unknown[2][:80]!r}; there are: {', '.join(known)}"
        )
    if several := _SEVERAL.search(text):
        field = f"{path}.{several[1]}" if path else several[1]
        return InvalidRequestError(field, f"several forms of {several[1]} are set; choose one")
    what = _OUTER.sub("", text.partition(" at ")[0]).rstrip(".")
    return InvalidRequestError(path, f"{path or 'the JSON'}: {quote(what)}")
