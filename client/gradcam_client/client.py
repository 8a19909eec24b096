"""The synchronous client."""

import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from grpc_health.v1 import health_pb2

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client.channel_pool import Call, ChannelPool, PooledChannel, Route
from gradcam_client.errors import GradCamError, decisive, from_rpc_error
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
from gradcam_client.threaded_stream import ThreadedStream
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
    "this Client is connected in the process that forked this one; make one in each process, after "
    "the fork"
)


class Client:
    """A client for one or several servers. Safe for threads; closing it cancels its calls.

    The connections belong to the process that made the client. A pickled client carries its
    arguments (a token included) and opens its own connections in the other process; after a fork,
    the child makes its own client.

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
        channel: grpc.Channel | None = None,
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
                else open_channels(grpc, targets, channels, credentials, options)
            ),
            os.getpid,
            _WRONG_OWNER,
        )
        self._pool.open()

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[object, ...]]:
        return reopen, (type(self), picklable(type(self).__name__, self._arguments))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the channels, unless ``channel`` was passed."""
        if self._owns_channels:
            for channel in self._pool.close():
                channel.close()

    @spell_out_options
    def explain(
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
        request = with_image(build_template(**options), image)
        response = self._call("ExplainImage", request, timeout_s, request_id, hedge_after_s)
        return ImageExplanation.from_response(response, image)

    @spell_out_options
    def explain_stream(
        self,
        images: Iterable[ImageInput],
        *,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        timeout_s: float | None = None,
        request_id: str | None = None,
        on_progress: OnProgress | None = None,
        **options: Unpack[ExplainOptions],
    ) -> Generator[Outcome]:
        """Explains many images over one stream.

        There is exactly one outcome for each image, in the order of the images. An image
        that fails does not stop the stream. A stream that breaks is opened again, and only
        images without an answer are sent again. If the attempts are used up, or no answer
        comes for ``timeout_s``, the images that were taken and not answered get the error as
        their outcome, and the stream goes on with the next images.

        ``images`` is iterated in another thread, never more than ``max_in_flight`` images
        ahead, so it may be infinite or slow. Its exceptions are raised here, after the
        outcomes of the images before. After an early exit from the loop, the call is
        cancelled as soon as the generator is closed or garbage-collected.

        Args:
            images: The images, each as in ``explain``.
            max_in_flight: Most images that are taken and not yet yielded.
            timeout_s: Longest time without any answer or progress, in seconds; None takes the
                client's timeout.
            request_id: The stream's name in the server's log; None generates one.
            on_progress: Called with the progress of each image, a few times in a second, for
                methods of many passes; in another thread. Its exceptions are raised here.
            **options: As listed in ``ExplainOptions``.

        Yields:
            The result or the error of each image.

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
        stream = ThreadedStream(route, ledger, build_template(**options), on_progress)
        return stream.outcomes(iter(images))

    def list_models(self) -> tuple[ModelInfo, ...]:
        """Lists the models, the default first, without their classes and layers.

        Raises:
            GradCamError: The error of the server, or of the last attempt.
        """
        response = self._call("ListModels", pb.ListModelsRequest())
        return tuple(ModelInfo.from_proto(model) for model in response.models)

    def get_model(self, name: str = "", version: str = "") -> ModelInfo:
        """Describes one model with its classes and layers.

        Args:
            name: The model; empty is the server's first model.
            version: The model's version; empty is the first version.

        Raises:
            NotFoundError: There is no such model.
            GradCamError: The error of the server, or of the last attempt.
        """
        response = self._call("GetModel", pb.GetModelRequest(name=name, version=version))
        return ModelInfo.from_proto(response.model)

    def health(self, service: str = "", timeout_s: float = HEALTH_TIMEOUT_S) -> str:
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
            return serving_status(channel.health.Check(request, **call.options()))

    def wait_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
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
                last = self.health(timeout_s=min(HEALTH_TIMEOUT_S, remaining_s))
            except GradCamError as error:
                if not still_starting(error):
                    raise
                last = str(error)
            if last == SERVING:
                return
            time.sleep(READY_POLL_S)
        raise not_ready(timeout_s, last)

    def _begin(self, timeout_s: float | None, request_id: str | None = None) -> Call:
        timeout_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        return Call(self._pool, self._token, request_id, self._retry, timeout_s)

    def _call(
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
                    return _ask(call, method, request)
                return _ask_twice(call, method, request, hedge_after_s)
            except GradCamError as error:
                pause_s = call.pause_s(error)
                if pause_s is None:
                    raise
            time.sleep(pause_s)


def _ask(call: Call, method: str, request: object) -> Any:
    with call.attempt() as channel:
        return getattr(channel.service, method)(request, **call.options())


def _ask_twice(call: Call, method: str, request: object, hedge_after_s: float) -> Any:
    ended: SimpleQueue[tuple[PooledChannel, Any]] = SimpleQueue()
    errors: list[GradCamError] = []
    with ExitStack() as under_way:

        def start() -> None:
            options, channel = call.options(), call.begin()
            under_way.callback(call.end, channel)
            with call.unless_closed():
                future = getattr(channel.service, method).future(request, **options)
            under_way.callback(future.cancel)
            future.add_done_callback(lambda future: ended.put((channel, future)))

        start()
        started = 1
        patience_s: float | None = hedge_after_s
        while True:
            try:
                channel, future = ended.get(timeout=patience_s)
            except Empty:
                start()
                started = 2
            else:
                if future.code() is grpc.StatusCode.OK:
                    return future.result()
                errors.append(call.failed(channel, from_rpc_error(future)))
            patience_s = None
            error = decisive(errors, are_all=len(errors) == started)
            if error is not None:
                raise error
