"""The gRPC service ``gradcam.admin.v1.AdminService``, on a port of its own."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from gradcam.admin.v1 import admin_service_pb2 as pb
from gradcam.admin.v1 import admin_service_pb2_grpc as pb_grpc
from gradcam.v1 import explanation_service_pb2 as gradcam_pb
from gradcam_server.config.settings import ServeConfig
from gradcam_server.errors import ExplanationServerError, StartupError
from gradcam_server.transport.security.access import Access, AccessInterceptor
from gradcam_server.transport.security.listening import connection_options
from gradcam_server.transport.status import abort, to_status

logger = logging.getLogger(__name__)

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["AdminService"].full_name

_HOST = "127.0.0.1"
_MAX_MESSAGE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Reloaded:
    """The result of a reload.

    Attributes:
        models: The models that are served now.
        unchanged_settings: Settings that have changed but need a restart.
    """

    models: Sequence[gradcam_pb.Model]
    unchanged_settings: Sequence[str]


class AdminService(pb_grpc.AdminServiceServicer):
    """``gradcam.admin.v1.AdminService``.

    Args:
        reload: Replaces the served models.
    """

    def __init__(self, reload: Callable[[], Coroutine[None, None, Reloaded]]) -> None:
        self._reload = reload
        self._tasks: set[asyncio.Task[Reloaded]] = set()

    async def Reload(self, _: pb.ReloadRequest, context: Any) -> pb.ReloadResponse:  # noqa: N802
        task = asyncio.create_task(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._done)
        try:
            # A caller who leaves does not stop a reload half-way.
            reloaded = await asyncio.shield(task)
        except Exception as error:  # noqa: BLE001 - one table turns all into codes
            await abort(context, to_status(error))
        return pb.ReloadResponse(
            models=reloaded.models, unchanged_settings=reloaded.unchanged_settings
        )

    def _done(self, task: asyncio.Task[Reloaded]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, ExplanationServerError):
            logger.error("A reload failed", exc_info=error)


async def listen(
    config: ServeConfig, port: int, service: AdminService, access: Access
) -> grpc.aio.Server:
    """Serves the administration on loopback.

    Args:
        config: The settings.
        port: The port; 0 picks a free port.
        service: Answers the calls.
        access: Decides who may call.

    Raises:
        StartupError: The port is in use.
    """
    server = grpc.aio.server(
        interceptors=(AccessInterceptor(access, admin=True),),
        options=(
            *connection_options(config),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.so_reuseport", 0),
        ),
    )
    pb_grpc.add_AdminServiceServicer_to_server(service, server)
    address = f"{_HOST}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise StartupError(f"cannot listen on {address}: is --admin-port in use?") from error
    await server.start()
    logger.info("Administered on %s:%d", _HOST, bound)
    return server
