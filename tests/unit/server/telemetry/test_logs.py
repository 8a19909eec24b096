"""The log, as it is written."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.domain.requests import Method
from gradcam_server.telemetry import logs

IMAGE = b"\xff\xd8\xffSECRET" * 100


class Log:
    """A logger, and the lines that it wrote."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.stream = io.StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(formatter)
        self.logger = logging.Logger("gradcam_server.test")
        self.logger.addHandler(handler)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def entry(self) -> dict[str, Any]:
        (line,) = self.text.splitlines()
        entry: dict[str, Any] = json.loads(line)
        return entry


@pytest.fixture
def log() -> Log:
    return Log(logs.JsonFormatter())


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, restored after the test."""
    one = logging.getLogger()
    handlers, level = list(one.handlers), one.level
    yield one
    one.handlers[:] = handlers
    one.setLevel(level)
    logging.captureWarnings(False)


def test_an_event_is_one_json_object(log: Log) -> None:
    """With the time in UTC, whatever the machine's zone."""
    before = datetime.now(UTC)
    log.logger.warning("%d of %s", 3, "these\nlines")
    entry = log.entry
    assert entry["time"].endswith("Z")
    assert abs((datetime.fromisoformat(entry.pop("time")) - before).total_seconds()) < 60
    assert entry == {
        "level": "warning",
        "logger": "gradcam_server.test",
        "message": "3 of these\nlines",
    }


def test_an_exception_is_in_its_event(log: Log) -> None:
    """The traceback stays in the line, with its causes."""
    try:
        try:
            int("first")
        except ValueError as error:
            raise RuntimeError("second") from error
    except RuntimeError:
        log.logger.exception("failed")
    text = log.entry["exception"]
    assert text.index("ValueError: invalid literal") < text.index("RuntimeError: second")
    assert "test_logs.py" in text


def test_the_request_is_named_by_context_or_extra(log: Log) -> None:
    """Extra wins, and outside of a request there is no id."""
    with logs.logging_for("from-context", "0af7"):
        log.logger.info("a")
        log.logger.info("b", extra={"request_id": "from-extra"})
    log.logger.info("c")
    first, second, third = map(json.loads, log.text.splitlines())
    assert (first["request_id"], first["trace_id"]) == ("from-context", "0af7")
    assert second["request_id"] == "from-extra"
    assert "request_id" not in third
    assert "trace_id" not in third


def test_what_extra_holds_becomes_json(log: Log) -> None:
    """Numbers stay numbers; values that JSON lacks become text; standard keys cannot be forged."""
    extra = {
        "level": "forged",
        "count": 3,
        "share": np.float32(0.5),
        "area": float("nan"),
        "method": Method.GRAD_CAM,
        "path": Path("/models"),
        "sizes": (1, 2),
        "error": ValueError("no"),
        "other": object(),
    }
    log.logger.info("x", extra=extra)
    entry = log.entry
    assert entry["level"] == "info"
    assert {name: entry[name] for name in list(extra)[1:]} == {
        "count": 3,
        "share": 0.5,
        "area": "nan",
        "method": "gradcam",
        "path": "/models",
        "sizes": [1, 2],
        "error": "no",
        "other": "<object>",
    }


@pytest.mark.parametrize(
    "formatter", [logs.JsonFormatter(), logs.TextFormatter()], ids=["json", "text"]
)
@pytest.mark.parametrize(
    "content",
    [
        IMAGE,
        bytearray(IMAGE),
        memoryview(IMAGE),
        np.frombuffer(IMAGE, np.uint8),
        pb.ExplainImageRequest(encoded_image=IMAGE),
        {"image": IMAGE},
        [(IMAGE, IMAGE)],
        ValueError("bad", IMAGE),
    ],
    ids=lambda one: type(one).__name__,
)
def test_images_are_never_logged(formatter: logging.Formatter, content: object) -> None:
    """As message, argument, extra or in an exception: their size is written instead."""
    log = Log(formatter)
    log.logger.error(content)
    log.logger.error("%s and %r", content, content)
    log.logger.error("%(one)s", {"one": content})
    log.logger.error("extra", extra={"content": content})
    try:
        raise content if isinstance(content, BaseException) else ValueError(content)
    except ValueError:
        log.logger.exception("raised")
    assert "SECRET" not in log.text
    assert "255, 216" not in log.text
    assert " bytes>" in log.text


def test_bytes_become_their_size(log: Log) -> None:
    """The size is written in bytes."""
    log.logger.info("read %s", IMAGE, extra={"image": IMAGE})
    assert log.entry["message"] == f"read <{len(IMAGE)} bytes>"
    assert log.entry["image"] == f"<{len(IMAGE)} bytes>"


def test_a_record_is_not_changed(log: Log) -> None:
    """Other handlers get the original record."""
    record = logging.LogRecord("x", logging.INFO, "x.py", 1, "%s", (IMAGE,), None)
    log.logger.handle(record)
    assert record.args == (IMAGE,)


def test_long_texts_are_cut(log: Log) -> None:
    """The length of a line is bounded."""
    log.logger.info("x" * 1_000_000)
    assert len(log.text) < 20_000
    assert log.entry["message"].endswith("(990000 characters more)")


def test_text_for_people_names_the_request() -> None:
    """At the end of the line."""
    log = Log(logs.TextFormatter())
    with logs.logging_for("abc"):
        log.logger.info("done")
    assert log.text.endswith("INFO gradcam_server.test: done request_id=abc\n")


@pytest.mark.parametrize(
    ("chosen", "written"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("\x9b31m", r"\x9b31m"),
        ("a\nERROR forged", r"a\nERROR forged"),
        ("a\r\x08\x7f", r"a\r\x08\x7f"),
        ("a\u2028\u202etxt.exe", r"a\u2028\u202etxt.exe"),
        ("\udcff", r"\udcff"),
        ("Grüße, 猫 🐈", "Grüße, 猫 🐈"),
    ],
    ids=["colours", "C1", "lines", "backspace", "direction", "surrogate", "letters"],
)
def test_what_callers_choose_does_not_command_a_terminal(chosen: str, written: str) -> None:
    """As message, argument or in an exception: other characters are written as escapes."""
    log = Log(logs.TextFormatter())
    log.logger.info(chosen)
    log.logger.info("%s and %s", chosen, 1)
    with logs.logging_for(chosen):
        log.logger.info("done")
    lines = log.text.splitlines()
    assert [line.partition(": ")[2] for line in lines] == [
        *(written, f"{written} and 1", f"done request_id={written}")
    ]
    log.logger.error("failed", exc_info=ValueError(chosen))
    assert "failed\nValueError: " in log.text
    assert all(char.isprintable() or char == "\n" for char in log.text)


@pytest.mark.parametrize("given", [None, "", b"abc", "x" * 129, "a b", 'a"b', "a\nb", "é"])
def test_an_unfit_request_id_is_replaced(given: str | bytes | None) -> None:
    """A client cannot write lines into the log."""
    chosen = logs.choose_request_id(given)
    assert chosen != given
    assert logs.choose_request_id(chosen) == chosen
    assert logs.choose_request_id(given) != chosen


def test_configuring_again_replaces_our_handler_alone(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reload does not double the lines, and leaves other handlers."""
    logs.configure("info", "text")
    others = root.handlers[:-1]
    logs.configure("warning", "json")
    assert root.handlers[:-1] == others
    logging.getLogger("gradcam_server.x").info("not this")
    logging.getLogger("gradcam_server.x").warning("this")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "this"


def test_warnings_of_python_are_json_too(
    root: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python's warnings are JSON, too."""
    logs.configure("info", "json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # the block has replaced what they are written by
        logging.captureWarnings(True)
        warnings.warn("careful", UserWarning, stacklevel=1)
        logging.captureWarnings(False)
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["logger"] == "py.warnings"


def test_an_unknown_format_is_refused() -> None:
    """The message names the formats."""
    with pytest.raises(ValueError, match="text, json"):
        logs.configure("info", "yaml")
