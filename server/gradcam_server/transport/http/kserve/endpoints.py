"""The paths of KServe V1 and of the Open Inference Protocol.

Errors are problem details with the member ``error``, which their clients show (problems.py).
"""

from http import HTTPStatus

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gradcam_server.pipeline.ledger import Claim
from gradcam_server.transport.calls import CallRecord
from gradcam_server.transport.gradcam_v1.service import EXPLAIN_IMAGE, ExplanationService
from gradcam_server.transport.http.call import AdmittedCall, HttpCalls
from gradcam_server.transport.http.documents import write_json
from gradcam_server.transport.http.kserve import v1, v2
from gradcam_server.transport.http.negotiation import JSON
from gradcam_server.transport.http.paths import MODEL, MODEL_VERSION
from gradcam_server.transport.http.problems import KSERVE
from gradcam_server.transport.open_inference.service import (
    MODEL_CONFIG,
    MODEL_INFER,
    MODEL_METADATA,
    MODEL_STATISTICS,
    REPOSITORY_INDEX,
    InferenceService,
)

_BINARY = "application/octet-stream"
_MODEL, _VERSION = f"/v2/models/{MODEL}", f"/v2/models/{MODEL_VERSION}"


class V1Endpoint:
    """KServe V1: POST /v1/models/NAME[/versions/V]:predict.

    ``:explain`` is a path of ExplainEndpoint, which calls ``answer_instances`` for instances.

    Args:
        calls: Admits requests.
        service: Classifies images.
    """

    def __init__(self, calls: HttpCalls, service: ExplanationService) -> None:
        self._calls, self._service = calls, service

    def routes(self) -> list[Route]:
        """Returns the routes."""
        return [
            Route(f"/v1/models/{path}:predict", self.predict, methods=["POST"])
            for path in (MODEL, MODEL_VERSION)
        ]

    async def predict(self, request: Request) -> Response:
        """Answers with ``predictions``."""
        async with (
            self._calls.admitted(request) as call,
            call.answering(EXPLAIN_IMAGE) as (record, claim, deadline),
        ):
            document = await call.document()
            return await answer_instances(
                call, self._service, document, record, claim, deadline, explain=False
            )


async def answer_instances(
    call: AdmittedCall,
    service: ExplanationService,
    document: dict[str, object],
    record: CallRecord,
    claim: Claim,
    deadline: float | None,
    *,
    explain: bool,
) -> Response:
    """Answers a request of KServe V1.

    Args:
        call: The call.
        service: Explains the images.
        document: The body.
        record: Gets the model.
        claim: The memory that the call holds.
        deadline: Time of ``perf_counter`` at which the answer is of no more use.
        explain: Whether the images are explained; else they are only classified.

    Raises:
        InvalidRequestError: The request is wrong.
    """
    setattr(call.request.state, KSERVE, True)
    call.name_fields(v1.FIELDS)
    messages = v1.to_requests(v1.parse_instances(document), *_place(call.request), explain=explain)
    document.clear()  # frees the images in base64
    responses = await service.explain_images(messages, record, claim, deadline)
    return _json(v1.to_answer(responses, explain=explain))


class V2Endpoint:
    """The Open Inference Protocol, and Triton's extensions for binary data and descriptions.

    Args:
        calls: Admits requests.
        service: The same service over gRPC.
    """

    def __init__(self, calls: HttpCalls, service: InferenceService) -> None:
        self._calls, self._service = calls, service

    def routes(self) -> list[Route]:
        """Returns the routes."""
        get = {
            "/v2": self.server,
            "/v2/health/live": self.live,
            "/v2/health/ready": self.ready,
            "/v2/models/stats": self.statistics,
        }
        for model in (_MODEL, _VERSION):
            get[model] = self.metadata
            get[f"{model}/ready"] = self.model_ready
            get[f"{model}/config"] = self.config
            get[f"{model}/stats"] = self.statistics
        post = {
            f"{_MODEL}/infer": self.infer,
            f"{_VERSION}/infer": self.infer,
            "/v2/repository/index": self.index,
        }
        return [
            *(Route(path, endpoint, methods=["GET"]) for path, endpoint in get.items()),
            *(Route(path, endpoint, methods=["POST"]) for path, endpoint in post.items()),
        ]

    async def live(self, request: Request) -> Response:
        """Says that the server answers."""
        async with self._calls.admitted(request):
            return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        """Says whether the server is warm and not shutting down."""
        async with self._calls.admitted(request):
            return _ready({"ready": self._service.is_ready})

    async def model_ready(self, request: Request) -> Response:
        """Says whether a model is ready."""
        async with self._calls.admitted(request):
            name, version = _place(request)
            if self._service.is_ready:
                self._service.metadata(name, version)  # raises an error if there is none
            return _ready({"name": name, "ready": self._service.is_ready})

    async def server(self, request: Request) -> Response:
        """Describes the server."""
        async with self._calls.admitted(request):
            metadata = v2.to_json(self._service.server_metadata())
            metadata["extensions"].append("binary_tensor_data")
            return _json(metadata)

    async def metadata(self, request: Request) -> Response:
        """Describes a model briefly."""
        async with self._calls.admitted(request) as call, call.answering(MODEL_METADATA):
            return _json(v2.to_json(self._service.metadata(*_place(request))))

    async def config(self, request: Request) -> Response:
        """Describes a model."""
        async with self._calls.admitted(request) as call, call.answering(MODEL_CONFIG):
            return _json(v2.to_json(self._service.config(*_place(request))))

    async def statistics(self, request: Request) -> Response:
        """Returns the statistics of a model, or of all."""
        async with self._calls.admitted(request) as call, call.answering(MODEL_STATISTICS):
            return _json(v2.to_json(self._service.statistics(*_place(request))))

    async def index(self, request: Request) -> Response:
        """Lists the models."""
        async with self._calls.admitted(request) as call, call.answering(REPOSITORY_INDEX):
            return _json(v2.to_json(self._service.index())["models"])

    async def infer(self, request: Request) -> Response:
        """Answers with the tensors of the requested outputs."""
        async with (
            self._calls.admitted(request) as call,
            call.answering(MODEL_INFER) as (record, claim, deadline),
        ):
            call.name_fields(v2.FIELDS)
            lengths = request.headers.getlist(v2.HEADER_LENGTH)
            length = ", ".join(lengths) if lengths else None
            asked = v2.parse_request(await call.body(), length, *_place(request))
            response = await self._service.infer(asked.message, record, claim, deadline, wait=False)
            body, json_length = v2.write_response(response, asked)
            if json_length is None:
                return Response(body, media_type=JSON)
            headers = {v2.HEADER_LENGTH: str(json_length)}
            return Response(body, headers=headers, media_type=_BINARY)


def _place(request: Request) -> tuple[str, str]:
    """Returns the name and version of the model in the path; an empty text is any."""
    return request.path_params.get("name", ""), request.path_params.get("version", "")


def _json(document: object, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(write_json(document), status, {"Cache-Control": "no-store"}, JSON)


def _ready(document: dict[str, object]) -> Response:
    """Answers 503 if it is not ready, as KServe does."""
    return _json(document, HTTPStatus.OK if document["ready"] else HTTPStatus.SERVICE_UNAVAILABLE)
