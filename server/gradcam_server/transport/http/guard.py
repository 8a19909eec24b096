"""The outermost layer of the application: every answer is sent in time, or its connection ends.

It also adds the headers that all answers have, and ends the work for clients that leave.
"""

import asyncio
import logging
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gradcam_server.transport.http.protocol import Connection, connection_of

logger = logging.getLogger(__name__)

_HEADERS = [
    # A browser takes no answer for another type than it says.
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class Guard:
    """Wraps an application.

    Args:
        app: The application.
        max_send_s: Max time to send an answer, in seconds.
    """

    def __init__(self, app: ASGIApp, max_send_s: float) -> None:
        self._app, self._max_send_s = app, max_send_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        connection = connection_of(scope)
        scope.setdefault("state", {})
        started = False

        async def send_in_time(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = [*message.get("headers", ()), *_HEADERS]
                if request_id := scope["state"].get("request_id"):
                    headers.append((b"x-request-id", request_id.encode("ascii")))
                message["headers"] = headers
                await send(message)
            elif connection is None:
                await send(message)
            else:
                await self._send_body(connection, scope, message, send)

        if connection is None:
            await self._app(scope, receive, send_in_time)
            return
        connection.work = asyncio.current_task()
        try:
            await self._app(scope, receive, send_in_time)
        except asyncio.CancelledError:
            if not connection.is_lost:  # the server ends
                connection.abort()
        except Exception:
            # Starlette raises it again after its answer, which has logged it.
            if not started:
                raise
            if not connection.is_answered:
                logger.exception("A request failed after its answer had begun")
                connection.abort()
        finally:
            connection.work = None

    async def _send_body(
        self, connection: Connection, scope: Scope, message: Message, send: Send
    ) -> None:
        """Sends a part of an answer; its end once the client has taken nearly all of it."""
        ends = not message.get("more_body", False)
        await send({**message, "more_body": True})
        if connection.is_paused and not connection.is_lost:
            await self._wait_until_taken(connection, send)
        if ends:
            await connection.linger(scope)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _wait_until_taken(self, connection: Connection, send: Send) -> None:
        try:
            async with asyncio.timeout(self._max_send_s):
                await send({"type": "http.response.body", "body": b"", "more_body": True})
        except TimeoutError:
            logger.warning(
                "An answer was not taken for %g s; its call is cut off", self._max_send_s
            )
            connection.abort()
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(1)  # until the connection is lost, which cancels this
            raise asyncio.CancelledError from None
