"""The front end's side: starts an engine, asks it, and knows when it is lost."""

import asyncio
import itertools
import os
import signal
import socket
import sys
from time import perf_counter
from typing import Protocol, Self

from gradcam_server.batching import Answer, BatchReport, Turn, Urgency
from gradcam_server.catalog import Catalog
from gradcam_server.config import ServeConfig
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
from gradcam_server.engine_process.slots import SlotWriter, create_memory
from gradcam_server.errors import EngineLostError, StartupError
from gradcam_server.graph_io import GraphItem, GraphKey, GraphOutput
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


class RemoteComputer:
    """An engine in another process. ``start`` makes one.

    Attributes:
        lost: Done, with the reason, once the engine is gone; cancelled by ``close``.
        started_in_s: How long it took to start, in seconds: what a restart will take.
    """

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
    ) -> None:
        self._process, self._reader, self._writer = process, reader, writer
        self._slots = SlotWriter(memory)
        self._catalog, self._compilation_count = ready.catalog, ready.compilation_count
        self.tensorflow_version = ready.tensorflow_version
        self.started_in_s = started_in_s
        self._watchdog_s = watchdog_s
        self._observer = observer
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.heartbeat = Heartbeat(0.0, ready.compilation_count, 0, 0, {}, -1)
        self._heard_at = perf_counter()
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[asyncio.Future[Answer[GraphOutput]], Turn | None]] = {}
        self._tasks = [
            asyncio.create_task(self._listen(), name="engine listener"),
            asyncio.create_task(self._watch(), name="engine watchdog"),
        ]

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
        try:
            return await cls._start(config, observer, memory)
        finally:
            os.close(memory)  # what is mapped stays

    @classmethod
    async def _start(cls, config: ServeConfig, observer: EngineObserver, memory: int) -> Self:
        began = perf_counter()
        ours, theirs = socket.socketpair()
        inherited = (theirs.fileno(), memory, *stderr_for_children())
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
            raise EngineLostError(f"the engine died while starting ({_ended(status)})", 0) from None
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
        watchdog_s = config.watchdog_s
        return cls(process, reader, writer, memory, message, started_in_s, watchdog_s, observer)

    @property
    def catalog(self) -> Catalog:
        """The models and the warm graphs."""
        return self._catalog

    @property
    def compilation_count(self) -> int:
        """Graphs compiled since the start, warm-up included."""
        return self._compilation_count

    @property
    def pid(self) -> int:
        """The engine's process id."""
        return self._process.pid

    async def compute(
        self,
        key: GraphKey,
        item: GraphItem,
        turn: Turn | None = None,
        urgency: Urgency = Urgency(),  # noqa: B008 - it is frozen
    ) -> Answer[GraphOutput]:
        """Computes one image, batched with its like. If cancelled, the engine drops it."""
        if self.lost.done():
            raise self._lost_error()
        number = next(self._numbers)
        future: asyncio.Future[Answer[GraphOutput]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (future, turn)
        try:
            # Nothing may come between number, slot and message: they are in one order.
            image = self._slots.put(number, item.image)
            send(self._writer, Compute(number, key, image, item.targets, urgency))
            await self._writer.drain()
            return await future
        except ConnectionError:
            raise self._lost_error() from None
        except asyncio.CancelledError:
            if not self.lost.done():
                send(self._writer, Cancel(number))
            raise
        finally:
            self._waiting.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()  # a caller that was cancelled does not ask for it

    async def close(self) -> None:
        """Stops the engine after the batch that is running."""
        for task in self._tasks:
            task.cancel()
        self.lost.cancel()  # who watches for it need not wait any more
        self._fail_waiting()
        self._writer.close()
        self._slots.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _listen(self) -> None:
        try:
            while True:
                self._take(await receive(self._reader))
        except EOFError:
            # Its exit status says more than the closed socket, and comes at once.
            try:
                async with asyncio.timeout(_CLOSE_S):
                    reason = _ended(await self._process.wait())
            except TimeoutError:
                reason = "it closed its connection"
            self._lose(reason)

    def _take(self, message: object) -> None:
        self._heard_at = perf_counter()
        match message:
            case Done(number, answer, error, count):
                self._compilation_count = count
                future, _ = self._waiting.get(number, (None, None))
                if future is None or future.done():
                    return
                if answer is not None:
                    future.set_result(answer)
                else:
                    future.set_exception(error or RuntimeError("the engine gave no answer"))
            case Begun(numbers, latest):
                self._slots.free(latest)
                for number in numbers:
                    _, turn = self._waiting.get(number, (None, None))
                    if turn is not None:
                        turn.give_back()
            case BatchRan(model, batch):
                self._observer.batch_ran(model, batch)
            case Heartbeat() as heartbeat:
                self.heartbeat = heartbeat
                self._slots.free(heartbeat.latest)
                self._compilation_count = heartbeat.compilation_count
                self._observer.beat(self._process.pid, heartbeat)

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
        if self.lost.done():
            return
        self.lost.set_result(reason)
        if self._process.returncode is None:
            self._process.kill()
        self._writer.close()
        self._slots.close()
        self._fail_waiting()
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    def _fail_waiting(self) -> None:
        for future, _ in self._waiting.values():
            if not future.done():
                future.set_exception(self._lost_error())

    def _lost_error(self) -> EngineLostError:
        return EngineLostError(
            "the engine was lost while the request was in work; it is being started again",
            self.started_in_s,
        )


def _ended(status: int) -> str:
    if status < 0:
        return f"it was killed by {signal.Signals(-status).name}"
    return f"it ended with status {status}"
