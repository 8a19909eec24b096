"""A limit on the requests that wait: a place is taken on entry and given back once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gradcam_server.errors import QueueFullError

_RETRY_AFTER_S = 0.2


class Place:
    """A place in the queue; given back once, when its item goes to the device or is dropped."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def give_back(self) -> None:
        """Frees the place; later calls do nothing."""
        if self._release is not None:
            self._release()
            self._release = None


class Admission:
    """The places of a queue.

    Args:
        max_queue_length: Most requests admitted and not yet on the device.
    """

    def __init__(self, max_queue_length: int) -> None:
        self._places = asyncio.Semaphore(max_queue_length)
        self._max_queue_length = max_queue_length
        self.length = 0
        """Requests admitted and not yet on the device."""

    @asynccontextmanager
    async def admit(self, *, wait: bool = False) -> AsyncIterator[Place]:
        """Takes a place in the queue for the time until the item is on the device.

        Args:
            wait: Wait for a place instead of failing.

        Raises:
            QueueFullError: There is no place, and ``wait`` is false.
        """
        if not wait and self._places.locked():
            raise QueueFullError(
                f"all {self._max_queue_length} places in the queue are taken; try again later",
                _RETRY_AFTER_S,
            )
        await self._places.acquire()
        self.length += 1
        place = Place(self._release)
        try:
            yield place
        finally:
            place.give_back()

    def _release(self) -> None:
        self.length -= 1
        self._places.release()
