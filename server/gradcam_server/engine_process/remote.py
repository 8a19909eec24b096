"""The side of the front end that has the engine: starts it, watches it, lets others join."""

import asyncio
import os
import signal
import socket
import sys
from time import perf_counter
from typing import Protocol, Self

from gradcam_server.batching import BatchReport
from gradcam_server.config import ServeConfig
from gradcam_server.engine_process.connection import EngineConnection
from gradcam_server.engine_process.door import hand_over, make_door
from gradcam_server.engine_process.messages import (
    BatchRan,
    Heartbeat,
    Join,
    Ready,
    Refused,
    Start,
    receive,
    send,
)
from gradcam_server.engine_process.slots import create_memory
from gradcam_server.errors import EngineLostError, StartupError
from gradcam_server.native_lines import stderr_for_children

_CLOSE_S = 5.0


class EngineObserver(Protocol):
    """Told what engines do."""

    def batch_ran(self, model: str, batch: BatchReport) -> None:
        """A batch of a model, by its id, ran."""
        ...

    def beat(self, pid: int, heartbeat: Heartbeat) -> None:
        """The engine of a process told how it is."""
        ...


class RemoteComputer(EngineConnection):
    """An engine in another process, which ends with this. ``start`` makes one."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        memory: int,
        ready: Ready,
        started_in_s: float,
        watchdog_s: float,
        observer: EngineObserver,
        door: socket.socket,
    ) -> None:
        super().__init__(reader, writer, memory, ready, started_in_s)
        self._process, self._door = process, door
        self._watchdog_s = watchdog_s
        self._observer = observer
        self._heard_at = perf_counter()
        self._let_in_count = 0
        self._alone = asyncio.Event()
        self._alone.set()
        self._tasks.append(asyncio.create_task(self._watch(), name="engine watchdog"))

    @classmethod
    async def start(cls, config: ServeConfig, observer: EngineObserver) -> Self:
        """Starts an engine, and returns once it is warm. If cancelled, it is killed.

        Args:
            config: The settings.
            observer: Told what it does.

        Raises:
            StartupError: It cannot start as configured.
            EngineLostError: It died while starting.
        """
        memory = create_memory()
        door, its_door = make_door()
        try:
            return await cls._start(config, observer, memory, door, its_door)
        except BaseException:
            door.close()
            raise
        finally:
            os.close(memory)  # what is mapped stays
            its_door.close()

    @classmethod
    async def _start(
        cls,
        config: ServeConfig,
        observer: EngineObserver,
        memory: int,
        door: socket.socket,
        its_door: socket.socket,
    ) -> Self:
        began = perf_counter()
        ours, theirs = socket.socketpair()
        inherited = (theirs.fileno(), memory, its_door.fileno(), *stderr_for_children())
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "gradcam_server.engine_process.main"),
                *map(str, inherited),
                pass_fds=inherited,
            )
        try:
            reader, writer = await asyncio.open_connection(sock=ours)
            send(writer, Start(config))
            message = await receive(reader)
        except EOFError:
            status = await process.wait()
            raise EngineLostError(f"the engine died while starting ({ended(status)})", 0) from None
        except BaseException:
            process.kill()
            ours.close()
            raise
        if isinstance(message, Refused):
            writer.close()
            await process.wait()
            raise StartupError(message.message)
        assert isinstance(message, Ready)
        started_in_s = perf_counter() - began
        return cls(
            *(process, reader, writer, memory, message, started_in_s),
            *(config.watchdog_s, observer, door),
        )

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self._process.pid

    def let_in(self) -> tuple[socket.socket, int]:
        """Lets another front end join.

        Returns:
            Its connection and the descriptor of its memory, to be handed to it and closed here.

        Raises:
            EngineLostError: The engine is gone.
        """
        if self.lost.done():
            raise self._lost_error()
        ours, theirs = socket.socketpair()
        memory = create_memory()
        try:
            with theirs:
                hand_over(self._door, theirs.fileno(), memory)
        except OSError:
            ours.close()
            os.close(memory)
            raise self._lost_error() from None
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
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _why_gone(self) -> str:
        # Its exit status says more than the closed socket, and comes at once.
        try:
            async with asyncio.timeout(_CLOSE_S):
                return ended(await self._process.wait())
        except TimeoutError:
            return await super()._why_gone()

    def _take(self, message: object) -> None:
        self._heard_at = perf_counter()
        super()._take(message)
        match message:
            case BatchRan(model, batch):
                self._observer.batch_ran(model, batch)
            case Heartbeat() as heartbeat:
                self._observer.beat(self._process.pid, heartbeat)
                if heartbeat.left_count == self._let_in_count:
                    self._alone.set()

    async def _watch(self) -> None:
        """Kills an engine that hangs: one batch, or the whole process."""
        interval_s = min(self._watchdog_s / 4, 1)
        while True:
            asleep_at = perf_counter()
            await asyncio.sleep(interval_s)
            now = perf_counter()
            if now - asleep_at > 2 * interval_s:
                self._heard_at = now  # it is we who were stopped, perhaps with the whole machine
            silent_s = now - self._heard_at
            if self.heartbeat.running_s > self._watchdog_s:
                self._lose(f"a batch ran for more than {self._watchdog_s:g} s (--watchdog-s)")
            elif silent_s > self._watchdog_s:
                self._lose(f"nothing was heard of it for {silent_s:.0f} s (--watchdog-s)")

    def _lose(self, reason: str) -> None:
        if not self.lost.done() and self._process.returncode is None:
            self._process.kill()
        super()._lose(reason)

    def _hang_up(self) -> None:
        super()._hang_up()
        self._door.close()
        self._alone.set()


def ended(status: int) -> str:
    """Says how a process ended, by its exit status."""
    if status < 0:
        return f"it was killed by {signal.Signals(-status).name}"
    return f"it ended with status {status}"
