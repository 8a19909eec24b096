"""The policy of batching: which batch goes next, to which device, and when.

    add -> lane (one for each runner and priority) -> next_batch -> the batch runs -> finish

It is pure: no thread, no event loop, no clock. Times are passed in, in seconds of any monotonic
clock, so a simulation can drive it as ``Batcher`` does.

A lane is ready when it holds a full batch or its oldest item has waited ``max_queue_delay_s``, and
a device is free. Of the ready lanes the most urgent goes first. Among lanes of equal urgency
callers have fair shares of the devices' time: the lane with an item of the caller that has used the
least goes first, and its batch takes items in that order. The items of one caller go in the order
of their arrival. So an item waits for at most one batch of less urgent items.
Background lanes (methods of many passes) run when no other is ready, and otherwise for their
share of the devices' time, so that they neither starve nor are starved.
While all devices are busy, items gather; that alone makes batches under load, so the delay may be
zero.

How many of a lane's items go is the runner's decision (``plan``), who knows what a batch of each
size costs; the scheduler tells it how busy the device is.

A device may have several batches in flight, as many as the ``depth`` of the runners says: while it
computes one, the next is uploaded and the previous is downloaded. Behind another batch a full batch
goes at once. A batch that is not full goes when half of the batch before it is left to run: soon
enough for the device never to idle, and no sooner, as items gather until then. Behind another, a
batch adds less time than it takes alone; how much is learnt from the batches that end. A batch
whose runner is less deep than those in flight waits until the device has ended enough of them, and
if it is the most urgent, no batch goes before it.

The devices of a runner may be one device and its streams, parts of it that run side by side. Then
the waiting items are divided among the streams, unless they are fewer than the streams and nothing
else runs: the whole device is soonest done with those. The whole device and its streams take turns,
whatever graphs they run, as both compute with the same cores: side by side they answer fewer images
than the streams alone. The most urgent lane waits until the others have ended, and meanwhile no
other batch goes.
"""

import heapq
import math
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Generic, Protocol, TypeVar

from gradcam_server.domain.fair_shares import Charge, FairShares
from gradcam_server.domain.schedule import DispatchReason, Urgency
from gradcam_server.errors import DeadlineError, QueueFullError

_MAX_CREDIT_S = 0.5
_RETRY_AFTER_S = 0.5
# The device time that an item is expected to take if its runner was never timed.
_MIN_ITEM_S = 1e-3
# Over how many batches the properties of a device are averaged.
_RECENT_BATCHES = 64
_PACE_BATCHES = 8

_Rank = tuple[bool, int]


class Runner(Hashable, Protocol):
    """The properties of a compiled graph that the policy needs."""

    def plan(self, waiting: int, busy: float = 1.0) -> tuple[int, int]:
        """Returns how many of ``waiting`` items to take, and the padded size to run.

        ``busy`` is the part of the recent time in which the device had a batch, 0 to 1.
        """
        ...

    @property
    def background(self) -> bool:
        """Whether its batches leave the devices to others, but for their share."""
        ...

    @property
    def max_batch_size(self) -> int:
        """The maximum number of items in a batch."""
        ...

    @property
    def min_s(self) -> float:
        """Seconds that its quickest batch takes."""
        ...

    def expected_s(self, padded_size: int) -> float:
        """Seconds that a batch of a padded size is expected to take."""
        ...

    @property
    def depth(self) -> int:
        """How many batches may be in flight on a device while one of its batches is."""
        ...

    @property
    def device_count(self) -> int:
        """How many devices it can run on, counted from the first."""
        ...

    @property
    def has_streams(self) -> bool:
        """Whether the devices after the first are streams of the first."""
        ...


@dataclass(slots=True, eq=False)
class QueuedItem:
    """An item that waits.

    Attributes:
        urgency: When it must be computed.
        queued_at: When it was added.
        order: Its order among items of equal urgency; the smallest goes first. The scheduler
            sets it.
    """

    urgency: Urgency
    queued_at: float
    order: tuple[float, float] = field(default=(0.0, 0.0), init=False)

    @property
    def abandoned(self) -> bool:
        """Whether no caller waits for its output any more."""
        return False

    def expired(self, now: float, min_s: float) -> Exception | None:
        """Returns why the item is too late to compute in ``min_s`` seconds, or None."""
        deadline, start_by = self.urgency.deadline, self.urgency.start_by
        if deadline is not None and now + min_s > deadline:
            waited_ms, left_ms = (now - self.queued_at) * 1e3, max(deadline - now, 0) * 1e3
            return DeadlineError(
                f"the deadline cannot be met: after {waited_ms:.0f} ms in the queue "
                f"{left_ms:.0f} ms were left"
            )
        if start_by is not None and now > start_by:
            waited_ms = (now - self.queued_at) * 1e3
            message = f"still waiting after {waited_ms:.0f} ms in the queue; try again later"
            return QueueFullError(message, _RETRY_AFTER_S)
        return None


RunnerT = TypeVar("RunnerT", bound=Runner)
ItemT = TypeVar("ItemT", bound=QueuedItem)


class _Lane(Generic[RunnerT, ItemT]):
    """The waiting items of one runner and priority, oldest first.

    Attributes:
        rank: Callers have fair shares among lanes of one rank; the smallest is the most urgent.
    """

    __slots__ = ("queue", "rank", "runner")

    def __init__(self, runner: RunnerT, rank: _Rank) -> None:
        self.runner, self.rank = runner, rank
        self.queue: deque[ItemT] = deque()

    @property
    def is_full(self) -> bool:
        return len(self.queue) >= self.runner.max_batch_size

    @property
    def item_s(self) -> float:
        """Seconds of a device that an item is expected to take."""
        return max(self.runner.min_s, _MIN_ITEM_S)


@dataclass(frozen=True, slots=True)
class Batch(Generic[RunnerT, ItemT]):
    """A batch that goes to a device.

    Attributes:
        runner: Its runner.
        items: The items, in the order in which they go; at most ``padded_size``.
        padded_size: The batch size to run.
        device: The index of the device, on which it is in flight until ``finish``.
        reason: Why the batch goes now.
        rank: Among which lanes its callers have fair shares.
        charges: The device time charged to the caller of each item.
    """

    runner: RunnerT
    items: Sequence[ItemT]
    padded_size: int
    device: int
    reason: DispatchReason
    rank: _Rank
    charges: Sequence[Charge]


@dataclass(frozen=True, slots=True)
class _InFlight(Generic[RunnerT, ItemT]):
    """A batch on a device.

    Attributes:
        expected_s: Seconds that it is expected to take alone.
        is_behind: Whether another batch was in flight when it started.
        idle_s: For how long the device had been idle when it started, in seconds.
    """

    batch: Batch[RunnerT, ItemT]
    expected_s: float
    is_behind: bool
    idle_s: float


class _Device(Generic[RunnerT, ItemT]):
    """A device.

    Attributes:
        in_flight: Its batches, oldest first.
        gather_until: Until when a batch that is not full waits, as the device has enough to do.
    """

    __slots__ = ("_busy_s", "_free_at", "_idle_s", "_pace", "gather_until", "in_flight")

    def __init__(self) -> None:
        self.in_flight: list[_InFlight[RunnerT, ItemT]] = []
        self.gather_until = self._free_at = -math.inf
        # The time that a batch adds behind another, by the time that it takes alone.
        self._pace = 1.0
        self._busy_s = self._idle_s = 0.0

    @property
    def busy(self) -> float:
        """The part of the recent time in which the device had a batch."""
        return 1 - self._idle_s / max(self._busy_s + self._idle_s, 1e-9)

    def has_room(self, depth: int) -> bool:
        """Whether a batch of a runner of this depth may join the batches in flight."""
        return len(self.in_flight) < min(depth, self._depth)

    def must_drain(self, depth: int) -> bool:
        """Whether a batch of this depth has no room only because deeper batches are in flight."""
        return depth <= len(self.in_flight) < self._depth

    def start(self, batch: Batch[RunnerT, ItemT], now: float) -> None:
        """Adds a batch."""
        expected_s = batch.runner.expected_s(batch.padded_size)
        is_behind = bool(self.in_flight)
        idle_s = 0.0 if is_behind or self._free_at == -math.inf else now - self._free_at
        self.in_flight.append(_InFlight(batch, expected_s, is_behind, idle_s))
        self._free_at = max(now + expected_s, self._free_at + self._pace * expected_s)
        self._gather(expected_s)

    def finish(self, batch: Batch[RunnerT, ItemT], seconds: float, now: float) -> None:
        """Removes a batch, and expects anew when the batches behind it end."""
        for entry in self.in_flight:
            if entry.batch is batch:
                self._learn(entry, seconds)
        self.in_flight = [entry for entry in self.in_flight if entry.batch is not batch]
        self._free_at = now + self._pace * sum(entry.expected_s for entry in self.in_flight)
        self._gather(self.in_flight[-1].expected_s if self.in_flight else math.inf)

    def _gather(self, last_s: float) -> None:
        self.gather_until = self._free_at - last_s / 2

    def _learn(self, ended: _InFlight[RunnerT, ItemT], seconds: float) -> None:
        """Averages over recent batches. A pause counts at most as much as these batches."""
        kept = 1 - 1 / _RECENT_BATCHES
        self._busy_s = kept * self._busy_s + seconds
        self._idle_s = kept * self._idle_s + min(ended.idle_s, _RECENT_BATCHES * seconds)
        if ended.is_behind:
            pace = min(seconds / max(ended.expected_s, 1e-9), 1.0)
            self._pace += (pace - self._pace) / _PACE_BATCHES

    @property
    def _depth(self) -> float:
        return min((entry.batch.runner.depth for entry in self.in_flight), default=math.inf)


class Scheduler(Generic[RunnerT, ItemT]):
    """The waiting items, the free devices, and which batch goes next.

    Args:
        max_queue_delay_s: How long a batch that is not full may wait for more items, in
            seconds, while a device is free.
        background_share: The part of the devices' time that background batches get
            while others wait, 0 to 1.
        device_count: Devices.
    """

    def __init__(
        self,
        max_queue_delay_s: float = 0.0,
        background_share: float = 0.25,
        device_count: int = 1,
    ) -> None:
        self._max_queue_delay_s = max_queue_delay_s
        self._background_share = background_share
        self._background_credit_s = 0.0
        self._lanes: dict[tuple[RunnerT, int], _Lane[RunnerT, ItemT]] = {}
        self._shares: dict[_Rank, FairShares] = {}
        self._devices = [_Device[RunnerT, ItemT]() for _ in range(device_count)]
        self._is_draining = False
        self._in_streams = 0  # batches

    @property
    def account_count(self) -> int:
        """Callers whose use of the devices is remembered; 0 when nothing waits or runs."""
        return sum(shares.account_count for shares in self._shares.values())

    def add(self, runner: RunnerT, item: ItemT) -> None:
        """Queues an item for a runner."""
        priority = item.urgency.priority
        lane = self._lanes.get((runner, priority))
        if lane is None:
            lane = _Lane(runner, (runner.background, priority))
            self._lanes[runner, priority] = lane
        lane.queue.append(item)
        shares = self._shares.get(lane.rank)
        if shares is None:
            shares = self._shares[lane.rank] = FairShares()
        shares.enter(item.urgency.caller)

    def drop(self, now: float) -> list[tuple[ItemT, Exception | None]]:
        """Drops items that are abandoned or expired. Call it before ``next_batch``.

        Returns:
            These items, and why each is too late; None if it is abandoned.
        """
        dropped: list[tuple[ItemT, Exception | None]] = []
        for key, lane in list(self._lanes.items()):
            min_s, alive = lane.runner.min_s, deque[ItemT]()
            for item in lane.queue:
                error = None
                if not item.abandoned:
                    error = item.expired(now, min_s)
                    if error is None:
                        alive.append(item)
                        continue
                dropped.append((item, error))
                self._shares[lane.rank].leave(item.urgency.caller)
            lane.queue = alive
            if not alive:
                del self._lanes[key]
                self._forget_idle(lane.rank)
        return dropped

    def next_batch(self, now: float) -> Batch[RunnerT, ItemT] | None:
        """Takes the batch that goes next out of its lane, or returns None if none is ready."""
        lane = self._next_lane(now)
        device = None if lane is None else self._device_for(lane)
        self._is_draining = lane is not None and device is None
        if lane is None or device is None:
            return None
        size, padded_size = lane.runner.plan(self._share(lane, device), self._devices[device].busy)
        reason = self._reason(lane.runner, size)
        items, shares, item_s = self._take(lane, size), self._shares[lane.rank], lane.item_s
        charges = [shares.begin(item.urgency.caller, item_s) for item in items]
        batch = Batch(lane.runner, items, padded_size, device, reason, lane.rank, charges)
        self._devices[device].start(batch, now)
        self._in_streams += self._stream_count(batch) > 1
        return batch

    def finish(self, batch: Batch[RunnerT, ItemT], seconds: float, now: float) -> None:
        """Ends a batch.

        Args:
            batch: The batch.
            seconds: For how long it had the device; not while it waited for the batch before it.
            now: The time.
        """
        if (streams := self._stream_count(batch)) > 1:
            seconds /= streams  # of the whole device
            self._in_streams -= 1
        for charge in batch.charges:
            charge.settle(seconds / len(batch.items))
        self._forget_idle(batch.rank)
        self._devices[batch.device].finish(batch, seconds, now)
        # Foreground time earns credit, background time spends it; debt is capped at one batch.
        if batch.runner.background:
            self._background_credit_s = max(self._background_credit_s - seconds, -seconds)
        else:
            earned = seconds * self._background_share / max(1 - self._background_share, 1e-9)
            self._background_credit_s = min(self._background_credit_s + earned, _MAX_CREDIT_S)

    def due_at(self) -> float | None:
        """Returns when a lane for which a device has room becomes ready, if no item is added.

        None if there is no such lane: then only ``add`` or ``finish`` makes a lane ready.
        """
        if self._is_draining:
            return None
        ready_at = [
            self._ready_at(lane, device)
            for lane in self._lanes.values()
            if (device := self._device_for(lane)) is not None
        ]
        return min(ready_at, default=None)

    def clear(self) -> list[ItemT]:
        """Removes all waiting items and returns them."""
        items = [item for lane in self._lanes.values() for item in lane.queue]
        self._lanes.clear()
        return items

    def _next_lane(self, now: float) -> _Lane[RunnerT, ItemT] | None:
        """Chooses the lane that goes next, of the ready lanes for which a device has room.

        It may be a lane for which a device must drain first.
        """
        ready = [lane for lane in self._lanes.values() if self._is_ready(lane, now)]
        background = [lane for lane in ready if lane.runner.background]
        foreground = [lane for lane in ready if not lane.runner.background]
        if foreground and (self._background_credit_s <= 0 or not background):
            candidates = foreground
        else:
            candidates = background
        if not candidates:
            return None
        rank = min(lane.rank for lane in candidates)
        self._set_order(rank)
        equals = (lane for lane in candidates if lane.rank == rank)
        return min(equals, key=lambda lane: min(item.order for item in lane.queue))

    def _set_order(self, rank: _Rank) -> None:
        """Gives the items of a rank their order among callers."""
        queued = []
        for lane in self._lanes.values():
            if lane.rank == rank:
                item_s = lane.item_s
                queued += [(item.queued_at, item, item_s) for item in lane.queue]
        queued.sort(key=itemgetter(0))
        tags = self._shares[rank].start_tags(
            [(item.urgency.caller, item_s) for _, item, item_s in queued]
        )
        for (queued_at, item, _), tag in zip(queued, tags, strict=True):
            item.order = tag, queued_at

    def _is_ready(self, lane: _Lane[RunnerT, ItemT], now: float) -> bool:
        device = self._device_for(lane)
        if device is not None:
            return lane.is_full or self._ready_at(lane, device) <= now
        is_due = lane.is_full or lane.queue[0].queued_at + self._max_queue_delay_s <= now
        depth = lane.runner.depth
        return is_due and any(
            self._devices[device].must_drain(depth) or self._is_taken(lane.runner, device)
            for device in self._devices_of(lane)
        )

    def _ready_at(self, lane: _Lane[RunnerT, ItemT], device: int) -> float:
        """Returns when a batch that is not full may go to a device that has room."""
        due_at = lane.queue[0].queued_at + self._max_queue_delay_s
        return max(due_at, self._devices[device].gather_until)

    def _device_for(self, lane: _Lane[RunnerT, ItemT]) -> int | None:
        """Returns the device with the fewest batches of those with room for the lane's next."""
        depth = lane.runner.depth
        with_room = (
            device
            for device in self._devices_of(lane)
            if self._devices[device].has_room(depth) and not self._is_taken(lane.runner, device)
        )
        return min(with_room, key=lambda device: len(self._devices[device].in_flight), default=None)

    def _devices_of(self, lane: _Lane[RunnerT, ItemT]) -> range:
        """Returns the devices to which the lane's next batch may go."""
        count = min(lane.runner.device_count, len(self._devices))
        if not lane.runner.has_streams:
            return range(count)
        streams = count - 1
        is_idle = not any(device.in_flight for device in self._devices)
        is_whole = streams < 2 or (is_idle and len(lane.queue) < streams)
        return range(1) if is_whole else range(1, count)

    def _is_taken(self, runner: RunnerT, device: int) -> bool:
        """Whether batches in flight on other devices compute with the threads of a device."""
        if device and runner.has_streams:
            return bool(self._devices[0].in_flight)
        return not device and self._in_streams > 0

    def _stream_count(self, batch: Batch[RunnerT, ItemT]) -> int:
        """Returns into how many streams the device of a batch is divided."""
        if batch.device and batch.runner.has_streams:
            return min(batch.runner.device_count, len(self._devices)) - 1
        return 1

    def _share(self, lane: _Lane[RunnerT, ItemT], device: int) -> int:
        """Returns how many of the waiting items are for a device, which may take fewer."""
        waiting = len(lane.queue)
        if lane.runner.has_streams and device:
            streams = min(lane.runner.device_count, len(self._devices)) - 1
            return -(-waiting // streams)
        return waiting

    def _take(self, lane: _Lane[RunnerT, ItemT], count: int) -> list[ItemT]:
        """Takes the items that go first out of a lane."""
        items = heapq.nsmallest(count, lane.queue, key=lambda item: item.order)
        taken = set(items)
        lane.queue = deque(item for item in lane.queue if item not in taken)
        if not lane.queue:
            del self._lanes[lane.runner, lane.rank[1]]
        return items

    def _reason(self, runner: RunnerT, size: int) -> DispatchReason:
        if size == runner.max_batch_size:
            return DispatchReason.FULL
        return DispatchReason.DELAY if self._max_queue_delay_s else DispatchReason.IDLE

    def _forget_idle(self, rank: _Rank) -> None:
        shares = self._shares.get(rank)
        if shares is not None and not shares.caller_count:
            del self._shares[rank]
