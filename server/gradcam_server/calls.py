"""What every gRPC service does alike with a call: let it in, count it, turn errors into codes."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import grpc
from google.rpc import status_pb2

from gradcam_server.budget import echoed_bytes
from gradcam_server.errors import LimitError, NotReadyError
from gradcam_server.ledger import Claim, Ledger
from gradcam_server.lifecycle import Lifecycle, Phase
from gradcam_server.logs import choose_request_id, logging_for
from gradcam_server.metrics import Metrics, RejectReason
from gradcam_server.security.caller import current_caller
from gradcam_server.sending import current_task, cut_off_late, forget_frames, when_sent
from gradcam_server.status import abort, status_code, to_status
from gradcam_server.tracing import Tracer, current_call, working_for

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[object, object]

_M = TypeVar("_M")
_R = TypeVar("_R")

_REFUSALS: dict[Phase, RejectReason] = {
    Phase.WARMING_UP: "warming_up",
    Phase.RESTARTING: "restarting",
    Phase.DRAINING: "draining",
}
_CANCELLED = grpc.StatusCode.CANCELLED.name


@dataclass
class Counted:
    """A call, or an image of a stream, as it is counted.

    Attributes:
        model: Id of its model, as soon as it is known to be served.
        code: Name of its gRPC code.
    """

    model: str = ""
    code: str = grpc.StatusCode.OK.name


class Calls:
    """Lets calls in, counts and traces them, and answers for their errors.

    Args:
        lifecycle: Says whether calls are let in.
        metrics: Told of each.
        tracer: Traces each.
        ledger: Counts what they hold; None counts, and allows any number.
        max_send_s: How long an answer of a stream may take to be sent, in seconds.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        metrics: Metrics,
        tracer: Tracer,
        ledger: Ledger | None = None,
        max_send_s: float = math.inf,
    ) -> None:
        self.lifecycle = lifecycle
        self._metrics, self._tracer = metrics, tracer
        self._ledger, self._max_send_s = ledger or Ledger(), max_send_s

    @asynccontextmanager
    async def answering(self, context: Context, rpc: str) -> AsyncIterator[Counted]:
        """Lets a call in, and aborts it with a status if it fails.

        It is in work until its answer was sent.

        Args:
            context: The call.
            rpc: Its full name, such as gradcam.v1.ExplanationService/ExplainImage.
        """
        metadata = tuple(context.invocation_metadata() or ())
        span = self._tracer.call(rpc, metadata)
        request_id = choose_request_id(dict(metadata).get("x-request-id"))
        with (
            logging_for(request_id, span.trace_id),
            working_for(span),
            self._counting(rpc) as counted,
        ):
            try:
                with ExitStack() as in_work:
                    in_work.enter_context(self.lifecycle.request())
                    when_sent(in_work.pop_all().close)
                yield counted
            except asyncio.CancelledError as error:
                counted.code = _CANCELLED
                forget_frames(error)
                raise
            except Exception as error:  # noqa: BLE001 - one table turns all into codes
                if isinstance(error, NotReadyError):
                    # By the phase that it is in now, unless that has just passed.
                    if (reason := _REFUSALS.get(self.lifecycle.phase)) is not None:
                        self._metrics.rejected(reason)
                    await self.lifecycle.before_refusal()
                if isinstance(error, LimitError):
                    self._metrics.rejected("limited")
                status = to_status(error)
                forget_frames(error)
                counted.code = status_code(status).name
                await abort(context, status)

    def claim(self, context: Context, message_id: str = "") -> Claim:
        """Begins to count what a call, or one message of a stream, holds.

        Args:
            context: The call.
            message_id: What the message is called, and its answer too.

        Returns:
            Holds nothing yet. To be released when its answer was sent.
        """
        caller = current_caller.get().key or context.peer()
        return self._ledger.claim(caller, echoed_bytes(len(message_id)))

    def writer(self, context: Context) -> "Writer":
        """Returns what writes the answers of a stream; to be called by the stream's handler."""
        return Writer(context, self._max_send_s)

    async def item(
        self, rpc: str, work: Callable[[Counted], Awaitable[_R]]
    ) -> _R | status_pb2.Status:
        """Does the work for one image of a stream.

        Returns:
            Its result, or the status that it failed with.
        """
        with working_for(current_call.get().item()), self._counting(rpc) as counted:
            try:
                caller = current_caller.get()
                async with caller.image():
                    await self.lifecycle.pause(caller.reserve())
                    self.lifecycle.check_engine()
                    return await work(counted)
            except asyncio.CancelledError as error:
                counted.code = _CANCELLED
                forget_frames(error)
                raise
            except Exception as error:  # noqa: BLE001 - one table turns all into codes
                status = to_status(error)
                forget_frames(error)
                counted.code = status_code(status).name
                return status

    async def count_images(self, images: int, *, streamed: bool) -> None:
        """Counts a request that was let in as so many of its token's rate.

        Args:
            images: How many it has.
            streamed: Wait for the rate, as all images of streams do, instead of failing.

        Raises:
            LimitError: These are too many now.
            NotReadyError: They would have to wait, and the server drains.
        """
        if images == 1:
            return
        if streamed:
            await self.lifecycle.pause(current_caller.get().reserve(images - 1))
        else:
            current_caller.get().count(images)

    @contextmanager
    def _counting(self, rpc: str) -> Iterator[Counted]:
        counted, started = Counted(), perf_counter()
        try:
            yield counted
        finally:
            name = rpc.rpartition("/")[2]
            self._metrics.request_done(name, counted.model, counted.code, perf_counter() - started)
            current_call.get().describe(model=counted.model)
            current_call.get().end(counted.code)

    async def read_unless_draining(self, messages: AsyncIterator[_M]) -> _M | None:
        """Reads a stream's next message; None at its end, or when the server drains."""

        async def read() -> _M | None:
            return await anext(messages, None)

        try:
            return await self.lifecycle.unless_draining(asyncio.ensure_future(read()))
        except Exception as error:  # noqa: BLE001 - gRPC's class for it is private
            logger.debug("The client of a stream is gone: %r", error)
            return None


class Writer:
    """Writes the answers of a stream, one at a time. ``Calls.writer`` makes it."""

    def __init__(self, context: Context, max_send_s: float) -> None:
        self._context, self._max_send_s = context, max_send_s
        self._handler = current_task()
        self._writing = asyncio.Lock()

    async def __call__(self, message: object) -> None:
        """Writes an answer. If the client is gone, it is lost; one that reads none is cut off."""
        async with self._writing:
            try:
                async with asyncio.timeout(self._max_send_s):
                    await self._context.write(message)
            except TimeoutError:
                cut_off_late(self._handler, self._max_send_s)
            except Exception as error:  # noqa: BLE001 - gRPC's class for it is private
                logger.debug("An answer could not be written: %r", error)


def call_deadline(context: Context) -> float | None:
    """Returns a call's deadline as a time of ``perf_counter``."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else perf_counter() + remaining_s
