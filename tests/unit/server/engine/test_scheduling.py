"""The policy of batching, driven by simulated events: no threads and no waiting."""

import heapq
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest

from gradcam_server.domain.schedule import DispatchReason, Urgency
from gradcam_server.engine.batches import Batch, QueuedItem
from gradcam_server.engine.scheduling import Scheduler
from gradcam_server.errors import DeadlineError, QueueFullError

ONLINE = Urgency()
OFFLINE = Urgency(9, caller="offline")


@dataclass(eq=False)
class Runner:
    """A graph of one batch size, whose batches take so many seconds each.

    Attributes:
        stages: Seconds of the upload, of computing and of the download, each of which takes one
            batch at a time; by default there is one stage.
    """

    max_batch_size: int = 4
    seconds: float = 1.0
    min_s: float = 0.0
    background: bool = False
    device_count: int = 1
    has_streams: bool = False
    depth: int = 1
    stages: tuple[float, ...] = ()
    busy: list[float] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    devices: list[int] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)

    def plan(self, waiting: int, busy: float = 1.0) -> tuple[int, int]:
        self.busy.append(busy)
        return min(waiting, self.max_batch_size), self.max_batch_size

    def expected_s(self, padded_size: int) -> float:
        return self.seconds


@dataclass(eq=False)
class Item(QueuedItem):
    """A number; ``is_abandoned`` may be set while it waits."""

    number: int = 0
    is_abandoned: bool = False

    @property
    def abandoned(self) -> bool:
        return self.is_abandoned


class Simulation:
    """Runs a scheduler by events on a clock of its own.

    Args:
        seconds: How long a batch takes on a device; by default as the runner says.
    """

    def __init__(
        self,
        max_queue_delay_s: float = 0.0,
        device_count: int = 1,
        seconds: Callable[[Runner, int], float] = lambda runner, _: runner.seconds,
    ) -> None:
        self.scheduler = Scheduler[Runner, Item](max_queue_delay_s, device_count=device_count)
        self.now = 0.0
        self.batches: list[Batch[Runner, Item]] = []
        self.starts: list[float] = []
        self.errors: list[Exception] = []
        self._seconds = seconds
        self._free_at: dict[tuple[int, int], float] = {}
        self._ended_at: dict[int, float] = {}
        self.ends: list[float] = []
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()

    def at(self, when: float, event: Callable[[], object]) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), event))

    def add(self, runner: Runner, numbers: Iterable[int], urgency: Urgency = ONLINE) -> list[Item]:
        """Adds items now."""
        items = [Item(urgency, self.now, number) for number in numbers]
        for item in items:
            self.scheduler.add(runner, item)
        return items

    def busy(self, seconds: float = 1.0) -> None:
        """Keeps the first device busy."""
        self.add(Runner(seconds=seconds), [0])
        self.dispatch()

    def run(self, until: float = float("inf")) -> None:
        """Runs until nothing waits or runs, or until a time."""
        self.dispatch()
        while self._events or self.scheduler.due_at() is not None:
            due_at = self.scheduler.due_at()
            following = self._events[0][0] if self._events else float("inf")
            self.now = min(following, following if due_at is None else due_at)
            if self.now > until:
                return
            while self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            self.dispatch()

    def dispatch(self) -> None:
        self._drop()
        while (batch := self.scheduler.next_batch(self.now)) is not None:
            self.batches.append(batch)
            self.starts.append(self.now)
            batch.runner.batches.append([item.number for item in batch.items])
            batch.runner.devices.append(batch.device)
            batch.runner.starts.append(self.now)
            seconds = self._seconds(batch.runner, batch.device)
            ends = self.now
            for stage, stage_s in enumerate(batch.runner.stages or (seconds,)):
                ends = max(ends, self._free_at.get((batch.device, stage), 0.0)) + stage_s
                self._free_at[batch.device, stage] = ends
            self.ends.append(ends)
            began = max(self.now, self._ended_at.get(batch.device, 0.0))
            self._ended_at[batch.device] = ends
            self.at(ends, partial(self.scheduler.finish, batch, ends - began, ends))
            self._drop()

    def _drop(self) -> None:
        dropped = self.scheduler.drop(self.now)
        self.errors += [error for _, error in dropped if error is not None]


def online(caller: str = "", **urgency: Any) -> Urgency:
    return Urgency(caller=caller, **urgency)


def test_waiting_items_form_a_batch_while_the_device_is_busy() -> None:
    """All that wait go together as soon as the device is free."""
    simulation, runner = Simulation(), Runner(4)
    simulation.busy()
    simulation.add(runner, range(6))
    simulation.run()
    assert runner.batches == [[0, 1, 2, 3], [4, 5]]
    assert runner.starts == [1.0, 2.0]
    assert [batch.padded_size for batch in simulation.batches[1:]] == [4, 4]


@pytest.mark.parametrize(
    ("delay_s", "count", "start", "reason"),
    [
        (60.0, 2, 0.0, DispatchReason.FULL),
        (0.1, 1, 0.1, DispatchReason.DELAY),
        (0.0, 1, 0.0, DispatchReason.IDLE),
    ],
)
def test_a_batch_that_is_not_full_waits_for_the_delay(
    delay_s: float, count: int, start: float, reason: DispatchReason
) -> None:
    """A full batch goes at once, and each batch says why it went."""
    simulation, runner = Simulation(delay_s), Runner(2)
    simulation.add(runner, range(count))
    assert simulation.scheduler.due_at() == delay_s
    simulation.run()
    assert runner.starts == [start]
    assert [batch.reason for batch in simulation.batches] == [reason]


def test_an_item_that_comes_within_the_delay_joins_the_batch() -> None:
    """The delay counts from the oldest item."""
    simulation, runner = Simulation(0.3), Runner(4)
    simulation.add(runner, [1])
    simulation.at(0.2, lambda: simulation.add(runner, [2]))
    simulation.run()
    assert runner.batches == [[1, 2]]
    assert runner.starts == [0.3]


def test_an_old_partial_batch_goes_before_a_younger_full_one() -> None:
    """A busy lane cannot starve a quiet lane."""
    simulation, quiet, hot = Simulation(), Runner(8), Runner(2)
    simulation.busy()
    simulation.add(quiet, [0])
    simulation.at(0.5, lambda: simulation.add(hot, range(6)))
    simulation.run()
    assert quiet.starts[0] < hot.starts[0]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_background_batches_get_their_share_and_no_more(share: float) -> None:
    """With both kinds always waiting, background batches get their part of the time."""
    simulation = Simulation()
    simulation.scheduler = Scheduler(background_share=share)
    front, back = Runner(1, 0.01), Runner(1, 0.01, background=True)
    simulation.busy(0.01)
    simulation.add(back, range(150))
    simulation.add(front, range(150))
    simulation.run(until=1.4)
    assert len(back.batches) / len(front.batches + back.batches) == pytest.approx(share, abs=0.07)
    simulation.run()
    assert len(back.batches) == len(front.batches) == 150


def test_the_urgent_wait_for_one_batch_at_most() -> None:
    """Less urgent items go when nothing more urgent waits, and never in its batches."""
    simulation, runner = Simulation(), Runner(2)
    simulation.busy()
    simulation.add(runner, range(4), OFFLINE)
    simulation.add(runner, range(10, 13))
    simulation.run()
    assert runner.batches == [[10, 11], [12], [0, 1], [2, 3]]


def test_an_urgent_caller_goes_first_whatever_it_has_used() -> None:
    """Shares are among items of one priority."""
    simulation, runner = Simulation(), Runner(2)
    simulation.busy()
    simulation.add(runner, range(4), OFFLINE)
    simulation.add(runner, range(10, 16), online("online"))
    simulation.run()
    assert runner.batches == [[10, 11], [12, 13], [14, 15], [0, 1], [2, 3]]


def test_expired_items_take_no_device_time() -> None:
    """A deadline that cannot be met, and a wait that is too long, each have their error."""
    simulation, runner = Simulation(), Runner(4, min_s=0.2)
    simulation.busy(0.5)
    simulation.add(runner, [1], online(deadline=0.65))
    simulation.add(runner, [2], online(start_by=0.4))
    simulation.add(runner, [3], online(deadline=0.7, start_by=0.5))
    simulation.run()
    late, tired = simulation.errors
    assert isinstance(late, DeadlineError)
    assert isinstance(tired, QueueFullError)
    assert "cannot be met: after 500 ms in the queue 150 ms were left" in str(late)
    assert "still waiting after 500 ms in the queue" in str(tired)
    assert runner.batches == [[3]]


def test_abandoned_items_leave_room_for_others() -> None:
    """They are dropped when the batch is formed."""
    simulation, runner = Simulation(), Runner(8)
    simulation.busy()
    for item in simulation.add(runner, range(6))[::2]:
        item.is_abandoned = True
    simulation.add(runner, [10, 11, 12])
    simulation.run()
    assert runner.batches == [[1, 3, 5, 10, 11, 12]]
    assert not simulation.errors


def test_a_batch_goes_to_the_device_that_is_free_first() -> None:
    """All devices work at once, and a quick device takes more."""
    simulation = Simulation(device_count=3, seconds=lambda _, device: 10.0 if device else 1.0)
    runner = Runner(1, device_count=3)
    simulation.add(runner, range(60))
    simulation.run()
    assert [runner.devices.count(device) for device in range(3)] == [50, 5, 5]
    assert runner.starts[:3] == [0.0] * 3


@pytest.mark.parametrize("delay_s", [0.0, 0.5])
def test_a_graph_runs_on_its_own_devices_only(delay_s: float) -> None:
    """A graph that is compiled for the first device waits for it and leaves the second free."""
    simulation = Simulation(delay_s, device_count=2)
    single, both = Runner(1), Runner(1, device_count=2)
    simulation.add(single, range(10))
    simulation.add(both, range(40))
    simulation.run()
    assert set(single.devices) == {0}
    assert set(both.devices) == {0, 1}


def test_streams_share_the_waiting_items() -> None:
    """Both streams work at once, on half of the items each, and the whole device is left alone."""
    simulation, runner = Simulation(device_count=3), Runner(8, device_count=3, has_streams=True)
    simulation.add(runner, range(6))
    simulation.run()
    assert runner.batches == [[0, 1, 2], [3, 4], [5]]
    assert runner.devices[:2] == [1, 2]


def test_one_item_alone_gets_the_whole_device() -> None:
    """Items that come meanwhile wait for its end: the same threads would compute for both."""
    simulation, runner = Simulation(device_count=3), Runner(8, device_count=3, has_streams=True)
    simulation.add(runner, [0])
    simulation.at(0.5, lambda: simulation.add(runner, [1]))
    simulation.at(5.0, lambda: simulation.add(runner, [2]))
    simulation.at(5.5, lambda: simulation.add(runner, [3, 4, 5]))
    simulation.run()
    assert runner.devices[:5] == [0, 0, 0, 1, 2]
    assert runner.starts[:5] == [0.0, 1.0, 5.0, 6.0, 6.0]


def test_near_saturation_a_stream_takes_all_that_wait_unless_another_is_free() -> None:
    """Larger batches cost less for each item, and the load hardly allows for more."""
    simulation, runner = Simulation(device_count=3), Runner(4, device_count=3, has_streams=True)
    simulation.add(runner, range(200))
    simulation.run()
    for when, numbers in ((1000.0, [0]), (1000.1, [1, 2]), (1000.2, [3, 4]), (2000.0, [5, 6])):
        simulation.at(when, partial(simulation.add, runner, numbers))
    simulation.run()
    assert runner.batches[-5:] == [[0], [1, 2], [3, 4], [5], [6]]


def test_one_user_soon_has_the_whole_device_after_a_load() -> None:
    """Items that come one after the other meet no others: four of them, and it is his again."""
    simulation, runner = Simulation(device_count=3), Runner(1, device_count=3, has_streams=True)
    simulation.add(runner, range(400))
    simulation.run()
    for number in range(20):
        simulation.at(1000.0 + 1.1 * number, lambda: simulation.add(runner, [0]))
    simulation.run()
    assert set(runner.devices[2:400]) == {1, 2}
    assert set(runner.devices[404:]) == {0}


@pytest.mark.parametrize(("load", "least", "most"), [(0.5, 0.6, 0.8), (0.95, 0.0, 0.05)])
def test_near_saturation_items_that_are_alone_go_to_streams(
    load: float, least: float, most: float
) -> None:
    """At half of the streams' rate most items have the whole device; near all of it hardly any."""
    simulation = Simulation(
        device_count=3, seconds=lambda runner, device: runner.seconds if device else 0.6
    )
    runner, chance, now = Runner(1, device_count=3, has_streams=True), random.Random(1), 0.0
    for number in range(2000):
        now += chance.expovariate(2 * load)
        simulation.at(now, partial(simulation.add, runner, [number]))
    simulation.run()
    assert least <= runner.devices[200:].count(0) / 1800 <= most


@pytest.mark.parametrize(
    "other",
    [Runner(1), Runner(1, 0.2), Runner(4, 3.0), Runner(2, device_count=4, has_streams=True)],
    ids=["equal", "short", "long", "more streams"],
)
def test_the_whole_device_and_its_streams_take_turns(other: Runner) -> None:
    """No two batches compute with the same threads, and no graph waits for all of another."""
    other = replace(other, batches=[], devices=[], starts=[])
    simulation = Simulation(device_count=4)
    streams = Runner(2, device_count=3, has_streams=True)
    for number in range(40):
        simulation.add(streams, [number], online("a"))
        simulation.add(other, [number], online("b"))
    simulation.run()
    spans = [
        (start, start + batch.runner.seconds, batch.device)
        for batch, start in zip(simulation.batches, simulation.starts, strict=True)
    ]
    for start, end, device in spans:
        beside = {where for began, ended, where in spans if began < end and ended > start}
        assert 0 not in beside or beside == {device}
    for runner in (streams, other):
        assert sorted(itertools.chain(*runner.batches)) == [*range(40)]
        assert runner.starts[0] <= max(streams.seconds, other.seconds)


def test_callers_in_streams_and_on_the_whole_device_get_equal_device_time() -> None:
    """A second of one of two streams is half a second of the device."""
    simulation = Simulation(device_count=3)
    streams, single = Runner(1, 1.0, device_count=3, has_streams=True), Runner(1, 1.0)
    simulation.add(streams, range(200), online("streams"))
    simulation.add(single, range(100), online("whole"))
    simulation.run(until=40.0)
    assert len(streams.batches) == pytest.approx(2 * len(single.batches), rel=0.2)


def test_background_batches_get_their_share_beside_streams() -> None:
    """A quarter of the device's time, though each second of both streams is two seconds of work."""
    simulation = Simulation(device_count=3)
    streams = Runner(1, 0.1, device_count=3, has_streams=True)
    background = Runner(1, 0.1, background=True)
    simulation.add(streams, range(300))
    simulation.add(background, range(200))
    simulation.run(until=16.0)
    assert len(background.batches) * 0.1 == pytest.approx(4.0, rel=0.2)


def test_a_graph_with_more_streams_than_devices_runs_on_the_whole_device() -> None:
    """A graph may be compiled for streams after the scheduler was made for one device."""
    simulation, runner = Simulation(), Runner(2, device_count=3, has_streams=True)
    simulation.add(runner, range(9))
    simulation.run()
    assert set(runner.devices) == {0}


@pytest.mark.parametrize("has_lane_of_its_own", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_one_item_goes_before_the_thousand_of_another_caller(
    has_lane_of_its_own: bool, background: bool
) -> None:
    """However much a caller has waiting, another's item is in the batch after the running one.

    That holds in the same graph and in another, of one pass and of many.
    """
    simulation, runner = Simulation(), Runner(4, background=background)
    other = Runner(4, background=background) if has_lane_of_its_own else runner
    simulation.add(runner, range(1000), online("many"))
    simulation.at(0.5, lambda: simulation.add(other, [5000], online("one")))
    simulation.run()
    number = next(n for n, batch in enumerate(simulation.batches) if 5000 in _numbers(batch))
    assert number <= 2
    if not has_lane_of_its_own:
        assert set(runner.batches[1][:2]) == {5000, 4}
        assert len(runner.batches[1]) == 4


@pytest.mark.parametrize("floods", [1, 3])
def test_batches_are_full_and_of_all_callers(floods: int) -> None:
    """Callers that flood and a caller that has a few items have equal parts of each batch."""
    simulation, runner = Simulation(), Runner(8)
    simulation.busy()
    for number in range(floods):
        simulation.add(runner, range(1000, 1100), online(f"flood {number}"))
    part = 8 // (floods + 1)
    simulation.add(runner, range(4 * part), online("modest"))
    simulation.run()
    for batch in runner.batches[:4]:
        assert len(batch) == 8
        assert sum(number < 1000 for number in batch) == part
    modest = [number for batch in runner.batches for number in batch if number < 1000]
    assert modest == [*range(4 * part)]


@pytest.mark.parametrize("seconds", [1.0, 0.2, 0.05])
def test_callers_of_dear_and_cheap_graphs_get_equal_device_time(seconds: float) -> None:
    """Shares are of seconds: a graph that takes longer runs less often."""
    simulation, dear, cheap = Simulation(), Runner(1, 1.0), Runner(1, seconds)
    simulation.add(dear, range(100), online("dear"))
    simulation.add(cheap, range(1000), online("cheap"))
    simulation.run(until=30.0)
    assert len(dear.batches) * 1.0 == pytest.approx(len(cheap.batches) * seconds, abs=2.0)


def test_no_lane_of_a_caller_is_starved_by_its_other_lane() -> None:
    """An old item goes, though its caller's younger items ride in the batches of another."""
    simulation, shared, own = Simulation(), Runner(2), Runner(2)
    simulation.busy()
    simulation.add(own, [1], online("a"))
    simulation.at(0.5, lambda: simulation.add(shared, range(100), online("b")))
    simulation.at(0.5, lambda: simulation.add(shared, range(100), online("a")))
    simulation.run()
    assert own.starts[0] <= 4


def test_cleared_items_are_returned() -> None:
    """Nothing is left to run."""
    simulation, runner = Simulation(60.0), Runner()
    items = simulation.add(runner, range(3))
    assert simulation.scheduler.clear() == items
    assert simulation.scheduler.next_batch(100.0) is None


@pytest.mark.parametrize("seed", range(10))
def test_any_traffic_is_served(seed: int) -> None:
    """Each item goes once or is dropped, depths are respected, and no caller is remembered.

    The traffic is of graphs of all kinds, many callers, deadlines and abandoned items.
    """
    chance = random.Random(seed)
    simulation = Simulation(chance.choice([0.0, 0.02]), device_count=3)
    runners = [
        Runner(
            chance.choice([1, 2, 8]),
            chance.uniform(0.005, 0.1),
            background=chance.random() < 0.3,
            device_count=chance.choice([1, 3]),
            has_streams=chance.random() < 0.5,
            depth=chance.choice([1, 2, 3]) if seed % 2 else 1,
        )
        for _ in range(4)
    ]
    items: list[Item] = []

    def arrive(number: int) -> None:
        urgency = Urgency(
            chance.choice([1, 1, 9]),
            deadline=simulation.now + 1 if chance.random() < 0.3 else None,
            start_by=simulation.now + 0.5 if chance.random() < 0.3 else None,
            caller=f"{chance.randrange(50)}",
        )
        items.extend(simulation.add(chance.choice(runners), [number], urgency))
        if chance.random() < 0.2:
            chance.choice(items).is_abandoned = True

    for number in range(1000):
        simulation.at(chance.uniform(0, 5), partial(arrive, number))
    simulation.run()
    ran = [number for batch in simulation.batches for number in _numbers(batch)]
    assert len(set(ran)) == len(ran)
    abandoned = {item.number for item in items if item.is_abandoned}
    lost = {item.number for item in items} - {*ran} - abandoned
    assert len(lost) <= len(simulation.errors) <= len(lost) + len(abandoned)
    for batch in simulation.batches:
        assert 1 <= len(batch.items) <= batch.padded_size
    assert most_in_flight(simulation) <= 0
    assert simulation.scheduler.account_count == 0


def most_in_flight(simulation: Simulation) -> int:
    """Returns by how many batches the depth of a batch in flight was exceeded at most."""
    excess = -10
    runs = list(zip(simulation.batches, simulation.starts, simulation.ends, strict=True))
    for number, (batch, start, _) in enumerate(runs):
        depths = [
            other.runner.depth
            for other, _, end in runs[: number + 1]
            if other.device == batch.device and end > start
        ]
        excess = max(excess, len(depths) - min(depths))
    return excess


@pytest.mark.parametrize(
    ("stages", "depth"),
    [
        ((0.3, 1.0, 0.2), 2),
        ((0.5, 1.0, 0.5), 2),
        ((1.0, 0.2, 0.1), 2),
        ((0.1, 0.4, 1.0), 2),
        ((1.0, 1.0, 1.0), 3),
        ((0.9, 1.0, 0.8), 3),
    ],
)
def test_a_device_never_idles(stages: tuple[float, ...], depth: int) -> None:
    """While batches wait, they take the time of the slowest stage alone."""
    simulation, runner = Simulation(), Runner(4, sum(stages), depth=depth, stages=stages)
    simulation.add(runner, range(4 * 100))
    simulation.run()
    assert all(len(batch) == 4 for batch in runner.batches)
    assert max(stages) * 100 / simulation.now >= 0.97
    assert most_in_flight(simulation) == 0


def test_a_runner_of_depth_1_has_the_device_alone() -> None:
    """Its stages do not overlap."""
    stages = (0.3, 1.0, 0.2)
    simulation, runner = Simulation(), Runner(4, sum(stages), stages=stages)
    simulation.add(runner, range(40))
    simulation.run()
    assert runner.starts == pytest.approx([1.5 * number for number in range(10)])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_an_item_alone_goes_at_once_whatever_the_depth(depth: int) -> None:
    """Its answer takes as long as its stages."""
    stages = (0.3, 1.0, 0.2)
    simulation, runner = Simulation(), Runner(4, 1.5, depth=depth, stages=stages)
    for number in range(5):
        simulation.at(2.0 * number, partial(simulation.add, runner, [number]))
    simulation.run()
    assert runner.starts == [2.0 * number for number in range(5)]
    assert simulation.ends == pytest.approx([2.0 * number + 1.5 for number in range(5)])


def test_items_gather_behind_a_batch_until_half_of_it_is_left() -> None:
    """They go in one batch, which is there when the device is free; full batches do not wait."""
    simulation, runner = Simulation(), Runner(4, 1.0, depth=3)
    simulation.add(runner, [0])
    for number in (1, 2):
        simulation.at(number * 0.2, partial(simulation.add, runner, [number]))
    simulation.at(0.7, lambda: simulation.add(runner, range(3, 7)))
    simulation.at(0.8, lambda: simulation.add(runner, [7]))
    simulation.run()
    assert runner.batches == [[0], [1, 2], [3, 4, 5, 6], [7]]
    # The fourth has to wait until the first of three has ended, and for half of the third.
    assert runner.starts == pytest.approx([0.0, 0.5, 0.7, 2.5])


def test_items_do_not_gather_for_a_batch_that_has_ended_early() -> None:
    """However wrong the expectation is, a device that is free takes what waits."""
    simulation = Simulation(seconds=lambda *_: 0.1)
    runner = Runner(4, 10.0, depth=2)
    for number in range(3):
        simulation.at(0.05 * number, partial(simulation.add, runner, [number]))
    simulation.run()
    assert runner.batches == [[0], [1, 2]]
    assert runner.starts == pytest.approx([0.0, 0.1])


def test_gathering_follows_the_batches_that_end() -> None:
    """When a batch ends late, what is behind it is expected to end later, too."""
    simulation = Simulation(seconds=lambda *_: 5.0)
    runner = Runner(2, 1.0, depth=2)
    simulation.add(runner, range(5))
    simulation.run()
    assert runner.batches == [[0, 1], [2, 3], [4]]
    assert runner.starts == pytest.approx([0.0, 0.0, 5.5])


@pytest.mark.parametrize("stages", [(0.25, 0.6, 0.15), (0.5, 0.4, 0.1), (0.1, 0.8, 0.1)])
def test_items_gather_until_the_device_needs_them_and_no_longer(
    stages: tuple[float, float, float],
) -> None:
    """The time that overlap saves is learnt: a batch is there when the device is free for it."""
    simulation, runner = Simulation(), Runner(100, 1.0, depth=3, stages=stages)
    for number in range(4000):
        simulation.at(number * 0.01, partial(simulation.add, runner, [number]))
    simulation.run()
    slowest = max(stages)
    later = list(itertools.pairwise(runner.starts))[20:-2]
    periods = [after - before for before, after in later]
    assert sum(periods) / len(periods) <= slowest * 1.1


def _plans(gap_s: float, count: int) -> list[float]:
    """Returns how busy the device is said to be, when one image comes in every gap."""
    simulation, runner = Simulation(), Runner(1, 1.0)
    for number in range(count):
        simulation.at(number * gap_s, partial(simulation.add, runner, [number]))
    simulation.run()
    return runner.busy


@pytest.mark.parametrize(("gap_s", "busy"), [(1.0, 1.0), (1.25, 0.8), (2.0, 0.5), (10.0, 0.1)])
def test_the_runner_is_told_how_busy_the_device_is(gap_s: float, busy: float) -> None:
    """It is the part of the recent time in which the device had a batch."""
    assert _plans(gap_s, 300)[-1] == pytest.approx(busy, abs=0.02)


def test_a_long_pause_is_soon_forgotten() -> None:
    """After an idle hour the load of the last batches counts."""
    simulation, runner = Simulation(), Runner(1, 1.0)
    simulation.add(runner, [0])
    simulation.at(3600.0, lambda: simulation.add(runner, range(1, 200)))
    simulation.run()
    assert runner.busy[2] < 0.25
    assert runner.busy[-1] > 0.9


def test_the_queue_delay_holds_behind_a_batch_too() -> None:
    """A batch that is not full waits for the longer of both."""
    simulation, runner = Simulation(0.8), Runner(4, 1.0, depth=2)
    simulation.add(runner, range(4))
    simulation.at(0.1, lambda: simulation.add(runner, [4]))
    simulation.run()
    assert runner.starts == pytest.approx([0.0, 0.9])


@pytest.mark.parametrize("depth", [2, 4])
@pytest.mark.parametrize("device_count", [1, 2])
def test_a_shallow_runner_is_not_starved_by_a_deep_one(depth: int, device_count: int) -> None:
    """Its batch has the device alone, after those that were in flight when its turn came."""
    simulation = Simulation(device_count=device_count)
    deep = Runner(4, 1.0, depth=depth, device_count=device_count)
    shallow = Runner(4, 1.0)
    simulation.add(deep, range(1000), online("many"))
    simulation.at(5.5, lambda: simulation.add(shallow, [0], online("one")))
    simulation.run()
    assert shallow.starts[0] <= 5.5 + depth + 1
    assert most_in_flight(simulation) == 0


def test_items_that_expire_behind_batches_in_flight_take_no_device_time() -> None:
    """A deadline counts until the device has room."""
    simulation, runner = Simulation(), Runner(1, 1.0, min_s=0.2, depth=2)
    simulation.add(runner, [0, 1])
    simulation.add(runner, [2], online(deadline=0.9))
    simulation.add(runner, [3], online(start_by=1.0))
    simulation.run()
    assert [type(error) for error in simulation.errors] == [DeadlineError]
    assert runner.batches == [[0], [1], [3]]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_callers_have_equal_time_whatever_the_depth(depth: int) -> None:
    """The time of a device counts once, though several batches are in flight on it."""
    simulation = Simulation()
    dear, cheap = Runner(1, 1.0, depth=depth), Runner(1, 0.2, depth=depth)
    simulation.add(dear, range(100), online("dear"))
    simulation.add(cheap, range(1000), online("cheap"))
    simulation.run(until=60.0)
    assert len(dear.batches) * 1.0 == pytest.approx(len(cheap.batches) * 0.2, abs=1.0 + depth)


def _numbers(batch: Batch[Runner, Item]) -> list[int]:
    return [item.number for item in batch.items]


def test_load_is_believed_soon_after_a_long_pause() -> None:
    """A quiet night does not make a device seem idle for minutes: larger batches start at once."""
    simulation, runner = Simulation(), Runner(max_batch_size=1)
    simulation.add(runner, range(64))
    simulation.run()
    simulation.now += 36_000
    simulation.add(runner, range(40))
    simulation.run()
    assert runner.busy[64 + 1] > 0.65
    assert min(runner.busy[64 + 16 :]) > 0.7
