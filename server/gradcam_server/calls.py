"""What every gRPC service does alike with a call: let it in, count it, turn errors into codes."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TypeVar

import grpc
from google.rpc import status_pb2

from gradcam_server.errors import LimitError, NotReadyError
from gradcam_server.lifecycle import Lifecycle, Phase
from gradcam_server.logs import choose_request_id, logging_for
from gradcam_server.metrics import Metrics, RejectReason
from gradcam_server.security.caller import current_caller
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
    """

    def __init__(self, lifecycle: Lifecycle, metrics: Metrics, tracer: Tracer) -> None:
        self.lifecycle = lifecycle
        self._metrics, self._tracer = metrics, tracer

    @asynccontextmanager
    async def answering(self, context: Context, rpc: str) -> AsyncIterator[Counted]:
        """Lets a call in, and aborts it with a status if it fails.

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
                with self.lifecycle.request():
                    yield counted
            except asyncio.CancelledError:
                counted.code = _CANCELLED
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
                counted.code = status_code(status).name
                await abort(context, status)

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
            except asyncio.CancelledError:
                counted.code = _CANCELLED
                raise
            except Exception as error:  # noqa: BLE001 - one table turns all into codes
                status = to_status(error)
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

    async def read_unless_draining(self, context: Context, message: type[_M]) -> _M | None:
        """Reads a stream's next message of a type; None at its end, or when the server drains."""
        try:
            item = await self.lifecycle.unless_draining(asyncio.ensure_future(context.read()))
        except Exception as error:  # noqa: BLE001 - gRPC's class for it is private
            logger.debug("The client of a stream is gone: %r", error)
            return None
        return item if isinstance(item, message) else None


async def write(context: Context, message: object) -> None:
    """Writes an answer into a stream; if the client is gone, it is lost."""
    try:
        await context.write(message)
    except Exception as error:  # noqa: BLE001 - gRPC's class for it is private
        logger.debug("An answer could not be written: %r", error)


def call_deadline(context: Context) -> float | None:
    """Returns a call's deadline as a time of ``perf_counter``."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else perf_counter() + remaining_s
