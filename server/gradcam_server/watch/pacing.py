"""Spaces the calls of all sources, so that frames wait at their sources and not at the server.

A frame that waits at its source is replaced by a newer one; a frame in the server's queue only
grows old. A frame is at most one frame interval old when its call begins, so a call that takes
less than one interval keeps the lag under two frames. If calls take longer, the gap between
the beginnings of calls grows; while they are quick, it shrinks again. No load of the server and
no number of its devices needs to be known.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

# The share of a frame interval that a call may take.
_ALLOWED = 0.8
# A call may always take a little longer than one that waits for no other.
_ALLOWED_OVER_ALONE = 1.1
# Each of so many calls of a source is made alone. A minimum over past calls would not do: where
# all calls wait a little, it creeps up.
_ALONE_EVERY = 200
# How much a new sample counts in the mean of the service time.
_SERVICE_WEIGHT = 0.1
# How much of a call's time over its target is added to the gap. A gap that is larger by d shortens
# the wait of the next call by d: at 0.3 the wait comes to its target without swinging.
_CORRECTION = 0.3
_CATCH_UP = 0.25  # of the gap
_MIN_PAUSE_S = 1e-4


@dataclass(slots=True)
class PacedCall:
    """A call that has begun.

    Attributes:
        source: The name of its source.
        is_live: Whether its lag matters.
        interval_s: The frame interval of the source in seconds; None if it is not known yet.
        began_at: When it began.
        is_alone: Whether no other call of a live source was under way.
    """

    source: str
    is_live: bool
    interval_s: float | None
    began_at: float
    is_alone: bool


@dataclass(slots=True)
class _Alone:
    """How long a call of a source takes that waits for no other.

    Attributes:
        took_s: The time in seconds; None if it is not known yet.
        count: Calls since the last one that was made alone.
    """

    took_s: float | None = None
    count: int = _ALONE_EVERY


class Pacer:
    """Gives the sources turns to begin calls: one at a time, first come, first served.

    A source asks for its next turn when its call has ended, so all have equal shares of what the
    server manages, and a source that needs less leaves the rest to the others. The first call of
    each live source, and one of many later ones, is made alone: it shows how long a call takes
    that waits for no other.

    Args:
        clock: Returns the time in seconds.

    Attributes:
        gap_s: The least time between the beginnings of two calls, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = asyncio.Lock()  # its waiters are a queue
        self._closed = asyncio.Event()
        self._next_at = self._paused_until = 0.0
        self._live_count = 0
        self._service_s = self._last_end = 0.0
        self._alone = asyncio.Event()
        self._alone.set()
        self._alone_of: dict[str, _Alone] = {}
        self.gap_s = 0.0

    @asynccontextmanager
    async def turn(self, source: str, *, is_live: bool) -> AsyncIterator["Turn"]:
        """Waits for a turn, and holds it until the context ends.

        Args:
            source: The name of the source.
            is_live: Whether the lag of its frames matters.
        """
        async with self._lock:
            alone = self._alone_of.setdefault(source, _Alone())
            if is_live and alone.count >= _ALONE_EVERY:
                await self._alone.wait()
            while (pause_s := self._pause_s()) > _MIN_PAUSE_S:
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._closed.wait()
                if self._closed.is_set():
                    break
            yield Turn(self, source, is_live)

    def pause(self, seconds: float) -> None:
        """Gives no turn for some seconds, as the server asked, or because it is away."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def close(self) -> None:
        """Ends all pauses."""
        self._closed.set()

    def end(self, call: PacedCall, *, answered: bool) -> None:
        """Ends a call, and learns from its time if it was answered."""
        self._live_count -= call.is_live
        if not self._live_count:
            self._alone.set()
        if not answered:
            return
        now, last_end, self._last_end = self._clock(), self._last_end, self._clock()
        if call.began_at < last_end:  # the server had it all the time since the last answer
            weight = _SERVICE_WEIGHT if self._service_s else 1.0
            self._service_s += weight * (now - last_end - self._service_s)
        if not call.is_live:
            return
        took_s, alone = now - call.began_at, self._alone_of[call.source]
        if call.is_alone or alone.took_s is None or took_s < alone.took_s:
            alone.took_s = took_s
        if call.interval_s is None:
            return
        allowed_s = max(_ALLOWED * call.interval_s, _ALLOWED_OVER_ALONE * alone.took_s)
        target_s = (alone.took_s + allowed_s) / 2
        gap_s = self._service_s + _CORRECTION * (took_s - target_s)
        self.gap_s = min(max(0.0, gap_s), took_s)

    def _pause_s(self) -> float:
        return max(self._next_at, self._paused_until) - self._clock()

    def _begin(self, source: str, is_live: bool, interval_s: float | None) -> PacedCall:
        now = self._clock()
        # A turn that came a little late does not delay all later ones; two at once would queue.
        self._next_at = max(self._next_at, now - _CATCH_UP * self.gap_s) + self.gap_s
        is_alone = is_live and not self._live_count
        if is_live:
            alone = self._alone_of[source]
            alone.count = 0 if is_alone else alone.count + 1
            self._live_count += 1
            self._alone.clear()
        return PacedCall(source, is_live, interval_s, now, is_alone)


class Turn:
    """The right to begin the next call. Made by ``Pacer.turn``."""

    def __init__(self, pacer: Pacer, source: str, is_live: bool) -> None:
        self._pacer, self._source, self._is_live = pacer, source, is_live

    def begin(self, interval_s: float | None) -> PacedCall:
        """Begins a call; a turn without a call leaves the next turn to others at once.

        Args:
            interval_s: The frame interval of the source in seconds, or None.
        """
        return self._pacer._begin(self._source, self._is_live, interval_s)
