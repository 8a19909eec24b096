"""A few slots that callers share: by priority, then by the seconds that each has used.

Long work must not make short work wait, so some slots are for short work alone.
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

# Expected seconds up to which work is short. A JPEG of 2 megapixels is.
MAX_SHORT_S = 0.025
# Work that was expected to be short and takes so many times longer was no accident ...
_MAX_OVERRUN = 8
# ... and its caller's work counts as long for so many seconds.
_DISTRUST_S = 10.0


class _Class(NamedTuple):
    """Work that waits in one line: oldest first."""

    priority: int
    caller: str
    is_short: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    number: int
    expected_s: float
    future: "asyncio.Future[HeldSlot]"


class HeldSlot:
    """A slot in use. ``FairSlots.take`` gives one; it must be released once.

    Attributes:
        since: When it was given, as a time of the clock.
    """

    def __init__(
        self, slots: "FairSlots", line: _Class, in_short_slot: bool, charge: Charge
    ) -> None:
        self._slots, self._charge = slots, charge
        self._line, self._in_short_slot = line, in_short_slot
        self.since = slots._clock()

    def release(self, seconds: float) -> None:
        """Frees the slot; the work has used so many seconds."""
        self._slots._release(self, seconds)


class FairSlots:
    """Slots, and the work that waits for one. Used on one event loop.

    Args:
        count: Slots for any work.
        short_count: Slots for short work alone.
        clock: Time in seconds.
    """

    def __init__(
        self, count: int, short_count: int = 0, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._free, self._free_short = count, short_count
        self._clock = clock
        self._lines: dict[_Class, deque[_Waiting]] = {}
        self._shares: dict[int, FairShares] = {}
        self._running: set[HeldSlot] = set()
        self._numbers = itertools.count()
        self._distrusted_until: dict[str, float] = {}

    async def take(
        self, caller: str, priority: int = 1, expected_s: float = MAX_SHORT_S
    ) -> HeldSlot:
        """Waits for a slot.

        Args:
            caller: Whose work it is.
            priority: 1 goes first; among equals the caller that has used the least.
            expected_s: Seconds that the work is expected to take; the measured ones count later.
        """
        line = _Class(priority, caller, expected_s <= MAX_SHORT_S)
        waiting = _Waiting(
            next(self._numbers), expected_s, asyncio.get_running_loop().create_future()
        )
        self._lines.setdefault(line, deque()).append(waiting)
        self._shares.setdefault(priority, FairShares()).enter(caller)
        self._hand_out()
        try:
            return await waiting.future
        except asyncio.CancelledError:
            if waiting.future.done() and not waiting.future.cancelled():
                waiting.future.result().release(0.0)
            elif waiting in self._lines.get(line, ()):
                self._drop(line, waiting)
            raise

    @asynccontextmanager
    async def hold(self, caller: str, priority: int = 1) -> AsyncIterator[None]:
        """Holds a slot; what counts as used is the time that it is held."""
        held = await self.take(caller, priority)
        try:
            yield
        finally:
            held.release(self._clock() - held.since)

    def _hand_out(self) -> None:
        while (line := self._choose()) is not None:
            waiting = self._lines[line][0]
            if waiting.future.cancelled():  # and ``take`` has not been told yet
                self._drop(line, waiting)
                continue
            self._remove(line, waiting)
            in_short_slot = self._has_short_slot(line)
            if in_short_slot:
                self._free_short -= 1
            else:
                self._free -= 1
            charge = self._shares[line.priority].begin(line.caller, waiting.expected_s)
            held = HeldSlot(self, line, in_short_slot, charge)
            self._running.add(held)
            waiting.future.set_result(held)

    def _choose(self) -> _Class | None:
        """Returns the line whose oldest work goes next, if there is a slot for it."""
        if not (self._lines and (self._free or self._free_short)):
            return None
        now = self._clock()
        for held in self._running:
            held._charge.raise_to(now - held.since)
        return min(
            (line for line in self._lines if self._free or self._has_short_slot(line)),
            key=lambda line: (
                line.priority,
                self._shares[line.priority].used_s(line.caller),
                self._lines[line][0].number,
            ),
            default=None,
        )

    def _release(self, held: HeldSlot, seconds: float) -> None:
        self._running.remove(held)
        line = held._line
        held._charge.settle(seconds)
        self._forget(line.priority)
        if line.is_short and seconds > _MAX_OVERRUN * MAX_SHORT_S:
            self._distrust(line.caller)
        if held._in_short_slot:
            self._free_short += 1
        else:
            self._free += 1
        self._hand_out()

    def _drop(self, line: _Class, waiting: _Waiting) -> None:
        self._remove(line, waiting)
        self._shares[line.priority].leave(line.caller)
        self._forget(line.priority)

    def _remove(self, line: _Class, waiting: _Waiting) -> None:
        self._lines[line].remove(waiting)
        if not self._lines[line]:
            del self._lines[line]

    def _forget(self, priority: int) -> None:
        if not self._shares[priority].caller_count:
            del self._shares[priority]

    def _distrust(self, caller: str) -> None:
        now = self._clock()
        self._distrusted_until = {
            one: until for one, until in self._distrusted_until.items() if until > now
        }
        self._distrusted_until[caller] = now + _DISTRUST_S

    def _has_short_slot(self, line: _Class) -> bool:
        is_trusted = self._distrusted_until.get(line.caller, -math.inf) <= self._clock()
        return line.is_short and self._free_short > 0 and is_trusted
