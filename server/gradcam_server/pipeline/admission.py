"""A limit on the requests that wait: a request takes a slot of the queue and releases it once.

A caller may hold up to eight times as many slots as it leaves free (a dynamic threshold, as in
``ledger.py``): one caller alone eight ninths of the queue, two callers eight seventeenths each. So
a caller who holds no slot yet finds one, however many requests the others send.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from gradcam_server.errors import QueueFullError

_RETRY_AFTER_S = 0.2
# Slots held for each free slot. More lets one caller use more of the queue; less leaves room for
# more callers that come at the same time.
_HELD_PER_FREE = 8


class QueueSlot:
    """A slot of a queue; released once, when its item leaves the queue or is dropped."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """Frees the slot; later calls do nothing."""
        if self._release is not None:
            self._release()
            self._release = None


class _Admitting:
    """Holds a slot of the queue in its block, unless the slot is released before."""

    def __init__(self, queue: "Admission", caller: str, wait: bool) -> None:
        self._queue, self._caller, self._wait = queue, caller, wait

    async def __aenter__(self) -> QueueSlot:
        self._slot = await self._queue._admit(self._caller, self._wait)
        return self._slot

    async def __aexit__(self, *_: object) -> None:
        self._slot.release()


class Admission:
    """The slots of a queue, shared fairly among callers.

    Args:
        max_queue_length: The number of slots.
        name: The queue's name, in errors.
    """

    def __init__(self, max_queue_length: int, name: str = "queue") -> None:
        self._name = name
        self._max_queue_length = max_queue_length
        self._held: dict[str, int] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self.length = 0
        """Requests admitted that have not left the queue."""

    def admit(self, caller: str = "", *, wait: bool = False) -> "_Admitting":
        """Takes a slot of the queue until the item leaves the queue (``QueueSlot.release``).

        Args:
            caller: The caller who takes it.
            wait: Wait for a slot instead of failing. Requests of one caller keep their order.

        Raises:
            QueueFullError: There is no slot for this caller, and ``wait`` is false.
        """
        return _Admitting(self, caller, wait)

    async def _admit(self, caller: str, wait: bool) -> QueueSlot:
        if self._has_room(caller) and not (wait and caller in self._waiting):
            self._take(caller)
        elif wait:
            await self._wait(caller)
        else:
            raise QueueFullError(f"{self._why_full(caller)}; try again later", _RETRY_AFTER_S)
        return QueueSlot(lambda: self._release(caller))

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
        granted = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(granted)
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._release(caller)
            elif caller in self._waiting:
                with suppress(ValueError):  # a release has removed it in the same moment
                    self._waiting[caller].remove(granted)
                if not self._waiting[caller]:
                    del self._waiting[caller]
            raise

    def _hand_out(self) -> None:
        """Gives free slots to waiting requests, first to the caller that holds the fewest."""
        while ready := [caller for caller in self._waiting if self._has_room(caller)]:
            caller = min(ready, key=lambda waiting: self._held.get(waiting, 0))
            queue = self._waiting.pop(caller)
            granted = queue.popleft()
            if queue:
                self._waiting[caller] = queue  # behind the callers that hold as few slots
            if not granted.done():
                self._take(caller)
                granted.set_result(None)
