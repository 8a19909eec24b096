"""The caller of a call, and the use of its limits."""

from collections.abc import Callable
from contextvars import ContextVar
from time import monotonic

from gradcam_server.errors import ForbiddenError, LimitError
from gradcam_server.transport.security.limits import Rate, Slots
from gradcam_server.transport.security.tokens import Token

_RETRY_CALL_S = 0.5


class Caller:
    """The holder of a token or, if there are no tokens, a connection.

    Args:
        name: The token's name; empty without a token.
        clock: Time in seconds.
        connection: The connection of a caller without a token, as gRPC names it.

    Attributes:
        key: Identifies the caller whose share of threads, memory and devices the work uses:
            the token's name, or the connection.
        images: A slot for each image of a stream that may be in work.
    """

    def __init__(
        self, name: str = "", clock: Callable[[], float] = monotonic, connection: str = ""
    ) -> None:
        self.name, self.key = name, name or connection
        self._clock = clock
        self._rate: Rate | None = None
        self._calls, self.images = Slots(None), Slots(None)
        self._admin = True

    def allow(self, token: Token, front_ends: int = 1) -> None:
        """Applies the limits of the token; calls in work stay counted.

        Args:
            token: The token.
            front_ends: Front ends that share the limits equally; each admits one call at least.
        """
        self._admin = token.admin
        rate = token.max_requests_per_s
        if rate is None:
            self._rate = None
        elif self._rate is None or self._rate.per_s != rate / front_ends:
            self._rate = Rate(rate / front_ends, self._clock)
        limit = token.max_concurrent
        for slots in (self._calls, self.images):
            slots.limit = None if limit is None else max(limit // front_ends, 1)
            slots.hand_out()

    def check_admin(self) -> None:
        """Checks that the caller may administer.

        Raises:
            ForbiddenError: The token does not allow it.
        """
        if not self._admin:
            raise ForbiddenError(
                f"the token of {self.name} may not administer; that needs one with admin = true"
            )

    def begin_call(self) -> None:
        """Admits a call, and counts it until ``end_call``.

        Raises:
            LimitError: The caller has too many calls in work, or exceeds its rate.
        """
        if not self._calls.take():
            raise LimitError(
                f"{self.name} may have {self._calls.limit} calls at once; wait for an answer",
                _RETRY_CALL_S,
            )
        try:
            self._take(1)
        except BaseException:
            self._calls.release()
            raise

    def end_call(self) -> None:
        """Counts an admitted call no more."""
        self._calls.release()

    def count(self, images: int) -> None:
        """Counts an admitted call as several requests of the caller's rate.

        Raises:
            LimitError: The rate does not allow so many now. Then the call is not counted.
        """
        if self._rate is not None:
            self._rate.give_back()
        self._take(images)

    def reserve(self, images: int = 1) -> float:
        """Takes images of a stream from the caller's rate, now or in advance.

        Returns:
            How long the images must wait, in seconds.
        """
        return 0.0 if self._rate is None else self._rate.reserve(images)

    def _take(self, requests: int) -> None:
        if self._rate is not None and (wait_s := self._rate.take(requests)):
            each = "" if requests == 1 else f"; these {requests} images are one each"
            raise LimitError(
                f"{self.name} may make {self._rate.per_s:g} requests per second{each}", wait_s
            )


current_caller: ContextVar[Caller] = ContextVar("current_caller", default=Caller())  # noqa: B039
"""The caller of the call that the current task works for."""
