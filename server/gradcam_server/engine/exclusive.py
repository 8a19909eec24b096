"""Work that is no batch of images, and needs the device to itself: a measurement.

To the scheduler it is a batch in the background. So it starts between batches, when the device is
idle or for its share of the time, and images that come meanwhile wait for its end.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from time import perf_counter
from typing import Any, TypeVar, cast

from gradcam_server.domain.schedule import BatchReport, Urgency
from gradcam_server.engine.batcher import Batcher, Job

T = TypeVar("T")

_Work = Callable[[], None]

_LAST = Urgency(priority=1000)  # behind all images, those of the methods of many passes too


class Exclusive:
    """Runs functions on the first device of a batcher, each between two batches: a ``RunAlone``.

    Args:
        batcher: The batcher. Made on its event loop.
    """

    def __init__(self, batcher: Batcher[Any, Any]) -> None:
        self._batcher = cast("Batcher[_Work, None]", batcher)
        self._loop = asyncio.get_running_loop()
        self._runner = ExclusiveRunner()
        self._waiting: Future[Any] | None = None
        self._is_closed = False

    def __call__(self, work: Callable[[], T], /) -> T:
        """Runs a function, and returns what it returns. Called on one thread, not the loop's.

        Raises:
            CancelledError: It does not run, as the batcher is closed.
        """
        future: Future[T] = Future()
        self._waiting = future
        if self._is_closed:  # from here on, ``close`` finds the future and cancels it
            raise CancelledError

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:  # noqa: BLE001 - handed to the caller
                    future.set_exception(error)

        job = _ExclusiveJob(_LAST, perf_counter(), run, future)
        self._loop.call_soon_threadsafe(self._batcher.add, self._runner, [job])
        return future.result()

    def close(self) -> None:
        """Runs nothing more."""
        self._is_closed = True
        if self._waiting is not None:
            self._waiting.cancel()


class ExclusiveRunner:
    """A ``Runner`` that calls functions, one at a time."""

    background = True
    has_streams = False
    max_batch_size = depth = device_count = 1
    min_s = 0.0

    def plan(self, waiting: int, busy: float = 1.0) -> tuple[int, int]:  # noqa: ARG002
        """Returns one; see ``Runner``."""
        return 1, 1

    def expected_s(self, padded_size: int) -> float:  # noqa: ARG002
        """Returns 0: nothing is known before; see ``Runner``."""
        return 0.0

    def ran(self, padded_size: int, device: int, seconds: float) -> None:
        """Learns nothing: each function is another; see ``BatchRunner``."""

    def dispatch(
        self,
        items: Sequence[_Work],
        padded_size: int,  # noqa: ARG002
        device: int,  # noqa: ARG002
    ) -> Callable[[], Sequence[None]]:
        """Returns a function that calls the items."""
        return lambda: [work() for work in items]


@dataclass(slots=True, eq=False)
class _ExclusiveJob(Job[_Work, None]):
    """A function, which hands its result to a future itself."""

    future: Future[Any]

    @property
    def abandoned(self) -> bool:
        return self.future.cancelled()

    def answer(self, output: None, batch: BatchReport) -> None:
        pass

    def fail(self, error: Exception) -> None:
        pass

    def drop(self) -> None:
        self.future.cancel()
