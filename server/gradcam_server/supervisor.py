"""Keeps one engine running: starts it, replaces it, and starts it again when it is lost."""

import asyncio
import logging
from collections.abc import Callable, Coroutine

from gradcam_server import __version__
from gradcam_server.batching import BatchReport
from gradcam_server.config import ServeConfig
from gradcam_server.engine_process.messages import Heartbeat
from gradcam_server.engine_process.remote import RemoteComputer
from gradcam_server.errors import EngineLostError, StartupError
from gradcam_server.explainer import Explainer
from gradcam_server.front_ends.others import OtherFrontEnds
from gradcam_server.front_ends.shares import share
from gradcam_server.metrics import Metrics, ModelInfo

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0


class Supervisor:
    """The engine and what replaces it.

    Args:
        config: The settings.
        publish: Told which explainer answers from now on.
        withdraw: Told that none does, and for about how many seconds.
        metrics: Told what engines do, and how faithful sampled answers are.
        others: The other front ends; they ask each new engine before ``publish`` is told.
    """

    def __init__(
        self,
        config: ServeConfig,
        publish: Callable[[Explainer], None],
        withdraw: Callable[[float], None],
        metrics: Metrics,
        others: OtherFrontEnds,
    ) -> None:
        self._config, self._others = config, others
        self._publish, self._withdraw = publish, withdraw
        self._metrics = metrics
        self._failed_batch_count = 0
        self._changing = asyncio.Lock()
        self._computer: RemoteComputer | None = None
        self._explainer: Explainer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def queue_length(self) -> int:
        """Requests admitted and not yet on the device, of all front ends."""
        ours = self._explainer.queue_length if self._explainer is not None else 0
        return ours + self._others.queue_length

    def batch_ran(self, model: str, batch: BatchReport) -> None:
        """Counts a batch."""
        self._metrics.batch_done(model, batch.size, batch.padded_size, batch.reason)
        self._metrics.device_ran(batch.device, batch.compute_us / 1e6)

    def beat(self, pid: int, heartbeat: Heartbeat) -> None:
        """Measures the engine; one that was replaced counts no more."""
        if self._computer is None or self._computer.pid != pid:
            return
        self._metrics.engine_beat(
            pid, heartbeat.compilation_count, heartbeat.resident_bytes, heartbeat.device_bytes
        )
        self._metrics.retried_as_singles(heartbeat.failed_batch_count - self._failed_batch_count)
        self._failed_batch_count = heartbeat.failed_batch_count

    async def start(self) -> None:
        """Starts the engine.

        Raises:
            StartupError: It cannot start as configured, or dies while it starts.
        """
        try:
            await self._replace(self._config)
        except EngineLostError as error:
            raise StartupError(str(error)) from error

    async def reload(self, config: ServeConfig) -> None:
        """Starts an engine beside the old one, and puts it in its place once it is warm.

        No request is dropped: those in work are answered by the old one.

        Raises:
            StartupError: It cannot start as configured. The old one goes on.
            EngineLostError: It died while starting. The old one goes on.
        """
        async with self._changing:
            await self._replace(config)
            self._config = config

    async def close(self) -> None:
        """Stops the engine."""
        for task in self._tasks:
            task.cancel()
        if self._explainer is not None:
            await self._explainer.close()

    async def _replace(self, config: ServeConfig) -> None:
        computer = await RemoteComputer.start(config, self)
        try:
            await self._others.share(config, computer)
        except BaseException:
            await computer.close()
            raise
        old, old_computer = self._explainer, self._computer
        self._computer = computer
        self._explainer = Explainer(share(config), computer, self._metrics)
        self._failed_batch_count = 0
        self._tell_metrics(config, computer)
        self._publish(self._explainer)
        self._spawn(self._guard(computer))
        if old is not None and old_computer is not None:
            self._spawn(self._retire(old, old_computer))

    async def _guard(self, computer: RemoteComputer) -> None:
        reason = await asyncio.shield(computer.lost)
        if computer is not self._computer:
            logger.error("An engine that had been replaced was lost: %s", reason)
            return
        logger.error("The engine was lost: %s; starting it again", reason)
        self._withdraw(computer.started_in_s)
        self._metrics.engine_restarted()
        self._metrics.set_engine_up(False)
        pause_s = _FIRST_PAUSE_S
        async with self._changing:
            while self._computer is computer:
                try:
                    await self._replace(self._config)
                except (StartupError, EngineLostError) as error:
                    logger.error("The engine cannot be started: %s", error)  # noqa: TRY400
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _MAX_PAUSE_S)
        logger.info("The engine is back")

    async def _retire(self, explainer: Explainer, computer: RemoteComputer) -> None:
        await computer.wait_alone()
        await explainer.retire()

    def _tell_metrics(self, config: ServeConfig, computer: RemoteComputer) -> None:
        models = computer.catalog.models
        self._metrics.set_models(
            ModelInfo(model.id, model.weights, model.default_layer, model.compiler)
            for model in models
        )
        self._metrics.set_build(__version__, computer.tensorflow_version)
        self._metrics.set_engine_up(True)
        self._metrics.watch_queue(lambda: self.queue_length, config.max_queue_length * len(models))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
