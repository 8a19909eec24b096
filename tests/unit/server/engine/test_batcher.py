"""Batches from concurrent requests, with runners that need no TensorFlow."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from time import perf_counter

import pytest

from gradcam_server.domain.schedule import Answer, BatchReport, DispatchReason, Urgency
from gradcam_server.engine.batcher import Batcher
from gradcam_server.errors import DeadlineError, QueueFullError
from gradcam_server.pipeline.admission import Admission


class Doubler:
    """Doubles numbers; waits for ``gate`` before each batch, and keeps a record."""

    def __init__(
        self,
        max_batch_size: int = 4,
        *,
        open_gate: bool = True,
        background: bool = False,
        device_count: int = 1,
        has_streams: bool = False,
    ) -> None:
        self.max_batch_size = max_batch_size
        self.min_s = 0.0
        self.background = background
        self.device_count = device_count
        self.has_streams = has_streams
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.gate = threading.Event()
        if open_gate:
            self.gate.set()

    def plan(self, waiting: int) -> tuple[int, int]:
        return min(waiting, self.max_batch_size), self.max_batch_size

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


async def test_waiting_items_form_a_batch_while_the_device_is_busy(make: Make) -> None:
    """Whatever waits goes together as soon as the device is free."""
    batcher = make()
    busy, first = await occupy(batcher)
    runner = Doubler(4)
    tasks = [asyncio.create_task(ask(batcher, runner, item)) for item in range(6)]
    await asyncio.sleep(0.01)
    busy.gate.set()
    answers = await asyncio.gather(*tasks)
    await first
    assert runner.batches == [[0, 1, 2, 3], [4, 5]]
    assert [answer.batch.size for answer in answers] == [4, 4, 4, 4, 2, 2]
    assert {answer.batch.padded_size for answer in answers} == {4}


async def test_a_full_batch_does_not_wait_for_the_delay(make: Make) -> None:
    """The delay is for batches that are not full."""
    batcher, runner = make(max_queue_delay_s=60), Doubler(2)
    async with asyncio.timeout(10):
        await asyncio.gather(ask(batcher, runner, 1), ask(batcher, runner, 2))
    assert runner.batches == [[1, 2]]


async def test_a_partial_batch_goes_after_the_delay(make: Make) -> None:
    """One item alone waits for company, then goes."""
    batcher, runner = make(max_queue_delay_s=0.2), Doubler(4)
    first = asyncio.create_task(ask(batcher, runner, 1))
    await asyncio.sleep(0.05)
    assert runner.batches == []
    await asyncio.gather(first, ask(batcher, runner, 2))
    assert runner.batches == [[1, 2]]


async def test_an_old_partial_batch_goes_before_a_younger_full_one(make: Make) -> None:
    """A busy lane cannot starve a quiet one."""
    batcher = make()
    busy, first = await occupy(batcher)
    order: list[str] = []
    quiet, hot = Doubler(8), Doubler(2)

    async def ask_and_note(name: str, runner: Doubler, item: int) -> None:
        await ask(batcher, runner, item)
        order.append(name)

    tasks = [asyncio.create_task(ask_and_note("quiet", quiet, 0))]
    await asyncio.sleep(0.01)
    tasks += [asyncio.create_task(ask_and_note("hot", hot, item)) for item in range(6)]
    await asyncio.sleep(0.01)
    busy.gate.set()
    await asyncio.gather(first, *tasks)
    assert order[0] == "quiet"


async def test_background_batches_get_their_share_and_no_more(make: Make) -> None:
    """Neither kind starves: with both always waiting, a quarter of the time is background's."""

    class Slow(Doubler):
        def run(self, items: Sequence[int], padded_size: int, device: int = 0) -> list[int]:
            time.sleep(0.004)
            return super().run(items, padded_size)

    batcher = make()
    busy, first = await occupy(batcher)
    front, back = Slow(1), Slow(1, background=True)
    tasks = [asyncio.create_task(ask(batcher, back, item)) for item in range(60)]
    await asyncio.sleep(0.01)
    tasks += [asyncio.create_task(ask(batcher, front, item)) for item in range(60)]
    await asyncio.sleep(0.01)
    busy.gate.set()
    await first
    await asyncio.gather(*tasks[60:])  # the front ones
    share = len(back.batches) / (60 + len(back.batches))
    assert 0.1 < share < 0.4
    await asyncio.gather(*tasks)
    assert len(back.batches) == 60


async def test_an_item_says_when_its_turn_has_come(make: Make) -> None:
    """Its place in the queue is free once it is on its way to the device, not before."""
    batcher, queue = make(), Admission(3)
    busy, first = await occupy(batcher)
    runner = Doubler(2, open_gate=False)

    async def placed(item: int) -> int:
        async with queue.admit() as place:
            return (await batcher.submit(runner, item, place)).output

    tasks = [asyncio.create_task(placed(item)) for item in range(3)]
    await asyncio.sleep(0.01)
    assert queue.length == 3
    busy.gate.set()
    await asyncio.to_thread(runner.started.wait, 10)
    assert queue.length == 1
    runner.gate.set()
    assert await asyncio.gather(*tasks) == [0, 2, 4]
    await first
    assert queue.length == 0


async def test_the_urgent_wait_for_one_batch_at_most(make: Make) -> None:
    """What is less urgent goes when nothing more urgent waits, and never in its batches."""
    batcher = make()
    busy, first = await occupy(batcher)
    runner = Doubler(2)
    offline = [
        asyncio.create_task(batcher.submit(runner, item, None, Urgency(9))) for item in range(4)
    ]
    await asyncio.sleep(0.01)
    online = [
        asyncio.create_task(batcher.submit(runner, item, None, Urgency(1))) for item in (10, 11, 12)
    ]
    await asyncio.sleep(0.01)
    busy.gate.set()
    await asyncio.gather(first, *offline, *online)
    assert runner.batches == [[10, 11], [12], [0, 1], [2, 3]]


async def test_what_would_come_too_late_takes_no_device_time(make: Make) -> None:
    """A deadline that cannot be met, and a wait that is too long, each have their error."""
    batcher = make()
    busy, first = await occupy(batcher)
    runner = Doubler(4)
    runner.min_s = 0.2
    now = perf_counter()
    hopeless = asyncio.create_task(batcher.submit(runner, 1, None, Urgency(deadline=now + 0.15)))
    tired = asyncio.create_task(batcher.submit(runner, 2, None, Urgency(start_by=now)))
    served = asyncio.create_task(
        batcher.submit(runner, 3, None, Urgency(deadline=now + 60, start_by=now + 60))
    )
    await asyncio.sleep(0.01)
    busy.gate.set()
    with pytest.raises(DeadlineError, match="deadline cannot be met: after .* ms were left"):
        await hopeless
    with pytest.raises(QueueFullError, match="no turn after"):
        await tired
    assert (await served).output == 6
    assert runner.batches == [[3]]
    await first


async def test_a_batch_says_why_it_went(make: Make) -> None:
    """It was full, or the delay was over, or the device was free."""
    reports: list[BatchReport] = []
    batcher = Batcher[int, int](0.1, on_batch=lambda _, report: reports.append(report))
    runner = Doubler(2)
    answers = await asyncio.gather(*(ask(batcher, runner, item) for item in (1, 2)))
    late = await ask(batcher, runner, 3)
    await batcher.close()
    assert answers[0].batch == answers[1].batch == reports[0]
    assert [(one.size, one.padded_size, one.reason) for one in reports] == [
        (2, 2, DispatchReason.FULL),
        (1, 2, DispatchReason.DELAY),
    ]
    assert late.batch == reports[1]
    idle = await ask(make(), runner, 4)
    assert idle.batch.reason is DispatchReason.IDLE


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


async def test_a_batch_goes_to_the_device_that_is_free_first(make: Make) -> None:
    """All devices work at once, a quick one takes more, and no device runs two batches."""
    batcher, runner = make(device_count=3), _Recorder(device_count=3)
    answers = await asyncio.gather(*(ask(batcher, runner, item) for item in range(60)))
    assert [one.output for one in answers] == [2 * item for item in range(60)]
    assert runner.most_at_once == 3
    counts = [runner.devices.count(device) for device in range(3)]
    assert counts[0] > 2 * counts[1] > 0 < counts[2]
    assert {one.batch.device for one in answers} == {0, 1, 2}


@pytest.mark.parametrize("delay_s", [0.0, 0.01])
async def test_a_graph_runs_on_its_own_devices_only(make: Make, delay_s: float) -> None:
    """One that is compiled for the first device leaves the others to others, and waits for it."""
    batcher = make(delay_s, device_count=2)
    single, both = _Recorder(device_count=1), _Recorder(device_count=2)
    asked = [ask(batcher, runner, item) for item in range(20) for runner in (single, both)]
    await asyncio.gather(*asked)
    assert set(single.devices) == {0}
    assert set(both.devices) == {0, 1}


async def test_streams_share_what_waits(make: Make) -> None:
    """Both work at once, on half of what waits each, and the whole device is left alone."""
    batcher = make(device_count=3)
    runner = Doubler(8, open_gate=False, device_count=3, has_streams=True)
    tasks = [asyncio.create_task(ask(batcher, runner, item)) for item in range(6)]
    await asyncio.sleep(0.05)
    runner.gate.set()
    answers = await asyncio.gather(*tasks)
    assert [answer.batch.device for answer in answers[:5]] == [1, 1, 1, 2, 2]
    assert [answer.output for answer in answers] == [0, 2, 4, 6, 8, 10]


async def test_one_item_alone_gets_the_whole_device(make: Make) -> None:
    """Its answer is soonest there; what comes meanwhile does not wait for it, but has a stream."""
    batcher = make(device_count=3)
    runner = Doubler(8, open_gate=False, device_count=3, has_streams=True)
    first = asyncio.create_task(ask(batcher, runner, 0))
    await asyncio.to_thread(runner.started.wait, 10)
    second = asyncio.create_task(ask(batcher, runner, 1))
    await asyncio.sleep(0.05)
    runner.gate.set()
    assert [(await task).batch.device for task in (first, second)] == [0, 1]
    assert (await ask(batcher, runner, 2)).batch.device == 0


async def test_streams_and_other_graphs_do_not_stop_each_other(make: Make) -> None:
    """A graph without streams runs on the whole device beside them."""
    batcher = make(device_count=3)
    streams, single = Doubler(2, device_count=3, has_streams=True), _Recorder(device_count=1)
    asked = [ask(batcher, runner, item) for item in range(40) for runner in (streams, single)]
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*asked)
    assert [answer.output for answer in answers] == [2 * (number // 2) for number in range(80)]
    assert set(single.devices) == {0}


async def test_streams_that_nobody_has_places_for_are_not_missed(make: Make) -> None:
    """Compiled later than the batcher was made, a graph runs on the whole device."""
    batcher, runner = make(device_count=1), Doubler(2, device_count=3, has_streams=True)
    async with asyncio.timeout(10):
        answers = await asyncio.gather(*(ask(batcher, runner, item) for item in range(9)))
    assert {answer.batch.device for answer in answers} == {0}


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


def submit(
    batcher: Batcher[int, int], runner: Doubler, caller: str, items: Sequence[int]
) -> list["asyncio.Task[Answer[int]]"]:
    return [
        asyncio.create_task(batcher.submit(runner, item, None, Urgency(caller=caller)))
        for item in items
    ]


@pytest.mark.parametrize("has_lane_of_its_own", [False, True])
@pytest.mark.parametrize("background", [False, True])
async def test_one_item_goes_before_the_thousand_of_another_caller(
    make: Make, has_lane_of_its_own: bool, background: bool
) -> None:
    """Whatever a caller has waiting, the item of another is in the batch after the one that runs.

    That holds in the same graph and in another, of one pass and of many.
    """
    batcher = make()
    runner = Doubler(4, open_gate=False, background=background)
    other = Doubler(4, background=background) if has_lane_of_its_own else runner
    many = submit(batcher, runner, "many", range(1000))
    await asyncio.to_thread(runner.started.wait, 10)
    (one,) = submit(batcher, other, "one", [5000])
    await asyncio.sleep(0)
    runner.gate.set()
    assert (await one).output == 10000
    assert len(runner.batches) + len(other.batches) * has_lane_of_its_own <= 3
    if not has_lane_of_its_own:
        assert runner.batches[1][:2] in ([5000, 4], [4, 5000])
        assert len(runner.batches[1]) == 4
    await asyncio.gather(*many)


@pytest.mark.parametrize("floods", [1, 3])
async def test_batches_are_full_and_of_all_callers(make: Make, floods: int) -> None:
    """Callers that flood and one that has a few items have equal parts of each batch."""
    batcher = make()
    busy, first = await occupy(batcher)
    runner = Doubler(8)
    asked = [
        task
        for number in range(floods)
        for task in submit(batcher, runner, f"flood {number}", range(1000, 1100))
    ]
    part = 8 // (floods + 1)
    asked += submit(batcher, runner, "modest", range(4 * part))
    await asyncio.sleep(0.01)
    busy.gate.set()
    await asyncio.gather(first, *asked)
    for batch in runner.batches[:4]:
        assert len(batch) == 8
        assert sum(item < 1000 for item in batch) == part
    assert [item for batch in runner.batches for item in batch if item < 1000] == [*range(4 * part)]


async def test_callers_of_dear_and_cheap_graphs_get_equal_device_time(make: Make) -> None:
    """Shares are of seconds: a graph that takes longer runs less often."""

    class Timed(Doubler):
        def __init__(self, seconds: float) -> None:
            super().__init__(1)
            self.seconds, self.used_s = seconds, 0.0

        def run(self, items: Sequence[int], padded_size: int, device: int = 0) -> list[int]:
            started = perf_counter()
            time.sleep(self.seconds)
            self.used_s += perf_counter() - started
            if dear.used_s + cheap.used_s > 0.3:
                enough.set()
            return super().run(items, padded_size)

    enough = threading.Event()
    batcher, dear, cheap = make(), Timed(0.01), Timed(0.002)
    asked = submit(batcher, dear, "dear", range(100)) + submit(
        batcher, cheap, "cheap", range(100, 400)
    )
    assert await asyncio.to_thread(enough.wait, 10)
    assert 0.5 < dear.used_s / cheap.used_s < 2
    for task in asked:
        task.cancel()


async def test_no_lane_of_a_caller_is_starved_by_its_other_lane(make: Make) -> None:
    """An old item goes, though its caller's younger ones ride in the batches of another."""
    batcher = make()
    busy, first = await occupy(batcher)
    shared, own = Doubler(2), Doubler(2)
    order: list[str] = []

    async def note(tasks: "Sequence[asyncio.Task[Answer[int]]]") -> None:
        await asyncio.gather(*tasks)
        order.append(f"{len(shared.batches)} batches before")

    alone = asyncio.create_task(note(submit(batcher, own, "a", [1])))
    await asyncio.sleep(0.01)
    others = submit(batcher, shared, "b", range(100)) + submit(batcher, shared, "a", range(100))
    await asyncio.sleep(0.01)
    busy.gate.set()
    await asyncio.gather(first, alone, *others)
    assert order[0] in {f"{count} batches before" for count in range(4)}


async def test_an_urgent_caller_goes_first_whatever_it_has_used(make: Make) -> None:
    """Shares are among items of one priority."""
    batcher = make()
    busy, first = await occupy(batcher)
    runner = Doubler(2)
    offline = [
        asyncio.create_task(batcher.submit(runner, item, None, Urgency(9, caller="offline")))
        for item in range(4)
    ]
    online = submit(batcher, runner, "online", range(10, 16))
    await asyncio.sleep(0.01)
    busy.gate.set()
    await asyncio.gather(first, *offline, *online)
    assert runner.batches == [[10, 11], [12, 13], [14, 15], [0, 1], [2, 3]]


async def test_a_batcher_forgets_callers(make: Make) -> None:
    """Nothing is kept of thousands of callers when all is done, answered, cancelled or late."""
    batcher, runner = make(), Doubler(4)
    for _ in range(5):
        asked = [
            task for number in range(50) for task in submit(batcher, runner, f"{number}", [number])
        ]
        for task in asked[::7]:
            task.cancel()
        late = asyncio.create_task(
            batcher.submit(runner, 1, None, Urgency(deadline=0.0, caller="late"))
        )
        await asyncio.gather(*asked, late, return_exceptions=True)
    await ask(batcher, runner, 1)
    await asyncio.sleep(0.01)
    assert batcher._shares == {}
