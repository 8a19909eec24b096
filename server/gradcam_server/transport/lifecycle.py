"""The phases of a server: warming up -> serving (<-> restarting) -> draining."""

import asyncio
from collections.abc import Awaitable
from enum import StrEnum
from time import perf_counter
from typing import TypeVar

from gradcam_server.errors import NotReadyError

_T = TypeVar("_T")

_RETRY_AFTER_WARM_UP_S = 2.0
_RETRY_AFTER_DRAIN_S = 1.0
_RETRY_AFTER_LATE_S = 1.0
_QUIET_S = 0.05
_QUIET_TIMEOUT_S = 0.5


class Phase(StrEnum):
    """A phase of the server. Requests are admitted while it is ``SERVING``."""

    WARMING_UP = "warming up"
    SERVING = "serving"
    RESTARTING = "restarting"
    DRAINING = "draining"


class Lifecycle:
    """The server's phase, and the number of requests in work."""

    def __init__(self) -> None:
        self.phase = Phase.WARMING_UP
        self.draining = asyncio.Event()
        self._until_drain: set[asyncio.Timeout] = set()
        self._in_work = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._refused = 0
        self._release: asyncio.Event | None = None
        self._restart_s = self._back_at = 0.0

    def check(self) -> None:
        """Checks that new requests are admitted.

        Raises:
            NotReadyError: The server is warming up, restarting its engine or draining.
        """
        self.check_engine()
        if self.phase is Phase.DRAINING:
            raise NotReadyError("the server is shutting down", _RETRY_AFTER_DRAIN_S)

    def check_engine(self) -> None:
        """Checks that admitted requests can be answered.

        Raises:
            NotReadyError: The server is warming up or restarting its engine.
        """
        match self.phase:
            case Phase.WARMING_UP:
                raise NotReadyError("the server is warming up", _RETRY_AFTER_WARM_UP_S)
            case Phase.RESTARTING:
                # After the expected time, a part of it: clients do not try for ever.
                late_s = max(self._restart_s / 2, _RETRY_AFTER_LATE_S)
                remaining_s = self._back_at - perf_counter()
                wait_s = remaining_s if remaining_s > 0 else late_s
                raise NotReadyError("the engine was lost and is being started again", wait_s)

    def begin_request(self) -> None:
        """Admits a request, and counts it until ``end_request``.

        Raises:
            NotReadyError: The server is warming up, restarting its engine or draining.
        """
        self.check()
        self._in_work += 1
        self._idle.clear()

    def end_request(self) -> None:
        """Counts an admitted request no more."""
        self._in_work -= 1
        if self._in_work == 0:
            self._idle.set()

    def serve(self) -> None:
        """Admits requests from now on, unless the server is draining."""
        if self.phase is not Phase.DRAINING:
            self.phase = Phase.SERVING

    def restart(self, seconds: float) -> None:
        """Refuses requests until ``serve``, which is expected in this many seconds."""
        self._restart_s = seconds
        self._back_at = perf_counter() + seconds
        if self.phase is Phase.SERVING:
            self.phase = Phase.RESTARTING

    def drain(self) -> None:
        """Refuses requests from now on."""
        self.phase = Phase.DRAINING
        self.draining.set()
        for waiting in self._until_drain:
            waiting.reschedule(0)  # now

    async def unless_draining(self, work: Awaitable[_T]) -> _T | None:
        """Waits for work; cancels it and returns None once the server drains."""
        waiting = asyncio.timeout(0 if self.draining.is_set() else None)
        self._until_drain.add(waiting)
        try:
            async with waiting:
                return await work
        except TimeoutError:
            return None
        finally:
            self._until_drain.discard(waiting)

    async def hold_refusals(self) -> None:
        """Makes refusals wait for ``release_refusals``; returns once no more come in.

        A request that reaches a closing gRPC server before its handler runs ends with
        CANCELLED. Clients whose refusal is held send nothing until they know, by
        HTTP/2's GOAWAY, that the server is going.
        """
        self._release = asyncio.Event()
        deadline = perf_counter() + _QUIET_TIMEOUT_S
        refused = -1
        while refused != self._refused and perf_counter() < deadline:
            refused = self._refused
            await asyncio.sleep(_QUIET_S)

    def release_refusals(self) -> None:
        """Sends all held refusals."""
        if self._release is not None:
            self._release.set()

    async def before_refusal(self) -> None:
        """Waits while refusals are held."""
        self._refused += 1
        if self._release is not None:
            await self._release.wait()

    async def pause(self, seconds: float) -> None:
        """Delays a request by a number of seconds, which may be 0.

        Raises:
            NotReadyError: The server drains before the time is over.
        """
        if not seconds:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.draining.wait()
        except TimeoutError:
            return
        self.check()

    async def wait_idle(self) -> None:
        """Waits until no request is in work."""
        await self._idle.wait()

    @property
    def in_work(self) -> int:
        """Requests in work."""
        return self._in_work
