"""Places in the queue."""

import asyncio

import pytest

from gradcam_server.errors import QueueFullError
from gradcam_server.pipeline.admission import Admission


async def test_exactly_the_surplus_is_refused() -> None:
    """Of five requests for three places two are refused, with a hint when to come again."""
    queue, leave = Admission(3), asyncio.Event()

    async def stay() -> None:
        async with queue.admit():
            await leave.wait()

    tasks = [asyncio.create_task(stay()) for _ in range(5)]
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


async def test_waiting_for_a_place_is_possible() -> None:
    """A stream is slowed down, not refused; who gives up waiting takes no place along."""
    queue = Admission(1)
    order: list[int] = []

    async def patient(number: int) -> None:
        async with queue.admit(wait=True):
            await asyncio.sleep(0)
            order.append(number)

    async with queue.admit() as place:
        tasks = [asyncio.create_task(patient(number)) for number in range(4)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        place.give_back()
        place.give_back()  # once is enough, twice does no harm
        await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 2, 3]
    assert queue.length == 0


@pytest.mark.parametrize("steps", ["cancel, leave", "leave, cancel", "leave, turn, cancel"])
@pytest.mark.parametrize("gone", [0, 1, 2])
async def test_giving_up_as_a_place_comes_free_loses_no_place(steps: str, gone: int) -> None:
    """In any order: the others get the place, and it is free in the end."""
    queue, came = Admission(1), []

    async def visit(number: int) -> None:
        async with queue.admit(wait=True):
            came.append(number)
            await asyncio.sleep(0.001)

    async with queue.admit() as place:
        tasks = [asyncio.create_task(visit(number)) for number in range(3)]
        await asyncio.sleep(0)
        for step in steps.split(", "):
            match step:
                case "cancel":
                    tasks[gone].cancel()
                case "leave":
                    place.give_back()
                case "turn":
                    await asyncio.sleep(0)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    assert [number for number in range(3) if results[number] is None] == [
        number for number in range(3) if number != gone
    ]
    assert set(came) >= {0, 1, 2} - {gone}
    assert queue.length == 0
    async with queue.admit():
        pass
