"""The application of the HTTP port: its routes and what all requests share."""

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from gradcam_server.config.settings import ServeConfig
from gradcam_server.transport.calls import Calls
from gradcam_server.transport.gradcam_v1.service import ExplanationService
from gradcam_server.transport.http import docs_page, page, probes
from gradcam_server.transport.http.call import REQUEST_ID, TIMEOUT, HttpCalls
from gradcam_server.transport.http.explain import ExplainEndpoint
from gradcam_server.transport.http.guard import Guard
from gradcam_server.transport.http.kserve.endpoints import V1Endpoint, V2Endpoint
from gradcam_server.transport.http.kserve.v2 import HEADER_LENGTH
from gradcam_server.transport.http.models import ModelsEndpoint
from gradcam_server.transport.http.probe_answer import Probe
from gradcam_server.transport.http.problems import HANDLERS
from gradcam_server.transport.open_inference.service import InferenceService
from gradcam_server.transport.security.access import Access

_CORS_HEADERS = ("Authorization", "Content-Type", TIMEOUT, REQUEST_ID, HEADER_LENGTH)
_EXPOSED_HEADERS = ("Retry-After", REQUEST_ID, HEADER_LENGTH)


def make_app(
    config: ServeConfig,
    access: Access,
    calls: Calls,
    service: ExplanationService,
    inference: InferenceService,
    probe: Probe,
) -> ASGIApp:
    """Makes the application.

    Args:
        config: The settings.
        access: Decides who may call.
        calls: Admits and records calls.
        service: Explains images and describes models.
        inference: The Open Inference Protocol.
        probe: Answers /metrics, /healthz and /readyz.
    """
    http_calls = HttpCalls(config, access, calls)
    routes: list[BaseRoute] = [
        *ExplainEndpoint(http_calls, service).routes(),
        *ModelsEndpoint(http_calls, service).routes(),
        *V1Endpoint(http_calls, service).routes(),
        *V2Endpoint(http_calls, inference).routes(),
        *docs_page.routes(),
        *probes.routes(probe),
        *(page.routes() if config.ui else ()),
    ]
    app = Starlette(routes=routes, middleware=_middleware(config), exception_handlers=HANDLERS)
    # A path with a slash too many is another path: no redirect, which would drop the body.
    app.router.redirect_slashes = False
    return Guard(app, config.max_send_s)


def _middleware(config: ServeConfig) -> list[Middleware]:
    if not config.http_cors_origin:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=config.http_cors_origin,
            allow_methods=("GET", "POST"),
            allow_headers=_CORS_HEADERS,
            expose_headers=_EXPOSED_HEADERS,
        )
    ]
