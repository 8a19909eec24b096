"""The synchronous client."""

import os
import time
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, NoReturn, Self, Unpack

import grpc
from grpc_health.v1 import health_pb2

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_client.errors import GradCamError, decisive, from_rpc_error
from gradcam_client.lines import Call, Line, Lines, Route
from gradcam_client.requests import ExplainOptions, ImageInput, build_template, with_image
from gradcam_client.results import ImageExplanation, ModelInfo
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
    not_picklable,
    not_ready,
    open_channels,
    serving_status,
    split_target,
    still_starting,
)

_ELSEWHERE = (
    "this Client is connected in the process that forked this one; make one in each process, after "
    "the fork"
)


class Client:
    """Asks a server. Safe for threads; closing it cancels what is under way.

    It belongs to the process that made it: each process makes one of its own.

    Args:
        target: The server, "host:port" or any other gRPC target; or several servers, as a
            sequence or as "host:port,host:port": each call goes to one that serves, and is
            tried again on another. A name that stands for several, as "dns:///name:port",
            is balanced by gRPC (round_robin).
        timeout_s: The deadline of a call with all its attempts, in seconds.
        retry: When to try again.
        channels: The connections to each server. A stream or call takes one of them.
        max_message_bytes: The largest request and the largest answer.
        channel_options: More gRPC channel options; they win over ours.
        credentials: For TLS, ``tls_credentials()``; None is plain text.
        token: A bearer token, or what is called for it before each attempt and must be
            quick, as ``token_from_file(path)``.
        allow_insecure_token: Whether a token may leave this machine without TLS.
        channel: A channel to use in place of opening any: what says where and how is passed
            over. Closing it remains the caller's business.

    Raises:
        ValueError: A timeout that is not positive and finite, no server, no channel, or a
            token that others could read.
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
        self._lines = Lines(
            lambda: (
                [(0, "", channel)]
                if channel
                else open_channels(grpc, targets, channels, credentials, options)
            ),
            os.getpid,
            _ELSEWHERE,
        )
        self._lines.open()

    def __reduce__(self) -> NoReturn:
        raise not_picklable(self)

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
        """Closes the channels, unless one was given."""
        if self._owns_channels:
            for channel in self._lines.close():
                channel.close()

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
            image: A path, the bytes of a file, or uint8 RGB pixels (H, W, 3).
            timeout_s: The deadline with all attempts, in seconds; None is the client's.
            request_id: The call's name in the server's log; None makes one.
            hedge_after_s: After so many seconds without an answer a second attempt is made,
                by another server or connection if there is one. The first answer counts, and
                the other attempt is cancelled. A server that has begun to compute finishes
                it all the same: that costs device time. None, the default, makes none.
            **options: As of ``gradcam_client.requests.build_template``.

        Raises:
            GradCamError: The server's error, or the last attempt's.
            OSError: The file cannot be read.
            TypeError: As of ``build_request``.
            ValueError: As of ``build_request``, or a wrong timeout, request id or token.
        """
        request = with_image(build_template(**options), image)
        response = self._call("ExplainImage", request, timeout_s, request_id, hedge_after_s)
        return ImageExplanation.from_response(response)

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
        that fails does not stop the others. A stream that breaks is opened again, and
        only what was not answered is sent again; when the attempts are used up, or no
        answer comes for ``timeout_s``, the images that were taken and not answered get
        the error as their outcome, and the stream goes on with the next ones.

        ``images`` is iterated in another thread, never more than ``max_in_flight`` images
        ahead, so it may be infinite or slow. What it raises is raised here, after the
        outcomes of the images before. Leaving the loop early cancels what is under way
        as soon as the generator is closed or dropped.

        Args:
            images: Each one as of ``explain``.
            max_in_flight: How many images may be taken and not yet yielded.
            timeout_s: How long to wait without any answer or progress, in seconds; None is
                the client's timeout.
            request_id: The stream's name in the server's log; None makes one.
            on_progress: Told how far each image is, a few times in a second, for methods of
                many passes; in another thread. What it raises is raised here.
            **options: As of ``gradcam_client.requests.build_template``.

        Yields:
            The result or the error of each image.

        Raises:
            TypeError: A wrong option, or ``images`` is a single image.
            ValueError: A wrong option.
        """
        check_images(images)
        route = Route(self._lines, self._token, request_id)
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
        """Lists the models in short, the default first, without classes and layers.

        Raises:
            GradCamError: The server's error, or the last attempt's.
        """
        response = self._call("ListModels", pb.ListModelsRequest())
        return tuple(ModelInfo.from_proto(model) for model in response.models)

    def get_model(self, name: str = "", version: str = "") -> ModelInfo:
        """Describes one model in full; empty names are the server's first model and version.

        Raises:
            NotFoundError: No such model.
            GradCamError: The server's error, or the last attempt's.
        """
        response = self._call("GetModel", pb.GetModelRequest(name=name, version=version))
        return ModelInfo.from_proto(response.model)

    def health(self, service: str = "", timeout_s: float = HEALTH_TIMEOUT_S) -> str:
        """Asks once whether a service is served, of several servers the next one.

        Args:
            service: Its full name; empty is the whole server.
            timeout_s: The deadline in seconds.

        Returns:
            "SERVING", "NOT_SERVING", "UNKNOWN" or "SERVICE_UNKNOWN".

        Raises:
            NotFoundError: No such service.
            GradCamError: No answer; ``UnavailableError`` if there is no connection.
        """
        call = self._begin(timeout_s)
        request = health_pb2.HealthCheckRequest(service=service)
        with call.attempt() as line:
            return serving_status(line.health.Check(request, **call.options()))

    def wait_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Waits until the server serves, of several servers any one.

        Args:
            timeout_s: How long, in seconds.

        Raises:
            DeadlineExceededError: It does not serve in time.
            GradCamError: It answers, but not to health checks.
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
        return Call(self._lines, self._token, request_id, self._retry, timeout_s)

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
    with call.attempt() as line:
        return getattr(line.service, method)(request, **call.options())


def _ask_twice(call: Call, method: str, request: object, hedge_after_s: float) -> Any:
    ended: SimpleQueue[tuple[Line, Any]] = SimpleQueue()
    errors: list[GradCamError] = []
    with ExitStack() as under_way:

        def start() -> None:
            options, line = call.options(), call.begin()
            under_way.callback(call.end, line)
            with call.unless_closed():
                future = getattr(line.service, method).future(request, **options)
            under_way.callback(future.cancel)
            future.add_done_callback(lambda future: ended.put((line, future)))

        start()
        started = 1
        patience_s: float | None = hedge_after_s
        while True:
            try:
                line, future = ended.get(timeout=patience_s)
            except Empty:
                start()
                started = 2
            else:
                if future.code() is grpc.StatusCode.OK:
                    return future.result()
                errors.append(call.failed(line, from_rpc_error(future)))
            patience_s = None
            error = decisive(errors, are_all=len(errors) == started)
            if error is not None:
                raise error
