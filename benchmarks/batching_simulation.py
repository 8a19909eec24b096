"""A simulated device under simulated traffic, and the policies of batching that may drive it.

Time is simulated: no thread, no clock. The policy of the server is its own ``Scheduler``; the other
policies are written here in a few lines each.
"""

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from gradcam_server.domain.batch_sizes import plan_batch
from gradcam_server.domain.schedule import Urgency
from gradcam_server.engine.batches import Batch, QueuedItem
from gradcam_server.engine.scheduling import Scheduler

_ONLINE = Urgency()


@dataclass(frozen=True, eq=False)
class Device:
    """A device, and a graph that runs on it.

    Attributes:
        name: Its name in the report.
        graph_s: Seconds that the graph takes for a batch of each size, as the server measures it.
        stages: The parts of that time for upload, computing and download. Each stage takes one
            batch at a time.
        depth: How many batches may be in flight.
        overhead_s: Seconds that a batch takes beside the graph.
    """

    name: str
    graph_s: Mapping[int, float]
    stages: tuple[float, float, float] = (0.0, 1.0, 0.0)
    depth: int = 1
    overhead_s: float = 2e-4

    @property
    def device_count(self) -> int:
        """One; as ``Runner``."""
        return 1

    @property
    def background(self) -> bool:
        """No; as ``Runner``."""
        return False

    @property
    def has_streams(self) -> bool:
        """No; as ``Runner``."""
        return False

    @cached_property
    def cost_s(self) -> Mapping[int, float]:
        """Seconds that a batch of each size takes alone."""
        return {size: seconds + self.overhead_s for size, seconds in self.graph_s.items()}

    @property
    def max_batch_size(self) -> int:
        """The largest batch size."""
        return max(self.cost_s)

    @property
    def min_s(self) -> float:
        """Seconds of the quickest batch."""
        return min(self.graph_s.values())

    @property
    def max_per_s(self) -> float:
        """The most images in a second, in batches of the best size."""
        return self.rate(self.max_batch_size)

    def rate(self, waiting: int) -> float:
        """Returns the most images in a second if at most so many are there at a time."""
        part = max(self.stages) if self.depth > 1 else 1.0
        return max(min(waiting, size) / (part * cost_s) for size, cost_s in self.cost_s.items())

    def plan(self, waiting: int, busy: float = 1.0) -> tuple[int, int]:
        """Returns how many of the waiting images the server takes, and the padded size."""
        return plan_batch(waiting, self.graph_s, busy)

    def expected_s(self, padded_size: int) -> float:
        """Returns the seconds of a batch alone."""
        return self.graph_s[padded_size]

    def padded(self, count: int) -> int:
        """Returns the smallest batch size for a number of images."""
        return min(size for size in self.cost_s if size >= count)


class Policy(Protocol):
    """What decides which images go next."""

    def add(self, number: int, now: float) -> None:
        """Queues an image."""
        ...

    def next_batch(self, now: float) -> tuple[Sequence[int], int] | None:
        """Takes the images that go now, and the padded size; None if no batch goes."""
        ...

    def finish(self, seconds: float, now: float) -> None:
        """Ends the oldest batch in flight, which had the device for so many seconds."""
        ...

    def due_at(self) -> float | None:
        """Returns when a batch may go although nothing was added and nothing has ended."""
        ...


@dataclass(slots=True, eq=False)
class _Image(QueuedItem):
    number: int = 0


class Server:
    """The policy of the server.

    Args:
        device: The device.
        max_queue_delay_s: As the flag of the server.
    """

    def __init__(self, device: Device, max_queue_delay_s: float = 0.0) -> None:
        self._device = device
        self._scheduler = Scheduler[Device, _Image](max_queue_delay_s)
        self._in_flight = deque[Batch[Device, _Image]]()

    def add(self, number: int, now: float) -> None:
        self._scheduler.add(self._device, _Image(_ONLINE, now, number))

    def next_batch(self, now: float) -> tuple[Sequence[int], int] | None:
        batch = self._scheduler.next_batch(now)
        if batch is None:
            return None
        self._in_flight.append(batch)
        return [image.number for image in batch.items], batch.padded_size

    def finish(self, seconds: float, now: float) -> None:
        self._scheduler.finish(self._in_flight.popleft(), seconds, now)

    def due_at(self) -> float | None:
        return self._scheduler.due_at()


class _Queue:
    """A first-in, first-out queue for a device; the base of the other policies."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._waiting = deque[tuple[int, float]]()
        self._in_flight = 0
        self._free_at = -math.inf

    def add(self, number: int, now: float) -> None:
        self._waiting.append((number, now))

    def next_batch(self, now: float) -> tuple[Sequence[int], int] | None:
        count = self._count(now) if self._waiting and self._has_room else 0
        if not count:
            return None
        self._in_flight += 1
        return [self._waiting.popleft()[0] for _ in range(count)], self._device.padded(count)

    def finish(self, seconds: float, now: float) -> None:  # noqa: ARG002 - part of the protocol
        self._in_flight -= 1
        self._free_at = now

    def due_at(self) -> float | None:
        return None

    @property
    def _has_room(self) -> bool:
        return self._in_flight < self._device.depth

    def _count(self, now: float) -> int:
        """Returns how many of the waiting images go now."""
        raise NotImplementedError


class Singles(_Queue):
    """One image at a time."""

    def _count(self, now: float) -> int:  # noqa: ARG002
        return 1


class Greedy(_Queue):
    """All that wait go at once, padded to the next batch size."""

    def _count(self, now: float) -> int:  # noqa: ARG002
        return min(len(self._waiting), self._device.max_batch_size)


class FixedDelay(_Queue):
    """A batch goes when it has the preferred size or has waited for the delay.

    Args:
        device: The device.
        delay_s: The delay.
        since_free: Whether the delay counts from the time at which the device is free
            (LitServe's ``batch_timeout``, of a worker that collects its next batch), or from the
            arrival of the oldest image (Triton's ``max_queue_delay_microseconds``).
    """

    def __init__(self, device: Device, delay_s: float, *, since_free: bool = False) -> None:
        super().__init__(device)
        self._delay_s, self._since_free = delay_s, since_free

    def due_at(self) -> float | None:
        return self._due_at if self._waiting and self._has_room else None

    @property
    def _due_at(self) -> float:
        since = self._waiting[0][1]
        return max(since, self._free_at if self._since_free else since) + self._delay_s

    def _count(self, now: float) -> int:
        waiting, size = len(self._waiting), self._device.max_batch_size
        return min(waiting, size) if waiting >= size or self._due_at <= now else 0


@dataclass(frozen=True)
class Run:
    """What a policy made of some traffic.

    Attributes:
        latencies_s: The latency of each image, in the order of arrival.
        per_s: Images in a second.
        mean_batch: The mean number of images in a batch.
    """

    latencies_s: Sequence[float]
    per_s: float
    mean_batch: float


def replay(policy: Policy, device: Device, arrivals: Sequence[float]) -> Run:
    """Runs open-loop traffic: images arrive at given times, whatever happens to others.

    Args:
        policy: The policy.
        device: The device.
        arrivals: The times, ascending, in seconds.
    """
    return _simulate(policy, device, arrivals, lambda: False)


def closed_loop(policy: Policy, device: Device, users: int, images: int) -> Run:
    """Runs users who send their next image as soon as they have the answer to the last.

    The images of the first and the last round, when not all users wait, do not count.
    """
    left = itertools.count(images - users, -1)
    run = _simulate(policy, device, [0.0] * users, lambda: next(left) > 0)
    return replace(run, latencies_s=run.latencies_s[users:-users])


def _simulate(
    policy: Policy, device: Device, arrivals: Sequence[float], answered: Callable[[], bool]
) -> Run:
    """Runs a device until every image is answered.

    Args:
        policy: The policy.
        device: The device.
        arrivals: The times of images.
        answered: Called after each answer; returns whether another image arrives at once.
    """
    events: list[tuple[float, int, Sequence[int], float]] = []  # the ends of batches
    arrived, latencies = list(arrivals), [0.0] * len(arrivals)
    coming, free_at, ended_at, sizes = 0, [0.0, 0.0, 0.0], 0.0, list[int]()
    while True:
        due_at = policy.due_at()
        now = min(
            arrived[coming] if coming < len(arrived) else math.inf,
            events[0][0] if events else math.inf,
            math.inf if due_at is None else due_at,
        )
        if now == math.inf:
            break
        while coming < len(arrived) and arrived[coming] <= now:
            policy.add(coming, now)
            coming += 1
        while events and events[0][0] <= now:
            _, _, numbers, seconds = heapq.heappop(events)
            policy.finish(seconds, now)
            for number in numbers:
                latencies[number] = now - arrived[number]
                if answered():
                    policy.add(len(arrived), now)
                    arrived.append(now)
                    latencies.append(0.0)
                    coming += 1
        while (taken := policy.next_batch(now)) is not None:
            numbers, padded_size = taken
            ends = now
            for stage, part in enumerate(device.stages):
                ends = max(ends, free_at[stage]) + part * device.cost_s[padded_size]
                free_at[stage] = ends
            heapq.heappush(events, (ends, len(sizes), numbers, ends - max(now, ended_at)))
            ended_at = ends
            sizes.append(len(numbers))
    per_s = len(arrived) / (ended_at - arrived[0])
    return Run(latencies, per_s, len(arrived) / len(sizes))
