"""The synchronous client."""

import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc
from gradcam_client.errors import GradCamError, from_rpc_error
from gradcam_client.requests import ExplainOptions, ImageInput, build_template, with_image
from gradcam_client.results import ImageExplanation, ModelInfo
from gradcam_client.retry import RetryPolicy
from gradcam_client.stream import OnProgress, Outcome, StreamLedger, ended_early
from gradcam_client.transport import (
    DEFAULT_MAX_IN_FLIGHT,
    DEFAULT_MAX_MESSAGE_BYTES,
    DEFAULT_RETRY,
    DEFAULT_TARGET,
    DEFAULT_TIMEOUT_S,
    END_S,
    HEALTH_TIMEOUT_S,
    READY_POLL_S,
    SERVING,
    ChannelOptions,
    check_images,
    check_timeout,
    merge_options,
    not_ready,
    serving_status,
    still_starting,
)


class Client:
    """Asks a server. Safe for threads; closing it cancels what is under way.

    Args:
        target: The server, "host:port" or any other gRPC target.
        timeout_s: The deadline of a call with all its attempts, in seconds.
        retry: When to try again.
        max_message_bytes: The largest request and the largest answer.
        channel_options: More gRPC channel options; they win over ours.
        credentials: For TLS, ``grpc.ssl_channel_credentials()``; None is plain text.
        channel: A channel to use in place of all the above but ``timeout_s`` and
            ``retry``. Closing it remains the caller's business.

    Raises:
        ValueError: The timeout is not positive and finite.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy = DEFAULT_RETRY,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        channel_options: ChannelOptions = (),
        credentials: grpc.ChannelCredentials | None = None,
        channel: grpc.Channel | None = None,
    ) -> None:
        self._timeout_s = check_timeout(timeout_s)
        self._retry = retry
        self._owns_channel = channel is None
        self._channel = channel or _open_channel(
            target, credentials, merge_options(max_message_bytes, retry, channel_options)
        )
        self._service = pb_grpc.ExplanationServiceStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)

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
        """Closes the channel, unless it was given."""
        if self._owns_channel:
            self._channel.close()

    def explain(
        self,
        image: ImageInput,
        *,
        timeout_s: float | None = None,
        **options: Unpack[ExplainOptions],
    ) -> ImageExplanation:
        """Explains one image.

        Args:
            image: A path, the bytes of a file, or uint8 RGB pixels (H, W, 3).
            timeout_s: The deadline with all attempts, in seconds; None is the client's.
            **options: As of ``gradcam_client.requests.build_template``.

        Raises:
            GradCamError: The server's error, or the last attempt's.
            OSError: The file cannot be read.
            TypeError: As of ``build_request``.
            ValueError: As of ``build_request``.
        """
        request = with_image(build_template(**options), image)
        response = self._call(self._service.ExplainImage, request, timeout_s)
        return ImageExplanation.from_response(response)

    def explain_stream(
        self,
        images: Iterable[ImageInput],
        *,
        max_in_flight: int = DEFAULT_MAX_IN_FLIGHT,
        timeout_s: float | None = None,
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
        ledger = StreamLedger(
            self._retry,
            max_in_flight=max_in_flight,
            timeout_s=self._timeout_s if timeout_s is None else check_timeout(timeout_s),
            report_progress=on_progress is not None,
        )
        stream = _Stream(self._service, ledger, build_template(**options), on_progress)
        return stream.outcomes(iter(images))

    def list_models(self) -> tuple[ModelInfo, ...]:
        """Lists the models in short, the default first, without classes and layers.

        Raises:
            GradCamError: The server's error, or the last attempt's.
        """
        response = self._call(self._service.ListModels, pb.ListModelsRequest())
        return tuple(ModelInfo.from_proto(model) for model in response.models)

    def get_model(self, name: str = "", version: str = "") -> ModelInfo:
        """Describes one model in full; empty names are the server's first model and version.

        Raises:
            NotFoundError: No such model.
            GradCamError: The server's error, or the last attempt's.
        """
        response = self._call(
            self._service.GetModel, pb.GetModelRequest(name=name, version=version)
        )
        return ModelInfo.from_proto(response.model)

    def health(self, service: str = "", timeout_s: float = HEALTH_TIMEOUT_S) -> str:
        """Asks once whether a service is served.

        Args:
            service: Its full name; empty is the whole server.
            timeout_s: The deadline in seconds.

        Returns:
            "SERVING", "NOT_SERVING", "UNKNOWN" or "SERVICE_UNKNOWN".

        Raises:
            NotFoundError: No such service.
            GradCamError: No answer; ``UnavailableError`` if there is no connection.
        """
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            return serving_status(self._health.Check(request, timeout=check_timeout(timeout_s)))
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error

    def wait_ready(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        """Waits until the server serves.

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

    def _call(self, method: Any, request: object, timeout_s: float | None = None) -> Any:
        timeout_s = self._timeout_s if timeout_s is None else check_timeout(timeout_s)
        deadline = time.monotonic() + timeout_s
        failures = 0
        while True:
            try:
                return method(request, timeout=deadline - time.monotonic())
            except grpc.RpcError as rpc_error:
                error = from_rpc_error(rpc_error)
                failures += 1
                pause_s = self._retry.pause_s(error, failures, deadline - time.monotonic())
                if pause_s is None:
                    raise error from rpc_error
            time.sleep(pause_s)


class _Stream:
    """Drives a ledger with threads.

    The feeder iterates the caller's images, the runner opens calls and reads their
    answers, a thread of gRPC's sends what ``_requests`` yields, and the caller's own
    thread waits for outcomes. ``_changed`` guards the ledger and all fields.
    """

    def __init__(
        self,
        service: pb_grpc.ExplanationServiceStub,
        ledger: StreamLedger,
        template: pb.ExplainImageRequest,
        on_progress: OnProgress | None,
    ) -> None:
        self._service = service
        self._ledger = ledger
        self._template = template
        self._on_progress = on_progress
        self._changed = threading.Condition()
        self._call: Any = None
        self._epoch = 0  # grows when a call begins and ends: old ones have no say
        self._closed = False
        self._fault: BaseException | None = None

    def outcomes(self, images: Iterator[ImageInput]) -> Generator[Outcome]:
        # Daemons: an iterable that never returns must not keep the process alive.
        feeder = threading.Thread(
            target=self._feed, args=(images,), name="gradcam-feeder", daemon=True
        )
        runner = threading.Thread(target=self._run, name="gradcam-runner", daemon=True)
        feeder.start()
        runner.start()
        try:
            while (outcome := self._next_outcome()) is not None:
                yield outcome
            # Answered, it is about to end; cancelled now, it would look like a failure there.
            runner.join(END_S)
        finally:
            self._close()
            runner.join(END_S)
            feeder.join(END_S)  # the caller's iterable may hold it up

    def _next_outcome(self) -> Outcome | None:
        with self._changed:
            while (outcome := self._ledger.next_outcome()) is None:
                if self._fault is not None:
                    raise self._fault
                if self._ledger.all_yielded:
                    if self._ledger.input_error is not None:
                        raise self._ledger.input_error
                    return None
                expires_in_s = self._ledger.expires_in_s(time.monotonic())
                if expires_in_s == 0:
                    self._ledger.expire()
                    self._drop_call()
                    self._changed.notify_all()
                else:
                    self._changed.wait(expires_in_s)
            self._changed.notify_all()  # there is room for another image
            return outcome

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with self._changed:
            yield
            self._changed.notify_all()

    def _close(self) -> None:
        with self._changing():
            self._closed = True
            self._drop_call()

    def _drop_call(self) -> None:
        self._epoch += 1
        if self._call is not None:
            self._call.cancel()
            self._call = None

    # The feeder.

    def _feed(self, images: Iterator[ImageInput]) -> None:
        error: BaseException | None = None
        try:
            while self._wait_for_room():
                try:
                    image = next(images)
                except StopIteration:
                    break
                self._take(image)
        except BaseException as raised:  # noqa: BLE001 - the caller's, and raised to the caller
            error = raised
        with self._changing():
            self._ledger.end_input(error)

    def _wait_for_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._ledger.has_room)
            return not self._closed

    def _take(self, image: ImageInput) -> None:
        try:
            request = with_image(self._template, image)
        except (OSError, TypeError, ValueError) as error:
            with self._changing():
                self._ledger.take_failed(image, error)
        else:
            with self._changing():
                self._ledger.take(image, request, time.monotonic())

    # The runner.

    def _run(self) -> None:
        try:
            while (opened := self._open_when_due()) is not None:
                self._read(*opened)
        except BaseException as fault:  # noqa: BLE001 - raised to the caller
            with self._changing():
                self._fault = fault

    def _open_when_due(self) -> tuple[Any, int] | None:
        with self._changed:
            while not self._closed and not self._ledger.all_answered:
                due_in_s = self._ledger.due_in_s(time.monotonic())
                if due_in_s == 0:
                    self._epoch += 1
                    self._call = self._service.StreamExplainImages(self._requests(self._epoch))
                    return self._call, self._epoch
                self._changed.wait(due_in_s)
            return None

    def _read(self, call: Any, epoch: int) -> None:
        error: GradCamError = ended_early()
        try:
            for answer in call:
                progress = None
                with self._changing():
                    if self._epoch == epoch:
                        progress = self._ledger.answered(answer, time.monotonic())
                if progress is not None and self._on_progress is not None:
                    self._on_progress(progress)
        except grpc.RpcError as rpc_error:
            error = from_rpc_error(rpc_error)
        with self._changing():
            if self._epoch == epoch:  # else we dropped it: it did not break
                self._ledger.broke(error, time.monotonic())
                self._drop_call()

    # The sender.

    def _requests(self, epoch: int) -> Iterator[pb.StreamExplainImagesRequest]:
        while (request := self._next_request(epoch)) is not None:
            yield request

    def _next_request(self, epoch: int) -> pb.StreamExplainImagesRequest | None:
        with self._changed:
            while self._epoch == epoch and not self._ledger.all_answered:
                now = time.monotonic()
                request = self._ledger.next_request(now)
                if request is not None:
                    return request
                self._changed.wait(self._ledger.due_in_s(now))
            return None


def _open_channel(
    target: str, credentials: grpc.ChannelCredentials | None, options: ChannelOptions
) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)
