"""The engine's view of a front end, with a backend that is scripted here."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from gradcam_server.domain.catalog import Catalog
from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphOutput
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.domain.schedule import Answer, BatchReport, DispatchReason, Urgency
from gradcam_server.engine.batcher import Job
from gradcam_server.engine.ipc.client import EngineConnection
from gradcam_server.engine.ipc.main import _FrontEnd
from gradcam_server.engine.ipc.messages import (
    Cancel,
    Compute,
    ImageToCompute,
    Progress,
    Ready,
    receive,
    send,
)
from gradcam_server.engine.ipc.packing import unpack
from gradcam_server.engine.ipc.shared_memory import create_shared_memory
from gradcam_server.engine.ipc.shared_slots import SlotReader, SlotWriter
from gradcam_server.errors import InvalidRequestError

KEY = GraphKey("m", ("l",), Method.GRAD_CAM, ScoreType.LOGIT, 1)
SHAPE = (2, 2, 3)
REPORT = BatchReport(2, 2, DispatchReason.FULL, 10)


def output(value: float) -> GraphOutput:
    array = np.array([value], np.float32)
    return GraphOutput(array, array, np.array([0], np.int32), array, ())


class Backend:
    """Keeps the jobs that it gets."""

    compilation_count = 4

    def __init__(self) -> None:
        self.jobs: list[Job[GraphItem, GraphOutput]] = []
        self.submissions = 0

    def submit(self, key: GraphKey, jobs: Sequence[Job[GraphItem, GraphOutput]]) -> None:
        assert key == KEY
        self.submissions += 1
        self.jobs += jobs


@dataclass
class Connected:
    """The engine's end with its backend, and our end of the socket and of the memory."""

    backend: Backend
    front_end: _FrontEnd
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    slots: SlotWriter
    slot_reader: SlotReader

    async def compute(self, *numbers: int) -> None:
        """Sends images in one message; returns when the engine has their jobs."""
        images = [
            ImageToCompute(
                number, self.slots.put(np.full(SHAPE, number, np.uint8)), (), Urgency(number)
            )
            for number in numbers
        ]
        expected = len(self.backend.jobs) + len(images)
        send(self.writer, Compute(KEY, images))
        while len(self.backend.jobs) < expected:  # noqa: ASYNC110 - it comes at once
            await asyncio.sleep(0.001)

    async def receive(self) -> Progress:
        progress = await receive(self.reader)
        assert isinstance(progress, Progress)
        return progress


@pytest.fixture
async def connected() -> AsyncIterator[Connected]:
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)
    their_reader, their_writer = await asyncio.open_connection(sock=theirs)
    shared_fd = create_shared_memory()
    slot_reader = SlotReader(shared_fd, int(np.prod(SHAPE)))
    slots, backend = SlotWriter(shared_fd), Backend()
    os.close(shared_fd)
    front_end = _FrontEnd(backend, their_writer, slot_reader)
    serving = asyncio.create_task(front_end.serve(their_reader, lambda: None))
    yield Connected(backend, front_end, reader, writer, slots, slot_reader)
    writer.close()
    await serving
    front_end.close()
    slots.close()


async def test_a_message_is_one_submission_of_views(connected: Connected) -> None:
    """Each job has its own number, urgency and pixels, which are read where they lie."""
    await connected.compute(3, 7, 9)
    assert connected.backend.submissions == 1
    for job, number in zip(connected.backend.jobs, (3, 7, 9), strict=True):
        assert job.urgency == Urgency(number)
        np.testing.assert_array_equal(job.item.image, np.full(SHAPE, number, np.uint8))
        assert np.shares_memory(job.item.image, connected.slot_reader._slots)


async def test_a_batch_is_one_message(connected: Connected) -> None:
    """What happens in one turn of the loop goes together: dispatches, answers and failures."""
    await connected.compute(0, 1, 2, 3)
    first, second, third, fourth = connected.backend.jobs
    for job in (first, second, third):
        job.dispatched()
    second.compile_us = 5
    second.answer(output(1.0), REPORT)
    first.answer(output(2.0), REPORT)
    third.fail(InvalidRequestError("layers", "no"))
    progress = await connected.receive()
    assert progress.dispatched == [0, 1, 2]
    (answers,) = progress.answers
    assert (answers.numbers, answers.compile_us, answers.batch) == ((1, 0), (5, 0), REPORT)
    assert [float(one.logits[0]) for one in unpack(answers.outputs)] == [1.0, 2.0]
    ((number, error),) = progress.failures
    assert number == 2
    assert isinstance(error, InvalidRequestError)
    assert progress.compilation_count == 4
    fourth.fail(ZeroDivisionError("a path of this machine"))
    ((number, error),) = (await connected.receive()).failures
    assert number == 3
    assert repr(error) == "RuntimeError('the engine failed: ZeroDivisionError')"


async def test_a_cancelled_image_ends_when_nothing_reads_it_any_more(connected: Connected) -> None:
    """Only then is its slot free; whether it was dropped from the queue or computed after all."""
    await connected.compute(0, 1, 2)
    send(connected.writer, Cancel([0, 1, 99]))
    first, second, third = connected.backend.jobs
    while not (first.abandoned and second.abandoned):  # noqa: ASYNC110 - it comes at once
        await asyncio.sleep(0.001)
    assert not third.abandoned
    first.drop()
    second.answer(output(1.0), REPORT)
    progress = await connected.receive()
    assert progress.failures == [(0, None), (1, None)]
    assert progress.answers == []


async def test_jobs_of_a_front_end_that_is_gone_are_dropped(connected: Connected) -> None:
    """They are abandoned; what becomes of those that run is told to nobody."""
    await connected.compute(0, 1)
    connected.front_end.close()
    first, second = connected.backend.jobs
    assert first.abandoned
    first.drop()
    second.answer(output(1.0), REPORT)
    await asyncio.sleep(0)
    assert await connected.reader.read() == b""


async def test_slots_are_used_again_between_both_ends() -> None:
    """Many more images than slots go through a connection, and none has its pixels in a message."""
    shared_fd = create_shared_memory()
    slots = SlotReader(shared_fd, int(np.prod(SHAPE)))
    ours, theirs = socket.socketpair()
    their_reader, their_writer = await asyncio.open_connection(sock=theirs)
    backend = Backend()
    front_end = _FrontEnd(backend, their_writer, slots)
    serving = asyncio.create_task(front_end.serve(their_reader, lambda: None))
    send(their_writer, Ready(Catalog((), (), (1,), 1), 0, ""))
    engine = await EngineConnection.join(ours.detach(), shared_fd, 1.0)
    for number in range(600):
        item = GraphItem(np.full(SHAPE, number % 256, np.uint8))
        asking = asyncio.create_task(engine.compute(KEY, item))
        if number % 3 == 0:
            await asyncio.sleep(0)
            asking.cancel()
        while not backend.jobs:  # noqa: ASYNC110 - it comes at once
            await asyncio.sleep(0)
        job = backend.jobs.pop()
        assert np.shares_memory(job.item.image, slots._slots)
        np.testing.assert_array_equal(job.item.image, item.image)
        job.answer(output(number), REPORT)
        (result,) = await asyncio.gather(asking, return_exceptions=True)
        if number % 3:
            assert isinstance(result, Answer)
            assert float(result.output.logits[0]) == number
        else:
            assert isinstance(result, asyncio.CancelledError)
    await engine.close()
    await serving
    front_end.close()
