"""Adapts Ray Serve's context of a call to the one that the services use."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from time import perf_counter
from typing import Any, NoReturn, Protocol, TypeVar

import grpc

from gradcam_server.transport.calls import Context, Metadata

REMAINING = "x-gradcam-remaining-ms"
"""Metadata in which the proxy passes the call's deadline to the replica; Ray does not."""

_Q = TypeVar("_Q")
_A = TypeVar("_A")


class ServeContext(Protocol):
    """The part of ``ray.serve.grpc_util.RayServegRPCContext`` that is used."""

    def invocation_metadata(self) -> Metadata:
        """Returns the metadata that the client sent."""

    def set_code(self, code: grpc.StatusCode) -> None:
        """Sets the code that the call ends with."""

    def set_details(self, details: str) -> None:
        """Sets the message that the call ends with."""

    def set_trailing_metadata(self, trailing_metadata: list[tuple[str, str | bytes]]) -> None:
        """Sets the metadata that is sent after the answer."""


class StreamEndedError(Exception):
    """A stream ends with a status that is not OK, which is set in Ray Serve's context."""


class CallContext(Context):
    """A call on Ray Serve, as the services use it.

    Args:
        serve: Ray Serve's context of the call.
    """

    def __init__(self, serve: ServeContext) -> None:
        self._serve = serve
        # Of size 1, so that a stream whose answers are not read stops computing.
        self._written: asyncio.Queue[object] = asyncio.Queue(1)
        self._metadata = tuple(serve.invocation_metadata())
        remaining_s = _remaining_s(dict(self._metadata).get(REMAINING))
        self._deadline = None if remaining_s is None else perf_counter() + remaining_s

    def invocation_metadata(self) -> Metadata:
        return self._metadata

    def peer(self) -> str:
        return ""  # Ray does not pass it on

    def time_remaining(self) -> float | None:
        return None if self._deadline is None else self._deadline - perf_counter()

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Metadata = ()
    ) -> NoReturn:
        self._serve.set_code(code)
        self._serve.set_details(details)
        self._serve.set_trailing_metadata(list(trailing_metadata))
        raise grpc.aio.AbortError(f"{code.name}: {details}")

    async def write(self, message: object) -> None:
        await self._written.put(message)

    async def written(self, work: asyncio.Task[None]) -> object | None:
        """Returns the next answer of the stream; None once the work is done and none is left."""
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

    After an error the answer is empty, and the status is in Ray's context: Ray would turn an
    exception into a status without trailing metadata, so without details.

    Args:
        method: The service's method.
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
        method: The service's method.
        messages: The client's messages.
        serve: Ray Serve's context of the call.

    Raises:
        StreamEndedError: The service aborted the stream; the status is in Ray's context.
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


def _remaining_s(text: str | bytes | None) -> float | None:
    if text is not None:
        with suppress(ValueError):
            return int(text) / 1000
    return None
