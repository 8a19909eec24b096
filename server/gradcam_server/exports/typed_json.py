"""Reads JSON as dataclasses: values have the types of their fields, and no key is unknown."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from enum import Enum
from itertools import repeat
from types import NoneType, UnionType
from typing import Any, TypeAlias, get_args, get_origin, get_type_hints

Readers: TypeAlias = Mapping[type, Callable[[Any, str], Any]]
"""Functions by type that read a JSON value, given its path for errors."""


class JsonError(ValueError):
    """A text is not the expected JSON; the message says where and why."""


def parse(text: bytes) -> Any:
    """Parses JSON.

    Raises:
        JsonError: The text is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise JsonError(f"it is not JSON: {error}") from error
    except RecursionError as error:
        raise JsonError("it is nested too deeply") from error


def convert(kind: Any, value: Any, where: str, readers: Readers) -> Any:
    """Converts a JSON value.

    Args:
        kind: A dataclass, an enum, str, int, float, bool, or a tuple, dict or optional of those.
        value: The value.
        where: The path of the value, for errors.
        readers: Functions for types that have a JSON form of their own.

    Returns:
        An instance of ``kind``.

    Raises:
        JsonError: The value has another type.
    """
    if type(value) is kind:  # a text, a number or a truth value: most of a manifest
        return value
    if (read := readers.get(kind)) is not None:
        return read(value, where)
    arguments = get_args(kind)
    match get_origin(kind):
        case origin if origin is UnionType:
            if value is None:
                return None
            (kind,) = (argument for argument in arguments if argument is not NoneType)
            return convert(kind, value, where, readers)
        case origin if origin is tuple:
            return _tuple(arguments, value, where, readers)
        case origin if origin is dict:
            of_keys, of_values = arguments
            return {
                _key(of_keys, key, where): convert(of_values, entry, f"{where}.{key}", readers)
                for key, entry in _typed(dict, value, where).items()
            }
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, _typed(dict, value, where), where, readers)
    if issubclass(kind, Enum):
        choices = [member.value for member in kind]
        if not isinstance(value, str) or value not in choices:
            raise JsonError(f"{where} must be one of {', '.join(choices)}")
        return kind(value)
    if kind is float and type(value) is int:
        value = _float(value, where)
    return _typed(kind, value, where)


def _tuple(kinds: tuple[Any, ...], value: Any, where: str, readers: Readers) -> tuple[Any, ...]:
    values = _typed(list, value, where)
    if kinds[-1] is Ellipsis:
        each: Any = repeat(kinds[0], len(values))
    elif len(values) == len(kinds):
        each = kinds
    else:
        raise JsonError(f"{where} must have {len(kinds)} values, not {len(values)}")
    return tuple(
        convert(kind, entry, f"{where}[{number}]", readers)
        for number, (kind, entry) in enumerate(zip(each, values, strict=True))
    )


def _dataclass(kind: Any, values: dict[str, Any], where: str, readers: Readers) -> Any:
    fields, hints = dataclasses.fields(kind), get_type_hints(kind)
    missing = dataclasses.MISSING
    required = {
        field.name
        for field in fields
        if field.default is missing and field.default_factory is missing
    }
    prefix = f"{where}." if where else ""
    if lacking := sorted(required - values.keys()):
        raise JsonError(f"{prefix}{lacking[0]} is missing")
    if unknown := sorted(values.keys() - hints.keys()):
        raise JsonError(f"{prefix}{unknown[0]} is not a key of this format")
    return kind(
        **{
            name: convert(hints[name], value, f"{prefix}{name}", readers)
            for name, value in values.items()
        }
    )


def _key(kind: type, key: str, where: str) -> Any:
    if kind is int:
        if not (key.isascii() and key.isdecimal()):
            raise JsonError(f"the keys of {where} must be whole numbers, not {key!r}")
        return int(key)
    return key


def _float(value: int, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise JsonError(f"{where} is too large") from error


_NAMES = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    list: "a list",
    dict: "an object",
}


def _typed(kind: type, value: Any, where: str) -> Any:
    # Not isinstance: true is not a number.
    if type(value) is not kind:
        raise JsonError(f"{where or 'the document'} must be {_NAMES[kind]}")
    return value
