"""Lines of native code as records of the log."""

import errno
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradcam_server.errors import StartupError
from gradcam_server.telemetry import native_stderr as native_lines


def records(script: str, level: str = "info") -> tuple[list[dict[str, Any]], int]:
    """Runs a script whose native code is logged; returns its records and its exit status."""
    text = (
        "import logging, os, subprocess, sys\n"
        "from gradcam_server.telemetry.native_stderr import logged_as_json\n"
        f"with logged_as_json({level!r}):\n    {script}"
    )
    ended = subprocess.run(
        [sys.executable, "-c", text], stderr=subprocess.PIPE, timeout=60, check=False
    )
    return [json.loads(line) for line in ended.stderr.splitlines()], ended.returncode


def test_the_last_words_of_a_process_that_aborts_are_logged() -> None:
    """All lines, also more than a pipe holds, and at any level."""
    lines = 5_000
    script = f"os.write(2, b'terminate called by nobody\\n' * {lines}); os.abort()"
    found, status = records(script, "error")
    assert status == -6
    assert [one["message"] for one in found] == ["terminate called by nobody"] * lines
    assert {(one["level"], one["logger"]) for one in found} == {("warning", "native")}


def test_pythons_own_log_and_that_of_children_go_on() -> None:
    """Python's lines go directly; a child's native lines go the same way as those of the parent."""
    child = 'import os; os.write(2, b"of a child")'
    found, status = records(
        f"logging.warning('ours'); subprocess.run([sys.executable, '-c', {child!r}])"
    )
    assert status == 0
    assert {(one["logger"], one["message"]) for one in found} == {
        ("root", "ours"),
        ("native", "of a child"),
    }


def test_stderr_is_what_it_was_afterwards() -> None:
    """Lines written after the context are not wrapped."""
    script = "pass\nlogging.warning('python')\nos.write(2, b'{\"message\": \"native\"}')"
    found, _ = records(script)
    assert [one["message"] for one in found] == ["python", "native"]


@pytest.mark.parametrize("name", ["dup", "Popen"])
def test_a_log_without_its_process_is_a_failure_to_start(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The error names what is short; stderr is as before, no descriptor is left."""

    def fail(*_: object, **__: object) -> Any:
        raise OSError(errno.EMFILE, "")

    before, open_before = sys.stderr, len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(os if name == "dup" else subprocess, name, fail)
    with (
        pytest.raises(StartupError, match=r"--log-format json .* descriptors left \(EMFILE\)"),
        native_lines.logged_as_json("info"),
    ):
        pass
    assert sys.stderr is before
    assert native_lines.stderr_for_children() == ()
    assert len(list(Path("/proc/self/fd").iterdir())) == open_before


@pytest.mark.parametrize(
    ("line", "level"),
    [
        (b"libpng error: IDAT: incorrect data check", logging.WARNING),
        (b"I0000 00:00:1795436308.448837   29354 port.cc:153] oneDNN is on", logging.INFO),
        (b"2026-01-31 12:00:00.123456: E tensorflow/x.cc:1] failed", logging.ERROR),
        (b"F0000 00:00:1.2 3 x.cc:4] Check failed", logging.CRITICAL),
        (b"WARNING: All log messages before", logging.WARNING),
        (b"\xff is no text", logging.WARNING),
    ],
)
def test_lines_keep_their_severity(
    line: bytes, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Lines without a severity are warnings; empty lines and a missing newline do not matter."""
    with caplog.at_level(logging.DEBUG):
        native_lines.log_lines(io.BytesIO(b"\n" + line + b"\n\n" + line))
    expected = line.decode("utf-8", "backslashreplace")
    assert caplog.record_tuples == [("native", level, expected)] * 2
