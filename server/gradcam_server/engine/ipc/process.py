"""The engine as its parent sees it: starts it, watches it, lets other front ends join it."""

import asyncio
import os
import socket
from contextlib import ExitStack
from time import perf_counter
from typing import Protocol, Self

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.schedule import BatchReport
from gradcam_server.engine.ipc.child_process import ChildProcess, Watchdog
from gradcam_server.engine.ipc.client import EngineConnection, receive_ready
from gradcam_server.engine.ipc.fd_passing import send_fds
from gradcam_server.engine.ipc.messages import (
    BatchRan,
    CatalogChanged,
    GarbledError,
    Heartbeat,
    Join,
    Ready,
    send,
)
from gradcam_server.engine.ipc.shared_memory import create_shared_memory
from gradcam_server.engine.ipc.spawned import SpawnedEngine
from gradcam_server.errors import EngineLostError


class EngineObserver(Protocol):
    """Receives the reports of engines."""

    def batch_ran(self, model: str, batch: BatchReport) -> None:
        """Called when a batch of a model, by its id, ran."""
        ...

    def beat(self, pid: int, heartbeat: Heartbeat) -> None:
        """Called with each heartbeat of the engine in a process."""
        ...

    def catalog_changed(self, pid: int) -> None:
        """Called when the catalog of the engine in a process has changed."""
        ...


class RemoteBackend(EngineConnection):
    """An engine in a child process, which ends with this process. ``start`` makes one."""

    def __init__(
        self,
        child: ChildProcess,
        shared_fd: int,
        ready: Ready,
        started_in_s: float,
        watchdog_s: float,
        observer: EngineObserver,
        fd_socket: socket.socket,
    ) -> None:
        super().__init__(child.reader, child.writer, shared_fd, ready, started_in_s)
        self._child, self._fd_socket = child, fd_socket
        self._observer = observer
        self._watchdog = Watchdog(watchdog_s)
        self._let_in_count = 0
        self._alone = asyncio.Event()
        self._alone.set()
        self._tasks.append(asyncio.create_task(self._watch(), name="engine watchdog"))

    @classmethod
    async def start(
        cls, config: ServeConfig, observer: EngineObserver, spawned: SpawnedEngine | None = None
    ) -> Self:
        """Starts an engine, and returns once it is warm.

        If this fails or is cancelled, the engine is killed, and its descriptors are closed.

        Args:
            config: The settings.
            observer: Receives its reports.
            spawned: The process, if it was started before, with the same settings.

        Raises:
            StartupError: The engine cannot start as configured.
            EngineLostError: The engine died while starting.
            OSError: There is no descriptor, process or memory left.
        """
        spawned = spawned or await SpawnedEngine.spawn(config)
        try:
            child = spawned.child
            ready = await _wait_ready(child)
            started_in_s = perf_counter() - spawned.began
            engine = cls(
                *(child, spawned.shared_fd, ready, started_in_s, config.watchdog_s, observer),
                spawned.fd_socket,
            )
            spawned.take()
            os.close(spawned.shared_fd)  # the mapping stays
            return engine
        finally:
            await spawned.close()

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self._child.pid

    def let_in(self) -> tuple[socket.socket, int]:
        """Lets another front end join.

        Returns:
            The connection and the file descriptor of the shared memory, to be sent to that front
            end and closed here.

        Raises:
            EngineLostError: The engine is gone.
            OSError: There is no descriptor left, or the engine does not receive.
        """
        if self.lost.done():
            raise self._lost_error()
        with ExitStack() as on_failure:
            shared_fd = create_shared_memory()
            on_failure.callback(os.close, shared_fd)
            ours, theirs = socket.socketpair()
            on_failure.enter_context(ours)
            try:
                with theirs:
                    send_fds(self._fd_socket, theirs.fileno(), shared_fd)
            except ConnectionError:
                raise self._lost_error() from None
            on_failure.pop_all()
        send(self._writer, Join())
        self._let_in_count += 1
        self._alone.clear()
        return ours, shared_fd

    async def wait_alone(self) -> None:
        """Waits until all front ends that were let in have left, or the engine is gone."""
        await self._alone.wait()

    async def close(self) -> None:
        """Stops the engine after the batch that is running."""
        await super().close()
        await self._child.close()

    async def _why_gone(self) -> str:
        # The exit status says more than the closed socket, and is there at once.
        return await self._child.wait_disconnected()

    def _handle(self, message: object) -> None:
        self._watchdog.heard()
        super()._handle(message)
        match message:
            case BatchRan(model, batch):
                self._observer.batch_ran(model, batch)
            case CatalogChanged():
                self._observer.catalog_changed(self._child.pid)
            case Heartbeat() as heartbeat:
                self._observer.beat(self._child.pid, heartbeat)
                if heartbeat.left_count == self._let_in_count:
                    self._alone.set()

    async def _watch(self) -> None:
        """Kills an engine that hangs, in one batch or as a whole."""
        self._lose(await self._watchdog.wait(lambda: self.heartbeat.running_s))

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            self._child.kill(reason)
        super()._lose(reason)

    def _hang_up(self) -> None:
        super()._hang_up()
        self._fd_socket.close()
        self._alone.set()


async def _wait_ready(child: ChildProcess) -> Ready:
    """Returns the first message of a new engine, once it is warm."""
    try:
        return await receive_ready(child.reader)
    except EOFError:
        reason = await child.wait_disconnected()
    except GarbledError as error:
        reason = str(error)
    raise EngineLostError(f"the engine died while starting ({reason})", 0)
