"""Who calls, and what of their limits is used."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from time import monotonic

from gradcam_server.errors import ForbiddenError, LimitError
from gradcam_server.transport.security.limits import Places, Rate
from gradcam_server.transport.security.tokens import Token

_RETRY_PLACE_S = 0.5


class Caller:
    """The holder of a token, or everyone if there are no tokens.

    Args:
        name: The token's; empty without one.
        clock: Time in seconds.
        connection: Of a caller without a token, as gRPC names it.

    Attributes:
        key: Whose share of threads and devices their work uses: the token's name, or the
            connection.
    """

    def __init__(
        self, name: str = "", clock: Callable[[], float] = monotonic, connection: str = ""
    ) -> None:
        self.name, self.key = name, name or connection
        self._clock = clock
        self._rate: Rate | None = None
        self._calls, self._images = Places(None), Places(None)
        self._admin = True

    def allow(self, token: Token, front_ends: int = 1) -> None:
        """Allows them what their token says now; what is in work stays counted.

        Args:
            token: The token.
            front_ends: How many share what it allows; each has an equal part, one at least.
        """
        self._admin = token.admin
        rate = token.max_requests_per_s
        if rate is None:
            self._rate = None
        elif self._rate is None or self._rate.per_s != rate / front_ends:
            self._rate = Rate(rate / front_ends, self._clock)
        most = token.max_concurrent
        for places in (self._calls, self._images):
            places.limit = None if most is None else max(most // front_ends, 1)
            places.hand_out()

    def check_admin(self) -> None:
        """Returns if they may administer.

        Raises:
            ForbiddenError: They may not.
        """
        if not self._admin:
            raise ForbiddenError(
                f"the token of {self.name} may not administer; that needs one with admin = true"
            )

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
            self._take(1)
            yield
        finally:
            self._calls.release()

    def count(self, images: int) -> None:
        """Counts a call that was let in as so many requests of their rate.

        Raises:
            LimitError: These are too many now. Then it counts as none.
        """
        if self._rate is not None:
            self._rate.give_back()
        self._take(images)

    @asynccontextmanager
    async def image(self) -> AsyncIterator[None]:
        """Waits until an image of a stream has a place, and counts it until it is done."""
        await self._images.wait()
        try:
            yield
        finally:
            self._images.release()

    def reserve(self, images: int = 1) -> float:
        """Takes images of a stream from their rate, now or in advance.

        Returns:
            How long these must wait, in seconds.
        """
        return 0.0 if self._rate is None else self._rate.reserve(images)

    def _take(self, requests: int) -> None:
        if self._rate is not None and (wait_s := self._rate.take(requests)):
            each = "" if requests == 1 else f"; these {requests} images are one each"
            raise LimitError(
                f"{self.name} may make {self._rate.per_s:g} requests per second{each}", wait_s
            )


current_caller: ContextVar[Caller] = ContextVar("current_caller", default=Caller())  # noqa: B039
"""Who made the call that the current task works for."""
