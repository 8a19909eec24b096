"""Spaces the calls of all sources, so that frames wait at their sources and not at the server.

A frame that waits at its source is replaced by a newer one; a frame in the server's queue only
grows old. A frame is at most one frame interval old when its call begins, so a call that takes
less than one interval keeps the lag under two frames. If calls take longer, the gap between
the beginnings of calls grows; while they are quick, it shrinks again. No load of the server and
no number of its devices needs to be known.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

# The share of a frame interval that a call may take.
_ALLOWED = 0.85
# A call may always take a little longer than the quickest of the last calls, however slow.
_ALLOWED_OVER_QUICKEST = 1.15
_QUICKEST_OF = 100
_GROWTH = 1.04
_SHRINKING = 0.99
_NO_GAP_S = 0.0005


@dataclass(slots=True)
class PacedCall:
    """A call that has begun.

    Attributes:
        source: The name of its source.
        interval_s: The frame interval of a live source, in seconds; None if lag does not matter.
        began_at: When it began.
        in_flight: How many calls were under way then, this one included.
        was_delayed: Whether it began later because of the gap.
    """

    source: str
    interval_s: float | None
    began_at: float
    in_flight: int
    was_delayed: bool


class Turn:
    """The right to begin the next call. Made by ``Pacer.turn``."""

    def __init__(self, pacer: "Pacer", was_delayed: bool) -> None:
        self._pacer, self._was_delayed = pacer, was_delayed

    def begin(self, source: str, interval_s: float | None) -> PacedCall:
        """Begins a call; a turn without a call leaves the next turn to others at once.

        Args:
            source: The name of the source.
            interval_s: The frame interval of a live source in seconds, or None.
        """
        return self._pacer._begin(source, interval_s, self._was_delayed)


class Pacer:
    """Gives the sources turns to begin calls: one at a time, first come, first served.

    A source asks for its next turn when its call has ended, so all have equal shares of what the
    server manages, and a source that needs less leaves the rest to the others.

    Args:
        clock: Returns the time in seconds.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._clock, self._sleep = clock, sleep
        self._lock = asyncio.Lock()  # its waiters are a queue
        self._next_at = self._paused_until = self._changed_at = 0.0
        self._in_flight = 0
        self._recent: dict[str, deque[float]] = {}
        self.gap_s = 0.0

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Waits for a turn, and holds it until the context ends."""
        async with self._lock:
            was_delayed = False
            while (pause_s := max(self._next_at, self._paused_until) - self._clock()) > 0:
                was_delayed = True
                await self._sleep(pause_s)
            yield Turn(self, was_delayed)

    def pause(self, seconds: float) -> None:
        """Gives no turn for some seconds, as the server asked, or because it is away."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def end(self, call: PacedCall, *, answered: bool) -> None:
        """Ends a call, and learns from its time if it was answered."""
        self._in_flight -= 1
        now = self._clock()
        if not answered or call.interval_s is None:
            return
        took_s = now - call.began_at
        recent = self._recent.setdefault(call.source, deque(maxlen=_QUICKEST_OF))
        recent.append(took_s)
        allowed_s = max(_ALLOWED * call.interval_s, _ALLOWED_OVER_QUICKEST * min(recent))
        if took_s > allowed_s:
            # A call that was alone waited for no other one of ours, and one that began before
            # the last change does not show its effect.
            if call.in_flight > 1 and call.began_at >= self._changed_at:
                grown_s = self.gap_s * _GROWTH if self.gap_s else took_s / call.in_flight
                self.gap_s = min(took_s, grown_s)
                self._changed_at = now
        elif call.was_delayed:
            self.gap_s *= _SHRINKING
            if self.gap_s < _NO_GAP_S:
                self.gap_s = 0.0

    def _begin(self, source: str, interval_s: float | None, was_delayed: bool) -> PacedCall:
        now = self._clock()
        # A turn that came late does not delay all later ones.
        self._next_at = max(self._next_at, now - self.gap_s) + self.gap_s
        self._in_flight += 1
        return PacedCall(source, interval_s, now, self._in_flight, was_delayed)
