"""Real server processes on free ports."""

from collections.abc import Iterator

import pytest

from gradcam_client import Client
from support.server import RunningServer, quick, serving


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A warm server of an export with trained weights, which has few methods and layers."""
    with serving(*quick(), "--http-port", "0") as running:
        yield running


@pytest.fixture(scope="session")
def client(server: RunningServer) -> Iterator[Client]:
    """A client of the warm server."""
    with Client(server.address) as client:
        yield client
