"""The loop that answers a stream of requests, for all gRPC services.

Each message claims memory before the next message is read, and holds a slot until its answer is
written. So HTTP/2's flow control stops a client that does not read its answers.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, NamedTuple, TypeVar

from google.rpc import status_pb2

from gradcam_server.pipeline.ledger import Claim
from gradcam_server.transport.calls import CallRecord, Calls, Context, call_deadline
from gradcam_server.transport.sending import current_task, cut_off_late

logger = logging.getLogger(__name__)

_Q = TypeVar("_Q")
_A = TypeVar("_A")


class Writer:
    """Writes the messages of a stream, one at a time. To be made by the stream's handler.

    It drops messages if the client is gone, and cuts off a client that is too slow.

    Args:
        context: The call.
        max_send_s: How long a message may take to be sent, in seconds.
    """

    def __init__(self, context: Context, max_send_s: float) -> None:
        self._context, self._max_send_s = context, max_send_s
        self._handler, self._loop = current_task(), asyncio.get_running_loop()
        self._queue: deque[tuple[object, Callable[[], None]]] = deque()
        self._is_writing = False
        # One timer for all messages: setting one for each takes longer than most of them.
        self._timer: asyncio.TimerHandle | None = None
        self._late_at = 0.0

    async def __call__(self, message: object, on_end: Callable[[], None] = lambda: None) -> None:
        """Writes a message, or leaves it to the task that is writing now.

        Args:
            message: The message.
            on_end: Called once, when the message is written or dropped.
        """
        self._queue.append((message, on_end))
        del message  # it is not held while others are written
        if self._is_writing:
            return
        self._is_writing = True
        try:
            while self._queue:
                await self._write_next()
        finally:
            self._is_writing = False

    def close(self) -> None:
        """Drops the messages that wait."""
        while self._queue:
            _, on_end = self._queue.popleft()
            on_end()
        if self._timer is not None:
            self._timer.cancel()

    async def _write_next(self) -> None:
        message, on_end = self._queue.popleft()
        self._late_at = self._loop.time() + self._max_send_s
        if self._timer is None:
            self._timer = self._loop.call_at(self._late_at, self._check_time)
        try:
            await self._context.write(message)
        except Exception as error:  # noqa: BLE001 - gRPC's class for it is private
            logger.debug("An answer could not be written: %r", error)
        finally:
            on_end()

    def _check_time(self) -> None:
        """Cuts off the client if the message that is written now is late."""
        self._timer = None
        if not self._is_writing:
            return
        if self._loop.time() < self._late_at:
            self._timer = self._loop.call_at(self._late_at, self._check_time)
        else:
            cut_off_late(self._handler, self._max_send_s)


class StreamItem(NamedTuple, Generic[_Q]):
    """One message of a stream.

    Attributes:
        message: The message.
        claim: The memory that the message and its answer hold.
        deadline: Time of ``perf_counter`` at which the call ends, or None.
        report: Writes a message that precedes the answer, such as progress.
    """

    message: _Q
    claim: Claim
    deadline: float | None
    report: Callable[[object], Awaitable[None]]


class _Order(NamedTuple):
    """When the answer to a message is queued: after the previous answer, before the next."""

    previous: asyncio.Event | None
    queued: asyncio.Event


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
        write = Writer(context, self._calls.max_send_s)
        try:
            async with asyncio.TaskGroup() as tasks:
                reading = self._read_all(messages, context, tasks, write)
                await self._calls.lifecycle.unless_draining(reading)
        finally:
            write.close()

    async def _read_all(
        self,
        messages: AsyncIterator[_Q],
        context: Context,
        tasks: asyncio.TaskGroup,
        write: Writer,
    ) -> None:
        """Starts a task for each message, until the stream ends or the server drains."""
        slots, draining = asyncio.Semaphore(self._max_in_flight), self._calls.lifecycle.draining
        deadline = call_deadline(context)
        previous: asyncio.Event | None = None

        async def report(message: object) -> None:
            # A task of its own: it may write other messages too, and reports may be cancelled.
            written = asyncio.Event()
            tasks.create_task(write(message, written.set))
            await written.wait()

        while True:
            await slots.acquire()
            message = None if draining.is_set() else await self._read(messages)
            if message is None:
                return
            claim = self._calls.claim(context, self._message_id(message))
            item = StreamItem(message, claim, deadline, report)
            order = _Order(previous, asyncio.Event()) if self._in_order else None
            tasks.create_task(self._answer_one(item, slots, order, write))
            if order is not None:
                previous = order.queued
            del item, message  # only the task holds them, until the answer is ready
            # At most one message of a stream waits for memory; most get it in their first step.
            await asyncio.sleep(0)
            await claim.settled.wait()

    async def _read(self, messages: AsyncIterator[_Q]) -> _Q | None:
        """Reads the next message; None at the end."""
        try:
            return await anext(messages, None)
        except Exception as error:  # noqa: BLE001 - gRPC's class for it is private
            logger.debug("The client of a stream is gone: %r", error)
            return None

    async def _answer_one(
        self,
        item: StreamItem[_Q],
        slots: asyncio.Semaphore,
        order: _Order | None,
        write: Writer,
    ) -> None:
        """Answers a message; writes the answer after that of the previous message, if any."""
        claim = item.claim

        def end() -> None:
            claim.release()
            slots.release()

        answering = self._answer_or_failure(item)
        del item  # an answer that waits to be written holds no message
        try:
            answer = await answering
            claim.settled.set()
            if order is not None and order.previous is not None:
                await order.previous.wait()
        except BaseException:
            end()
            raise
        finally:
            if order is not None:
                order.queued.set()
        await write(answer, end)

    async def _answer_or_failure(self, item: StreamItem[_Q]) -> _A:
        outcome = await self._calls.item(self._item_rpc, lambda record: self._answer(item, record))
        if isinstance(outcome, status_pb2.Status):
            return self._failure(item.message, outcome)
        return outcome
