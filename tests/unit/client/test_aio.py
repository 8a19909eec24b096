"""The asynchronous client against a real server in this process."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from gradcam_client import (
    AsyncClient,
    CallCancelledError,
    DeadlineExceededError,
    ImageInput,
    InvalidRequestError,
    MessageTooLargeError,
    NotFoundError,
    Outcome,
    OverloadedError,
    RetryPolicy,
    UnavailableError,
)
from unit.client.fake_server import MAX_REQUEST_BYTES, FakeServer, make_status

CODE = grpc.StatusCode
NOWHERE = "127.0.0.1:1"
TOO_LARGE = b"5" + b"x" * MAX_REQUEST_BYTES


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


async def test_an_image_is_explained(client: AsyncClient, server: FakeServer) -> None:
    """Options arrive at the server and its answer comes back as a result."""
    result = await client.explain(b"7", top_k=3)
    assert result.top.index == 7
    assert server.requests[0].top_k == 3


@pytest.mark.parametrize("code", [CODE.RESOURCE_EXHAUSTED, CODE.UNAVAILABLE])
async def test_retryable_errors_are_tried_again(
    client: AsyncClient, server: FakeServer, code: grpc.StatusCode
) -> None:
    """A full queue and an absent server are followed by another attempt."""
    server.script.append(server.fail(code, retry_after_s=0.02))
    assert (await client.explain(b"7")).top.index == 7
    assert len(server.requests) == 2


async def test_a_wrong_request_is_sent_once(client: AsyncClient, server: FakeServer) -> None:
    """An invalid request is not retried, and its error names the field."""
    server.script.append(server.fail(CODE.INVALID_ARGUMENT, "no such class", field="targets"))
    with pytest.raises(InvalidRequestError, match="no such class") as raised:
        await client.explain(b"7")
    assert raised.value.field == "targets"
    assert len(server.requests) == 1


async def test_a_large_message_is_sent_once(client: AsyncClient) -> None:
    """A message over the server's limit is not retried as if the queue were full."""
    with pytest.raises(MessageTooLargeError):
        await client.explain(TOO_LARGE)


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


async def test_outcomes_come_in_order(client: AsyncClient, server: FakeServer) -> None:
    """Answers out of order are yielded in the order of the images, with their sources."""
    server.streams.append(server.reverse_in_groups(5))
    outcomes = [one async for one in client.explain_stream(images(40), max_in_flight=10)]
    assert [outcome.source for outcome in outcomes] == images(40)
    assert [outcome.unwrap().top.index for outcome in outcomes] == list(range(40))


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


async def test_bad_items_do_not_end_the_stream(
    client: AsyncClient, server: FakeServer, tmp_path: Path
) -> None:
    """An unreadable path, a wrong array and a refusal are outcomes in their place."""
    server.streams.append(server.answer_with({3: [make_status(CODE.INVALID_ARGUMENT, "bad")]}))
    mixed: list[ImageInput] = [
        b"0",
        tmp_path / "missing.jpg",
        np.zeros((2, 2), np.uint8),
        b"3",
        b"4",
    ]
    found = await ends(client.explain_stream(mixed))
    assert found == [0, FileNotFoundError, ValueError, InvalidRequestError, 4]


async def test_a_refused_item_is_tried_again(client: AsyncClient, server: FakeServer) -> None:
    """A retryable error of one image is retried on the same stream."""
    full = make_status(CODE.RESOURCE_EXHAUSTED, "full", retry_after_s=0.02)
    server.streams.append(server.answer_with({1: [full, full]}))
    assert await ends(client.explain_stream(images(4))) == [0, 1, 2, 3]
    assert len(server.received) == 1


@pytest.mark.parametrize("broken", ["break_after", "end_after"])
async def test_a_broken_stream_is_resumed(
    client: AsyncClient, server: FakeServer, broken: str
) -> None:
    """After a break, nothing is lost and nothing that was answered is sent again."""
    server.streams.extend(getattr(server, broken)(count) for count in (5, 3))
    assert await ends(client.explain_stream(images(30), max_in_flight=8)) == list(range(30))
    answered = [number for stream in server.answered for number in stream]
    assert sorted(answered) == list(range(30))
    assert not set(server.received[1]) & set(server.answered[0])


async def test_a_finished_stream_ends_well(client: AsyncClient, server: FakeServer) -> None:
    """The server sees a stream that was answered end normally, not cancelled."""
    assert await ends(client.explain_stream(images(3))) == [0, 1, 2]
    assert not server.cancelled.is_set()


async def test_a_stream_that_never_gets_on_fails(client: AsyncClient, server: FakeServer) -> None:
    """When the attempts are used up, the images taken fail, and later images start anew."""
    server.streams.extend([server.break_after(0)] * 4)
    found = await ends(client.explain_stream(images(8), max_in_flight=2))
    assert found == [UnavailableError] * 2 + [2, 3, 4, 5, 6, 7]


async def test_without_a_server_each_image_has_its_error(retry: RetryPolicy) -> None:
    """Every image has an outcome even if there is no server."""
    async with AsyncClient(NOWHERE, retry=retry) as client:
        assert await ends(client.explain_stream(images(3))) == [UnavailableError] * 3


async def test_one_large_image_fails_alone(client: AsyncClient) -> None:
    """A large message breaks the whole stream in gRPC; only its image fails."""
    found = await ends(client.explain_stream([*images(3), TOO_LARGE, *images(3)]))
    assert found == [0, 1, 2, MessageTooLargeError, 0, 1, 2]


async def test_silence_has_a_limit(client: AsyncClient, server: FakeServer) -> None:
    """Without any answer for the timeout, the images taken fail, and later images start anew."""
    server.streams.append(server.never_answer)
    found = await ends(client.explain_stream(images(4), max_in_flight=2, timeout_s=0.3))
    assert found == [DeadlineExceededError, DeadlineExceededError, 2, 3]
    assert await eventually(server.cancelled.is_set)


async def test_an_infinite_input_is_consumed_lazily(
    client: AsyncClient, server: FakeServer
) -> None:
    """Never more than max_in_flight images are ahead; leaving early cancels the call."""
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
    assert await eventually(server.cancelled.is_set)
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
        client.explain_stream(images(3), method="lime")


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
