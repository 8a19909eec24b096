"""Images on their way to the engine, in memory that both processes share.

    front end: SlotWriter.put  -- pixels -->  memory  -- pixels -->  SlotReader.take: engine

The memory is a ring of slots. The front end writes an image into the next one and sends the
message that names it; the engine copies the image as soon as it reads the message, and says in
what it sends next which message was its latest. Messages are read in the order in which they
were sent, so slots are free again in the order in which they were taken, each once, whatever
became of their requests: nobody writes into a slot that may still be read. Each connection of a
front end to an engine has a ring of its own, which is given up with it; the memory has no name,
and ends with its last process.
"""

import math
import mmap
import os
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# What may be on its way at once: what arrives while a batch runs. More goes with its message.
SLOTS = 64

Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class Slot:
    """Where an image lies: uint8, of this shape."""

    index: int
    shape: tuple[int, ...]


def create_memory() -> int:
    """Returns the file descriptor of new memory, without a size yet. Children need to be given it.

    Raises:
        OSError: The system has none.
    """
    return os.memfd_create("gradcam-images")


class SlotWriter:
    """The front end's end. Used on one thread.

    Args:
        memory: File descriptor of the memory, which a ``SlotReader`` has given its size.
    """

    def __init__(self, memory: int) -> None:
        self._memory = mmap.mmap(memory, 0)
        self._size = len(self._memory) // SLOTS
        self._taken: deque[int] = deque()  # numbers of messages, ascending
        self._next = 0

    def put(self, number: int, image: Pixels) -> Pixels | Slot:
        """Writes an image, to be sent at once in the message of a number.

        Args:
            number: Greater than those before.
            image: Any array.

        Returns:
            Its slot; or the image itself, if it is not uint8, too large, or no slot is free.
        """
        if image.dtype != np.uint8 or image.nbytes > self._size or len(self._taken) == SLOTS:
            return image
        slot = Slot(self._next, image.shape)
        _view(self._memory, slot, self._size)[...] = image
        self._next = (self._next + 1) % SLOTS
        self._taken.append(number)
        return slot

    def free(self, latest: int) -> None:
        """Frees the slots of all messages up to a number: the engine has read them."""
        while self._taken and self._taken[0] <= latest:
            self._taken.popleft()

    def close(self) -> None:
        """Gives the memory up."""
        self._memory.close()


class SlotReader:
    """The engine's end.

    Args:
        memory: File descriptor of the memory, which it gives its size.
        image_bytes: The largest image, in bytes.
    """

    def __init__(self, memory: int, image_bytes: int) -> None:
        os.ftruncate(memory, SLOTS * image_bytes)
        self._memory = mmap.mmap(memory, 0)
        self._size = image_bytes

    def take(self, image: Pixels | Slot) -> Pixels:
        """Copies the image of a message that was just read; returns one that came with it."""
        if isinstance(image, Slot):
            return _view(self._memory, image, self._size).copy()
        return image

    def close(self) -> None:
        """Gives the memory up."""
        self._memory.close()


def _view(memory: mmap.mmap, slot: Slot, size: int) -> NDArray[np.uint8]:
    count = math.prod(slot.shape)
    return np.frombuffer(memory, np.uint8, count, slot.index * size).reshape(slot.shape)
