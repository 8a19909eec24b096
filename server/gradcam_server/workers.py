"""Threads that decode and render: the most urgent work first."""

import asyncio
import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from time import perf_counter
from typing import Any, ParamSpec, TypeVar

import cv2

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Workers:
    """A pool of threads. Must be used on one event loop.

    Args:
        count: Number of threads.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._free = count
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        # Each worker is one thread of the machine; OpenCV would start as many again.
        cv2.setNumThreads(1)

    async def timed(
        self, priority: int, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> tuple[_T, int]:
        """Runs work on a thread when its turn comes.

        Args:
            priority: 1 goes first; equals go in the order of their calls.
            work: What to run.
            *args: Its arguments.
            **kwargs: Its arguments.

        Returns:
            The result, and the time that it took without waiting, in microseconds.
        """
        run = partial(self.timed_here, work, *args, **kwargs)
        await self._take_turn(priority)
        try:
            future = asyncio.get_running_loop().run_in_executor(self._threads, run)
        except BaseException:
            self._pass_on()
            raise
        # Cancelled or not, the thread is busy until the work is done.
        future.add_done_callback(self._done)
        return await asyncio.shield(future)

    @staticmethod
    def timed_here(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> tuple[_T, int]:
        """Runs work that takes less time than going to a thread would; returns as ``timed``."""
        started = perf_counter()
        result = work(*args, **kwargs)
        return result, round((perf_counter() - started) * 1e6)

    async def close(self) -> None:
        """Stops the threads when their work is done."""
        await asyncio.to_thread(self._threads.shutdown)

    async def _take_turn(self, priority: int) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (priority, next(self._order), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()
            raise

    def _done(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled():
            future.exception()  # if the caller has gone, nobody else asks for it
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
