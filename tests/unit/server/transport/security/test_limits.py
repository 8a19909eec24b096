"""Limits on a rate and on concurrency, with an injected clock."""

import asyncio

import pytest

from gradcam_server.transport.security.limits import Rate, Slots


class Clock:
    """Time that stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("per_s", "burst"), [(5.0, 5), (2.5, 2), (0.25, 1)])
def test_a_burst_is_one_second_of_the_rate(per_s: float, burst: int) -> None:
    """The requests of one second pass at once, and one at least."""
    rate = Rate(per_s, Clock())
    assert [rate.take() == 0 for _ in range(10)].count(True) == burst


def test_the_wait_that_is_told_is_enough_and_not_too_long() -> None:
    """A request is refused just before the returned time, and passes at that time."""
    clock = Clock()
    rate = Rate(0.5, clock)
    assert rate.take() == 0
    assert rate.take() == pytest.approx(2)
    clock.now += 1.999
    assert rate.take() == pytest.approx(0.001)
    clock.now += 0.002
    assert rate.take() == 0


def test_the_long_run_keeps_the_rate() -> None:
    """More attempts give no more: 100 s at 3 per second allow 300 requests, and the burst."""
    clock, passed = Clock(), 0
    rate = Rate(3, clock)
    for _ in range(10_000):
        passed += rate.take() == 0
        clock.now += 0.01
    assert 300 <= passed <= 303


def test_idle_time_is_not_saved_up() -> None:
    """After an hour without requests the burst is still that of one second."""
    clock = Clock()
    rate = Rate(2, clock)
    clock.now += 3600
    assert [rate.take() == 0 for _ in range(10)].count(True) == 2


def test_reservations_queue_up() -> None:
    """Each reservation waits an interval longer than the previous reservation."""
    rate = Rate(2, Clock())
    assert [rate.reserve() for _ in range(5)] == pytest.approx([0, 0, 0.5, 1, 1.5])


def test_more_than_a_burst_is_owed() -> None:
    """It needs a full bucket, and later requests wait until the level is positive."""
    clock = Clock()
    rate = Rate(2, clock)
    assert rate.take() == 0
    assert rate.take(6) == pytest.approx(0.5)
    clock.now += 0.5
    assert rate.take(6) == 0
    assert rate.take() == pytest.approx(2.5)
    assert rate.reserve(2) == pytest.approx(3)


def test_slots_are_counted() -> None:
    """No more slots are taken than there are; a released slot can be taken again."""
    slots = Slots(2)
    assert [slots.take() for _ in range(3)] == [True, True, False]
    slots.release()
    assert [slots.take() for _ in range(2)] == [True, False]
    assert all(Slots(None).take() for _ in range(1000))


async def test_slots_are_waited_for_in_order() -> None:
    """First come, first served; a cancelled waiter gets no slot."""
    slots, order = Slots(1), []

    async def wait(name: str) -> None:
        await slots.wait()
        order.append(name)

    assert slots.take()
    tasks = [asyncio.create_task(wait(name)) for name in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    for _ in range(2):
        slots.release()
        await asyncio.sleep(0.01)
    assert order == ["a", "c"]
    slots.release()
    assert slots.taken == 0


async def test_a_slot_given_to_a_cancelled_waiter_is_not_lost() -> None:
    """The waiter is cancelled after it gets the slot and before it runs."""
    slots = Slots(1)
    assert slots.take()
    waiting = asyncio.create_task(slots.wait())
    await asyncio.sleep(0)
    slots.release()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert slots.taken == 0


async def test_a_raised_limit_lets_waiting_ones_in() -> None:
    """A raised limit applies to waiters at once."""
    slots = Slots(1)
    assert slots.take()
    waiting = asyncio.create_task(slots.wait())
    await asyncio.sleep(0)
    slots.limit = 2
    slots.hand_out()
    await asyncio.wait_for(waiting, 5)
    assert slots.taken == 2


@pytest.mark.parametrize(
    "steps",
    [
        ("cancel", "release"),
        ("release", "cancel"),
        ("cancel", "turn", "release"),
        ("release", "turn", "cancel"),
        ("cancel", "raise"),
        ("raise", "cancel"),
        ("cancel", "raise", "release"),
        ("release", "raise", "cancel"),
    ],
    ids=", ".join,
)
@pytest.mark.parametrize("gone", [0, 1, 2])
async def test_giving_up_and_a_release_in_one_moment_are_no_fault(
    steps: tuple[str, ...], gone: int
) -> None:
    """In any order: the cancelled waiter gets nothing, the others get slots, none is lost."""
    slots = Slots(1)
    assert slots.take()
    tasks = [asyncio.create_task(slots.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    released = 0
    for step in steps:
        match step:
            case "cancel":
                tasks[gone].cancel()
            case "release":
                slots.release()
                released = 1
            case "raise":
                slots.limit = 2
                slots.hand_out()
            case "turn":
                await asyncio.sleep(0)
    held, waiting = 1 - released, list(tasks)
    while waiting or held:
        await asyncio.sleep(0.001)
        for task in [one for one in waiting if one.done()]:
            waiting.remove(task)
            if not task.cancelled():
                task.result()
                held += 1
        assert held, "a slot was lost"
        slots.release()
        held -= 1
    # One that was awake already had its slot, and kept it.
    is_late = gone == 0 and steps == ("release", "turn", "cancel")
    assert [task.cancelled() for task in tasks] == [
        task is tasks[gone] and not is_late for task in tasks
    ]
    assert slots.taken == 0
