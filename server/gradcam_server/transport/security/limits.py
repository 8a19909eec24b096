"""A rate of requests and a number at once. Time is given, so that tests need none."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import monotonic


class Rate:
    """A token bucket. It is full at first, and holds the requests of one second, at least one.

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
        """Takes requests if there are so many; more than it holds, if it is full: they are owed.

        Returns:
            0, or in how many seconds there will be so many.
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
            After how many seconds they may be used: later the more were reserved.
        """
        self._refill()
        self._level -= count
        return max(-self._level / self.per_s, 0.0)

    def give_back(self) -> None:
        """Puts back a request that was taken and not used."""
        self._level += 1

    def _refill(self) -> None:
        now = self._clock()
        self._level = min(self._level + (now - self._at) * self.per_s, self._capacity)
        self._at = now


class Places:
    """A number of things that may go on at once; None is any."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Takes a place, if one is free."""
        if not self._free:
            return False
        self.taken += 1
        return True

    async def wait(self) -> None:
        """Takes a place as soon as one is free, in the order of asking."""
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
                with suppress(ValueError):  # a release has passed it over in the same moment
                    self._waiting.remove(turn)
            raise

    def release(self) -> None:
        """Gives a place back."""
        self.taken -= 1
        self.hand_out()

    def hand_out(self) -> None:
        """Gives free places to those who wait; for a limit that was raised."""
        while self._waiting and self._free:
            turn = self._waiting.popleft()
            if not turn.done():
                self.taken += 1
                turn.set_result(None)

    @property
    def _free(self) -> bool:
        return self.limit is None or self.taken < self.limit
