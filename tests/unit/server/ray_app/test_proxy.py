"""The additions to Ray Serve's proxies, with a gRPC server of our own in place of Ray's."""

from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_server.ray_app.context import REMAINING
from gradcam_server.ray_app.proxy import add_services

DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: ServeReplica"
UNAVAILABLE = "The actor 2ab is unavailable: RpcError. The task may or may not have been executed"
NO_APPLICATION = (
    "Application metadata not set. Ping /ray.serve.RayServeAPIService/ListApplications for "
    "available applications."
)


class Proxy:
    """Answers all methods with handlers of its factory, and a status, as Ray's proxy does.

    Attributes:
        status: What each call ends with.
        metadata: What the latest call came with.
    """

    def __init__(self) -> None:
        self.server = grpc.aio.server()
        self.service_handler_factory: Any = self.make
        self.status: tuple[grpc.StatusCode, str] | None = None
        self.metadata: dict[str, str | bytes] = {}

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        (handler,) = handlers
        for method, one in handler._method_handlers.items():
            of_stream = {True: "stream", False: "unary"}
            kind = f"{of_stream[one.request_streaming]}_{of_stream[one.response_streaming]}"
            made = self.service_handler_factory(service_method=method, streaming_type=kind)
            replaced = one._replace(response_serializer=None, **{kind: made})
            handler._method_handlers[method] = replaced
        self.server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, *_: object) -> None:
        """Does nothing: the generic handlers are enough."""

    def make(self, service_method: str, streaming_type: str) -> Any:
        async def unary(request: object, context: Any) -> bytes:
            self._end(context)
            return b""

        async def stream(request: object, context: Any) -> AsyncIterator[bytes]:
            yield b""
            self._end(context)

        return stream if streaming_type.endswith("stream") else unary

    def _end(self, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        if self.status is not None:
            context.set_code(self.status[0])
            context.set_details(self.status[1])


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    proxy = Proxy()
    add_services(Mock(), proxy)
    assert proxy.service_handler_factory == proxy.make, "Ray's own services are its own"
    yield proxy
    await proxy.server.stop(0)


@pytest.fixture
async def channel(proxy: Proxy) -> AsyncIterator[grpc.aio.Channel]:
    port = proxy.server.add_insecure_port("127.0.0.1:0")
    await proxy.server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel


async def unary(channel: grpc.aio.Channel, **options: Any) -> None:
    request = pb.ExplainImageRequest()
    await pb_grpc.ExplanationServiceStub(channel).ExplainImage(request, **options)


async def stream(channel: grpc.aio.Channel, **options: Any) -> None:
    requests = [pb.StreamExplainImagesRequest()]
    async for _ in pb_grpc.ExplanationServiceStub(channel).StreamExplainImages(requests, **options):
        pass


async def test_all_our_services_are_there(channel: grpc.aio.Channel) -> None:
    """Both gradcam.v1 and health are registered."""
    await unary(channel)
    await stream(channel)
    health: Any = health_pb2_grpc.HealthStub(channel)
    await health.Check(health_pb2.HealthCheckRequest())


@pytest.mark.parametrize("call", [unary, stream])
async def test_replicas_learn_the_deadline(
    proxy: Proxy, channel: grpc.aio.Channel, call: Any
) -> None:
    """Only the proxy's metadata counts; the same metadata from a client is dropped."""
    await call(channel, timeout=30, metadata=((REMAINING, "1"), ("x-request-id", "mine")))
    assert 25_000 < int(proxy.metadata[REMAINING]) <= 31_000
    assert proxy.metadata["x-request-id"] == "mine"
    await call(channel, metadata=((REMAINING, "1"),))
    assert REMAINING not in proxy.metadata


@pytest.mark.parametrize("call", [unary, stream])
@pytest.mark.parametrize(
    ("code", "details", "expected", "said"),
    [
        ("INTERNAL", DIED, "UNAVAILABLE", "the replica that answered was lost"),
        ("INTERNAL", UNAVAILABLE, "UNAVAILABLE", "the replica that answered was lost"),
        ("NOT_FOUND", NO_APPLICATION, "UNAVAILABLE", "not deployed, or not yet"),
        ("INTERNAL", "internal error; the log says more", "INTERNAL", "internal error"),
        ("NOT_FOUND", "unknown model 'The actor died'", "NOT_FOUND", "unknown model"),
        ("INVALID_ARGUMENT", DIED, "INVALID_ARGUMENT", "The actor died"),
    ],
)
async def test_what_may_succeed_later_is_unavailable(
    proxy: Proxy,
    channel: grpc.aio.Channel,
    call: Any,
    code: str,
    details: str,
    expected: str,
    said: str,
) -> None:
    """A lost replica and a missing application become UNAVAILABLE; other statuses stay."""
    proxy.status = (grpc.StatusCode[code], details)
    with pytest.raises(grpc.aio.AioRpcError, match=said) as caught:
        await call(channel)
    assert caught.value.code().name == expected


async def test_a_proxy_that_is_built_otherwise_gets_the_services_at_least() -> None:
    """A later Ray may have no factory for handlers."""
    server = Mock(spec=["add_generic_rpc_handlers", "add_registered_method_handlers"])
    add_services(Mock(), server)
    assert server.add_generic_rpc_handlers.call_count == 2
