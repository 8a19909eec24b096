"""Rates and numbers at once, in injected time."""

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
    """Exactly so many requests pass at once, at least one."""
    rate = Rate(per_s, Clock())
    assert [rate.take() == 0 for _ in range(10)].count(True) == burst


def test_the_wait_that_is_told_is_enough_and_not_too_long() -> None:
    """A request is refused a moment before its time, and passes when it comes."""
    clock = Clock()
    rate = Rate(0.5, clock)
    assert rate.take() == 0
    assert rate.take() == pytest.approx(2)
    clock.now += 1.999
    assert rate.take() == pytest.approx(0.001)
    clock.now += 0.002
    assert rate.take() == 0


def test_the_long_run_keeps_the_rate() -> None:
    """Asking more often gives no more: 100 s of 3 per second are 300, and the burst."""
    clock, passed = Clock(), 0
    rate = Rate(3, clock)
    for _ in range(10_000):
        passed += rate.take() == 0
        clock.now += 0.01
    assert 300 <= passed <= 303


def test_idle_time_is_not_saved_up() -> None:
    """After an hour of silence the burst is still one second's."""
    clock = Clock()
    rate = Rate(2, clock)
    clock.now += 3600
    assert [rate.take() == 0 for _ in range(10)].count(True) == 2


def test_reservations_queue_up() -> None:
    """Each waits one interval longer than the one before."""
    rate = Rate(2, Clock())
    assert [rate.reserve() for _ in range(5)] == pytest.approx([0, 0, 0.5, 1, 1.5])


def test_more_than_a_burst_is_owed() -> None:
    """It needs a full bucket, and what follows waits until it is paid off."""
    clock = Clock()
    rate = Rate(2, clock)
    assert rate.take() == 0
    assert rate.take(6) == pytest.approx(0.5)
    clock.now += 0.5
    assert rate.take(6) == 0
    assert rate.take() == pytest.approx(2.5)
    assert rate.reserve(2) == pytest.approx(3)


def test_places_are_counted() -> None:
    """No more than there are; one given back can be taken again."""
    places = Slots(2)
    assert [places.take() for _ in range(3)] == [True, True, False]
    places.release()
    assert [places.take() for _ in range(2)] == [True, False]
    assert all(Slots(None).take() for _ in range(1000))


async def test_places_are_waited_for_in_order() -> None:
    """First come, first served; one who gives up is passed over and keeps no place."""
    places, order = Slots(1), []

    async def wait(name: str) -> None:
        await places.wait()
        order.append(name)

    assert places.take()
    tasks = [asyncio.create_task(wait(name)) for name in "abc"]
    await asyncio.sleep(0)
    tasks[1].cancel()
    await asyncio.sleep(0)
    for _ in range(2):
        places.release()
        await asyncio.sleep(0.01)
    assert order == ["a", "c"]
    places.release()
    assert places.taken == 0


async def test_a_place_given_to_one_who_is_cancelled_is_not_lost() -> None:
    """Cancelled between being given the place and waking up."""
    places = Slots(1)
    assert places.take()
    waiting = asyncio.create_task(places.wait())
    await asyncio.sleep(0)
    places.release()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert places.taken == 0


async def test_a_raised_limit_lets_waiting_ones_in() -> None:
    """The new token file counts for those who wait already."""
    places = Slots(1)
    assert places.take()
    waiting = asyncio.create_task(places.wait())
    await asyncio.sleep(0)
    places.limit = 2
    places.hand_out()
    await asyncio.wait_for(waiting, 5)
    assert places.taken == 2


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
    """In any order: who gives up is cancelled, the others get their places, none is lost."""
    places = Slots(1)
    assert places.take()
    tasks = [asyncio.create_task(places.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    released = 0
    for step in steps:
        match step:
            case "cancel":
                tasks[gone].cancel()
            case "release":
                places.release()
                released = 1
            case "raise":
                places.limit = 2
                places.hand_out()
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
        assert held, "a place was lost"
        places.release()
        held -= 1
    # One that was awake already had its place, and kept it.
    is_late = gone == 0 and steps == ("release", "turn", "cancel")
    assert [task.cancelled() for task in tasks] == [
        task is tasks[gone] and not is_late for task in tasks
    ]
    assert places.taken == 0
