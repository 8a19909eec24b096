"""The engine's process: python -m ...engine_process.main FD MEMORY_FD DOOR_FD [STDERR_FD].

Ends when the front end that started it closes its end of the socket, so it never outlives it.
Others may join it and leave: what they ask goes into the same batches.
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
from gradcam_server.engine.ipc.fd_passing import take_over
from gradcam_server.engine.ipc.messages import (
    BatchRan,
    Begun,
    Cancel,
    Compute,
    Done,
    Heartbeat,
    Join,
    Ready,
    Refused,
    Start,
    receive,
    send,
)
from gradcam_server.engine.ipc.shared_ring import SlotReader
from gradcam_server.errors import ExplanationServerError, StartupError
from gradcam_server.telemetry.logs import configure
from gradcam_server.telemetry.memory import resident_bytes
from gradcam_server.telemetry.native_stderr import write_python_to

logger = logging.getLogger(__name__)

HEARTBEAT_S = 0.25


async def run(connection: socket.socket, memory: int, door: socket.socket) -> None:
    """Answers the front end until it closes the connection.

    Args:
        connection: To the front end.
        memory: File descriptor of memory to be shared with it.
        door: Where it hands over connections and memories of others.
    """
    reader, writer = await asyncio.open_connection(sock=connection)
    message = await receive(reader)
    assert isinstance(message, Start)
    configure(message.config.log_level, message.config.log_format)
    front_end_gone = asyncio.ensure_future(_watch(reader))
    try:
        engine = await asyncio.to_thread(_warm_engine, message)
        process = _Process(message, engine, door)
    except StartupError as error:
        send(writer, Refused(str(error)))
        await writer.drain()
        return
    first = process.add(writer, memory)
    front_end_gone.cancel()
    await asyncio.wait({front_end_gone})
    await process.serve(first, reader)


async def _watch(reader: asyncio.StreamReader) -> None:
    """Ends the process if the front end goes while TensorFlow cannot be interrupted."""
    # The front end is silent now: what is readable is the end.
    if not await reader.read(1):
        os._exit(0)


def _warm_engine(message: Start) -> Any:
    from gradcam_server.engine.engine import Engine

    engine = Engine(message.config)
    engine.warm_up()
    return engine


class _FrontEnd:
    """One of those that ask.

    Attributes:
        latest: The greatest number that was read.
        writer: To it.
    """

    def __init__(self, backend: Any, writer: asyncio.StreamWriter, slots: SlotReader) -> None:
        self.writer, self.latest = writer, -1
        self._backend, self._slots = backend, slots
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._begun: list[int] = []

    async def serve(self, reader: asyncio.StreamReader, on_join: Callable[[], None]) -> None:
        """Answers until its end is closed."""
        with suppress(EOFError):
            while True:
                match await receive(reader):
                    case Compute(number, key, image, targets, urgency):
                        item = GraphItem(self._slots.take(image), targets)
                        self.latest = number  # from here on its slot may be used again
                        work = self._compute(number, key, item, urgency)
                        self._tasks[number] = asyncio.create_task(work)
                    case Cancel(number) if number in self._tasks:
                        self._tasks[number].cancel()
                    case Join():
                        on_join()

    def _begin(self, number: int) -> None:
        if self.writer.is_closing():
            return
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._tell_begun)
        self._begun.append(number)

    def close(self) -> None:
        """Drops what it has asked for."""
        for task in self._tasks.values():
            task.cancel()
        self.writer.close()
        self._slots.close()

    def _tell_begun(self) -> None:
        send(self.writer, Begun(tuple(self._begun), self.latest))
        self._begun.clear()

    async def _compute(self, number: int, key: GraphKey, item: GraphItem, urgency: Urgency) -> None:
        answer, error = None, cast("Exception | None", None)
        try:
            begin = partial(self._begin, number)
            answer = await self._backend.compute(key, item, begin, urgency)
        except ExplanationServerError as expected:
            error = expected
        except Exception as fault:
            logger.exception("Computing failed")
            # Whatever it is, it may not be known, or not be a pickle, over there.
            error = RuntimeError(f"the engine failed: {type(fault).__name__}")
        finally:
            del self._tasks[number]
        count = self._backend.compilation_count
        send(self.writer, Done(number, answer, error, count))


class _Process:
    """The engine, and the front ends that ask it; the first is the one that started it."""

    def __init__(self, message: Start, engine: Any, door: socket.socket) -> None:
        from gradcam_server.engine.backend import LocalBackend

        # Exports run without it.
        self._tf: Any = sys.modules.get("tensorflow")
        self._backend = LocalBackend(message.config, engine, self._batch_ran)
        sizes = [math.prod(model.input_size) for model in self._backend.catalog.models]
        self._image_bytes = 3 * max(sizes, default=1)
        self._door = door
        self._front_ends: list[_FrontEnd] = []
        self._others: set[asyncio.Task[None]] = set()
        self._left_count = 0

    def add(self, writer: asyncio.StreamWriter, memory: int) -> _FrontEnd:
        """Lets a front end ask from now on."""
        front_end = _FrontEnd(self._backend, writer, SlotReader(memory, self._image_bytes))
        self._front_ends.append(front_end)
        count = self._backend.compilation_count
        version = self._tf.__version__ if self._tf else "not loaded"
        send(writer, Ready(self._backend.catalog, count, version))
        return front_end

    async def serve(self, first: _FrontEnd, reader: asyncio.StreamReader) -> None:
        """Serves until the first goes."""
        beating = asyncio.create_task(self._beat())
        await first.serve(reader, self._join)
        beating.cancel()

    def _join(self) -> None:
        task = asyncio.create_task(self._serve_another(*take_over(self._door, 2)))
        self._others.add(task)
        task.add_done_callback(self._others.discard)

    async def _serve_another(self, connection: int, memory: int) -> None:
        reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=connection))
        front_end = self.add(writer, memory)
        os.close(memory)  # what is mapped stays
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
            for one in self._front_ends:
                send(one.writer, replace(heartbeat, latest=one.latest))
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
    """Runs the process. It ends at once, as TensorFlow's threads cannot be ended orderly."""
    # Ctrl-C and a service manager signal the whole group; the front end decides when we go.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.current_thread().name = "engine"
    connection, memory, door, *stderr = map(int, sys.argv[1:])
    if stderr:
        write_python_to(stderr[0])
    status = 0
    try:
        with suppress(EOFError):
            asyncio.run(run(socket.socket(fileno=connection), memory, socket.socket(fileno=door)))
    except Exception:
        logger.exception("The engine failed")
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
