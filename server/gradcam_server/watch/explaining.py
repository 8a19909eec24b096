"""Explains single frames: deadlines for live ones, retries for files, pauses after failures."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import grpc

from gradcam_client import GradCamError, ImageExplanation
from gradcam_client.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    MessageTooLargeError,
)
from gradcam_client.retry import RetryPolicy
from gradcam_server.watch.frames import Frame

# A server that restarts may be away for a while; a file's frame waits for it that long.
_FILE_TIMEOUT_S = 300.0
_RETRY = RetryPolicy(max_attempts=1_000_000, initial_backoff_s=0.1, max_backoff_s=5.0)
# The frame is the cause; the next one may do.
_OF_THE_FRAME = (InvalidRequestError, MessageTooLargeError, DeadlineExceededError)


class ExplainClient(Protocol):
    """``AsyncClient``, or the client of a model in this process."""

    @property
    def explain(self) -> Callable[..., Awaitable[ImageExplanation]]:
        """Explains one image by ``timeout_s`` and options, or raises a ``GradCamError``."""


class FrameExplainer:
    """Explains frames by a client.

    Args:
        client: The client. It tries other servers itself.
        options: The options of each call, but for the classes.
        max_lag_s: The deadline of a live frame, in seconds after it was read. The server does not
            compute what would come later.
        on_pause: Called with the seconds for which no call should begin.
        clock: Returns the time in seconds, of ``time.monotonic``.
        sleep: Waits for a number of seconds.
    """

    def __init__(
        self,
        client: ExplainClient,
        options: Mapping[str, Any],
        *,
        max_lag_s: float,
        on_pause: Callable[[float], object],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._client, self._options = client, dict(options)
        self._max_lag_s, self._on_pause = max_lag_s, on_pause
        self._clock, self._sleep = clock, sleep
        self._failures = 0

    async def explain(self, frame: Frame, classes: Sequence[int | str] = ()) -> ImageExplanation:
        """Explains a frame.

        Args:
            frame: The frame.
            classes: The classes to explain; none is the best one.

        Raises:
            GradCamError: The error of the only attempt for a live frame, of the last attempt for
                a file's; ``DeadlineExceededError`` if the frame is older than ``max_lag_s``.
        """
        if not frame.is_live:
            return await self._with_retries(frame, classes)
        try:
            left_s = self._max_lag_s - (self._clock() - frame.read_at)
            if left_s <= 0:
                raise DeadlineExceededError(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"the frame is older than --max-lag {self._max_lag_s:g}",
                )
            answer = await self._call(frame, classes, left_s)
        except GradCamError as error:
            if not isinstance(error, _OF_THE_FRAME):
                self._failures += 1
                # Not retryable are a token or a model that is gone: they may come back.
                pause_s = _RETRY.pause_s(error, self._failures, math.inf)
                self._on_pause(_RETRY.backoff_s(self._failures) if pause_s is None else pause_s)
            raise
        self._failures = 0
        return answer

    async def _with_retries(self, frame: Frame, classes: Sequence[int | str]) -> ImageExplanation:
        deadline, failures = self._clock() + _FILE_TIMEOUT_S, 0
        while True:
            left_s = deadline - self._clock()
            try:
                return await self._call(frame, classes, left_s)
            except GradCamError as error:
                failures += 1
                pause_s = _RETRY.pause_s(error, failures, deadline - self._clock())
                if pause_s is None:
                    raise
            await self._sleep(pause_s)

    async def _call(
        self, frame: Frame, classes: Sequence[int | str], timeout_s: float
    ) -> ImageExplanation:
        image = frame.image if frame.encoded is None else frame.encoded
        return await self._client.explain(
            image, timeout_s=timeout_s, classes=list(classes), **self._options
        )
