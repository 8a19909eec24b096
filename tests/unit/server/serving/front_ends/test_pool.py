"""The first front end's view of the others, with children that only pretend to listen."""

import asyncio
import errno
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.engine.ipc.child_process import Backoff, ChildProcess
from gradcam_server.engine.ipc.process import RemoteBackend
from gradcam_server.engine.ipc.shared_memory import create_shared_memory
from gradcam_server.errors import EngineLostError, StartupError
from gradcam_server.serving.front_ends import pool
from gradcam_server.serving.front_ends.pool import FrontEndPool
from gradcam_server.telemetry.metrics import Metrics
from support.child import choose
from support.leftovers import Leftovers

CONFIG = ServeConfig(frontends=2)
QUICK = Backoff(first_s=0.01, max_s=0.04)


class Engine:
    """Lets each front end in, after it has failed as scripted."""

    started_in_s = 1.0

    def __init__(self, *failures: Exception) -> None:
        self.failures, self.let_in_count = list(failures), 0

    def let_in(self) -> tuple[socket.socket, int]:
        if self.failures:
            raise self.failures.pop(0)
        self.let_in_count += 1
        ours, theirs = socket.socketpair()
        theirs.close()
        return ours, create_shared_memory()


async def share(front_ends: FrontEndPool, engine: Engine) -> None:
    async with asyncio.timeout(20):
        await front_ends.share(CONFIG, cast("RemoteBackend", engine))


def listening(metrics: Metrics) -> bool:
    """Returns whether all front ends listen, by the metrics."""
    return "gradcam_front_ends 2.0" in metrics.exposition()[0].decode()


async def wait(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)


def kill_front_end(front_ends: FrontEndPool) -> int:
    (killed,) = front_ends.pids
    os.kill(killed, signal.SIGKILL)
    return killed


def pid(front_ends: FrontEndPool) -> int:
    return next(iter(front_ends.pids), 0)


def spawn_failing(*failures: Exception) -> Callable[..., Any]:
    """Returns a spawn that fails as scripted, and then spawns."""
    left, spawn = list(failures), ChildProcess.spawn

    async def fail(module: str, *descriptors: int) -> ChildProcess:
        if left:
            raise left.pop(0)
        return await spawn(module, *descriptors)

    return fail


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def front_ends(
    monkeypatch: pytest.MonkeyPatch, metrics: Metrics
) -> AsyncIterator[FrontEndPool]:
    """One other front end; it listens."""
    monkeypatch.setattr(pool, "_MODULE", choose(monkeypatch, "front_end"))
    leftovers = Leftovers()
    one = FrontEndPool(CONFIG, metrics, QUICK)
    one.start(1234)
    async with asyncio.timeout(20):
        await one.wait_listening()
    yield one
    await one.close()
    await leftovers.check()


async def test_a_first_front_end_without_a_process_is_the_end(
    monkeypatch: pytest.MonkeyPatch, metrics: Metrics
) -> None:
    """The server does not start, and the error names what is short."""
    monkeypatch.setattr(ChildProcess, "spawn", spawn_failing(OSError(errno.EMFILE, "")))
    leftovers = Leftovers()
    one = FrontEndPool(CONFIG, metrics, QUICK)
    one.start(1234)
    with pytest.raises(StartupError, match=r"front end 1 cannot start: no file .* \(EMFILE\)"):
        await one.wait_listening()
    await one.close()
    await leftovers.check()


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EMFILE, ""), BlockingIOError(errno.EAGAIN, ""), MemoryError(), ValueError()],
)
async def test_a_lost_front_end_comes_back_after_any_failure_to_start_it(
    front_ends: FrontEndPool, metrics: Metrics, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It is started again until it runs, and joins the engine again."""
    engine = Engine()
    await share(front_ends, engine)
    monkeypatch.setattr(ChildProcess, "spawn", spawn_failing(error))
    old = kill_front_end(front_ends)
    await wait(lambda: pid(front_ends) not in (0, old) and listening(metrics))
    assert front_ends.is_supervised
    assert engine.let_in_count == 2
    assert "gradcam_front_end_restarts_total 2.0" in metrics.exposition()[0].decode()


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, ""), OSError(errno.ETOOMANYREFS, "")])
async def test_a_front_end_that_cannot_be_given_an_engine_is_started_again(
    front_ends: FrontEndPool, metrics: Metrics, error: OSError, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine goes on, and no front end stays that would refuse all requests."""
    engine, old = Engine(error), pid(front_ends)
    await share(front_ends, engine)
    await wait(lambda: pid(front_ends) not in (0, old) and listening(metrics))
    assert engine.let_in_count == 1
    assert "Front end 1 was lost: it could not be given the engine" in caplog.text


async def test_a_front_end_that_cannot_join_is_started_again(
    front_ends: FrontEndPool, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    """After any fault no front end is left that runs and does not listen."""
    engine = Engine()
    await share(front_ends, engine)
    engine.failures = [RuntimeError("?")]
    old = kill_front_end(front_ends)
    await wait(lambda: engine.let_in_count == 2 and listening(metrics))
    assert pid(front_ends) != old
    assert "Front end 1 was lost: it could not join: RuntimeError: ?" in caplog.text


async def test_an_engine_that_is_lost_before_it_is_shared_harms_no_front_end(
    front_ends: FrontEndPool, metrics: Metrics
) -> None:
    """It waits for the next engine."""
    old = pid(front_ends)
    await share(front_ends, Engine(EngineLostError("the engine was lost", 1.0)))
    engine = Engine()
    await share(front_ends, engine)
    assert (pid(front_ends), engine.let_in_count) == (old, 1)
    assert listening(metrics)


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("die", "it ended with status 3"),
        ("garbage", "it sent bytes that are no message"),
        ("unreadable", "it sent a message that cannot be read"),
    ],
)
async def test_a_front_end_that_fails_again_and_again_is_started_until_it_is_well(
    front_ends: FrontEndPool,
    metrics: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A front end that sends garbage is killed: nothing after it could be read."""
    choose(monkeypatch, behaviour)
    kill_front_end(front_ends)
    await wait(lambda: f"Front end 1 was lost: {reason}" in caplog.text)
    choose(monkeypatch, "front_end")
    await wait(lambda: listening(metrics))


async def test_supervision_that_has_ended_is_reported(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A keeper that ends shows at /healthz; the drain of the server does not."""

    async def end_at_once(*_: object) -> None:
        pass

    monkeypatch.setattr(pool, "keep_running", end_at_once)
    front_ends = FrontEndPool(CONFIG, metrics, QUICK)
    front_ends.start(1234)
    assert front_ends.is_supervised
    await wait(lambda: not front_ends.is_supervised)
    assert await front_ends.drain(asyncio.Event()) is True
    assert front_ends.is_supervised
    await front_ends.close()
