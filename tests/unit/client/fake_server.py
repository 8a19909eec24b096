"""A real gRPC server in this process whose answers are scripted."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc
from google.rpc.error_details_pb2 import BadRequest, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam.v1 import explanation_service_pb2_grpc as pb_grpc

MAX_REQUEST_BYTES = 2**20

Items: TypeAlias = Iterator[pb.StreamExplainImagesRequest]
Answers: TypeAlias = Iterator[pb.StreamExplainImagesResponse]
Step: TypeAlias = Callable[[grpc.ServicerContext], None]
Stream: TypeAlias = Callable[[Items, grpc.ServicerContext], Answers]


def make_status(
    code: grpc.StatusCode, message: str, retry_after_s: float | None = None, field: str = ""
) -> Status:
    status = Status(code=code.value[0], message=message)
    if retry_after_s is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(round(retry_after_s * 1000))
        status.details.add().Pack(retry)
    if field:
        violation = BadRequest.FieldViolation(field=field, description=message)
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    return status


class FakeServer(pb_grpc.ExplanationServiceServicer):
    """Predicts the number that an image's bytes begin with, after the script.

    Attributes:
        script: The behaviour of unary calls before they answer, call by call.
        streams: The behaviour of streams, stream by stream; then all is answered at once.
        requests: The unary requests.
        received: The numbers of each stream's requests.
        answered: The numbers of each stream's answers.
        max_in_flight: Maximum of the requests of a stream that were read and not answered.
        metadata: The metadata of each call, unary or stream.
        remaining_s: The time that each unary call had left.
        peers: The connections of the calls.
        cancelled: Set when a call ends that the client cancelled. gRPC may report a cancelled
            stream to its reader as one whose requests have ended; then it is not set.
        stream_over: Set when a stream is over, whoever ended it.
    """

    def __init__(self) -> None:
        self.script: deque[Step] = deque()
        self.streams: deque[Stream] = deque()
        self.requests: list[Any] = []
        self.received: list[list[int]] = []
        self.answered: list[list[int]] = []
        self.max_in_flight = 0
        self.metadata: list[dict[str, Any]] = []
        self.remaining_s: list[float] = []
        self.peers: set[str] = set()
        self.cancelled = threading.Event()
        self.stream_over = threading.Event()
        self.stop: Callable[[], object] = lambda: None
        self.health = health.HealthServicer()
        self.target = ""

    # Steps of the script.

    def fail(self, code: grpc.StatusCode, message: str = "scripted", **details: Any) -> Step:
        status = rpc_status.to_status(make_status(code, message, **details))
        return lambda context: context.abort_with_status(status)

    def hang(self, context: grpc.ServicerContext) -> None:
        while context.is_active():
            time.sleep(0.005)
        self.cancelled.set()

    # Behaviours of a stream.

    def answer_all(self, items: Items, _: grpc.ServicerContext) -> Answers:
        return (self.answer(item) for item in items)

    def break_after(
        self, count: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE, **details: Any
    ) -> Stream:
        def behave(items: Items, context: grpc.ServicerContext) -> Answers:
            for _ in range(count):
                yield self.answer(next(items))
            self.fail(code, **details)(context)

        return behave

    def end_after(self, count: int) -> Stream:
        return lambda items, _: (self.answer(next(items)) for _ in range(count))

    def reverse_in_groups(self, size: int) -> Stream:
        def behave(items: Items, _: grpc.ServicerContext) -> Answers:
            while group := [item for _, item in zip(range(size), items, strict=False)]:
                yield from (self.answer(item) for item in reversed(group))

        return behave

    def never_answer(self, items: Items, context: grpc.ServicerContext) -> Answers:
        next(items)
        self.hang(context)
        yield from ()

    def answer_with(self, errors: dict[int, list[Status]]) -> Stream:
        """Answers numbers with the errors listed for them, then with their number."""

        def behave(items: Items, _: grpc.ServicerContext) -> Answers:
            for item in items:
                if statuses := errors.get(number_of(item.request)):
                    yield pb.StreamExplainImagesResponse(
                        correlation_id=item.correlation_id, error=statuses.pop(0)
                    )
                else:
                    yield self.answer(item)

        return behave

    def answer(self, item: pb.StreamExplainImagesRequest) -> pb.StreamExplainImagesResponse:
        return pb.StreamExplainImagesResponse(
            correlation_id=item.correlation_id, response=respond(item.request)
        )

    # The service.

    def ExplainImage(
        self, request: pb.ExplainImageRequest, context: grpc.ServicerContext
    ) -> pb.ExplainImageResponse:
        self._play(request, context)
        return respond(request)

    def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.ServicerContext
    ) -> pb.ListModelsResponse:
        self._play(request, context)
        return pb.ListModelsResponse(models=[pb.Model(name="first"), pb.Model(name="second")])

    def GetModel(
        self, request: pb.GetModelRequest, context: grpc.ServicerContext
    ) -> pb.GetModelResponse:
        self._play(request, context)
        return pb.GetModelResponse(model=pb.Model(name=request.name or "first"))

    def StreamExplainImages(self, items: Items, context: grpc.ServicerContext) -> Answers:
        self._note(context)
        received: list[int] = []
        answered: list[int] = []
        self.received.append(received)
        self.answered.append(answered)

        def reading() -> Items:
            for item in items:
                received.append(number_of(item.request))
                in_flight = len(received) - len(answered)
                self.max_in_flight = max(self.max_in_flight, in_flight)
                yield item

        has_ended = threading.Event()

        def note_over() -> None:
            if not has_ended.is_set():
                self.cancelled.set()
            self.stream_over.set()

        # gRPC may keep the generator of a cancelled call open, so GeneratorExit is not enough.
        context.add_callback(note_over)
        behave = self.streams.popleft() if self.streams else self.answer_all
        try:
            for answer in behave(reading(), context):
                if answer.HasField("response"):
                    answered.append(answer.response.predictions[0].class_index)
                yield answer
            has_ended.set()
        except (grpc.RpcError, GeneratorExit):  # the client gave up the call
            self.cancelled.set()
        except Exception:
            has_ended.set()
            raise

    def _play(self, request: Any, context: grpc.ServicerContext) -> None:
        self._note(context)
        self.remaining_s.append(context.time_remaining() or 0)
        self.requests.append(request)
        if self.script:
            self.script.popleft()(context)

    def _note(self, context: grpc.ServicerContext) -> None:
        self.metadata.append(dict(context.invocation_metadata()))
        self.peers.add(context.peer())

    def set_serving(self, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse
        self.health.set("", status.SERVING if serving else status.NOT_SERVING)


def number_of(request: pb.ExplainImageRequest) -> int:
    return int(request.encoded_image.rstrip(b"x"))


def respond(request: pb.ExplainImageRequest) -> pb.ExplainImageResponse:
    prediction = pb.Prediction(class_index=number_of(request), class_name="thing", probability=1)
    return pb.ExplainImageResponse(model="fake", predictions=[prediction])


@contextmanager
def serving(
    address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None
) -> Iterator[FakeServer]:
    """Lets a server listen whose largest request is 1 MiB."""
    fake = FakeServer()
    options = [("grpc.max_receive_message_length", MAX_REQUEST_BYTES), ("grpc.so_reuseport", 0)]
    add_service: Any = pb_grpc.add_ExplanationServiceServicer_to_server
    with ThreadPoolExecutor(8) as pool:
        listening = grpc.server(pool, options=options)
        add_service(fake, listening)
        health_pb2_grpc.add_HealthServicer_to_server(fake.health, listening)
        port = (
            listening.add_secure_port(address, credentials)
            if credentials
            else listening.add_insecure_port(address)
        )
        fake.target = f"{address.rpartition(':')[0]}:{port}"
        fake.stop = lambda: listening.stop(None).wait()
        fake.set_serving(True)
        listening.start()
        yield fake
        fake.stop()
