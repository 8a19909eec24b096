"""Concurrent requests into batches, for one device or several.

    submit -> lane (one for each compiled graph and priority) -> batch -> run -> answers

A lane is ready when it holds a full batch or its oldest item has waited
``max_queue_delay_s``; of the ready lanes the most urgent goes first. Among equals callers have fair
shares of the device's time: the lane with an item of the caller that has used the least goes first,
and its batch takes items in that order. The items of one caller go in the order of their arrival.
So an item waits for at most one batch of less urgent ones.
Background lanes (methods of many passes) run when no other is ready, and otherwise for their
share of the device's time, so that they neither starve nor are starved.
A batch goes to the device that is free first. While all are busy, items gather; that alone
makes batches under load, so the delay may be zero. Nothing here knows TensorFlow: a lane's
runner runs its own batches.

The devices of a runner may be one device and its streams, parts of it that run side by side. Then
what waits is shared out among the streams, unless it is less than one item for each and nothing
else runs: the whole device is soonest done with that.
"""

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from operator import itemgetter
from time import perf_counter
from typing import Generic, Protocol, TypeVar

from gradcam_server.domain.fair_shares import Charge, FairShares
from gradcam_server.domain.schedule import Answer, BatchReport, DispatchReason, Turn, Urgency
from gradcam_server.errors import DeadlineError, QueueFullError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Output = TypeVar("Output")
ItemIn = TypeVar("ItemIn", contravariant=True)
OutputOut = TypeVar("OutputOut", covariant=True)

_MAX_CREDIT_S = 0.5
_RETRY_AFTER_S = 0.5
# What an item is expected to take of a device if its runner was never timed.
_MIN_ITEM_S = 1e-3


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

    @property
    def min_s(self) -> float:
        """Seconds that its quickest batch takes."""
        ...

    @property
    def device_count(self) -> int:
        """On how many devices it can run, the first of all."""
        ...

    @property
    def has_streams(self) -> bool:
        """Whether the devices after the first are its streams."""
        ...

    def run(self, items: Sequence[ItemIn], padded_size: int, device: int, /) -> Sequence[OutputOut]:
        """Computes one output for each item on a device, on that device's thread."""
        ...


@dataclass
class _Waiting(Generic[Item, Output]):
    item: Item
    turn: Turn | None
    urgency: Urgency
    since: float
    future: "asyncio.Future[Answer[Output]]"
    order: tuple[float, float] = (0.0, 0.0)
    """The smallest goes first, of items that are equally urgent."""

    def hopeless(self, now: float, min_s: float) -> Exception | None:
        """Returns why the item need not be computed any more."""
        waited_ms = (now - self.since) * 1e3
        deadline, start_by = self.urgency.deadline, self.urgency.start_by
        if deadline is not None and now + min_s > deadline:
            left_ms = max(deadline - now, 0) * 1e3
            return DeadlineError(
                f"the deadline cannot be met: after {waited_ms:.0f} ms in the queue "
                f"{left_ms:.0f} ms were left"
            )
        if start_by is not None and now > start_by:
            message = f"no turn after {waited_ms:.0f} ms in the queue; try again later"
            return QueueFullError(message, _RETRY_AFTER_S)
        return None

    def begin(self) -> None:
        if self.turn is not None:
            self.turn.give_back()


@dataclass(frozen=True)
class _Lane(Generic[Item, Output]):
    runner: BatchRunner[Item, Output]
    priority: int

    @property
    def rank(self) -> tuple[bool, int]:
        """Callers have fair shares among lanes of one rank."""
        return self.runner.background, self.priority

    @property
    def item_s(self) -> float:
        """Seconds of a device that an item is expected to take."""
        return max(self.runner.min_s, _MIN_ITEM_S)


class _Device:
    """A thread that runs one batch at a time."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=f"device-{index}")
        self.running_since: float | None = None


class Batcher(Generic[Item, Output]):
    """Runs submitted items in batches, one at a time on each device.

    Args:
        max_queue_delay_s: How long a batch that is not full may wait for more, in
            seconds, while the device is free.
        background_share: The part of the device's time that background batches get
            while others wait, 0 to 1.
        on_batch: Told of every batch that ran.
        device_count: Devices.
    """

    def __init__(
        self,
        max_queue_delay_s: float = 0.0,
        background_share: float = 0.25,
        on_batch: Callable[[BatchRunner[Item, Output], BatchReport], None] | None = None,
        device_count: int = 1,
    ) -> None:
        self._max_queue_delay_s = max_queue_delay_s
        self._background_share = background_share
        self._background_credit_s = 0.0
        self._on_batch = on_batch
        self._lanes: dict[_Lane[Item, Output], deque[_Waiting[Item, Output]]] = {}
        self._shares: dict[tuple[bool, int], FairShares] = {}
        self._change = asyncio.Event()
        self._devices = [_Device(index) for index in range(device_count)]
        self._running: set[asyncio.Task[None]] = set()
        self.failed_batch_count = 0
        """Batches that failed and were run again one by one."""
        self._task = asyncio.create_task(self._dispatch(), name="batcher")

    @property
    def running_s(self) -> float:
        """How long the longest running batch has been running, in seconds; 0 if there is none."""
        since = [one.running_since for one in self._devices if one.running_since is not None]
        return perf_counter() - min(since) if since else 0.0

    async def submit(
        self,
        runner: BatchRunner[Item, Output],
        item: Item,
        turn: Turn | None = None,
        urgency: Urgency = Urgency(),  # noqa: B008 - it is frozen
    ) -> Answer[Output]:
        """Queues an item for ``runner`` and waits for its output.

        If the caller is cancelled, the item is dropped when its batch is formed. If a batch
        fails, its items are run again one by one, so that none fails for another's sake.

        Raises:
            DeadlineError: The item could not be computed before its deadline, and was not.
            QueueFullError: The item waited too long.
            Exception: Whatever ``runner.run`` raised for the item alone.
        """
        future: asyncio.Future[Answer[Output]] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(item, turn, urgency, perf_counter(), future)
        lane = _Lane(runner, urgency.priority)
        self._lanes.setdefault(lane, deque()).append(waiting)
        self._shares.setdefault(lane.rank, FairShares()).enter(urgency.caller)
        self._change.set()
        return await future

    async def close(self) -> None:
        """Stops after the batch that is running. Items still waiting are cancelled."""
        tasks = [self._task, *self._running]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for lane in self._lanes.values():
            for waiting in lane:
                waiting.future.cancel()
        self._lanes.clear()
        for device in self._devices:
            await asyncio.to_thread(device.thread.shutdown)

    async def _dispatch(self) -> None:
        while True:
            self._change.clear()
            self._drop_hopeless()
            lane = self._ready_lane()
            device = None if lane is None else self._device_for(lane)
            if lane is None or device is None:
                await self._wait_for_change()
                continue
            take, padded_size = lane.runner.plan(self._share(lane, device))
            reason = self._reason(lane, take)
            batch = self._take(lane, take)
            charges = [
                self._shares[lane.rank].begin(waiting.urgency.caller, lane.item_s)
                for waiting in batch
            ]
            device.running_since = perf_counter()
            task = asyncio.create_task(
                self._occupy(device, lane, batch, charges, padded_size, reason)
            )
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _device_for(self, lane: _Lane[Item, Output]) -> _Device | None:
        """Finds a device that is free for a lane."""
        devices = self._devices[: lane.runner.device_count]
        if lane.runner.has_streams:
            streams = len(devices) - 1
            idle = all(device.running_since is None for device in self._devices)
            whole = streams < 2 or (idle and len(self._lanes[lane]) < streams)
            devices = devices[:1] if whole else devices[1:]
        return next((device for device in devices if device.running_since is None), None)

    def _share(self, lane: _Lane[Item, Output], device: _Device) -> int:
        """Returns how many of the items that wait are for a device, which may take fewer."""
        waiting = len(self._lanes[lane])
        if lane.runner.has_streams and device.index:
            streams = min(lane.runner.device_count, len(self._devices)) - 1
            return -(-waiting // streams)
        return waiting

    def _take(self, lane: _Lane[Item, Output], count: int) -> list[_Waiting[Item, Output]]:
        """Takes the items out of a lane that go first."""
        queue = self._lanes[lane]
        batch = heapq.nsmallest(count, queue, key=lambda waiting: waiting.order)
        taken = {id(waiting) for waiting in batch}
        self._lanes[lane] = deque(waiting for waiting in queue if id(waiting) not in taken)
        return batch

    async def _occupy(
        self,
        device: _Device,
        lane: _Lane[Item, Output],
        batch: Sequence[_Waiting[Item, Output]],
        charges: Sequence[Charge],
        padded_size: int,
        reason: DispatchReason,
    ) -> None:
        started = perf_counter()
        try:
            await self._run(device, lane.runner, batch, padded_size, reason)
        finally:
            for charge in charges:
                charge.settle((perf_counter() - started) / len(batch))
            self._forget_idle(lane.rank)
            device.running_since = None
            self._change.set()

    def _forget_idle(self, rank: tuple[bool, int]) -> None:
        shares = self._shares.get(rank)
        if shares is not None and not shares.caller_count:
            del self._shares[rank]

    def _drop_hopeless(self) -> None:
        """Drops items that nobody waits for, or that would come too late."""
        now = perf_counter()
        for lane, queue in list(self._lanes.items()):
            for waiting in queue:
                error = waiting.hopeless(now, lane.runner.min_s)
                if error is not None and not waiting.future.done():
                    waiting.future.set_exception(error)
            alive = deque[_Waiting[Item, Output]]()
            for waiting in queue:
                if waiting.future.done():
                    self._shares[lane.rank].leave(waiting.urgency.caller)
                else:
                    alive.append(waiting)
            if alive:
                self._lanes[lane] = alive
            else:
                del self._lanes[lane]
                self._forget_idle(lane.rank)

    def _ready_lane(self) -> _Lane[Item, Output] | None:
        """Chooses the lane whose turn it is, of those for which a device is free."""
        latest_start = perf_counter() - self._max_queue_delay_s
        ready = [
            lane
            for lane, queue in self._lanes.items()
            if (self._is_full(lane) or queue[0].since <= latest_start) and self._device_for(lane)
        ]
        background = [lane for lane in ready if lane.runner.background]
        foreground = [lane for lane in ready if not lane.runner.background]
        if foreground and (self._background_credit_s <= 0 or not background):
            candidates = foreground
        else:
            candidates = background
        if not candidates:
            return None
        rank = min(lane.rank for lane in candidates)
        self._tag(rank)
        equals = (lane for lane in candidates if lane.rank == rank)
        return min(equals, key=lambda lane: min(waiting.order for waiting in self._lanes[lane]))

    def _tag(self, rank: tuple[bool, int]) -> None:
        """Gives the items of a rank their order among callers."""
        shares = self._shares[rank]
        items = []
        for lane, queue in self._lanes.items():
            if lane.rank == rank:
                item_s = lane.item_s
                items += [(waiting.since, waiting, item_s) for waiting in queue]
        items.sort(key=itemgetter(0))
        tags = shares.start_tags([(one.urgency.caller, item_s) for _, one, item_s in items])
        for (since, waiting, _), tag in zip(items, tags, strict=True):
            waiting.order = tag, since

    def _is_full(self, lane: _Lane[Item, Output]) -> bool:
        return len(self._lanes[lane]) >= lane.runner.max_batch_size

    def _reason(self, lane: _Lane[Item, Output], take: int) -> DispatchReason:
        if take == lane.runner.max_batch_size:
            return DispatchReason.FULL
        return DispatchReason.DELAY if self._max_queue_delay_s else DispatchReason.IDLE

    def _account(self, runner: BatchRunner[Item, Output], seconds: float) -> None:
        """Background batches use up what the others earn them; a debt is soon forgotten."""
        if runner.background:
            self._background_credit_s = max(self._background_credit_s - seconds, -seconds)
        else:
            earned = seconds * self._background_share / max(1 - self._background_share, 1e-9)
            self._background_credit_s = min(self._background_credit_s + earned, _MAX_CREDIT_S)

    async def _wait_for_change(self) -> None:
        """Waits for an item, for a device, or until a batch has waited long enough."""
        timeout = None
        since = [queue[0].since for lane, queue in self._lanes.items() if self._device_for(lane)]
        if since:
            timeout = max(min(since) + self._max_queue_delay_s - perf_counter(), 0)
        try:
            async with asyncio.timeout(timeout):
                await self._change.wait()
        except TimeoutError:
            pass

    async def _run(
        self,
        device: _Device,
        runner: BatchRunner[Item, Output],
        batch: Sequence[_Waiting[Item, Output]],
        padded_size: int,
        reason: DispatchReason,
    ) -> None:
        for waiting in batch:
            waiting.begin()
        device.running_since = started = perf_counter()
        try:
            outputs = await asyncio.get_running_loop().run_in_executor(
                device.thread,
                _run_and_count,
                *(runner, [one.item for one in batch], padded_size, device.index),
            )
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - handed to the caller
            await self._run_again(device, runner, batch, error)
            return
        elapsed_s = perf_counter() - started
        self._account(runner, elapsed_s)
        report = BatchReport(len(batch), padded_size, reason, round(elapsed_s * 1e6), device.index)
        if self._on_batch is not None:
            self._on_batch(runner, report)
        for waiting, output in zip(batch, outputs, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(Answer(output, report))

    async def _run_again(
        self,
        device: _Device,
        runner: BatchRunner[Item, Output],
        batch: Sequence[_Waiting[Item, Output]],
        error: Exception,
    ) -> None:
        """Runs the items of a failed batch one by one; a single one has failed for good."""
        if len(batch) == 1:
            logger.error("An item failed on the device", exc_info=error)
            if not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        self.failed_batch_count += 1
        logger.warning("A batch of %d failed; its items are run one by one: %r", len(batch), error)
        for waiting in batch:
            if not waiting.future.done():
                _, padded_size = runner.plan(1)
                await self._run(device, runner, [waiting], padded_size, DispatchReason.IDLE)


def _run_and_count(
    runner: BatchRunner[Item, Output], items: Sequence[Item], padded_size: int, device: int
) -> Sequence[Output]:
    outputs = runner.run(items, padded_size, device)
    if len(outputs) != len(items):
        raise RuntimeError(f"{len(items)} items gave {len(outputs)} outputs")
    return outputs
