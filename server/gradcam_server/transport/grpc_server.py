"""The ports of one process, gRPC's and HTTP's: bind, answer, report health, drain, close."""

import asyncio
import logging
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import StartupError
from gradcam_server.pipeline.budget import max_held_bytes
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.pipeline.ledger import Ledger
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.telemetry.tracing import Tracer
from gradcam_server.transport.calls import Calls
from gradcam_server.transport.gradcam_v1.service import SERVICE_NAME, ExplanationService
from gradcam_server.transport.http.probe_answer import Probe
from gradcam_server.transport.lifecycle import Lifecycle, Phase
from gradcam_server.transport.open_inference import service as open_inference
from gradcam_server.transport.security.access import Access, AccessInterceptor
from gradcam_server.transport.security.listening import connection_options
from gradcam_server.transport.security.tls import server_credentials, tls_context
from gradcam_server.transport.sending import hide_lost_clients

if TYPE_CHECKING:
    from gradcam_server.transport.http.server import HttpPort

logger = logging.getLogger(__name__)

_FLUSH_S = 2.0
_GOAWAY_S = 0.1
_HEALTH_NAMES = ("", SERVICE_NAME, open_inference.SERVICE_NAME)


class FrontEnd:
    """The services on the gRPC port of one process.

    Args:
        config: The settings, with this process's part of shared limits (``config.shares``).
        metrics: Counts the calls.
        tracer: Traces the calls.

    Attributes:
        access: Decides who may call.
        force: Ends a drain at once when it is set.
        ledger: Counts the memory that requests hold.
        lifecycle: Decides whether requests are admitted.

    Raises:
        StartupError: The token file cannot be used.
    """

    def __init__(self, config: ServeConfig, metrics: Metrics, tracer: Tracer) -> None:
        self._config = config
        self.lifecycle, self.force = Lifecycle(), asyncio.Event()
        self.ledger = Ledger(max_held_bytes(config))
        self._calls = calls = Calls(self.lifecycle, metrics, tracer, self.ledger, config.max_send_s)
        self._service = ExplanationService(config, calls)
        self._inference = open_inference.InferenceService(config, calls)
        self._health = health.aio.HealthServicer()
        self.access = Access(config, metrics.token_request, metrics.rejected)
        self._server: grpc.aio.Server | None = None
        self._http: HttpPort | None = None

    async def listen(self, port: int) -> int:
        """Binds the port, and answers calls from now on.

        Args:
            port: The port; 0 picks a free port.

        Returns:
            The port.

        Raises:
            StartupError: The port is in use, or the TLS files cannot be used.
        """
        config = self._config
        hide_lost_clients()
        credentials = server_credentials(config)
        server = grpc.aio.server(
            interceptors=(AccessInterceptor(self.access),),
            options=(
                *connection_options(config),
                ("grpc.max_receive_message_length", config.max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # Otherwise a second server could share the port and take half of the requests.
                ("grpc.so_reuseport", int(config.frontends > 1)),
            ),
        )
        self._service.add_to_server(server)
        open_inference.add_to_server(self._inference, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*_HEALTH_NAMES[1:], health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        await self.tell_health()
        address = f"{config.host}:{port}"
        try:
            port = (
                server.add_insecure_port(address)
                if credentials is None
                else server.add_secure_port(address, credentials)
            )
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {address}: is the port in use?") from error
        await server.start()
        self._server = server
        return port

    async def listen_http(self, port: int, probe: Probe) -> int:
        """Binds the HTTP port, and answers requests from now on.

        Args:
            port: The port; 0 picks a free port.
            probe: Answers /metrics, /healthz and /readyz.

        Returns:
            The port.

        Raises:
            StartupError: The port is in use, or the TLS files cannot be used.
        """
        # Only here: a server without this port does not wait for these imports.
        from gradcam_server.transport.http.app import make_app
        from gradcam_server.transport.http.protocol import ConnectionLimits
        from gradcam_server.transport.http.server import HttpPort

        config = self._config
        app = make_app(config, self.access, self._calls, self._service, probe)
        limits = ConnectionLimits(config.http_max_connections, config.max_connection_age_s)
        http = HttpPort(app, limits, tls_context(config))
        bound = await http.listen(config.http_host, port, shared=config.frontends > 1)
        self._http = http
        return bound

    def models(self) -> list[pb.Model]:
        """Describes the served models, without their classes and layers."""
        return self._service.models()

    def publish(self, explainer: Explainer) -> None:
        """Admits requests, which this explainer answers. ``tell_health`` reports it to clients."""
        self._service.publish(explainer)
        self._inference.publish(explainer)
        self.lifecycle.serve()

    async def tell_health(self) -> None:
        """Reports over grpc.health.v1 whether requests are admitted."""
        states = health_pb2.HealthCheckResponse
        serving = self.lifecycle.phase is Phase.SERVING
        for name in _HEALTH_NAMES:
            await self._health.set(name, states.SERVING if serving else states.NOT_SERVING)

    async def drain(self) -> bool:
        """Refuses new requests, and stops when all requests in work are answered.

        Returns:
            Whether all are answered before ``drain_timeout_s`` is over or ``force`` is set.
        """
        self.lifecycle.drain()
        await self.tell_health()
        logger.info("Draining %d requests", self.lifecycle.in_work)
        idle = asyncio.ensure_future(self.lifecycle.wait_idle())
        force = asyncio.ensure_future(self.force.wait())
        await asyncio.wait(
            {idle, force},
            timeout=self._config.drain_timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        drained = idle.done()
        idle.cancel()
        force.cancel()
        if not drained:
            logger.warning("Cutting off %d requests", self.lifecycle.in_work)
            await self._stop(0)
        elif self._server is not None:
            await self.lifecycle.hold_refusals()
            # The last answers are still being sent; health watches never end.
            stopping = asyncio.ensure_future(self._server.stop(grace=_FLUSH_S))
            await asyncio.sleep(_GOAWAY_S)
            self.lifecycle.release_refusals()
            await stopping
        return drained

    async def stop(self) -> None:
        """Ends all calls at once, and closes the ports. Answers of HTTP may still be sent."""
        await self._stop(_FLUSH_S)

    async def _stop(self, http_grace_s: float) -> None:
        if self._server is not None:
            await self._server.stop(grace=0)
        if self._http is not None:
            await self._http.close(http_grace_s)
