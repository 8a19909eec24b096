"""The HTTP port of one process: binds, answers in the event loop, closes."""

import asyncio
import logging
import socket
import ssl
from contextlib import suppress
from email.utils import formatdate
from typing import cast

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from gradcam_server.errors import StartupError
from gradcam_server.transport.http.protocol import Connection, ConnectionLimits
from gradcam_server.transport.security.listening import HANDSHAKE_TIMEOUT_S

logger = logging.getLogger(__name__)

_BACKLOG = 1024
_POLL_S = 0.02


class HttpPort:
    """Serves an application from ``listen`` to ``close``.

    Args:
        app: The application.
        limits: The limits of connections.
        tls: For TLS; None for plain text.
    """

    def __init__(
        self, app: ASGIApp, limits: ConnectionLimits, tls: ssl.SSLContext | None = None
    ) -> None:
        self._config = Config(
            app,
            http="httptools",
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=round(limits.idle_s),
        )
        self._config.load()
        # One line for each malformed request would let clients fill the log.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._limits, self._tls = limits, tls
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._clock: asyncio.TimerHandle | None = None

    async def listen(self, host: str, port: int, *, shared: bool = False) -> int:
        """Binds the port, and answers from now on.

        Args:
            host: Address to listen on.
            port: The port; 0 picks a free port.
            shared: Whether other processes of this server bind the same port.

        Returns:
            The port.

        Raises:
            StartupError: The address is not of this machine, or the port is in use.
        """
        host = host.strip("[]")
        try:
            bound = _bind(host, port, shared=shared)
            self._server = await asyncio.get_running_loop().create_server(
                lambda: Connection(self._config, self._state, self._limits),
                sock=bound,
                ssl=self._tls,
                backlog=_BACKLOG,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if self._tls else None,
            )
        except OSError as error:
            raise StartupError(
                f"cannot listen on {host}:{port} for HTTP: {error.strerror}"
            ) from error
        self._tell_time()
        return int(bound.getsockname()[1])

    async def close(self, grace_s: float = 0.0) -> None:
        """Closes the port and its connections; answers may take some time to be sent.

        Args:
            grace_s: That time in seconds.
        """
        if self._server is None:
            return
        self._server.close()
        if self._clock is not None:
            self._clock.cancel()
        for connection in self._connections:
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while self._state.connections:  # noqa: ASYNC110 - uvicorn tells nobody
                    await asyncio.sleep(_POLL_S)
        for connection in self._connections:
            connection.abort()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=1)
        self._server = None

    @property
    def _connections(self) -> list[Connection]:
        return cast("list[Connection]", list(self._state.connections))

    def _tell_time(self) -> None:
        """Keeps the header Date up to date."""
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode("ascii"))]
        self._clock = asyncio.get_running_loop().call_later(1, self._tell_time)


def _bind(host: str, port: int, *, shared: bool) -> socket.socket:
    """Binds a socket.

    Raises:
        OSError: The address is not of this machine, or the port is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Only with the protocol's number asyncio sets TCP_NODELAY: else answers wait 40 ms for an ACK.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind((host, port))
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound
