"""Fairness among the callers of a gRPC port, with an engine that answers at once."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradcam.inference import grpc_service_pb2 as inference_pb
from gradcam.inference import grpc_service_pb2_grpc as inference_pb_grpc
from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphOutput
from gradcam_server.domain.schedule import Answer, OnDispatch, Urgency
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.telemetry.tracing import NO_TRACER
from gradcam_server.transport.grpc_server import FrontEnd
from gradcam_server.transport.security import receiving
from gradcam_server.transport.security.receiving import MIN_LARGE_BYTES, Receiving
from gradcam_server.transport.security.tokens import Token, hash_token, to_toml
from support.instant import InstantBackend

pytestmark = pytest.mark.usefixtures("beside_tritonclient")


class CallerBackend(InstantBackend):
    """Records the callers for which it computes."""

    def __init__(self) -> None:
        super().__init__()
        self.callers: list[str] = []

    async def compute(
        self,
        key: GraphKey,
        item: GraphItem,
        on_dispatch: OnDispatch | None = None,
        urgency: Urgency = Urgency(),  # noqa: B008 - it is frozen
    ) -> Answer[GraphOutput]:
        self.callers.append(urgency.caller)
        return await super().compute(key, item, on_dispatch, urgency)


@asynccontextmanager
async def serving(config: ServeConfig, backend: InstantBackend) -> AsyncIterator[int]:
    """Yields the port of a front end."""
    metrics = Metrics()
    front_end = FrontEnd(config, metrics, NO_TRACER)
    explainer = Explainer(config, backend, metrics)
    front_end.publish(explainer)
    try:
        yield await front_end.listen(0)
    finally:
        await front_end.stop()
        await explainer.retire()


def connect(port: int) -> grpc.aio.Channel:
    """Returns a channel that has a connection of its own."""
    options = (("grpc.use_local_subchannel_pool", 1),)
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options)


def large_image(extension: str) -> bytes:
    """Returns a file of 3 megapixels with some detail."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    pixels = cv2.resize(noise, (2100, 1500), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(extension, pixels)[1].tobytes()


@pytest.mark.parametrize(
    ("extension", "floods", "each"), [(".jpg", 4, 20), (".jpg", 1, 60), (".webp", 4, 10)]
)
async def test_small_images_do_not_wait_for_the_large_ones_of_others(
    cat_jpeg: bytes, extension: str, floods: int, each: int
) -> None:
    """A caller of small files has all its answers while most large files of others wait."""
    large = pb.ExplainImageRequest(encoded_image=large_image(extension))
    small = pb.ExplainImageRequest(encoded_image=cat_jpeg)
    config = ServeConfig(worker_threads=2)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(config, InstantBackend()))
        channels = [await stack.enter_async_context(connect(port)) for _ in range(floods + 1)]
        stubs = [pb_grpc.ExplanationServiceStub(channel) for channel in channels]
        await stubs[-1].ExplainImage(small)
        flood = [
            asyncio.ensure_future(stub.ExplainImage(large))
            for stub in stubs[:-1]
            for _ in range(each)
        ]
        await asyncio.wait(flood, return_when=asyncio.FIRST_COMPLETED)  # they are in work
        for _ in range(3):
            await stubs[-1].ExplainImage(small)
        answered = sum(call.done() for call in flood)
        for call in flood:
            call.cancel()
        await asyncio.gather(*flood, return_exceptions=True)
    assert answered < len(flood) / 2


@pytest.mark.parametrize("how", ["unary", "stream", "open inference", "another service"])
async def test_large_messages_leave_the_event_loop_to_others(
    cat_jpeg: bytes, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While another caller is active they are read one by one, with pauses, in any kind of call."""
    floods, large_sizes = 4, list[int]()
    received = Receiving.received

    def count(self: Receiving, caller: str, size: int) -> None:
        received(self, caller, size)
        if size >= MIN_LARGE_BYTES:
            large_sizes.append(size)

    monkeypatch.setattr(Receiving, "received", count)
    monkeypatch.setattr(receiving, "_S_PER_BYTE", 4e-8)  # of a slow machine
    padded = cat_jpeg + bytes(MIN_LARGE_BYTES)

    async def flood(channel: grpc.aio.Channel) -> None:
        stub = pb_grpc.ExplanationServiceStub(channel)
        image = pb.ExplainImageRequest(encoded_image=padded)
        while True:
            match how:
                case "unary":
                    await stub.ExplainImage(image)
                case "stream":
                    item = pb.StreamExplainImagesRequest(request=image)
                    async for _ in stub.StreamExplainImages(itertools.repeat(item)):
                        pass
                case "open inference":
                    tensor = inference_pb.ModelInferRequest.InferInputTensor(
                        name="encoded_image", datatype="BYTES", shape=[1]
                    )
                    tensor.contents.bytes_contents.append(padded)
                    infer = inference_pb_grpc.GRPCInferenceServiceStub(channel).ModelInfer
                    await infer(inference_pb.ModelInferRequest(inputs=[tensor]))
                case _:
                    health: Any = health_pb2_grpc.HealthStub(channel)
                    with suppress(grpc.aio.AioRpcError):
                        await health.Check(
                            health_pb2.HealthCheckRequest(service="x" * MIN_LARGE_BYTES)
                        )

    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(serving(ServeConfig(), InstantBackend()))
        channels = [await stack.enter_async_context(connect(port)) for _ in range(floods + 1)]
        ask = pb_grpc.ExplanationServiceStub(channels[-1]).ExplainImage
        small = pb.ExplainImageRequest(encoded_image=cat_jpeg)
        await ask(small)
        tasks = [asyncio.create_task(flood(channel)) for channel in channels[:-1]]
        async with asyncio.timeout(30):
            while len(large_sizes) < floods:  # noqa: ASYNC110 - of the server, which tells nobody
                await asyncio.sleep(0.01)
        before, started = len(large_sizes), perf_counter()
        for _ in range(30):
            await ask(small)
        seconds = perf_counter() - started
        during = len(large_sizes) - before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert during <= 1 + floods + seconds / receiving.turn_s(MIN_LARGE_BYTES)


async def test_without_tokens_a_connection_is_a_caller(cat_jpeg: bytes) -> None:
    """Each connection has a share of its own, for calls and for streams."""
    backend = CallerBackend()
    request = pb.ExplainImageRequest(encoded_image=cat_jpeg)
    async with (
        serving(ServeConfig(), backend) as port,
        connect(port) as one,
        connect(port) as other,
    ):
        for channel in (one, other, one):
            await pb_grpc.ExplanationServiceStub(channel).ExplainImage(request)
        message = pb.StreamExplainImagesRequest(correlation_id="1", request=request)
        stream = pb_grpc.ExplanationServiceStub(other).StreamExplainImages(iter([message]))
        assert [answer async for answer in stream]
    first, second, again, streamed = backend.callers
    assert first == again != second == streamed
    assert "" not in backend.callers


async def test_with_tokens_the_token_is_the_caller(cat_jpeg: bytes, tmp_path: Path) -> None:
    """One holder of a token has one share, however many connections it opens."""
    path = tmp_path / "tokens.toml"
    path.write_text("".join(to_toml(Token(one, (hash_token(one),))) for one in ("alice", "bob")))
    backend = CallerBackend()
    request = pb.ExplainImageRequest(encoded_image=cat_jpeg)
    async with (
        serving(ServeConfig(token_file=str(path)), backend) as port,
        connect(port) as first,
        connect(port) as second,
    ):
        for channel, token in ((first, "alice"), (second, "alice"), (second, "bob")):
            metadata = (("authorization", f"Bearer {token}"),)
            await pb_grpc.ExplanationServiceStub(channel).ExplainImage(request, metadata=metadata)
    assert backend.callers == ["alice", "alice", "bob"]
