"""Generates load in processes of their own: closed and open loops.

In a closed loop a number of users each send the next request when the last is answered: a slow
server gets fewer requests. In an open loop requests are due at random times that do not depend on
the server, as from real users; latency counts from the due time, so that a server or generator that
falls behind does not hide the wait ("coordinated omission").
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import grpc
import numpy as np
from numpy.typing import NDArray

from gradcam_server.bench.worker import Worker, WorkerError, cpu_s

# A generator that uses more than this share of a core distorts the latencies that it measures.
_MAX_CPU_SHARE = 0.8
# A generator that is late by more than this share of the median latency distorts them, too.
_MAX_LATENESS = 0.1
_DRAIN_S = 30.0
# A slope through fewer answers is no better than their number.
_MIN_SLOPE = 20


@dataclass(frozen=True)
class ServerStats:
    """The server's statistics of one answer.

    Attributes:
        stages_us: Microseconds of each stage, by name.
        batch_size: Images in the batch.
        padded_batch_size: The compiled batch size that ran.
    """

    stages_us: dict[str, int]
    batch_size: int
    padded_batch_size: int


class LoadClient(Protocol):
    """Sends the same request to a server again and again."""

    async def open(self) -> None:
        """Connects."""
        ...

    async def explain(self) -> ServerStats | None:
        """Sends the request and checks the answer; any exception counts as a failure."""
        ...

    async def close(self) -> None:
        """Disconnects."""
        ...


MakeLoadClient = Callable[[], LoadClient]
"""Makes a load client in the generator's process; must be picklable."""


@dataclass(frozen=True)
class Closed:
    """A closed loop: each user sends the next request when the last is answered.

    Attributes:
        concurrency: The number of users.
        seconds: The duration.
    """

    concurrency: int
    seconds: float

    def share(self, number: int, count: int) -> "Closed":
        """Returns what one of several generators does."""
        whole, rest = divmod(self.concurrency, count)
        return Closed(whole + (number < rest), self.seconds)


@dataclass(frozen=True)
class Open:
    """An open loop: requests at random times (a Poisson process), independent of the answers.

    Attributes:
        rate: Requests per second.
        seconds: The duration.
        seed: Seed of the times.
    """

    rate: float
    seconds: float
    seed: int = 0

    def share(self, number: int, count: int) -> "Open":
        """Returns what one of several generators does."""
        return Open(self.rate / count, self.seconds, self.seed * count + number)

    def times(self) -> Iterator[float]:
        """Yields the due times of the requests, in seconds from the start."""
        chance = random.Random(self.seed)  # noqa: S311 - arrival times
        due = 0.0
        while (due := due + chance.expovariate(self.rate)) < self.seconds:
            yield due


Load = Closed | Open


@dataclass
class Records:
    """Measurements of one load. All but ``all_answered`` leave out its beginning, ``settle_s``.

    Attributes:
        seconds: The measured time.
        requests: Requests due in the measured time.
        answered: Answers received in the measured time.
        answered_at_s: When they were received, in a closed loop; float64.
        all_answered: Answers received from the start of the load to its end.
        latencies_s: Seconds from due time to answer, of the requests that were answered, float64,
            shape (requests,).
        lags_s: Seconds from due time to sending, float64.
        failures: Number of failed requests, by gRPC code or exception.
        stages_us: Microseconds by stage, summed over the answers.
        batches: Number of answers by their batch's (size, padded size).
        cpu_shares: CPU time over wall-clock time of each generator; 1 is one core.
    """

    seconds: float = 0.0
    requests: int = 0
    answered: int = 0
    all_answered: int = 0
    latencies_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    lags_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    failures: Counter[str] = field(default_factory=Counter)
    stages_us: Counter[str] = field(default_factory=Counter)
    batches: Counter[tuple[int, int]] = field(default_factory=Counter)
    cpu_shares: list[float] = field(default_factory=list)
    answered_at_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def images_per_s(self) -> float:
        """Answers per second.

        In a closed loop it is the slope of the number of answers over time, by least squares: the
        answers of a batch come together, so that the mere number depends on whether the last batch
        ended just before the end or just after it.
        """
        times = self.answered_at_s
        if times.size < _MIN_SLOPE or np.ptp(times) < self.seconds / 2:
            return self.answered / self.seconds
        times = np.sort(times) - times.mean()
        counts = np.arange(times.size) - (times.size - 1) / 2
        return float(times @ counts / (times @ times))

    @property
    def bottleneck(self) -> str:
        """Why the generator may have limited the measurement; empty if it did not."""
        if max(self.cpu_shares, default=0) > _MAX_CPU_SHARE:
            return f"the generator used {max(self.cpu_shares):.0%} of its core"
        if self.lags_s.size and self.latencies_s.size:
            late = float(np.quantile(self.lags_s, 0.99))
            if late > _MAX_LATENESS * float(np.median(self.latencies_s)):
                return f"1 % of the requests were sent {late * 1e3:.1f} ms late or more"
        return ""


def merge(parts: Sequence[Records], *, parallel: bool) -> Records:
    """Adds records of generators (``parallel``: they ran at the same time) or of rounds."""
    seconds = [0.0, *(part.seconds for part in parts)]
    joined = Records(max(seconds) if parallel else sum(seconds))
    for part in parts:
        joined.requests += part.requests
        joined.answered += part.answered
        joined.all_answered += part.all_answered
        joined.failures += part.failures
        joined.stages_us += part.stages_us
        joined.batches += part.batches
        joined.cpu_shares += part.cpu_shares
    joined.latencies_s = np.concatenate([np.empty(0), *(part.latencies_s for part in parts)])
    joined.answered_at_s = np.concatenate([np.empty(0), *(part.answered_at_s for part in parts)])
    joined.lags_s = np.concatenate([np.empty(0), *(part.lags_s for part in parts)])
    return joined


class Generators(AbstractContextManager["Generators"]):
    """Processes that generate load, each on its own event loop.

    Args:
        count: Their number. One process sends a few thousand small requests per second.
    """

    def __init__(self, count: int = 1) -> None:
        self._workers = [Worker(_Generator) for _ in range(count)]

    def run(self, make: MakeLoadClient, load: Load, settle_s: float = 0.0) -> Records:
        """Generates a load, and waits for its last answer.

        Args:
            make: Makes the client in each process.
            load: The load of all processes together.
            settle_s: Seconds at the beginning that are not measured.

        Raises:
            WorkerError: The server does not answer at all.
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
        return merge(_receive(busy), parallel=True)

    def close(self) -> None:
        """Ends the processes."""
        for worker in self._workers:
            worker.close()

    def __exit__(self, *_: object) -> None:
        self.close()


def _receive(workers: Sequence[Worker]) -> list[Records]:
    """Receives the result of every worker before it raises the first error."""
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
        await self._client.explain()  # establishes the connection before the load

    async def _run(self, load: Load, settle_s: float) -> Records:
        assert self._client
        started, used = time.perf_counter(), cpu_s()
        recorder = _Recorder(self._client, started + settle_s, started + load.seconds)
        try:
            if isinstance(load, Closed):
                await asyncio.gather(*(recorder.repeat() for _ in range(load.concurrency)))
            else:
                await recorder.send_at([started + due for due in load.times()])
            recorder.records.cpu_shares.append((cpu_s() - used) / (time.perf_counter() - started))
            return recorder.finish()
        finally:
            await self._client.close()


class _Recorder:
    """Sends requests, and records those that are due from ``begin`` until ``end``."""

    def __init__(self, client: LoadClient, begin: float, end: float) -> None:
        self._client, self._begin, self._end = client, begin, end
        self._latencies: list[float] = []
        self._lags: list[float] = []
        self._answered_at: list[float] = []
        self.records = Records(end - begin)

    def finish(self) -> Records:
        self.records.latencies_s = np.array(self._latencies, float)
        self.records.lags_s = np.array(self._lags, float)
        self.records.answered_at_s = np.array(self._answered_at, float)
        return self.records

    async def repeat(self) -> None:
        while (now := time.perf_counter()) < self._end:
            if not await self._send(now):
                await asyncio.sleep(0.01)  # do not flood a server that refuses at once
            elif self._begin <= (done := time.perf_counter()) < self._end:
                self._answered_at.append(done)

    async def send_at(self, times: Sequence[float]) -> None:
        tasks = []
        for due in times:
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self._send(due)))
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_DRAIN_S)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _send(self, due: float) -> bool:
        counts = due >= self._begin
        self.records.requests += counts
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
