"""The asynchronous client."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from grpc_health.v1 import health_pb2

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client.channel_pool import Call, ChannelPool, Route
from gradcam_client.errors import GradCamError, closed_error, decisive
from gradcam_client.model_info import ModelInfo
from gradcam_client.reopening import picklable, reopen
from gradcam_client.requests import (
    ExplainOptions,
    ImageInput,
    build_template,
    spell_out_options,
    with_image,
)
from gradcam_client.results import ImageExplanation
from gradcam_client.retry import RetryPolicy
from gradcam_client.security import check_token
from gradcam_client.stream import OnProgress, Outcome, StreamLedger
from gradcam_client.task_stream import Asynchronous, TaskStream, cancel_tasks, is_task_cancelled
from gradcam_client.transport import (
    DEFAULT_MAX_IN_FLIGHT,
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_RETRY,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    HEALTH_TIMEOUT_S,
    READY_POLL_S,
    SERVING,
    ChannelOptions,
    Token,
    check_channels,
    check_images,
    check_timeout,
    merge_options,
    not_ready,
    open_channels,
    serving_status,
    split_target,
    still_starting,
)

_WRONG_OWNER = (
    "this AsyncClient is connected in another event loop; make one in each loop (asyncio.run makes "
    "a new loop each time), or keep to one loop"
)


class AsyncClient:
    """The client for asyncio. It has the methods of ``Client``; cancelling one cancels its call.

    It may be made outside an event loop: it connects at the first await, and from then on works
    only in that event loop, and so in one process. A pickled client carries its arguments (a
    token included) and opens its own connections.

    Args:
        target: The server, "host:port" or any other gRPC target; or several servers, as a
            sequence or as "host:port,host:port": each call goes to a server that serves, and is
            retried on another server. gRPC balances the servers of one DNS name, such as
            "dns:///name:port" (round_robin).
        timeout_s: The deadline of a call with all its attempts, in seconds.
        retry: Decides when to retry.
        channels: Number of connections to each server. A call or stream uses one of them.
        max_message_bytes: The largest size of a request and of an answer.
        channel_options: gRPC channel options; they override those of the client.
        credentials: For TLS, ``tls_credentials()``; None is plain text.
        token: A bearer token, or a function that returns it, such as ``token_from_file(path)``.
            The function is called before each attempt and must be quick.
        allow_insecure_token: Whether a token may leave this machine without TLS.
        channel: An open channel to use; ``target``, ``channels``, ``credentials`` and the channel
            options are then ignored, and the caller closes the channel.

    Raises:
        ValueError: A timeout is not positive and finite, there is no target, ``channels`` is less
            than 1, or the token would be sent in plain text.
    """

    def __init__(
        self,
        target: str | Sequence[str] = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy = DEFAULT_RETRY,
        channels: int = 1,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        channel_options: ChannelOptions = (),
        credentials: grpc.ChannelCredentials | None = None,
        token: Token | None = None,
        allow_insecure_token: bool = False,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        self._arguments = {
            "target": target,
            "timeout_s": timeout_s,
            "retry": retry,
            "channels": channels,
            "max_message_bytes": max_message_bytes,
            "channel_options": channel_options,
            "credentials": credentials,
            "token": token,
            "allow_insecure_token": allow_insecure_token,
            "channel": channel,
        }
        self._timeout_s = check_timeout(timeout_s)
        self._retry = retry
        self._owns_channels = channel is None
        targets = () if channel else split_target(target)
        self._token = check_token(
            token,
            targets,
            secure=credentials is not None and channel is None,
            allow_insecure=allow_insecure_token,
        )
        options = merge_options(max_message_bytes, retry, channel_options)
        check_channels(channels)
        self._pool = ChannelPool(
            lambda: (
                [(0, "", channel)]
                if channel
                else open_channels(grpc.aio, targets, channels, credentials, options)
            ),
            asyncio.get_running_loop,
            _WRONG_OWNER,
        )

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[object, ...]]:
        return reopen, (type(self), picklable(type(self).__name__, self._arguments))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channels, unless ``channel`` was passed."""
        if self._owns_channels:
            await asyncio.gather(*(channel.close() for channel in self._pool.close()))

    @spell_out_options
    async def explain(
        self,
        image: ImageInput,
        *,
        timeout_s: float | None = None,
        request_id: str | None = None,
        hedge_after_s: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> ImageExplanation:
        """Explains one image.

        Args:
            image: A path, the bytes of a file, an ``ImageUrl``, or uint8 RGB pixels (H, W, 3).
                Files and links are read in another thread.
            timeout_s: The deadline of all attempts, in seconds; None takes the client's.
            request_id: The call's name in the server's log; None generates one.
            hedge_after_s: After this many seconds without an answer, a second attempt goes to
                another server or connection, if there is one. The first answer counts; the
                other attempt is cancelled. A server that has begun to compute finishes the
                attempt nevertheless, which costs device time. None, the default, never hedges.
            **options: As listed in ``ExplainOptions``.

        Raises:
            GradCamError: The error of the server, or of the last attempt.
            OSError: The file cannot be read.
            TypeError: As in ``build_request``.
            ValueError: As in ``build_request``; or the timeout, the request id or the token is
                invalid.
        """
        request = await asyncio.to_thread(with_image, build_template(**options), image)
        response = await self._call("ExplainImage", request, timeout_s, request_id, hedge_after_s)
        return ImageExplanation.from_response(response, image)

    @spell_out_options
    def explain_stream(
        self,
        images: Iterable[ImageInput] | AsyncIterable[ImageInput],
        *,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        timeout_s: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[ExplainOptions],
    ) -> AsyncGenerator[Outcome]:
        """Explains many images over one stream, as ``Client.explain_stream`` does.

        ``images`` is iterated in another task: an iterable that blocks must be asynchronous.
        Python closes an abandoned asynchronous generator late; ``contextlib.aclosing`` cancels
        the call as soon as the loop is left early.

        Args:
            images: The images, each as in ``explain``.
            max_in_flight: Most images that are taken and not yet yielded.
            timeout_s: Longest time without any answer or progress, in seconds; None takes the
                client's timeout.
            request_id: The stream's name in the server's log; None generates one.
            on_progress: Called with the progress of each image, a few times in a second, for
                methods of many passes.
            **options: As listed in ``ExplainOptions``.

        Yields:
            The result or the error of each image, in the order of the images.

        Raises:
            TypeError: An option has a wrong type, or ``images`` is a single image.
            ValueError: An option has a wrong value.
        """
        check_images(images)
        route = Route(self._pool, self._token, request_id)
        ledger = StreamLedger(
            self._retry,
            max_in_flight=max_in_flight,
            timeout_s=self._timeout_s if timeout_s is None else check_timeout(timeout_s),
            report_progress=on_progress is not None,
            request_id=route.request_id,
        )
        stream = TaskStream(route, ledger, build_template(**options), on_progress)
        return stream.outcomes(
            aiter(images) if isinstance(images, AsyncIterable) else Asynchronous(iter(images))
        )

    async def list_models(self) -> tuple[ModelInfo, ...]:
        """Lists the models, the default first, without their classes and layers.

        Raises:
            GradCamError: The error of the server, or of the last attempt.
        """
        response = await self._call("ListModels", pb.ListModelsRequest())
        return tuple(ModelInfo.from_proto(model) for model in response.models)

    async def get_model(self, name: str = "", version: str = "") -> ModelInfo:
        """Describes one model with its classes and layers.

        Args:
            name: The model; empty is the server's first model.
            version: The model's version; empty is the first version.

        Raises:
            NotFoundError: There is no such model.
            GradCamError: The error of the server, or of the last attempt.
        """
        response = await self._call("GetModel", pb.GetModelRequest(name=name, version=version))
        return ModelInfo.from_proto(response.model)

    async def health(self, service: str = "", timeout_s: float = HEALTH_TIMEOUT_S) -> str:
        """Sends one health check; with several servers, to the next server.

        Args:
            service: The full name of the gRPC service; empty is the whole server.
            timeout_s: The deadline in seconds.

        Returns:
            "SERVING", "NOT_SERVING", "UNKNOWN" or "SERVICE_UNKNOWN".

        Raises:
            NotFoundError: There is no such service.
            GradCamError: There is no answer; ``UnavailableError`` if there is no connection.
        """
        call = self._begin(timeout_s)
        request = health_pb2.HealthCheckRequest(service=service)
        with call.attempt() as channel:
            return serving_status(await channel.health.Check(request, **call.options()))

    async def wait_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Waits until the server serves; of several servers, until any server does.

        Args:
            timeout_s: The longest time to wait, in seconds.

        Raises:
            DeadlineExceededError: No server serves in time.
            GradCamError: The server answers, but refuses health checks.
        """
        deadline = time.monotonic() + check_timeout(timeout_s)
        last = "no answer"
        while (remaining_s := deadline - time.monotonic()) > 0:
            try:
                last = await self.health(timeout_s=min(HEALTH_TIMEOUT_S, remaining_s))
            except GradCamError as error:
                if not still_starting(error):
                    raise
                last = str(error)
            if last == SERVING:
                return
            await asyncio.sleep(READY_POLL_S)
        raise not_ready(timeout_s, last)

    def _begin(self, timeout_s: float | None, request_id: str | None = None) -> Call:
        timeout_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        return Call(self._pool, self._token, request_id, self._retry, timeout_s)

    async def _call(
        self,
        method: str,
        request: object,
        timeout_s: float | None = None,
        request_id: str | None = None,
        hedge_after_s: float | None = None,
    ) -> Any:
        call = self._begin(timeout_s, request_id)
        if hedge_after_s is not None:
            check_timeout(hedge_after_s, "hedge_after_s")
        while True:
            try:
                if hedge_after_s is None:
                    return await _ask(call, method, request)
                return await _ask_twice(call, method, request, hedge_after_s)
            except GradCamError as error:
                pause_s = call.pause_s(error)
                if pause_s is None:
                    raise
            await asyncio.sleep(pause_s)


async def _ask(call: Call, method: str, request: object) -> Any:
    with call.attempt() as channel:
        try:
            return await getattr(channel.service, method)(request, **call.options())
        except asyncio.CancelledError:
            if is_task_cancelled():
                raise
            raise closed_error() from None


async def _ask_twice(call: Call, method: str, request: object, hedge_after_s: float) -> Any:
    errors: list[GradCamError] = []
    under_way = {asyncio.create_task(_ask(call, method, request))}
    try:
        done, _ = await asyncio.wait(under_way, timeout=hedge_after_s)
        if not done:
            under_way.add(asyncio.create_task(_ask(call, method, request)))
        while True:
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                failure = task.exception()
                if failure is None:
                    return task.result()
                if not isinstance(failure, GradCamError):
                    raise failure
                errors.append(failure)
            error = decisive(errors, are_all=not under_way)
            if error is not None:
                raise error
    finally:
        await cancel_tasks(*under_way)
