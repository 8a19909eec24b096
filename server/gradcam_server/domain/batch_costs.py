"""What batches of each size cost: at first as measured at the start, then as the batches show."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median

from gradcam_server.domain.batch_sizes import plan_batch

# The recent batches of a size whose median is its level; a stall changes it little.
_RECENT = 63
# Over how many batches the pace of the device is averaged. It is much shorter than half of
# ``_RECENT``: what slows the device down changes the pace, and not the levels.
_PACE_BATCHES = 4
# A figure that was measured on this machine counts as so many batches: more than the pace needs to
# follow, if the device is slower now.
_MEASURED = 16
# How often a size is tried whose figure is a guess. The median of so many withstands one stall.
_TRIALS = 3
_MIN_S = 1e-9


class BatchCosts:
    """Seconds that a batch of each size takes on a device.

    Each size has a level, relative to the pace of the device. The pace is the same for all sizes:
    if a neighbour slows the device down, the costs of sizes that do not run now follow, too, and
    with them the ratios by which the batch size is chosen.

    Args:
        start_s: Seconds by batch size, at the start.
        guessed: Sizes whose seconds were not measured on this machine. A guess that is too low is
            corrected when it is chosen; one that is too high would never be, so each such size runs
            a few times as soon as there are enough images for it.
    """

    def __init__(self, start_s: Mapping[int, float], guessed: Iterable[int] = ()) -> None:
        self._cost_s = dict(start_s)
        self._levels = {size: _log(seconds) for size, seconds in start_s.items()}
        guessed = sorted(guessed)
        self._recent = {
            size: deque([level] * (0 if size in guessed else _MEASURED), _RECENT)
            for size, level in self._levels.items()
        }
        self._pace = 0.0
        self._trials = dict.fromkeys(guessed, _TRIALS)

    @property
    def cost_s(self) -> Mapping[int, float]:
        """Seconds that a batch of each size takes now, as far as is known."""
        return self._cost_s

    def plan(self, waiting: int, busy: float = 1.0) -> tuple[int, int]:
        """Returns how many of ``waiting`` images to take, and the size to run: ``plan_batch``."""
        for size, left in self._trials.items():
            if left and size <= waiting:
                self._trials[size] -= 1
                return size, size
        return plan_batch(waiting, self._cost_s, busy)

    def learn(self, size: int, seconds: float) -> None:
        """Learns from a batch that had the device alone.

        Args:
            size: Its padded size.
            seconds: Seconds that it took.
        """
        logarithm = _log(seconds)
        recent = self._recent[size]
        recent.append(logarithm - self._pace)
        self._levels[size] = median(recent)
        self._pace += (logarithm - self._pace - self._levels[size]) / _PACE_BATCHES
        self._cost_s = {size: math.exp(level + self._pace) for size, level in self._levels.items()}


def _log(seconds: float) -> float:
    return math.log(max(seconds, _MIN_S))
