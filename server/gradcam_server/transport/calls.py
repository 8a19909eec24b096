"""What all gRPC services do with a call: admit, record and trace it, turn errors into statuses."""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NoReturn, Protocol, TypeAlias, TypeVar

import grpc
from google.rpc import status_pb2

from gradcam_server.errors import LimitError, NotReadyError
from gradcam_server.pipeline.budget import echoed_bytes
from gradcam_server.pipeline.ledger import Claim, Ledger
from gradcam_server.telemetry.logs import choose_request_id, logging_for
from gradcam_server.telemetry.metrics import Metrics, RejectReason
from gradcam_server.telemetry.tracing import Tracer, current_call, working_for
from gradcam_server.transport.lifecycle import Lifecycle, Phase
from gradcam_server.transport.security.caller import current_caller
from gradcam_server.transport.sending import forget_frames, when_sent
from gradcam_server.transport.status import abort, status_code, to_status

logger = logging.getLogger(__name__)

_R = TypeVar("_R")

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

_REFUSALS: dict[Phase, RejectReason] = {
    Phase.WARMING_UP: "warming_up",
    Phase.RESTARTING: "restarting",
    Phase.DRAINING: "draining",
}
_CANCELLED = grpc.StatusCode.CANCELLED.name


class Context(Protocol):
    """The part of ``grpc.aio.ServicerContext`` that the services use."""

    def invocation_metadata(self) -> Metadata | None:
        """Returns the metadata that the client sent."""

    def peer(self) -> str:
        """Returns the client's connection, as gRPC names it; empty if it is not known."""

    def time_remaining(self) -> float | None:
        """Returns the seconds until the call's deadline; None if it has none."""

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        """Ends the call with a status.

        Raises:
            grpc.aio.AbortError: Always.
        """

    async def write(self, message: object) -> None:
        """Writes a message into the stream of answers."""


@dataclass
class CallRecord:
    """What metrics and traces record of a call, or of a message of a stream.

    Attributes:
        model: Id of the model, as soon as it is known to be served.
        code: Name of the gRPC code.
    """

    model: str = ""
    code: str = grpc.StatusCode.OK.name


class Calls:
    """Admits, records and traces calls, and turns their errors into statuses.

    Args:
        lifecycle: Decides whether calls are admitted.
        metrics: Counts the calls.
        tracer: Traces the calls.
        ledger: Counts the memory that calls hold; None counts without a limit.
        max_send_s: Max time to send an answer of a stream, in seconds.
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
        self.max_send_s = max_send_s
        self._ledger = ledger or Ledger()

    def answering(self, context: Context, rpc: str) -> "_Answering":
        """Admits a call, and aborts it with a status if it fails.

        The call is in work until its answer is sent.

        Args:
            context: The call.
            rpc: Full name of the method, such as gradcam.v1.ExplanationService/ExplainImage.
        """
        metadata = tuple(context.invocation_metadata() or ())
        span = self._tracer.call(rpc, metadata)
        request_id = choose_request_id(dict(metadata).get("x-request-id"))
        ids = logging_for(request_id, span.trace_id)
        recording = _Recording(self._metrics, rpc)
        return _Answering(self.lifecycle, self._metrics, context, ids, working_for(span), recording)

    def claim(self, context: Context, message_id: str = "") -> Claim:
        """Begins to count the memory that a call, or one message of a stream, holds.

        Args:
            context: The call.
            message_id: The text of the message that its answer echoes.

        Returns:
            An empty claim, to be released when the answer is sent.
        """
        caller = current_caller.get().key or context.peer()
        return self._ledger.claim(caller, echoed_bytes(len(message_id)))

    async def item(
        self, rpc: str, work: Callable[[CallRecord], Awaitable[_R]]
    ) -> _R | status_pb2.Status:
        """Does the work for one message of a stream.

        Returns:
            The result of the work, or the status that it failed with.
        """
        with working_for(current_call.get().item()), _Recording(self._metrics, rpc) as record:
            try:
                caller = current_caller.get()
                async with caller.images:
                    if wait_s := caller.reserve():
                        await self.lifecycle.pause(wait_s)
                    self.lifecycle.check_engine()
                    return await work(record)
            except asyncio.CancelledError as error:
                record.code = _CANCELLED
                forget_frames(error)
                raise
            except Exception as error:  # noqa: BLE001 - one table turns all into codes
                status = to_status(error)
                forget_frames(error)
                record.code = status_code(status).name
                return status

    async def count_images(self, images: int, *, streamed: bool) -> None:
        """Counts each image of an admitted request toward the rate of the caller's token.

        Args:
            images: The number of images; the first is counted already.
            streamed: Wait for the rate, as all messages of streams do, instead of failing.

        Raises:
            LimitError: The rate does not allow so many images now.
            NotReadyError: The images would have to wait, and the server drains.
        """
        if images == 1:
            return
        if streamed:
            await self.lifecycle.pause(current_caller.get().reserve(images - 1))
        else:
            current_caller.get().count(images)


class _Answering:
    """Admits the call that is answered in its block, and turns its error into a status."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        metrics: Metrics,
        context: Context,
        ids: logging_for,
        working: working_for,
        recording: "_Recording",
    ) -> None:
        self._lifecycle, self._metrics, self._context = lifecycle, metrics, context
        self._ids, self._working, self._recording = ids, working, recording

    async def __aenter__(self) -> CallRecord:
        self._ids.__enter__()
        self._working.__enter__()
        self._record = self._recording.__enter__()
        try:
            self._lifecycle.begin_request()
        except NotReadyError as error:
            await self.__aexit__(None, error, None)  # raises the status
        when_sent(self._lifecycle.end_request)
        return self._record

    async def __aexit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            if error is not None:
                await self._fail(error)
        finally:
            self._recording.__exit__()
            self._working.__exit__()
            self._ids.__exit__()

    async def _fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._record.code = _CANCELLED
            forget_frames(error)
        if not isinstance(error, Exception):
            return
        if isinstance(error, NotReadyError):
            # By the current phase, unless the server has just left the refusing phase.
            if (reason := _REFUSALS.get(self._lifecycle.phase)) is not None:
                self._metrics.rejected(reason)
            await self._lifecycle.before_refusal()
        if isinstance(error, LimitError):
            self._metrics.rejected("limited")
        status = to_status(error)
        forget_frames(error)
        self._record.code = status_code(status).name
        await abort(self._context, status)


class _Recording:
    """Records the call, or the message of a stream, that is answered in its block."""

    def __init__(self, metrics: Metrics, rpc: str) -> None:
        self._metrics, self._name = metrics, rpc.rpartition("/")[2]
        self._record, self._started = CallRecord(), perf_counter()

    def __enter__(self) -> CallRecord:
        return self._record

    def __exit__(self, *_: object) -> None:
        record, call = self._record, current_call.get()
        elapsed_s = perf_counter() - self._started
        self._metrics.request_done(self._name, record.model, record.code, elapsed_s)
        call.describe(model=record.model)
        call.end(record.code)


def call_deadline(context: Context) -> float | None:
    """Returns a call's deadline as a time of ``perf_counter``."""
    remaining_s = context.time_remaining()
    return None if remaining_s is None else perf_counter() + remaining_s
