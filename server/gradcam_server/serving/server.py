"""The server process: bind -> wait for the engine -> SERVING -> drain -> close."""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc

from gradcam_server import __version__
from gradcam_server.config.settings import ServeConfig
from gradcam_server.config.shares import share
from gradcam_server.engine.ipc.spawned import SpawnedEngine
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.serving.front_ends.pool import FrontEndPool
from gradcam_server.serving.reloading import Reloader
from gradcam_server.serving.supervisor import Supervisor
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.telemetry.setup import configure_tracing
from gradcam_server.transport import admin
from gradcam_server.transport.grpc_server import FrontEnd
from gradcam_server.transport.http.probe_answer import Probes
from gradcam_server.transport.lifecycle import Phase
from gradcam_server.transport.security.listening import check_listening, check_port_is_free

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


def why_not_alive(supervisor: Supervisor, pool: FrontEndPool) -> str | None:
    """Returns why only a restart of the server helps, or None."""
    if not supervisor.is_guarding:
        return "an engine that is lost would not be started again"
    if not pool.is_supervised:
        return "a front end that is lost would not be started again"
    return None


class _StoppedError(Exception):
    """A signal came before the server was warm."""


class Server:
    """A server, from its start to its end.

    Args:
        config: The settings.
        read_again: Reads the settings again, for a reload.
        spawned: The first engine's process, if it runs already; it has the same settings.
    """

    def __init__(
        self,
        config: ServeConfig,
        read_again: Callable[[], ServeConfig],
        spawned: SpawnedEngine | None,
    ) -> None:
        self._config, self._read_again, self._spawned = config, read_again, spawned
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Serves until SIGTERM or SIGINT, and returns the exit status; see ``serving.run``.

        Raises:
            StartupError: The server cannot start as configured.
        """
        self._stop = asyncio.Event()
        self._metrics = Metrics()
        tracer = configure_tracing(self._config.tracing, __version__)
        config = share(self._config)
        check_listening(config)
        self._front_end = FrontEnd(config, self._metrics, tracer)
        self._lifecycle = self._front_end.lifecycle
        self._pool = FrontEndPool(self._config, self._metrics)
        self._supervisor = Supervisor(
            self._config, self._publish, self._withdraw, self._metrics, self._pool
        )
        self._reloader = Reloader(self._config, self._read_again, self._front_end, self._supervisor)
        self._metrics.watch_ready(lambda: self._lifecycle.phase is Phase.SERVING)
        self._metrics.watch_in_flight(lambda: self._lifecycle.in_work + self._pool.in_work)
        ledger = self._front_end.ledger
        self._metrics.watch_held(lambda state: ledger.held[state] + self._pool.held(state))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        administration: grpc.aio.Server | None = None
        try:
            http_port = await self._listen_http()
            await self._listen(http_port)
            administration = await self._listen_to_admins()
            return await self._serve()
        except _StoppedError:
            logger.info("Stopped before it was warm")
            return 0
        finally:
            await self._front_end.stop()
            if administration is not None:
                await administration.stop(grace=0)
            await self._supervisor.close()
            await asyncio.to_thread(tracer.close)
            await self._pool.close()

    async def _listen_http(self) -> int | None:
        """Listens at once, so that probes are answered while the models warm up."""
        config = self._config
        if config.http_port is None:
            return None
        if config.frontends > 1:
            check_port_is_free(config.http_host, config.http_port)
        probes = Probes(self._metrics.exposition, self._why_not_alive, self._why_not_ready)
        self._pool.probe = probes
        port = await self._front_end.listen_http(config.http_port, probes)
        scheme = "http" if config.tls_certificate is None else "https"
        logger.info("Metrics on %s://%s:%d/metrics", scheme, config.http_host, port)
        if config.ui:
            logger.info("The page is on %s://%s:%d/", scheme, config.http_host, port)
        return port

    def _why_not_alive(self) -> str | None:
        return why_not_alive(self._supervisor, self._pool)

    def _why_not_ready(self) -> str | None:
        phase = self._lifecycle.phase
        return None if phase is Phase.SERVING else phase.value

    async def _listen(self, http_port: int | None) -> None:
        if self._config.frontends > 1:
            check_port_is_free(self._config.host, self._config.port)
        port = await self._front_end.listen(self._config.port)
        logger.info("Listening on %s:%d; warming up", self._config.host, port)
        self._pool.start(port, http_port)

    async def _listen_to_admins(self) -> grpc.aio.Server | None:
        port = self._config.admin_port
        if port is None:
            return None
        service = admin.AdminService(self._reloader.reload)
        return await admin.listen(self._config, port, service, self._front_end.access)

    async def _serve(self) -> int:
        await self._unless_stopped(self._start())
        await self._stop.wait()
        drained = await asyncio.gather(
            self._front_end.drain(), self._pool.drain(self._front_end.force)
        )
        logger.info("Stopped")
        return 0 if all(drained) else 1

    async def _start(self) -> None:
        """Starts the engine; meanwhile waits for the other front ends."""
        starting = asyncio.ensure_future(self._supervisor.start(self._spawned))
        try:
            await self._pool.wait_listening()
            await asyncio.shield(starting)
        finally:
            starting.cancel()
            await asyncio.wait({starting})

    def _publish(self, explainer: Explainer) -> None:
        self._front_end.publish(explainer)
        self._pool.announce()
        self._spawn(self._front_end.tell_health())
        logger.info("Serving %s", ", ".join(model.name for model in explainer.catalog.models))

    def _withdraw(self, seconds: float) -> None:
        self._lifecycle.restart(seconds)
        self._spawn(self._front_end.tell_health())

    async def _unless_stopped(self, work: Coroutine[None, None, _T]) -> _T:
        """Does work; cancels it if a signal comes first."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        waited: set[asyncio.Future[Any]] = {task, stop}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            raise _StoppedError
        return task.result()

    def _on_signal(self, number: int) -> None:
        logger.info("Received %s", signal.Signals(number).name)
        (self._front_end.force if self._stop.is_set() else self._stop).set()

    def _on_hangup(self) -> None:
        logger.info("Received SIGHUP; reloading")
        self._spawn(self._reloader.reload_by_signal())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
