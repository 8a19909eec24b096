"""The process of another front end: python -m ...front_ends.main CONTROL FD_SOCKET [STDERR].

It ends when the first front end closes its end of the control socket, so it never outlives that.
The arguments are numbers of file descriptors.
"""

import asyncio
import itertools
import logging
import os
import shutil
import signal
import socket
import sys
from collections.abc import Coroutine
from typing import Any

from prometheus_client import values

from gradcam_server import __version__
from gradcam_server.config.shares import share
from gradcam_server.engine.ipc.client import EngineConnection
from gradcam_server.engine.ipc.fd_passing import receive_fds
from gradcam_server.engine.ipc.messages import receive, send
from gradcam_server.errors import EngineLostError, StartupError
from gradcam_server.pipeline.explainer import Explainer
from gradcam_server.serving.front_ends.messages import (
    HEARTBEAT_S,
    Announce,
    Begin,
    CutOff,
    Drain,
    Failed,
    Heartbeat,
    Join,
    Joined,
    Listen,
    Listening,
    Probe,
    Probed,
)
from gradcam_server.telemetry.logs import configure
from gradcam_server.telemetry.memory import resident_bytes, share_heap
from gradcam_server.telemetry.metrics import Metrics
from gradcam_server.telemetry.native_stderr import write_python_to
from gradcam_server.telemetry.setup import configure_tracing
from gradcam_server.transport.grpc_server import FrontEnd
from gradcam_server.transport.http.probe_answer import ProbeAnswer
from gradcam_server.transport.security.access import read_token_file

logger = logging.getLogger(__name__)

_MAX_UNREAD_BYTES = 64 * 1024


async def run(control: socket.socket, fd_socket: socket.socket) -> int:
    """Serves until the message to drain, or until the first front end is gone.

    Args:
        control: Connected to the first front end.
        fd_socket: Receives the descriptors of connections to engines.

    Returns:
        The exit status: 0 after a complete drain, 1 if requests had to be cut off.
    """
    reader, writer = await asyncio.open_connection(sock=control)
    begin = await receive(reader)
    assert isinstance(begin, Begin)
    configure(begin.config.log_level, begin.config.log_format)
    try:
        process = _Process(begin, writer, fd_socket)
    except StartupError as error:
        send(writer, Failed(str(error)))
        await writer.drain()
        return 1
    return await process.serve(reader)


class _Process:
    def __init__(
        self, begin: Begin, writer: asyncio.StreamWriter, fd_socket: socket.socket
    ) -> None:
        self._begin, self._writer, self._fd_socket = begin, writer, fd_socket
        # Counters live in files: the first front end reads them, and they outlive this process.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = begin.metrics
        values.ValueClass = values.MultiProcessValue(lambda: begin.number)
        self._metrics = Metrics()
        self._tracer = configure_tracing(begin.config.tracing, __version__)
        self._front_end = FrontEnd(share(begin.config), self._metrics, self._tracer)
        self._explainer: Explainer | None = None
        self._backend: EngineConnection | None = None
        self._joining = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._probe_numbers = itertools.count()
        self._probes: dict[int, asyncio.Future[ProbeAnswer]] = {}

    async def serve(self, reader: asyncio.StreamReader) -> int:
        self._spawn(self._beat())
        drained = asyncio.get_running_loop().create_future()
        listening = asyncio.ensure_future(self._follow(reader, drained))
        listening.add_done_callback(self._on_done)
        status: int = await drained
        await self._front_end.stop()
        listening.cancel()
        if self._explainer is not None:
            await self._explainer.close()
        await asyncio.to_thread(self._tracer.close)
        return status

    async def _follow(self, reader: asyncio.StreamReader, drained: asyncio.Future[int]) -> None:
        """Follows the messages of the first front end until that is gone."""
        while True:
            try:
                message = await receive(reader)
            except EOFError:
                shutil.rmtree(self._begin.metrics, ignore_errors=True)
                os._exit(1)
            match message:
                case Join() as join:
                    self._spawn(self._join(join, *receive_fds(self._fd_socket, 2)))
                case Listen(port, http_port):
                    await self._listen(port, http_port)
                case Probed(number, answer):
                    if (waiting := self._probes.get(number)) and not waiting.done():
                        waiting.set_result(answer)
                case Announce():
                    await self._front_end.tell_health()
                case Drain():
                    self._spawn(self._drain(drained))
                case CutOff():
                    self._front_end.force.set()

    async def _listen(self, port: int, http_port: int | None) -> None:
        try:
            await self._front_end.listen(port)
            if http_port is not None:
                await self._front_end.listen_http(http_port, self._probe)
        except StartupError as error:
            send(self._writer, Failed(str(error)))
        else:
            send(self._writer, Listening())

    async def _probe(self, path: str, accept: str) -> ProbeAnswer:
        """Asks the first front end, which knows the state of all and the sum of their counters."""
        number = next(self._probe_numbers)
        self._probes[number] = asyncio.get_running_loop().create_future()
        try:
            send(self._writer, Probe(number, path, accept))
            return await self._probes[number]
        finally:
            del self._probes[number]

    async def _join(self, join: Join, connection: int, shared_fd: int) -> None:
        async with self._joining:
            try:
                backend = await EngineConnection.join(connection, shared_fd, join.started_in_s)
            except EngineLostError:
                # Requests in work with the engine before have failed, or will be answered by it.
                logger.warning(
                    "The engine was lost before front end %d joined it", self._begin.number
                )
            else:
                self._use(backend, join)
            send(self._writer, Joined(join.engine))

    def _use(self, backend: EngineConnection, join: Join) -> None:
        old, config = self._explainer, share(join.config)
        self._backend = backend
        self._explainer = Explainer(config, backend, self._metrics)
        self._metrics.know_models(model.id for model in backend.catalog.models)
        try:
            self._front_end.access.configure(config, read_token_file(config))
        except StartupError as error:  # it was read a moment ago
            logger.error("The old tokens go on: %s", error)  # noqa: TRY400
        self._front_end.publish(self._explainer)
        self._spawn(self._guard(backend))
        if old is not None:
            self._spawn(old.retire())

    async def _guard(self, backend: EngineConnection) -> None:
        await asyncio.shield(backend.lost)
        if backend is self._backend:
            self._front_end.lifecycle.restart(backend.started_in_s)
            await self._front_end.tell_health()

    async def _drain(self, drained: asyncio.Future[int]) -> None:
        drained.set_result(0 if await self._front_end.drain() else 1)

    async def _beat(self) -> None:
        while True:
            # Else a first front end that is stopped, as in a debugger, would find thousands.
            if self._writer.transport.get_write_buffer_size() < _MAX_UNREAD_BYTES:
                queues = self._explainer.queue_lengths if self._explainer else {}
                in_work = self._front_end.lifecycle.in_work
                threads = self._explainer.thread_counts if self._explainer else {}
                held = self._front_end.ledger.held
                send(self._writer, Heartbeat(queues, in_work, resident_bytes(), threads, held))
            await asyncio.sleep(HEARTBEAT_S)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Future[None]) -> None:
        """Ends the process after a fault: another replaces it."""
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("Front end %d failed", self._begin.number, exc_info=error)
            os._exit(2)


def main() -> None:
    """Runs the process."""
    # Ctrl-C and a service manager signal the whole group; the first front end ends this process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    control, fd_socket, *stderr = map(int, sys.argv[1:])
    if stderr:
        write_python_to(stderr[0])
    share_heap()
    try:
        status = asyncio.run(run(socket.socket(fileno=control), socket.socket(fileno=fd_socket)))
    except EOFError:  # before the first message
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
