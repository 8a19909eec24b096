"""Paces large messages, so that receiving them leaves the event loop to the other callers.

gRPC copies a message on the event loop, under the interpreter's lock, and protobuf copies it again:
2 to 3 ms for each MiB, in which nobody else is served. So callers of large messages take turns, and
after each large message there is a pause in which the loop does everything else. A message whose
turn has not come is not read: HTTP/2's flow control keeps it at its sender.

While only callers of large messages ask, nothing is paced.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

# A smaller message blocks the loop for less than 3 ms.
MIN_LARGE_BYTES = 1 << 20
_S_PER_BYTE = 2.5e-9
# After a message that blocks the loop for so long there is a pause of the same length; after one
# that takes k times as long, of k * k times the length. At 31 MiB a quarter of the time is left.
_BLOCK_S = 0.025
# A caller is one of large messages for so many pauses, or seconds if these are fewer.
_REMEMBERED_PAUSES, _REMEMBERED_S = 8, 30.0
# Those that send small messages are taken to ask for so many seconds after their last one.
_ASKING_S = 10.0


@dataclass(slots=True)
class _Account:
    """The large messages of one caller.

    Attributes:
        last_bytes: The size of the last one.
        forgiven_at: When the caller is one of small messages again, as a time of the clock.
    """

    last_bytes: int
    forgiven_at: float


@dataclass(frozen=True, slots=True)
class _Seen:
    """A caller of small messages, and when it sent the last one."""

    caller: str = ""
    at: float = float("-inf")


def turn_s(size: int) -> float:
    """Returns the seconds from the arrival of a large message to the next turn."""
    blocked_s = size * _S_PER_BYTE
    return blocked_s * (1 + blocked_s / _BLOCK_S)


class Receiving:
    """Whose next message is read when. To be used on one event loop.

    Args:
        clock: Time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._free_at = clock()
        self._timer: asyncio.TimerHandle | None = None
        # The two callers of small messages that have asked last: one of them is another caller.
        self._latest, self._before = _Seen(), _Seen()

    async def turn(self, caller: str) -> None:
        """Waits until the next message of a caller may be read."""
        now = self._clock()
        account = self._account(caller, now)
        if account is None or not self._is_another_asking(caller, now):
            return
        if not self._waiting and self._free_at <= now:
            self._pause(account.last_bytes)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(caller, deque()).append(turn)
        self._set_timer()
        try:
            await turn
        except asyncio.CancelledError:
            turns = self._waiting.get(caller)
            if turns is not None and turn in turns:
                turns.remove(turn)
                if not turns:
                    del self._waiting[caller]
            raise

    def received(self, caller: str, size: int) -> None:
        """Counts a message that was read.

        Args:
            caller: Who sent it.
            size: Bytes.
        """
        now = self._clock()
        account = self._account(caller, now)
        if size < MIN_LARGE_BYTES:
            if account is None:
                self._see(caller, now)
            return
        if account is None:
            account = self._accounts[caller] = _Account(size, now)
        account.last_bytes = size
        forgiven_at = account.forgiven_at + _REMEMBERED_PAUSES * turn_s(size)
        account.forgiven_at = min(forgiven_at, now + _REMEMBERED_S)
        self._pause(size)
        for one in [*self._accounts][:2]:  # each new one forgets two that are forgiven
            self._account(one, now)

    def _account(self, caller: str, now: float) -> _Account | None:
        """Returns the account of a caller of large messages."""
        account = self._accounts.get(caller)
        if account is not None and account.forgiven_at <= now:
            account = None
            del self._accounts[caller]
        return account

    def _pause(self, size: int) -> None:
        self._free_at = max(self._free_at, self._clock() + turn_s(size))

    def _see(self, caller: str, now: float) -> None:
        if caller != self._latest.caller:
            self._before = self._latest
        self._latest = _Seen(caller, now)

    def _is_another_asking(self, caller: str, now: float) -> bool:
        other = self._before if self._latest.caller == caller else self._latest
        return other.at > now - _ASKING_S

    def _set_timer(self) -> None:
        if self._timer is None and self._waiting:
            delay_s = max(self._free_at - self._clock(), 0)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._give_turn)

    def _give_turn(self) -> None:
        """Gives the next caller its turn; each caller has one before any has two."""
        self._timer = None
        while self._waiting and self._free_at <= self._clock():
            caller = next(iter(self._waiting))
            turns = self._waiting.pop(caller)
            turn = turns.popleft()
            if turns:
                self._waiting[caller] = turns
            if not turn.done():
                turn.set_result(None)
                account = self._accounts.get(caller)
                self._pause(MIN_LARGE_BYTES if account is None else account.last_bytes)
        self._set_timer()
