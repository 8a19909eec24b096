"""Threads that decode and render."""

import asyncio
import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from gradcam_server.pipeline.fair_slots import MAX_SHORT_S
from gradcam_server.pipeline.workers import Workers

LONG_S = 10 * MAX_SHORT_S


def wait_for(gate: threading.Event) -> Callable[[], None]:
    def work() -> None:
        assert gate.wait(10)

    return work


async def test_the_most_urgent_work_goes_first() -> None:
    """While the threads are busy, work waits in the order of its priority."""
    workers, gate = Workers(1), threading.Event()
    order: list[str] = []
    busy = asyncio.create_task(workers.timed(wait_for(gate), expected_s=LONG_S))
    await asyncio.sleep(0)

    async def work(priority: int, name: str) -> None:
        await workers.timed(lambda: order.append(name), priority=priority, expected_s=LONG_S)

    tasks = [
        asyncio.create_task(work(priority, name))
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
    """Work that fails after its caller is gone leaves nothing in the log."""
    workers, gate = Workers(1), threading.Event()

    def fail() -> None:
        gate.wait(10)
        raise ZeroDivisionError

    task = asyncio.create_task(workers.timed(fail))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    gate.set()
    await workers.close()
    await asyncio.sleep(0.01)
    del task
    gc.collect()
    assert caplog.text == ""


async def test_a_failure_whose_caller_is_cancelled_just_then_is_no_garbage() -> None:
    """What the work holds is freed without a garbage collection."""
    workers, gate = Workers(1), threading.Event()
    held = np.zeros(1000)
    freed = weakref.ref(held)

    async def ask(image: NDArray[np.float64]) -> None:
        def fail() -> None:
            gate.wait(10)
            raise ZeroDivisionError(image.shape)

        await workers.timed(fail)

    gc.collect()
    gc.disable()
    try:
        task = asyncio.create_task(ask(held))
        del held
        await asyncio.sleep(0.01)
        gate.set()
        time.sleep(0.1)  # noqa: ASYNC251 - the failure waits for the loop
        asyncio.get_running_loop().call_soon(task.cancel)  # between the failure and its taking
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        del task
        await workers.close()
        await asyncio.sleep(0)
        assert freed() is None
    finally:
        gc.enable()


async def test_a_failure_or_a_cancellation_leaves_no_thread_behind() -> None:
    """Errors arrive at the caller, and the threads go on to the next work."""
    workers, gate = Workers(1), threading.Event()
    with pytest.raises(ZeroDivisionError):
        await workers.timed(lambda: 1 / 0)
    cancelled = [asyncio.create_task(workers.timed(wait_for(gate))) for _ in range(2)]
    await asyncio.sleep(0.01)
    for task in cancelled:
        task.cancel()
    later = asyncio.create_task(workers.timed(lambda: sum((1, 2))))
    await asyncio.sleep(0.01)
    assert not later.done()  # the cancelled work still has the threads
    gate.set()
    result, microseconds = await later
    assert result == 3
    assert microseconds >= 0
    await workers.close()


async def test_a_thread_counts_as_its_callers_until_the_work_has_ended() -> None:
    """Abandoned work counts against its caller: others go before its next request."""
    workers, gate = Workers(1), threading.Event()
    order: list[str] = []

    async def work(caller: str) -> None:
        await workers.timed(lambda: order.append(caller), caller=caller, expected_s=LONG_S)

    left = workers.timed(wait_for(gate), caller="impatient", expected_s=LONG_S)
    abandoned = asyncio.create_task(left)
    await asyncio.sleep(0.01)
    abandoned.cancel()
    tasks = [asyncio.create_task(work(caller)) for caller in ("impatient", "patient")]
    await asyncio.sleep(0.01)
    assert workers.thread_counts == {"busy": 0, "abandoned": 1}
    gate.set()
    await asyncio.gather(*tasks)
    assert order == ["patient", "impatient"]
    assert workers.thread_counts == {"busy": 0, "abandoned": 0}
    await workers.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is the process's")
async def test_long_work_runs_at_a_lower_priority_and_short_work_does_not() -> None:
    """Where cores are short, the event loop and small images go before large images."""
    workers = Workers(2)

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    own = niceness()
    long, _ = await workers.timed(niceness, expected_s=LONG_S)
    short, _ = await workers.timed(niceness)
    assert short == own == niceness()
    assert long > own or own > 14  # 19 is the most
    await workers.close()


@pytest.mark.parametrize("is_failing", [False, True])
async def test_cpu_seconds_count_and_not_those_of_waiting(is_failing: bool) -> None:
    """A caller that computed goes after a caller that only waited as long, even on failure."""
    workers, gate = Workers(1), threading.Event()
    order: list[str] = []

    def compute() -> None:
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass
        if is_failing:
            raise ZeroDivisionError

    async def work(caller: str, do: Callable[[], None]) -> None:
        await workers.timed(do, caller=caller, expected_s=LONG_S)

    first = [
        asyncio.create_task(work("computes", compute)),
        asyncio.create_task(work("sleeps", lambda: time.sleep(0.4))),
        asyncio.create_task(work("other", wait_for(gate))),
    ]
    await asyncio.sleep(0)
    later = [
        asyncio.create_task(work(caller, lambda caller=caller: order.append(caller)))  # type: ignore[misc]
        for caller in ("computes", "sleeps")
    ]
    await asyncio.wait(first[:2])
    gate.set()
    await asyncio.gather(*first, *later, return_exceptions=True)
    assert order == ["sleeps", "computes"]
    await workers.close()
