"""The load: closed and open loops, made by processes of their own.

A closed loop has so many users, each of whom asks again when answered: a slow server is asked
less. An open loop asks at random times that do not depend on the server, as the world does; its
latency counts from the time at which a request was meant to be sent, so that neither a server
nor a generator that falls behind hides the wait ("coordinated omission").
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import grpc
import numpy as np
from numpy.typing import NDArray

from gradcam_server.bench.worker import Worker, WorkerError, cpu_s

# Above this share of one core a generator's own queueing shows in what it measures.
_BUSY = 0.8
# Above this share of the typical latency its lateness does.
_LATE = 0.1
_DRAIN_S = 30.0


@dataclass(frozen=True)
class ServerStats:
    """What a server says about one answer.

    Attributes:
        stages_us: Microseconds of each stage, by name.
        batch_size: Images in the batch.
        padded_batch_size: The compiled size that ran.
    """

    stages_us: dict[str, int]
    batch_size: int
    padded_batch_size: int


class LoadClient(Protocol):
    """Asks a server the same thing again and again."""

    async def open(self) -> None:
        """Connects."""
        ...

    async def explain(self) -> ServerStats | None:
        """Asks, and checks the answer; any exception is a failure."""
        ...

    async def close(self) -> None:
        """Disconnects."""
        ...


MakeLoadClient = Callable[[], LoadClient]
"""Must be picklable: it is called in the generator's process."""


@dataclass(frozen=True)
class Closed:
    """So many users, each of whom asks again when answered.

    Attributes:
        concurrency: The users.
        seconds: How long.
    """

    concurrency: int
    seconds: float

    def share(self, number: int, count: int) -> "Closed":
        """Returns what one of several generators does."""
        whole, rest = divmod(self.concurrency, count)
        return Closed(whole + (number < rest), self.seconds)


@dataclass(frozen=True)
class Open:
    """Requests at random times (a Poisson process), whatever becomes of the others.

    Attributes:
        rate: Requests in a second.
        seconds: How long.
        seed: Of the times.
    """

    rate: float
    seconds: float
    seed: int = 0

    def share(self, number: int, count: int) -> "Open":
        """Returns what one of several generators does."""
        return Open(self.rate / count, self.seconds, self.seed * count + number)

    def times(self) -> Iterator[float]:
        """Yields when requests are meant to be sent, in seconds from the start."""
        chance = random.Random(self.seed)  # noqa: S311 - arrival times
        due = 0.0
        while (due := due + chance.expovariate(self.rate)) < self.seconds:
            yield due


Load = Closed | Open


@dataclass
class Records:
    """What generators saw of one load. The first part of it, ``settle_s``, is left out.

    Attributes:
        seconds: How long was counted.
        asked: Requests that were meant to be sent in that time.
        answered: Answers that came in that time: over ``seconds`` this is the throughput.
        all_answered: Answers from the very beginning until the last one.
        latencies_s: Of the requests of that time that were answered at last, from the intended
            time to the answer, float64, shape (requests,).
        lags_s: How much later than intended they were sent, float64.
        failures: Number of failed requests of that time, by their code.
        stages_us: Sums over the answers, by stage.
        batches: How many answers came from batches of (size, padded size).
        cpu_shares: CPU time over wall time of each generator; 1 is one core.
    """

    seconds: float = 0.0
    asked: int = 0
    answered: int = 0
    all_answered: int = 0
    latencies_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    lags_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    failures: Counter[str] = field(default_factory=Counter)
    stages_us: Counter[str] = field(default_factory=Counter)
    batches: Counter[tuple[int, int]] = field(default_factory=Counter)
    cpu_shares: list[float] = field(default_factory=list)

    @property
    def images_per_s(self) -> float:
        """Answers in a second."""
        return self.answered / self.seconds

    @property
    def bottleneck(self) -> str:
        """Why the generator, not the server, may have set the figures; empty if it did not."""
        if max(self.cpu_shares, default=0) > _BUSY:
            return f"the generator used {max(self.cpu_shares):.0%} of its core"
        if self.lags_s.size and self.latencies_s.size:
            late = float(np.quantile(self.lags_s, 0.99))
            if late > _LATE * float(np.median(self.latencies_s)):
                return f"1 % of the requests were sent {late * 1e3:.1f} ms late or more"
        return ""


def merge(parts: Sequence[Records]) -> Records:
    """Adds the records of several generators, which ran side by side."""
    return _joined(parts, max((part.seconds for part in parts), default=0.0))


def concatenate(parts: Sequence[Records]) -> Records:
    """Joins the records of several rounds, which ran one after the other."""
    return _joined(parts, sum(part.seconds for part in parts))


def _joined(parts: Sequence[Records], seconds: float) -> Records:
    joined = Records(seconds)
    for part in parts:
        joined.asked += part.asked
        joined.answered += part.answered
        joined.all_answered += part.all_answered
        joined.failures += part.failures
        joined.stages_us += part.stages_us
        joined.batches += part.batches
        joined.cpu_shares += part.cpu_shares
    joined.latencies_s = np.concatenate([np.empty(0), *(part.latencies_s for part in parts)])
    joined.lags_s = np.concatenate([np.empty(0), *(part.lags_s for part in parts)])
    return joined


class Generators:
    """Processes that make load, each on an event loop of its own.

    Args:
        count: How many. One makes a few thousand small requests in a second.
    """

    def __init__(self, count: int = 1) -> None:
        self._workers = [Worker(_Generator) for _ in range(count)]

    def run(self, make: MakeLoadClient, load: Load, settle_s: float = 0.0) -> Records:
        """Makes a load, and waits for its last answer.

        Args:
            make: Makes what asks, in each process.
            load: The load of all processes together.
            settle_s: How much of the beginning is not counted, in seconds.

        Raises:
            WorkerError: The server could not be asked at all.
        """
        count = len(self._workers)
        shares = [load.share(number, count) for number in range(count)]
        busy = [
            worker
            for worker, share in zip(self._workers, shares, strict=True)
            if not (isinstance(share, Closed) and share.concurrency == 0)
        ]
        for worker in busy:
            worker.send("connect", make)
        _receive(busy)
        for worker, share in zip(busy, shares, strict=False):
            worker.send("run", share, settle_s)
        return merge(_receive(busy))

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _receive(workers: Sequence[Worker]) -> list[Records]:
    """Takes what each has to say, before the first error is raised: none is left for later."""
    found: list[Records] = []
    errors = []
    for worker in workers:
        try:
            found.append(worker.receive())
        except WorkerError as error:
            errors.append(error)
    if errors:
        raise errors[0]
    return found


class _Generator:
    """One process of ``Generators``."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._client: LoadClient | None = None

    def connect(self, make: MakeLoadClient) -> None:
        self._loop.run_until_complete(self._connect(make))

    def run(self, load: Load, settle_s: float) -> Records:
        return self._loop.run_until_complete(self._run(load, settle_s))

    async def _connect(self, make: MakeLoadClient) -> None:
        self._client = make()
        await self._client.open()
        await self._client.explain()  # the connection is up, and the server does answer

    async def _run(self, load: Load, settle_s: float) -> Records:
        assert self._client
        started, used = time.perf_counter(), cpu_s()
        book = _Book(self._client, started + settle_s, started + load.seconds)
        try:
            if isinstance(load, Closed):
                await asyncio.gather(*(book.keep_asking() for _ in range(load.concurrency)))
            else:
                await book.ask_at([started + due for due in load.times()])
            book.records.cpu_shares.append((cpu_s() - used) / (time.perf_counter() - started))
            return book.closed()
        finally:
            await self._client.close()


class _Book:
    """Asks, and writes down what is due from ``begin`` until ``end``."""

    def __init__(self, client: LoadClient, begin: float, end: float) -> None:
        self._client, self._begin, self._end = client, begin, end
        self._latencies: list[float] = []
        self._lags: list[float] = []
        self.records = Records(end - begin)

    def closed(self) -> Records:
        self.records.latencies_s = np.array(self._latencies, float)
        self.records.lags_s = np.array(self._lags, float)
        return self.records

    async def keep_asking(self) -> None:
        while (now := time.perf_counter()) < self._end:
            if not await self._ask(now):
                await asyncio.sleep(0.01)  # a server that refuses at once is not flooded

    async def ask_at(self, times: Sequence[float]) -> None:
        tasks = []
        for due in times:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self._ask(due)))
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_DRAIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _ask(self, due: float) -> bool:
        counts = due >= self._begin
        self.records.asked += counts
        if counts:
            self._lags.append(time.perf_counter() - due)
        try:
            stats = await self._client.explain()
        except (Exception, asyncio.CancelledError) as error:
            if counts:
                self.records.failures[_name(error)] += 1
            if isinstance(error, asyncio.CancelledError):
                raise
            return False
        done = time.perf_counter()
        self.records.all_answered += 1
        self.records.answered += self._begin <= done < self._end
        if counts:
            self._latencies.append(done - due)
            if stats:
                self.records.stages_us.update(stats.stages_us)
                self.records.batches[stats.batch_size, stats.padded_batch_size] += 1
        return True


def _name(error: BaseException) -> str:
    if isinstance(error, grpc.RpcError):
        return str(error.code().name)
    return type(error).__name__
