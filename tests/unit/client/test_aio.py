"""The asynchronous client against a real server in this process."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any

import grpc
import pytest
import pytest_asyncio

from gradcam_client import (
    AsyncClient,
    CallCancelledError,
    DeadlineExceededError,
    NotFoundError,
    Outcome,
    OverloadedError,
    RetryPolicy,
)
from unit.client.fake_server import FakeServer

CODE = grpc.StatusCode


@pytest_asyncio.fixture
async def client(server: FakeServer, retry: RetryPolicy) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target, timeout_s=20, retry=retry) as client:
        yield client


def images(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


async def ends(outcomes: AsyncIterator[Outcome]) -> list[Any]:
    """The number or the error class of each outcome."""
    return [one.result.top.index if one.result else type(one.error) async for one in outcomes]


async def eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(2000):
        if condition():
            break
        await asyncio.sleep(0.005)
    return condition()


# One image.


@pytest.mark.parametrize("code", [CODE.RESOURCE_EXHAUSTED, CODE.UNAVAILABLE])
async def test_retryable_errors_are_tried_again(
    client: AsyncClient, server: FakeServer, code: grpc.StatusCode
) -> None:
    """A full queue and an absent server are followed by another attempt."""
    server.script.append(server.fail(code, retry_after_s=0.02))
    assert (await client.explain(b"7")).top.index == 7
    assert len(server.requests) == 2


async def test_the_deadline_is_kept(client: AsyncClient, server: FakeServer) -> None:
    """The deadline ends a call that hangs, and no pause is slept beyond it."""
    server.script.append(server.hang)
    with pytest.raises(DeadlineExceededError):
        await client.explain(b"7", timeout_s=0.2)
    server.script.append(server.fail(CODE.RESOURCE_EXHAUSTED, retry_after_s=60))
    with pytest.raises(OverloadedError):
        await asyncio.wait_for(client.explain(b"7", timeout_s=30), 10)


async def test_cancelling_a_task_cancels_its_call(client: AsyncClient, server: FakeServer) -> None:
    """A cancelled task cancels the call at the server."""
    server.script.append(server.hang)
    task = asyncio.create_task(client.explain(b"7"))
    assert await eventually(lambda: len(server.requests) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await eventually(server.cancelled.is_set)


async def test_cancelling_a_task_cancels_both_attempts(
    client: AsyncClient, server: FakeServer
) -> None:
    """Both attempts of a hedged call end when its task is cancelled."""
    ended: list[grpc.ServicerContext] = []

    def hang(context: grpc.ServicerContext) -> None:
        server.hang(context)
        ended.append(context)

    server.script.extend([hang] * 2)
    task = asyncio.create_task(client.explain(b"7", hedge_after_s=0.05))
    assert await eventually(lambda: len(server.requests) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await eventually(lambda: len(ended) == 2)


async def test_closing_the_client_ends_a_hedged_call(server: FakeServer) -> None:
    """Both attempts of a call end in our error when the client is closed."""
    server.script.extend([server.hang] * 2)
    client = AsyncClient(server.target)
    task = asyncio.create_task(client.explain(b"7", hedge_after_s=0.05))
    assert await eventually(lambda: len(server.requests) == 2)
    await client.close()
    with pytest.raises(CallCancelledError):
        await task


async def test_closing_the_client_cancels_its_calls(server: FakeServer) -> None:
    """A call whose client is closed ends in our error: its task was not cancelled."""
    server.script.append(server.hang)
    client = AsyncClient(server.target)
    task = asyncio.create_task(client.explain(b"7"))
    assert await eventually(lambda: len(server.requests) == 1)
    await client.close()
    with pytest.raises(CallCancelledError):
        await task


async def test_a_given_channel_stays_open(server: FakeServer) -> None:
    """The client closes only a channel of its own."""
    async with grpc.aio.insecure_channel(server.target) as channel:
        async with AsyncClient(channel=channel) as client:
            await client.explain(b"7")
        async with AsyncClient(channel=channel) as client:
            assert (await client.explain(b"8")).top.index == 8


# Many images.


async def test_asynchronous_input(client: AsyncClient) -> None:
    """Images may come from an asynchronous iterable, and its pauses delay no answer."""
    go_on = asyncio.Event()

    async def waiting() -> AsyncIterator[bytes]:
        yield b"0"
        await asyncio.wait_for(go_on.wait(), 10)
        yield b"1"

    outcomes = client.explain_stream(waiting())
    assert (await anext(outcomes)).unwrap().top.index == 0
    go_on.set()
    assert await ends(outcomes) == [1]


async def test_an_infinite_input_is_consumed_lazily(
    client: AsyncClient, server: FakeServer
) -> None:
    """Never more than max_in_flight images are ahead; leaving early ends the call."""
    pulled_count = 0

    def endless() -> Iterator[bytes]:
        nonlocal pulled_count
        for number in itertools.count():
            pulled_count += 1
            yield b"%d" % number

    tasks_before = asyncio.all_tasks()
    async with aclosing(client.explain_stream(endless(), max_in_flight=6)) as outcomes:
        for count in range(1, 101):
            assert (await anext(outcomes)).unwrap().top.index == count - 1
            assert pulled_count <= count + 6
    assert server.max_in_flight <= 6
    assert await eventually(server.stream_over.is_set)
    assert await eventually(lambda: asyncio.all_tasks() <= tasks_before)


async def test_an_error_of_the_input_is_raised(client: AsyncClient) -> None:
    """An exception of the caller's iterable reaches the caller, after the outcomes before it."""

    async def failing() -> AsyncIterator[bytes]:
        for image in images(3):
            yield image
        raise LookupError("the caller's")

    outcomes = client.explain_stream(failing())
    for number in range(3):
        assert (await anext(outcomes)).unwrap().top.index == number
    with pytest.raises(LookupError, match="the caller's"):
        await anext(outcomes)


async def test_closing_the_client_ends_its_streams(server: FakeServer) -> None:
    """A stream whose client is closed raises instead of waiting."""
    server.streams.append(server.never_answer)
    client = AsyncClient(server.target)
    consuming = asyncio.create_task(ends(client.explain_stream(images(3), timeout_s=20)))
    assert await eventually(lambda: bool(server.received and server.received[0]))
    await client.close()
    with pytest.raises(CallCancelledError, match="the client is closed"):
        await consuming


async def test_one_image_is_not_many(client: AsyncClient) -> None:
    """A single image and wrong options are refused at once."""
    with pytest.raises(TypeError, match="explain takes one image"):
        client.explain_stream("cat.jpg")
    with pytest.raises(ValueError, match="method"):
        client.explain_stream(images(3), method="lime")  # type: ignore[arg-type]


# Models and health.


async def test_models_are_described(client: AsyncClient) -> None:
    """Models are listed and described."""
    assert [model.name for model in await client.list_models()] == ["first", "second"]
    assert (await client.get_model("second")).name == "second"


async def test_health_is_told(client: AsyncClient, server: FakeServer) -> None:
    """Health is the server's status, and an unknown service is NotFoundError."""
    assert await client.health() == "SERVING"
    with pytest.raises(NotFoundError):
        await client.health("no.such.Service")
    server.set_serving(False)
    with pytest.raises(DeadlineExceededError, match="NOT_SERVING"):
        await client.wait_ready(0.3)
    asyncio.get_running_loop().call_later(0.2, server.set_serving, True)
    await client.wait_ready(20)
