"""The front end's view of an engine, with an engine that is scripted here."""

import asyncio
import errno
import os
import resource
import socket
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import Catalog
from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphOutput
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.domain.schedule import Answer, BatchReport, DispatchReason, Urgency
from gradcam_server.engine.ipc import child_process, client, process, spawned
from gradcam_server.engine.ipc.child_process import ChildProcess
from gradcam_server.engine.ipc.client import EngineConnection
from gradcam_server.engine.ipc.fd_passing import fd_socket_pair
from gradcam_server.engine.ipc.messages import (
    Answers,
    BatchRan,
    Cancel,
    CatalogChanged,
    Compute,
    Heartbeat,
    ImageToCompute,
    Progress,
    Ready,
    receive,
    send,
)
from gradcam_server.engine.ipc.packing import pack
from gradcam_server.engine.ipc.process import RemoteBackend
from gradcam_server.engine.ipc.shared_memory import create_shared_memory
from gradcam_server.engine.ipc.shared_slots import SLOTS, Slot, SlotReader
from gradcam_server.errors import EngineLostError, InvalidRequestError
from support.child import choose
from support.leftovers import Leftovers

READY = Ready(Catalog((), (), (1,), 5), 3, "2.21.0")
KEY = GraphKey("m", ("l",), Method.GRAD_CAM, ScoreType.LOGIT, 1)
ITEM = GraphItem(np.zeros((2, 2, 3), np.uint8))
REPORT = BatchReport(2, 4, DispatchReason.FULL, 1234)


def output(value: float) -> GraphOutput:
    array = np.array([value], np.float32)
    return GraphOutput(array, array, np.array([0], np.int32), array, ())


@dataclass
class Observer:
    """Keeps the reports."""

    batches: list[tuple[str, BatchReport]] = field(default_factory=list)
    beats: list[Heartbeat] = field(default_factory=list)
    changes: list[int] = field(default_factory=list)

    def batch_ran(self, model: str, batch: BatchReport) -> None:
        self.batches.append((model, batch))

    def beat(self, pid: int, heartbeat: Heartbeat) -> None:
        assert pid > 0
        self.beats.append(heartbeat)

    def catalog_changed(self, pid: int) -> None:
        self.changes.append(pid)


@dataclass
class Scripted:
    """A process that only sleeps, and the engine's end of its socket in our hands."""

    backend: RemoteBackend
    process: asyncio.subprocess.Process
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    slots: SlotReader
    observer: Observer

    def beat(self, running_s: float = 0.0) -> None:
        send(self.writer, Heartbeat(running_s, 3, 0, 1000, {}))

    async def receive_images(self, count: int) -> list[ImageToCompute]:
        """Returns the next images, which may come in several messages."""
        images: list[ImageToCompute] = []
        while len(images) < count:
            message = await receive(self.reader)
            assert isinstance(message, Compute)
            assert message.key == KEY
            images += message.images
        assert len(images) == count
        return images

    def dispatch(self, *numbers: int) -> None:
        send(self.writer, Progress(numbers, (), (), 3))

    def answer(self, values: dict[int, float], compilation_count: int = 3) -> None:
        """Answers images by their numbers, in one batch."""
        packed = pack([output(value) for value in values.values()])
        answers = Answers(tuple(values), (0,) * len(values), packed, REPORT)
        send(self.writer, Progress((), (answers,), (), compilation_count))

    def fail(self, number: int, error: Exception | None) -> None:
        send(self.writer, Progress((), (), ((number, error),), 3))


@pytest.fixture
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Scripted]:
    """Its watchdog, in seconds, may be set by indirect parametrisation."""
    ours, theirs = socket.socketpair()
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=-1)
    observer = Observer()
    watchdog_s = getattr(request, "param", 60.0)
    reader, writer = await asyncio.open_connection(sock=ours)
    shared_fd = create_shared_memory()
    slots = SlotReader(shared_fd, ITEM.image.nbytes)
    fd_socket, their_fd_socket = fd_socket_pair()
    child = ChildProcess(process, reader, writer)
    backend = RemoteBackend(child, shared_fd, READY, 7.0, watchdog_s, observer, fd_socket)
    os.close(shared_fd)
    theirs_reader, theirs_writer = await asyncio.open_connection(sock=theirs)
    scripted = Scripted(backend, process, theirs_reader, theirs_writer, slots, observer)
    yield scripted
    scripted.writer.close()
    if process.returncode is None:
        process.kill()
    await backend.close()
    their_fd_socket.close()


async def test_answers_find_their_requests(engine: Scripted) -> None:
    """In whatever order they come; dispatches, batches and heartbeats are reported on the way."""
    dispatched = []
    first = asyncio.create_task(engine.backend.compute(KEY, ITEM, lambda: dispatched.append(KEY)))
    second = asyncio.create_task(engine.backend.compute(KEY, ITEM, None, Urgency(9, 5.0)))
    asked = await engine.receive_images(2)
    assert [one.urgency for one in asked] == [Urgency(), Urgency(9, 5.0)]
    engine.beat()
    engine.dispatch(*(one.number for one in asked))
    send(engine.writer, BatchRan("m", REPORT))
    for one, value in reversed(list(zip(asked, (1.0, 2.0), strict=True))):
        engine.answer({one.number: value}, compilation_count=5)
    answers = await asyncio.gather(first, second)
    assert [float(answer.output.logits[0]) for answer in answers] == [1.0, 2.0]
    assert dispatched == [KEY]
    assert engine.observer.batches == [("m", REPORT)]
    assert [one.resident_bytes for one in engine.observer.beats] == [1000]
    assert engine.backend.compilation_count == 5


async def test_a_changed_catalog_takes_the_place_of_the_first(engine: Scripted) -> None:
    """The observer is told, and reads it from the backend."""
    changed = replace(READY.catalog, max_targets=7)
    send(engine.writer, CatalogChanged(changed))
    async with asyncio.timeout(20):
        while not engine.observer.changes:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.002)
    assert engine.observer.changes == [engine.backend.pid]
    assert engine.backend.catalog == changed


async def test_images_of_one_turn_go_in_one_message(engine: Scripted) -> None:
    """For each graph there is one message, and one more for all that are cancelled."""
    other = replace(KEY, layers=("k",))
    asking = [
        asyncio.create_task(engine.backend.compute(key, ITEM)) for key in (KEY, other, KEY, KEY)
    ]
    messages = [await receive(engine.reader) for _ in range(2)]
    assert [(one.key, len(one.images)) for one in messages] == [(KEY, 3), (other, 1)]
    for one in asking:
        one.cancel()
    cancelled = await receive(engine.reader)
    assert isinstance(cancelled, Cancel)
    numbers = [image.number for one in messages for image in one.images]
    assert sorted(cancelled.numbers) == sorted(numbers)


async def test_answers_of_one_message_find_their_requests(engine: Scripted) -> None:
    """Each has its own output; one that nobody waits for any more is left out."""
    asking = [asyncio.create_task(engine.backend.compute(KEY, ITEM)) for _ in range(4)]
    asked = await engine.receive_images(4)
    asking[1].cancel()
    await receive(engine.reader)
    engine.answer({one.number: 10.0 + one.number for one in asked})
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(answers.pop(1), asyncio.CancelledError)
    values = [one.output.logits[0] for one in answers if isinstance(one, Answer)]
    assert values == [10.0 + asked[index].number for index in (0, 2, 3)]


async def test_pixels_are_not_in_the_messages(engine: Scripted) -> None:
    """They are in shared memory; the message says where."""
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    task = asyncio.create_task(engine.backend.compute(KEY, GraphItem(image, ITEM.targets)))
    (asked,) = await engine.receive_images(1)
    assert asked.pixels == Slot(0, (2, 2, 3))
    np.testing.assert_array_equal(engine.slots.view(asked.pixels), image)
    task.cancel()


async def test_a_slot_is_free_when_its_image_has_ended_and_not_before(engine: Scripted) -> None:
    """Answered, failed, or cancelled and dropped; neither cancelling nor dispatch frees it."""

    async def ask(count: int) -> list[ImageToCompute]:
        asking.extend(asyncio.create_task(engine.backend.compute(KEY, ITEM)) for _ in range(count))
        return await engine.receive_images(count)

    asking: list[asyncio.Task[Answer[GraphOutput]]] = []
    asked = await ask(SLOTS)
    assert [one.pixels for one in asked] == [Slot(index, (2, 2, 3)) for index in range(SLOTS)]
    asking[0].cancel()
    assert await receive(engine.reader) == Cancel([asked[0].number])
    engine.dispatch(*(one.number for one in asked))
    engine.beat()
    await until(lambda: engine.backend.heartbeat.resident_bytes == 1000)
    (beyond,) = await ask(1)
    assert isinstance(beyond.pixels, np.ndarray)
    engine.fail(asked[0].number, None)
    engine.answer({asked[5].number: 1.0})
    engine.fail(asked[2].number, InvalidRequestError("layers", "no"))
    await until(lambda: asking[2].done())
    again = await ask(4)
    assert [one.pixels for one in again[:3]] == [Slot(index, (2, 2, 3)) for index in (2, 5, 0)]
    assert isinstance(again[3].pixels, np.ndarray)
    for one in asking:
        one.cancel()
    await asyncio.gather(*asking, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for something that comes at once."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_errors_arrive_whole(engine: Scripted) -> None:
    """An error of the engine is raised here; the next request is answered."""
    task = asyncio.create_task(engine.backend.compute(KEY, ITEM))
    (asked,) = await engine.receive_images(1)
    engine.fail(asked.number, InvalidRequestError("layers", "no"))
    with pytest.raises(InvalidRequestError, match="no") as caught:
        await task
    assert caught.value.field == "layers"
    assert not engine.backend.lost.done()


async def test_the_engine_is_told_of_a_caller_that_goes_away(engine: Scripted) -> None:
    """The engine drops the item; an answer that comes nevertheless is ignored."""
    task = asyncio.create_task(engine.backend.compute(KEY, ITEM))
    (asked,) = await engine.receive_images(1)
    task.cancel()
    assert await receive(engine.reader) == Cancel([asked.number])
    engine.answer({asked.number: 1.0})
    engine.beat()
    later = asyncio.create_task(engine.backend.compute(KEY, ITEM))
    (asked,) = await engine.receive_images(1)
    engine.answer({asked.number: 2.0})
    assert float((await later).output.logits[0]) == 2.0


async def test_an_engine_that_dies_fails_waiting_images(engine: Scripted) -> None:
    """The error has the time that starting took as a hint; later images fail, too."""
    task = asyncio.create_task(engine.backend.compute(KEY, ITEM))
    await receive(engine.reader)
    engine.process.kill()
    engine.writer.close()
    with pytest.raises(EngineLostError) as caught:
        await task
    assert caught.value.retry_after_s == 7.0
    assert await engine.backend.lost == "it was killed by SIGKILL"
    with pytest.raises(EngineLostError):
        await engine.backend.compute(KEY, ITEM)


@pytest.mark.parametrize("engine", [0.4], indirect=True)
async def test_a_batch_that_runs_too_long_is_the_end_of_its_engine(engine: Scripted) -> None:
    """It sends heartbeats, but the device hangs. It is killed."""
    task = asyncio.create_task(engine.backend.compute(KEY, ITEM))
    engine.beat(running_s=0.3)
    await asyncio.sleep(0.2)
    assert not engine.backend.lost.done()
    engine.beat(running_s=0.5)
    assert "a batch ran for more than 0.4 s" in await engine.backend.lost
    with pytest.raises(EngineLostError):
        await task
    assert await engine.process.wait() == -9


@pytest.mark.parametrize("engine", [0.4], indirect=True)
async def test_a_silent_engine_is_killed(engine: Scripted) -> None:
    """As long as it sends heartbeats it lives."""
    for _ in range(8):
        engine.beat()
        await asyncio.sleep(0.1)
    assert not engine.backend.lost.done()
    assert "nothing was heard of it" in await engine.backend.lost
    assert await engine.process.wait() == -9


async def test_an_engine_that_sends_garbage_is_killed(engine: Scripted) -> None:
    """All that follows would be garbage, too; waiting for silence would take long."""
    task = asyncio.create_task(engine.backend.compute(KEY, ITEM))
    await receive(engine.reader)
    engine.writer.write(b"terminate called without an active exception\n")
    assert await engine.backend.lost == "it sent bytes that are no message"
    with pytest.raises(EngineLostError):
        await task
    assert await engine.process.wait() == -9


async def test_an_engine_whose_message_is_a_fault_here_is_lost(
    engine: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would be read from it any more: its requests fail now, not at their deadlines."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(engine.observer, "batch_ran", fail)
    task = asyncio.create_task(engine.backend.compute(KEY, ITEM))
    send(engine.writer, BatchRan("m", REPORT))
    assert "ZeroDivisionError" in await engine.backend.lost
    with pytest.raises(EngineLostError):
        await task


@pytest.mark.parametrize("name", ["create_shared_memory", "send_fds"])
async def test_letting_in_without_descriptors_leaves_nothing(
    engine: Scripted, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It is an error of the system, not the end of the engine, and may be tried again."""
    leftovers = Leftovers()
    for error in (errno.EMFILE, errno.ETOOMANYREFS):
        with monkeypatch.context() as patch:
            patch.setattr(process, name, fail_with(OSError(error, "")))
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what counts
                engine.backend.let_in()
        assert caught.value.errno == error
        await leftovers.check()
    assert not engine.backend.lost.done()
    connection, shared_fd = engine.backend.let_in()
    connection.close()
    os.close(shared_fd)


def fail_with(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise error

    return fail


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first message of a child that is an ``engine``."""
    frame = tmp_path / "ready"
    with frame.open("wb") as file:
        send(cast("asyncio.StreamWriter", file), READY)
    monkeypatch.setenv("GRADCAM_TEST_READY", str(frame))


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("die", "it ended with status 3"),
        ("die_unread", "it ended with status 4"),
        ("garbage", "it sent bytes that are no message"),
        ("half_a_message", "it ended with status 5"),
        ("unreadable", "it sent a message that cannot be read"),
        ("wrong_message", "it sent str instead of Ready"),
        ("close_and_stay", "it closed its connection"),
    ],
)
async def test_an_engine_that_cannot_start_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, behaviour: str, reason: str
) -> None:
    """The error gives the reason; process, descriptors and memory are gone."""
    monkeypatch.setattr(child_process, "CLOSE_S", 0.5)
    monkeypatch.setattr(spawned, "_MODULE", choose(monkeypatch, behaviour))
    leftovers = Leftovers()
    with pytest.raises(EngineLostError, match=reason):
        await RemoteBackend.start(ServeConfig(), Observer())
    await leftovers.check()


@pytest.mark.usefixtures("ready")
async def test_an_engine_that_starts_with_ever_more_descriptors_fails_cleanly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The system's own limit, at every step: the error is EMFILE and nothing is left of it."""
    monkeypatch.setattr(spawned, "_MODULE", choose(monkeypatch, "engine"))
    await (await RemoteBackend.start(ServeConfig(), Observer())).close()
    leftovers = Leftovers()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    failures: list[int | None] = []
    for limit in range(3, 200):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        try:
            engine = await RemoteBackend.start(ServeConfig(), Observer())
            break
        except OSError as error:
            failures.append(error.errno)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await leftovers.check()
    assert set(failures) == {errno.EMFILE}
    assert engine.catalog == READY.catalog
    await engine.close()
    await leftovers.check()


@pytest.mark.parametrize("error", [OSError(errno.ENOMEM, ""), MemoryError()])
@pytest.mark.parametrize(
    "name", ["create_shared_memory", "fd_socket_pair", "Watchdog", "SlotWriter"]
)
@pytest.mark.usefixtures("ready")
async def test_a_start_that_fails_here_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, error: Exception
) -> None:
    """Whichever part of our side cannot be had, also when the engine is warm already."""
    monkeypatch.setattr(spawned, "_MODULE", choose(monkeypatch, "engine"))
    where = {"SlotWriter": client, "Watchdog": process}.get(name, spawned)
    monkeypatch.setattr(where, name, fail_with(error))
    leftovers = Leftovers()
    with pytest.raises(type(error)):
        await RemoteBackend.start(ServeConfig(), Observer())
    await leftovers.check()


async def test_a_start_that_is_cancelled_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is stopped while it warms up does not wait for its engine."""
    monkeypatch.setattr(spawned, "_MODULE", choose(monkeypatch, "listen"))
    leftovers = Leftovers()
    for pause_s in (0, 0.001, 0.02, 0.2):
        starting = asyncio.create_task(RemoteBackend.start(ServeConfig(), Observer()))
        await asyncio.sleep(pause_s)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await leftovers.check()


@pytest.mark.parametrize("said", [b"", b"terminate called\n", b"GCAM\x03\x00\x00\x00abc"])
async def test_joining_an_engine_that_is_gone_leaves_nothing(said: bytes) -> None:
    """Closed or sending garbage: it is EngineLostError, so the front end joins the next engine."""
    leftovers = Leftovers()
    ours, theirs = socket.socketpair()
    with theirs:
        theirs.sendall(said)
    with pytest.raises(EngineLostError):
        await EngineConnection.join(ours.detach(), create_shared_memory(), 1.0)
    await leftovers.check()


async def test_joining_without_memory_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of the system is raised as it is."""
    monkeypatch.setattr(client, "SlotWriter", fail_with(OSError(errno.ENOMEM, "")))
    leftovers = Leftovers()
    ours, theirs = socket.socketpair()
    with theirs:
        _, writer = await asyncio.open_connection(sock=theirs)
        send(writer, READY)
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the number is what counts
            await EngineConnection.join(ours.detach(), create_shared_memory(), 1.0)
        writer.close()
    assert caught.value.errno == errno.ENOMEM
    await leftovers.check()
