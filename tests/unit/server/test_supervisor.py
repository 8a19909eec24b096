"""What keeps an engine running, with engines that only sleep."""

import asyncio
import os
import socket
import sys
from collections.abc import AsyncIterator

import pytest

from gradcam_server.catalog import Catalog, ServedModel
from gradcam_server.child_process import ChildProcess
from gradcam_server.config import Compiler, ServeConfig
from gradcam_server.engine_process.door import make_door
from gradcam_server.engine_process.messages import Ready
from gradcam_server.engine_process.remote import RemoteComputer
from gradcam_server.engine_process.slots import SlotReader, create_memory
from gradcam_server.front_ends.others import OtherFrontEnds
from gradcam_server.labels import ClassLabel, ClassLabels
from gradcam_server.metrics import Metrics
from gradcam_server.models.preprocessing import Preprocessing
from gradcam_server.supervisor import Supervisor

CONFIG = ServeConfig(compiler=Compiler.AUTO)
MODEL = ServedModel(
    "m",
    "",
    ClassLabels([ClassLabel("cat")]),
    (),
    "conv",
    (8, 8),
    Preprocessing.NONE,
    "file",
    compiler="xla",
)


async def start(config: ServeConfig, observer: Supervisor) -> RemoteComputer:
    """Starts a process that ends with its input, as an engine does with its socket."""
    ours, theirs = socket.socketpair()
    with theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "import sys; sys.stdin.read()", stdin=theirs.fileno()
        )
    reader, writer = await asyncio.open_connection(sock=ours)
    ready = Ready(Catalog((MODEL,), (), (1,), 5), 3, "2.21.0")
    memory = create_memory()
    SlotReader(memory, 1)
    watchdog_s = config.watchdog_s
    door, its_door = make_door()
    its_door.close()
    child = ChildProcess(process, reader, writer)
    computer = RemoteComputer(child, memory, ready, 7.0, watchdog_s, observer, door)
    os.close(memory)
    return computer


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def supervisor(
    monkeypatch: pytest.MonkeyPatch, metrics: Metrics
) -> AsyncIterator[Supervisor]:
    monkeypatch.setattr(RemoteComputer, "start", start)
    others = OtherFrontEnds(CONFIG, metrics)
    one = Supervisor(CONFIG, lambda _: None, lambda _: None, metrics, others)
    await one.start()
    yield one
    await one.close()


async def test_reloads_leave_no_task_behind(supervisor: Supervisor) -> None:
    """What watched over the old engines has ended with them."""
    await asyncio.sleep(0)
    before = len(asyncio.all_tasks())
    for _ in range(3):
        await supervisor.reload(CONFIG)
    async with asyncio.timeout(20):
        while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110 - the old ones retire unwatched
            await asyncio.sleep(0.01)


async def test_the_metric_names_the_compiler_that_runs(
    supervisor: Supervisor, metrics: Metrics
) -> None:
    """The setting is auto; the engine knows what that came to."""
    text = metrics.exposition()[0].decode()
    assert 'gradcam_model_info{compiler="xla",layer="conv",model="m",weights="file"} 1.0' in text
