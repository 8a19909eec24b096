"""The memory that calls hold, over a gRPC port with an engine that answers at once."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gradcam.inference import grpc_service_pb2 as inference_pb
from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_client import ImageArray, Raw, build_request
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.requests import ExplainRequest
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.telemetry import tracing
from gradcam_server.telemetry.memory import resident_bytes
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.transport.grpc_server import FrontEnd
from support.instant import InstantBackend
from support.unread import UnreadCalls

UNARY = "/gradcam.v1.ExplanationService/ExplainImage"
MAX_HELD = 48 << 20


class World:
    """A front end on a port."""

    def __init__(self) -> None:
        self.config = ServeConfig(max_held_bytes=MAX_HELD)
        self.metrics = Metrics()
        self.front_end = FrontEnd(self.config, self.metrics, tracing.NO_TRACER)
        self.metrics.watch_held(self.front_end.ledger.held.__getitem__)
        self.explainer = Explainer(self.config, InstantBackend(), self.metrics)
        self.address = ""

    @property
    def held(self) -> int:
        return self.front_end.ledger.total

    def answered(self, code: str) -> int:
        """Returns the number of calls of ExplainImage that have ended with a code."""
        return sum(
            round(sample.value)
            for metric in self.metrics.registry.collect()
            for sample in metric.samples
            if sample.name == "gradcam_requests_total"
            and (sample.labels["rpc"], sample.labels["code"]) == ("ExplainImage", code)
        )

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not holds():  # noqa: ASYNC110 - of the server, which tells nobody
                await asyncio.sleep(0.01)


@pytest.fixture
async def world(beside_tritonclient: None) -> AsyncIterator[World]:
    world = World()
    world.address = f"127.0.0.1:{await world.front_end.listen(0)}"
    world.front_end.publish(world.explainer)
    yield world
    await world.front_end.stop()
    await world.explainer.close()


@pytest.fixture
async def channel(world: World) -> AsyncIterator[grpc.aio.Channel]:
    options = (("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    async with grpc.aio.insecure_channel(world.address, options) as channel:
        yield channel


def png(side: int) -> bytes:
    """A file of few bytes with many pixels."""
    import cv2

    encoded, data = cv2.imencode(".png", np.zeros((side, side, 3), np.uint8))
    assert encoded
    return data.tobytes()


def large(side: int = 560) -> pb.ExplainImageRequest:
    """A small message whose answer has five maps of the image's size: 6 MB for 560 pixels."""
    return build_request(png(side), top_k=5, heatmaps=[ImageArray()])


async def code_of(call: Any) -> Any:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error
    return None


async def test_answers_that_nobody_reads_leave_room_for_others(
    world: World, channel: grpc.aio.Channel
) -> None:
    """Real and counted memory stay under the limit; others are served; all is released."""
    stub: Any = pb_grpc.ExplanationServiceStub(channel)
    await stub.ExplainImage(large())  # threads and buffers are there then
    before = resident_bytes()
    message = large().SerializeToString()
    clients = [UnreadCalls(world.address, UNARY, [message] * 6) for _ in range(4)]
    await world.until(lambda: world.answered("RESOURCE_EXHAUSTED") >= 20)
    await world.until(lambda: world.front_end.ledger.held["sending"] > 0)
    await asyncio.sleep(0.2)
    assert 0 < world.held < MAX_HELD
    assert resident_bytes() - before < 2 * MAX_HELD  # all 24 would be six times that
    in_work = world.front_end.lifecycle.in_work
    assert 0 < in_work == 24 - world.answered("RESOURCE_EXHAUSTED")
    quick = build_request(np.zeros((224, 224, 3), np.uint8), heatmaps=[Raw()])
    for _ in range(20):
        assert (await stub.ExplainImage(quick, timeout=20)).predictions
    for number, client in enumerate(clients):
        client.leave(reset=bool(number % 2))
    await world.until(lambda: world.held == 0)
    assert world.front_end.lifecycle.in_work == 0


async def test_a_stream_that_is_not_read_is_read_no_further(
    world: World, channel: grpc.aio.Channel
) -> None:
    """Its answers stay under the limit, others are served, and all arrive once it reads."""
    total, taken = 40, 0

    async def messages() -> AsyncIterator[pb.StreamExplainImagesRequest]:
        nonlocal taken
        for number in range(total):
            taken += 1
            yield pb.StreamExplainImagesRequest(correlation_id=str(number), request=large())

    stub: Any = pb_grpc.ExplanationServiceStub(channel)
    before = resident_bytes()
    call = stub.StreamExplainImages(messages())
    await world.until(lambda: world.front_end.ledger.held["sending"] > 0)
    await asyncio.sleep(0.3)
    assert 0 < world.held <= MAX_HELD
    assert resident_bytes() - before < 2 * MAX_HELD  # the client's memory is ours, too
    async with grpc.aio.insecure_channel(
        world.address, (("grpc.use_local_subchannel_pool", 1),)
    ) as other:
        quick = build_request(np.zeros((224, 224, 3), np.uint8), heatmaps=[Raw()])
        stub = pb_grpc.ExplanationServiceStub(other)
        assert (await stub.ExplainImage(quick, timeout=20)).predictions
    answers = [one.correlation_id async for one in call if one.HasField("response")]
    assert sorted(answers, key=int) == [str(number) for number in range(total)]
    await world.until(lambda: world.held == 0)


async def test_a_request_that_can_never_fit_names_the_setting(
    world: World, channel: grpc.aio.Channel
) -> None:
    """INVALID_ARGUMENT from the image's header; a request that just fits runs when alone."""
    stub: Any = pb_grpc.ExplanationServiceStub(channel)
    error = await code_of(stub.ExplainImage(large(1200)))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "--max-held-bytes" in error.details()
    answer = await stub.ExplainImage(large(1000))
    assert len(answer.explanations) == 5
    item = pb.StreamExplainImagesRequest(correlation_id="x" * (12 << 20), request=large(100))
    (refused,) = [one async for one in stub.StreamExplainImages(iter([item]))]
    assert "--max-held-bytes" in refused.error.message
    await world.until(lambda: world.held == 0)


async def test_a_call_for_which_there_is_no_room_may_come_again(
    world: World, channel: grpc.aio.Channel
) -> None:
    """RESOURCE_EXHAUSTED with RetryInfo while others hold too much; then it is answered."""
    stub: Any = pb_grpc.ExplanationServiceStub(channel)
    client = UnreadCalls(world.address, UNARY, [large().SerializeToString()] * 2)
    await world.until(lambda: world.answered("OK") == 2)
    error = await code_of(stub.ExplainImage(large(1000)))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = error_details_pb2.RetryInfo()
    status = rpc_status.from_call(error)
    assert status
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.ToMilliseconds() > 0
    client.leave()
    await world.until(lambda: world.held == 0)
    await stub.ExplainImage(large(1000))


async def test_the_images_of_one_message_are_let_in_together(
    world: World, channel: grpc.aio.Channel
) -> None:
    """Messages that need more than half of the memory each do not block each other."""
    images = np.zeros((20, 224, 224, 3), np.uint8)
    message = inference_pb.ModelInferRequest(
        model_name="instant", raw_input_contents=[images.tobytes()]
    )
    message.inputs.add(name="image", datatype="UINT8", shape=images.shape)
    stream = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        inference_pb.ModelInferRequest.SerializeToString,
        inference_pb.ModelStreamInferResponse.FromString,
    )
    async with asyncio.timeout(60):
        answers = [one async for one in stream(iter([message] * 6))]
    assert [one.error_message for one in answers] == [""] * 6
    await world.until(lambda: world.held == 0)
    text = world.metrics.exposition()[0].decode()
    assert 'gradcam_held_bytes{state="sending"} 0.0' in text


def tensors(*images: bytes) -> inference_pb.ModelInferRequest:
    message = inference_pb.ModelInferRequest(
        model_name="instant",
        raw_input_contents=[b"".join(len(one).to_bytes(4, "little") + one for one in images)],
    )
    message.inputs.add(name="encoded_image", datatype="BYTES", shape=[len(images)])
    return message


@pytest.mark.parametrize("streamed", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("kind", ["too large", "corrupt", "corrupt one of many"])
async def test_a_request_that_fails_is_no_garbage(
    world: World, channel: Any, kind: str, streamed: bool
) -> None:
    """It is freed when its call ends: the ledger would not count garbage."""
    corrupt = png(300)[:-30]
    method = "/gradcam.v1.ExplanationService/"
    request: Any = large(1200) if kind == "too large" else build_request(corrupt)
    item: Any = pb.StreamExplainImagesRequest(request=request)
    name = "StreamExplainImages" if streamed else "ExplainImage"
    if kind == "corrupt one of many":
        request = item = tensors(png(300), corrupt, corrupt)
        method = "/inference.GRPCInferenceService/"
        name = "ModelStreamInfer" if streamed else "ModelInfer"
    gc.collect()
    gc.disable()
    try:
        if streamed:
            call = channel.stream_stream(method + name)
            assert [one async for one in call(iter([item.SerializeToString()] * 3))]
        else:
            for _ in range(3):
                assert await code_of(
                    channel.unary_unary(method + name)(request.SerializeToString())
                )
        await world.until(lambda: world.front_end.lifecycle.in_work == 0)
        # A thread may still decode an image that nobody waits for.
        await world.until(lambda: not any(isinstance(o, ExplainRequest) for o in gc.get_objects()))
    finally:
        gc.enable()
