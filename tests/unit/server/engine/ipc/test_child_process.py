"""Child processes that start, fail to start, hang, die at once and are started again."""

import asyncio
import errno
import logging
import os
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gradcam_server.engine.ipc import child_process
from gradcam_server.engine.ipc.child_process import (
    Backoff,
    ChildProcess,
    Watchdog,
    exit_reason,
    keep_running,
)
from gradcam_server.errors import StartupError, failure_reason
from support.child import choose
from support.leftovers import Leftovers

QUICK = Backoff(first_s=0.01, max_s=0.04, stable_s=60)


def no_descriptors(*_: object, **__: object) -> Any:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_a_child_speaks_over_its_control_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """It inherits its descriptors, ends when the socket is closed, and leaves nothing."""
    leftovers = Leftovers()
    child = await ChildProcess.spawn(choose(monkeypatch, "echo"))
    child.writer.write(b"hello")
    assert await child.reader.readexactly(5) == b"hello"
    await child.close()
    assert await child.wait() == (0, "it ended with status 0")
    ours, theirs = os.pipe()
    child = await ChildProcess.spawn(choose(monkeypatch, "write_to_second"), theirs)
    os.close(theirs)
    assert await asyncio.to_thread(os.read, ours, 100) == b"inherited"
    os.close(ours)
    await child.close()
    await leftovers.check()


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (socket, "socketpair"),
        (asyncio, "create_subprocess_exec"),
        (asyncio, "open_connection"),
    ],
)
@pytest.mark.parametrize("error", [OSError(errno.EMFILE, ""), MemoryError(), RuntimeError("?")])
async def test_a_spawn_that_fails_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, error: Exception
) -> None:
    """Wherever it fails: no descriptor stays open, and a process that runs already is killed."""

    def fail(*_: object, **__: object) -> Any:
        raise error

    module = choose(monkeypatch, "stay")
    leftovers = Leftovers()
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fail)
        with pytest.raises(type(error)):
            await ChildProcess.spawn(module)
    await leftovers.check()


async def test_a_spawn_with_ever_more_descriptors_fails_cleanly_until_it_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system's own limit, at every step: each failure is EMFILE and leaves nothing open."""
    module = choose(monkeypatch, "echo")
    await (await ChildProcess.spawn(module)).close()  # what the event loop opens once is open
    leftovers = Leftovers()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    failures: list[int | None] = []
    child = None
    try:
        for limit in range(3, 200):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            try:
                child = await ChildProcess.spawn(module)
                break
            except OSError as error:
                failures.append(error.errno)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(failures) > 2
    assert set(failures) == {errno.EMFILE}
    assert child is not None
    child.writer.write(b"hello")
    assert await child.reader.readexactly(5) == b"hello"
    await child.close()
    await leftovers.check()


@pytest.mark.parametrize("steps", range(8))
async def test_a_spawn_that_is_cancelled_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """At whichever step: descriptors are closed, and the process is killed."""
    module = choose(monkeypatch, "stay")
    leftovers = Leftovers()
    task = asyncio.create_task(ChildProcess.spawn(module))
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    try:
        child = await task
    except asyncio.CancelledError:
        pass
    else:
        await child.close(0)
    await leftovers.check()


async def test_a_child_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that it has to end by itself, or at once when waiting is cancelled."""
    leftovers = Leftovers()
    child = await ChildProcess.spawn(choose(monkeypatch, "stay"))
    await child.reader.readexactly(1)
    await child.close(0.05)
    assert await child.wait() == (-9, "it was killed by SIGKILL")
    child = await ChildProcess.spawn(choose(monkeypatch, "stay"))
    closing = asyncio.create_task(child.close(60))
    await asyncio.sleep(0.01)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert (await child.wait())[0] == -9
    await leftovers.check()


async def test_the_reason_of_a_kill_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first reason counts; a reason for a process that has ended by itself does not."""
    child = await ChildProcess.spawn(choose(monkeypatch, "stay"))
    child.kill("it hangs")
    child.kill("nobody wants it")
    assert await child.wait() == (-9, "it hangs")
    assert await child.wait_disconnected() == "it hangs"
    await child.close()
    child = await ChildProcess.spawn(choose(monkeypatch, "die"))
    assert await child.wait() == (3, "it ended with status 3")
    child.kill("too late")
    assert await child.wait() == (3, "it ended with status 3")
    await child.close()


async def test_a_child_that_only_closes_its_socket_is_told_from_one_that_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A child that closes its connection and lives on is not waited for without end."""
    monkeypatch.setattr(child_process, "CLOSE_S", 0.05)
    child = await ChildProcess.spawn(choose(monkeypatch, "close_and_stay"))
    assert await child.reader.read() == b""
    assert await child.wait_disconnected() == "it closed its connection"
    await child.close(0)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (0, "it ended with status 0"),
        (137, "it ended with status 137"),
        (-9, "it was killed by SIGKILL"),
        (-37, "it was killed by signal 37"),
    ],
)
def test_an_exit_status_in_words(status: int, reason: str) -> None:
    """Signals have their names; real-time signals have none."""
    assert exit_reason(status) == reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.EMFILE, "x"), "no file descriptors left (EMFILE)"),
        (OSError(errno.ENOMEM, "x"), "no memory left (ENOMEM)"),
        (PermissionError(errno.EACCES, "x", "file"), "Permission denied (EACCES)"),
        (OSError("without a number"), "OSError: without a number"),
        (MemoryError(), "no memory left (MemoryError)"),
        (StartupError("no such model"), "no such model"),
        (ValueError("x"), "ValueError: x"),
    ],
)
def test_a_failure_in_words(error: Exception, reason: str) -> None:
    """An operator reads a short text, with the name to look up."""
    assert failure_reason(error) == reason


async def test_a_silent_child_is_found_and_one_that_speaks_is_not() -> None:
    """The limit is silence, not age."""
    watchdog = Watchdog(0.2)
    waiting = asyncio.create_task(watchdog.wait())
    for _ in range(10):
        watchdog.heard()
        await asyncio.sleep(0.04)
    assert not waiting.done()
    assert "nothing was heard of it for" in await waiting


async def test_a_batch_that_does_not_end_is_found() -> None:
    """The child speaks; its batch runs on."""
    watchdog, running_s = Watchdog(0.2), 0.0
    waiting = asyncio.create_task(watchdog.wait(lambda: running_s))
    watchdog.heard()
    running_s = 0.3
    assert await waiting == "a batch ran for more than 0.2 s (--watchdog-s)"


async def test_a_machine_that_was_stopped_accuses_no_child() -> None:
    """Time in which this process itself did not run does not count as silence."""
    watchdog = Watchdog(0.2)
    waiting = asyncio.create_task(watchdog.wait())
    await asyncio.sleep(0)
    time.sleep(0.5)  # noqa: ASYNC251 - the loop stands still, as in a suspended machine
    await asyncio.sleep(0.06)
    assert not waiting.done()
    assert "nothing was heard of it for 0 s" in await waiting


class Attempts:
    """Runs that fail as scripted, and then last until the end of the test.

    Attributes:
        count: Runs so far.
        running: Set while the last one lasts.
        stop: Stops them.
        losses: The reported reasons.
    """

    def __init__(self, *outcomes: Exception | str) -> None:
        self._outcomes = list(outcomes)
        self.count = 0
        self.running, self.stop = asyncio.Event(), asyncio.Event()
        self.losses: list[str] = []

    async def __call__(self) -> str:
        self.count += 1
        if not self._outcomes:
            self.running.set()
            await self.stop.wait()
            return "it was stopped"
        match self._outcomes.pop(0):
            case str(reason):
                return reason
            case error:
                raise error

    def keep(self, backoff: Backoff = QUICK) -> asyncio.Task[None]:
        """Keeps them running."""
        keeping = keep_running("The child", self, self.stop, self.losses.append, backoff)
        return asyncio.create_task(keeping)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (BlockingIOError(errno.EAGAIN, "fork"), "Resource temporarily unavailable (EAGAIN)"),
        (OSError(errno.EMFILE, "socketpair"), "no file descriptors left (EMFILE)"),
        (MemoryError(), "no memory left (MemoryError)"),
        (StartupError("no such model"), "no such model"),
        (RuntimeError("can't start new thread"), "RuntimeError: can't start new thread"),
        (TimeoutError(), "TimeoutError: "),
    ],
)
async def test_no_exception_ends_supervision(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong is logged once with its cause, and tried again."""
    attempts = Attempts(error)
    keeping = attempts.keep()
    async with asyncio.timeout(10):
        await attempts.running.wait()
        attempts.stop.set()
        await keeping
    assert attempts.losses == [reason]
    (record,) = caplog.records
    message = f"The child cannot be started: {reason}; starting it again"
    assert (record.levelno, record.getMessage()) == (logging.ERROR, message)
    is_fault = isinstance(error, RuntimeError)
    assert bool(record.exc_info) == is_fault  # only a fault of the code needs its traceback


async def test_pauses_grow_up_to_the_longest(caplog: pytest.LogCaptureFixture) -> None:
    """A child that dies at once again and again does not keep the machine busy."""
    attempts = Attempts(*["it died"] * 6)
    keeping = attempts.keep()
    async with asyncio.timeout(10):
        await attempts.running.wait()
        attempts.stop.set()
        await keeping
    ends = [record.getMessage().partition("again")[2] for record in caplog.records]
    assert ends == ["", " in 0.01 s", " in 0.02 s", " in 0.04 s", " in 0.04 s", " in 0.04 s"]
    assert caplog.records[0].getMessage() == "The child was lost: it died; starting it again"


async def test_a_stable_child_is_started_again_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """Pauses are for early failures: a stable run forgets the failures before it."""
    attempts = Attempts("it died", "it died", "it died")
    backoff = Backoff(first_s=0.01, max_s=0.04, stable_s=-1)
    keeping = attempts.keep(backoff)
    async with asyncio.timeout(10):
        await attempts.running.wait()
        attempts.stop.set()
        await keeping
    ends = {record.getMessage().partition("again")[2] for record in caplog.records}
    assert ends == {""}


@pytest.mark.parametrize(
    "end",
    [lambda attempts, _: attempts.stop.set(), lambda _, keeping: keeping.cancel()],
    ids=["stop", "cancel"],
)
async def test_supervision_that_is_ended_in_a_pause_ends_at_once(
    end: Callable[[Attempts, asyncio.Task[None]], None],
) -> None:
    """The server does not wait for a pause of minutes before it stops, and nothing runs again."""
    attempts = Attempts(MemoryError(), MemoryError())
    keeping = attempts.keep(Backoff(first_s=600, max_s=600))
    while len(attempts.losses) < 2:  # noqa: ASYNC110 - the first is tried again at once
        await asyncio.sleep(0.001)
    end(attempts, keeping)
    async with asyncio.timeout(5):
        await asyncio.wait({keeping})
    assert attempts.count == 2


async def test_a_stopped_run_is_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    """A run that ends because of the stop is neither logged nor run again."""
    attempts = Attempts()
    keeping = attempts.keep()
    await attempts.running.wait()
    attempts.stop.set()
    await keeping
    assert (attempts.count, attempts.losses, caplog.records) == (1, [], [])


async def test_a_loss_may_stop_it(caplog: pytest.LogCaptureFixture) -> None:
    """The callback for losses decides whether there is another attempt."""
    stop = asyncio.Event()
    run: Callable[[], Awaitable[str]] = Attempts("it died")
    await keep_running("The child", run, stop, lambda _: stop.set())
    assert caplog.records == []


async def test_a_real_child_that_dies_at_once_is_started_until_it_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Spawn, loss and pause together, over failures of every kind."""
    leftovers, stop = Leftovers(), asyncio.Event()
    lost: list[str] = []
    behaviours = iter(["die", "EMFILE", "die_unread", "hang", "echo"])

    async def run() -> str:
        behaviour = next(behaviours)
        with monkeypatch.context() as patch:
            if behaviour == "EMFILE":
                patch.setattr(asyncio, "open_connection", no_descriptors)
            module = choose(patch, "stay" if behaviour in ("EMFILE", "hang") else behaviour)
            child = await ChildProcess.spawn(module)
        try:
            child.writer.write(b"hello" * (100_000 if behaviour == "die_unread" else 1))
            if behaviour == "hang":
                child.kill(await Watchdog(0.1).wait())
            if behaviour == "echo":
                stop.set()
                child.hang_up()
            return (await child.wait())[1]
        finally:
            await child.close(0)

    async with asyncio.timeout(20):
        await keep_running("The child", run, stop, lost.append, QUICK)
    assert lost == [
        "it ended with status 3",
        "no file descriptors left (EMFILE)",
        "it ended with status 4",
        "nothing was heard of it for 0 s (--watchdog-s)",
    ]
    await leftovers.check()
