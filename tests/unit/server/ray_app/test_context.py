"""Calls on Ray Serve, answered by the service of a server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.config.settings import ServeConfig
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.ray_app.context import (
    REMAINING,
    CallContext,
    StreamEndedError,
    answer_call,
    answer_stream,
)
from gradcam_server.telemetry import tracing
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.transport.calls import Calls, Context, Metadata
from gradcam_server.transport.gradcam_v1.service import ExplanationService
from gradcam_server.transport.lifecycle import Lifecycle
from support.instant import INPUT_SIZE, InstantBackend

PIXELS = pb.RawImage(
    data=np.zeros((*INPUT_SIZE, 3), np.uint8).tobytes(),
    height_px=INPUT_SIZE[0],
    width_px=INPUT_SIZE[1],
)
REQUEST = pb.ExplainImageRequest(raw_image=PIXELS)
BAD = pb.ExplainImageRequest(encoded_image=b"no image")


class RayContext:
    """Ray Serve's context of a call, with the status that the replica sets."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = metadata
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailers: dict[str, str | bytes] = {}

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
        self.trailers = dict(trailing_metadata)


@pytest.fixture
async def lifecycle() -> Lifecycle:
    """A lifecycle that admits requests."""
    lifecycle = Lifecycle()
    lifecycle.serve()
    return lifecycle


@pytest.fixture
async def service(lifecycle: Lifecycle) -> AsyncIterator[ExplanationService]:
    config, metrics = ServeConfig(max_stream_in_flight=4), Metrics()
    calls = Calls(lifecycle, metrics, tracing.NO_TRACER)
    service = ExplanationService(config, calls)
    explainer = Explainer(config, InstantBackend(), metrics)
    service.publish(explainer)
    yield service
    await explainer.close()


async def images(*requests: pb.ExplainImageRequest) -> AsyncIterator[Any]:
    for number, request in enumerate(requests):
        yield pb.StreamExplainImagesRequest(correlation_id=str(number), request=request)


async def test_a_call_is_answered(service: ExplanationService) -> None:
    """The answer is that of a server, and no status is set."""
    serve = RayContext()
    answer = await answer_call(service.ExplainImage, REQUEST, serve, pb.ExplainImageResponse)
    assert answer.predictions[0].class_index == 999
    assert serve.code is None


async def test_an_error_has_its_code_and_its_details(service: ExplanationService) -> None:
    """The answer is empty: for an exception Ray would send no details."""
    serve = RayContext()
    answer = await answer_call(service.ExplainImage, BAD, serve, pb.ExplainImageResponse)
    assert answer == pb.ExplainImageResponse()
    assert serve.code is grpc.StatusCode.INVALID_ARGUMENT
    packed = serve.trailers["grpc-status-details-bin"]
    assert isinstance(packed, bytes)
    status = status_pb2.Status.FromString(packed)
    assert status.message == serve.details
    violation = error_details_pb2.BadRequest()
    assert status.details[0].Unpack(violation)
    assert violation.field_violations[0].field == "encoded_image"


async def test_a_stream_is_answered(service: ExplanationService) -> None:
    """Bad images are errors among the answers; there are more images than may be in flight."""
    requests = [REQUEST, BAD] * 10
    answers = answer_stream(service.StreamExplainImages, images(*requests), RayContext())
    kinds = {one.correlation_id: one.WhichOneof("result") async for one in answers}
    assert kinds == {str(one): "error" if one % 2 else "response" for one in range(20)}


async def test_a_stream_that_is_refused_ends_with_its_code(
    service: ExplanationService, lifecycle: Lifecycle
) -> None:
    """Ray takes the code from its context, and needs an exception too."""
    lifecycle.drain()
    serve = RayContext()
    with pytest.raises(StreamEndedError, match="UNAVAILABLE: the server is shutting down"):
        async for _ in answer_stream(service.StreamExplainImages, images(REQUEST), serve):
            pass
    assert serve.code is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_whose_client_goes_is_given_up() -> None:
    """Its work is cancelled before the generator ends."""
    cancelled = asyncio.Event()

    async def never_ends(_: AsyncIterator[object], context: Context) -> None:
        try:
            await context.write("first")
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    answers = answer_stream(never_ends, images(), RayContext())
    assert await anext(answers) == "first"
    waiting = asyncio.ensure_future(anext(answers))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert cancelled.is_set()


async def test_answers_that_are_not_taken_hold_up_the_stream() -> None:
    """An answer is written once the previous answer is read; none is lost at the end."""
    written = []

    async def write(_: AsyncIterator[object], context: Context) -> None:
        for number in range(5):
            await context.write(number)
            written.append(number)

    answers = answer_stream(write, images(), RayContext())
    assert await anext(answers) == 0
    await asyncio.sleep(0.01)
    assert written == [0, 1]
    assert [one async for one in answers] == [1, 2, 3, 4]


async def test_an_error_that_is_no_status_is_passed_on() -> None:
    """Ray logs it and answers INTERNAL."""

    async def fail(_: AsyncIterator[object], context: Context) -> None:
        await context.write("first")
        raise RuntimeError("a fault")

    answers = answer_stream(fail, images(), RayContext())
    assert await anext(answers) == "first"
    with pytest.raises(RuntimeError, match="a fault"):
        await anext(answers)


async def test_the_deadline_comes_from_the_proxy() -> None:
    """The metadata has the remaining time; without it, or with nonsense, there is no deadline."""
    remaining_s = CallContext(RayContext((REMAINING, "1500"))).time_remaining()
    assert remaining_s is not None
    assert 0 < remaining_s <= 1.5
    assert CallContext(RayContext()).time_remaining() is None
    assert CallContext(RayContext((REMAINING, "soon"))).time_remaining() is None
