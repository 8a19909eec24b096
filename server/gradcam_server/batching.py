"""Concurrent requests into batches for one device.

    admit -> submit -> lane (one for each compiled graph) -> batch -> run -> answers

A lane is ready when it holds a full batch or its oldest item has waited
``max_queue_delay_s``; of the ready lanes the one with the oldest item goes first.
Background lanes (methods of many passes) run when no other is ready, and otherwise for their
share of the device's time, so that they neither starve nor are starved.
While the device is busy, items gather; that alone makes batches under load, so the
delay may be zero. Nothing here knows TensorFlow: a lane's key runs its own batches.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, Protocol, TypeVar

from gradcam_server.errors import QueueFullError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Output = TypeVar("Output")
ItemIn = TypeVar("ItemIn", contravariant=True)
OutputOut = TypeVar("OutputOut", covariant=True)

_RETRY_AFTER_S = 0.2
_MAX_CREDIT_S = 0.5


class BatchRunner(Hashable, Protocol[ItemIn, OutputOut]):
    """What runs a batch: a compiled graph. Equal items in, outputs in the same order."""

    def plan(self, waiting: int) -> tuple[int, int]:
        """Returns how many of ``waiting`` items to take, and the padded size to run."""
        ...

    @property
    def background(self) -> bool:
        """Whether its batches leave the device to others, but for their share."""
        ...

    @property
    def max_batch_size(self) -> int:
        """The most items of one batch."""
        ...

    def run(self, items: Sequence[ItemIn], padded_size: int, /) -> Sequence[OutputOut]:
        """Computes one output for each item, on the device's thread."""
        ...


@dataclass(frozen=True)
class Answer(Generic[Output]):
    """The output for one item, and what it took.

    Attributes:
        output: What the runner returned for the item.
        compute_us: Time its batch took, in microseconds.
        batch_size: Items in its batch.
        padded_batch_size: The size that ran.
    """

    output: Output
    compute_us: int
    batch_size: int
    padded_batch_size: int


class Place:
    """A place in the queue; given back once, when its item goes to the device or is dropped."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places: asyncio.Semaphore | None = places

    def give_back(self) -> None:
        """Frees the place; later calls do nothing."""
        if self._places is not None:
            self._places.release()
            self._places = None


@dataclass
class _Waiting(Generic[Item, Output]):
    item: Item
    place: Place | None
    since: float
    future: "asyncio.Future[Answer[Output]]"


class Batcher(Generic[Item, Output]):
    """Runs submitted items in batches, one batch at a time, on a thread of its own.

    Args:
        max_queue_length: Most requests admitted and not yet on the device.
        max_queue_delay_s: How long a batch that is not full may wait for more, in
            seconds, while the device is free.
        background_share: The part of the device's time that background batches get
            while others wait, 0 to 1.
    """

    def __init__(
        self,
        max_queue_length: int,
        max_queue_delay_s: float = 0.0,
        background_share: float = 0.25,
    ) -> None:
        self._places = asyncio.Semaphore(max_queue_length)
        self._max_queue_length = max_queue_length
        self._max_queue_delay_s = max_queue_delay_s
        self._background_share = background_share
        self._background_credit_s = 0.0
        self._lanes: dict[BatchRunner[Item, Output], deque[_Waiting[Item, Output]]] = {}
        self._arrival = asyncio.Event()
        self._device = ThreadPoolExecutor(1, thread_name_prefix="device")
        self._task = asyncio.create_task(self._dispatch(), name="batcher")

    @asynccontextmanager
    async def admit(self, *, wait: bool = False) -> AsyncIterator[Place]:
        """Takes a place in the queue for the time until the item is on the device.

        Args:
            wait: Wait for a place instead of failing.

        Raises:
            QueueFullError: There is no place, and ``wait`` is false.
        """
        if not wait and self._places.locked():
            raise QueueFullError(
                f"all {self._max_queue_length} places in the queue are taken; try again later",
                _RETRY_AFTER_S,
            )
        await self._places.acquire()
        place = Place(self._places)
        try:
            yield place
        finally:
            place.give_back()

    async def submit(
        self, runner: BatchRunner[Item, Output], item: Item, place: Place | None = None
    ) -> Answer[Output]:
        """Queues an item for ``runner`` and waits for its output.

        If the caller is cancelled, the item is dropped when its batch is formed. An item
        without a place is one of many of a request that had one.

        Raises:
            Exception: Whatever ``runner.run`` raised for the item's batch.
        """
        future: asyncio.Future[Answer[Output]] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(item, place, perf_counter(), future)
        self._lanes.setdefault(runner, deque()).append(waiting)
        self._arrival.set()
        return await future

    async def close(self) -> None:
        """Stops after the batch that is running. Items still waiting are cancelled."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for lane in self._lanes.values():
            for waiting in lane:
                waiting.future.cancel()
        self._lanes.clear()
        await asyncio.to_thread(self._device.shutdown)

    async def _dispatch(self) -> None:
        while True:
            self._drop_abandoned()
            runner = self._ready_lane()
            if runner is None:
                await self._wait_for_arrival()
                continue
            lane = self._lanes[runner]
            take, padded_size = runner.plan(len(lane))
            batch = [lane.popleft() for _ in range(take)]
            await self._run(runner, batch, padded_size)

    def _drop_abandoned(self) -> None:
        for runner, lane in list(self._lanes.items()):
            alive = deque(waiting for waiting in lane if not waiting.future.done())
            if alive:
                self._lanes[runner] = alive
            else:
                del self._lanes[runner]

    def _ready_lane(self) -> BatchRunner[Item, Output] | None:
        latest_start = perf_counter() - self._max_queue_delay_s
        ready = [
            runner
            for runner, lane in self._lanes.items()
            if len(lane) >= runner.max_batch_size or lane[0].since <= latest_start
        ]
        background = [runner for runner in ready if runner.background]
        foreground = [runner for runner in ready if not runner.background]
        if foreground and (self._background_credit_s <= 0 or not background):
            candidates = foreground
        else:
            candidates = background
        return min(candidates, key=lambda runner: self._lanes[runner][0].since, default=None)

    def _account(self, runner: BatchRunner[Item, Output], seconds: float) -> None:
        """Background batches use up what the others earn them; a debt is soon forgotten."""
        if runner.background:
            self._background_credit_s = max(self._background_credit_s - seconds, -seconds)
        else:
            earned = seconds * self._background_share / max(1 - self._background_share, 1e-9)
            self._background_credit_s = min(self._background_credit_s + earned, _MAX_CREDIT_S)

    async def _wait_for_arrival(self) -> None:
        self._arrival.clear()
        timeout = None
        if self._lanes:
            oldest = min(lane[0].since for lane in self._lanes.values())
            timeout = max(oldest + self._max_queue_delay_s - perf_counter(), 0)
        try:
            async with asyncio.timeout(timeout):
                await self._arrival.wait()
        except TimeoutError:
            pass

    async def _run(
        self,
        runner: BatchRunner[Item, Output],
        batch: list[_Waiting[Item, Output]],
        padded_size: int,
    ) -> None:
        for waiting in batch:
            if waiting.place is not None:
                waiting.place.give_back()
        items = [waiting.item for waiting in batch]
        started = perf_counter()
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(
                self._device, runner.run, items, padded_size
            )
            if len(outputs) != len(batch):
                raise RuntimeError(f"{len(batch)} items gave {len(outputs)} outputs")  # noqa: TRY301
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.future.cancel()
            raise
        except Exception as error:
            logger.exception("A batch of %d failed", len(batch))
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
            return
        elapsed_s = perf_counter() - started
        self._account(runner, elapsed_s)
        compute_us = round(elapsed_s * 1e6)
        for waiting, output in zip(batch, outputs, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(
                    Answer(
                        output,
                        compute_us=compute_us,
                        batch_size=len(batch),
                        padded_batch_size=padded_size,
                    )
                )
