"""A server whose start fails, in a process of its own: ``python -m support.failing_server``.

The engine is a child that only listens. Arguments: the settings as JSON, and the error of each
try to start the engine, or nothing. It prints as JSON how the server ended.
"""

import errno
import json
import os
import sys
from typing import Any

import psutil

from gradcam_server.config.settings import ServeConfig
from gradcam_server.engine.ipc import spawned
from gradcam_server.engine.ipc.spawned import SpawnedEngine
from gradcam_server.errors import StartupError
from gradcam_server.serving import run

ERRORS: dict[str, Exception] = {
    "descriptors": OSError(errno.EMFILE, "Too many open files"),
    "memory": MemoryError(),
}


def serve(settings: dict[str, Any], error: Exception | None) -> dict[str, Any]:
    """Serves until the start has failed."""
    tries = []

    async def fail(config: ServeConfig) -> SpawnedEngine:
        assert error is not None
        tries.append(config)
        raise error

    def read_again() -> ServeConfig:
        raise AssertionError("nobody reloads")

    os.environ["GRADCAM_TEST_CHILD"] = "listen"
    spawned._MODULE = "support.child"
    if error is not None:
        SpawnedEngine.spawn = fail  # type: ignore[method-assign]
    text = ""
    try:
        run.run(ServeConfig(**settings), read_again)
    except StartupError as refused:
        text = str(refused)
    return {"error": text, "children": len(psutil.Process().children()), "tries": len(tries)}


if __name__ == "__main__":
    print(json.dumps(serve(json.loads(sys.argv[1]), ERRORS.get(sys.argv[2]))))
