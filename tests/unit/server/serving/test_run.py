"""A server that cannot start leaves no engine behind."""

import errno
import socket
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.engine.ipc import spawned
from gradcam_server.engine.ipc.spawned import SpawnedEngine
from gradcam_server.errors import StartupError
from gradcam_server.serving import run
from support.child import choose


def _read_again() -> ServeConfig:
    raise AssertionError("nobody reloads")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Serves in this process, with an engine that only listens."""
    monkeypatch.setattr(spawned, "_MODULE", choose(monkeypatch, "listen"))
    monkeypatch.setattr(run, "share_heap", lambda: None)

    def serve(**settings: Any) -> int:
        return run.run(ServeConfig(**settings), _read_again)

    return serve


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({}, "(?i)port|address"),
        ({"host": "0.0.0.0"}, "insecure"),
        ({"token_file": "none.toml"}, "none.toml"),
    ],
)
def test_a_server_that_cannot_listen_ends_its_engine(
    serve: Callable[..., int], settings: dict[str, Any], text: str
) -> None:
    """The engine's process runs already when the server finds that it cannot listen."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StartupError, match=text):
            serve(port=taken.getsockname()[1], **settings)
    assert not psutil.Process().children()


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_process_that_cannot_be_started_is_reported_after_a_second_try(
    serve: Callable[..., int], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor tries again and reports; the first try only saves time."""
    tries = []

    async def fail(config: ServeConfig) -> SpawnedEngine:
        tries.append(config)
        raise error

    monkeypatch.setattr(SpawnedEngine, "spawn", fail)
    with pytest.raises(StartupError, match="the engine cannot start: "):
        serve(port=0)
    assert len(tries) == 2
