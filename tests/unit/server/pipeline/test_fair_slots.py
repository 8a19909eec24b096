"""Slots that callers share, with simulated work and time."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence

import pytest

from gradcam_server.pipeline.fair_slots import MAX_SHORT_S, FairSlots

LONG_S = 1.0


class Simulation:
    """Work of simulated callers: it holds a slot for simulated seconds.

    Attributes:
        order: Whose work has begun, in that order.
        used_s: Seconds that each caller's work has used.
    """

    def __init__(self, count: int, short_count: int = 0) -> None:
        self.now = 0.0
        self.slots = FairSlots(count, short_count, clock=lambda: self.now)
        self.order: list[str] = []
        self.used_s: defaultdict[str, float] = defaultdict(float)
        self._ends: list[tuple[float, int, asyncio.Future[None]]] = []
        self._tasks: list[asyncio.Task[None]] = []

    def ask(self, caller: str, seconds: float, times: int = 1, **options: float) -> None:
        for _ in range(times):
            work = self._work(caller, seconds, options)
            self._tasks.append(asyncio.create_task(work))

    async def _work(self, caller: str, seconds: float, options: dict[str, float]) -> None:
        expected_s = options.get("expected_s", seconds)
        held = await self.slots.take(caller, int(options.get("priority", 1)), expected_s)
        self.order.append(caller)
        end: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ends.append((self.now + seconds, len(self.order), end))
        try:
            await end
        finally:
            self.used_s[caller] += seconds
            held.release(seconds)

    async def run_until(self, time: float = float("inf")) -> None:
        """Lets time pass until nothing is in work, or a time has come."""
        await self.settle()
        while self._ends and min(self._ends)[0] <= time:
            earliest = min(self._ends)
            self._ends.remove(earliest)
            self.now = earliest[0]
            earliest[2].set_result(None)
            await self.settle()

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.mark.parametrize("threads", [1, 2, 4])
async def test_one_waits_for_one_piece_of_work_for_each_slot(threads: int) -> None:
    """Beside a caller with 1000 waiting, another caller's work is the next that begins."""
    simulation = Simulation(threads)
    simulation.ask("many", LONG_S, 1000)
    await simulation.settle()
    simulation.ask("one", LONG_S)
    await simulation.run_until(LONG_S)
    assert simulation.order.index("one") == threads
    await simulation.close()


@pytest.mark.parametrize("floods", [["a"], ["a", "b"], ["a", "b", "c", "d"]])
async def test_the_share_does_not_depend_on_how_much_is_asked(floods: Sequence[str]) -> None:
    """A caller that has two requests at a time gets as much as those that have hundreds."""
    simulation = Simulation(2)
    for flood in floods:
        simulation.ask(flood, LONG_S, 300)
    for second in range(100):
        simulation.ask("modest", LONG_S, 2)
        await simulation.run_until(second)
    fair = sum(simulation.used_s.values()) / (len(floods) + 1)
    assert simulation.used_s["modest"] >= 0.9 * fair
    await simulation.close()


@pytest.mark.parametrize("expected_s", [None, 0.2])
async def test_large_and_small_images_get_equal_seconds(expected_s: float | None) -> None:
    """Shares are of seconds used, whatever was expected: ten small ones for each large one."""
    simulation = Simulation(1)
    options = {} if expected_s is None else {"expected_s": expected_s}
    simulation.ask("large", 2.0, 100, **options)
    simulation.ask("small", 0.2, 1000, **options)
    await simulation.run_until(100)
    assert simulation.used_s["large"] == pytest.approx(simulation.used_s["small"], abs=4)
    await simulation.close()


async def test_long_work_leaves_a_slot_for_short_work() -> None:
    """However many callers flood with large images, a small image begins at once."""
    simulation = Simulation(2, short_count=1)
    for number in range(8):
        simulation.ask(f"flood {number}", LONG_S, 50)
    await simulation.settle()
    simulation.ask("small", MAX_SHORT_S)
    await simulation.settle()
    assert simulation.order[-1] == "small"
    assert simulation.now == 0
    await simulation.close()


async def test_work_that_is_longer_than_it_looks_loses_the_slot_for_short_work() -> None:
    """A caller whose small files take seconds delays its neighbours once, not again and again."""
    simulation = Simulation(1, short_count=1)
    simulation.ask("flood", LONG_S, 50)
    simulation.ask("liar", 4.0, 50, expected_s=MAX_SHORT_S)
    await simulation.run_until(4.0)
    begun = len(simulation.order)
    for _ in range(20):
        simulation.ask("small", MAX_SHORT_S)
        await simulation.settle()
        assert simulation.order[-1] == "small"
        await simulation.run_until(simulation.now + MAX_SHORT_S)
        simulation.ask("liar", 4.0, expected_s=MAX_SHORT_S)
    assert simulation.order[begun:].count("liar") <= 1
    await simulation.close()


async def test_priority_goes_before_shares() -> None:
    """Shares are among equals: a caller that has used much goes first if its work is urgent."""
    simulation = Simulation(1)
    simulation.ask("online", LONG_S, 5)
    simulation.ask("offline", LONG_S, 5, priority=9)
    await simulation.run_until()
    assert simulation.order == ["online"] * 5 + ["offline"] * 5


@pytest.mark.parametrize("release_first", [True, False])
async def test_a_slot_that_is_handed_to_cancelled_work_goes_on(release_first: bool) -> None:
    """Cancelled and released in the same turn of the loop, in any order, no slot is lost."""
    slots = FairSlots(1)
    held = await slots.take("first")
    waiting = [asyncio.create_task(slots.take(caller)) for caller in ("a", "b", "c")]
    await asyncio.sleep(0)
    if release_first:
        held.release(1.0)
    waiting[0].cancel()
    if not release_first:
        held.release(1.0)
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    (await asyncio.wait_for(waiting[1], 5)).release(0.1)
    (await asyncio.wait_for(waiting[2], 5)).release(0.1)
    (await asyncio.wait_for(slots.take("last"), 5)).release(0.1)
    assert slots.is_idle


async def test_a_thousand_cancelled_waits_leave_nothing() -> None:
    """Work that is cancelled before its slot is free is skipped; its caller has used nothing."""
    slots = FairSlots(1)
    held = await slots.take("first")
    waiting = [asyncio.create_task(slots.take("gone")) for _ in range(1000)]
    last = asyncio.create_task(slots.take("last"))
    await asyncio.sleep(0)
    for one in waiting:
        one.cancel()
    held.release(1.0)  # before the cancelled tasks run
    (await asyncio.wait_for(last, 5)).release(0.1)
    await asyncio.gather(*waiting, return_exceptions=True)
    assert slots.is_idle
