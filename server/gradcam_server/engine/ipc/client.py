"""A front end's connection to an engine: it asks, and knows when the engine is gone."""

import asyncio
import itertools
import logging
import os
import socket
from typing import Self

from gradcam_server.domain.catalog import Catalog
from gradcam_server.domain.graph_io import GraphItem, GraphKey, GraphOutput
from gradcam_server.domain.schedule import Answer, OnDispatch, Urgency
from gradcam_server.engine.ipc.messages import (
    Begun,
    Cancel,
    Compute,
    Done,
    GarbledError,
    Heartbeat,
    Ready,
    Refused,
    receive,
    send,
)
from gradcam_server.engine.ipc.shared_ring import SlotWriter
from gradcam_server.errors import EngineLostError, StartupError

logger = logging.getLogger(__name__)


class EngineConnection:
    """A warm engine in another process. ``join`` makes one.

    Attributes:
        lost: Done, with the reason, once the engine is gone; cancelled by ``close``.
        started_in_s: How long it took to start, in seconds: what a restart will take.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        memory: int,
        ready: Ready,
        started_in_s: float,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._slots = SlotWriter(memory)
        self._catalog, self._compilation_count = ready.catalog, ready.compilation_count
        self.tensorflow_version = ready.tensorflow_version
        self.started_in_s = started_in_s
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.heartbeat = Heartbeat(0.0, ready.compilation_count, 0, 0, {}, -1)
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[asyncio.Future[Answer[GraphOutput]], OnDispatch | None]] = {}
        self._tasks = [asyncio.create_task(self._listen(), name="engine listener")]

    @classmethod
    async def join(cls, connection: int, memory: int, started_in_s: float) -> Self:
        """Joins an engine that another front end has started, and that has let this one in.

        Args:
            connection: Descriptor of the connection; closed with it.
            memory: Descriptor of the memory to share; closed.
            started_in_s: How long the engine took to start, in seconds.

        Raises:
            EngineLostError: It is gone already.
            OSError: There is no memory left.
        """
        try:
            reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=connection))
            try:
                return cls(reader, writer, memory, await receive_ready(reader), started_in_s)
            except BaseException:
                writer.close()
                raise
        except (EOFError, GarbledError):
            raise EngineLostError("the engine was lost", started_in_s) from None
        finally:
            os.close(memory)  # what is mapped stays

    @property
    def catalog(self) -> Catalog:
        """The models and the warm graphs."""
        return self._catalog

    @property
    def compilation_count(self) -> int:
        """Graphs compiled since the start, warm-up included."""
        return self._compilation_count

    async def compute(
        self,
        key: GraphKey,
        item: GraphItem,
        on_dispatch: OnDispatch | None = None,
        urgency: Urgency = Urgency(),  # noqa: B008 - it is frozen
    ) -> Answer[GraphOutput]:
        """Computes one image, batched with its like. If cancelled, the engine drops it."""
        if self.lost.done():
            raise self._lost_error()
        number = next(self._numbers)
        future: asyncio.Future[Answer[GraphOutput]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (future, on_dispatch)
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
        """Asks no more. What waits fails."""
        for task in self._tasks:
            task.cancel()
        self.lost.cancel()  # who watches for it need not wait any more
        self._fail_waiting()
        self._hang_up()

    async def _listen(self) -> None:
        try:
            while True:
                self._take(await receive(self._reader))
        except EOFError:
            self._lose(await self._why_gone())
        except GarbledError as error:
            self._lose(str(error))
        except Exception as error:
            # Without a listener no answer would ever arrive.
            logger.exception("A message of the engine could not be taken in")
            self._lose(f"its message could not be taken in ({error!r})")

    async def _why_gone(self) -> str:
        return "it closed its connection"

    def _take(self, message: object) -> None:
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
                    _, on_dispatch = self._waiting.get(number, (None, None))
                    if on_dispatch is not None:
                        on_dispatch()
            case Heartbeat() as heartbeat:
                self.heartbeat = heartbeat
                self._slots.free(heartbeat.latest)
                self._compilation_count = heartbeat.compilation_count

    def _lose(self, reason: str) -> None:
        if self.lost.done():
            return
        self.lost.set_result(reason)
        self._hang_up()
        self._fail_waiting()
        current = asyncio.current_task()
        for task in self._tasks:
            if task is not current:
                task.cancel()

    def _hang_up(self) -> None:
        self._writer.close()
        self._slots.close()

    def _fail_waiting(self) -> None:
        for future, _ in self._waiting.values():
            if not future.done():
                future.set_exception(self._lost_error())

    def _lost_error(self) -> EngineLostError:
        return EngineLostError(
            "the engine was lost while the request was in work; it is being started again",
            self.started_in_s,
        )


async def receive_ready(reader: asyncio.StreamReader) -> Ready:
    """Returns the first message of an engine that is warm.

    Raises:
        StartupError: It cannot start as configured.
        EOFError: It is gone.
        GarbledError: It sent something else.
    """
    match await receive(reader):
        case Ready() as ready:
            return ready
        case Refused(message):
            raise StartupError(message)
        case other:
            raise GarbledError(f"it sent {type(other).__name__} instead of Ready")
