"""The server process: bind -> load -> warm -> SERVING -> drain -> close."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_server.config import ServeConfig
from gradcam_server.errors import StartupError
from gradcam_server.lifecycle import Lifecycle
from gradcam_server.service import SERVICE_NAME, ExplanationService

if TYPE_CHECKING:
    from gradcam_server.engine import Engine

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

_FLUSH_S = 2.0
_GOAWAY_S = 0.1
_HEALTH_NAMES = ("", SERVICE_NAME)


def run(config: ServeConfig) -> int:
    """Serves until SIGTERM or SIGINT. A second signal ends the drain at once.

    Args:
        config: The settings.

    Returns:
        The exit status: 0 after a complete drain, 1 if requests had to be cut off.

    Raises:
        StartupError: The server cannot start as configured.
    """
    return asyncio.run(_Server(config).run())


class _Server:
    def __init__(self, config: ServeConfig) -> None:
        self._config = config
        self._signals = 0

    async def run(self) -> int:
        self._lifecycle = Lifecycle()
        self._stop, self._force = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)
        self._service = ExplanationService(self._config, self._lifecycle)
        self._health = health.aio.HealthServicer()
        server = await self._listen()
        try:
            return await self._serve(server)
        finally:
            await server.stop(grace=0)

    async def _listen(self) -> grpc.aio.Server:
        config = self._config
        server = grpc.aio.server(
            options=(
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Otherwise a second server on the port would take half of the requests.
                ("grpc.so_reuseport", 0),
            )
        )
        pb_grpc.add_ExplanationServiceServicer_to_server(self._service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        await self._set_health(serving=False)
        address = f"{config.host}:{config.port}"
        try:
            port = server.add_insecure_port(address)
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {address}: is the port in use?") from error
        await server.start()
        logger.info("Listening on %s:%d; warming up", config.host, port)
        return server

    async def _serve(self, server: grpc.aio.Server) -> int:
        engine = await self._unless_stopped(lambda: _warm_engine(self._config))
        from gradcam_server.explainer import Explainer

        explainer = Explainer(self._config, engine)
        self._service.start(explainer)
        await self._set_health(serving=True)
        logger.info("Serving %s", ", ".join(engine.models))
        await self._stop.wait()
        drained = await self._drain(server)
        await explainer.close()
        return 0 if drained else 1

    async def _drain(self, server: grpc.aio.Server) -> bool:
        self._lifecycle.drain()
        await self._set_health(serving=False)
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

    async def _unless_stopped(self, work: Callable[[], _T]) -> _T:
        """Runs work on a thread; ends the process if a signal comes first."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_T] = loop.create_future()

        def run() -> None:
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001 - handed to the loop
                loop.call_soon_threadsafe(future.set_exception, error)
            else:
                loop.call_soon_threadsafe(future.set_result, result)

        threading.Thread(target=run, name="warm-up", daemon=True).start()
        stop = asyncio.ensure_future(self._stop.wait())
        waited: set[asyncio.Future[Any]] = {future, stop}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not future.done():
            logger.info("Stopped before it was warm")
            # TensorFlow cannot be interrupted while it compiles, and crashes an
            # interpreter that ends around it. No request was let in yet.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        stop.cancel()
        return future.result()

    async def _set_health(self, *, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        status = states.SERVING if serving else states.NOT_SERVING
        for name in _HEALTH_NAMES:
            await self._health.set(name, status)

    def _on_signal(self, number: int) -> None:
        logger.info("Received %s", signal.Signals(number).name)
        (self._force if self._stop.is_set() else self._stop).set()


def _warm_engine(config: ServeConfig) -> Engine:
    from gradcam_server.engine import Engine

    engine = Engine(config)
    engine.warm_up()
    return engine
