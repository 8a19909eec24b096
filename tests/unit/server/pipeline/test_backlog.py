"""Refusing requests that would be answered too late, on a simulated clock and device."""

import heapq
import itertools
import random
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import pytest

from gradcam_server.domain.batch_sizes import plan_batch
from gradcam_server.errors import DeadlineError, QueueFullError
from gradcam_server.pipeline.backlog import Backlog, Work

# Seconds of a batch by its size: a CPU, where batches save nothing or a little, and a GPU.
SLOW_CPU = {1: 0.020, 8: 0.160}
CPU = {1: 0.008, 4: 0.026, 8: 0.048}
GPU = {1: 0.004, 8: 0.006, 32: 0.024}
DEADLINE_S, ANSWERS = 0.5, 1500


@dataclass
class Overload:
    """An open loop of one caller before a device that takes batches in order of arrival.

    Attributes:
        cost_s: Seconds of a batch by its size, as they were measured while warming up.
        factor: The real seconds over those.
        overhead_s: Seconds that an answer takes beside the device.
        refuses: Whether the backlog is asked.
    """

    cost_s: Mapping[int, float]
    factor: float = 1.0
    overhead_s: float = 0.0
    refuses: bool = True
    now: float = 0.0
    in_time: int = 0
    late: int = 0
    refused: int = 0
    waiting: deque[tuple[float, AbstractContextManager[None]]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.backlog = Backlog(lambda: self.now)
        image_s = min(seconds / size for size, seconds in self.cost_s.items())
        self.capacity = 1 / image_s / self.factor
        self.seconds = ANSWERS / self.capacity
        self.work = Work(1, "", image_s, min(self.cost_s.values()))

    def run(self, load: float) -> float:
        """Returns the answers in time, over those that the device could give."""
        chance, rate, order = random.Random(0), load * self.capacity, itertools.count()
        events: list[tuple[float, int, object]] = []
        heapq.heappush(events, (chance.expovariate(rate), next(order), None))
        is_busy = False
        while events:
            self.now, _, batch = heapq.heappop(events)
            if isinstance(batch, list):
                is_busy = False
                for deadline, holding in batch:
                    holding.__exit__(None, None, None)
                    if self.now + self.overhead_s <= deadline:
                        self.in_time += 1
                    else:
                        self.late += 1
            else:
                self.arrive()
                if self.now < self.seconds:
                    due = self.now + chance.expovariate(rate)
                    heapq.heappush(events, (due, next(order), None))
            self.drop()
            if self.waiting and not is_busy:
                take, size = plan_batch(len(self.waiting), self.cost_s)
                is_busy = True
                end = self.now + self.cost_s[size] * self.factor
                batch = [self.waiting.popleft() for _ in range(take)]
                heapq.heappush(events, (end, next(order), batch))
        return self.in_time / ANSWERS

    def arrive(self) -> None:
        deadline = self.now + DEADLINE_S
        try:
            if self.refuses:
                self.backlog.check(self.work, deadline)
        except QueueFullError:
            self.refused += 1
            return
        holding = self.backlog.holding(self.work)
        holding.__enter__()
        self.waiting.append((deadline, holding))

    def drop(self) -> None:
        """Drops what has expired, as the scheduler does."""
        while self.waiting and self.now + self.work.alone_s > self.waiting[0][0]:
            _, holding = self.waiting.popleft()
            holding.__exit__(TimeoutError, TimeoutError(), None)
            self.late += 1


@pytest.mark.parametrize("load", [1.0, 1.5, 3.0])
@pytest.mark.parametrize("factor", [0.7, 1.0, 2.5])
@pytest.mark.parametrize("cost_s", [SLOW_CPU, CPU, GPU], ids=["slow CPU", "CPU", "GPU"])
def test_under_overload_the_device_works_for_answers_in_time(
    cost_s: Mapping[int, float], factor: float, load: float
) -> None:
    """Goodput stays near the device's rate, also if its real times are not the measured ones."""
    overload = Overload(cost_s, factor, overhead_s=0.01)
    assert overload.run(load) > 0.9 * min(load, 1.0)
    # The rest is refused on arrival: hardly any call ends at its deadline.
    assert overload.late < 0.01 * overload.in_time


@pytest.mark.parametrize("cost_s", [SLOW_CPU, CPU, GPU], ids=["slow CPU", "CPU", "GPU"])
def test_without_the_backlog_the_device_works_in_vain(cost_s: Mapping[int, float]) -> None:
    """The simulation shows the collapse that the backlog prevents."""
    overload = Overload(cost_s, 2.5, overhead_s=0.01, refuses=False)
    assert overload.run(1.5) < 0.6
    assert overload.late > overload.in_time


@pytest.mark.parametrize("cost_s", [SLOW_CPU, CPU, GPU], ids=["slow CPU", "CPU", "GPU"])
def test_a_server_that_keeps_up_refuses_nothing(cost_s: Mapping[int, float]) -> None:
    """At a load of 0.7 every call is admitted, though its time is not only the device's."""
    overload = Overload(cost_s, overhead_s=0.01)
    overload.run(0.7)
    assert overload.refused == 0


def test_a_burst_that_fits_is_admitted() -> None:
    """On a device whose batches pay, the time of one image says little about that of many."""
    overload = Overload(GPU)
    overload.run(0.2)  # one by one
    for _ in range(200):
        overload.arrive()
    assert len(overload.waiting) == 200


class Clock:
    """Stands still unless it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def work(caller: str = "", priority: int = 1) -> Work:
    return Work(priority, caller, image_s=0.01, alone_s=0.01)


def is_admitted(backlog: Backlog, of: Work, seconds: float = DEADLINE_S) -> bool:
    try:
        backlog.check(of, seconds)
    except QueueFullError:
        return False
    return True


def hold(stack: ExitStack, backlog: Backlog, of: Work, count: int) -> None:
    for _ in range(count):
        stack.enter_context(backlog.holding(of))


def test_a_refusal_says_whether_load_or_the_deadline_is_the_reason() -> None:
    """Load: try again when it has gone. A deadline that an idle server misses: a longer one."""
    backlog = Backlog(Clock())
    with pytest.raises(DeadlineError, match="5 ms are left, and an image takes 10 ms"):
        backlog.check(work(), 0.005)
    with pytest.raises(DeadlineError, match="0 ms are left"):
        backlog.check(work(), -1.0)
    with ExitStack() as stack:
        hold(stack, backlog, work(), 100)
        with pytest.raises(QueueFullError, match="the deadline is in 500 ms") as caught:
            backlog.check(work(), DEADLINE_S)
        assert 0.5 <= caught.value.retry_after_s <= 2.0
        with pytest.raises(DeadlineError):
            backlog.check(work(), 0.005)
        backlog.check(work(), None)
    backlog.check(work(), DEADLINE_S)


def test_another_callers_backlog_counts_only_as_far_as_it_goes_before() -> None:
    """Callers have fair shares: a flood by one does not make the server refuse another."""
    backlog = Backlog(Clock())
    with ExitStack() as stack:
        hold(stack, backlog, work("flood"), 200)
        assert not is_admitted(backlog, work("flood"))
        assert is_admitted(backlog, work("one"))
        hold(stack, backlog, work("one"), 10)
        assert is_admitted(backlog, work("one"))
        hold(stack, backlog, work("one"), 30)
        assert not is_admitted(backlog, work("one"))


def test_less_urgent_work_does_not_count() -> None:
    """An offline job fills its own queue; its images wait for all that is more urgent."""
    backlog = Backlog(Clock())
    with ExitStack() as stack:
        hold(stack, backlog, work("job", 9), 200)
        assert is_admitted(backlog, work("one"))
        assert not is_admitted(backlog, work("job", 9))
    backlog = Backlog(Clock())
    with ExitStack() as stack:
        hold(stack, backlog, work("one"), 200)
        assert not is_admitted(backlog, work("job", 9))


@pytest.mark.parametrize("stall_s", [1.0, 30.0, 1000.0])
def test_a_stall_is_forgotten(stall_s: float) -> None:
    """After a stall the first image is admitted, and soon as many as before."""
    clock = Clock()
    backlog = Backlog(clock)
    stalled = [entered(backlog) for _ in range(30)]
    clock.now = stall_s
    for holding in stalled:
        holding.__exit__(TimeoutError, TimeoutError(), None)
    admitted = 0
    for _ in range(80):  # bursts of up to 20 images, which end one after the other
        burst: list[AbstractContextManager[None]] = []
        deadline = clock.now + DEADLINE_S
        while len(burst) < 20 and is_admitted(backlog, work(), deadline):
            burst.append(entered(backlog))
        for holding in burst:
            clock.now += 0.01
            holding.__exit__(None, None, None)
        admitted = len(burst)
        assert admitted
    assert admitted == 20


@pytest.mark.parametrize("alone_s", [0.05, 0.4])
def test_time_beside_the_device_does_not_count_as_waiting(alone_s: float) -> None:
    """Large images decode for long, one after the other: that says nothing about a queue."""
    clock = Clock()
    backlog = Backlog(clock)
    for _ in range(100):
        holding = entered(backlog)
        clock.now += alone_s
        holding.__exit__(None, None, None)
    with ExitStack() as stack:
        hold(stack, backlog, work(), 25)
        assert is_admitted(backlog, work(), clock.now + DEADLINE_S)


@pytest.mark.parametrize("count", [10, 25])
def test_images_that_expire_count(count: int) -> None:
    """If the device is so slow that none is answered, fewer are admitted all the same."""
    clock = Clock()
    backlog = Backlog(clock)
    for _ in range(10):
        waiting = [entered(backlog) for _ in range(count)]
        clock.now += DEADLINE_S
        for holding in waiting:
            holding.__exit__(TimeoutError, TimeoutError(), None)
    with ExitStack() as stack:
        hold(stack, backlog, work(), count)
        assert not is_admitted(backlog, work(), clock.now + DEADLINE_S)


def test_cancelled_images_do_not_make_the_device_look_quick() -> None:
    """Clients that leave at once end their images before the device does."""
    backlog = Backlog(Clock())
    for _ in range(20):
        waiting = [entered(backlog) for _ in range(20)]
        for holding in waiting:
            holding.__exit__(TimeoutError, TimeoutError(), None)
    with ExitStack() as stack:
        hold(stack, backlog, work(), 50)
        assert not is_admitted(backlog, work())


def entered(backlog: Backlog) -> AbstractContextManager[None]:
    holding = backlog.holding(work())
    holding.__enter__()
    return holding


def test_unknown_costs_refuse_nothing() -> None:
    """A model that was not timed is admitted as long as there are slots."""
    backlog = Backlog(Clock())
    untimed = Work(1, "", 0.0, 0.0)
    with ExitStack() as stack:
        hold(stack, backlog, untimed, 1000)
        assert is_admitted(backlog, untimed)
