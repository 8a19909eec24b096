"""Runs concurrent requests in batches: the policy of ``scheduling`` on threads and an event loop.

    add -> Scheduler -> a device's dispatching thread -> its waiting thread -> answers

Each device has two threads: the first dispatches batches, the second waits for their outputs, both
in the same order. A runner whose depth is 1 computes on the first, one batch at a time. Nothing
here knows TensorFlow: a runner runs its own batches. All that happens for an image is plain calls:
no task and no future.
"""

import asyncio
import logging
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Generic, NoReturn, Protocol, TypeVar

from gradcam_server.domain.schedule import Answer, BatchReport, DispatchReason, OnDispatch, Urgency
from gradcam_server.engine.batches import Batch, QueuedItem, Runner
from gradcam_server.engine.scheduling import Scheduler

logger = logging.getLogger(__name__)

# In which part of a batch's time all other streams must be busy for its time to be learnt.
_MIN_BESIDE = 0.9

Item = TypeVar("Item")
Output = TypeVar("Output")
ItemIn = TypeVar("ItemIn", contravariant=True)
OutputOut = TypeVar("OutputOut", covariant=True)


class BatchRunner(Runner, Protocol[ItemIn, OutputOut]):
    """A compiled graph that runs batches: equal items in, outputs in the same order."""

    def dispatch(
        self, items: Sequence[ItemIn], padded_size: int, device: int, /
    ) -> Callable[[], Sequence[OutputOut]]:
        """Starts to compute one output for each item on a device.

        Returns:
            A function that waits for the outputs, and raises what went wrong. It is called once;
            if ``depth`` is more than 1, on another thread, while the next batch is dispatched.
        """
        ...

    def ran(self, padded_size: int, device: int, seconds: float, /) -> None:
        """Learns how long a batch took that had the device alone, and did not fail."""
        ...


@dataclass(slots=True, eq=False)
class Job(QueuedItem, Generic[Item, Output]):
    """An item, and what becomes of it.

    Of ``answer``, ``fail`` and ``drop`` exactly one is called, once, when neither the batcher nor a
    device reads the item any more. All calls are on the event loop.

    Attributes:
        item: The item.
        compile_us: Time that it waited until its runner was compiled, in microseconds.
    """

    item: Item
    compile_us: int = field(default=0, init=False)

    def dispatched(self) -> None:
        """The item has left the queue for the device."""

    @abstractmethod
    def answer(self, output: Output, batch: BatchReport) -> None:
        """The item was computed, in a batch."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """The item failed alone, or came too late."""

    @abstractmethod
    def drop(self) -> None:
        """The item was not computed: it was abandoned, or the batcher is closed."""


@dataclass(slots=True, eq=False)
class _Awaited(Job[Item, Output]):
    """A job whose caller waits for a future."""

    on_dispatch: OnDispatch | None
    future: "asyncio.Future[Answer[Output]]"

    @property
    def abandoned(self) -> bool:
        return self.future.done()

    def dispatched(self) -> None:
        if self.on_dispatch is not None:
            self.on_dispatch()

    def answer(self, output: Output, batch: BatchReport) -> None:
        if not self.future.done():
            self.future.set_result(Answer(output, batch, self.compile_us))

    def fail(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)

    def drop(self) -> None:
        self.future.cancel()


@dataclass(slots=True, eq=False)
class _Running(Generic[Item, Output]):
    """A batch on a device.

    Attributes:
        batch: The batch.
        again: Its items that are still to be run again one by one, after it failed.
        since: When its run, or the run of the latest of these items, began.
        seconds: For how long its runs before that had the device.
        busy_s: For how long the other streams had been busy in all when it began.
    """

    batch: Batch[BatchRunner[Item, Output], Job[Item, Output]]
    again: deque[Job[Item, Output]] = field(default_factory=deque)
    since: float = 0.0
    seconds: float = 0.0
    busy_s: float = 0.0


def _raise(error: Exception) -> NoReturn:
    raise error


class _Device:
    """The threads of a device.

    Attributes:
        free_since: When the latest run on it ended.
        busy_s: For how long it has been busy in all, without the run that is under way.
    """

    def __init__(self, index: int) -> None:
        self._dispatching = ThreadPoolExecutor(1, thread_name_prefix=f"device-{index}")
        self._waiting = ThreadPoolExecutor(1, thread_name_prefix=f"device-{index}-outputs")
        self.free_since = self.busy_s = 0.0

    def run(
        self,
        runner: BatchRunner[Item, Output],
        items: Sequence[Item],
        padded_size: int,
        device: int,
        ended: Callable[[Sequence[Output] | Exception], None],
    ) -> None:
        """Runs a batch, and calls ``ended`` on a thread with its outputs or with its error."""

        def dispatch() -> None:
            try:
                wait = runner.dispatch(items, padded_size, device)
            except Exception as error:  # noqa: BLE001 - handed to the caller
                wait = partial(_raise, error)
            if runner.depth == 1:
                finish(wait)
            else:  # also with an error: runs end in the order in which they began
                self._waiting.submit(finish, wait)

        def finish(wait: Callable[[], Sequence[Output]]) -> None:
            try:
                outputs = wait()
            except Exception as error:  # noqa: BLE001 - handed to the caller
                ended(error)
                return
            if len(outputs) == len(items):
                ended(outputs)
            else:
                ended(RuntimeError(f"{len(items)} items gave {len(outputs)} outputs"))

        self._dispatching.submit(dispatch)

    def close(self) -> None:
        """Waits for the runs that have begun."""
        self._dispatching.shutdown()
        self._waiting.shutdown()


class Batcher(Generic[Item, Output]):
    """Runs jobs in batches on devices. Made and used on one event loop.

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
        self._scheduler: Scheduler[BatchRunner[Item, Output], Job[Item, Output]] = Scheduler(
            max_queue_delay_s, background_share, device_count
        )
        self._on_batch = on_batch
        self._devices = [_Device(index) for index in range(device_count)]
        self._running: set[_Running[Item, Output]] = set()
        self.failed_batch_count = 0
        """Batches that failed and were run again one by one."""
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def running_s(self) -> float:
        """How long the longest running batch has had its device, in seconds; 0 if there is none."""
        since = min(map(self._has_device_since, self._running), default=None)
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
            Exception: Whatever ``runner`` raised for the item alone.
        """
        future: asyncio.Future[Answer[Output]] = self._loop.create_future()
        self.add(runner, [_Awaited(urgency, perf_counter(), item, on_dispatch, future)])
        return await future

    def add(self, runner: BatchRunner[Item, Output], jobs: Iterable[Job[Item, Output]]) -> None:
        """Queues jobs for ``runner``.

        They go at the end of this turn of the event loop: what arrives together goes together.
        """
        if self._closed:
            for job in jobs:
                job.drop()
            return
        for job in jobs:
            self._scheduler.add(runner, job)
        self._take_turn_soon()

    async def close(self) -> None:
        """Stops after the batches that are running. Items still waiting are dropped."""
        self._closed = True
        for handle in (self._turn, self._timer):
            if handle is not None:
                handle.cancel()
        for job in self._scheduler.clear():
            job.drop()
        for device in self._devices:
            await asyncio.to_thread(device.close)

    def _take_turn_soon(self) -> None:
        if self._turn is None:
            self._turn = self._loop.call_soon(self._take_turn)

    def _take_turn(self) -> None:
        """Starts the batches that are ready."""
        if self._closed:
            return
        self._turn = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = perf_counter()
        for job, error in self._scheduler.drop(now):
            if error is None:
                job.drop()
            else:
                job.fail(error)
        while (batch := self._scheduler.next_batch(now)) is not None:
            running = _Running(batch)
            self._running.add(running)
            self._start(running, batch.items, batch.padded_size, batch.reason)
            for job in batch.items:
                job.dispatched()
        due_at = self._scheduler.due_at()
        if due_at is not None:
            delay_s = max(due_at - perf_counter(), 0)
            self._timer = self._loop.call_later(delay_s, self._take_turn)

    def _start(
        self,
        running: _Running[Item, Output],
        jobs: Sequence[Job[Item, Output]],
        padded_size: int,
        reason: DispatchReason,
    ) -> None:
        """Runs a batch, or an item of a batch that failed."""
        runner, device = running.batch.runner, running.batch.device
        running.since = perf_counter()
        running.busy_s = self._busy_s_beside(running, running.since)

        def ended(result: Sequence[Output] | Exception) -> None:
            now = perf_counter()
            self._loop.call_soon_threadsafe(
                self._ended, running, jobs, padded_size, reason, result, now
            )

        items = [job.item for job in jobs]
        self._devices[device].run(runner, items, padded_size, device, ended)

    def _has_device_since(self, running: _Running[Item, Output]) -> float:
        """Returns when a batch began to run, or when the batch before it ended, if that is later.

        So the time of a device is counted once, however many batches are in flight on it.
        """
        return max(running.since, self._devices[running.batch.device].free_since)

    def _busy_s_beside(self, running: _Running[Item, Output], now: float) -> float:
        """Returns for how long the streams beside that of a batch have been busy in all."""
        own, count = running.batch.device, running.batch.runner.device_count
        if not (running.batch.runner.has_streams and own):
            return 0.0
        ended_s = sum(self._devices[other].busy_s for other in range(1, count) if other != own)
        under_way = (
            now - self._has_device_since(other)
            for other in self._running
            if other.batch.device not in (0, own)
        )
        return ended_s + sum(under_way)

    def _is_typical(self, running: _Running[Item, Output], seconds: float, now: float) -> bool:
        """Whether a batch of a stream ran beside the others, as batches do once images wait.

        Alone it is faster, and alone are single images: they would seem cheap.
        """
        runner = running.batch.runner
        if not (runner.has_streams and running.batch.device):
            return True
        beside_s = self._busy_s_beside(running, now) - running.busy_s
        return beside_s >= _MIN_BESIDE * seconds * (runner.device_count - 2)

    def _ended(
        self,
        running: _Running[Item, Output],
        jobs: Sequence[Job[Item, Output]],
        padded_size: int,
        reason: DispatchReason,
        result: Sequence[Output] | Exception,
        now: float,
    ) -> None:
        batch = running.batch
        since = self._has_device_since(running)
        seconds, is_behind = now - since, since > running.since
        running.seconds += seconds
        is_typical = self._is_typical(running, seconds, now)
        device = self._devices[batch.device]
        device.free_since, device.busy_s = now, device.busy_s + seconds
        try:
            if isinstance(result, Exception):
                self._failed(running, jobs, result)
                return
            if is_typical and not is_behind:
                batch.runner.ran(padded_size, batch.device, seconds)
            compute_us = round(seconds * 1e6)
            report = BatchReport(len(jobs), padded_size, reason, compute_us, batch.device)
            if not self._closed and self._on_batch is not None:
                self._on_batch(batch.runner, report)
            for job, output in zip(jobs, result, strict=True):
                if self._closed:
                    job.drop()
                else:
                    job.answer(output, report)
        finally:
            self._go_on(running)

    def _failed(
        self,
        running: _Running[Item, Output],
        jobs: Sequence[Job[Item, Output]],
        error: Exception,
    ) -> None:
        if len(jobs) == 1:
            logger.error("An item failed on the device", exc_info=error)
            jobs[0].fail(error)
            return
        self.failed_batch_count += 1
        count = len(jobs)
        logger.warning("A batch of %d failed; its items are run one by one: %r", count, error)
        running.again.extend(jobs)

    def _go_on(self, running: _Running[Item, Output]) -> None:
        """Runs the next of the items that are to be run again, or else ends the batch."""
        while running.again:
            job = running.again.popleft()
            if job.abandoned or self._closed:
                job.drop()
                continue
            _, padded_size = running.batch.runner.plan(1)
            self._start(running, [job], padded_size, DispatchReason.IDLE)
            return
        self._running.discard(running)
        self._scheduler.finish(running.batch, running.seconds, perf_counter())
        if not self._closed:
            self._take_turn_soon()
