"""Slots of the queue."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from gradcam_server.errors import QueueFullError
from gradcam_server.pipeline.admission import Admission


async def test_exactly_the_surplus_is_refused() -> None:
    """Of five requests for three slots two are refused, with a time to retry after."""
    queue, leave = Admission(3), asyncio.Event()

    async def stay(caller: str) -> None:
        async with queue.admit(caller):
            await leave.wait()

    tasks = [asyncio.create_task(stay(str(number))) for number in range(5)]
    await asyncio.sleep(0.01)
    assert queue.length == 3
    for task in tasks[3:]:
        with pytest.raises(QueueFullError, match="all 3 places") as caught:
            task.result()
        assert caught.value.retry_after_s > 0
    leave.set()
    await asyncio.gather(*tasks[:3])
    assert queue.length == 0
    async with queue.admit():
        assert queue.length == 1


async def test_waiting_for_a_slot_is_possible() -> None:
    """A stream is slowed down, not refused; a cancelled wait takes no slot."""
    queue = Admission(1)
    order: list[int] = []

    async def patient(number: int) -> None:
        async with queue.admit(wait=True):
            await asyncio.sleep(0)
            order.append(number)

    async with queue.admit() as slot:
        tasks = [asyncio.create_task(patient(number)) for number in range(4)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        slot.release()
        slot.release()  # once is enough, twice does no harm
        await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]
    assert queue.length == 0


@pytest.mark.parametrize("steps", ["cancel, leave", "leave, cancel", "leave, yield, cancel"])
@pytest.mark.parametrize("gone", [0, 1, 2])
async def test_a_wait_cancelled_as_a_slot_comes_free_loses_no_slot(steps: str, gone: int) -> None:
    """In any order: the others get the slot, and it is free in the end."""
    queue, came = Admission(1), []

    async def visit(number: int) -> None:
        async with queue.admit(wait=True):
            came.append(number)
            await asyncio.sleep(0.001)

    async with queue.admit() as slot:
        tasks = [asyncio.create_task(visit(number)) for number in range(3)]
        await asyncio.sleep(0)
        for step in steps.split(", "):
            match step:
                case "cancel":
                    tasks[gone].cancel()
                case "leave":
                    slot.release()
                case "yield":
                    await asyncio.sleep(0)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert [number for number in range(3) if results[number] is None] == [
        number for number in range(3) if number != gone
    ]
    assert set(came) >= {0, 1, 2} - {gone}
    assert queue.length == 0
    async with queue.admit():
        pass


@pytest.mark.parametrize(
    ("callers", "shares"), [(1, [228]), (2, [121, 121]), (3, [82, 82, 82]), (40, [6] * 40)]
)
async def test_callers_share_the_queue_and_leave_a_slot_for_the_next(
    callers: int, shares: list[int]
) -> None:
    """One caller alone gets most of the queue, and a newcomer is admitted at once."""
    queue = Admission(256)
    async with AsyncExitStack() as stack:

        async def fill(caller: str) -> int:
            for held in range(257):
                try:
                    await stack.enter_async_context(queue.admit(caller))
                except QueueFullError:
                    return held
            return 257

        found = [await fill("0")]
        if callers > 1:  # who came first had more; as slots come free they go to the others
            await stack.aclose()
            held = dict.fromkeys(range(callers), 0)
            refused = set[int]()
            while len(refused) < callers:
                for caller in held:
                    try:
                        await stack.enter_async_context(queue.admit(str(caller)))
                    except QueueFullError:
                        refused.add(caller)
                    else:
                        held[caller] += 1
            found = list(held.values())
        assert found == pytest.approx(shares, abs=1)
        assert queue.length < 256
        with pytest.raises(QueueFullError, match=f"holds {found[0]} of the 256 places"):
            await stack.enter_async_context(queue.admit("0"))
        async with queue.admit("newcomer"):
            pass
    assert queue.length == 0


@pytest.mark.parametrize("slots", [1, 2, 3, 16])
@pytest.mark.parametrize("flooding", [1, 4])
async def test_a_newcomer_that_waits_is_next(slots: int, flooding: int) -> None:
    """Callers with many waiting requests get at most one slot each before it."""
    queue, came = Admission(slots), list[str]()
    leave = asyncio.Semaphore(0)

    async def visit(caller: str) -> None:
        async with queue.admit(caller, wait=True):
            came.append(caller)
            await leave.acquire()

    flood = [asyncio.create_task(visit(f"flood {n % flooding}")) for n in range(60)]
    await asyncio.sleep(0)
    before = len(came)
    assert 0 < before <= slots
    one = asyncio.create_task(visit("one"))
    await asyncio.sleep(0)
    for _ in range(flooding + 1):
        leave.release()
        await asyncio.sleep(0.001)
    assert "one" in came[before : before + flooding + 1]
    for _ in range(60):
        leave.release()
    await asyncio.gather(*flood, one)
    assert queue.length == 0


async def test_requests_of_one_caller_keep_their_order() -> None:
    """Also when a request comes just as a slot is free for it."""
    queue, came = Admission(2), list[int]()

    async def visit(number: int) -> None:
        async with queue.admit("a", wait=True):
            came.append(number)
            await asyncio.sleep(0.001)

    async with asyncio.TaskGroup() as group:
        for number in range(6):
            group.create_task(visit(number))
            await asyncio.sleep(0)
    assert came == list(range(6))
