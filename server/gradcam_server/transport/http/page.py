"""The page for people at /, off unless the setting ``ui`` is on: static files of the folder ui."""

from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

FOLDER = Path(__file__).with_name("ui")

# The page loads nothing from elsewhere, and no other page shows it in a frame.
_HEADERS = [
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
        b"object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    # Files of the page belong together: a browser asks whether they have changed.
    (b"cache-control", b"no-cache"),
]


class _Page(StaticFiles):
    """Static files with the headers of the page."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        await super().__call__(scope, receive, send_with_headers)


def routes(folder: Path | None = None) -> list[BaseRoute]:
    """Returns the routes of the page.

    Args:
        folder: Its files; None for those of this package.
    """
    folder = folder or FOLDER

    async def index(_: Request) -> Response:
        headers = {name.decode(): value.decode() for name, value in _HEADERS}
        return FileResponse(folder / "index.html", headers=headers)

    # In a clone the example is a link to a photograph of the package.
    files = _Page(directory=folder, follow_symlink=True)
    return [Route("/", index, methods=["GET"]), Mount("/ui", files)]
