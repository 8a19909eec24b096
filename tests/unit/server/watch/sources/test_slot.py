"""The slot between a reading thread and the event loop."""

import asyncio
import threading

import numpy as np
import pytest

from gradcam_server.watch.frames import Frame
from gradcam_server.watch.sources.slot import FrameSlot


def _frame(number: int, is_live: bool = True) -> Frame:
    return Frame("s", number, 0.0, 0.0, np.zeros((1, 1, 3), np.uint8), is_live)


async def _taken(slot: FrameSlot) -> int:
    frame = await asyncio.wait_for(slot.take(), 5)
    assert frame is not None
    return frame.number


async def test_live_slot_keeps_the_newest() -> None:
    """An untaken frame of a live source is replaced, counted and reported."""
    shed: list[Frame] = []
    slot = FrameSlot(is_live=True, on_shed=shed.append)
    for number in range(3):
        assert slot.put(_frame(number))
    assert await _taken(slot) == 2
    assert slot.shed == 2
    assert [frame.number for frame in shed] == [0, 1]


async def test_slot_of_a_file_waits() -> None:
    """Each frame of a file is taken once and in order, however slow the taker is."""
    slot = FrameSlot(is_live=False)

    def read() -> None:
        for number in range(20):
            assert slot.put(_frame(number, is_live=False))
        slot.end()

    thread = threading.Thread(target=read)
    thread.start()
    taken = []
    while (frame := await asyncio.wait_for(slot.take(), 5)) is not None:
        taken.append(frame.number)
        await asyncio.sleep(0.001)
    thread.join()
    assert taken == list(range(20))
    assert slot.shed == 0


async def test_take_waits_for_a_frame_from_a_thread() -> None:
    """A waiting task is woken by a frame; two tasks get two frames."""
    slot = FrameSlot(is_live=True)
    tasks = [asyncio.create_task(_taken(slot)) for _ in range(2)]
    await asyncio.sleep(0)
    for number in range(2):
        await asyncio.to_thread(slot.put, _frame(number))
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    assert {await task for task in tasks} == {0, 1}


async def test_cancelled_take_loses_nothing() -> None:
    """A frame that comes after a take was cancelled is there for the next."""
    slot = FrameSlot(is_live=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(slot.take(), 0.01)
    slot.put(_frame(7, is_live=False))
    assert await _taken(slot) == 7


async def test_last_frame_is_taken_before_the_end() -> None:
    """end() does not drop the frame that is there; take() returns None for ever after it."""
    slot = FrameSlot(is_live=True)
    slot.put(_frame(1))
    slot.end()
    assert await _taken(slot) == 1
    assert await slot.take() is None
    assert await slot.take() is None


async def test_close_frees_both_sides() -> None:
    """A reader that waits to put and a task that waits to take both end."""
    slot = FrameSlot(is_live=False)
    waiting = asyncio.create_task(slot.take())
    await asyncio.sleep(0)
    slot.close()
    assert await asyncio.wait_for(waiting, 5) is None

    full = FrameSlot(is_live=False)
    full.put(_frame(0, is_live=False))
    put = asyncio.create_task(asyncio.to_thread(full.put, _frame(1, is_live=False)))
    await asyncio.sleep(0.02)
    full.close()
    assert await asyncio.wait_for(put, 5) is False
    assert not full.put(_frame(2, is_live=False))


def test_put_after_the_loop_has_ended() -> None:
    """A reader that is still alive when the event loop is closed is not broken by it."""
    slot = FrameSlot(is_live=True)

    async def wait_in_vain() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slot.take(), 0.01)

    asyncio.run(wait_in_vain())
    assert slot.put(_frame(0))
