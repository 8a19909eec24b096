"""Images in shared memory, on their way from a front end to the engine.

    front end: SlotWriter.put  -- pixels -->  memory  -- a view -->  SlotReader.view: engine
    front end: SlotWriter.free <-- the end of the image, whatever became of it --

The memory is divided into slots. The front end writes an image into a free slot and sends a message
that names the slot. The engine does not copy the image: it fills the array of its batch from the
slot, and reads the slot again if the batch fails. It ends each image with exactly one message,
after it has read the slot for the last time; then the front end frees the slot. So no slot is
written that may still be read, in whatever order images end. The slot that was freed last is used
first: few slots are touched where few images are in work, and they stay in the cache. Each
connection of a front end to an engine has its own memory, which is closed with the connection; the
memory has no name, and ends with its last process.
"""

import mmap
import os
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Enough for the images that wait and those in the batches of a fast device, of one front end.
# More images go in their messages.
SLOTS = 256

Pixels = NDArray[np.uint8] | NDArray[np.float32]


class Slot(NamedTuple):
    """Where a uint8 image of this shape lies."""

    number: int
    shape: tuple[int, ...]


class SlotWriter:
    """The front end's end of the memory. Used on one thread.

    Args:
        shared_fd: File descriptor of the memory, whose size a ``SlotReader`` has set.
    """

    def __init__(self, shared_fd: int) -> None:
        self._slots = _map(shared_fd)
        self._free = list(reversed(range(SLOTS)))

    def put(self, image: Pixels) -> Pixels | Slot:
        """Writes an image into a slot, for a message.

        Args:
            image: Any array.

        Returns:
            The image's slot; or the image, if it is not uint8, too large, or no slot is free.
        """
        if image.dtype != np.uint8 or image.nbytes > self._slots.shape[1] or not self._free:
            return image
        slot = Slot(self._free.pop(), image.shape)
        _view(self._slots, slot)[...] = image
        return slot

    def free(self, slot: Slot) -> None:
        """Frees a slot, once: the engine has ended its image."""
        self._free.append(slot.number)

    def close(self) -> None:
        """Unmaps the memory."""
        self._slots = _NO_SLOTS


class SlotReader:
    """The engine's end of the memory.

    Args:
        shared_fd: File descriptor of the memory, whose size it sets.
        image_bytes: The largest image, in bytes.
    """

    def __init__(self, shared_fd: int, image_bytes: int) -> None:
        os.ftruncate(shared_fd, SLOTS * image_bytes)
        self._slots = _map(shared_fd)
        self._slots.flags.writeable = False

    def view(self, image: Pixels | Slot) -> Pixels:
        """Returns the image of a message: as it lies in its slot, if it does."""
        return _view(self._slots, image) if isinstance(image, Slot) else image

    def close(self) -> None:
        """Unmaps the memory, once no view of it is left."""
        self._slots = _NO_SLOTS


_NO_SLOTS = np.empty((0, 0), np.uint8)


def _map(shared_fd: int) -> NDArray[np.uint8]:
    """Returns the memory, one row for each slot. It is unmapped with the last view of it."""
    return np.frombuffer(mmap.mmap(shared_fd, 0), np.uint8).reshape(SLOTS, -1)


def _view(slots: NDArray[np.uint8], slot: Slot) -> NDArray[np.uint8]:
    height, width, channels = slot.shape
    return slots[slot.number, : height * width * channels].reshape(slot.shape)
