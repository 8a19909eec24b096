"""Who holds how much memory: bytes by caller and by what they are held for.

A claim is what one call, or one message of a stream, holds; each of its images has a hold. A claim
is let in as a whole, for all that it may need, and then only shrinks: nobody who holds bytes waits
for more, so callers cannot lock each other out. It is released once, however its call ends.

A caller may hold as much as is left free (the dynamic threshold of shared packet buffers): one
alone half of the limit, the next one half of the rest. So there is always something left for a
caller who holds nothing yet. A request that needs more is let in while nobody else holds anything.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from gradcam_server.domain.hold_state import HoldState
from gradcam_server.errors import InvalidRequestError, QueueFullError

_RETRY_AFTER_S = 0.5


class Hold:
    """The bytes of one image and its answer. ``Claim.reserve`` makes it."""

    def __init__(self, claim: "Claim", state: HoldState, size: int) -> None:
        self._claim, self._state, self._size = claim, state, size

    def move(self, state: HoldState, size: int | None = None) -> None:
        """Holds for something else from now on, perhaps less. Does nothing after the release.

        Args:
            state: What for.
            size: Bytes; None is as many as before. It never grows.
        """
        if self._claim.is_released:
            return
        kept = self._size if size is None else min(size, self._size)
        self._claim.change(self._state, -self._size)
        self._claim.change(state, kept)
        self._state, self._size = state, kept
        self._claim.ledger.hand_out()


class Claim:
    """What one call, or one message of a stream, holds. ``Ledger.claim`` makes it.

    Attributes:
        ledger: Where it is counted.
        caller: Who holds it.
        size: Bytes.
        is_released: Whether it holds nothing any more.
        settled: Set once it is let in, refused or released.
    """

    def __init__(self, ledger: "Ledger", caller: str, fixed: int) -> None:
        self.ledger, self.caller = ledger, caller
        self._fixed = fixed
        self.size = 0
        self.is_released = False
        self.settled = asyncio.Event()
        self._states = dict.fromkeys(HoldState, 0)

    def receive(self, size: int) -> None:
        """Holds a message that has come in.

        Args:
            size: Bytes.

        Raises:
            InvalidRequestError: It can never fit.
            QueueFullError: There is no room for it now.
        """
        self.ledger.take(self, HoldState.RECEIVED, size)

    async def reserve(self, sizes: Sequence[int], *, wait: bool) -> list[Hold]:
        """Holds all that some images and their answers may need, instead of what was received.

        Args:
            sizes: Bytes, for each image.
            wait: Wait for room instead of failing.

        Returns:
            A hold for each image.

        Raises:
            InvalidRequestError: They can never fit.
            QueueFullError: There is no room now, and ``wait`` is false.
        """
        received = self._states[HoldState.RECEIVED]
        more = max(sum(sizes) + self._fixed - received, 0)
        try:
            if wait:
                await self.ledger.wait_and_take(self, HoldState.RECEIVED, more)
            else:
                self.ledger.take(self, HoldState.RECEIVED, more)
        finally:
            self.settled.set()
        self.change(HoldState.RECEIVED, self._fixed - self._states[HoldState.RECEIVED])
        for size in sizes:
            self.change(HoldState.DECODING, size)
        return [Hold(self, HoldState.DECODING, size) for size in sizes]

    def release(self) -> None:
        """Gives all back. Later calls do nothing."""
        self.settled.set()
        for state, size in list(self._states.items()):
            self.change(state, -size)
        self.is_released = True
        self.ledger.hand_out()

    def change(self, state: HoldState, size: int) -> None:
        """Counts so many bytes more, or fewer."""
        self._states[state] += size
        self.size += size
        self.ledger.count(self.caller, state, size)


def uncounted() -> Hold:
    """Returns a hold of nothing, for an image that nobody counts."""
    return Hold(Ledger().claim(""), HoldState.DECODING, 0)


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A claim that waits for room, and what it is told by."""

    claim: Claim
    state: HoldState
    size: int
    turn: "asyncio.Future[None]"


class Ledger:
    """Counts what is held, and lets in what fits. To be used on one event loop.

    Args:
        limit: Most bytes held at once; None is any number.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._total = 0
        self._states = dict.fromkeys(HoldState, 0)
        self._callers: dict[str, int] = {}
        self._waiting: list[_Waiting] = []

    @property
    def held(self) -> Mapping[str, int]:
        """Bytes held, by state; those of which there are none too."""
        return {state.value: self._states[state] for state in HoldState}

    @property
    def total(self) -> int:
        """Bytes held."""
        return self._total

    def held_by(self, caller: str) -> int:
        """Returns the bytes that a caller holds."""
        return self._callers.get(caller, 0)

    def claim(self, caller: str, fixed: int = 0) -> Claim:
        """Begins a claim, which holds nothing yet.

        Args:
            caller: Who will hold it.
            fixed: Bytes that it holds from its reservation to its release, beside its images.
        """
        return Claim(self, caller, fixed)

    def take(self, claim: Claim, state: HoldState, size: int) -> None:
        """Lets a claim hold more at once.

        Raises:
            InvalidRequestError: It can never fit.
            QueueFullError: There is no room now.
        """
        self._check(claim, size)
        if not self._fits(claim, size):
            raise QueueFullError(
                f"the requests in work hold {self._total:,} of {self._limit:,} bytes; this one may "
                f"need {size:,}; try again later",
                _RETRY_AFTER_S,
            )
        claim.change(state, size)

    async def wait_and_take(self, claim: Claim, state: HoldState, size: int) -> None:
        """Lets a claim hold more once there is room; each caller's claims go in their order.

        Raises:
            InvalidRequestError: It can never fit.
        """
        self._check(claim, size)
        is_first = all(one.claim.caller != claim.caller for one in self._waiting)
        if is_first and self._fits(claim, size):
            claim.change(state, size)
            return
        waiting = _Waiting(claim, state, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting.turn
        except asyncio.CancelledError:
            if waiting.turn.done() and not waiting.turn.cancelled():
                claim.change(state, -size)
            with suppress(ValueError):  # it may be off the list already
                self._waiting.remove(waiting)
            self.hand_out()
            raise

    def hand_out(self) -> None:
        """Lets in those who wait and fit now; who does not fit holds up the same caller alone."""
        if not self._waiting:
            return
        left: list[_Waiting] = []
        blocked: set[str] = set()
        for one in self._waiting:
            if one.turn.done():
                continue
            if one.claim.caller in blocked or not self._fits(one.claim, one.size):
                blocked.add(one.claim.caller)
                left.append(one)
            else:
                one.claim.change(one.state, one.size)
                one.turn.set_result(None)
        self._waiting = left

    def count(self, caller: str, state: HoldState, size: int) -> None:
        """Counts so many bytes more, or fewer; ``Claim.change`` alone calls it."""
        self._total += size
        self._states[state] += size
        if held := self.held_by(caller) + size:
            self._callers[caller] = held
        else:
            self._callers.pop(caller, None)

    def _check(self, claim: Claim, size: int) -> None:
        if self._limit is not None and claim.size + size > self._limit:
            raise InvalidRequestError(
                "",
                f"the request may need {claim.size + size:,} bytes of memory; all requests "
                f"together may hold {self._limit:,} here (--max-held-bytes): send smaller images, "
                "or ask for fewer classes, layers or forms, or for raw maps",
            )

    def _fits(self, claim: Claim, size: int) -> bool:
        if self._limit is None or self._total == claim.size:
            return True  # nobody else holds anything
        return self.held_by(claim.caller) + size <= self._limit - self._total
