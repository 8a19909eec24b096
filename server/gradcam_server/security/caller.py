"""Who calls, and what of their limits is used."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from time import monotonic

from gradcam_server.errors import LimitError
from gradcam_server.security.limits import Places, Rate
from gradcam_server.security.tokens import Token

_RETRY_PLACE_S = 0.5


class Caller:
    """The holder of a token, or everyone if there are no tokens.

    Args:
        name: The token's; empty without one.
        clock: Time in seconds.
    """

    def __init__(self, name: str = "", clock: Callable[[], float] = monotonic) -> None:
        self.name = name
        self._clock = clock
        self._rate: Rate | None = None
        self._calls, self._images = Places(None), Places(None)

    def allow(self, token: Token) -> None:
        """Limits them as their token says now; what is in work stays counted."""
        rate = token.max_requests_per_s
        if rate is None:
            self._rate = None
        elif self._rate is None or self._rate.per_s != rate:
            self._rate = Rate(rate, self._clock)
        for places in (self._calls, self._images):
            places.limit = token.max_concurrent
            places.hand_out()

    @contextmanager
    def call(self) -> Iterator[None]:
        """Lets a call in, and counts it until it is done.

        Raises:
            LimitError: They have too many, or had too many in the last second.
        """
        if not self._calls.take():
            raise LimitError(
                f"{self.name} may have {self._calls.limit} calls at once; wait for an answer",
                _RETRY_PLACE_S,
            )
        try:
            if self._rate is not None and (wait_s := self._rate.take()):
                raise LimitError(
                    f"{self.name} may make {self._rate.per_s:g} requests per second", wait_s
                )
            yield
        finally:
            self._calls.release()

    @asynccontextmanager
    async def image(self) -> AsyncIterator[None]:
        """Waits until an image of a stream is within the limits, and counts it until it is done."""
        await self._images.wait()
        try:
            if self._rate is not None and (wait_s := self._rate.reserve()):
                await asyncio.sleep(wait_s)
            yield
        finally:
            self._images.release()


current_caller: ContextVar[Caller] = ContextVar("current_caller", default=Caller())  # noqa: B039
"""Who made the call that the current task works for."""
