"""A small HTTP server for Prometheus and for probes, with its own threads.

GET /metrics    the metrics
GET /healthz    200 "ok" while the process can heal itself, else 503 and why it must be restarted
GET /readyz     200 "ready", else 503 and the reason

A client has a few seconds for its whole exchange, however slowly it sends, and the number of
connections is bounded: slow clients and half-open connections do not keep others waiting.
"""

import io
import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from time import monotonic
from typing import Any, TypeAlias

from gradcam_server.errors import StartupError

logger = logging.getLogger(__name__)

EXCHANGE_S = 5.0
MAX_CONNECTIONS = 64

_TEXT = "text/plain; charset=utf-8"
_POLL_S = 0.2

Exposition: TypeAlias = Callable[[str], tuple[bytes, str]]
"""Takes the header Accept; returns the metrics and their content type."""


class HttpServer:
    """Serves metrics and probes from ``start`` to ``close``.

    All callables are called on threads of this server.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 picks a free port.
        exposition: Writes the metrics, as ``Metrics.exposition`` does.
        why_not_alive: Returns why the process must be restarted; None if it need not be.
        why_not_ready: Returns why the server is not ready; None if it is ready.
        exchange_s: Max time of a client's request and its answer, in seconds.
    """

    def __init__(
        self,
        host: str,
        port: int,
        exposition: Exposition,
        why_not_alive: Callable[[], str | None],
        why_not_ready: Callable[[], str | None],
        exchange_s: float = EXCHANGE_S,
    ) -> None:
        self._host, self._requested_port = host.strip("[]"), port
        self._exposition = exposition
        self._why_not_alive, self._why_not_ready = why_not_alive, why_not_ready
        self._exchange_s = exchange_s
        self._server: _Server | None = None

    @property
    def port(self) -> int:
        """The port that the server listens on; the requested port before ``start``."""
        if self._server is None:
            return self._requested_port
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Binds the port, and answers from now on.

        Raises:
            StartupError: The address is not of this machine, or the port is in use.
        """
        address = (self._host, self._requested_port)
        try:
            server = _Server(
                *(address, self._exposition, self._why_not_alive),
                *(self._why_not_ready, self._exchange_s),
            )
        except OSError as error:
            raise StartupError(
                f"cannot listen on {self._host}:{self._requested_port} for HTTP: {error.strerror}"
            ) from error
        self._server = server
        threading.Thread(
            target=server.serve_forever, args=(_POLL_S,), name="http", daemon=True
        ).start()
        logger.info("Metrics on http://%s:%d/metrics", self._host, self.port)

    def close(self) -> None:
        """Closes the port. Blocks for up to 0.2 s; does not wait for exchanges in work."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True  # connections of a server that has just stopped linger
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        exposition: Exposition,
        why_not_alive: Callable[[], str | None],
        why_not_ready: Callable[[], str | None],
        exchange_s: float,
    ) -> None:
        self.exposition = exposition
        self.why_not_alive, self.why_not_ready = why_not_alive, why_not_ready
        self.exchange_s = exchange_s
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        # Mostly clients that left. Faults of answers are logged where they happen.
        logger.debug("An HTTP exchange with %s broke off", client_address, exc_info=True)


class _Incoming(io.RawIOBase):
    """The bytes that a client sends until a time of ``monotonic``."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        # 0 would mean not to wait at all.
        self._connection.settimeout(max(self._deadline - monotonic(), 1e-3))
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "gradcam"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self._deadline = monotonic() + self.server.exchange_s
        self.rfile = io.BufferedReader(_Incoming(self.connection, self._deadline))

    def do_GET(self) -> None:
        try:
            status, content, content_type = self._answer(self.path.partition("?")[0])
        except Exception:
            logger.exception("%s could not be answered", self.path)
            status, content, content_type = HTTPStatus.INTERNAL_SERVER_ERROR, b"error\n", _TEXT
        self._send(status, content, content_type)

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        content = b"only GET and HEAD are allowed\n"
        self._send(HTTPStatus.METHOD_NOT_ALLOWED, content, _TEXT, ("Allow", "GET, HEAD"))

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)

    def _answer(self, path: str) -> tuple[HTTPStatus, bytes, str]:
        match path:
            case "/metrics":
                return HTTPStatus.OK, *self.server.exposition(self.headers.get("Accept", ""))
            case "/healthz":
                return _probed("ok", self.server.why_not_alive())
            case "/readyz":
                return _probed("ready", self.server.why_not_ready())
        return HTTPStatus.NOT_FOUND, b"there are /metrics, /healthz and /readyz\n", _TEXT

    def _send(
        self, status: HTTPStatus, content: bytes, content_type: str, *headers: tuple[str, str]
    ) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", content_type), *headers):
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        # Sending as a whole has the remaining time.
        self.connection.settimeout(max(self._deadline - monotonic(), 1e-3))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _probed(good: str, reason: str | None) -> tuple[HTTPStatus, bytes, str]:
    """Answers a probe: 200 without a reason, 503 with the reason."""
    if reason is None:
        return HTTPStatus.OK, f"{good}\n".encode(), _TEXT
    return HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}\n".encode(), _TEXT
