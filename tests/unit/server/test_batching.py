"""Batches from concurrent requests, with runners that need no TensorFlow."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from gradcam_server.batching import Answer, Batcher
from gradcam_server.errors import QueueFullError


class Doubler:
    """Doubles numbers; waits for ``gate`` before each batch, and keeps a record."""

    def __init__(
        self, max_batch_size: int = 4, *, open_gate: bool = True, background: bool = False
    ) -> None:
        self.max_batch_size = max_batch_size
        self.background = background
        self.batches: list[list[int]] = []
        self.started = threading.Event()
        self.gate = threading.Event()
        if open_gate:
            self.gate.set()

    def plan(self, waiting: int) -> tuple[int, int]:
        return min(waiting, self.max_batch_size), self.max_batch_size

    def run(self, items: Sequence[int], padded_size: int) -> list[int]:
        self.started.set()
        assert self.gate.wait(10)
        self.batches.append(list(items))
        return [2 * item for item in items]


Make = Callable[..., Batcher[int, int]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes batchers and closes them."""
    made = []

    def make(max_queue_length: int = 100, max_queue_delay_s: float = 0.0) -> Batcher[int, int]:
        made.append(Batcher[int, int](max_queue_length, max_queue_delay_s))
        return made[-1]

    yield make
    for batcher in made:
        await batcher.close()


async def ask(batcher: Batcher[int, int], runner: Doubler, item: int) -> Answer[int]:
    async with batcher.admit() as place:
        return await batcher.submit(runner, item, place)


async def occupy(batcher: Batcher[int, int]) -> tuple[Doubler, "asyncio.Task[Answer[int]]"]:
    """Keeps the device busy until the returned runner's gate is set."""
    runner = Doubler(open_gate=False)
    task = asyncio.create_task(ask(batcher, runner, 0))
    await asyncio.to_thread(runner.started.wait, 10)
    return runner, task


async def test_each_answer_belongs_to_its_item(make: Make) -> None:
    """Under random arrivals nothing is mixed up."""
    batcher, runner = make(1000), Doubler(8)

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
    assert [answer.batch_size for answer in answers] == [4, 4, 4, 4, 2, 2]
    assert {answer.padded_batch_size for answer in answers} == {4}


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
        def run(self, items: Sequence[int], padded_size: int) -> list[int]:
            time.sleep(0.004)
            return super().run(items, padded_size)

    batcher = make(1000)
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


async def test_exactly_the_surplus_is_refused(make: Make) -> None:
    """Places are counted, and freed when the item goes to the device."""
    batcher = make(max_queue_length=3)
    busy, first = await occupy(batcher)
    runner = Doubler()
    tasks = [asyncio.create_task(ask(batcher, runner, item)) for item in range(5)]
    await asyncio.sleep(0.01)
    refused = [task for task in tasks if task.done()]
    assert len(refused) == 2
    for task in refused:
        with pytest.raises(QueueFullError, match="all 3 places") as caught:
            task.result()
        assert caught.value.retry_after_s > 0
    busy.gate.set()
    await asyncio.gather(first, *tasks, return_exceptions=True)
    assert (await ask(batcher, runner, 7)).output == 14


async def test_waiting_for_a_place_is_possible(make: Make) -> None:
    """A stream is slowed down, not refused."""
    batcher = make(max_queue_length=1)
    busy, first = await occupy(batcher)
    runner = Doubler(1)

    async def patient(item: int) -> int:
        async with batcher.admit(wait=True) as place:
            return (await batcher.submit(runner, item, place)).output

    tasks = [asyncio.create_task(patient(item)) for item in range(5)]
    await asyncio.sleep(0.01)
    busy.gate.set()
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8]
    await first


async def test_cancelled_items_never_reach_the_device(make: Make) -> None:
    """They are dropped when the batch is formed, their places are freed, others go on."""
    batcher = make(max_queue_length=6)
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
        def run(self, items: Sequence[int], padded_size: int) -> list[int]:
            raise ZeroDivisionError

    batcher = make()
    with pytest.raises(ZeroDivisionError):
        await ask(batcher, Broken(), 1)
    assert (await ask(batcher, Doubler(), 4)).output == 8


async def test_outputs_are_counted_against_inputs(make: Make) -> None:
    """A runner that loses an output is an error, never a wrong answer."""

    class Losing(Doubler):
        def run(self, items: Sequence[int], padded_size: int) -> list[int]:
            return super().run(items, padded_size)[1:]

    with pytest.raises(RuntimeError, match="1 items gave 0 outputs"):
        await ask(make(), Losing(), 1)


async def test_closing_cancels_what_waits(make: Make) -> None:
    """Nobody waits forever for a batcher that is gone."""
    batcher = Batcher[int, int](10, max_queue_delay_s=60)
    task = asyncio.create_task(ask(batcher, Doubler(), 1))
    await asyncio.sleep(0.01)
    await batcher.close()
    with pytest.raises(asyncio.CancelledError):
        await task
