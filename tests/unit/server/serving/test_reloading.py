"""Reloads that fail, without any process."""

import errno
import logging
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import NotReadyError, ReloadError, StartupError, failure_reason
from gradcam_server.serving.reloading import Reloader
from gradcam_server.transport.lifecycle import Lifecycle


def failing(step: str, error: Exception) -> Reloader:
    """Returns a reloader of a server that serves; a step of its reloads fails."""

    def read_again() -> ServeConfig:
        if step == "read":
            raise error
        return ServeConfig()

    async def start(_: ServeConfig) -> None:
        raise error

    lifecycle = Lifecycle()
    if step != "warm up":
        lifecycle.serve()
    front_end, supervisor = SimpleNamespace(lifecycle=lifecycle), SimpleNamespace(reload=start)
    return Reloader(ServeConfig(), read_again, cast("Any", front_end), cast("Any", supervisor))


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, ""), MemoryError(), StartupError("no such model"), KeyError("a fault")],
)
@pytest.mark.parametrize("step", ["read", "start"])
async def test_a_reload_that_fails_is_answered_and_logged(
    error: Exception, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An RPC gets the reason of any failure, and SIGHUP ends no task by it."""
    reloader = failing(step, error)
    reason = f"the old models go on: {failure_reason(error)}"
    with pytest.raises(ReloadError) as caught:
        await reloader.reload()
    assert str(caught.value).endswith(reason)
    await reloader.reload_by_signal()
    records = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert [reason in record.getMessage() for record in records] == [True, True]
    assert bool(records[0].exc_info) == isinstance(error, KeyError)


async def test_a_reload_before_the_server_is_warm_may_be_tried_again() -> None:
    """It is refused as a request would be, with a time to retry after."""
    with pytest.raises(NotReadyError):
        await failing("warm up", StartupError("")).reload()
