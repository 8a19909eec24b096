"""GET /v1/models and /v1/models/NAME[/versions/V], the HTTP form of ListModels and GetModel."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gradcam.v1 import explanation_service_pb2 as pb
from gradcam_server.transport.gradcam_v1.service import (
    GET_MODEL,
    LIST_MODELS,
    ExplanationService,
)
from gradcam_server.transport.http.call import HttpCalls
from gradcam_server.transport.http.documents import to_document, write_json
from gradcam_server.transport.http.negotiation import JSON
from gradcam_server.transport.http.paths import MODEL, MODEL_VERSION


class ModelsEndpoint:
    """Describes models.

    Args:
        calls: Admits requests.
        service: Describes models.
    """

    def __init__(self, calls: HttpCalls, service: ExplanationService) -> None:
        self._calls, self._service = calls, service

    def routes(self) -> list[Route]:
        """Returns the routes."""
        return [
            Route("/v1/models", self.list_models, methods=["GET"]),
            Route(f"/v1/models/{MODEL}", self.get_model, methods=["GET"]),
            Route(f"/v1/models/{MODEL_VERSION}", self.get_model, methods=["GET"]),
        ]

    async def list_models(self, request: Request) -> Response:
        """Answers with a ``ListModelsResponse``."""
        async with (
            self._calls.admitted(request) as call,
            call.answering(LIST_MODELS),
        ):
            found = pb.ListModelsResponse(models=self._service.models())
            return _respond(to_document(found))

    async def get_model(self, request: Request) -> Response:
        """Answers with a ``Model``, and ``ready`` for clients of KServe V1."""
        async with (
            self._calls.admitted(request) as call,
            call.answering(GET_MODEL),
        ):
            place = request.path_params
            model = self._service.model(place["name"], place.get("version", ""))
            return _respond({**to_document(model), "ready": True})


def _respond(document: object) -> Response:
    headers = {"Cache-Control": "no-store"}
    return Response(write_json(document), headers=headers, media_type=JSON)
