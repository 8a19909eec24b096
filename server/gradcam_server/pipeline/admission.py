"""A limit on the requests that wait: a place is taken on entry and given back once.

A caller may hold up to eight times as many places as it leaves free (a dynamic threshold, as of
``ledger.py``): one alone eight ninths of the queue, two eight seventeenths each. So a caller who
holds no place yet finds one, however much the others ask for.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from gradcam_server.errors import QueueFullError

_RETRY_AFTER_S = 0.2
# Places held for each one left free. More lets one caller use more of the queue; less leaves more
# callers room to come in at the same time.
_HELD_PER_FREE = 8


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
    """The places of a queue, shared fairly among callers.

    Args:
        max_queue_length: Most requests admitted that have not left the queue.
        name: Of the queue, for people.
    """

    def __init__(self, max_queue_length: int, name: str = "queue") -> None:
        self._name = name
        self._max_queue_length = max_queue_length
        self._held: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self.length = 0
        """Requests admitted that have not left the queue."""

    @asynccontextmanager
    async def admit(self, caller: str = "", *, wait: bool = False) -> AsyncIterator[Place]:
        """Takes a place in the queue for the time until the item leaves it, by ``give_back``.

        Args:
            caller: Who takes it.
            wait: Wait for a place instead of failing. Requests of one caller keep their order.

        Raises:
            QueueFullError: There is no place for this caller, and ``wait`` is false.
        """
        if self._has_room(caller) and not (wait and caller in self._waiting):
            self._take(caller)
        elif wait:
            await self._wait(caller)
        else:
            raise QueueFullError(f"{self._why_full(caller)}; try again later", _RETRY_AFTER_S)
        place = Place(lambda: self._release(caller))
        try:
            yield place
        finally:
            place.give_back()

    def _has_room(self, caller: str) -> bool:
        held, free = self._held.get(caller, 0), self._max_queue_length - self.length
        return free > 0 and (not held or held + 1 <= _HELD_PER_FREE * (free - 1))

    def _why_full(self, caller: str) -> str:
        places = f"{self._max_queue_length} places in the {self._name}"
        if self.length == self._max_queue_length:
            return f"all {places} are taken"
        held, free = self._held[caller], self._max_queue_length - self.length
        return f"this caller holds {held} of the {places}, and the {free} free are left for others"

    def _take(self, caller: str) -> None:
        self.length += 1
        self._held[caller] = self._held.get(caller, 0) + 1

    def _release(self, caller: str) -> None:
        self.length -= 1
        self._held[caller] -= 1
        if not self._held[caller]:
            del self._held[caller]
        self._hand_out()

    async def _wait(self, caller: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release(caller)
            elif caller in self._waiting:
                with suppress(ValueError):  # a release has passed it over in the same moment
                    self._waiting[caller].remove(turn)
                if not self._waiting[caller]:
                    del self._waiting[caller]
            raise

    def _hand_out(self) -> None:
        """Gives free places to those who wait, first to the caller that holds the fewest."""
        while ready := [caller for caller in self._waiting if self._has_room(caller)]:
            caller = min(ready, key=lambda one: self._held.get(one, 0))
            turns = self._waiting.pop(caller)
            turn = turns.popleft()
            if turns:
                self._waiting[caller] = turns  # behind the callers that hold as few
            if not turn.done():
                self._take(caller)
                turn.set_result(None)
