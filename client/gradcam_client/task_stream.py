"""Runs a stream of the asynchronous client with tasks."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Self, TypeVar

import grpc

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client.channel_pool import Route
from gradcam_client.errors import GradCamError, UnavailableError, closed_error, from_rpc_error
from gradcam_client.requests import ImageInput, with_image
from gradcam_client.stream import OnProgress, Outcome, StreamLedger, ended_early
from gradcam_client.transport import END_S

_T = TypeVar("_T")

_WRITE_FAILED = "Internal error from Core"
_STATUS_GRACE_S = 0.1


class Asynchronous:
    """Wraps an iterator as an asynchronous iterator, which unlike a generator needs no closing."""

    def __init__(self, iterator: Iterator[ImageInput]) -> None:
        self._iterator = iterator

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ImageInput:
        try:
            return next(self._iterator)
        except StopIteration:
            raise StopAsyncIteration from None


class TaskStream:
    """Connects a ``StreamLedger`` to gRPC with tasks.

    The feeder iterates the user's images, the runner opens calls and reads their answers, a task
    of gRPC sends the requests of ``_requests``, and the user's task waits for outcomes.
    """

    def __init__(
        self,
        route: Route,
        ledger: StreamLedger,
        template: pb.ExplainImageRequest,
        on_progress: OnProgress | None,
    ) -> None:
        self._route = route
        self._ledger = ledger
        self._template = template
        self._on_progress = on_progress
        self._changed = asyncio.Event()
        self._epoch = 0  # grows when a call begins or ends: events of older calls are ignored

    async def outcomes(self, images: AsyncIterator[ImageInput]) -> AsyncGenerator[Outcome]:
        feeder = asyncio.create_task(self._feed(images))
        self._start_runner()
        try:
            while (outcome := await self._next_outcome()) is not None:
                yield outcome
            # The call is about to end; if it were cancelled, the server would count a failure.
            await asyncio.wait({self._runner}, timeout=END_S)
        finally:
            # The call first: the end of the feeder would end its requests as if all were sent.
            await cancel_tasks(self._runner)
            await cancel_tasks(feeder)

    async def _next_outcome(self) -> Outcome | None:
        while (outcome := self._ledger.next_outcome()) is None:
            if self._runner.done():
                self._runner.result()  # raises the exception of the runner, if any
            if self._ledger.all_yielded:
                if self._ledger.input_error is not None:
                    raise self._ledger.input_error
                return None
            expires_in_s = self._ledger.expires_in_s(time.monotonic())
            if expires_in_s == 0:
                self._ledger.expire()
                await cancel_tasks(self._runner)
                self._start_runner()
            else:
                await self._wait(expires_in_s)
        self._notify()  # there is room for another image
        return outcome

    def _start_runner(self) -> None:
        self._runner = asyncio.create_task(self._run())
        self._runner.add_done_callback(lambda _: self._notify())

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _wait(self, timeout_s: float | None = None) -> None:
        changed = self._changed
        try:
            async with asyncio.timeout(timeout_s):
                await changed.wait()
        except TimeoutError:
            pass

    # The feeder.

    async def _feed(self, images: AsyncIterator[ImageInput]) -> None:
        error: BaseException | None = None
        try:
            while True:
                while not self._ledger.has_room:
                    await self._wait()
                await self._take(await anext(images))
        except StopAsyncIteration:
            pass
        except (Exception, asyncio.CancelledError) as raised:  # noqa: BLE001 - it is the caller's
            error = raised
        self._ledger.end_input(error)
        self._notify()

    async def _take(self, image: ImageInput) -> None:
        try:
            request = await asyncio.to_thread(with_image, self._template, image)
        except (OSError, TypeError, ValueError) as error:
            self._ledger.take_failed(image, error)
        else:
            self._ledger.take(image, request, time.monotonic())
        self._notify()

    # The runner.

    async def _run(self) -> None:
        while await self._wait_until_due():
            self._epoch += 1
            metadata, channel = self._route.metadata(), self._route.begin()
            try:
                requests = self._requests(self._epoch)
                with self._route.unless_closed():
                    call = channel.service.StreamExplainImages(requests, metadata=metadata)
                error = await self._read(call)
            finally:
                self._route.end(channel)
            if not self._ledger.all_answered:
                error = self._route.failed(channel, error)
            self._ledger.broke(error, time.monotonic(), self._route.available_in_s)
            self._notify()

    async def _read(self, call: Any) -> GradCamError:
        ending = _Ending(call)
        try:
            with suppress(grpc.RpcError):
                async for answer in call:
                    progress = self._ledger.answered(answer, time.monotonic())
                    self._notify()
                    if progress is not None and self._on_progress is not None:
                        self._on_progress(progress)
            return await ending.error()
        except asyncio.CancelledError:
            if is_task_cancelled():
                raise
            return closed_error()
        finally:
            call.cancel()
            self._epoch += 1
            self._notify()

    async def _wait_until_due(self) -> bool:
        while not self._ledger.all_answered:
            due_in_s = self._ledger.due_in_s(time.monotonic())
            if due_in_s == 0:
                return True
            await self._wait(due_in_s)
        return False

    # The sender.

    async def _requests(self, epoch: int) -> AsyncIterator[pb.StreamExplainImagesRequest]:
        while self._epoch == epoch and not self._ledger.all_answered:
            now = time.monotonic()
            request = self._ledger.next_request(now)
            if request is not None:
                yield request
            else:
                await self._wait(self._ledger.due_in_s(now))


async def cancel_tasks(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Ending:
    """The error that ended a call of a stream.

    A write that fails because the server has ended the call sets a status of its own, after the
    server's status or shortly before it (github.com/grpc/grpc/issues/36066), so each status is
    noted when it is set.
    """

    def __init__(self, call: Any) -> None:
        self._errors: list[GradCamError] = []
        call.add_done_callback(self._note)

    async def error(self) -> GradCamError:
        """Returns the server's error, once the call is done."""
        if not self._errors:
            await asyncio.sleep(_STATUS_GRACE_S)
        broken = UnavailableError(grpc.StatusCode.UNAVAILABLE, "the stream broke during a write")
        return self._errors[0] if self._errors else broken

    def _note(self, call: Any) -> None:
        code, message = _without_waiting(call.code()), _without_waiting(call.details())
        if code is grpc.StatusCode.OK:
            self._errors.append(ended_early())
        elif message != _WRITE_FAILED:
            nothing = grpc.aio.Metadata()
            trailing = _without_waiting(call.trailing_metadata())
            status = grpc.aio.AioRpcError(code, nothing, trailing, message)
            self._errors.append(from_rpc_error(status))


def _without_waiting(coroutine: Coroutine[None, None, _T]) -> _T:
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: _T = done.value
        return result
    raise RuntimeError("the call is not done")


def is_task_cancelled() -> bool:
    # When the channel is closed gRPC raises CancelledError in tasks that nobody cancelled.
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
