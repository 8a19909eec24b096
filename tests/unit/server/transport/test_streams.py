"""The loop that answers streams, without a server and without images."""

import asyncio
from collections.abc import AsyncIterator
from typing import NoReturn

import grpc
import pytest
from google.rpc import status_pb2

from gradcam_server.errors import InvalidRequestError
from gradcam_server.pipeline.ledger import Ledger
from gradcam_server.telemetry import tracing
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.transport import streams
from gradcam_server.transport.calls import CallRecord, Calls
from gradcam_server.transport.lifecycle import Lifecycle
from gradcam_server.transport.streams import StreamItem, StreamLoop, Writer

MAX_IN_FLIGHT = 3


class Client:
    """The client's side of a call: counts the messages that are read, keeps the answers."""

    def __init__(self) -> None:
        self.read, self.answers = 0, list[str]()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.code = grpc.StatusCode.OK

    async def messages(self, count: int) -> AsyncIterator[str]:
        for number in range(count):
            self.read += 1
            yield str(number)

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def peer(self) -> str:
        return "peer"

    def time_remaining(self) -> float | None:
        return None

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: object = ()
    ) -> NoReturn:
        self.code = code
        raise grpc.aio.AbortError

    async def write(self, message: object) -> None:
        await self.may_write.wait()
        self.answers.append(str(message))


class Service:
    """Answers each message once the test lets it; every message holds a byte."""

    def __init__(self, *, in_order: bool) -> None:
        self.lifecycle, self.ledger = Lifecycle(), Ledger()
        self.lifecycle.serve()
        self.gates = [asyncio.Event() for _ in range(10)]
        calls = Calls(self.lifecycle, Metrics(), tracing.NO_TRACER, self.ledger)
        self.loop = StreamLoop(
            calls,
            MAX_IN_FLIGHT,
            rpc="S/Stream",
            item_rpc="S/Stream.item",
            message_id=lambda message: message,
            answer=self.answer,
            failure=self.fail,
            in_order=in_order,
        )

    async def answer(self, item: StreamItem[str], _: CallRecord) -> str:
        await item.claim.reserve([1], wait=True)
        await self.gates[int(item.message)].wait()
        if item.message == "1":
            raise InvalidRequestError("message", "no good")
        return item.message

    def fail(self, message: str, status: status_pb2.Status) -> str:
        return f"{message}: {status.message}"

    def run(self, client: Client, count: int) -> "asyncio.Task[None]":
        return asyncio.create_task(self.loop.run(client.messages(count), client))


async def settle() -> None:
    await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("in_order", "expected"),
    [(False, ["2", "1: no good", "0"]), (True, ["0", "1: no good", "2"])],
)
async def test_answers_come_as_they_are_ready_or_in_order(
    in_order: bool, expected: list[str]
) -> None:
    """A message that fails has an answer too, in either order."""
    client, service = Client(), Service(in_order=in_order)
    stream = service.run(client, 3)
    for gate in reversed(service.gates[:3]):
        gate.set()
        await settle()
    await asyncio.wait_for(stream, 10)
    assert client.answers == expected
    assert service.ledger.total == 0


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_client_that_does_not_read_sends_no_further_messages(in_order: bool) -> None:
    """No more messages are read than may be in flight, and their memory stays counted."""
    client, service = Client(), Service(in_order=in_order)
    client.may_write.clear()
    for gate in service.gates:
        gate.set()
    stream = service.run(client, 10)
    await settle()
    assert (client.read, client.answers) == (MAX_IN_FLIGHT, [])
    assert service.ledger.total > 0
    client.may_write.set()
    await asyncio.wait_for(stream, 10)
    assert len(client.answers) == 10
    assert service.ledger.total == 0


@pytest.mark.parametrize("in_order", [False, True])
async def test_a_stream_that_is_cancelled_gives_its_memory_back(in_order: bool) -> None:
    """The memory of messages in work, and of answers that wait to be written."""
    client, service = Client(), Service(in_order=in_order)
    client.may_write.clear()
    service.gates[2].set()
    stream = service.run(client, 10)
    await settle()
    assert service.ledger.total > 0
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream
    assert service.ledger.total == 0


async def test_a_drain_ends_a_stream_after_the_messages_that_were_read() -> None:
    """They are answered; then UNAVAILABLE tells the client to send the rest elsewhere."""
    client, service = Client(), Service(in_order=False)
    stream = service.run(client, 10)
    await settle()
    service.lifecycle.drain()
    for gate in service.gates:
        gate.set()
    with pytest.raises(grpc.aio.AbortError):
        await asyncio.wait_for(stream, 10)
    assert (client.read, len(client.answers)) == (MAX_IN_FLIGHT, MAX_IN_FLIGHT)
    assert client.code is grpc.StatusCode.UNAVAILABLE


async def test_a_report_that_is_cancelled_loses_no_answers() -> None:
    """It may be the writer of other messages at that moment."""
    client, service = Client(), Service(in_order=False)

    async def answer(item: StreamItem[str], _: CallRecord) -> str:
        await item.claim.reserve([1], wait=True)
        report = asyncio.ensure_future(item.report("report")) if item.message == "0" else None
        await settle()
        if report is not None:
            await settle()
            report.cancel()
        return item.message

    service.loop._answer = answer
    client.may_write.clear()
    stream = service.run(client, 3)
    await settle()
    await settle()
    client.may_write.set()
    await asyncio.wait_for(stream, 10)
    assert sorted(client.answers) == ["0", "1", "2", "report"]
    assert client.answers[0] == "report"
    assert service.ledger.total == 0


@pytest.mark.parametrize("in_order", [False, True])
async def test_answers_that_wait_to_be_written_are_released_with_their_stream(
    in_order: bool,
) -> None:
    """A stream that is cut off frees the memory and the slots of answers in its queue."""
    client, service = Client(), Service(in_order=in_order)
    client.may_write.clear()
    stream = service.run(client, 10)
    for gate in service.gates:
        gate.set()
    await settle()
    assert client.read == MAX_IN_FLIGHT
    assert service.ledger.total > 0
    stream.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream
    assert service.ledger.total == 0
    assert client.answers == []


@pytest.mark.parametrize("quick", [0, 1, 5])
async def test_a_message_that_is_not_taken_in_time_ends_the_stream(
    quick: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time counts from the message's own beginning, however many were taken before."""
    client, cut_off_at = Client(), list[int]()
    monkeypatch.setattr(streams, "cut_off_late", lambda *_: cut_off_at.append(len(client.answers)))
    write = Writer(client, 0.1)
    for number in range(quick):
        await write(number)
        await asyncio.sleep(0.03)
    assert cut_off_at == []
    client.may_write.clear()
    late = asyncio.create_task(write("late"))
    await asyncio.sleep(0.05)
    assert cut_off_at == []
    async with asyncio.timeout(10):
        while not cut_off_at:  # noqa: ASYNC110 - of a timer, which tells nobody
            await asyncio.sleep(0.01)
    assert cut_off_at == [quick]
    client.may_write.set()
    await late
    write.close()
