"""Keeps one engine running: starts it, replaces it, and starts it again when it is lost."""

import asyncio
import logging
from collections.abc import Callable, Coroutine

from gradcam_server.computer import OnBatch
from gradcam_server.config import ServeConfig
from gradcam_server.engine_process.remote import RemoteComputer
from gradcam_server.errors import EngineLostError, StartupError
from gradcam_server.explainer import Explainer
from gradcam_server.sampling import Report

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 30.0


class Supervisor:
    """The engine and what replaces it.

    Args:
        config: The settings.
        publish: Told which explainer answers from now on.
        withdraw: Told that none does, and for about how many seconds.
        on_batch: Told of every batch that ran.
        report_faithfulness: Told how faithful sampled answers are.
    """

    def __init__(
        self,
        config: ServeConfig,
        publish: Callable[[Explainer], None],
        withdraw: Callable[[float], None],
        on_batch: OnBatch,
        report_faithfulness: Report,
    ) -> None:
        self._config = config
        self._publish, self._withdraw = publish, withdraw
        self._on_batch, self._report_faithfulness = on_batch, report_faithfulness
        self._changing = asyncio.Lock()
        self._computer: RemoteComputer | None = None
        self._explainer: Explainer | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.restart_count = 0

    @property
    def computer(self) -> RemoteComputer | None:
        """The engine that is asked, or was last."""
        return self._computer

    @property
    def queue_length(self) -> int:
        """Requests admitted and not yet on the device."""
        return self._explainer.queue_length if self._explainer is not None else 0

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
        computer = await RemoteComputer.start(config, self._on_batch)
        old, self._computer = self._explainer, computer
        self._explainer = Explainer(config, computer, self._report_faithfulness)
        self._publish(self._explainer)
        self._spawn(self._guard(computer))
        if old is not None:
            self._spawn(old.retire())

    async def _guard(self, computer: RemoteComputer) -> None:
        reason = await asyncio.shield(computer.lost)
        if computer is not self._computer:
            logger.error("An engine that had been replaced was lost: %s", reason)
            return
        logger.error("The engine was lost: %s; starting it again", reason)
        self._withdraw(computer.started_in_s)
        self.restart_count += 1
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

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
