"""The engine's process: python -m gradcam_server.engine_process.main FD MEMORY_FD [STDERR_FD].

Ends when the front end closes its end of the socket, so it never outlives it.
"""

import asyncio
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from gradcam_server.batching import BatchReport, Urgency
from gradcam_server.engine_process.messages import (
    BatchRan,
    Begun,
    Cancel,
    Compute,
    Done,
    Heartbeat,
    Ready,
    Refused,
    Start,
    receive,
    send,
)
from gradcam_server.engine_process.slots import SlotReader
from gradcam_server.errors import ExplanationServerError, StartupError
from gradcam_server.graph_io import GraphItem, GraphKey
from gradcam_server.logs import configure
from gradcam_server.native_lines import write_python_to

logger = logging.getLogger(__name__)

HEARTBEAT_S = 0.25


async def run(connection: socket.socket, memory: int) -> None:
    """Answers the front end until it closes the connection.

    Args:
        connection: To the front end.
        memory: File descriptor of memory to be shared with it.
    """
    reader, writer = await asyncio.open_connection(sock=connection)
    message = await receive(reader)
    assert isinstance(message, Start)
    configure(message.config.log_level, message.config.log_format)
    front_end_gone = asyncio.ensure_future(_watch(reader))
    try:
        process = await _start(message, writer, memory)
    except StartupError as error:
        send(writer, Refused(str(error)))
        await writer.drain()
        return
    front_end_gone.cancel()
    await asyncio.wait({front_end_gone})
    await process.serve(reader)


async def _watch(reader: asyncio.StreamReader) -> None:
    """Ends the process if the front end goes while TensorFlow cannot be interrupted."""
    # The front end is silent now: what is readable is the end.
    if not await reader.read(1):
        os._exit(0)


async def _start(message: Start, writer: asyncio.StreamWriter, memory: int) -> "_Process":
    engine = await asyncio.to_thread(_warm_engine, message)
    return _Process(message, engine, writer, memory)


def _warm_engine(message: Start) -> Any:
    from gradcam_server.engine import Engine

    engine = Engine(message.config)
    engine.warm_up()
    return engine


class _Turn:
    """Tells the front end that an image goes to the device, with the others of its batch."""

    def __init__(self, process: "_Process", number: int) -> None:
        self._process, self._number = process, number

    def give_back(self) -> None:
        self._process.begin(self._number)


class _Process:
    def __init__(
        self, message: Start, engine: Any, writer: asyncio.StreamWriter, memory: int
    ) -> None:
        from gradcam_server.computer import LocalComputer

        # Exports run without it.
        self._tf: Any = sys.modules.get("tensorflow")
        self._writer = writer
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._begun: list[int] = []
        self._latest = -1
        self._computer = LocalComputer(message.config, engine, self._batch_ran)
        sizes = [math.prod(model.input_size) for model in self._computer.catalog.models]
        self._slots = SlotReader(memory, 3 * max(sizes, default=1))
        count = self._computer.compilation_count
        version = self._tf.__version__ if self._tf else "not loaded"
        send(writer, Ready(self._computer.catalog, count, version))

    async def serve(self, reader: asyncio.StreamReader) -> None:
        beating = asyncio.create_task(self._beat())
        try:
            while True:
                match await receive(reader):
                    case Compute(number, key, image, targets, urgency):
                        item = GraphItem(self._slots.take(image), targets)
                        self._latest = number  # from here on its slot may be used again
                        work = self._compute(number, key, item, urgency)
                        self._tasks[number] = asyncio.create_task(work)
                    case Cancel(number) if number in self._tasks:
                        self._tasks[number].cancel()
        except EOFError:
            beating.cancel()

    def begin(self, number: int) -> None:
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._tell_begun)
        self._begun.append(number)

    def _tell_begun(self) -> None:
        send(self._writer, Begun(tuple(self._begun), self._latest))
        self._begun.clear()

    def _batch_ran(self, model: str, batch: BatchReport) -> None:
        send(self._writer, BatchRan(model, batch))

    async def _compute(self, number: int, key: GraphKey, item: GraphItem, urgency: Urgency) -> None:
        answer, error = None, cast("Exception | None", None)
        try:
            answer = await self._computer.compute(key, item, _Turn(self, number), urgency)
        except ExplanationServerError as expected:
            error = expected
        except Exception as fault:
            logger.exception("Computing failed")
            # Whatever it is, it may not be known, or not be a pickle, over there.
            error = RuntimeError(f"the engine failed: {type(fault).__name__}")
        finally:
            del self._tasks[number]
        count = self._computer.compilation_count
        send(self._writer, Done(number, answer, error, count))

    async def _beat(self) -> None:
        while True:
            send(
                self._writer,
                Heartbeat(
                    self._computer.running_s,
                    self._computer.compilation_count,
                    self._computer.failed_batch_count,
                    resident_bytes(),
                    self._device_bytes(),
                    self._latest,
                ),
            )
            await asyncio.sleep(HEARTBEAT_S)

    def _device_bytes(self) -> dict[str, tuple[int, int]]:
        found: dict[str, tuple[int, int]] = {}
        if self._tf is None:
            return found
        for device in self._tf.config.list_logical_devices("GPU"):
            info = self._tf.config.experimental.get_memory_info(device.name)
            found[device.name] = (info["current"], info["peak"])
        return found


def resident_bytes() -> int:
    """Returns the memory that this process has in use; its peak where the system tells no more."""
    try:
        pages = Path("/proc/self/statm").read_text("ascii").split()[1]
        return int(pages) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Runs the process. It ends at once, as TensorFlow's threads cannot be ended orderly."""
    # Ctrl-C and a service manager signal the whole group; the front end decides when we go.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.current_thread().name = "engine"
    connection, memory, *stderr = map(int, sys.argv[1:])
    if stderr:
        write_python_to(stderr[0])
    with suppress(EOFError):
        asyncio.run(run(socket.socket(fileno=connection), memory))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
