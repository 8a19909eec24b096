"""The side of the front end that has the engine: starts it, watches it, lets others join."""

import asyncio
import os
import socket
from contextlib import AsyncExitStack, ExitStack
from time import perf_counter
from typing import Protocol, Self

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.schedule import BatchReport
from gradcam_server.engine.ipc.child_process import ChildProcess, Watchdog
from gradcam_server.engine.ipc.client import EngineConnection, receive_ready
from gradcam_server.engine.ipc.fd_passing import hand_over, make_door
from gradcam_server.engine.ipc.messages import (
    BatchRan,
    GarbledError,
    Heartbeat,
    Join,
    Ready,
    Start,
    send,
)
from gradcam_server.engine.ipc.shared_ring import create_memory
from gradcam_server.errors import EngineLostError

_MODULE = "gradcam_server.engine.ipc.main"


class EngineObserver(Protocol):
    """Told what engines do."""

    def batch_ran(self, model: str, batch: BatchReport) -> None:
        """A batch of a model, by its id, ran."""
        ...

    def beat(self, pid: int, heartbeat: Heartbeat) -> None:
        """The engine of a process told how it is."""
        ...


class RemoteBackend(EngineConnection):
    """An engine in another process, which ends with this. ``start`` makes one."""

    def __init__(
        self,
        child: ChildProcess,
        memory: int,
        ready: Ready,
        started_in_s: float,
        watchdog_s: float,
        observer: EngineObserver,
        door: socket.socket,
    ) -> None:
        super().__init__(child.reader, child.writer, memory, ready, started_in_s)
        self._child, self._door = child, door
        self._observer = observer
        self._watchdog = Watchdog(watchdog_s)
        self._let_in_count = 0
        self._alone = asyncio.Event()
        self._alone.set()
        self._tasks.append(asyncio.create_task(self._watch(), name="engine watchdog"))

    @classmethod
    async def start(cls, config: ServeConfig, observer: EngineObserver) -> Self:
        """Starts an engine, and returns once it is warm.

        If this fails or is cancelled, the engine is killed, and its descriptors are closed.

        Args:
            config: The settings.
            observer: Told what it does.

        Raises:
            StartupError: It cannot start as configured.
            EngineLostError: It died while starting.
            OSError: There is no descriptor, process or memory left.
        """
        began = perf_counter()
        memory = create_memory()
        try:
            async with AsyncExitStack() as on_failure:
                door, its_door = make_door()
                on_failure.enter_context(door)
                with its_door:
                    child = await ChildProcess.spawn(_MODULE, memory, its_door.fileno())
                on_failure.push_async_callback(child.close, 0)
                ready = await _wait_ready(child, config)
                started_in_s = perf_counter() - began
                engine = cls(child, memory, ready, started_in_s, config.watchdog_s, observer, door)
                on_failure.pop_all()
                return engine
        finally:
            os.close(memory)  # what is mapped stays

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self._child.pid

    def let_in(self) -> tuple[socket.socket, int]:
        """Lets another front end join.

        Returns:
            Its connection and the descriptor of its memory, to be handed to it and closed here.

        Raises:
            EngineLostError: The engine is gone.
            OSError: There is no descriptor left, or the engine takes in none.
        """
        if self.lost.done():
            raise self._lost_error()
        with ExitStack() as on_failure:
            memory = create_memory()
            on_failure.callback(os.close, memory)
            ours, theirs = socket.socketpair()
            on_failure.enter_context(ours)
            try:
                with theirs:
                    hand_over(self._door, theirs.fileno(), memory)
            except ConnectionError:
                raise self._lost_error() from None
            on_failure.pop_all()
        send(self._writer, Join())
        self._let_in_count += 1
        self._alone.clear()
        return ours, memory

    async def wait_alone(self) -> None:
        """Waits until all front ends that were let in have left, or the engine is gone."""
        await self._alone.wait()

    async def close(self) -> None:
        """Stops the engine after the batch that is running."""
        await super().close()
        await self._child.close()

    async def _why_gone(self) -> str:
        # Its exit status says more than the closed socket, and comes at once.
        return await self._child.wait_disconnected()

    def _take(self, message: object) -> None:
        self._watchdog.heard()
        super()._take(message)
        match message:
            case BatchRan(model, batch):
                self._observer.batch_ran(model, batch)
            case Heartbeat() as heartbeat:
                self._observer.beat(self._child.pid, heartbeat)
                if heartbeat.left_count == self._let_in_count:
                    self._alone.set()

    async def _watch(self) -> None:
        """Kills an engine that hangs: one batch, or the whole process."""
        self._lose(await self._watchdog.wait(lambda: self.heartbeat.running_s))

    def _lose(self, reason: str) -> None:
        if not self.lost.done():
            self._child.kill(reason)
        super()._lose(reason)

    def _hang_up(self) -> None:
        super()._hang_up()
        self._door.close()
        self._alone.set()


async def _wait_ready(child: ChildProcess, config: ServeConfig) -> Ready:
    """Tells a new engine its settings; returns what it says once it is warm."""
    try:
        send(child.writer, Start(config))
        return await receive_ready(child.reader)
    except EOFError:
        reason = await child.wait_disconnected()
    except GarbledError as error:
        reason = str(error)
    raise EngineLostError(f"the engine died while starting ({reason})", 0)
