"""Running batches on threads, with runners that need no TensorFlow."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import pytest

from gradcam_server.domain.schedule import Answer, BatchReport, DispatchReason, Urgency
from gradcam_server.engine.batcher import Batcher, Job
from gradcam_server.errors import DeadlineError, QueueFullError
from gradcam_server.pipeline.admission import Admission


class Doubler:
    """Doubles numbers; waits for ``gate`` before each batch, and keeps a record."""

    def __init__(
        self,
        max_batch_size: int = 4,
        *,
        open_gate: bool = True,
        device_count: int = 1,
    ) -> None:
        self.depth = 1
        self.max_batch_size = max_batch_size
        self.min_s = 0.0
        self.background = self.has_streams = False
        self.device_count = device_count
        self.batches: list[list[int]] = []
        self.learnt: list[tuple[int, int]] = []
        self.started = threading.Event()
        self.gate = threading.Event()
        if open_gate:
            self.gate.set()

    def plan(self, waiting: int, busy: float = 1.0) -> tuple[int, int]:
        return min(waiting, self.max_batch_size), self.max_batch_size

    def expected_s(self, padded_size: int) -> float:
        return 0.0

    def ran(self, padded_size: int, device: int, seconds: float) -> None:
        assert seconds > 0
        self.learnt.append((padded_size, device))

    def dispatch(
        self, items: Sequence[int], padded_size: int, device: int = 0
    ) -> Callable[[], list[int]]:
        return partial(self.run, items, padded_size, device)

    def run(self, items: Sequence[int], padded_size: int, device: int = 0) -> list[int]:
        self.started.set()
        assert self.gate.wait(10)
        self.batches.append(list(items))
        return [2 * item for item in items]


Make = Callable[..., Batcher[int, int]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes batchers and closes them."""
    made = []

    def make(max_queue_delay_s: float = 0.0, device_count: int = 1) -> Batcher[int, int]:
        made.append(Batcher[int, int](max_queue_delay_s, device_count=device_count))
        return made[-1]

    yield make
    for batcher in made:
        await batcher.close()


async def ask(batcher: Batcher[int, int], runner: Doubler, item: int) -> Answer[int]:
    return await batcher.submit(runner, item)


async def occupy(batcher: Batcher[int, int]) -> tuple[Doubler, "asyncio.Task[Answer[int]]"]:
    """Keeps the device busy until the returned runner's gate is set."""
    runner = Doubler(open_gate=False)
    task = asyncio.create_task(ask(batcher, runner, 0))
    await asyncio.to_thread(runner.started.wait, 10)
    return runner, task


async def test_each_answer_belongs_to_its_item(make: Make) -> None:
    """Under random arrivals nothing is mixed up."""
    batcher, runner = make(), Doubler(8)

    async def late(item: int) -> tuple[int, Answer[int]]:
        await asyncio.sleep(random.Random(item).random() * 0.05)
        return item, await ask(batcher, runner, item)

    answers = await asyncio.gather(*(late(item) for item in range(300)))
    assert all(answer.output == 2 * item for item, answer in answers)
    assert sum(len(batch) for batch in runner.batches) == 300
    assert len(runner.batches) < 300


async def test_a_partial_batch_goes_after_the_delay(make: Make) -> None:
    """One item alone waits for company, then goes."""
    batcher, runner = make(max_queue_delay_s=0.2), Doubler(4)
    first = asyncio.create_task(ask(batcher, runner, 1))
    await asyncio.sleep(0.05)
    assert runner.batches == []
    await asyncio.gather(first, ask(batcher, runner, 2))
    assert runner.batches == [[1, 2]]


async def test_an_item_is_reported_when_it_leaves_the_queue(make: Make) -> None:
    """Its slot of the queue is free once the item is on its way to the device, not before."""
    batcher, queue = make(), Admission(4)
    busy, first = await occupy(batcher)
    runner = Doubler(2, open_gate=False)

    async def queued(item: int) -> int:
        async with queue.admit() as slot:
            return (await batcher.submit(runner, item, slot.release)).output

    tasks = [asyncio.create_task(queued(item)) for item in range(3)]
    await asyncio.sleep(0.01)
    assert queue.length == 3
    busy.gate.set()
    await asyncio.to_thread(runner.started.wait, 10)
    assert queue.length == 1
    runner.gate.set()
    assert await asyncio.gather(*tasks) == [0, 2, 4]
    await first
    assert queue.length == 0


async def test_expired_items_raise_their_errors(make: Make) -> None:
    """A deadline that cannot be met, and a wait that is too long, take no device time."""
    batcher, runner, now = make(), Doubler(4), perf_counter()
    with pytest.raises(DeadlineError, match="deadline cannot be met: after .* ms were left"):
        await batcher.submit(runner, 1, None, Urgency(deadline=now))
    with pytest.raises(QueueFullError, match="still waiting after"):
        await batcher.submit(runner, 2, None, Urgency(start_by=now))
    assert runner.batches == []


async def test_each_batch_is_reported(make: Make) -> None:
    """The report goes to ``on_batch`` and into the answers of the batch."""
    reports: list[BatchReport] = []
    batcher = Batcher[int, int](60, on_batch=lambda _, report: reports.append(report))
    answers = await asyncio.gather(*(ask(batcher, Doubler(1), item) for item in (1, 2)))
    await batcher.close()
    assert [answer.batch for answer in answers] == reports
    assert [(one.size, one.reason, one.device) for one in reports] == [
        (1, DispatchReason.FULL, 0)
    ] * 2


async def test_cancelled_items_never_reach_the_device(make: Make) -> None:
    """They are dropped when the batch is formed; others go on."""
    batcher = make()
    busy, first = await occupy(batcher)
    runner = Doubler(8)
    tasks = [asyncio.create_task(ask(batcher, runner, item)) for item in range(6)]
    await asyncio.sleep(0.01)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.sleep(0.01)
    replacements = [asyncio.create_task(ask(batcher, runner, item)) for item in (10, 11, 12)]
    await asyncio.sleep(0.01)
    busy.gate.set()
    answers = await asyncio.gather(*tasks[1::2], *replacements)
    await first
    assert runner.batches == [[1, 3, 5, 10, 11, 12]]
    assert [answer.output for answer in answers] == [2, 6, 10, 20, 22, 24]


async def test_cancelling_during_the_batch_harms_no_neighbour(make: Make) -> None:
    """A client that goes away while its batch runs loses only its own answer."""
    batcher, runner = make(), Doubler(2, open_gate=False)
    tasks = [asyncio.create_task(ask(batcher, runner, item)) for item in (1, 2, 3)]
    await asyncio.to_thread(runner.started.wait, 10)
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    runner.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [result.output for result in results[1:] if isinstance(result, Answer)] == [4, 6]


async def test_a_failed_batch_fails_its_items_and_nothing_else(make: Make) -> None:
    """The batcher survives an exception of the device."""

    class Broken(Doubler):
        def run(self, items: Sequence[int], padded_size: int, device: int = 0) -> list[int]:
            raise ZeroDivisionError

    batcher = make()
    with pytest.raises(ZeroDivisionError):
        await ask(batcher, Broken(), 1)
    assert (await ask(batcher, Doubler(), 4)).output == 8


async def test_a_poisoned_item_fails_alone(make: Make) -> None:
    """The items of a failed batch are run again one by one."""

    class Picky(Doubler):
        def run(self, items: Sequence[int], padded_size: int, device: int = 0) -> list[int]:
            if 13 in items:
                raise ZeroDivisionError
            return super().run(items, padded_size)

    batcher = make()
    busy, first = await occupy(batcher)
    runner = Picky(4)
    tasks = [asyncio.create_task(ask(batcher, runner, item)) for item in (11, 12, 13, 14)]
    await asyncio.sleep(0.01)
    busy.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await first
    assert isinstance(results.pop(2), ZeroDivisionError)
    assert [one.output for one in results if isinstance(one, Answer)] == [22, 24, 28]
    assert runner.batches == [[11], [12], [14]]


async def test_outputs_are_counted_against_inputs(make: Make) -> None:
    """A runner that loses an output is an error, never a wrong answer."""

    class Losing(Doubler):
        def run(self, items: Sequence[int], padded_size: int, device: int = 0) -> list[int]:
            return super().run(items, padded_size)[1:]

    with pytest.raises(RuntimeError, match="1 items gave 0 outputs"):
        await ask(make(), Losing(), 1)


async def test_closing_cancels_what_waits(make: Make) -> None:
    """Nobody waits forever for a batcher that is gone."""
    batcher = Batcher[int, int](max_queue_delay_s=60)
    task = asyncio.create_task(ask(batcher, Doubler(), 1))
    await asyncio.sleep(0.01)
    await batcher.close()
    with pytest.raises(asyncio.CancelledError):
        await task


class _Recorder(Doubler):
    """Says which devices ran, and how many at once."""

    def __init__(self, device_count: int) -> None:
        super().__init__(1, device_count=device_count)
        self.devices: list[int] = []
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()
        self._on: dict[int, int] = {}

    def run(self, items: Sequence[int], padded_size: int, device: int = 0) -> list[int]:
        with self._lock:
            self.devices.append(device)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self._on[device] = self._on.get(device, 0) + 1
            assert self._on[device] == 1, "two batches on one device"
        time.sleep(0.02 if device else 0.002)
        with self._lock:
            self.at_once -= 1
            self._on[device] -= 1
        return [2 * item for item in items]


async def test_all_devices_work_at_once(make: Make) -> None:
    """Each has its own thread, and no device runs two batches."""
    batcher, runner = make(device_count=3), _Recorder(device_count=3)
    answers = await asyncio.gather(*(ask(batcher, runner, item) for item in range(60)))
    assert [one.output for one in answers] == [2 * item for item in range(60)]
    assert runner.most_at_once == 3
    assert {one.batch.device for one in answers} == {0, 1, 2}


async def test_closing_waits_for_all_devices(make: Make) -> None:
    """Batches that run end; their callers and those who wait are cancelled."""
    batcher = make(device_count=2)
    runner = Doubler(1, open_gate=False, device_count=2)
    asked = [asyncio.create_task(ask(batcher, runner, item)) for item in range(4)]
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    runner.gate.set()
    await closing
    assert sorted(runner.batches) == [[0], [1]]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in results)


class Pipelined(Doubler):
    """Doubles numbers, two batches at a time on a device; each waits for its own gate.

    Attributes:
        dispatched: The batches that were dispatched.
        poison: An item whose batch fails, while it is dispatched or when its outputs are there.
    """

    def __init__(self, max_batch_size: int = 2, *, poison: int = -1, fails_at_once: bool = False):
        super().__init__(max_batch_size)
        self.depth = 2
        self.dispatched: list[list[int]] = []
        self.poison, self._fails_at_once = poison, fails_at_once
        self._gates: dict[tuple[int, ...], threading.Event] = {}

    def dispatch(
        self, items: Sequence[int], padded_size: int, device: int = 0
    ) -> Callable[[], list[int]]:
        self.dispatched.append(list(items))
        if self.poison in items and self._fails_at_once:
            raise ZeroDivisionError
        return partial(self._wait, items)

    def _wait(self, items: Sequence[int]) -> list[int]:
        assert self.gate_of(*items).wait(10)
        self.batches.append(list(items))
        if self.poison in items:
            raise ZeroDivisionError
        return [2 * item for item in items]

    def gate_of(self, *items: int) -> threading.Event:
        """Returns the gate of a batch."""
        return self._gates.setdefault(items, threading.Event())

    def open(self, *batches: Sequence[int]) -> None:
        for batch in batches:
            self.gate_of(*batch).set()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that comes at once."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def ask_all(
    batcher: Batcher[int, int], runner: Doubler, *items: int
) -> "list[asyncio.Task[Answer[int]]]":
    return [asyncio.create_task(ask(batcher, runner, item)) for item in items]


async def test_the_next_batch_is_dispatched_before_the_outputs_are_there(make: Make) -> None:
    """As many batches as the runner is deep, and no more; answers belong to their items."""
    batcher, runner = make(), Pipelined()
    asked = ask_all(batcher, runner, *range(6))
    await until(lambda: len(runner.dispatched) == 2)
    await asyncio.sleep(0.02)
    assert runner.dispatched == [[0, 1], [2, 3]]
    runner.open([0, 1])
    answers = await asyncio.gather(*asked[:2])
    await until(lambda: len(runner.dispatched) == 3)
    assert not any(one.done() for one in asked[2:])
    runner.open([2, 3], [4, 5])
    answers += await asyncio.gather(*asked[2:])
    assert [one.output for one in answers] == [2 * item for item in range(6)]
    assert [one.batch.size for one in answers] == [2] * 6


@pytest.mark.parametrize("fails_at_once", [False, True])
@pytest.mark.parametrize("poison", [0, 3])
async def test_a_failed_batch_leaves_the_batches_in_flight_alone(
    make: Make, poison: int, fails_at_once: bool
) -> None:
    """Its items are run again one by one, whether dispatching or computing failed."""
    batcher = make()
    runner = Pipelined(poison=poison, fails_at_once=fails_at_once)
    runner.open([0, 1], [2, 3], *([item] for item in range(4)))
    results = await asyncio.gather(*ask_all(batcher, runner, *range(4)), return_exceptions=True)
    assert isinstance(results.pop(poison), ZeroDivisionError)
    outputs = [one.output for one in results if isinstance(one, Answer)]
    assert outputs == [2 * item for item in range(4) if item != poison]
    assert batcher.failed_batch_count == 1
    assert len(runner.dispatched) == 4
    runner.poison = -1
    runner.open([7])
    assert (await ask(batcher, runner, 7)).output == 14
    assert batcher.running_s == 0


async def test_the_watchdog_sees_the_batch_that_has_the_device(make: Make) -> None:
    """A batch that waits for the batch before it does not run yet, whatever that takes."""
    batcher, runner = make(), Pipelined()
    asked = ask_all(batcher, runner, *range(4))
    await until(lambda: len(runner.dispatched) == 2)
    await asyncio.sleep(0.2)
    assert batcher.running_s >= 0.2
    before = perf_counter()
    runner.open([0, 1])
    await asyncio.gather(*asked[:2])
    assert batcher.running_s <= perf_counter() - before
    await asyncio.sleep(0.2)
    assert batcher.running_s >= 0.2
    runner.open([2, 3])
    await asyncio.gather(*asked[2:])
    await until(lambda: batcher.running_s == 0)


async def test_the_time_of_a_device_is_counted_once(make: Make) -> None:
    """Batches in flight at the same time do not each claim the time of the others."""
    began = perf_counter()
    batcher, runner = make(), Pipelined()
    asked = ask_all(batcher, runner, *range(8))
    for first in range(0, 8, 2):
        await asyncio.sleep(0.05)
        runner.open([first, first + 1])
    answers = await asyncio.gather(*asked)
    total_us = sum(one.batch.compute_us for one in answers[::2])
    assert 0.2e6 - 4 <= total_us <= (perf_counter() - began) * 1e6 + 4


async def test_items_behind_batches_in_flight_can_be_given_up(make: Make) -> None:
    """Cancelled or too late, they never reach the device."""
    batcher, runner = make(), Pipelined()
    asked = ask_all(batcher, runner, *range(5))
    await until(lambda: len(runner.dispatched) == 2)
    late = asyncio.create_task(
        batcher.submit(runner, 5, None, Urgency(deadline=perf_counter() + 0.02))
    )
    await asyncio.sleep(0.05)
    asked[4].cancel()
    runner.open([0, 1], [2, 3])
    with pytest.raises(DeadlineError):
        await late
    await asyncio.gather(*asked[:4])
    assert runner.dispatched == [[0, 1], [2, 3]]


async def test_closing_waits_for_all_batches_in_flight(make: Make) -> None:
    """Their callers and those who wait are cancelled, and nothing else is dispatched."""
    batcher, runner = make(), Pipelined(poison=2)
    asked = ask_all(batcher, runner, *range(6))
    await until(lambda: len(runner.dispatched) == 2)
    closing = asyncio.create_task(batcher.close())
    await asyncio.sleep(0.02)
    assert not closing.done()
    runner.open([0, 1], [2, 3])
    await closing
    assert runner.batches == runner.dispatched == [[0, 1], [2, 3]]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in results)
    with pytest.raises(asyncio.CancelledError):
        await ask(batcher, runner, 9)


@dataclass(eq=False)
class Counted(Job[int, int]):
    """Counts how it ended; ``is_abandoned`` may be set while it waits."""

    ends: list[str] = field(default_factory=list)
    is_abandoned: bool = False

    @property
    def abandoned(self) -> bool:
        return self.is_abandoned

    def dispatched(self) -> None:
        self.ends.append("dispatched")

    def answer(self, output: int, batch: BatchReport) -> None:
        self.ends.append(f"answered {output}")

    def fail(self, error: Exception) -> None:
        self.ends.append(f"failed {type(error).__name__}")

    def drop(self) -> None:
        self.ends.append("dropped")


async def test_each_job_ends_exactly_once(make: Make) -> None:
    """Answered, failed, too late, abandoned in the queue or on the device, or closed."""
    batcher, runner, now = make(), Pipelined(3, poison=1), perf_counter()
    jobs = [Counted(Urgency(), now, item) for item in range(8)]
    jobs[6].urgency = Urgency(start_by=now)
    batcher.add(runner, jobs[:7])
    jobs[7].is_abandoned = True
    batcher.add(runner, jobs[7:])
    await until(lambda: len(runner.dispatched) == 2)
    jobs[2].is_abandoned = True  # it is not run again
    runner.open([0, 1, 2], [0], [1], [3, 4, 5])
    await until(lambda: all(job.ends[-1:] not in ([], ["dispatched"]) for job in jobs))
    last = [Counted(Urgency(), now, item) for item in (20, 21)]
    batcher.add(runner, last)
    await batcher.close()
    late = Counted(Urgency(), now, 22)
    batcher.add(runner, [late])
    assert [job.ends for job in (*jobs, *last, late)] == [
        ["dispatched", "answered 0"],
        ["dispatched", "failed ZeroDivisionError"],
        ["dispatched", "dropped"],
        *(["dispatched", f"answered {2 * item}"] for item in (3, 4, 5)),
        ["failed QueueFullError"],
        ["dropped"],
        ["dropped"],
        ["dropped"],
        ["dropped"],
    ]


async def test_an_observer_that_fails_does_not_occupy_the_device() -> None:
    """The batcher goes on with the next batch."""
    reports: list[BatchReport] = []

    def observe(_: object, report: BatchReport) -> None:
        reports.append(report)
        if len(reports) == 1:
            raise ZeroDivisionError

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    batcher = Batcher[int, int](on_batch=observe)
    first = asyncio.create_task(ask(batcher, Doubler(), 1))
    await until(lambda: bool(reports))
    assert (await ask(batcher, Doubler(), 2)).output == 4
    first.cancel()
    await batcher.close()


async def test_runners_learn_from_batches_that_had_the_device_alone(make: Make) -> None:
    """Each batch that ran on a free device, with its padded size and device; a failed one not."""
    batcher, runner = make(device_count=2), Doubler(4, device_count=2)
    runner.gate.clear()
    both = asyncio.gather(*(ask(batcher, runner, item) for item in range(5)))
    await asyncio.to_thread(runner.started.wait, 10)
    runner.gate.set()
    await both
    assert sorted(runner.learnt) == [(4, 0), (4, 1)]
    failing = Pipelined(poison=0)
    failing.open([0, 1], [0], [1])
    await asyncio.gather(*(ask(batcher, failing, item) for item in (0, 1)), return_exceptions=True)
    assert failing.learnt == [(2, 0)]  # the good item, again and alone


async def test_runners_do_not_learn_from_batches_behind_others(make: Make) -> None:
    """They take less than alone, by the part that overlaps."""
    batcher, runner = make(), Pipelined()
    first, second = (
        [asyncio.create_task(ask(batcher, runner, item)) for item in items]
        for items in ((0, 1), (2, 3))
    )
    await asyncio.sleep(0)
    runner.open([0, 1])
    await asyncio.gather(*first)
    runner.open([2, 3])
    await asyncio.gather(*second)
    assert runner.dispatched == [[0, 1], [2, 3]]
    assert runner.learnt == [(2, 0)]


class Streams(Doubler):
    """Two streams; an item takes as many tenths of a second as it says."""

    def __init__(self) -> None:
        super().__init__(1, device_count=3)
        self.has_streams = True

    def run(self, items: Sequence[int], padded_size: int, device: int = 0) -> list[int]:
        time.sleep(0.1 * items[0])
        return super().run(items, padded_size, device)


async def test_a_stream_is_timed_only_beside_the_others(make: Make) -> None:
    """Alone it is faster: low load would make single images seem cheaper than batches."""
    batcher, runner = make(device_count=3), Streams()
    await asyncio.gather(*(ask(batcher, runner, item) for item in (3, 8)))
    assert len(runner.learnt) == 1  # the shorter one
    await ask(batcher, runner, 1)  # alone on the whole device
    await asyncio.gather(*(ask(batcher, runner, item) for item in (3, 1, 1, 1)))
    assert [device for _, device in runner.learnt][1] == 0
    assert len(runner.learnt) >= 5  # one after another beside the longer one
