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
from dataclasses import replace
from functools import partial
from typing import Any, cast

from gradcam_server.domain.graph_io import GraphItem, GraphKey
from gradcam_server.domain.schedule import BatchReport, Urgency
from gradcam_server.engine.ipc.fd_passing import receive_fds
from gradcam_server.engine.ipc.messages import (
    BatchRan,
    Cancel,
    Compute,
    Dispatched,
    Done,
    Heartbeat,
    Join,
    Ready,
    Refused,
    Start,
    receive,
    send,
)
from gradcam_server.engine.ipc.shared_ring import RingReader
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
        latest: The greatest message number that was read.
        writer: Writes to it.
    """

    def __init__(self, backend: Any, writer: asyncio.StreamWriter, ring: RingReader) -> None:
        self.writer, self.latest = writer, -1
        self._backend, self._ring = backend, ring
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._dispatched: list[int] = []

    async def serve(self, reader: asyncio.StreamReader, on_join: Callable[[], None]) -> None:
        """Serves until the front end closes the connection."""
        with suppress(EOFError):
            while True:
                match await receive(reader):
                    case Compute(number, key, image, targets, urgency):
                        item = GraphItem(self._ring.take(image), targets)
                        self.latest = number  # from here on the slot may be used again
                        work = self._compute(number, key, item, urgency)
                        self._tasks[number] = asyncio.create_task(work)
                    case Cancel(number) if number in self._tasks:
                        self._tasks[number].cancel()
                    case Join():
                        on_join()

    def _note_dispatch(self, number: int) -> None:
        if self.writer.is_closing():
            return
        if not self._dispatched:
            asyncio.get_running_loop().call_soon(self._send_dispatched)
        self._dispatched.append(number)

    def close(self) -> None:
        """Drops the images of a front end that is gone."""
        for task in self._tasks.values():
            task.cancel()
        self.writer.close()
        self._ring.close()

    def _send_dispatched(self) -> None:
        send(self.writer, Dispatched(tuple(self._dispatched), self.latest))
        self._dispatched.clear()

    async def _compute(self, number: int, key: GraphKey, item: GraphItem, urgency: Urgency) -> None:
        answer, error = None, cast("Exception | None", None)
        try:
            on_dispatch = partial(self._note_dispatch, number)
            answer = await self._backend.compute(key, item, on_dispatch, urgency)
        except ExplanationServerError as expected:
            error = expected
        except Exception as fault:
            logger.exception("Computing failed")
            # The front end may not know its class, and it may not be picklable.
            error = RuntimeError(f"the engine failed: {type(fault).__name__}")
        finally:
            del self._tasks[number]
        count = self._backend.compilation_count
        send(self.writer, Done(number, answer, error, count))


class _Process:
    """The engine and its front ends; the first of them started it."""

    def __init__(self, message: Start, engine: Any, fd_socket: socket.socket) -> None:
        from gradcam_server.engine.backend import LocalBackend

        # Exports run without TensorFlow.
        self._tf: Any = sys.modules.get("tensorflow")
        self._backend = LocalBackend(message.config, engine, self._batch_ran)
        sizes = [math.prod(model.input_size) for model in self._backend.catalog.models]
        self._image_bytes = 3 * max(sizes, default=1)
        self._fd_socket = fd_socket
        self._front_ends: list[_FrontEnd] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._left_count = 0

    def add(self, writer: asyncio.StreamWriter, shared_fd: int) -> _FrontEnd:
        """Adds a front end and sends it Ready."""
        front_end = _FrontEnd(self._backend, writer, RingReader(shared_fd, self._image_bytes))
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

    async def _beat(self) -> None:
        while True:
            heartbeat = Heartbeat(
                self._backend.running_s,
                self._backend.compilation_count,
                self._backend.failed_batch_count,
                resident_bytes(),
                self._device_bytes(),
                latest=-1,
                left_count=self._left_count,
            )
            for front_end in self._front_ends:
                send(front_end.writer, replace(heartbeat, latest=front_end.latest))
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
