"""The loop that answers a stream of requests, for all gRPC services.

Each message claims memory before the next message is read, and holds a slot until its answer is
written. So HTTP/2's flow control stops a client that does not read its answers.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.rpc import status_pb2

from gradcam_server.pipeline.ledger import Claim
from gradcam_server.transport.calls import CallRecord, Calls, Context, call_deadline
from gradcam_server.transport.sending import current_task, cut_off_late

logger = logging.getLogger(__name__)

_Q = TypeVar("_Q")
_A = TypeVar("_A")


class Writer:
    """Writes the messages of a stream, one at a time. To be made by the stream's handler.

    Args:
        context: The call.
        max_send_s: How long a message may take to be sent, in seconds.
    """

    def __init__(self, context: Context, max_send_s: float) -> None:
        self._context, self._max_send_s = context, max_send_s
        self._handler = current_task()
        self._writing = asyncio.Lock()

    async def __call__(self, message: object) -> None:
        """Writes a message. Drops it if the client is gone; cuts off a client that is too slow."""
        async with self._writing:
            try:
                async with asyncio.timeout(self._max_send_s):
                    await self._context.write(message)
            except TimeoutError:
                cut_off_late(self._handler, self._max_send_s)
            except Exception as error:  # noqa: BLE001 - gRPC's class for it is private
                logger.debug("An answer could not be written: %r", error)


@dataclass(frozen=True, slots=True)
class StreamItem(Generic[_Q]):
    """One message of a stream.

    Attributes:
        message: The message.
        claim: The memory that the message and its answer hold.
        deadline: Time of ``perf_counter`` at which the call ends, or None.
        write: Writes messages that precede the answer, such as progress.
    """

    message: _Q
    claim: Claim
    deadline: float | None
    write: Writer


class StreamLoop(Generic[_Q, _A]):
    """Answers the streams of one method.

    Args:
        calls: Admits and records calls.
        max_in_flight: Max messages of a stream whose answers are not yet written.
        rpc: Full name of the method.
        item_rpc: Name under which messages are recorded.
        message_id: Returns the text of a message that the answer echoes.
        answer: Answers a message.
        failure: Makes the answer to a message for which ``answer`` raised an error.
        in_order: Whether answers are written in the order of the messages.
    """

    def __init__(
        self,
        calls: Calls,
        max_in_flight: int,
        *,
        rpc: str,
        item_rpc: str,
        message_id: Callable[[_Q], str],
        answer: Callable[[StreamItem[_Q], CallRecord], Awaitable[_A]],
        failure: Callable[[_Q, status_pb2.Status], _A],
        in_order: bool,
    ) -> None:
        self._calls, self._max_in_flight, self._in_order = calls, max_in_flight, in_order
        self._rpc, self._item_rpc, self._message_id = rpc, item_rpc, message_id
        self._answer, self._failure = answer, failure

    async def run(self, messages: AsyncIterator[_Q], context: Context) -> None:
        """Answers the messages of a stream until it ends or the server drains."""
        async with self._calls.answering(context, self._rpc):
            await self._answer_all(messages, context)
            # A client that had more to send learns that it must send it elsewhere.
            self._calls.lifecycle.check()

    async def _answer_all(self, messages: AsyncIterator[_Q], context: Context) -> None:
        slots = asyncio.Semaphore(self._max_in_flight)
        write = Writer(context, self._calls.max_send_s)
        previous: asyncio.Event | None = None
        async with asyncio.TaskGroup() as tasks:
            while True:
                await slots.acquire()
                message = await self._read(messages)
                if message is None:
                    break
                claim = self._calls.claim(context, self._message_id(message))
                item = StreamItem(message, claim, call_deadline(context), write)
                written = asyncio.Event()
                tasks.create_task(self._answer_one(item, slots, previous, written))
                if self._in_order:
                    previous = written
                del item, message  # only the task holds them, until the answer is ready
                # At most one message of a stream waits for memory.
                await claim.settled.wait()

    async def _read(self, messages: AsyncIterator[_Q]) -> _Q | None:
        """Reads the next message; None at the end, or when the server drains."""

        async def read() -> _Q | None:
            return await anext(messages, None)

        try:
            return await self._calls.lifecycle.unless_draining(asyncio.ensure_future(read()))
        except Exception as error:  # noqa: BLE001 - gRPC's class for it is private
            logger.debug("The client of a stream is gone: %r", error)
            return None

    async def _answer_one(
        self,
        item: StreamItem[_Q],
        slots: asyncio.Semaphore,
        previous: asyncio.Event | None,
        written: asyncio.Event,
    ) -> None:
        """Answers a message; writes the answer after that of the previous message, if any."""
        claim, write = item.claim, item.write
        answering = self._answer_or_failure(item)
        del item  # an answer that waits to be written holds no message
        try:
            answer = await answering
            claim.settled.set()
            if previous is not None:
                await previous.wait()
            await write(answer)
        finally:
            claim.release()
            slots.release()
            written.set()

    async def _answer_or_failure(self, item: StreamItem[_Q]) -> _A:
        outcome = await self._calls.item(self._item_rpc, lambda record: self._answer(item, record))
        if isinstance(outcome, status_pb2.Status):
            return self._failure(item.message, outcome)
        return outcome
