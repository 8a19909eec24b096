"""A replica: the service and its models in one process, behind Ray's proxies.

Ray Serve calls the methods that have the names of the RPCs.
"""

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
from grpc_health.v1 import health_pb2

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server import __version__
from gradcam_server.config.settings import ServeConfig
from gradcam_server.engine.backend import LocalBackend
from gradcam_server.pipeline.budget import max_held_bytes
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.pipeline.ledger import Ledger
from gradcam_server.ray_app.autoscaling import IMAGES
from gradcam_server.ray_app.context import (
    ServeContext,
    StreamEndedError,
    answer_call,
    answer_stream,
)
from gradcam_server.telemetry.logs import configure
from gradcam_server.telemetry.memory import share_heap
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.telemetry.setup import configure_tracing
from gradcam_server.transport.calls import Calls
from gradcam_server.transport.gradcam_v1.service import SERVICE_NAME, ExplanationService
from gradcam_server.transport.lifecycle import Lifecycle

if TYPE_CHECKING:
    from gradcam_server.engine.engine import Engine

logger = logging.getLogger(__name__)


class Replica:
    """Answers ``gradcam.v1.ExplanationService`` and ``grpc.health.v1.Health``.

    Args:
        config: The settings.
        cpus: CPUs that Ray assigned: the number of compute threads, unless the settings have it.

    Raises:
        StartupError: A model or its weights cannot be loaded.
    """

    async def __init__(self, config: ServeConfig, cpus: float = 0) -> None:  # type: ignore[misc]  # Ray awaits it
        configure(config.log_level, config.log_format)
        share_heap()
        if config.compute_threads is None and cpus:
            config = replace(config, compute_threads=max(1, math.floor(cpus)))
        self._watchdog_s = config.watchdog_s
        lifecycle, metrics = Lifecycle(), Metrics()
        tracer = configure_tracing(config.tracing, __version__)
        ledger = Ledger(max_held_bytes(config))
        calls = Calls(lifecycle, metrics, tracer, ledger, config.max_send_s)
        self._service = ExplanationService(config, calls)
        self._backend = LocalBackend(config, await asyncio.to_thread(_warm_engine, config))
        self._explainer = Explainer(config, self._backend, metrics)
        self._service.publish(self._explainer)
        lifecycle.serve()
        names = ", ".join(model.name for model in self._explainer.catalog.models)
        logger.info("Serving %s", names)

    async def ExplainImage(  # noqa: N802
        self, request: pb.ExplainImageRequest, grpc_context: ServeContext
    ) -> pb.ExplainImageResponse:
        """Explains one image."""
        return await answer_call(
            self._service.ExplainImage, request, grpc_context, pb.ExplainImageResponse
        )

    async def StreamExplainImages(  # noqa: N802
        self,
        request_stream: AsyncIterator[pb.StreamExplainImagesRequest],
        grpc_context: ServeContext,
    ) -> AsyncIterator[pb.StreamExplainImagesResponse]:
        """Explains the images of a stream."""
        method = self._service.StreamExplainImages
        async for message in answer_stream(method, request_stream, grpc_context):
            yield message

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, grpc_context: ServeContext
    ) -> pb.ListModelsResponse:
        """Describes all models, without their classes and layers."""
        return await answer_call(
            self._service.ListModels, request, grpc_context, pb.ListModelsResponse
        )

    async def GetModel(  # noqa: N802
        self, request: pb.GetModelRequest, grpc_context: ServeContext
    ) -> pb.GetModelResponse:
        """Describes one model, with its classes and layers."""
        return await answer_call(self._service.GetModel, request, grpc_context, pb.GetModelResponse)

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, grpc_context: ServeContext
    ) -> health_pb2.HealthCheckResponse:
        """Answers SERVING: Ray calls no replica that does not serve."""
        if request.service not in ("", SERVICE_NAME):
            grpc_context.set_code(grpc.StatusCode.NOT_FOUND)
            grpc_context.set_details(f"no service {request.service!r}")
            return health_pb2.HealthCheckResponse()
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, grpc_context: ServeContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Is not implemented: gRPC clients then take the connection as healthy.

        A watch never ends, so each client would count as load of its replica, and delay the
        replica's shutdown.

        Raises:
            StreamEndedError: Always.
        """
        grpc_context.set_code(grpc.StatusCode.UNIMPLEMENTED)
        grpc_context.set_details("health cannot be watched; call Check")
        raise StreamEndedError(f"UNIMPLEMENTED: Watch of {request.service!r}")
        yield  # a stream, as Ray expects

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Reports the images in work to the autoscaling policy."""
        return {IMAGES: self._explainer.in_work}

    async def check_health(self) -> None:
        """Checks that the replica is well; Ray replaces a replica that is not.

        Raises:
            RuntimeError: A batch hangs on the device.
        """
        if self._backend.running_s > self._watchdog_s:
            raise RuntimeError(f"a batch has been running for {self._backend.running_s:.0f} s")


def _warm_engine(config: ServeConfig) -> "Engine":
    from gradcam_server.engine.engine import Engine

    engine = Engine(config)
    engine.warm_up()
    return engine
