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
    """The bytes of one image and its answer. ``Claim.reserve`` makes it.

    Attributes:
        state: Their use.
        size: Bytes.
    """

    def __init__(self, claim: "Claim", state: HoldState, size: int) -> None:
        self._claim, self.state, self.size = claim, state, size

    def move(self, state: HoldState, size: int | None = None) -> None:
        """Changes the use of the bytes, and perhaps frees some. Does nothing after the release.

        Args:
            state: The new use.
            size: Bytes to keep; None is all. It never grows.
        """
        claim = self._claim
        if claim.is_released:
            return
        freed = 0 if size is None else max(self.size - size, 0)
        claim.ledger.change_use(self.state, -self.size)
        self.state, self.size = state, self.size - freed
        claim.ledger.change_use(self.state, self.size)
        if freed:
            claim.resize(-freed)
            claim.ledger.hand_out()


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
        self._fixed, self._received = fixed, 0
        self._holds: list[Hold] = []
        self.size = 0
        self.is_released = False
        self.settled = asyncio.Event()

    def receive(self, size: int) -> None:
        """Takes the bytes of a received message.

        Args:
            size: Bytes.

        Raises:
            InvalidRequestError: The message can never fit.
            QueueFullError: There is no room for it now.
        """
        self.ledger.take(self, size)

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
        images = sum(sizes)
        more = max(images + self._fixed - self._received, 0)
        try:
            if wait:
                await self.ledger.wait_and_take(self, more)
            else:
                self.ledger.take(self, more)
        finally:
            self.settled.set()
        change = self._fixed - self._received
        self.ledger.change_use(HoldState.RECEIVED, change)
        self.ledger.change_use(HoldState.DECODING, images)
        self._received = self._fixed
        self._holds = [Hold(self, HoldState.DECODING, size) for size in sizes]
        self.resize(images + change)
        return self._holds

    def release(self) -> None:
        """Frees all bytes. Later calls do nothing."""
        self.settled.set()
        for hold in self._holds:
            self.ledger.change_use(hold.state, -hold.size)
        self._holds = []
        self.ledger.change_use(HoldState.RECEIVED, -self._received)
        self._received = 0
        self.resize(-self.size)
        self.is_released = True
        self.ledger.hand_out()

    def receive_more(self, size: int) -> None:
        """Counts more received bytes, or fewer."""
        self._received += size
        self.ledger.change_use(HoldState.RECEIVED, size)
        self.resize(size)

    def resize(self, size: int) -> None:
        """Counts more bytes, or fewer, whatever their use."""
        self.size += size
        self.ledger.change_total(self.caller, size)


def uncounted() -> Hold:
    """Returns a hold of no bytes, for an image whose memory is not counted."""
    return Hold(Ledger().claim(""), HoldState.DECODING, 0)


@dataclass(frozen=True, eq=False)
class _Waiting:
    """A claim that waits for room; ``granted`` is done when it has the room."""

    claim: Claim
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

    def take(self, claim: Claim, size: int) -> None:
        """Adds received bytes to a claim at once.

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
        claim.receive_more(size)

    async def wait_and_take(self, claim: Claim, size: int) -> None:
        """Adds received bytes to a claim once there is room; claims of a caller keep their order.

        Raises:
            InvalidRequestError: The claim can never fit.
        """
        self._check(claim, size)
        is_first = not any(waiting.claim.caller == claim.caller for waiting in self._waiting)
        if is_first and self._fits(claim, size):
            claim.receive_more(size)
            return
        waiting = _Waiting(claim, size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if waiting.granted.done() and not waiting.granted.cancelled():
                claim.receive_more(-size)
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
                claim.receive_more(waiting.size)
                waiting.granted.set_result(None)
        self._waiting = left

    def change_use(self, state: HoldState, size: int) -> None:
        """Counts more bytes of a use, or fewer; only claims and holds call it."""
        self._states[state] += size

    def change_total(self, caller: str, size: int) -> None:
        """Counts more bytes of a caller, or fewer; only claims call it."""
        self._total += size
        if held := self._callers.get(caller, 0) + size:
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
