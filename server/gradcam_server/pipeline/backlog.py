"""The work before a request, and when it will be answered: a request that would be late is refused.

    expected time = (work before it + its own) * slowness

Work is in seconds of the devices, by the times that were measured while warming up. Before a
request goes all of a more urgent priority and, as callers have fair shares, of its own priority at
most as much of each other caller as of its own caller, this request included.

Slowness is learnt from the answers, for each priority: the cores are shared, other front ends send
work to the same devices, and batches of other graphs run between. As TCP does for its timeout, a
mean and a mean deviation are kept, and a request must be in time by a margin of deviations: it is
admitted only if it will very probably be answered in time, and the devices compute nothing in vain.
"""

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple

from gradcam_server.errors import DeadlineError, QueueFullError

_MIN_RETRY_AFTER_S = 0.2
# Over how many answers the slowness is averaged.
_RECENT_ANSWERS = 16
# Before the first answers slowness is 1, and uncertain by so much.
_FIRST_DEVIATION = 0.2
# A request is in time if it would be with a slowness of so many deviations above the mean, in this
# part of the time until its deadline: rendering and sending come after.
_MARGIN_DEVIATIONS = 3.0
_TIME_TO_COMPUTE = 0.9
# All images that wait meet a stall, which is one event: a greater slowness is not learnt.
_MAX_SLOWNESS = 32.0
# A shorter time consists of decoding and messages, too, so it is only an upper bound.
_MIN_EXACT_S = 0.05


class Work(NamedTuple):
    """The work of an image.

    Attributes:
        priority: 1 goes first.
        caller: The caller, who shares the devices with the others of this priority.
        image_s: Seconds of the devices that it takes in a batch of the best size.
        alone_s: Seconds that it takes alone on an idle device.
    """

    priority: int
    caller: str
    image_s: float
    alone_s: float


@dataclass(slots=True)
class _Slowness:
    """The times of answers over their work."""

    mean: float = 1.0
    deviation: float = _FIRST_DEVIATION

    @property
    def cautious(self) -> float:
        """The slowness that is hardly ever exceeded."""
        return self.mean + _MARGIN_DEVIATIONS * self.deviation

    def learn(self, ratio: float) -> None:
        """Averages."""
        difference = ratio - self.mean
        self.deviation += (abs(difference) - self.deviation) / _RECENT_ANSWERS
        self.mean += difference / _RECENT_ANSWERS


class _Holding:
    """Counts an image in its block, and learns from the time that the block takes."""

    def __init__(self, backlog: "Backlog", work: Work, learn: bool) -> None:
        self._backlog, self._work, self._learn = backlog, work, learn

    def __enter__(self) -> None:
        backlog, work = self._backlog, self._work
        self._of_work_s = backlog._ahead_s(work) + work.alone_s
        self._started = backlog._clock()
        backlog._add(work, 1)

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        backlog, work = self._backlog, self._work
        backlog._add(work, -1)
        if self._learn and self._of_work_s:
            seconds, is_answered = backlog._clock() - self._started, error is None
            backlog._learn(work.priority, self._of_work_s, seconds, is_answered)


class Backlog:
    """The images that are admitted and not yet computed.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        # The images and their seconds, by priority and caller.
        self._held: dict[int, dict[str, tuple[int, float]]] = {}
        self._slowness: dict[int, _Slowness] = {}

    def check(self, work: Work, deadline: float | None) -> None:
        """Refuses an image that cannot be answered before a time of the clock.

        Raises:
            DeadlineError: An idle server would be late, too.
            QueueFullError: There is too much work before it.
        """
        if deadline is None:
            return
        left_s = deadline - self._clock()
        if work.alone_s > left_s:
            raise DeadlineError(
                f"the deadline cannot be met: {max(left_s, 0) * 1e3:.0f} ms are left, and an "
                f"image takes {work.alone_s * 1e3:.0f} ms"
            )
        ahead_s = self._ahead_s(work)
        slowness = self._slowness_of(work.priority).cautious
        expected_s = (ahead_s + work.alone_s) * slowness / _TIME_TO_COMPUTE
        if ahead_s and expected_s > left_s:
            raise QueueFullError(
                f"the answer may take {expected_s * 1e3:.0f} ms, and the deadline is in "
                f"{left_s * 1e3:.0f} ms; try again later",
                max(expected_s - left_s, _MIN_RETRY_AFTER_S),
            )

    def holding(self, work: Work, *, learn: bool = True) -> "_Holding":
        """Counts an image until its output has come, or until it is given up.

        Args:
            work: Its work.
            learn: Learn from the time that it takes; not if it may wait until a graph is compiled.
        """
        return _Holding(self, work, learn)

    def _learn(self, priority: int, of_work_s: float, seconds: float, is_answered: bool) -> None:
        slowness = self._slowness_of(priority)
        ratio = min(seconds / of_work_s, _MAX_SLOWNESS)
        is_lower_bound, is_upper_bound = not is_answered, is_answered and of_work_s < _MIN_EXACT_S
        if (is_lower_bound and ratio < slowness.mean) or (is_upper_bound and ratio > slowness.mean):
            return
        slowness.learn(ratio)

    def _slowness_of(self, priority: int) -> _Slowness:
        slowness = self._slowness.get(priority)
        if slowness is None:
            slowness = self._slowness[priority] = _Slowness()
        return slowness

    def _ahead_s(self, work: Work) -> float:
        urgent_s = sum(
            seconds
            for priority, callers in self._held.items()
            if priority < work.priority
            for _, seconds in callers.values()
        )
        equals = self._held.get(work.priority, {})
        _, own_s = equals.get(work.caller, (0, 0.0))
        share_s = own_s + work.image_s
        others_s = sum(
            min(seconds, share_s)
            for caller, (_, seconds) in equals.items()
            if caller != work.caller
        )
        return urgent_s + own_s + others_s

    def _add(self, work: Work, count: int) -> None:
        callers = self._held.setdefault(work.priority, {})
        held, seconds = callers.get(work.caller, (0, 0.0))
        if held + count:
            callers[work.caller] = held + count, seconds + count * work.image_s
            return
        del callers[work.caller]
        if not callers:
            del self._held[work.priority]
