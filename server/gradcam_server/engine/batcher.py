"""Runs concurrent requests in batches: the policy of ``scheduling`` on threads and an event loop.

    submit -> Scheduler -> a device's thread -> answers

Each device has a thread, which runs one batch at a time. Nothing here knows TensorFlow: a runner
runs its own batches.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, Protocol, TypeVar

from gradcam_server.domain.schedule import Answer, BatchReport, DispatchReason, OnDispatch, Urgency
from gradcam_server.engine.scheduling import Batch, QueuedItem, Runner, Scheduler

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Output = TypeVar("Output")
ItemIn = TypeVar("ItemIn", contravariant=True)
OutputOut = TypeVar("OutputOut", covariant=True)


class BatchRunner(Runner, Protocol[ItemIn, OutputOut]):
    """A compiled graph that runs batches: equal items in, outputs in the same order."""

    def run(self, items: Sequence[ItemIn], padded_size: int, device: int, /) -> Sequence[OutputOut]:
        """Computes one output for each item on a device, on that device's thread."""
        ...


@dataclass(slots=True, eq=False)
class _Submitted(QueuedItem, Generic[Item, Output]):
    """An item, and the future that its caller waits for."""

    item: Item
    on_dispatch: OnDispatch | None
    future: "asyncio.Future[Answer[Output]]"

    @property
    def abandoned(self) -> bool:
        return self.future.done()


_Batch = Batch[BatchRunner[Item, Output], _Submitted[Item, Output]]


class Batcher(Generic[Item, Output]):
    """Runs submitted items in batches, one at a time on each device.

    Args:
        max_queue_delay_s: How long a batch that is not full may wait for more items, in
            seconds, while a device is free.
        background_share: The part of the devices' time that background batches get
            while others wait, 0 to 1.
        on_batch: Called with the runner and the report of every batch that ran.
        device_count: Devices.
    """

    def __init__(
        self,
        max_queue_delay_s: float = 0.0,
        background_share: float = 0.25,
        on_batch: Callable[[BatchRunner[Item, Output], BatchReport], None] | None = None,
        device_count: int = 1,
    ) -> None:
        self._scheduler: Scheduler[BatchRunner[Item, Output], _Submitted[Item, Output]] = Scheduler(
            max_queue_delay_s, background_share, device_count
        )
        self._on_batch = on_batch
        self._change = asyncio.Event()
        self._threads = [
            ThreadPoolExecutor(1, thread_name_prefix=f"device-{index}")
            for index in range(device_count)
        ]
        self._running_since: dict[int, float] = {}
        self._running: set[asyncio.Task[None]] = set()
        self.failed_batch_count = 0
        """Batches that failed and were run again one by one."""
        self._task = asyncio.create_task(self._dispatch(), name="batcher")

    @property
    def running_s(self) -> float:
        """How long the longest running batch has been running, in seconds; 0 if there is none."""
        since = min(self._running_since.values(), default=None)
        return 0.0 if since is None else perf_counter() - since

    async def submit(
        self,
        runner: BatchRunner[Item, Output],
        item: Item,
        on_dispatch: OnDispatch | None = None,
        urgency: Urgency = Urgency(),  # noqa: B008 - it is frozen
    ) -> Answer[Output]:
        """Queues an item for ``runner`` and waits for its output.

        If the caller is cancelled, the item is dropped when its batch is formed. If a batch
        fails, its items are run again one by one, so that only an item at fault fails.

        Args:
            runner: The runner.
            item: The item.
            on_dispatch: Called when the item leaves the queue.
            urgency: When it must be computed.

        Raises:
            DeadlineError: The item could not be computed before its deadline, and was not.
            QueueFullError: The item waited too long.
            Exception: Whatever ``runner.run`` raised for the item alone.
        """
        future: asyncio.Future[Answer[Output]] = asyncio.get_running_loop().create_future()
        self._scheduler.add(runner, _Submitted(urgency, perf_counter(), item, on_dispatch, future))
        self._change.set()
        return await future

    async def close(self) -> None:
        """Stops after the batches that are running. Items still waiting are cancelled."""
        tasks = [self._task, *self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for queued in self._scheduler.clear():
            queued.future.cancel()
        for thread in self._threads:
            await asyncio.to_thread(thread.shutdown)

    async def _dispatch(self) -> None:
        while True:
            self._change.clear()
            now = perf_counter()
            for expired, error in self._scheduler.drop(now):
                expired.future.set_exception(error)
            batch = self._scheduler.next_batch(now)
            if batch is None:
                await self._wait_for_change()
                continue
            self._running_since[batch.device] = now
            task = asyncio.create_task(self._occupy(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _wait_for_change(self) -> None:
        """Waits for an item, for a device, or until a batch has waited long enough."""
        due_at = self._scheduler.due_at()
        timeout = None if due_at is None else max(due_at - perf_counter(), 0)
        try:
            async with asyncio.timeout(timeout):
                await self._change.wait()
        except TimeoutError:
            pass

    async def _occupy(self, batch: _Batch[Item, Output]) -> None:
        """Runs a batch on its device and frees the device."""
        started = perf_counter()
        try:
            for queued in batch.items:
                if queued.on_dispatch is not None:
                    queued.on_dispatch()
            await self._run(batch, batch.items, batch.padded_size, batch.reason)
        finally:
            self._scheduler.finish(batch, perf_counter() - started)
            del self._running_since[batch.device]
            self._change.set()

    async def _run(
        self,
        batch: _Batch[Item, Output],
        items: Sequence[_Submitted[Item, Output]],
        padded_size: int,
        reason: DispatchReason,
    ) -> None:
        """Runs a batch, or some items of it."""
        runner, device = batch.runner, batch.device
        self._running_since[device] = started = perf_counter()
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(
                self._threads[device],
                _run_and_count,
                *(runner, [queued.item for queued in items], padded_size, device),
            )
        except asyncio.CancelledError:
            for queued in items:
                queued.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - handed to the caller
            await self._run_again(batch, items, error)
            return
        elapsed_us = round((perf_counter() - started) * 1e6)
        report = BatchReport(len(items), padded_size, reason, elapsed_us, device)
        if self._on_batch is not None:
            self._on_batch(runner, report)
        for queued, output in zip(items, outputs, strict=True):
            if not queued.future.done():
                queued.future.set_result(Answer(output, report))

    async def _run_again(
        self,
        batch: _Batch[Item, Output],
        items: Sequence[_Submitted[Item, Output]],
        error: Exception,
    ) -> None:
        """Runs the items of a failed batch one by one; a single item has failed for good."""
        if len(items) == 1:
            logger.error("An item failed on the device", exc_info=error)
            if not items[0].future.done():
                items[0].future.set_exception(error)
            return
        self.failed_batch_count += 1
        logger.warning("A batch of %d failed; its items are run one by one: %r", len(items), error)
        for queued in items:
            if not queued.future.done():
                _, padded_size = batch.runner.plan(1)
                await self._run(batch, [queued], padded_size, DispatchReason.IDLE)


def _run_and_count(
    runner: BatchRunner[Item, Output], items: Sequence[Item], padded_size: int, device: int
) -> Sequence[Output]:
    outputs = runner.run(items, padded_size, device)
    if len(outputs) != len(items):
        raise RuntimeError(f"{len(items)} items gave {len(outputs)} outputs")
    return outputs
