"""Keeps one engine running: starts it, replaces it, and restarts it when it is lost."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from gradcam_server import __version__
from gradcam_server.config.settings import ServeConfig
from gradcam_server.config.shares import share
from gradcam_server.domain.schedule import BatchReport
from gradcam_server.engine.ipc.child_process import BACKOFF, Backoff, keep_running
from gradcam_server.engine.ipc.messages import Heartbeat
from gradcam_server.engine.ipc.process import RemoteBackend
from gradcam_server.engine.ipc.spawned import SpawnedEngine
from gradcam_server.errors import EngineLostError, StartupError, failure_reason
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.serving.front_ends.pool import FrontEndPool
from gradcam_server.telemetry.metrics import Metrics, ModelInfo

logger = logging.getLogger(__name__)


class Supervisor:
    """The engine and its replacements.

    Args:
        config: The settings.
        publish: Called with the explainer that answers from now on.
        withdraw: Called with a restart's expected seconds when no explainer answers.
        metrics: Counts batches, restarts and the faithfulness of sampled answers.
        pool: The other front ends; they join each new engine before ``publish`` is called.
        backoff: The pauses before an engine that is lost, or cannot start, is started again.
    """

    def __init__(
        self,
        config: ServeConfig,
        publish: Callable[[Explainer], None],
        withdraw: Callable[[float], None],
        metrics: Metrics,
        pool: FrontEndPool,
        backoff: Backoff = BACKOFF,
    ) -> None:
        self._config, self._pool = config, pool
        self._publish, self._withdraw = publish, withdraw
        self._metrics, self._backoff = metrics, backoff
        self._failed_batch_count = 0
        self._changing = asyncio.Lock()
        self._backend: RemoteBackend | None = None
        self._explainer: Explainer | None = None
        self._closing = asyncio.Event()
        self._guard: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def is_guarding(self) -> bool:
        """Whether a lost engine is started again; also true before ``start`` has returned."""
        return self._closing.is_set() or self._guard is None or not self._guard.done()

    @property
    def queue_lengths(self) -> dict[str, int]:
        """Requests admitted and not yet on the device, of all front ends, by queue."""
        lengths = Counter[str](self._pool.queue_lengths)
        lengths.update(self._explainer.queue_lengths if self._explainer is not None else {})
        return lengths

    @property
    def thread_counts(self) -> dict[str, int]:
        """Threads that decode or render, of all front ends, by state."""
        counts = Counter[str](self._pool.thread_counts)
        counts.update(self._explainer.thread_counts if self._explainer is not None else {})
        return counts

    def batch_ran(self, model: str, batch: BatchReport) -> None:
        """Counts a batch."""
        self._metrics.batch_done(model, batch.size, batch.padded_size, batch.reason)
        self._metrics.device_ran(batch.device, batch.compute_us / 1e6)

    def beat(self, pid: int, heartbeat: Heartbeat) -> None:
        """Passes a heartbeat on to the metrics, unless its engine was replaced."""
        if self._backend is None or self._backend.pid != pid:
            return
        self._metrics.engine_beat(
            pid, heartbeat.compilation_count, heartbeat.resident_bytes, heartbeat.device_bytes
        )
        self._metrics.retried_as_singles(heartbeat.failed_batch_count - self._failed_batch_count)
        self._failed_batch_count = heartbeat.failed_batch_count

    def catalog_changed(self, pid: int) -> None:
        """Passes the models of an engine on to the metrics, unless the engine was replaced."""
        if self._backend is not None and self._backend.pid == pid:
            self._tell_models(self._backend)

    async def start(self, spawned: SpawnedEngine | None = None) -> None:
        """Starts the engine.

        Args:
            spawned: Its process, if it runs already.

        Raises:
            StartupError: The engine cannot start as configured, dies while it starts, or there is
                no descriptor, process or memory left for it.
        """
        try:
            await self._replace(self._config, spawned)
        except EngineLostError as error:
            raise StartupError(str(error)) from error
        except (OSError, MemoryError) as error:
            raise StartupError(f"the engine cannot start: {failure_reason(error)}") from error
        self._watch_over()

    async def reload(self, config: ServeConfig) -> None:
        """Starts an engine beside the old one, and replaces that once the new engine is warm.

        No request is dropped: the old engine answers the requests in work. If the new engine cannot
        start, the old engine stays.

        Raises:
            StartupError: The new engine cannot start as configured.
            EngineLostError: The new engine died while starting.
            OSError: There is no descriptor, process or memory left for it.
        """
        async with self._changing:
            await self._replace(config)
            self._config = config
            self._watch_over()

    async def close(self) -> None:
        """Stops the engine, and an engine that is being started."""
        self._closing.set()
        tasks = [*self._tasks, *([self._guard] if self._guard else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._explainer is not None:
            await self._explainer.close()

    async def _replace(self, config: ServeConfig, spawned: SpawnedEngine | None = None) -> None:
        """Starts an engine and replaces the old one; if this fails, the old one stays."""
        backend = await RemoteBackend.start(config, self, spawned)
        try:
            explainer = Explainer(share(config), backend, self._metrics)
            await self._pool.share(config, backend)
            self._tell_metrics(config, backend)
            self._publish(explainer)
        except BaseException:
            await backend.close()
            raise
        old, old_backend = self._explainer, self._backend
        self._backend, self._explainer = backend, explainer
        self._failed_batch_count = 0
        if old is not None and old_backend is not None:
            self._retire(old, old_backend)

    def _watch_over(self) -> None:
        """Keeps the new engine running, with a new back-off."""
        if self._guard is not None:
            self._guard.cancel()
        keeping = keep_running("The engine", self._run, self._closing, backoff=self._backoff)
        self._guard = asyncio.create_task(keeping, name="guard of the engine")

    async def _run(self) -> str:
        """Restarts the engine if it is lost; waits for its next loss and returns the reason."""
        backend = await self._revive()
        await asyncio.wait({backend.lost})
        self._withdraw(backend.started_in_s)
        self._metrics.engine_restarted()
        self._metrics.set_engine_up(False)
        return backend.lost.result()

    async def _revive(self) -> RemoteBackend:
        async with self._changing:  # not in pauses, so that a reload may be the remedy
            assert self._backend is not None
            if self._backend.lost.done():
                await self._replace(self._config)
                logger.info("The engine is back")
            return self._backend

    def _retire(self, explainer: Explainer, backend: RemoteBackend) -> None:
        """Ends a replaced engine after its last answer."""

        async def retire() -> None:
            await backend.wait_alone()
            await explainer.retire()

        def log_loss(lost: asyncio.Future[str]) -> None:
            if not lost.cancelled():
                logger.error("A replaced engine was lost: %s", lost.result())

        if not backend.lost.done():
            backend.lost.add_done_callback(log_loss)
        task = asyncio.create_task(retire())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell_metrics(self, config: ServeConfig, backend: RemoteBackend) -> None:
        self._tell_models(backend)
        self._metrics.set_build(__version__, backend.tensorflow_version)
        self._metrics.set_engine_up(True)
        limit = config.max_queue_length * len(backend.catalog.models)
        self._metrics.watch_queues(lambda: self.queue_lengths, limit)
        self._metrics.watch_worker_threads(lambda: self.thread_counts)

    def _tell_models(self, backend: RemoteBackend) -> None:
        self._metrics.set_models(
            ModelInfo(
                model.id, model.weights, model.default_layer, model.compiler, str(model.streams)
            )
            for model in backend.catalog.models
        )
