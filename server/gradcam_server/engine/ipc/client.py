"""A front end's connection to an engine: sends images, and notices when the engine is gone."""

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
    Cancel,
    CatalogChanged,
    Compute,
    GarbledError,
    Heartbeat,
    ImageToCompute,
    Progress,
    Ready,
    Refused,
    receive,
    send,
)
from gradcam_server.engine.ipc.packing import unpack
from gradcam_server.engine.ipc.shared_slots import Slot, SlotWriter
from gradcam_server.errors import EngineLostError, StartupError

logger = logging.getLogger(__name__)


class EngineConnection:
    """A warm engine in another process. ``join`` makes one.

    Attributes:
        lost: Done, with the reason, once the engine is gone; cancelled by ``close``.
        started_in_s: How long the engine took to start, in seconds; a restart takes as long.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        shared_fd: int,
        ready: Ready,
        started_in_s: float,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._slots = SlotWriter(shared_fd)
        self._catalog, self._compilation_count = ready.catalog, ready.compilation_count
        self.tensorflow_version = ready.tensorflow_version
        self.started_in_s = started_in_s
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.heartbeat = Heartbeat(0.0, ready.compilation_count, 0, 0, {})
        self._numbers = itertools.count()
        self._waiting: dict[int, tuple[asyncio.Future[Answer[GraphOutput]], OnDispatch | None]] = {}
        self._slot_of: dict[int, Slot] = {}
        # What is sent at the end of this turn of the event loop.
        self._to_compute: dict[GraphKey, list[ImageToCompute]] = {}
        self._to_cancel: list[int] = []
        self._tasks = [asyncio.create_task(self._listen(), name="engine listener")]

    @classmethod
    async def join(cls, connection: int, shared_fd: int, started_in_s: float) -> Self:
        """Joins an engine that another front end has started (``RemoteBackend.let_in``).

        Args:
            connection: File descriptor of the connection; it is taken over.
            shared_fd: File descriptor of the memory to share; it is closed.
            started_in_s: How long the engine took to start, in seconds.

        Raises:
            EngineLostError: The engine is gone already.
            OSError: There is no memory left.
        """
        try:
            reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=connection))
            try:
                return cls(reader, writer, shared_fd, await receive_ready(reader), started_in_s)
            except BaseException:
                writer.close()
                raise
        except (EOFError, GarbledError):
            raise EngineLostError("the engine was lost", started_in_s) from None
        finally:
            os.close(shared_fd)  # the mapping stays

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
        """Computes one image; see ``Backend``. If cancelled, the engine drops it."""
        if self.lost.done():
            raise self._lost_error()
        try:
            await self._writer.drain()
        except ConnectionError:
            raise self._lost_error() from None
        number = next(self._numbers)
        future: asyncio.Future[Answer[GraphOutput]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = (future, on_dispatch)
        pixels = self._slots.put(item.image)
        if isinstance(pixels, Slot):
            self._slot_of[number] = pixels
        self._flush_soon()
        image = ImageToCompute(number, pixels, item.targets, urgency)
        self._to_compute.setdefault(key, []).append(image)
        try:
            return await future
        except asyncio.CancelledError:
            self._flush_soon()
            self._to_cancel.append(number)
            raise
        finally:
            self._waiting.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()  # a caller that was cancelled does not read it

    async def close(self) -> None:
        """Ends the connection. Images that wait fail."""
        for task in self._tasks:
            task.cancel()
        self.lost.cancel()  # its watchers need not wait any more
        self._fail_waiting()
        self._hang_up()

    async def _listen(self) -> None:
        try:
            while True:
                self._handle(await receive(self._reader))
        except EOFError:
            self._lose(await self._why_gone())
        except GarbledError as error:
            self._lose(str(error))
        except Exception as error:
            # Without a listener no answer would ever arrive.
            logger.exception("A message of the engine could not be handled")
            self._lose(f"its message could not be handled ({error!r})")

    async def _why_gone(self) -> str:
        return "it closed its connection"

    def _handle(self, message: object) -> None:
        match message:
            case Progress() as progress:
                self._progress(progress)
            case CatalogChanged(catalog):
                self._catalog = catalog
            case Heartbeat() as heartbeat:
                self.heartbeat = heartbeat
                self._compilation_count = heartbeat.compilation_count

    def _progress(self, progress: Progress) -> None:
        self._compilation_count = progress.compilation_count
        for number in progress.dispatched:
            _, on_dispatch = self._waiting.get(number, (None, None))
            if on_dispatch is not None:
                on_dispatch()
        for answers in progress.answers:
            outputs, batch = unpack(answers.outputs), answers.batch
            for number, compile_us, output in zip(
                answers.numbers, answers.compile_us, outputs, strict=True
            ):
                future = self._end(number)
                if future is not None:
                    future.set_result(Answer(output, batch, compile_us))
        for number, error in progress.failures:
            future = self._end(number)
            if future is not None:
                future.set_exception(error or RuntimeError("the engine gave no answer"))

    def _end(self, number: int) -> "asyncio.Future[Answer[GraphOutput]] | None":
        """Frees the slot of an image that has ended; returns the future that waits for it."""
        slot = self._slot_of.pop(number, None)
        if slot is not None:
            self._slots.free(slot)
        future, _ = self._waiting.get(number, (None, None))
        return None if future is None or future.done() else future

    def _flush_soon(self) -> None:
        """Call it before adding to what is sent."""
        if not self._to_compute and not self._to_cancel:
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        to_compute, self._to_compute = self._to_compute, {}
        to_cancel, self._to_cancel = self._to_cancel, []
        if self.lost.done():
            return
        for key, images in to_compute.items():
            send(self._writer, Compute(key, images))
        if to_cancel:
            send(self._writer, Cancel(to_cancel))

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
        StartupError: The engine cannot start as configured.
        EOFError: The engine is gone.
        GarbledError: The first message is another.
    """
    match await receive(reader):
        case Ready() as ready:
            return ready
        case Refused(message):
            raise StartupError(message)
        case other:
            raise GarbledError(f"it sent {type(other).__name__} instead of Ready")
