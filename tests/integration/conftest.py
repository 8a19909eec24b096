"""Real server processes on free ports."""

from collections.abc import Iterator

import pytest

from gradcam_client import Client
from support.server import RunningServer


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """A warm server with trained weights, and ResNet50 with random ones as second model.

    XLA compiles, and logs each compilation: its own witness beside our counter.
    """
    running = RunningServer(
        *("--model", "efficientnet-lite0", "--model", "resnet50"),
        *("--weights", "imagenet", "--weights", "resnet50=random"),
        *("--compiler", "xla", "--batch-sizes", "1,4"),
        TF_CPP_MIN_LOG_LEVEL="0",
        TF_CPP_VMODULE="device_compiler=1",
    )
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
