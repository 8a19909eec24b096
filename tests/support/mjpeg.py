"""A camera that streams MJPEG over HTTP, as network cameras do (multipart/x-mixed-replace)."""

import base64
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2

from support.videos import numbered


class MjpegCamera:
    """Serves numbered frames at http://127.0.0.1:port/; the number goes on while it is down.

    Args:
        fps: Frames per second.
        size: Height and width.
    """

    def __init__(self, fps: float = 20, size: tuple[int, int] = (48, 64)) -> None:
        self._fps, self._size = fps, size
        self._began = time.monotonic()
        self._server: ThreadingHTTPServer | None = None
        self._sockets: list[socket.socket] = []
        self.port = 0
        self.password: str | None = None
        """As user:password; None lets everybody in."""
        self.hangs = False
        """Whether clients get no more frames, but stay connected."""

    def start(self) -> None:
        """Listens, on the same port as before if there was one."""
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not camera._lets_in(self.headers.get("Authorization")):
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", 'Basic realm="camera"')
                    self.end_headers()
                    return
                camera._sockets.append(self.connection)
                with suppress(OSError):
                    camera._stream(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        """Stops listening, and cuts all connections."""
        server, self._server = self._server, None
        assert server is not None
        server.shutdown()
        server.server_close()
        while self._sockets:
            with suppress(OSError):
                self._sockets.pop().shutdown(socket.SHUT_RDWR)

    def number_now(self) -> int:
        """Returns the number of the newest frame, modulo 256."""
        return int((time.monotonic() - self._began) * self._fps) % 256

    def _lets_in(self, authorization: str | None) -> bool:
        if self.password is None:
            return True
        return authorization == "Basic " + base64.b64encode(self.password.encode()).decode()

    def _stream(self, handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        while self._server is not None:
            if not self.hangs:
                picture = numbered(self.number_now(), *self._size)[..., ::-1]
                data = cv2.imencode(".jpg", picture)[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                handler.wfile.write(head.encode() + data + b"\r\n")
            time.sleep(1 / self._fps)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True


@contextmanager
def mjpeg_camera(fps: float = 20) -> Iterator[MjpegCamera]:
    """Runs a camera for a test."""
    camera = MjpegCamera(fps)
    camera.start()
    try:
        yield camera
    finally:
        if camera._server is not None:
            camera.kill()
