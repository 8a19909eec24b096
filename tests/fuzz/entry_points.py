"""All entry points for bytes of clients, and what must hold for any bytes."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from fuzz.mutations import image_files, mutate_image, mutate_message, random_message
from gradcam.inference import grpc_service_pb2 as inference_pb
from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import Catalog, ServedModel
from gradcam_server.domain.graph_io import NO_CLASS, GraphItem, GraphKey, GraphOutput
from gradcam_server.domain.labels import ClassLabel, ClassLabels
from gradcam_server.domain.layers import LayerInfo
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.domain.requests import ResizeMode
from gradcam_server.domain.schedule import Answer, BatchReport, DispatchReason, OnDispatch, Urgency
from gradcam_server.errors import (
    DeadlineError,
    EngineLostError,
    InvalidRequestError,
    QueueFullError,
)
from gradcam_server.images.decode import decode_image
from gradcam_server.images.geometry import fit
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.telemetry.tracing import Tracer
from gradcam_server.transport.calls import Calls
from gradcam_server.transport.gradcam_v1.service import ExplanationService
from gradcam_server.transport.http.app import make_app
from gradcam_server.transport.http.probe_answer import Probes
from gradcam_server.transport.lifecycle import Lifecycle
from gradcam_server.transport.open_inference.service import InferenceService
from gradcam_server.transport.security.access import Access

INPUT_SIZE = (12, 10)
MAX_PIXELS = 200_000
# The default limit of gRPC for the trailers of a call, less some room for other trailers.
MAX_STATUS_BYTES = 7000
# Errors that an engine may raise.
_ERRORS = (
    QueueFullError("full", 0.5),
    DeadlineError("late"),
    EngineLostError("lost", 2.0),
    InvalidRequestError("layers", "not compiled"),
)
_CONFIG = ServeConfig(max_image_pixels=MAX_PIXELS, max_passes=6, worker_threads=1)


def _model(version: str) -> ServedModel:
    names = ("cat", "dog", "Cardigan", "cardigan", "", "n02123045", "tabby", "twin", "twin")
    layers = (
        LayerInfo("input", "InputLayer", (None, *INPUT_SIZE, 3), False),
        LayerInfo("early", "Conv2D", (None, 6, 5, 4), True),
        LayerInfo("block/last", "Conv2D", (None, 3, 2, 8), True),
        LayerInfo("head", "Dense", (None, len(names)), False),
    )
    return ServedModel(
        name="m",
        version=version,
        labels=ClassLabels([ClassLabel(name, (f"the {name}",)) for name in names]),
        layers=layers,
        default_layer="block/last",
        input_size=INPUT_SIZE,
        preprocessing=Preprocessing.NONE,
        weights="none",
    )


class FakeBackend:
    """Answers at once, in the right shapes, or fails; its maps have extreme values."""

    catalog = Catalog((_model(""), _model("2")), (), (1, 4), 5)
    compilation_count = 1

    async def compute(
        self,
        key: GraphKey,
        item: GraphItem,
        on_dispatch: OnDispatch | None = None,
        urgency: Urgency = Urgency(),  # noqa: B008 - it is frozen
    ) -> Answer[GraphOutput]:
        """Returns random outputs for an image, or raises."""
        assert item.image.shape == (*INPUT_SIZE, 3)
        if on_dispatch is not None:
            on_dispatch()
        number = int(np.nan_to_num(item.image).sum(dtype=np.float64) % 2**32)
        if number % 16 == 0:
            raise copy(_ERRORS[number // 16 % len(_ERRORS)])
        rng = np.random.default_rng(number)
        classes = len(self.catalog.models[0].labels)
        logits = rng.normal(size=classes).astype(np.float32)
        exponentials = np.exp(logits)
        maps = rng.normal(size=(key.channel_count or len(item.targets), 3, 2)).astype(np.float32)
        maps.flat[::7] = rng.choice([0, -1, np.nan, np.inf, 1e38, 1e-45])
        best = np.argsort(-logits)
        chosen = [best[-1 - one.index] if one.index < 0 else one.index for one in item.targets]
        assert all(one.against == NO_CLASS or 0 <= one.against < classes for one in item.targets)
        output = GraphOutput(
            logits,
            exponentials / exponentials.sum(),
            np.array(chosen, np.int32),
            logits[chosen],
            tuple(maps for _ in key.layers),
        )
        return Answer(output, BatchReport(1, 1, DispatchReason.IDLE, 1))

    async def close(self) -> None:
        """Does nothing."""


class _Context:
    """The server's side of a call, with the answers and the code that the client gets."""

    def __init__(self) -> None:
        self.answers: list[Any] = []
        self.code = grpc.StatusCode.OK

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def time_remaining(self) -> float | None:
        return None

    def peer(self) -> str:
        return "fuzz"

    async def write(self, message: Message) -> None:
        message.SerializeToString()
        self.answers.append(message)

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()
    ) -> None:
        self.code = code
        size = len(details.encode()) + sum(len(value) for _, value in trailing_metadata)
        assert size < MAX_STATUS_BYTES, f"{size} bytes of status do not fit the trailers"
        raise grpc.aio.AbortError


class _Faults(logging.Handler):
    """Raises errors that the server logs as its own faults or loses, while it listens."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._found: list[BaseException] = []

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        self._found.append(error or AssertionError(record.getMessage()))

    @contextmanager
    def listening(self) -> Iterator[None]:
        # No longer: other tests of this process log, too.
        logging.getLogger().addHandler(self)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(self)
        found, self._found = self._found, []
        if found:
            raise AssertionError(f"a fault of the server's: {found[0]!r}") from found[0]


class Services:
    """Both services without a network, on their own event loop."""

    def __init__(self) -> None:
        self._faults = _Faults()
        self._runner = asyncio.Runner()
        self._runner.run(self._start())

    async def _start(self) -> None:
        lifecycle, metrics = Lifecycle(), Metrics()
        calls = Calls(lifecycle, metrics, Tracer())
        self.explanation = ExplanationService(_CONFIG, calls)
        self.inference = InferenceService(_CONFIG, calls)
        explainer = Explainer(_CONFIG, FakeBackend(), metrics)
        self.explanation.publish(explainer)
        self.inference.publish(explainer)
        probes = Probes(metrics.exposition, lambda: None, lambda: None)
        self.app = make_app(_CONFIG, Access(_CONFIG), calls, self.explanation, probes)
        lifecycle.serve()

    def run(self, work: Awaitable[Any]) -> Any:
        """Does work on the event loop; raises what the server logs as its own fault."""
        with self._faults.listening():
            return self._runner.run(_await(work))

    def unary(self, method: Callable[[Any, Any], Awaitable[Message]], message: Message) -> str:
        """Calls a method; returns its code."""
        context = _Context()
        with self._faults.listening(), suppress(grpc.aio.AbortError):
            self._runner.run(_await(method(message, context))).SerializeToString()
        return context.code.name

    def stream(self, method: Callable[[Any, Any], Awaitable[None]], message: Message) -> list[Any]:
        """Sends a message twice; returns the answers."""
        context = _Context()
        with self._faults.listening():
            self._runner.run(_await(method(_twice(message), context)))
        return context.answers


async def _twice(message: Message) -> AsyncIterator[Message]:
    yield message
    yield message


async def _await(work: Awaitable[Any]) -> Any:
    return await work


class HttpRequests:
    """Requests over HTTP without a network.

    Args:
        services: The services, which answer them.
    """

    def __init__(self, services: Services) -> None:
        self._services = services

    def post(self, query: bytes, content_type: bytes, body: bytes) -> str:
        """Sends a request to explain an image; returns OK, or the status of the answer."""
        parts: list[Any] = [
            {"type": "http.request", "body": body[:7], "more_body": True},
            {"type": "http.request", "body": body[7:], "more_body": False},
        ]
        sent: list[Any] = []

        async def receive() -> Any:
            return parts.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        path = "/v1/models/m:explain"
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query,
            "headers": [(b"host", b"fuzz"), (b"content-type", content_type)],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        self._services.run(self._services.app(scope, receive, send))
        status = int(sent[0]["status"])
        content = b"".join(one.get("body", b"") for one in sent[1:])
        if status == 200:
            return "OK"
        assert status in {400, 404, 413, 429, 503, 504}, status
        assert json.loads(content)["status"] == status
        return str(status)


class EntryPoint:
    """An entry point: makes its inputs and checks them.

    Args:
        name: A name for people.
        message: The type of the message; None for an image file.
        check: Processes an input and returns its outcome; raises if the server is at fault.
    """

    def __init__(
        self, name: str, message: type[Message] | None, check: Callable[[Any], str]
    ) -> None:
        self.name = name
        self._message = message
        self._check = check

    def check(self, data: bytes) -> str:
        """Processes an input; returns its outcome."""
        if self._message is None:
            return self._check(data)
        try:
            message = self._message.FromString(data)
        except DecodeError:
            return "no message"  # gRPC refuses it before the server sees it
        return self._check(message)

    def seeds(self) -> list[bytes]:
        """Returns the first inputs."""
        if self._message is None:
            return list(image_files())
        return [self._random(random.Random(seed)) for seed in range(30)]

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        """Changes an input."""
        if self._message is None:
            fresh = not data or rng.random() < 0.4
            return mutate_image(rng.choice(image_files()) if fresh else data, rng)
        try:
            message = self._message.FromString(data)
        except DecodeError:
            return self._random(rng)
        if rng.random() < 0.2:
            return self._random(rng)
        if rng.random() < 0.1:
            return mutate_image(data, rng)  # as bytes
        mutate_message(message, rng)
        return message.SerializeToString()

    def _random(self, rng: random.Random) -> bytes:
        assert self._message is not None
        message = self._message()
        random_message(message, rng)
        return message.SerializeToString()


class BytesEntryPoint(EntryPoint):
    """An entry point for bytes that are neither a message nor an image file.

    Args:
        name: A name for people.
        check: Processes an input and returns its outcome; raises if the server is at fault.
        seeds: The first inputs.
    """

    def __init__(self, name: str, check: Callable[[bytes], str], seeds: Sequence[bytes]) -> None:
        super().__init__(name, None, check)
        self._seeds = list(seeds)

    def seeds(self) -> list[bytes]:
        return self._seeds

    def mutate(self, data: bytes, rng: random.Random) -> bytes:
        fresh = not data or rng.random() < 0.4
        chosen = rng.choice(self._seeds) if fresh else data
        return chosen if rng.random() < 0.1 else mutate_image(chosen, rng)


def _http_entry_points(services: Services) -> list[EntryPoint]:
    """Returns the entry points of HTTP: JSON, forms and the options of a query."""
    requests = HttpRequests(services)
    image = image_files()[0]
    messages = [
        pb.ExplainImageRequest(encoded_image=image),
        pb.ExplainImageRequest(raw_image=pb.RawImage(data=bytes(12), height_px=2, width_px=2)),
        *map(
            pb.ExplainImageRequest.FromString, EntryPoint("", pb.ExplainImageRequest, str).seeds()
        ),
    ]
    documents = [json_format.MessageToJson(message).encode() for message in messages]
    file = b'Content-Disposition: form-data; name="image"; filename="a.png"\r\n'
    file += b"Content-Type: image/png\r\n\r\n" + image + b"\r\n"
    forms = [
        b"--b\r\n%s--b\r\n" % file
        + b'Content-Disposition: form-data; name="%s"\r\n\r\n%s\r\n--b--' % option
        for option in ((b"top_k", b"2"), (b"class", b"cat"), (b"alpha", b"0.5"))
    ]
    queries = [
        b"top_k=2&method=layercam&heatmap=image&heatmap=overlay_png&alpha=0.3&colormap=jet",
        b"class=cat&class=1&against=dog&layer=early&layer=block%2Flast&fusion=layercam",
        b"smooth=2&score=probability&resize=letterbox&predictions=3&logits=true&priority=2",
        b"passes=3&method=scorecam&quality=50&heatmap=overlay_jpeg",
        b"top_k=1",
    ]
    form = b"multipart/form-data; boundary=b"
    return [
        BytesEntryPoint(
            "http_json", lambda body: requests.post(b"", b"application/json", body), documents
        ),
        BytesEntryPoint("http_form", lambda body: requests.post(b"", form, body), forms),
        BytesEntryPoint(
            "http_query", lambda query: requests.post(query, b"image/png", image), queries
        ),
    ]


def _image(data: bytes) -> str:
    try:
        image = decode_image(data, MAX_PIXELS)
    except InvalidRequestError:
        return "refused"
    assert image.dtype == np.uint8
    assert image.ndim == 3
    assert image.shape[2] == 3
    assert 1 <= image.shape[0] * image.shape[1] <= MAX_PIXELS
    for mode in ResizeMode:
        fitted, _ = fit(image, INPUT_SIZE, mode)
        assert fitted.dtype == np.uint8
        assert fitted.shape == (*INPUT_SIZE, 3)
    return "OK"


def entry_points(services: Services) -> list[EntryPoint]:
    """Returns all entry points, the image decoder first."""
    v1, oip = services.explanation, services.inference

    def explain_stream(message: pb.StreamExplainImagesRequest) -> str:
        answers = services.stream(v1.StreamExplainImages, message)
        ends = [one for one in answers if one.WhichOneof("result") in ("response", "error")]
        assert [one.correlation_id for one in ends] == [message.correlation_id] * 2
        return "error" if ends[0].HasField("error") else "OK"

    def infer_stream(message: inference_pb.ModelInferRequest) -> str:
        answers = services.stream(oip.ModelStreamInfer, message)
        assert [one.infer_response.id for one in answers] == [message.id] * 2
        return "error" if answers[0].error_message else "OK"

    def unary(method: Callable[[Any, Any], Awaitable[Message]]) -> Callable[[Message], str]:
        return lambda message: services.unary(method, message)

    methods: Sequence[tuple[type[Message], Callable[[Any, Any], Awaitable[Message]]]] = (
        (pb.ExplainImageRequest, v1.ExplainImage),
        (inference_pb.ModelInferRequest, oip.ModelInfer),
        (pb.GetModelRequest, v1.GetModel),
        (pb.ListModelsRequest, v1.ListModels),
        (inference_pb.ServerLiveRequest, oip.ServerLive),
        (inference_pb.ServerReadyRequest, oip.ServerReady),
        (inference_pb.ModelReadyRequest, oip.ModelReady),
        (inference_pb.ServerMetadataRequest, oip.ServerMetadata),
        (inference_pb.ModelMetadataRequest, oip.ModelMetadata),
        (inference_pb.ModelConfigRequest, oip.ModelConfig),
        (inference_pb.ModelStatisticsRequest, oip.ModelStatistics),
        (inference_pb.RepositoryIndexRequest, oip.RepositoryIndex),
    )
    return [
        EntryPoint("image", None, _image),
        EntryPoint("StreamExplainImages", pb.StreamExplainImagesRequest, explain_stream),
        EntryPoint("ModelStreamInfer", inference_pb.ModelInferRequest, infer_stream),
        *(EntryPoint(method.__name__, message, unary(method)) for message, method in methods),
        *_http_entry_points(services),
    ]
