"""Runs a server. The engine's process starts first, and both processes import side by side."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext, suppress

from gradcam_server.config.settings import ServeConfig
from gradcam_server.engine.ipc.spawned import SpawnedEngine
from gradcam_server.telemetry.memory import share_heap
from gradcam_server.telemetry.native_stderr import logged_as_json

logger = logging.getLogger(__name__)


def run(config: ServeConfig, read_again: Callable[[], ServeConfig]) -> int:
    """Serves until SIGTERM or SIGINT. A second signal ends the drain at once.

    SIGHUP loads the models anew beside the old ones, and replaces those when the new are warm.

    Args:
        config: The settings.
        read_again: Reads the settings again, for a reload.

    Returns:
        The exit status: 0 after a complete drain, 1 if requests had to be cut off.

    Raises:
        StartupError: The server cannot start as configured.
    """
    share_heap()
    json = config.log_format == "json"
    with logged_as_json(config.log_level) if json else nullcontext():
        return asyncio.run(_run(config, read_again))


async def _run(config: ServeConfig, read_again: Callable[[], ServeConfig]) -> int:
    spawned: SpawnedEngine | None = None
    with suppress(OSError, MemoryError):  # the supervisor tries again, and reports the error
        spawned = await SpawnedEngine.spawn(config)
    try:
        from gradcam_server.serving.server import Server

        logger.debug("Imported the front end")
        return await Server(config, read_again, spawned).run()
    finally:
        if spawned is not None:
            await spawned.close()
