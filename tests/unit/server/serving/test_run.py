"""A server that cannot start leaves no engine behind."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import support
from support.failing_server import ERRORS


def serve(settings: dict[str, Any], error: str = "") -> dict[str, Any]:
    """Starts a server that fails, in a process of its own: its start changes the process."""
    command = [sys.executable, "-m", "support.failing_server", json.dumps(settings), error]
    tests = str(Path(support.__path__[0]).parent)
    run = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": tests}
    )
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "(?i)port|address"),
        ({"host": "0.0.0.0"}, "insecure"),
        ({"token_file": "none.toml"}, "none.toml"),
    ],
)
def test_a_server_that_cannot_listen_ends_its_engine(settings: dict[str, Any], text: str) -> None:
    """The engine's process runs already when the server finds that it cannot listen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        found = serve({"port": taken.getsockname()[1], **settings})
    assert re.search(text, found["error"])
    assert found["children"] == 0


@pytest.mark.parametrize("error", ERRORS)
def test_a_process_that_cannot_be_started_is_reported_after_a_second_try(error: str) -> None:
    """The supervisor tries again and reports; the first try only saves time."""
    found = serve({"port": 0}, error)
    assert "the engine cannot start: " in found["error"]
    assert found["tries"] == 2
