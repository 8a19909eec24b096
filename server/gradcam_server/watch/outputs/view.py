"""Shows the sources in a browser of this machine, as motion JPEG.

The page is served in a thread with an event loop of its own. ``write`` only keeps the newest result
of each source; a picture is drawn when a viewer waits for it, and once for all viewers. A viewer
that is slow gets the newest picture when it has taken the last one.
"""

import asyncio
import html
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial

import cv2
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from gradcam_server.batch.errors import OutputError
from gradcam_server.watch.frames import FrameResult
from gradcam_server.watch.outputs.draw import Style, draw

HOST = "127.0.0.1"
_BOUNDARY = "frame"
_JPEG_QUALITY = 80
_START_S = 10.0
_POLICY = "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; frame-ancestors 'none'"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    # Pages of other origins must not embed the pictures.
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>gradcam watch</title>
<style>
body {{ margin: 1rem; background: #111; color: #eee; font-family: sans-serif; }}
main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); }}
figure {{ margin: 0; }}
img {{ width: 100%; min-height: 8rem; background: #000; }}
a {{ color: inherit; }}
</style>
</head>
<body>
<h1>gradcam watch</h1>
<main>
{figures}
</main>
</body>
</html>
"""
_FIGURE = (
    '<figure><img src="{link}" alt="{name}, with the heat of its class drawn in">'
    '<figcaption><a href="{link}">{name}</a></figcaption></figure>'
)


class Picture:
    """The newest picture of a source, drawn on demand. Used in the event loop of the view.

    Args:
        style: How the heat is drawn.
    """

    def __init__(self, style: Style) -> None:
        self._style = style
        self._result: FrameResult | None = None
        self._number = 0
        self._drawn: tuple[int, bytes] = (0, b"")
        self._drawing = asyncio.Lock()
        self._changed = asyncio.Event()
        self._is_ended = False

    def set(self, result: FrameResult) -> None:
        """Takes a newer result."""
        self._result = result
        self._number += 1
        self._wake()

    def end(self) -> None:
        """Says that no result follows."""
        self._is_ended = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def after(self, number: int) -> tuple[int, bytes] | None:
        """Waits for a newer picture.

        Args:
            number: The number of the last one; 0 before the first.

        Returns:
            Its number and the JPEG file; None if there is no newer one, and none follows.
        """
        while self._number == number:
            if self._is_ended:
                return None
            await self._changed.wait()
        async with self._drawing:
            if self._drawn[0] != self._number:
                assert self._result is not None
                wanted = self._number
                self._drawn = wanted, await asyncio.to_thread(jpeg, self._result, self._style)
            return self._drawn


def jpeg(result: FrameResult, style: Style) -> bytes:
    """Returns a result as a JPEG file with heat and caption."""
    bgr = cv2.cvtColor(draw(result, style), cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return data.tobytes()


class BrowserView:
    """The page of all sources, at ``url``.

    Args:
        sources: The names of the sources.
        port: The port on 127.0.0.1; 0 takes a free one.
        style: How the heat is drawn.

    Attributes:
        url: The address of the page.
        at_risk: Empty: nothing of it is kept.

    Raises:
        OutputError: The port is in use.
    """

    at_risk = ""

    def __init__(self, sources: Sequence[str], port: int, style: Style | None = None) -> None:
        self._names, self._style = list(sources), style or Style()
        self._socket = _listen(port)
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}/"
        self._newest: dict[str, FrameResult] = {}
        self._lock = threading.Lock()
        self._pictures: dict[str, Picture] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: _Server | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="browser view", daemon=True)
        self._thread.start()
        self._started.wait(_START_S)

    def write(self, result: FrameResult) -> None:
        """Shows a result, if somebody looks. Never waits for a viewer."""
        name = result.frame.source
        with self._lock:
            is_awaited = name in self._newest
            self._newest[name] = result
        if not is_awaited:
            self._call(partial(self._take, name))

    def close(self) -> None:
        """Ends all streams and frees the port."""
        self._call(self._stop)
        self._thread.join()
        self._socket.close()

    def _call(self, step: Callable[[], None]) -> None:
        """Calls a function in the loop, if it runs."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(step)

    def _take(self, name: str) -> None:
        with self._lock:
            result = self._newest.pop(name)
        self._pictures[name].set(result)

    def _stop(self) -> None:
        for picture in self._pictures.values():
            picture.end()
        if self._server is not None:
            self._server.should_exit = True

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._pictures = {name: Picture(self._style) for name in self._names}
        config = uvicorn.Config(
            application(self._pictures),
            log_config=None,
            log_level="critical",  # a viewer that is cut off at the end is no error
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config, self._started)
        self._loop = asyncio.get_running_loop()
        await self._server.serve([self._socket])


class _Server(uvicorn.Server):
    """Says when it accepts connections."""

    def __init__(self, config: uvicorn.Config, started: threading.Event) -> None:
        super().__init__(config)
        self._accepting = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._accepting.set()


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise OutputError(
            f"--show {port}: the port cannot be used ({error.strerror}); name another one, or 0 "
            "for any"
        ) from error
    return listener


def application(pictures: dict[str, Picture]) -> Starlette:
    """Makes the application: the page, and a stream for each source.

    It answers only requests to this machine by name, so that no foreign name that leads here
    (DNS rebinding) opens the pictures to another site.
    """
    names = list(pictures)

    async def page(_: Request) -> Response:
        figures = (
            _FIGURE.format(link=f"streams/{number}.mjpeg", name=html.escape(name))
            for number, name in enumerate(names)
        )
        return HTMLResponse(_PAGE.format(figures="\n".join(figures)), headers=_HEADERS)

    async def stream(request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(names):
            return PlainTextResponse(f"there are {len(names)} sources\n", 404, _HEADERS)
        return StreamingResponse(
            _parts(pictures[names[number]]),
            headers=_HEADERS,
            media_type=f"multipart/x-mixed-replace; boundary={_BOUNDARY}",
        )

    return Starlette(
        routes=[Route("/", page), Route("/streams/{number:int}.mjpeg", stream)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])],
    )


async def _parts(picture: Picture) -> AsyncIterator[bytes]:
    number = 0
    yield f"--{_BOUNDARY}\r\n".encode()
    while (newer := await picture.after(number)) is not None:
        number, data = newer
        head = f"Content-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
        # Browsers show a picture when the boundary after it has come.
        yield head.encode() + data + f"\r\n--{_BOUNDARY}\r\n".encode()
