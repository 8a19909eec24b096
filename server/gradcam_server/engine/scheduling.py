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
else runs: the whole device is soonest done with those. Near saturation, when nearly every item
comes while others wait or run, throughput decides how long all wait: an item that happens to be
alone goes to a stream, too, as the threads of the whole device wait for each other; and a stream
plans with all that wait, not with its part of them, as larger batches cost less for each item,
unless other streams have nothing to do. The whole device and its streams take turns, whatever
graphs they run, as both compute with the same cores: side by side they answer fewer images than the
streams alone. The most urgent lane waits until the others have ended, and meanwhile no other batch
goes.
"""

import heapq
from collections import deque
from operator import itemgetter
from typing import Generic

from gradcam_server.domain.fair_shares import FairShares
from gradcam_server.domain.schedule import DispatchReason
from gradcam_server.engine.batches import Batch, ItemT, Rank, RunnerT
from gradcam_server.engine.device_account import DeviceAccount

_MAX_CREDIT_S = 0.5
# Near saturation more of the recent items than this meet others. Items that come one after the
# other, as one user's, meet none. With random arrivals it is reached when two streams are busy for
# about 0.8 of the time.
_RECENT_ITEMS, _MAX_MET = 32, 0.9
# The device time that an item is expected to take if its runner was never timed.
_MIN_ITEM_S = 1e-3


class _Lane(Generic[RunnerT, ItemT]):
    """The waiting items of one runner and priority, oldest first.

    Attributes:
        rank: Callers have fair shares among lanes of one rank; the smallest is the most urgent.
    """

    __slots__ = ("queue", "rank", "runner")

    def __init__(self, runner: RunnerT, rank: Rank) -> None:
        self.runner, self.rank = runner, rank
        self.queue: deque[ItemT] = deque()

    @property
    def is_full(self) -> bool:
        return len(self.queue) >= self.runner.max_batch_size

    @property
    def item_s(self) -> float:
        """Seconds of a device that an item is expected to take."""
        return max(self.runner.min_s, _MIN_ITEM_S)


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
        self._shares: dict[Rank, FairShares] = {}
        self._devices = [DeviceAccount[RunnerT, ItemT]() for _ in range(device_count)]
        self._is_draining = False
        self._in_streams = 0  # batches
        self._met = 0.0  # the part of the recent items that came while others waited or ran

    @property
    def account_count(self) -> int:
        """Callers whose use of the devices is remembered; 0 when nothing waits or runs."""
        return sum(shares.account_count for shares in self._shares.values())

    def add(self, runner: RunnerT, item: ItemT) -> None:
        """Queues an item for a runner."""
        meets = bool(self._lanes) or self._is_running
        self._met += (meets - self._met) / _RECENT_ITEMS
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

    def _set_order(self, rank: Rank) -> None:
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
        is_alone = len(lane.queue) < streams and not self._is_running
        is_whole = streams < 2 or (is_alone and not self._is_near_saturation)
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

    @property
    def _is_running(self) -> bool:
        return any(device.in_flight for device in self._devices)

    @property
    def _is_near_saturation(self) -> bool:
        return self._met > _MAX_MET

    def _share(self, lane: _Lane[RunnerT, ItemT], device: int) -> int:
        """Returns how many of the waiting items are for a device, which may take fewer."""
        waiting = len(lane.queue)
        if lane.runner.has_streams and device:
            streams = self._devices[1 : lane.runner.device_count]
            free = max(sum(not stream.in_flight for stream in streams), 1)
            return -(-waiting // (free if self._is_near_saturation else len(streams)))
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

    def _forget_idle(self, rank: Rank) -> None:
        shares = self._shares.get(rank)
        if shares is not None and not shares.caller_count:
            del self._shares[rank]
