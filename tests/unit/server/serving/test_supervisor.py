"""Keeping an engine running, with engines that only sleep."""

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import Catalog, ServedModel
from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.options import Compiler
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.engine.ipc.child_process import Backoff, ChildProcess
from gradcam_server.engine.ipc.fd_passing import fd_socket_pair
from gradcam_server.engine.ipc.messages import CatalogChanged, Ready
from gradcam_server.engine.ipc.process import RemoteBackend
from gradcam_server.engine.ipc.shared_memory import create_shared_memory
from gradcam_server.engine.ipc.shared_slots import SlotReader
from gradcam_server.engine.ipc.spawned import SpawnedEngine
from gradcam_server.errors import EngineLostError, StartupError, failure_reason
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.serving.front_ends.pool import FrontEndPool
from gradcam_server.serving.supervisor import Supervisor
from gradcam_server.telemetry.metrics import Metrics
from support.leftovers import Leftovers

PAUSES = (0.01, 0.02, 0.04)
CONFIG = ServeConfig(compiler=Compiler.AUTO)
MODEL = ServedModel(
    "m",
    "",
    ClassLabels([ClassLabel("cat")]),
    (),
    "conv",
    (8, 8),
    Preprocessing.NONE,
    "file",
    compiler="xla",
)


async def start(config: ServeConfig, observer: Supervisor) -> RemoteBackend:
    """Starts a process that ends with its input, as an engine does with its socket."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import sys; sys.stdin.read()", stdin=theirs.fileno()
        )
    reader, writer = await asyncio.open_connection(sock=ours)
    ready = Ready(Catalog((MODEL,), (), (1,), 5), 3, "2.21.0")
    shared_fd = create_shared_memory()
    SlotReader(shared_fd, 1)
    watchdog_s = config.watchdog_s
    fd_socket, their_fd_socket = fd_socket_pair()
    their_fd_socket.close()
    child = ChildProcess(process, reader, writer)
    backend = RemoteBackend(child, shared_fd, ready, 7.0, watchdog_s, observer, fd_socket)
    os.close(shared_fd)
    return backend


QUICK = Backoff(first_s=0.01, max_s=0.04)


class Server:
    """Receives a supervisor's calls, and starts its engines or fails.

    Attributes:
        failures: The errors of the next starts, one after the other.
        engines: The engines that have started.
        is_published: Whether requests are admitted.
        published_count: Engines that were published.
        withdrawn_count: Engines whose loss was noticed.
        attempts: Starts so far.
    """

    def __init__(self) -> None:
        self.failures: list[BaseException] = []
        self.engines: list[RemoteBackend] = []
        self.publish_error: BaseException | None = None
        self.is_published, self.attempts = False, 0
        self.published_count = self.withdrawn_count = 0

    def publish(self, _: Explainer) -> None:
        if self.publish_error is not None:
            raise self.publish_error
        self.is_published = True
        self.published_count += 1

    def withdraw(self, _: float) -> None:
        self.is_published = False
        self.withdrawn_count += 1

    async def start(
        self, config: ServeConfig, observer: Supervisor, _: SpawnedEngine | None = None
    ) -> RemoteBackend:
        self.attempts += 1
        if self.failures:
            raise self.failures.pop(0)
        self.engines.append(await start(config, observer))
        return self.engines[-1]

    async def kill(self, engine: RemoteBackend | None = None) -> None:
        """Kills an engine, by default the latest; returns once its loss is noticed."""
        before = self.withdrawn_count
        os.kill((engine or self.engines[-1]).pid, signal.SIGKILL)
        await self.wait(lambda: self.withdrawn_count > before)

    async def wait(self, is_so: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not is_so():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.002)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    one = Server()
    monkeypatch.setattr(RemoteBackend, "start", one.start)
    return one


@pytest.fixture
async def supervisor(
    request: pytest.FixtureRequest, server: Server, metrics: Metrics
) -> AsyncIterator[Supervisor]:
    """Its back-off may be set by indirect parametrisation."""
    pool = FrontEndPool(CONFIG, metrics)
    backoff = getattr(request, "param", QUICK)
    one = Supervisor(CONFIG, server.publish, server.withdraw, metrics, pool, backoff)
    await one.start()
    yield one
    await one.close()


async def test_reloads_leave_no_task_behind(supervisor: Supervisor) -> None:
    """The watchers of old engines have ended with them."""
    await asyncio.sleep(0)
    before = len(asyncio.all_tasks())
    for _ in range(3):
        await supervisor.reload(CONFIG)
    async with asyncio.timeout(20):
        while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110 - the old ones retire unwatched
            await asyncio.sleep(0.01)


async def test_the_metric_names_the_compiler_that_runs(
    supervisor: Supervisor, metrics: Metrics
) -> None:
    """The setting is auto; the engine knows the chosen compiler."""
    text = metrics.exposition()[0].decode()
    labels = 'compiler="xla",layer="conv",model="m",streams="1",weights="file"'
    assert f"gradcam_model_info{{{labels}}} 1.0" in text


async def test_the_metric_has_the_streams_once_they_are_compiled(
    supervisor: Supervisor, server: Server, metrics: Metrics
) -> None:
    """In place of the one stream of the start; an engine that was replaced changes nothing."""
    (old,) = server.engines
    await supervisor.reload(CONFIG)
    for engine, streams in ((server.engines[-1], 2), (old, 4)):
        models = (replace(MODEL, streams=streams),)
        engine._handle(CatalogChanged(replace(engine.catalog, models=models)))
    lines = [
        line for line in metrics.exposition()[0].decode().splitlines() if "model_info{" in line
    ]
    (line,) = lines
    assert 'streams="2"' in line


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        BlockingIOError(errno.EAGAIN, "fork"),
        MemoryError(),
        RuntimeError("can't start new thread"),
        EngineLostError("the engine died while starting", 0),
        StartupError("no such model"),
    ],
)
async def test_an_engine_comes_back_after_any_failure_to_start_it(
    supervisor: Supervisor, server: Server, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """Each failure is logged with its cause, and requests are admitted once an engine starts."""
    for losses in (1, 2):
        server.failures = [error] * 3
        await server.kill()
        await server.wait(lambda: server.is_published)
        assert server.published_count == 1 + losses
        assert supervisor.is_guarding
    assert caplog.text.count("The engine was lost: ") == 2
    assert caplog.text.count(f"The engine cannot be started: {failure_reason(error)}") == 6


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, ""), MemoryError()])
async def test_a_first_engine_that_cannot_be_started_is_the_end(
    server: Server, metrics: Metrics, error: Exception
) -> None:
    """The command fails with the cause."""
    server.failures = [error]
    pool = FrontEndPool(CONFIG, metrics)
    supervisor = Supervisor(CONFIG, server.publish, server.withdraw, metrics, pool)
    with pytest.raises(StartupError, match=r"the engine cannot start: no .* left \(\w+\)"):
        await supervisor.start()
    await supervisor.close()


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, ""), MemoryError(), RuntimeError("?")])
@pytest.mark.parametrize("step", ["start", "share", "publish"])
async def test_the_old_engine_goes_on_when_a_reload_fails(
    supervisor: Supervisor,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    step: str,
) -> None:
    """At whichever step: the error is raised, the new engine ends, the old one stays."""

    def fail(*_: object) -> None:
        raise error

    (old,) = server.engines
    leftovers = Leftovers()
    with monkeypatch.context() as patch:
        if step == "start":
            server.failures = [error]
        elif step == "share":
            patch.setattr(FrontEndPool, "share", fail)
        else:
            server.publish_error = error
        with pytest.raises(type(error)):
            await supervisor.reload(CONFIG)
    server.publish_error = None
    await leftovers.check()
    assert not old.lost.done()
    assert supervisor.is_guarding
    await server.kill(old)
    await server.wait(lambda: server.is_published)
    assert server.published_count == 2


@pytest.mark.parametrize("supervisor", [Backoff(first_s=600, max_s=600)], indirect=True)
async def test_a_reload_is_the_remedy_in_a_pause(supervisor: Supervisor, server: Server) -> None:
    """It waits for no pause, and its engine is guarded from the beginning."""
    server.failures = [StartupError("no such model")]
    await server.kill()
    await server.wait(lambda: not server.failures)
    await supervisor.reload(CONFIG)
    assert server.is_published
    await server.kill()
    await server.wait(lambda: server.is_published)
    assert server.published_count == 3


@pytest.mark.parametrize("supervisor", [Backoff(first_s=600, max_s=600)], indirect=True)
async def test_a_server_is_stopped_in_a_pause(supervisor: Supervisor, server: Server) -> None:
    """It ends at once, and no engine is started after that."""
    server.failures = [OSError(errno.EMFILE, "")]
    await server.kill()
    await server.wait(lambda: not server.failures)
    before = server.attempts
    async with asyncio.timeout(10):
        await supervisor.close()
    await asyncio.sleep(0.02)
    assert server.attempts == before


async def test_an_engine_that_dies_again_and_again_is_started_with_growing_pauses(
    supervisor: Supervisor, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """It starts and dies at once, as with too little memory: the machine is not kept busy."""
    for _ in range(4):
        await server.kill()
        await server.wait(lambda: server.is_published)
    losses = [one.getMessage() for one in caplog.records if "was lost" in one.getMessage()]
    assert [one.partition("again")[2] for one in losses] == ["", *(f" in {s} s" for s in PAUSES)]
    assert supervisor.is_guarding


async def test_supervision_that_has_ended_is_reported(
    supervisor: Supervisor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guard that ends shows at /healthz; the end of the server does not."""

    async def end_at_once(*_: object, **__: object) -> None:
        pass

    assert supervisor.is_guarding
    monkeypatch.setattr("gradcam_server.serving.supervisor.keep_running", end_at_once)
    await supervisor.reload(CONFIG)
    await server.wait(lambda: not supervisor.is_guarding)
    await supervisor.close()
    assert supervisor.is_guarding


async def test_the_loss_of_a_replaced_engine_is_logged(
    supervisor: Supervisor,
    server: Server,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have had requests in work; the new engine goes on."""
    (old,) = server.engines
    monkeypatch.setattr(old, "wait_alone", asyncio.Event().wait)  # another front end uses it
    await supervisor.reload(CONFIG)
    os.kill(old.pid, signal.SIGKILL)
    await server.wait(lambda: "A replaced engine was lost" in caplog.text)
    assert server.is_published
    assert server.published_count == 2
