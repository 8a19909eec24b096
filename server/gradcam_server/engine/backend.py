"""Computes images: the pipeline's view of an engine, in this process or in another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Protocol, cast

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import Catalog
from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphOutput
from gradcam_server.domain.schedule import Answer, BatchReport, OnDispatch, Urgency
from gradcam_server.engine.batcher import Batcher, BatchRunner, Job
from gradcam_server.engine.exclusive import Exclusive, ExclusiveRunner

if TYPE_CHECKING:
    from gradcam_server.engine.engine import Engine
    from gradcam_server.graphs.executable import CompiledGraph

OnBatch = Callable[[str, BatchReport], None]
"""Called with the id of the model and the report of a batch that ran."""


class Backend(Protocol):
    """Computes images by compiled graphs, in batches."""

    @property
    def catalog(self) -> Catalog:
        """The models and the warm graphs."""
        ...

    @property
    def compilation_count(self) -> int:
        """Graphs compiled since the start, warm-up included."""
        ...

    async def compute(
        self,
        key: GraphKey,
        item: GraphItem,
        on_dispatch: OnDispatch | None = None,
        urgency: Urgency = ...,
    ) -> Answer[GraphOutput]:
        """Computes one image, in a batch with others for the same graph.

        Args:
            key: The graph; it is compiled at its first use.
            item: The image and its targets.
            on_dispatch: Called when the image leaves the queue.
            urgency: When it must be computed.

        Raises:
            InvalidRequestError: The graph cannot be, or may not be, compiled.
            DeadlineError: The answer would come too late.
            QueueFullError: The image waited too long.
            EngineLostError: The engine died before it answered.
        """
        ...

    async def close(self) -> None:
        """Stops the engine."""
        ...


class LocalBackend:
    """An engine in this process. Must be made, used and closed on one event loop.

    It answers at once. The streams of warm graphs are compiled in the background.

    Args:
        config: The settings.
        engine: The models and graphs; closed with the backend.
        on_batch: Called after every batch.
        on_change: Called when the catalog has changed.
    """

    def __init__(
        self,
        config: ServeConfig,
        engine: Engine,
        on_batch: OnBatch | None = None,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._on_batch = on_batch
        self._batcher: Batcher[GraphItem, GraphOutput] = Batcher(
            config.max_queue_delay_us / 1e6,
            config.many_pass_share,
            self._report,
            engine.device_count,
        )
        self._exclusive = Exclusive(self._batcher)
        self._compiling: set[asyncio.Task[None]] = set()
        self._adding_streams = asyncio.create_task(engine.add_streams(self._exclusive, on_change))

    @property
    def catalog(self) -> Catalog:
        """The models and the warm graphs."""
        return self._engine.catalog

    @property
    def compilation_count(self) -> int:
        """Graphs compiled since the start, warm-up included."""
        return self._engine.compilation_count

    @property
    def running_s(self) -> float:
        """How long the longest running batch has been running, in seconds; 0 if there is none."""
        return self._batcher.running_s

    @property
    def failed_batch_count(self) -> int:
        """Batches that failed and were run again one by one."""
        return self._batcher.failed_batch_count

    async def compute(
        self,
        key: GraphKey,
        item: GraphItem,
        on_dispatch: OnDispatch | None = None,
        urgency: Urgency = Urgency(),  # noqa: B008 - it is frozen
    ) -> Answer[GraphOutput]:
        """Computes one image; see ``Backend``."""
        graph, compile_us = self._engine.ready(key), 0
        if graph is None:
            began = perf_counter()
            graph = await self._engine.graph(key)
            compile_us = round((perf_counter() - began) * 1e6)
        answer = await self._batcher.submit(graph, item, on_dispatch, urgency)
        return answer._replace(compile_us=compile_us) if compile_us else answer

    def submit(self, key: GraphKey, jobs: Sequence[Job[GraphItem, GraphOutput]]) -> None:
        """Computes images, as ``compute`` does; each job is told what becomes of it."""
        graph = self._engine.ready(key)
        if graph is not None:
            self._batcher.add(graph, jobs)
            return
        task = asyncio.create_task(self._submit_when_compiled(key, jobs))
        self._compiling.add(task)
        task.add_done_callback(self._compiling.discard)

    async def _submit_when_compiled(
        self, key: GraphKey, jobs: Sequence[Job[GraphItem, GraphOutput]]
    ) -> None:
        began = perf_counter()
        try:
            graph = await self._engine.graph(key)
        except Exception as error:  # noqa: BLE001 - handed to the callers
            for job in jobs:
                job.fail(error)
            return
        now = perf_counter()
        for job in jobs:
            job.compile_us, job.queued_at = round((now - began) * 1e6), now
        self._batcher.add(graph, jobs)

    async def close(self) -> None:
        """Stops after the batches that are running."""
        for task in self._compiling:
            task.cancel()
        self._adding_streams.cancel()
        self._exclusive.close()
        await self._batcher.close()
        self._engine.close()

    def _report(self, runner: BatchRunner[GraphItem, GraphOutput], batch: BatchReport) -> None:
        if self._on_batch is not None and not isinstance(runner, ExclusiveRunner):
            self._on_batch(cast("CompiledGraph", runner).key.model, batch)
