"""The account of a device: its batches in flight, when it will be free, and how busy it was."""

import math
from dataclasses import dataclass
from typing import Generic

from gradcam_server.engine.batches import Batch, ItemT, RunnerT

# Over how many batches the properties of a device are averaged.
_RECENT_BATCHES = 64
# A pause counts as at most so many batches: after a night without images, load is soon believed.
_PAUSE_BATCHES = 16
_PACE_BATCHES = 8


@dataclass(frozen=True, slots=True)
class _InFlight(Generic[RunnerT, ItemT]):
    """A batch on a device.

    Attributes:
        expected_s: Seconds that it is expected to take alone.
        is_behind: Whether another batch was in flight when it started.
        idle_s: For how long the device had been idle when it started, in seconds.
    """

    batch: Batch[RunnerT, ItemT]
    expected_s: float
    is_behind: bool
    idle_s: float


class DeviceAccount(Generic[RunnerT, ItemT]):
    """A device.

    Attributes:
        in_flight: Its batches, oldest first.
        gather_until: Until when a batch that is not full waits, as the device has enough to do.
    """

    __slots__ = ("_busy_s", "_free_at", "_idle_s", "_pace", "gather_until", "in_flight")

    def __init__(self) -> None:
        self.in_flight: list[_InFlight[RunnerT, ItemT]] = []
        self.gather_until = self._free_at = -math.inf
        # The time that a batch adds behind another, by the time that it takes alone.
        self._pace = 1.0
        self._busy_s = self._idle_s = 0.0

    @property
    def busy(self) -> float:
        """The part of the recent time in which the device had a batch."""
        return 1 - self._idle_s / max(self._busy_s + self._idle_s, 1e-9)

    def has_room(self, depth: int) -> bool:
        """Whether a batch of a runner of this depth may join the batches in flight."""
        return len(self.in_flight) < min(depth, self._depth)

    def must_drain(self, depth: int) -> bool:
        """Whether a batch of this depth has no room only because deeper batches are in flight."""
        return depth <= len(self.in_flight) < self._depth

    def start(self, batch: Batch[RunnerT, ItemT], now: float) -> None:
        """Adds a batch."""
        expected_s = batch.runner.expected_s(batch.padded_size)
        is_behind = bool(self.in_flight)
        idle_s = 0.0 if is_behind or self._free_at == -math.inf else now - self._free_at
        self.in_flight.append(_InFlight(batch, expected_s, is_behind, idle_s))
        self._free_at = max(now + expected_s, self._free_at + self._pace * expected_s)
        self._gather(expected_s)

    def finish(self, batch: Batch[RunnerT, ItemT], seconds: float, now: float) -> None:
        """Removes a batch, and expects anew when the batches behind it end."""
        for entry in self.in_flight:
            if entry.batch is batch:
                self._learn(entry, seconds)
        self.in_flight = [entry for entry in self.in_flight if entry.batch is not batch]
        self._free_at = now + self._pace * sum(entry.expected_s for entry in self.in_flight)
        self._gather(self.in_flight[-1].expected_s if self.in_flight else math.inf)

    def _gather(self, last_s: float) -> None:
        self.gather_until = self._free_at - last_s / 2

    def _learn(self, ended: _InFlight[RunnerT, ItemT], seconds: float) -> None:
        """Averages over recent batches."""
        kept = 1 - 1 / _RECENT_BATCHES
        self._busy_s = kept * self._busy_s + seconds
        self._idle_s = kept * self._idle_s + min(ended.idle_s, _PAUSE_BATCHES * seconds)
        if ended.is_behind:
            pace = min(seconds / max(ended.expected_s, 1e-9), 1.0)
            self._pace += (pace - self._pace) / _PACE_BATCHES

    @property
    def _depth(self) -> float:
        return min((entry.batch.runner.depth for entry in self.in_flight), default=math.inf)
