"""A connection: uvicorn's protocol with limits on headers, time and the number of connections.

uvicorn bounds neither the size of the headers nor the time that they take, and an application
learns of a client that leaves only by asking. A connection that is refused more of its request
reads on for a moment, so that its client reads the answer before the connection closes.
"""

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gradcam_server.transport.security.listening import (
    HANDSHAKE_TIMEOUT_S,
    KEEPALIVE_S,
    MAX_METADATA_BYTES,
)

logger = logging.getLogger(__name__)

MAX_HEADERS = 100
MAX_PIPELINED = 16
_LINGER_S = 2.0
_EXTENSION = "gradcam"

_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 26\r\n\r\n"
    b"the headers are too large\n"
)


@dataclass(frozen=True)
class ConnectionLimits:
    """The limits of connections.

    Attributes:
        max_connections: Max connections of the port.
        max_age_s: Time after which a connection closes with its next answer, in seconds; 0 is
            never.
        head_s: Max time of a request's headers, in seconds.
        idle_s: Max time between two requests, in seconds.
    """

    max_connections: int
    max_age_s: float = 0.0
    head_s: float = HANDSHAKE_TIMEOUT_S
    idle_s: float = KEEPALIVE_S


class Connection(HttpToolsProtocol):
    """A connection of the HTTP port.

    Args:
        config: uvicorn's settings.
        server_state: The connections of the port.
        limits: The limits.

    Attributes:
        is_lost: Whether the client is gone.
        work: The task that answers the current request; it is cancelled when the client leaves.
    """

    def __init__(self, config: Config, server_state: ServerState, limits: ConnectionLimits) -> None:
        super().__init__(config, server_state, {})
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._in_head, self._head_bytes = False, 0
        self._body_ended = asyncio.Event()
        self._discards = False
        self.is_lost = False
        self.idle_since: float | None = None
        self.work: asyncio.Task[Any] | None = None

    @property
    def has_certificate(self) -> bool:
        """Whether the client has shown a certificate that TLS has verified."""
        return bool(self.transport.get_extra_info("peercert"))

    @property
    def is_answered(self) -> bool:
        """Whether the answer to the current request is complete."""
        return self.cycle.response_complete

    @property
    def is_paused(self) -> bool:
        """Whether the client reads more slowly than the answer is written."""
        return self.flow.write_paused

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        self._made_at = self.idle_since = self.loop.time()
        if len(self.connections) > self._limits.max_connections:
            _close_longest_idle(cast("Iterable[Connection]", self.connections), self)
        self._set_timer(self._limits.head_s)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._stop_timer()
        super().connection_lost(exc)
        if self.work is not None:
            self.work.cancel()

    def data_received(self, data: bytes) -> None:
        self.idle_since = None
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_METADATA_BYTES:
                self._refuse_head()
            elif self._timer is None:
                self._set_timer(self._limits.head_s)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0
        self.scope["extensions"] = {_EXTENSION: cast("dict[object, object]", self)}

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        if self.transport.is_closing():
            return
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_METADATA_BYTES or len(self.headers) > MAX_HEADERS:
            self._refuse_head()
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            self.transport.abort()  # a few bytes for each would hold kilobytes
            return
        self._body_ended.clear()
        self._discards = False
        super().on_headers_complete()
        age_s = self._limits.max_age_s
        if age_s and self.loop.time() - self._made_at > age_s:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        if not self.transport.is_closing() and not self._discards:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._body_ended.set()
        if self.transport.is_closing():
            return
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.idle_since = self.loop.time()

    def watch(self) -> None:
        """Notices from now on when the client leaves: uvicorn may have stopped reading."""
        self.flow.resume_reading()

    async def linger(self, scope: Any) -> None:
        """Reads on before an answer ends, for a moment, if its request has not ended.

        A system that closes a connection with unread data resets it, and the client, which still
        sends, would not read the answer. If the request does not end, the connection will close.

        Args:
            scope: The request.
        """
        if self.cycle.scope is not scope or self._body_ended.is_set():
            return
        self._discards = True
        self.flow.resume_reading()
        try:
            async with asyncio.timeout(_LINGER_S):
                await self._body_ended.wait()
        except TimeoutError:
            self.cycle.keep_alive = False

    def abort(self) -> None:
        """Closes the connection at once, with what the client has not read."""
        self.transport.abort()

    def _refuse_head(self) -> None:
        self._in_head = False
        if not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def _set_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._on_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_late(self) -> None:
        self._timer = None
        logger.debug("An HTTP client took too long for its request; its connection is closed")
        self.transport.abort()


def connection_of(scope: Any) -> Connection | None:
    """Returns the connection of a request; None if it came by another way, as in tests."""
    found = scope.get("extensions", {}).get(_EXTENSION)
    return found if isinstance(found, Connection) else None


def _close_longest_idle(connections: Iterable[Connection], new: Connection) -> None:
    """Makes room for a new connection: closes the longest idle, else the new connection."""
    idle = [one for one in connections if one.idle_since is not None and one is not new]
    victim = min(idle, key=lambda one: one.idle_since or 0.0, default=new)
    victim.transport.abort()
