"""What the server tells of reloads that fail, and of its own health, without any process."""

import errno
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import NotReadyError, ReloadError, StartupError, failure_reason
from gradcam_server.serving.server import _Server
from gradcam_server.transport.lifecycle import Lifecycle


@pytest.fixture
def server() -> Any:
    """A server that serves; its supervisor does what a test says."""
    one = cast("Any", _Server(ServeConfig(), ServeConfig))
    one._lifecycle = Lifecycle()
    one._lifecycle.serve()
    one._supervisor = SimpleNamespace(is_guarding=True)
    one._others = SimpleNamespace(is_supervised=True)
    return one


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, ""), MemoryError(), StartupError("no such model"), KeyError("a fault")],
)
@pytest.mark.parametrize("step", ["read", "start"])
async def test_a_reload_that_fails_is_answered_and_logged(
    server: Any, error: Exception, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong: who asked by RPC is told why, and SIGHUP ends no task by it."""

    def fail(*_: object) -> Any:
        raise error

    if step == "read":
        server._read_again = fail
    else:
        server._supervisor.reload = fail
    reason = f"the old models go on: {failure_reason(error)}"
    with pytest.raises(ReloadError) as caught:
        await server._reload()
    assert str(caught.value).endswith(reason)
    await server._reload_unasked()
    records = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert [reason in one.getMessage() for one in records] == [True, True]
    assert bool(records[0].exc_info) == isinstance(error, KeyError)


async def test_a_reload_before_the_server_is_warm_may_be_tried_again(server: Any) -> None:
    """It is refused as a request would be, with a time to come back."""
    server._lifecycle = Lifecycle()
    with pytest.raises(NotReadyError):
        await server._reload()


def test_a_server_without_supervision_is_not_alive(server: Any) -> None:
    """Its liveness names what would not be started again."""
    assert server._why_not_alive() is None
    server._others.is_supervised = False
    assert "a front end that is lost" in server._why_not_alive()
    server._supervisor.is_guarding = False
    assert "an engine that is lost" in server._why_not_alive()
