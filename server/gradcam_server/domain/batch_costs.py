"""What batches of each size cost: as measured at the start, or else as the batches show."""

import math
from collections import deque
from collections.abc import Collection, Mapping
from statistics import fmean, median

from gradcam_server.domain.batch_sizes import plan_batch

# The recent samples of a size whose mean is its level.
_RECENT = 63
# To count in full, samples may be so far from the median, and batches from the pace (logarithms):
# a stall is no cost.
_MAX_FROM_MEDIAN, _MAX_FROM_PACE = 0.15, 0.5
# Over how many batches the pace of the device is averaged.
_PACE_BATCHES = 4
# A size is compared with others while it has at most this part in the pace.
_MAX_OWN_PART = 0.2
# A figure that was measured on this machine counts as so many batches: if the device is slower now,
# the pace follows first. More, and a disturbed measurement would be believed for long.
_MEASURED = 4
# After how many batches each size is tried again for the first time; later after twice as many.
_FIRST_TRIALS = 8
# The sizes next to the best are tried after so many batches, and more rarely after so many trials,
# if they cost about as much for each image.
_CLOSE_TRIALS = 16
_CLOSE = 1.6
_MIN_S = 1e-9


class BatchCosts:
    """Seconds that a batch of each size takes on a device.

    They are kept if all were measured on this machine, or else learnt:

    Each size has a level, relative to the pace of the device. The pace is the same for all sizes:
    if a neighbour slows the device down, the costs of sizes that do not run now follow, too, and
    with them the ratios by which the batch size is chosen. All batches set the pace. A level is
    learnt from batches after those of other sizes only: a size that runs all the time says nothing
    about the others.

    A level that is too low is corrected when its size is chosen, and a size whose level is too high
    would never be. So each size is tried when enough images wait, and again after twice as many
    batches: in turns, so that load that comes and goes falls on all alike. The sizes next to the
    best may differ from it by a few percent only, while the speed of a shared machine changes by a
    third within seconds: no measurement of seconds finds the best of them. So they are tried often,
    each compared by the pace with the batches before it.

    Args:
        start_s: Seconds by batch size, at the start.
        guessed: Sizes whose seconds were measured elsewhere.
        learns: Learn also if all were measured here.
    """

    def __init__(
        self, start_s: Mapping[int, float], guessed: Collection[int] = (), *, learns: bool = False
    ) -> None:
        self._cost_s, self._is_learning = dict(start_s), learns or bool(guessed)
        self._levels = {size: _log(seconds) for size, seconds in start_s.items()}
        self._recent = {
            size: deque([level] * (0 if size in guessed else _MEASURED), _RECENT)
            for size, level in self._levels.items()
        }
        self._pace, self._planned = 0.0, 0
        self._parts = dict.fromkeys(start_s, 0.0)  # of the sizes in the pace
        # After how many batches each size is tried, and of those next to the best how often it was.
        self._due = dict.fromkeys(sorted(start_s) if self._is_learning else (), 0)
        self._close_due: dict[int, int] = {}
        self._close_trials: dict[int, int] = {}

    @property
    def cost_s(self) -> Mapping[int, float]:
        """Seconds that a batch of each size takes now, as far as is known."""
        return self._cost_s

    def plan(self, waiting: int, busy: float = 1.0) -> tuple[int, int]:
        """Returns how many of ``waiting`` images to take, and the size to run: ``plan_batch``."""
        self._planned += 1
        taken, best = plan_batch(waiting, self._cost_s, busy)
        tried = self._trial(waiting, best) if self._is_learning else None
        return (tried, tried) if tried else (taken, best)

    def _trial(self, waiting: int, best: int) -> int | None:
        """Returns the size that is due for a trial, if there is one."""
        for size, due in self._due.items():
            if size <= waiting and due < self._planned:
                self._due[size] = 2 * self._planned + _FIRST_TRIALS
                return size
        sizes, cost_s = sorted(self._cost_s), self._cost_s
        place = sizes.index(best)
        for size in (*sizes[max(place - 1, 0) : place], *sizes[place + 1 : place + 2]):
            is_close = cost_s[size] / size < _CLOSE * cost_s[best] / best
            if is_close and size <= waiting and self._close_due.get(size, 0) < self._planned:
                trials = self._close_trials[size] = self._close_trials.get(size, 0) + 1
                interval = _CLOSE_TRIALS * (1 + trials // _CLOSE_TRIALS)
                self._close_due[size] = self._planned + interval
                return size
        return None

    def learn(self, size: int, seconds: float) -> None:
        """Learns from a batch that had the device alone, if not all costs are known.

        Args:
            size: Its padded size.
            seconds: Seconds that it took.
        """
        if not self._is_learning:
            return
        logarithm = _log(seconds)
        if self._parts[size] <= _MAX_OWN_PART:
            recent = self._recent[size]
            recent.append(logarithm - self._pace)
            self._levels[size] = _level(recent)
        residual = logarithm - self._pace - self._levels[size]
        self._pace += _clipped(residual, _MAX_FROM_PACE) / _PACE_BATCHES
        kept = 1 - 1 / _PACE_BATCHES
        self._parts = {other: kept * part for other, part in self._parts.items()}
        self._parts[size] += 1 - kept
        self._cost_s = {size: math.exp(level + self._pace) for size, level in self._levels.items()}


def _level(samples: Collection[float]) -> float:
    """Returns the mean: the median would favour short runs, which other load often spares."""
    middle = median(samples)
    return middle + fmean(_clipped(sample - middle, _MAX_FROM_MEDIAN) for sample in samples)


def _clipped(value: float, most: float) -> float:
    return min(max(value, -most), most)


def _log(seconds: float) -> float:
    return math.log(max(seconds, _MIN_S))
