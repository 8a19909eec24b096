"""Warming up -> serving -> draining, and which requests are let in."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

from gradcam_server.errors import NotReadyError

_RETRY_AFTER_WARM_UP_S = 2.0
_RETRY_AFTER_DRAIN_S = 1.0


class Phase(StrEnum):
    """What the server is doing."""

    WARMING_UP = "warming up"
    SERVING = "serving"
    DRAINING = "draining"


class Lifecycle:
    """The server's phase, and the number of requests in work."""

    def __init__(self) -> None:
        self.phase = Phase.WARMING_UP
        self.draining = asyncio.Event()
        self._in_work = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def check(self) -> None:
        """Returns if requests are let in.

        Raises:
            NotReadyError: The server is warming up or draining.
        """
        match self.phase:
            case Phase.WARMING_UP:
                raise NotReadyError("the server is warming up", _RETRY_AFTER_WARM_UP_S)
            case Phase.DRAINING:
                raise NotReadyError("the server is shutting down", _RETRY_AFTER_DRAIN_S)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Lets a request in, and counts it until it is done.

        Raises:
            NotReadyError: The server is warming up or draining.
        """
        self.check()
        self._in_work += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._in_work -= 1
            if self._in_work == 0:
                self._idle.set()

    def serve(self) -> None:
        """Lets requests in."""
        self.phase = Phase.SERVING

    def drain(self) -> None:
        """Lets no more requests in."""
        self.phase = Phase.DRAINING
        self.draining.set()

    async def wait_idle(self) -> None:
        """Waits until no request is in work."""
        await self._idle.wait()

    @property
    def in_work(self) -> int:
        """Requests in work."""
        return self._in_work
