"""The process of an engine that is started before anybody waits for it."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import Catalog
from gradcam_server.engine.ipc import child_process, spawned
from gradcam_server.engine.ipc.messages import Ready, send
from gradcam_server.engine.ipc.process import EngineObserver, RemoteBackend
from gradcam_server.engine.ipc.spawned import SpawnedEngine
from gradcam_server.errors import EngineLostError
from support.child import choose
from support.leftovers import Leftovers

OBSERVER = cast("EngineObserver", None)  # these engines report nothing


@pytest.mark.parametrize(
    "module",
    [
        "gradcam_server.cli.serve",
        "gradcam_server.engine.ipc.spawned",
        "gradcam_server.serving.run",
    ],
)
def test_what_runs_before_the_engine_imports_little(module: str) -> None:
    """The engine's process waits for none of the front end's packages."""
    slow = {"cv2", "google", "gradcam_client", "grpc", "numpy", "openvino", "prometheus_client"}
    program = f"import sys, {module}; print(*sorted({slow} & sys.modules.keys()))"
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not run.stdout.split()


async def test_the_spawned_process_becomes_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second process is started for it, and closing what was spawned leaves it alone."""
    frame = tmp_path / "ready"
    with frame.open("wb") as file:
        send(cast("asyncio.StreamWriter", file), Ready(Catalog((), (), (1,), 5), 3, "2.21.0"))
    monkeypatch.setenv("GRADCAM_TEST_READY", str(frame))
    monkeypatch.setattr(spawned, "_MODULE", choose(monkeypatch, "engine"))
    leftovers = Leftovers()
    early = await SpawnedEngine.spawn(ServeConfig())
    engine = await RemoteBackend.start(ServeConfig(), OBSERVER, early)
    await early.close()
    assert engine.pid == early.child.pid
    assert not engine.lost.done()
    await engine.close()
    await leftovers.check()


@pytest.mark.parametrize("behaviour", ["die", "die_unread", "garbage"])
async def test_a_spawned_process_that_dies_is_reported_by_the_start(
    behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it has died before the start waits for it."""
    monkeypatch.setattr(child_process, "CLOSE_S", 0.5)
    monkeypatch.setattr(spawned, "_MODULE", choose(monkeypatch, behaviour))
    leftovers = Leftovers()
    early = await SpawnedEngine.spawn(ServeConfig())
    await asyncio.sleep(0.2)
    with pytest.raises(EngineLostError, match="the engine died while starting"):
        await RemoteBackend.start(ServeConfig(), OBSERVER, early)
    await leftovers.check()


@pytest.mark.parametrize("behaviour", ["listen", "stay", "die"])
async def test_a_spawned_process_that_is_not_needed_is_killed(
    behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server cannot bind its port, for example; nothing is left."""
    monkeypatch.setattr(spawned, "_MODULE", choose(monkeypatch, behaviour))
    leftovers = Leftovers()
    early = await SpawnedEngine.spawn(ServeConfig())
    await early.close()
    await early.close()
    await leftovers.check()
