"""Real server processes on free ports."""

from collections.abc import Iterator

import pytest

from gradcam_client import Client
from support.server import RunningServer, quick


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A warm server of an export with trained weights, which has few methods and layers."""
    running = RunningServer(*quick())
    try:
        yield running.wait_ready()
        # Whatever the tests sent, nothing was a fault of the server's.
        assert "Traceback" not in running.text, running.text
        assert running.stop() == 0
    finally:
        running.kill()


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[Client]:
    """A client of the warm server."""
    with Client(server.address) as client:
        yield client
