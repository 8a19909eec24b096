"""Threads that decode and render, shared among callers by the CPU seconds that they use."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import perf_counter, thread_time
from typing import Any, TypeAlias, TypeVar

import cv2

from gradcam_server.pipeline.fair_slots import MAX_SHORT_S, FairSlots

_T = TypeVar("_T")
_Outcome: TypeAlias = tuple[_T, int] | BaseException

# Added to the niceness of threads that do long work: event loops and engines go before them.
_NICENESS = 5


class Workers:
    """A pool of threads. Must be used on one event loop.

    A thread counts as its caller's until the work has ended, even if the caller is gone. One
    thread more than ``count`` does short work alone, so that no long work delays it. Long work runs
    at a lower priority of the operating system (Linux), so that it does not slow other work down.

    Args:
        count: Number of threads for any work.
    """

    def __init__(self, count: int) -> None:
        self._slots = FairSlots(count, short_count=1)
        # The slots bound the number of busy threads of both pools together.
        self._short = ThreadPoolExecutor(count + 1, thread_name_prefix="worker")
        self._long = ThreadPoolExecutor(
            count, thread_name_prefix="worker-long", initializer=_lower_priority
        )
        # Cancelled if the caller is gone.
        self._working: set[asyncio.Future[Any]] = set()
        # Else OpenCV would use as many threads again for each worker.
        cv2.setNumThreads(1)

    @property
    def thread_counts(self) -> dict[str, int]:
        """Busy threads: "busy" for callers that wait, "abandoned" if the caller is gone.

        Work that has begun cannot be interrupted.
        """
        abandoned = sum(answer.cancelled() for answer in self._working)
        return {"busy": len(self._working) - abandoned, "abandoned": abandoned}

    async def timed(
        self,
        work: Callable[[], _T],
        *,
        caller: str = "",
        priority: int = 1,
        expected_s: float = MAX_SHORT_S,
    ) -> tuple[_T, int]:
        """Runs work on a thread, once its caller gets a slot.

        Args:
            work: The work.
            caller: The caller whose work it is.
            priority: 1 goes first; among equals the caller that has used the least.
            expected_s: CPU seconds that the work is expected to take.

        Returns:
            The result, and the time that it took without waiting, in microseconds.
        """
        slot = await self._slots.take(caller, priority, expected_s)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[_T, int]] = loop.create_future()

        def run() -> None:
            started = thread_time()
            # No variable holds the outcome: the traceback of an error refers to this frame, too.
            loop.call_soon_threadsafe(done, _outcome_of(work), thread_time() - started)

        def done(outcome: "_Outcome[_T]", used_s: float) -> None:
            nonlocal answer
            self._working.discard(answer)
            slot.release(used_s)
            if not answer.cancelled():
                if isinstance(outcome, BaseException):
                    answer.set_exception(outcome)
                else:
                    answer.set_result(outcome)
            # The frames of an error refer to ``run``, and so to this function: if its caller was
            # cancelled just now, nobody takes the error, and the answer would hold itself.
            del answer

        try:
            threads = self._short if expected_s <= MAX_SHORT_S else self._long
            threads.submit(run)
        except BaseException:
            slot.release(0.0)
            raise
        self._working.add(answer)
        return await answer

    @staticmethod
    def timed_here(work: Callable[[], _T]) -> tuple[_T, int]:
        """Runs work here, which is quicker than going to a thread; returns as ``timed``."""
        started = perf_counter()
        result = work()
        return result, round((perf_counter() - started) * 1e6)

    async def close(self) -> None:
        """Stops the threads when their work is done."""
        for threads in (self._short, self._long):
            await asyncio.to_thread(threads.shutdown)


def _outcome_of(work: Callable[[], _T]) -> "_Outcome[_T]":
    """Returns the result of work and its time, or its error.

    A function of its own, so that no frame holds the error, whose traceback holds the frame: else
    the image would stay in memory until Python looks for cycles.
    """
    try:
        return Workers.timed_here(work)
    except BaseException as error:  # noqa: BLE001 - the caller gets it
        return error


def _lower_priority() -> None:
    """Gives the current thread a lower priority than the process."""
    if sys.platform == "linux":  # elsewhere niceness is of the process
        with suppress(OSError):
            thread = threading.get_native_id()
            niceness = os.getpriority(os.PRIO_PROCESS, thread) + _NICENESS
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
