"""Logging: one line of text, or one JSON object, for each event.

Images are never logged: bytes, arrays and messages are written as "<N bytes>". Control characters,
which callers may have chosen, are written as escapes.
"""

import copy
import json
import logging
import random
import re
import time
import traceback
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from pathlib import PurePath
from typing import Any, TypeAlias

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that the current task works for; empty if there is none."""

trace_id: ContextVar[str] = ContextVar("trace_id", default="")
"""The id of the request's trace; empty if there is none."""

_HANDLER = "gradcam"
_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_GIVEN_ID = re.compile(r"[\w.:/+=@-]{1,128}", re.ASCII)
_MAX_DEPTH = 4
_MAX_CAUSES = 8
_MAX_CHARS = 10_000
_STANDARD = frozenset(
    [*vars(logging.makeLogRecord({})), "message", "asctime", "request_id", "trace_id"]
)

_Json: TypeAlias = "str | int | float | bool | list[_Json] | dict[str, _Json] | None"


def configure(level: str, format: str = "text") -> None:
    """Starts logging to stderr. Other handlers stay.

    Args:
        level: Minimum severity that is logged: debug, info, warning or error.
        format: "text" for people, "json" for machines.

    Raises:
        ValueError: No such level or format.
    """
    formatters = {"text": TextFormatter, "json": JsonFormatter}
    if format not in formatters:
        raise ValueError(f"log format {format!r}; it must be one of {', '.join(formatters)}")
    handler = logging.StreamHandler()
    handler.name = _HANDLER
    handler.setFormatter(formatters[format]())
    root = logging.getLogger()
    root.setLevel(level.upper())
    for old in [handler for handler in root.handlers if handler.name == _HANDLER]:
        root.removeHandler(old)
    root.addHandler(handler)
    # Else Python's warnings would be the only lines that are not JSON.
    logging.captureWarnings(format == "json")


class logging_for:  # noqa: N801 - it is used as a function
    """Adds a request's ids to the log lines of the current task and the tasks that it starts."""

    def __init__(self, request: str, trace: str = "") -> None:
        self._request, self._trace = request, trace

    def __enter__(self) -> None:
        self._marks = request_id.set(self._request), trace_id.set(self._trace)

    def __exit__(self, *_: object) -> None:
        request_id.reset(self._marks[0])
        trace_id.reset(self._marks[1])


def choose_request_id(given: str | bytes | None) -> str:
    """Returns the id that a client gave, or a new id if that is missing or unfit for a log."""
    if isinstance(given, str) and _GIVEN_ID.fullmatch(given):
        return given
    return f"{random.getrandbits(64):016x}"


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:  # noqa: N802
        """Writes an exception with its causes; without the text if that holds content."""
        chain: list[str] = []
        error: BaseException | None = ei[1]
        while error is not None and len(chain) < _MAX_CAUSES:
            only = traceback.format_exception(error, chain=False)
            if _hide(error) is not error:
                only = [*traceback.format_tb(error.__traceback__), str(_hide(error))]
            chain.insert(0, "".join(only).rstrip())
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        return _shorten("\n\nThen:\n\n".join(chain))


class JsonFormatter(_Formatter):
    """Writes one JSON object: time (RFC 3339, UTC), level, logger, message.

    Where they are known also request_id, trace_id and exception, and the keys of ``extra``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Writes a record."""
        entry: dict[str, Any] = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _shorten(_without_content(record).getMessage()),
            **_ids(record),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD and not name.startswith("_"):  # Ray adds private attributes
                entry.setdefault(name, _plain(value))
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            entry["stack"] = _shorten(self.formatStack(record.stack_info))
        return json.dumps(entry)


class TextFormatter(_Formatter):
    """Writes a line for people; the request's id, where it is known, follows the message."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def format(self, record: logging.LogRecord) -> str:
        """Writes a record."""
        return _escape(super().format(_without_content(record)), "\n\t")  # tracebacks have lines

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """Writes the line, without the exception."""
        ids = "".join(f" {name}={value}" for name, value in _ids(record).items())
        return _escape(super().formatMessage(record) + ids)


def _escape(text: str, kept: str = "") -> str:
    """Writes characters that are not printable as escapes of Python, except the kept characters."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode()
        for char in text
    )


def _ids(record: logging.LogRecord) -> dict[str, str]:
    found = {
        "request_id": getattr(record, "request_id", "") or request_id.get(),
        "trace_id": getattr(record, "trace_id", "") or trace_id.get(),
    }
    return {name: str(value) for name, value in found.items() if value}


def _rfc3339(seconds: float) -> str:
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{milliseconds:03d}Z"


def _without_content(record: logging.LogRecord) -> logging.LogRecord:
    """Returns a record whose message and arguments hold no content of images."""
    record = copy.copy(record)
    record.msg = _hide(record.msg)
    if isinstance(record.args, Mapping):
        record.args = {name: _hide(value) for name, value in record.args.items()}
    elif record.args:
        record.args = tuple(_hide(value) for value in record.args)
    return record


def _hide(value: Any, depth: int = 0) -> Any:
    """Puts "<N bytes>" in the place of bytes, arrays and messages, also inside of containers."""
    size = _content_size(value)
    if size is not None:
        return f"<{size} bytes>"
    match value:
        case Mapping() | list() | tuple() | set() | frozenset() if depth >= _MAX_DEPTH:
            return "..."
        case Mapping():
            return {_hide(key): _hide(item, depth + 1) for key, item in value.items()}
        case list() | set() | frozenset():
            return [_hide(item, depth + 1) for item in value]
        case tuple():
            return tuple(_hide(item, depth + 1) for item in value)
        case BaseException() if _holds_content(value.args):
            return f"{type(value).__name__}{_hide(value.args)}"
    return value


def _holds_content(value: Any, depth: int = 0) -> bool:
    if _content_size(value) is not None:
        return True
    match value:
        case Mapping():
            inside: Iterable[Any] = (*value.keys(), *value.values())
        case list() | tuple() | set() | frozenset():
            inside = value
        case _:
            return False
    return depth >= _MAX_DEPTH or any(_holds_content(item, depth + 1) for item in inside)


def _content_size(value: object) -> int | None:
    """Returns the size in bytes of a value that may hold an image; None for other values."""
    if isinstance(value, bytes | bytearray):
        return len(value)
    if isinstance(nbytes := getattr(value, "nbytes", None), int):  # memoryview, NumPy's arrays
        return nbytes if getattr(value, "shape", ()) != () else None
    if callable(size := getattr(value, "ByteSize", None)):  # protobuf's messages
        return int(size())
    return None


def _plain(value: object) -> _Json:
    """Returns any value of ``extra`` as JSON, without content of images."""
    return _as_json(_hide(value))


def _as_json(value: object) -> _Json:
    match value:
        case None | bool() | int():
            return value
        case float():
            # JSON has neither NaN nor infinity.
            return value if abs(value) < float("inf") else str(value)
        case str() | PurePath() | BaseException():
            return _shorten(str(value))
        case Mapping():
            return {str(key): _as_json(item) for key, item in value.items()}
        case list() | tuple():
            return [_as_json(item) for item in value]
    if callable(item := getattr(value, "item", None)):  # NumPy's scalars
        return _as_json(item())
    return f"<{type(value).__name__}>"


def _shorten(text: str) -> str:
    rest = len(text) - _MAX_CHARS
    return text if rest <= 0 else f"{text[:_MAX_CHARS]}... ({rest} characters more)"
