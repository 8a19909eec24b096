"""Threads that decode and render."""

import asyncio
import gc
import threading

import pytest

from gradcam_server.workers import Workers


async def test_the_most_urgent_work_goes_first() -> None:
    """While the threads are busy, work waits in the order of its priority."""
    workers, gate = Workers(1), threading.Event()
    order: list[str] = []
    busy = asyncio.create_task(workers.timed(1, gate.wait, 10))
    await asyncio.sleep(0)
    tasks = [
        asyncio.create_task(workers.timed(priority, order.append, name))
        for priority, name in ((9, "offline"), (1, "first"), (1, "second"), (5, "cancelled"))
    ]
    await asyncio.sleep(0.01)
    tasks[3].cancel()
    gate.set()
    await asyncio.gather(busy, *tasks, return_exceptions=True)
    await workers.close()
    assert order == ["first", "second", "offline"]


async def test_a_failure_that_nobody_waits_for_is_no_fault(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Work that fails after its caller has gone leaves nothing in the log."""
    workers, gate = Workers(1), threading.Event()

    def fail() -> None:
        gate.wait(10)
        raise ZeroDivisionError

    task = asyncio.create_task(workers.timed(1, fail))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gate.set()
    await workers.close()
    await asyncio.sleep(0.01)
    del task
    gc.collect()
    assert caplog.text == ""


async def test_a_failure_or_a_cancellation_leaves_no_thread_behind() -> None:
    """Errors arrive at the caller, and the threads go on to the next work."""
    workers, gate = Workers(2), threading.Event()
    with pytest.raises(ZeroDivisionError):
        await workers.timed(1, lambda: 1 / 0)
    cancelled = [asyncio.create_task(workers.timed(1, gate.wait, 10)) for _ in range(2)]
    await asyncio.sleep(0.01)
    for task in cancelled:
        task.cancel()
    later = asyncio.create_task(workers.timed(1, sum, (1, 2)))
    await asyncio.sleep(0.01)
    assert not later.done()  # the cancelled work still has the threads
    gate.set()
    result, microseconds = await later
    assert result == 3
    assert microseconds >= 0
    await workers.close()
