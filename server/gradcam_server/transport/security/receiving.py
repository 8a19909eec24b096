"""Paces large messages, so that receiving them leaves the event loop free for other callers.

gRPC copies a message on the event loop, under the interpreter's lock, and protobuf copies it again:
2 to 3 ms for each MiB, in which no other caller is served. So callers of large messages take turns,
and a pause for all other work follows each large message. A message whose turn has not come is not
read: HTTP/2's flow control keeps it at its sender.

While all active callers send large messages, nothing is paced.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

# A smaller message blocks the loop for less than 3 ms.
MIN_LARGE_BYTES = 1 << 20
_S_PER_BYTE = 2.5e-9
# A message that blocks the loop for this time is followed by a pause of the same length; a message
# that blocks it k times as long, by k * k times that pause. At 31 MiB receiving has a quarter of
# the loop's time.
_BLOCK_S = 0.025
# A caller counts as a sender of large messages for so many pauses after one, at most for 30 s.
_REMEMBERED_PAUSES, _REMEMBERED_S = 8, 30.0
# A sender of small messages counts as active for this many seconds after its last message.
_ACTIVE_S = 10.0


@dataclass(slots=True)
class _Account:
    """The large messages of one caller.

    Attributes:
        last_bytes: The size of the last large message.
        forgiven_at: Time of the clock from which the caller counts as a sender of small messages.
    """

    last_bytes: int
    forgiven_at: float


@dataclass(slots=True)
class _Seen:
    """A sender of small messages, and the time of its last message."""

    caller: str = ""
    at: float = float("-inf")


def turn_s(size: int) -> float:
    """Returns the seconds from the arrival of a large message to the next turn."""
    blocked_s = size * _S_PER_BYTE
    return blocked_s * (1 + blocked_s / _BLOCK_S)


class Receiving:
    """Decides when the next message of each caller is read. To be used on one event loop.

    Args:
        clock: Time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._free_at = clock()
        self._timer: asyncio.TimerHandle | None = None
        # The last two senders of small messages: at least one of them is another caller.
        self._latest, self._before = _Seen(), _Seen()

    async def turn(self, caller: str) -> None:
        """Waits until the next message of a caller may be read."""
        now = self._clock()
        account = self._account(caller, now)
        if account is None or not self._is_another_active(caller, now):
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
        """Counts a message that is read.

        Args:
            caller: The sender.
            size: Its size in bytes.
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
        for known in [*self._accounts][:2]:  # keeps the number of forgiven accounts bounded
            self._account(known, now)

    def _account(self, caller: str, now: float) -> _Account | None:
        """Returns the account of a sender of large messages; None for other callers."""
        account = self._accounts.get(caller)
        if account is not None and account.forgiven_at <= now:
            account = None
            del self._accounts[caller]
        return account

    def _pause(self, size: int) -> None:
        self._free_at = max(self._free_at, self._clock() + turn_s(size))

    def _see(self, caller: str, now: float) -> None:
        if caller != self._latest.caller:
            self._before, self._latest = self._latest, _Seen(caller)
        self._latest.at = now

    def _is_another_active(self, caller: str, now: float) -> bool:
        other = self._before if self._latest.caller == caller else self._latest
        return other.at > now - _ACTIVE_S

    def _set_timer(self) -> None:
        if self._timer is None and self._waiting:
            delay_s = max(self._free_at - self._clock(), 0)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._give_turn)

    def _give_turn(self) -> None:
        """Gives turns to callers round robin."""
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
