"""Graphs that are not warm: a quick graph answers first, and a faster graph replaces it."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest

from gradcam_server.batch.throughput import ThroughputEngine
from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import ServedModel
from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphTarget
from gradcam_server.domain.options import Compiler
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.engine import engine as module
from gradcam_server.engine.backend import LocalBackend
from gradcam_server.engine.engine import Engine, FirstUse
from gradcam_server.engine.sources.model import ModelSource
from gradcam_server.errors import CompilerError, InvalidRequestError
from gradcam_server.graphs.executable import Array, CompiledGraph
from support.instant import InstantBackend

(MODEL,) = InstantBackend().catalog.models
SIZE = (2, 2)
IMAGE = GraphItem(np.zeros((*SIZE, 3), np.uint8), (GraphTarget(0),))
WAIT_S = 30.0


def key(method: Method = Method.GRAD_CAM, layer: str = "top") -> GraphKey:
    return GraphKey(MODEL.id, (layer,), method, ScoreType.LOGIT, 1)


def graph_of(key: GraphKey, compiler: Compiler, on_run: Callable[[], None]) -> CompiledGraph:
    def run(images: Array, classes: Array, _: Array) -> Sequence[Array]:
        on_run()
        count = len(images)
        logits = np.zeros((count, 3), np.float32)
        return logits, logits, classes, logits[:, :1], np.zeros((count, 1, 2, 2), np.float32)

    return CompiledGraph(key, SIZE, compiler, {1: (run,), 2: (run,)}, {1: 1e-9, 2: 2e-9})


class Source:
    """Compiles when it is let: ``compile`` waits until ``may_finish`` is set.

    Its graphs write down which compiler's they are, and run when ``may_run`` is set.
    """

    device_count = 1
    served: ServedModel = MODEL

    def __init__(self) -> None:
        self.soonest: list[GraphKey] = []
        self.compiled: list[GraphKey] = []
        self.has_quick_way = True
        self.quick_error: Exception | None = None
        self.error: Exception | None = None
        self.may_finish, self.may_run = threading.Event(), threading.Event()
        self.ran: list[Compiler] = []
        self.may_run.set()

    def graph(self, key: GraphKey, compiler: Compiler) -> CompiledGraph:
        def on_run() -> None:
            self.ran.append(compiler)
            assert self.may_run.wait(WAIT_S)

        return graph_of(key, compiler, on_run)

    def compile_soonest(self, key: GraphKey, batch_sizes: Sequence[int]) -> CompiledGraph | None:
        self.soonest.append(key)
        if self.quick_error:
            raise self.quick_error
        return self.graph(key, Compiler.TENSORFLOW) if self.has_quick_way else None

    def compile(self, key: GraphKey, batch_sizes: Sequence[int]) -> CompiledGraph:
        self.compiled.append(key)
        assert self.may_finish.wait(WAIT_S)
        if self.error:
            raise self.error
        return self.graph(key, Compiler.OPENVINO)


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    """The source of graphs for the engines of this test."""
    one = Source()
    monkeypatch.setattr(module, "open_source", lambda *_: one)
    return one


Make = Callable[..., Engine]


@pytest.fixture
async def make(source: Source) -> AsyncIterator[Make]:
    """Makes engines, closed when the test ends."""
    made: list[Engine] = []

    def engine(first_use: FirstUse = FirstUse.SOONEST_THEN_FASTEST, **settings: object) -> Engine:
        config = ServeConfig(model=(MODEL.id,), batch_sizes=(1, 2), **settings)  # type: ignore[arg-type]
        made.append(Engine(config, first_use))
        return made[-1]

    yield engine
    source.may_finish.set()
    for one in made:
        one.close()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what other threads do."""
    async with asyncio.timeout(WAIT_S):
        while not condition():  # noqa: ASYNC110 - threads of an engine set no event
            await asyncio.sleep(0.001)


async def test_a_faster_graph_takes_the_place_of_the_first(make: Make, source: Source) -> None:
    """Requests are answered while it is prepared; later requests get it; it is prepared once."""
    engine = make()
    first = await engine.graph(key())
    assert first.compiler is Compiler.TENSORFLOW
    await until(lambda: bool(source.compiled))
    assert await engine.graph(key()) is engine.ready(key()) is first
    source.may_finish.set()
    await until(lambda: engine.ready(key()) is not first)
    better = await engine.graph(key())
    assert better.compiler is Compiler.OPENVINO
    assert await engine.graph(key()) is better
    assert source.soonest == source.compiled == [key()]


async def test_images_keep_the_graph_they_began_with(make: Make, source: Source) -> None:
    """Items that run or wait while a graph is replaced are answered by the old graph."""
    engine = make()
    backend = LocalBackend(ServeConfig(model=(MODEL.id,), batch_sizes=(1, 2)), engine)
    source.may_run.clear()
    running = asyncio.create_task(backend.compute(key(), IMAGE))
    await until(lambda: bool(source.ran))
    waiting = asyncio.create_task(backend.compute(key(), IMAGE))
    first = await engine.graph(key())
    source.may_finish.set()
    await until(lambda: engine.ready(key()) is not first)
    source.may_run.set()
    await asyncio.gather(running, waiting)
    assert source.ran == [Compiler.TENSORFLOW] * 2
    await backend.compute(key(), IMAGE)
    assert source.ran[2:] == [Compiler.OPENVINO]
    await backend.close()


async def test_other_first_uses_do_not_wait_for_what_is_prepared_behind(
    make: Make, source: Source
) -> None:
    """However long a trial of compilers takes, the next new layer is answered at once."""
    engine = make()
    await engine.graph(key())
    await until(lambda: bool(source.compiled))  # and does not end
    for method in (Method.LAYER_CAM, Method.HIRES_CAM):
        assert (await engine.graph(key(method))).key == key(method)
    assert source.compiled == [key()]


@pytest.mark.parametrize(
    "error",
    [InvalidRequestError("method", "no compiler can"), RuntimeError("zip()"), MemoryError()],
)
async def test_what_cannot_be_prepared_better_stays(
    make: Make, source: Source, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """A failure of the replacement is logged, not tried again, and seen by no request."""
    source.error = error
    source.may_finish.set()
    engine = make()
    first = await engine.graph(key())
    with caplog.at_level(logging.WARNING):
        await until(lambda: bool(caplog.records))
    assert "goes on as it was compiled first" in caplog.text
    for _ in range(3):
        assert await engine.graph(key()) is first
    assert source.compiled == [key()]


async def test_evicted_graphs_are_not_prepared(make: Make, source: Source) -> None:
    """A compilation that waits is dropped; the result of a running one is not kept."""
    engine = make(max_extra_graphs=1)
    await engine.graph(key())
    await until(lambda: bool(source.compiled))
    await engine.graph(key(Method.LAYER_CAM))  # evicts the first, and waits for the compiler
    last = await engine.graph(key(Method.HIRES_CAM))  # evicts the second
    source.may_finish.set()
    await until(lambda: engine.ready(key(Method.HIRES_CAM)) is not last)
    assert source.compiled == [key(), key(Method.HIRES_CAM)]
    assert engine.ready(key()) is engine.ready(key(Method.LAYER_CAM)) is None


async def test_a_graph_without_a_quick_way_is_compiled_once(make: Make, source: Source) -> None:
    """The first request waits for it, as with exports; nothing replaces it."""
    source.has_quick_way = False
    source.may_finish.set()
    engine = make()
    graph = await engine.graph(key())
    assert graph.compiler is Compiler.OPENVINO
    assert await engine.graph(key()) is graph
    assert source.compiled == [key()]


async def test_few_images_never_get_the_slow_way(make: Make, source: Source) -> None:
    """One-off commands end before it would be ready."""
    engine = make(FirstUse.SOONEST)
    first = await engine.graph(key())
    assert await engine.graph(key()) is first
    assert source.compiled == []


async def test_many_images_wait_for_the_fastest(make: Make, source: Source) -> None:
    """The quick way is not tried."""
    source.may_finish.set()
    engine = make(FirstUse.FASTEST)
    assert (await engine.graph(key())).compiler is Compiler.OPENVINO
    assert source.soonest == []


async def test_batch_jobs_wait_for_the_fastest(source: Source) -> None:
    """All images of a job go through one graph, of the batch sizes that pay."""
    source.may_finish.set()
    engine = ThroughputEngine(ServeConfig(model=(MODEL.id,), batch_sizes=(1, 2)))
    graph = await engine.graph(key())
    assert graph is engine.ready(key()) is await engine.graph(key())
    assert (graph.compiler, graph.batch_sizes) == (Compiler.OPENVINO, (1,))
    assert source.soonest == []
    engine.close()


async def test_a_failed_first_compilation_is_tried_again(make: Make, source: Source) -> None:
    """All waiting requests raise the error; the next request starts anew."""
    source.quick_error = InvalidRequestError("layers", "the classes do not depend on it")
    engine = make()
    failures = await asyncio.gather(
        engine.graph(key()), engine.graph(key()), return_exceptions=True
    )
    assert [type(one) for one in failures] == [InvalidRequestError] * 2
    assert source.soonest == [key()]
    source.quick_error = None
    assert (await engine.graph(key())).key == key()


async def test_a_slow_first_compilation_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, source: Source
) -> None:
    """While it goes on, however many wait for it; a quick compilation is not reported."""
    reported: list[GraphKey] = []
    config = ServeConfig(model=(MODEL.id,), batch_sizes=(1, 2))
    engine = Engine(config, FirstUse.FASTEST, reported.append)
    monkeypatch.setattr(module, "SLOW_S", 0.0)
    waiting = asyncio.gather(*(engine.graph(key()) for _ in range(3)))
    await until(lambda: bool(reported))
    source.may_finish.set()
    await waiting
    monkeypatch.setattr(module, "SLOW_S", WAIT_S)
    await engine.graph(key(Method.LAYER_CAM))
    assert reported == [key()]
    engine.close()


async def test_only_those_who_wait_for_the_compiler_are_told_how_long(
    make: Make, source: Source
) -> None:
    """Answers of the first use carry the time of compiling; answers after it carry none."""
    source.has_quick_way = False
    engine = make()
    backend = LocalBackend(ServeConfig(model=(MODEL.id,), batch_sizes=(1, 2)), engine)
    first = asyncio.create_task(backend.compute(key(), IMAGE))
    await until(lambda: bool(source.compiled))
    source.may_finish.set()
    assert (await first).compile_us > 0
    assert (await backend.compute(key(), IMAGE)).compile_us == 0
    await backend.close()


@pytest.mark.parametrize(
    "error",
    [
        CompilerError("a SavedModel has its own precision"),
        ValueError("Cannot reshape a tensor"),
        RuntimeError("no such operation"),
    ],
)
def test_a_model_that_tensorflow_cannot_trace_has_no_quick_way(error: Exception) -> None:
    """The other compilers may succeed, so this is no failure."""

    def refuse(*_: object) -> CompiledGraph:
        raise error

    one = object.__new__(ModelSource)
    one.loaded, one._counter = None, None  # type: ignore[assignment]
    one._config, one._others = ServeConfig(), []
    one._soonest = refuse  # type: ignore[assignment]
    assert one.compile_soonest(key(), (1,)) is None
