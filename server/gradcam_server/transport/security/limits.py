"""Limits on a rate and on concurrency. The clock is passed in, so that tests need not wait."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic


class Rate:
    """A token bucket. It is full at first, and holds the requests of one second: at least one.

    Args:
        per_s: Requests per second in the long run.
        clock: Time in seconds.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = monotonic) -> None:
        self.per_s = per_s
        self._capacity = max(per_s, 1.0)
        self._clock = clock
        self._level, self._at = self._capacity, clock()

    def take(self, count: int = 1) -> float:
        """Takes requests if the rate allows them now.

        More requests than the bucket holds are allowed if it is full; the level is then negative.

        Returns:
            0, or in how many seconds the rate will allow them.
        """
        self._refill()
        needed = min(count, self._capacity)
        if self._level < needed:
            return (needed - self._level) / self.per_s
        self._level -= count
        return 0.0

    def reserve(self, count: int = 1) -> float:
        """Takes requests now or in advance.

        Returns:
            After how many seconds the requests may be made.
        """
        self._refill()
        self._level -= count
        return max(-self._level / self.per_s, 0.0)

    def give_back(self) -> None:
        """Puts back a request that was taken and not made."""
        self._level += 1

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self._level + (now - self._at) * self.per_s, self._capacity)
        self._at = now


class Slots:
    """A semaphore with a limit that may change; None is no limit. Waiters are served in order.

    As a context manager it waits for a slot, and frees it at the end of the block.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Takes a slot if one is free; returns whether it did."""
        if not self._free:
            return False
        self.taken += 1
        return True

    async def wait(self) -> None:
        """Takes a slot as soon as one is free."""
        if self._free and not self._waiting:
            self.taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            else:
                with suppress(ValueError):  # hand_out has dropped it in the same moment
                    self._waiting.remove(turn)
            raise

    async def __aenter__(self) -> None:
        await self.wait()

    async def __aexit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Frees a slot."""
        self.taken -= 1
        self.hand_out()

    def hand_out(self) -> None:
        """Gives free slots to waiters; to be called after the limit is raised."""
        while self._waiting and self._free:
            turn = self._waiting.popleft()
            if not turn.done():
                self.taken += 1
                turn.set_result(None)

    @property
    def _free(self) -> bool:
        return self.limit is None or self.taken < self.limit
