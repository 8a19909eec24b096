"""A limit on the requests that wait: a place is taken on entry and given back once."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from gradcam_server.errors import QueueFullError

_RETRY_AFTER_S = 0.2


class Place:
    """A place in a queue; given back once, when its item leaves the queue or is dropped."""

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
        max_queue_length: Most requests admitted that have not left the queue.
        name: Of the queue, for people.
    """

    def __init__(self, max_queue_length: int, name: str = "queue") -> None:
        self._name = name
        self._places = asyncio.Semaphore(max_queue_length)
        self._max_queue_length = max_queue_length
        self.length = 0
        """Requests admitted that have not left the queue."""

    @asynccontextmanager
    async def admit(self, *, wait: bool = False) -> AsyncIterator[Place]:
        """Takes a place in the queue for the time until the item leaves it, by ``give_back``.

        Args:
            wait: Wait for a place instead of failing.

        Raises:
            QueueFullError: There is no place, and ``wait`` is false.
        """
        if not wait and self._places.locked():
            raise QueueFullError(
                f"all {self._max_queue_length} places in the {self._name} are taken; "
                "try again later",
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
