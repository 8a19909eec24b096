"""A gRPC call as Ray Serve tells of it, in the form that the services know calls in."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from time import perf_counter
from typing import Any, NoReturn, Protocol, TypeAlias, TypeVar

import grpc

from gradcam_server.transport.calls import Context

REMAINING = "x-gradcam-remaining-ms"
"""Metadata in which the proxy tells the replica the deadline, which Ray does not pass on."""

Metadata: TypeAlias = Sequence[tuple[str, str | bytes]]

_Q = TypeVar("_Q")
_A = TypeVar("_A")


class ServeContext(Protocol):
    """What we need of ``ray.serve.grpc_util.RayServegRPCContext``."""

    def invocation_metadata(self) -> Metadata:
        """Returns what the client sent beside the request."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Sets the code that the call ends with."""

    def set_details(self, details: str) -> None:
        """Sets the message that the call ends with."""

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
        """Sets what is sent after the answer."""


class StreamEndedError(Exception):
    """A stream ends with a status that is not OK; Ray Serve is told of the code beforehand."""


class CallContext:
    """A call on Ray Serve, as the services use it: ``transport.calls.Context``.

    Args:
        serve: Ray Serve's context of the call.
    """

    def __init__(self, serve: ServeContext) -> None:
        self._serve = serve
        # One at a time: a stream whose answers are not taken computes no further.
        self._written: asyncio.Queue[object] = asyncio.Queue(1)
        self._metadata = tuple(serve.invocation_metadata())
        remaining_s = _remaining_s(dict(self._metadata).get(REMAINING))
        self._deadline = None if remaining_s is None else perf_counter() + remaining_s

    def invocation_metadata(self) -> Metadata:
        """Returns what the client sent beside the request."""
        return self._metadata

    def peer(self) -> str:
        """Returns who calls: Ray does not tell."""
        return ""

    def time_remaining(self) -> float | None:
        """Returns how long the client still waits, in seconds; None is for ever."""
        return None if self._deadline is None else self._deadline - perf_counter()

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        """Ends the call with a status.

        Raises:
            grpc.aio.AbortError: Always.
        """
        self._serve.set_code(code)
        self._serve.set_details(details)
        self._serve.set_trailing_metadata(list(trailing_metadata))
        raise grpc.aio.AbortError(f"{code.name}: {details}")

    async def write(self, message: object) -> None:
        """Writes an answer into the stream."""
        await self._written.put(message)

    async def written(self, work: asyncio.Task[None]) -> object | None:
        """Takes the next answer of the stream; None once the work is done and all are taken."""
        if self._written.empty() and not work.done():
            taking = asyncio.create_task(self._written.get())
            try:
                await asyncio.wait({taking, work}, return_when=asyncio.FIRST_COMPLETED)
                if taking.done():
                    return taking.result()
            finally:
                taking.cancel()
        return None if self._written.empty() else self._written.get_nowait()


async def answer_call(
    method: Callable[[_Q, Context], Awaitable[_A]],
    request: _Q,
    serve: ServeContext,
    no_answer: Callable[[], _A],
) -> _A:
    """Answers a call with one request and one answer.

    An error is an empty answer beside the code in Ray's context: what Ray makes of an exception
    has no trailing metadata, and so no details.

    Args:
        method: Of the service.
        request: The request.
        serve: Ray Serve's context of the call.
        no_answer: Makes the empty answer.
    """
    try:
        return await method(request, CallContext(serve))
    except grpc.aio.AbortError:
        return no_answer()


async def answer_stream(
    method: Callable[[AsyncIterator[Any], Context], Coroutine[Any, Any, None]],
    messages: AsyncIterator[Any],
    serve: ServeContext,
) -> AsyncIterator[Any]:
    """Answers a stream of requests by a stream of answers.

    Args:
        method: Of the service.
        messages: The client's.
        serve: Ray Serve's context of the call.

    Raises:
        StreamEndedError: The service aborted the stream; its code is in Ray's context.
    """
    call = CallContext(serve)
    work = asyncio.create_task(method(messages, call))
    try:
        while (message := await call.written(work)) is not None:
            yield message
        await work
    except grpc.aio.AbortError as error:
        raise StreamEndedError(str(error)) from None
    finally:
        work.cancel()
        await asyncio.wait({work})


def _remaining_s(told: str | bytes | None) -> float | None:
    if told is not None:
        with suppress(ValueError):
            return int(told) / 1000
    return None
