"""The messages between a front end and the engine, and how they go over a socket.

Frames are pickles with a mark and their length before them. Both ends are processes of one server,
and the socket is a pair that only they hold: nobody else can send a pickle. A message is about all
images that arrived, left or ended in one turn of the sender's event loop. The pixels of an image
are in its message only where they are not in shared memory. The first front end starts the engine
and lets others join; the engine sends Ready, Progress and heartbeats to all, and BatchRan to the
first alone.
"""

import asyncio
import pickle
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradcam_server.config.settings import ServeConfig
from gradcam_server.domain.catalog import Catalog
from gradcam_server.domain.graph_io import GraphKey, GraphTarget
from gradcam_server.domain.schedule import BatchReport, Urgency
from gradcam_server.engine.ipc.packing import PackedOutputs
from gradcam_server.engine.ipc.shared_slots import Pixels, Slot

_HEADER = struct.Struct("<4sI")
_MARK = b"GCAM"


class GarbledError(Exception):
    """The other end sent bytes that are no message."""


# To the engine.


@dataclass(frozen=True, slots=True)
class Start:
    """The first message: load and warm the models."""

    config: ServeConfig


class ImageToCompute(NamedTuple):
    """An image. ``number`` is its own on this connection, and names it from here on."""

    number: int
    pixels: Pixels | Slot
    targets: Sequence[GraphTarget]
    urgency: Urgency


@dataclass(frozen=True)
class Compute:
    """Compute images by a graph. Each is ended by one Progress, whatever becomes of it."""

    key: GraphKey
    images: Sequence[ImageToCompute]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody waits for these images any more."""

    numbers: Sequence[int]


@dataclass(frozen=True, slots=True)
class Join:
    """The descriptors of another front end's connection and shared memory were sent."""


# To the front end.


@dataclass(frozen=True, slots=True)
class Ready:
    """The models are warm."""

    catalog: Catalog
    compilation_count: int
    tensorflow_version: str


@dataclass(frozen=True, slots=True)
class CatalogChanged:
    """The models are served in another way: graphs have their streams."""

    catalog: Catalog


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine cannot start as configured."""

    message: str


@dataclass(frozen=True)
class Answers:
    """The outputs of images of one batch.

    Attributes:
        numbers: The images.
        compile_us: How long each waited until its graph was compiled, in microseconds.
        outputs: Their outputs, in the same order.
        batch: The batch.
    """

    numbers: Sequence[int]
    compile_us: Sequence[int]
    outputs: PackedOutputs
    batch: BatchReport


@dataclass(frozen=True)
class Progress:
    """What has become of images.

    Attributes:
        dispatched: Images that have left the queue for the device.
        answers: Images that have ended with an answer, by batch.
        failures: Images that have ended without an answer, and why; None if it was cancelled.
        compilation_count: Graphs compiled so far.
    """

    dispatched: Sequence[int]
    answers: Sequence[Answers]
    failures: Sequence[tuple[int, Exception | None]]
    compilation_count: int


@dataclass(frozen=True, slots=True)
class BatchRan:
    """A batch of a model, by its id, ran."""

    model: str
    batch: BatchReport


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The state of the engine, sent a few times per second.

    Attributes:
        running_s: How long the batch on the device has been running, in seconds.
        compilation_count: Graphs compiled so far.
        failed_batch_count: Batches so far that failed and were run again one by one.
        resident_bytes: Memory of the process, in bytes.
        device_bytes: Memory in use and its peak, in bytes, by the name of the device.
        left_count: Front ends that have joined and left again.
    """

    running_s: float
    compilation_count: int
    failed_batch_count: int
    resident_bytes: int
    device_bytes: dict[str, tuple[int, int]]
    left_count: int = 0


async def receive(reader: asyncio.StreamReader) -> Any:
    """Reads a message.

    Raises:
        EOFError: The other end is gone.
        GarbledError: It sent bytes that are no message. What follows them cannot be read.
    """
    try:
        mark, length = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        if mark != _MARK:
            raise GarbledError("it sent bytes that are no message")
        frame = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError from error
    try:
        return pickle.loads(frame)  # noqa: S301 - our own process
    except Exception as error:
        raise GarbledError(f"it sent a message that cannot be read: {error!r}") from error


def send(writer: asyncio.StreamWriter, message: object) -> None:
    """Writes a message into the buffer of the socket. If the other end is gone, it is lost."""
    frame = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    writer.writelines((_HEADER.pack(_MARK, len(frame)), frame))
