"""Adds to Ray Serve's gRPC proxies: ``add_services`` belongs in ``grpc_servicer_functions``.

Ray's proxies lack two things, which are added here so that no client needs to know of Ray: replicas
learn the deadlines of calls, and a call whose replica has died ends with UNAVAILABLE, which clients
retry, instead of Ray's INTERNAL.
"""

import inspect
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from grpc_health.v1 import health_pb2_grpc

from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_server.ray_app.context import REMAINING
from gradcam_server.transport.calls import Metadata

logger = logging.getLogger(__name__)

_Handler: TypeAlias = Callable[[Any, Any], Any]

# ray.exceptions.ActorDiedError and ActorUnavailableError; the proxy gets only their texts.
_LOST = re.compile(r"The actor died|The actor \S* ?is unavailable|died before finishing")
# From the proxy of a cluster on which the application is not deployed yet, or not any more.
_NO_APPLICATION = "RayServeAPIService/ListApplications"


def add_services(servicer: Any, server: Any) -> None:
    """Registers ``gradcam.v1`` and health with a proxy.

    Args:
        servicer: Ray's, which routes all calls to replicas.
        server: Ray's ``gRPCGenericServer``.
    """
    make = getattr(server, "service_handler_factory", None)
    if make is None:
        logger.warning(
            "This version of Ray has no service_handler_factory: calls of lost replicas fail"
        )
    else:
        server.service_handler_factory = lambda **method: _retryable(make(**method))
    try:
        pb_grpc.add_ExplanationServiceServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    finally:
        if make is not None:
            server.service_handler_factory = make


class ProxyContext:
    """The context of a call in the proxy; all other methods are gRPC's.

    Args:
        context: The call's ``grpc.aio.ServicerContext``.
    """

    def __init__(self, context: Any) -> None:
        self._context = context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def invocation_metadata(self) -> Metadata:
        """Returns the metadata that the client sent, and the remaining time."""
        sent = [pair for pair in self._context.invocation_metadata() or () if pair[0] != REMAINING]
        remaining_s = self._context.time_remaining()
        if remaining_s is None:
            return tuple(sent)
        return (*sent, (REMAINING, str(round(remaining_s * 1000))))

    def settle(self) -> None:
        """Replaces the status of a failure that may succeed another time by UNAVAILABLE."""
        code, details = self._context.code(), self._context.details() or ""
        if isinstance(details, bytes):
            details = details.decode("utf-8", "replace")
        if _is(code, grpc.StatusCode.INTERNAL) and _LOST.search(details):
            self._refuse("the replica that answered was lost; try again")
        elif _is(code, grpc.StatusCode.NOT_FOUND) and _NO_APPLICATION in details:
            self._refuse("the application is not deployed, or not yet")

    def _refuse(self, message: str) -> None:
        self._context.set_code(grpc.StatusCode.UNAVAILABLE)
        self._context.set_details(message)


def _is(code: Any, wanted: grpc.StatusCode) -> bool:
    return code in (wanted, wanted.value[0])


def _retryable(handler: _Handler) -> _Handler:
    """Wraps a handler of Ray in one of the same kind, by which gRPC chooses how to call it."""
    if inspect.isasyncgenfunction(handler):

        async def answers(request: Any, context: Any) -> AsyncIterator[Any]:
            call = ProxyContext(context)
            async with aclosing(handler(request, call)) as messages:
                async for message in messages:
                    yield message
            call.settle()

        return answers

    async def answer(request: Any, context: Any) -> Any:
        call = ProxyContext(context)
        message = await handler(request, call)
        call.settle()
        return message

    return answer
