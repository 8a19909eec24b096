"""The engine's process: python -m ...engine.ipc.main CONNECTION SHARED_FD FD_SOCKET [STDERR].

It ends when the front end that started it closes its end of the socket, so it never outlives that
front end. Other front ends may join and leave: their images go into the same batches.
"""

import asyncio
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from gradcam_server.domain.graph_io import GraphItem, GraphOutput
from gradcam_server.domain.schedule import BatchReport
from gradcam_server.engine.batcher import Job
from gradcam_server.engine.ipc.fd_passing import receive_fds
from gradcam_server.engine.ipc.messages import (
    Answers,
    BatchRan,
    Cancel,
    CatalogChanged,
    Compute,
    Heartbeat,
    Join,
    Progress,
    Ready,
    Refused,
    Start,
    receive,
    send,
)
from gradcam_server.engine.ipc.packing import pack
from gradcam_server.engine.ipc.shared_slots import SlotReader
from gradcam_server.errors import ExplanationServerError, StartupError
from gradcam_server.telemetry.logs import configure
from gradcam_server.telemetry.memory import resident_bytes
from gradcam_server.telemetry.native_stderr import write_python_to

logger = logging.getLogger(__name__)

HEARTBEAT_S = 0.25


async def run(connection: socket.socket, shared_fd: int, fd_socket: socket.socket) -> None:
    """Serves the front end that started it until that closes the connection.

    Args:
        connection: To the front end.
        shared_fd: File descriptor of the memory to share with it.
        fd_socket: Receives the descriptors of other front ends' connections and memory.
    """
    reader, writer = await asyncio.open_connection(sock=connection)
    message = await receive(reader)
    assert isinstance(message, Start)
    configure(message.config.log_level, message.config.log_format)
    logger.debug("The engine has read the settings")
    front_end_gone = asyncio.ensure_future(_watch(reader))
    try:
        engine = await asyncio.to_thread(_warm_engine, message)
        process = _Process(message, engine, fd_socket)
    except StartupError as error:
        send(writer, Refused(str(error)))
        await writer.drain()
        return
    first = process.add(writer, shared_fd)
    front_end_gone.cancel()
    await asyncio.wait({front_end_gone})
    await process.serve(first, reader)


async def _watch(reader: asyncio.StreamReader) -> None:
    """Ends the process if the front end goes while TensorFlow cannot be interrupted."""
    # The front end sends nothing now: what can be read is the end of the connection.
    if not await reader.read(1):
        os._exit(0)


def _warm_engine(message: Start) -> Any:
    from gradcam_server.engine.engine import Engine

    engine = Engine(message.config)
    engine.warm_up()
    return engine


class _FrontEnd:
    """A front end that is connected.

    Attributes:
        writer: Writes to it.
    """

    def __init__(self, backend: Any, writer: asyncio.StreamWriter, slots: SlotReader) -> None:
        self.writer = writer
        self._backend, self._slots = backend, slots
        self._jobs: dict[int, _Job] = {}
        # What is sent at the end of this turn of the event loop.
        self._dispatched: list[int] = []
        self._answers: dict[int, tuple[BatchReport, list[_Answered]]] = {}
        self._failures: list[tuple[int, Exception | None]] = []
        self._is_flush_due = False

    async def serve(self, reader: asyncio.StreamReader, on_join: Callable[[], None]) -> None:
        """Serves until the front end closes the connection."""
        with suppress(EOFError):
            while True:
                match await receive(reader):
                    case Compute(key, images):
                        now = perf_counter()
                        jobs = []
                        for number, pixels, targets, urgency in images:
                            item = GraphItem(self._slots.view(pixels), targets)
                            job = self._jobs[number] = _Job(urgency, now, item, self, number)
                            jobs.append(job)
                        self._backend.submit(key, jobs)
                    case Cancel(numbers):
                        for number in numbers:
                            if number in self._jobs:
                                self._jobs[number].is_cancelled = True
                    case Join():
                        on_join()

    def close(self) -> None:
        """Drops the images of a front end that is gone."""
        for job in self._jobs.values():
            job.is_cancelled = True
        self.writer.close()
        self._slots.close()

    def dispatched(self, number: int) -> None:
        """An image has left the queue."""
        self._dispatched.append(number)
        self._flush_soon()

    def answer(self, job: "_Job", output: GraphOutput, batch: BatchReport) -> None:
        """An image has ended with an answer."""
        del self._jobs[job.number]
        _, answered = self._answers.setdefault(id(batch), (batch, []))
        answered.append((job.number, job.compile_us, output))
        self._flush_soon()

    def fail(self, number: int, error: Exception | None) -> None:
        """An image has ended without an answer."""
        del self._jobs[number]
        self._failures.append((number, error))
        self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        answers = []
        for batch, answered in self._answers.values():
            numbers, compile_us, outputs = zip(*answered, strict=True)
            answers.append(Answers(numbers, compile_us, pack(outputs), batch))
        progress = Progress(
            self._dispatched, answers, self._failures, self._backend.compilation_count
        )
        self._dispatched, self._answers, self._failures = [], {}, []
        self._is_flush_due = False
        if not self.writer.is_closing():
            send(self.writer, progress)


_Answered = tuple[int, int, GraphOutput]
"""The number of an image, how long it waited for its graph in microseconds, and its output."""


@dataclass(slots=True, eq=False)
class _Job(Job[GraphItem, GraphOutput]):
    """An image of a front end; ``is_cancelled`` once nobody waits for it."""

    front_end: _FrontEnd
    number: int
    is_cancelled: bool = field(default=False, init=False)

    @property
    def abandoned(self) -> bool:
        return self.is_cancelled

    def dispatched(self) -> None:
        self.front_end.dispatched(self.number)

    def answer(self, output: GraphOutput, batch: BatchReport) -> None:
        if self.is_cancelled:
            self.drop()
        else:
            self.front_end.answer(self, output, batch)

    def fail(self, error: Exception) -> None:
        if not isinstance(error, ExplanationServerError):
            logger.error("Computing failed", exc_info=error)
            # The front end may not know its class, and it may not be picklable.
            error = RuntimeError(f"the engine failed: {type(error).__name__}")
        self.front_end.fail(self.number, error)

    def drop(self) -> None:
        self.front_end.fail(self.number, None)


class _Process:
    """The engine and its front ends; the first of them started it."""

    def __init__(self, message: Start, engine: Any, fd_socket: socket.socket) -> None:
        from gradcam_server.engine.backend import LocalBackend

        # Exports run without TensorFlow.
        self._tf: Any = sys.modules.get("tensorflow")
        self._backend = LocalBackend(message.config, engine, self._batch_ran, self._catalog_changed)
        sizes = [math.prod(model.input_size) for model in self._backend.catalog.models]
        self._image_bytes = 3 * max(sizes, default=1)
        self._fd_socket = fd_socket
        self._front_ends: list[_FrontEnd] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._left_count = 0

    def add(self, writer: asyncio.StreamWriter, shared_fd: int) -> _FrontEnd:
        """Adds a front end and sends it Ready."""
        front_end = _FrontEnd(self._backend, writer, SlotReader(shared_fd, self._image_bytes))
        self._front_ends.append(front_end)
        count = self._backend.compilation_count
        version = self._tf.__version__ if self._tf else "not loaded"
        send(writer, Ready(self._backend.catalog, count, version))
        return front_end

    async def serve(self, first: _FrontEnd, reader: asyncio.StreamReader) -> None:
        """Serves until the first front end is gone."""
        beating = asyncio.create_task(self._beat())
        await first.serve(reader, self._join)
        beating.cancel()

    def _join(self) -> None:
        task = asyncio.create_task(self._serve_another(*receive_fds(self._fd_socket, 2)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_another(self, connection: int, shared_fd: int) -> None:
        reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=connection))
        front_end = self.add(writer, shared_fd)
        os.close(shared_fd)  # the mapping stays
        try:
            await front_end.serve(reader, lambda: None)
        finally:
            front_end.close()
            self._front_ends.remove(front_end)
            self._left_count += 1

    def _batch_ran(self, model: str, batch: BatchReport) -> None:
        send(self._front_ends[0].writer, BatchRan(model, batch))

    def _catalog_changed(self) -> None:
        for front_end in self._front_ends:
            send(front_end.writer, CatalogChanged(self._backend.catalog))

    async def _beat(self) -> None:
        while True:
            heartbeat = Heartbeat(
                self._backend.running_s,
                self._backend.compilation_count,
                self._backend.failed_batch_count,
                resident_bytes(),
                self._device_bytes(),
                left_count=self._left_count,
            )
            for front_end in self._front_ends:
                send(front_end.writer, heartbeat)
            await asyncio.sleep(HEARTBEAT_S)

    def _device_bytes(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        if self._tf is None:
            return found
        for device in self._tf.config.list_logical_devices("GPU"):
            info = self._tf.config.experimental.get_memory_info(device.name)
            found[device.name] = (info["current"], info["peak"])
        return found


def main() -> None:
    """Runs the process. It exits without clean-up, as TensorFlow's threads cannot be joined."""
    # Ctrl-C and a service manager signal the whole group; the front end decides when this ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.current_thread().name = "engine"
    connection, shared_fd, fd_socket, *stderr = map(int, sys.argv[1:])
    if stderr:
        write_python_to(stderr[0])
    status = 0
    try:
        with suppress(EOFError):
            front_end, fds = socket.socket(fileno=connection), socket.socket(fileno=fd_socket)
            asyncio.run(run(front_end, shared_fd, fds))
    except Exception:
        logger.exception("The engine failed")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
