"""What all services do with calls, without a server."""

import asyncio
from collections.abc import Iterator

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2

from gradcam_server.errors import LimitError
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.telemetry.setup import configure_tracing
from gradcam_server.transport.calls import CallRecord, Calls
from gradcam_server.transport.lifecycle import Lifecycle
from gradcam_server.transport.security.caller import Caller, current_caller
from gradcam_server.transport.security.tokens import Token


@pytest.fixture
def calls() -> Calls:
    lifecycle = Lifecycle()
    lifecycle.serve()
    return Calls(lifecycle, Metrics(), configure_tracing("off", "0"))


@pytest.fixture
def slow() -> Iterator[None]:
    """The caller may have one image now, and another in an hour."""
    caller = Caller("slow", lambda: 0.0)
    caller.allow(Token("slow", (), max_requests_per_s=1 / 3600))
    mark = current_caller.set(caller)
    yield
    current_caller.reset(mark)


async def work(_: CallRecord) -> str:
    return "answer"


@pytest.mark.usefixtures("slow")
async def test_images_that_wait_for_their_rate_do_not_hold_up_a_drain(calls: Calls) -> None:
    """They are refused with UNAVAILABLE and RetryInfo, as new calls are."""
    assert await calls.item("S/Stream.image", work) == "answer"
    waiting = [asyncio.create_task(calls.item("S/Stream.image", work)) for _ in range(3)]
    await asyncio.sleep(0.01)
    assert not any(one.done() for one in waiting)
    calls.lifecycle.drain()
    for one in waiting:
        status = await asyncio.wait_for(one, 10)
        assert isinstance(status, status_pb2.Status)
        assert status.code == code_pb2.UNAVAILABLE
        assert status.details[0].Is(error_details_pb2.RetryInfo.DESCRIPTOR)


@pytest.mark.usefixtures("slow")
async def test_several_images_of_one_message_wait_or_are_refused(calls: Calls) -> None:
    """In a stream they wait for the rate; a call is refused. One image counts only once."""
    await calls.count_images(1, streamed=True)
    await calls.count_images(1, streamed=False)
    current_caller.get().reserve(2)  # this call's own, and an earlier one's
    with pytest.raises(LimitError, match="these 2 images are one each"):
        await calls.count_images(2, streamed=False)
    waiting = asyncio.create_task(calls.count_images(2, streamed=True))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    waiting.cancel()
