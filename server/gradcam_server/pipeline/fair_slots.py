"""Slots that callers share: by priority, then by the seconds that each caller has used.

Long work must not delay short work, so some slots are for short work alone.
"""

import asyncio
import itertools
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

from gradcam_server.domain.fair_shares import Charge, FairShares

# Work of at most so many expected seconds is short, such as a JPEG of 2 megapixels.
MAX_SHORT_S = 0.025
# Work that was expected to be short and takes so many times longer is no accident ...
_MAX_OVERRUN = 8
# ... and its caller's work counts as long for so many seconds.
_DISTRUST_S = 10.0


class _Lane(NamedTuple):
    """Work that waits in one queue, oldest first."""

    priority: int
    caller: str
    is_short: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    number: int
    expected_s: float
    future: "asyncio.Future[HeldSlot]"


class HeldSlot:
    """A slot in use, from ``FairSlots.take``. It must be released once.

    Attributes:
        since: When it was taken, as a time of the clock.
    """

    def __init__(
        self, slots: "FairSlots", lane: _Lane, in_short_slot: bool, charge: Charge
    ) -> None:
        self._slots, self._charge = slots, charge
        self._lane, self._in_short_slot = lane, in_short_slot
        self.since = slots._clock()

    def release(self, seconds: float) -> None:
        """Frees the slot; the work has used so many seconds."""
        self._slots._release(self, seconds)


class FairSlots:
    """Slots, and the work that waits for them. Used on one event loop.

    Args:
        count: Slots for any work.
        short_count: Slots for short work alone.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, count: int, short_count: int = 0, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._free, self._free_short = count, short_count
        self._clock = clock
        self._lanes: dict[_Lane, deque[_Waiting]] = {}
        self._shares: dict[int, FairShares] = {}
        self._running: set[HeldSlot] = set()
        self._numbers = itertools.count()
        self._distrusted_until: dict[str, float] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no work waits or runs; then no caller is remembered."""
        return not (self._lanes or self._shares or self._running)

    async def take(
        self, caller: str, priority: int = 1, expected_s: float = MAX_SHORT_S
    ) -> HeldSlot:
        """Waits for a slot.

        Args:
            caller: The caller whose work it is.
            priority: 1 goes first; among equals the caller that has used the least.
            expected_s: Seconds that the work is expected to take; measured seconds replace them.
        """
        lane = _Lane(priority, caller, expected_s <= MAX_SHORT_S)
        self._shares.setdefault(priority, FairShares()).enter(caller)
        if not self._lanes and (self._free or self._has_short_slot(lane)):
            return self._begin(lane, expected_s)
        waiting = _Waiting(
            next(self._numbers), expected_s, asyncio.get_running_loop().create_future()
        )
        self._lanes.setdefault(lane, deque()).append(waiting)
        self._hand_out()
        try:
            return await waiting.future
        except asyncio.CancelledError:
            if waiting.future.done() and not waiting.future.cancelled():
                waiting.future.result().release(0.0)
            elif waiting in self._lanes.get(lane, ()):
                self._drop(lane, waiting)
            raise

    @asynccontextmanager
    async def hold(self, caller: str, priority: int = 1) -> AsyncIterator[None]:
        """Holds a slot; the time that it is held counts as used."""
        held = await self.take(caller, priority)
        try:
            yield
        finally:
            held.release(self._clock() - held.since)

    def _hand_out(self) -> None:
        while (lane := self._choose()) is not None:
            waiting = self._lanes[lane][0]
            if waiting.future.cancelled():  # ``take`` has not seen it yet
                self._drop(lane, waiting)
                continue
            self._remove(lane, waiting)
            waiting.future.set_result(self._begin(lane, waiting.expected_s))

    def _begin(self, lane: _Lane, expected_s: float) -> HeldSlot:
        in_short_slot = self._has_short_slot(lane)
        if in_short_slot:
            self._free_short -= 1
        else:
            self._free -= 1
        charge = self._shares[lane.priority].begin(lane.caller, expected_s)
        held = HeldSlot(self, lane, in_short_slot, charge)
        self._running.add(held)
        return held

    def _choose(self) -> _Lane | None:
        """Returns the lane whose oldest work goes next, if there is a slot for it."""
        if not (self._lanes and (self._free or self._free_short)):
            return None
        now = self._clock()
        for held in self._running:
            held._charge.raise_to(now - held.since)
        return min(
            (lane for lane in self._lanes if self._free or self._has_short_slot(lane)),
            key=lambda lane: (
                lane.priority,
                self._shares[lane.priority].used_s(lane.caller),
                self._lanes[lane][0].number,
            ),
            default=None,
        )

    def _release(self, held: HeldSlot, seconds: float) -> None:
        self._running.remove(held)
        lane = held._lane
        held._charge.settle(seconds)
        self._forget(lane.priority)
        if lane.is_short and seconds > _MAX_OVERRUN * MAX_SHORT_S:
            self._distrust(lane.caller)
        if held._in_short_slot:
            self._free_short += 1
        else:
            self._free += 1
        self._hand_out()

    def _drop(self, lane: _Lane, waiting: _Waiting) -> None:
        self._remove(lane, waiting)
        self._shares[lane.priority].leave(lane.caller)
        self._forget(lane.priority)

    def _remove(self, lane: _Lane, waiting: _Waiting) -> None:
        self._lanes[lane].remove(waiting)
        if not self._lanes[lane]:
            del self._lanes[lane]

    def _forget(self, priority: int) -> None:
        if not self._shares[priority].caller_count:
            del self._shares[priority]

    def _distrust(self, caller: str) -> None:
        now = self._clock()
        self._distrusted_until = {
            known: until for known, until in self._distrusted_until.items() if until > now
        }
        self._distrusted_until[caller] = now + _DISTRUST_S

    def _has_short_slot(self, lane: _Lane) -> bool:
        is_trusted = self._distrusted_until.get(lane.caller, -math.inf) <= self._clock()
        return lane.is_short and self._free_short > 0 and is_trusted
