"""The memory that requests hold: bytes by caller and by use.

A claim is the memory of one call, or of one message of a stream; each of its images has a hold. A
claim is admitted as a whole, with all that it may need, and then only shrinks: no caller who holds
bytes waits for more, so there is no deadlock. It is released once, however its call ends.

A caller may hold as much as is left free (the dynamic threshold of shared packet buffers): one
caller alone half of the limit, the next caller half of the rest. So there is always memory left for
a caller who holds nothing yet. A request that needs more is admitted while no other holds anything.
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
        """Changes the use of the bytes, and perhaps frees some. Does nothing after the release.

        Args:
            state: The new use.
            size: Bytes to keep; None is all. It never grows.
        """
        if self._claim.is_released:
            return
        kept = self._size if size is None else min(size, self._size)
        self._claim.change(self._state, -self._size)
        self._claim.change(state, kept)
        self._state, self._size = state, kept
        self._claim.ledger.hand_out()


class Claim:
    """The memory of one call, or of one message of a stream. ``Ledger.claim`` makes it.

    Attributes:
        ledger: The ledger that counts it.
        caller: The caller who holds it.
        size: Bytes.
        is_released: Whether it is released.
        settled: Set once it is admitted, refused or released.
    """

    def __init__(self, ledger: "Ledger", caller: str, fixed: int) -> None:
        self.ledger, self.caller = ledger, caller
        self._fixed = fixed
        self.size = 0
        self.is_released = False
        self.settled = asyncio.Event()
        self._states = dict.fromkeys(HoldState, 0)

    def receive(self, size: int) -> None:
        """Takes the bytes of a received message.

        Args:
            size: Bytes.

        Raises:
            InvalidRequestError: The message can never fit.
            QueueFullError: There is no room for it now.
        """
        self.ledger.take(self, HoldState.RECEIVED, size)

    async def reserve(self, sizes: Sequence[int], *, wait: bool) -> list[Hold]:
        """Takes all bytes that images and their answers may need, in place of the received bytes.

        Args:
            sizes: Bytes, for each image.
            wait: Wait for room instead of failing.

        Returns:
            A hold for each image.

        Raises:
            InvalidRequestError: The images can never fit.
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
        """Frees all bytes. Later calls do nothing."""
        self.settled.set()
        for state, size in list(self._states.items()):
            self.change(state, -size)
        self.is_released = True
        self.ledger.hand_out()

    def change(self, state: HoldState, size: int) -> None:
        """Counts more bytes, or fewer."""
        self._states[state] += size
        self.size += size
        self.ledger.count(self.caller, state, size)


def uncounted() -> Hold:
    """Returns a hold of no bytes, for an image whose memory is not counted."""
    return Hold(Ledger().claim(""), HoldState.DECODING, 0)


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A claim that waits for room; ``granted`` is done when it has the room."""

    claim: Claim
    state: HoldState
    size: int
    granted: "asyncio.Future[None]"


class Ledger:
    """Counts the bytes that are held, and admits claims that fit. Used on one event loop.

    Args:
        limit: Maximum bytes held at once; None is no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._total = 0
        self._states = dict.fromkeys(HoldState, 0)
        self._callers: dict[str, int] = {}
        self._waiting: list[_Waiting] = []

    @property
    def held(self) -> Mapping[str, int]:
        """Bytes held, for every state."""
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
            caller: The caller who holds it.
            fixed: Bytes that it holds from its reservation to its release, beside its images.
        """
        return Claim(self, caller, fixed)

    def take(self, claim: Claim, state: HoldState, size: int) -> None:
        """Adds bytes to a claim at once.

        Raises:
            InvalidRequestError: The claim can never fit.
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
        """Adds bytes to a claim once there is room; the claims of a caller keep their order.

        Raises:
            InvalidRequestError: The claim can never fit.
        """
        self._check(claim, size)
        is_first = all(waiting.claim.caller != claim.caller for waiting in self._waiting)
        if is_first and self._fits(claim, size):
            claim.change(state, size)
            return
        waiting = _Waiting(claim, state, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if waiting.granted.done() and not waiting.granted.cancelled():
                claim.change(state, -size)
            with suppress(ValueError):  # it may be removed already
                self._waiting.remove(waiting)
            self.hand_out()
            raise

    def hand_out(self) -> None:
        """Admits waiting claims that fit; a claim that does not fit delays its caller alone."""
        if not self._waiting:
            return
        left: list[_Waiting] = []
        blocked: set[str] = set()
        for waiting in self._waiting:
            claim = waiting.claim
            if waiting.granted.done():
                continue
            if claim.caller in blocked or not self._fits(claim, waiting.size):
                blocked.add(claim.caller)
                left.append(waiting)
            else:
                claim.change(waiting.state, waiting.size)
                waiting.granted.set_result(None)
        self._waiting = left

    def count(self, caller: str, state: HoldState, size: int) -> None:
        """Counts more bytes, or fewer; only ``Claim.change`` calls it."""
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
            return True  # no other claim holds anything
        return self.held_by(claim.caller) + size <= self._limit - self._total
