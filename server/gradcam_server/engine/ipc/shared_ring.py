"""A ring of images in shared memory, on their way from a front end to the engine.

    front end: RingWriter.put  -- pixels -->  memory  -- pixels -->  RingReader.take: engine

The memory is a ring of slots. The front end writes an image into the next slot and sends the
message that names the slot; the engine copies the image as soon as it reads the message, and its
next message says which message it read last. Messages are read in the order in which they
were sent, so slots are free again in the order in which they were taken, each once, whatever
became of their requests: no slot is written that may still be read. Each connection of a
front end to an engine has its own ring, which is closed with the connection; the memory has no
name, and ends with its last process.
"""

import math
import mmap
import os
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Enough for the images that arrive while a batch runs. More images go in their messages.
SLOTS = 64

Pixels = NDArray[np.uint8] | NDArray[np.float32]


@dataclass(frozen=True)
class Slot:
    """Where a uint8 image of this shape lies."""

    index: int
    shape: tuple[int, ...]


def create_shared_memory() -> int:
    """Returns the file descriptor of new memory, without a size yet. Children do not inherit it.

    Raises:
        OSError: There is no descriptor or memory left.
    """
    return os.memfd_create("gradcam-images")


class RingWriter:
    """The front end's end of a ring. Used on one thread.

    Args:
        shared_fd: File descriptor of the memory, whose size a ``RingReader`` has set.
    """

    def __init__(self, shared_fd: int) -> None:
        self._memory = mmap.mmap(shared_fd, 0)
        self._size = len(self._memory) // SLOTS
        self._taken: deque[int] = deque()  # numbers of messages, ascending
        self._next = 0

    def put(self, number: int, image: Pixels) -> Pixels | Slot:
        """Writes an image for a message, which must be sent at once.

        Args:
            number: Of the message; greater than all before.
            image: Any array.

        Returns:
            The image's slot; or the image, if it is not uint8, too large, or no slot is free.
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
        """Unmaps the memory."""
        self._memory.close()


class RingReader:
    """The engine's end of a ring.

    Args:
        shared_fd: File descriptor of the memory, whose size it sets.
        image_bytes: The largest image, in bytes.
    """

    def __init__(self, shared_fd: int, image_bytes: int) -> None:
        os.ftruncate(shared_fd, SLOTS * image_bytes)
        self._memory = mmap.mmap(shared_fd, 0)
        self._size = image_bytes

    def take(self, image: Pixels | Slot) -> Pixels:
        """Returns the image of a message that was just read, copied if it lies in a slot."""
        if isinstance(image, Slot):
            return _view(self._memory, image, self._size).copy()
        return image

    def close(self) -> None:
        """Unmaps the memory."""
        self._memory.close()


def _view(memory: mmap.mmap, slot: Slot, size: int) -> NDArray[np.uint8]:
    count = math.prod(slot.shape)
    return np.frombuffer(memory, np.uint8, count, slot.index * size).reshape(slot.shape)
