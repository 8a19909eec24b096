"""A server answers by the whole CPU at once; its streams are measured and compiled behind that."""

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import numpy as np
import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphOutput, GraphTarget
from gradcam_server.domain.options import Compiler
from gradcam_server.domain.schedule import Answer, BatchReport
from gradcam_server.engine import engine as module
from gradcam_server.engine.backend import LocalBackend
from gradcam_server.engine.engine import Engine
from gradcam_server.graphs.compilers.streams import StreamTuner
from gradcam_server.graphs.executable import (
    Array,
    CompiledGraph,
    Divide,
    Division,
    Executables,
    RunAlone,
)
from gradcam_server.graphs.threads import set_compute_threads
from support.instant import InstantBackend

(MODEL,) = InstantBackend().catalog.models
SIZE = (2, 2)
IMAGE = GraphItem(np.zeros((*SIZE, 3), np.uint8), (GraphTarget(0),))
CONFIG = ServeConfig(model=(MODEL.id,), batch_sizes=(1, 2), compute_streams=2, compute_threads=2)
WAIT_S = 30.0


class Cpu:
    """A fake compiler of graphs for the whole CPU and two streams.

    Attributes:
        running: What computes now, by name.
        beside: Everything that computed while ``measure`` did.
        may_compile: Set when the streams may be compiled.
        may_run: Set when the batches of the whole CPU may end.
        began: Set when a batch of the whole CPU has begun.
        error: Raised instead of compiling the streams.
    """

    def __init__(self) -> None:
        self.running: list[str] = []
        self.beside: set[str] = set()
        self.may_compile, self.may_run, self.began = (threading.Event() for _ in range(3))
        self.may_run.set()
        self.error: Exception | None = None
        self.steps = 1
        self.is_measuring = False

    def run(self, name: str, images: Array, classes: Array, _: Array) -> Sequence[Array]:
        self.running.append(name)
        if self.is_measuring:
            self.beside.add(name)
        if name == "whole":
            self.began.set()
            assert self.may_run.wait(WAIT_S)
        count = len(images)
        logits = np.zeros((count, 3), np.float32)
        self.running.remove(name)
        return logits, logits, classes, logits[:, :1], np.zeros((count, 1, 2, 2), np.float32)

    @property
    def whole(self) -> Callable[..., Sequence[Array]]:
        return partial(self.run, "whole")

    def measure(self) -> None:
        self.is_measuring = True
        self.beside.update(self.running)
        time.sleep(0.002)  # requests come meanwhile
        self.is_measuring = False

    def divide(self, run_alone: RunAlone) -> Division:
        for _ in range(self.steps):
            run_alone(self.measure)
        assert self.may_compile.wait(WAIT_S)
        if self.error:
            raise self.error
        streams = [partial(self.run, "stream")] * 2
        return Division(streams, {1: 2e-9, 2: 4e-9})


class Source:
    """Compiles graphs of the whole CPU, and their streams by ``divide``."""

    device_count = 1
    served = MODEL

    def __init__(self, cpu: Cpu, divide: Divide) -> None:
        self._cpu, self._divide = cpu, divide

    def compile_soonest(self, key: GraphKey, batch_sizes: Sequence[int]) -> None:
        return None

    def compile(self, key: GraphKey, batch_sizes: Sequence[int]) -> CompiledGraph:
        executables = dict.fromkeys(batch_sizes, (self._cpu.whole,))
        cost_s = {size: size * 1e-9 for size in batch_sizes}
        return CompiledGraph(key, SIZE, Compiler.OPENVINO, executables, cost_s, divide=self._divide)


class Server:
    """A backend that has just become ready.

    Attributes:
        changes: The streams of the model, each time that its catalog changed.
        reported: The batches that were reported.
    """

    def __init__(self) -> None:
        self.engine = Engine(CONFIG)
        self.engine.warm_up()
        self.changes: list[int] = []
        self.reported: list[BatchReport] = []
        self.backend = LocalBackend(
            CONFIG,
            self.engine,
            lambda _, batch: self.reported.append(batch),
            lambda: self.changes.append(self.streams),
        )
        self.key = next(iter(self.engine.warm))

    @property
    def streams(self) -> int:
        return self.backend.catalog.models[0].streams

    async def ask(self, count: int = 1) -> list[Answer[GraphOutput]]:
        asked = (self.backend.compute(self.key, IMAGE) for _ in range(count))
        return await asyncio.wait_for(asyncio.gather(*asked), WAIT_S)


@pytest.fixture
def cpu() -> Cpu:
    return Cpu()


@asynccontextmanager
async def served(
    cpu: Cpu, monkeypatch: pytest.MonkeyPatch, divide: Divide | None = None
) -> AsyncIterator[Server]:
    monkeypatch.setattr(module, "open_source", lambda *_: Source(cpu, divide or cpu.divide))
    server = Server()
    try:
        yield server
    finally:
        cpu.may_compile.set()
        cpu.may_run.set()
        await server.backend.close()
        set_compute_threads(None)


async def until(condition: Callable[[], object]) -> None:
    """Waits for what other threads do."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - threads of an engine set no event
            await asyncio.sleep(0.001)


async def test_requests_are_answered_while_the_streams_are_compiled(
    cpu: Cpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the whole CPU, however long that takes; the catalog and the metrics say one stream."""
    async with served(cpu, monkeypatch) as server:
        answers = await server.ask(5)
        assert {answer.batch.device for answer in answers} == {0}
        assert {answer.compile_us for answer in answers} == {0}
        assert (server.streams, server.changes) == (1, [])


async def test_later_requests_get_the_streams(cpu: Cpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once they are compiled; images that ran or waited before keep the whole CPU."""
    async with served(cpu, monkeypatch) as server:
        cpu.may_run.clear()
        before = asyncio.create_task(server.ask(4))
        await asyncio.to_thread(cpu.began.wait, WAIT_S)
        cpu.may_compile.set()
        await asyncio.sleep(0)
        cpu.may_run.set()
        assert {answer.batch.device for answer in await before} == {0}
        await until(lambda: server.changes)
        assert server.changes == [2]
        # The last image may be left alone, and then has the whole CPU.
        assert {answer.batch.device for answer in await server.ask(6)} >= {1, 2}
        assert [answer.batch.device for answer in await server.ask(1)] == [0]


async def test_a_measurement_runs_between_batches(
    cpu: Cpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never beside one, and also while requests never pause; its runs are no batches of images."""
    cpu.steps = 20
    cpu.may_compile.set()
    async with served(cpu, monkeypatch) as server:
        asked = 0
        while not server.changes:
            await server.ask(3)
            asked += 3
        assert cpu.beside == set()
        assert sum(batch.size for batch in server.reported) == asked


@pytest.mark.parametrize("error", [RuntimeError("no memory"), MemoryError("no memory")])
async def test_without_streams_the_whole_cpu_goes_on(
    cpu: Cpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """If they cannot be compiled, one warning says why, and no request sees it."""

    class Model:
        whole = cpu.whole

        def divide(self, streams: int) -> Executables:
            raise error

    def divide(run_alone: RunAlone) -> Division:
        make = partial(lambda size: [np.zeros((size, *SIZE, 3), np.uint8)] * 3)
        return StreamTuner("m", 2).divide("graph", Model(), {1: 1e-9}, make, run_alone)

    with caplog.at_level(logging.WARNING):
        async with served(cpu, monkeypatch, divide) as server:
            await until(lambda: server.backend._adding_streams.done())
            assert {answer.batch.device for answer in await server.ask(5)} == {0}
            assert (server.streams, server.changes) == (1, [])
    assert [record.getMessage() for record in caplog.records] == ["m has no streams: no memory"]


async def test_an_error_of_the_measured_run_is_no_failed_batch(
    cpu: Cpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends the measurement, with one warning, and counts for no metric."""

    def fail() -> Division:
        raise ZeroDivisionError("division by zero")

    with caplog.at_level(logging.WARNING):
        async with served(cpu, monkeypatch, lambda run_alone: run_alone(fail)) as server:
            await until(lambda: server.backend._adding_streams.done())
            await server.ask(5)
            assert server.backend.failed_batch_count == 0
    (record,) = caplog.records
    assert "goes on without streams: division by zero" in record.getMessage()


@pytest.mark.parametrize("is_waiting", [True, False])
async def test_closing_ends_a_measurement_in_silence(
    cpu: Cpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_waiting: bool
) -> None:
    """Whether it waits for a batch to end, or asks for the device only after that."""
    ended, may_ask = threading.Event(), threading.Event()

    def divide(run_alone: RunAlone) -> Division:
        try:
            may_ask.wait(WAIT_S)
            run_alone(cpu.measure)
            return Division()
        finally:
            ended.set()

    with caplog.at_level(logging.DEBUG):
        async with served(cpu, monkeypatch, divide) as server:
            cpu.may_run.clear()
            running = asyncio.create_task(server.ask())
            await asyncio.to_thread(cpu.began.wait, WAIT_S)
            if is_waiting:
                may_ask.set()
                await until(lambda: server.backend._exclusive._waiting)
            closing = asyncio.create_task(server.backend.close())
            await asyncio.sleep(0)
            may_ask.set()
            cpu.may_run.set()
            await asyncio.gather(closing, running, return_exceptions=True)
        assert await asyncio.to_thread(ended.wait, WAIT_S)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
