"""GET /metrics, /healthz and /readyz: for Prometheus and for probes. They need no token.

The event loop answers them, so that a liveness probe of a loop that hangs gets no answer in time.
"""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gradcam_server.transport.http.probe_answer import PATHS, Probe


def routes(probe: Probe) -> list[Route]:
    """Returns the routes of the probes."""

    async def answer(request: Request) -> Response:
        # Not request.url, of which a client's header Host is a part.
        found = await probe(request.scope["path"], request.headers.get("accept", ""))
        headers = {"Content-Type": found.content_type, "Cache-Control": "no-store"}
        return Response(found.content, found.status, headers)

    return [Route(path, answer, methods=["GET"]) for path in PATHS]
