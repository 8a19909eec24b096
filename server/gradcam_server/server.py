"""The server process: bind -> start the engine -> SERVING -> drain -> close."""

import asyncio
import logging
import signal
from collections.abc import Callable, Coroutine
from contextlib import nullcontext, suppress
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_server import __version__, admin, tracing
from gradcam_server.calls import Calls
from gradcam_server.config import ServeConfig
from gradcam_server.errors import ExplanationServerError, NotReadyError, ReloadError, StartupError
from gradcam_server.explainer import Explainer
from gradcam_server.http import HttpServer
from gradcam_server.lifecycle import Lifecycle, Phase
from gradcam_server.memory import share_heap
from gradcam_server.metrics import Metrics
from gradcam_server.native_lines import logged_as_json
from gradcam_server.open_inference import service as open_inference
from gradcam_server.security.access import Access, AccessInterceptor, read_token_file
from gradcam_server.security.listening import check_listening, connection_options
from gradcam_server.security.tls import server_credentials
from gradcam_server.service import SERVICE_NAME, ExplanationService
from gradcam_server.supervisor import Supervisor

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_FLUSH_S = 2.0
_GOAWAY_S = 0.1
_HEALTH_NAMES = ("", SERVICE_NAME, open_inference.SERVICE_NAME)

# What a reload cannot change, because it is the listener's or the whole process's.
_FIXED = (
    *("host", "port", "admin_port", "allow_insecure"),
    *("tls_certificate", "tls_key", "tls_client_ca"),
    *("max_connection_streams", "max_connection_age_s"),
    *("max_message_bytes", "max_stream_in_flight", "drain_timeout_s"),
)


def run(config: ServeConfig, read_again: Callable[[], ServeConfig]) -> int:
    """Serves until SIGTERM or SIGINT. A second signal ends the drain at once.

    SIGHUP loads the models anew beside the old ones, and replaces them when they are warm.

    Args:
        config: The settings.
        read_again: Reads them again for a reload.

    Returns:
        The exit status: 0 after a complete drain, 1 if requests had to be cut off.

    Raises:
        StartupError: The server cannot start as configured.
    """
    share_heap()
    json = config.log_format == "json"
    with logged_as_json(config.log_level) if json else nullcontext():
        return asyncio.run(_Server(config, read_again).run())


class _StoppedError(Exception):
    """A signal came before the server was warm."""


class _Server:
    def __init__(self, config: ServeConfig, read_again: Callable[[], ServeConfig]) -> None:
        self._config, self._read_again = config, read_again
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        self._lifecycle = Lifecycle()
        self._stop, self._force = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        self._metrics = Metrics()
        self._metrics.watch_ready(lambda: self._lifecycle.phase is Phase.SERVING)
        self._metrics.watch_in_flight(lambda: self._lifecycle.in_work)
        tracer = tracing.configure(self._config.tracing, __version__)
        calls = Calls(self._lifecycle, self._metrics, tracer)
        self._service = ExplanationService(self._config, calls)
        self._inference = open_inference.InferenceService(self._config, calls)
        self._health = health.aio.HealthServicer()
        self._supervisor = Supervisor(self._config, self._publish, self._withdraw, self._metrics)
        check_listening(self._config)
        self._access = Access(self._config, self._metrics.token_request, self._metrics.rejected)
        http = self._start_http()
        server = await self._listen()
        administration: grpc.aio.Server | None = None
        try:
            administration = await self._listen_to_admins()
            return await self._serve(server)
        except _StoppedError:
            logger.info("Stopped before it was warm")
            return 0
        finally:
            await server.stop(grace=0)
            if administration is not None:
                await administration.stop(grace=0)
            await self._supervisor.close()
            await asyncio.to_thread(tracer.close)
            if http is not None:
                await asyncio.to_thread(http.close)

    def _start_http(self) -> HttpServer | None:
        if self._config.http_port is None:
            return None
        http = HttpServer(
            self._config.http_host,
            self._config.http_port,
            self._metrics.exposition,
            self._why_not_ready,
        )
        http.start()
        return http

    def _why_not_ready(self) -> str | None:
        phase = self._lifecycle.phase
        return None if phase is Phase.SERVING else phase.value

    async def _listen(self) -> grpc.aio.Server:
        config = self._config
        credentials = server_credentials(config)
        server = grpc.aio.server(
            interceptors=(AccessInterceptor(self._access),),
            options=(
                *connection_options(config),
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Otherwise a second server on the port would take half of the requests.
                ("grpc.so_reuseport", 0),
            ),
        )
        pb_grpc.add_ExplanationServiceServicer_to_server(self._service, server)
        open_inference.add_to_server(self._inference, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*_HEALTH_NAMES[1:], health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        await self._tell_health()
        address = f"{config.host}:{config.port}"
        try:
            port = (
                server.add_insecure_port(address)
                if credentials is None
                else server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {address}: is the port in use?") from error
        await server.start()
        logger.info("Listening on %s:%d; warming up", config.host, port)
        return server

    async def _listen_to_admins(self) -> grpc.aio.Server | None:
        port = self._config.admin_port
        if port is None:
            return None
        service = admin.AdminService(self._reload)
        return await admin.listen(self._config, port, service, self._access)

    async def _serve(self, server: grpc.aio.Server) -> int:
        await self._unless_stopped(self._supervisor.start())
        await self._stop.wait()
        drained = await self._drain(server)
        return 0 if drained else 1

    def _publish(self, explainer: Explainer) -> None:
        self._service.publish(explainer)
        self._inference.publish(explainer)
        self._lifecycle.serve()
        self._spawn(self._tell_health())
        logger.info("Serving %s", ", ".join(model.name for model in explainer.models()))

    def _withdraw(self, seconds: float) -> None:
        self._lifecycle.restart(seconds)
        self._spawn(self._tell_health())

    async def _drain(self, server: grpc.aio.Server) -> bool:
        self._lifecycle.drain()
        await self._tell_health()
        logger.info("Draining %d requests", self._lifecycle.in_work)
        idle = asyncio.ensure_future(self._lifecycle.wait_idle())
        force = asyncio.ensure_future(self._force.wait())
        await asyncio.wait(
            {idle, force},
            timeout=self._config.drain_timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        drained = idle.done()
        idle.cancel()
        force.cancel()
        if not drained:
            logger.warning("Cutting off %d requests", self._lifecycle.in_work)
            await server.stop(grace=0)
        else:
            await self._lifecycle.hold_refusals()
            # The last answers are still on their way out; health watchers never end.
            stopping = asyncio.ensure_future(server.stop(grace=_FLUSH_S))
            await asyncio.sleep(_GOAWAY_S)
            self._lifecycle.release_refusals()
            await stopping
        logger.info("Stopped")
        return drained

    async def _unless_stopped(self, work: Coroutine[None, None, _T]) -> _T:
        """Does work; gives it up if a signal comes first."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        waited: set[asyncio.Future[Any]] = {task, stop}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
            raise _StoppedError
        return task.result()

    async def _tell_health(self) -> None:
        states = health_pb2.HealthCheckResponse
        serving = self._lifecycle.phase is Phase.SERVING
        for name in _HEALTH_NAMES:
            await self._health.set(name, states.SERVING if serving else states.NOT_SERVING)

    def _on_signal(self, number: int) -> None:
        logger.info("Received %s", signal.Signals(number).name)
        (self._force if self._stop.is_set() else self._stop).set()

    def _on_hangup(self) -> None:
        logger.info("Received SIGHUP; reloading")
        self._spawn(self._reload_unasked())

    async def _reload_unasked(self) -> None:
        with suppress(ExplanationServerError):  # it is in the log
            await self._reload()

    async def _reload(self) -> admin.Reloaded:
        """Replaces the models and tokens by what the settings say now.

        Raises:
            ReloadError: That cannot be served. The old ones go on.
        """
        try:
            # While an engine is started again, what the settings say now may be the remedy.
            if self._lifecycle.phase is not Phase.RESTARTING:
                self._lifecycle.check()
            config = self._read_again()
            changed = [
                name for name in _FIXED if getattr(config, name) != getattr(self._config, name)
            ]
            if changed:
                logger.warning("Not changed before a restart: %s", ", ".join(changed))
            tokens = read_token_file(config)
            await self._supervisor.reload(config)
        except ExplanationServerError as error:
            logger.error("Reloading failed, the old models go on: %s", error)  # noqa: TRY400
            if isinstance(error, NotReadyError):
                raise
            raise ReloadError(f"reloading failed, the old models go on: {error}") from error
        self._access.configure(config, tokens)
        logger.info("Reloaded")
        return admin.Reloaded(self._service.models(), changed)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
