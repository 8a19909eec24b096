"""Sources, a device and outputs of ``gradcam watch`` without cameras, servers and files.

Frames come from coroutines and not from threads, so that all of it can run in virtual time.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import grpc
import numpy as np

from gradcam_client import GradCamError, ImageExplanation, OverloadedError
from gradcam_client.results import Explanation, Heatmap, Prediction, ServingStats
from gradcam_server.watch.explaining import FrameExplainer
from gradcam_server.watch.frames import Frame, FrameResult, Status
from gradcam_server.watch.pacing import Pacer
from gradcam_server.watch.stream_state import FrameByFrame, StreamState
from gradcam_server.watch.watcher import Output, Watched, Watcher
from support.virtual_time import run

PIXELS = np.zeros((4, 6, 3), np.uint8)


def make_frame(
    number: int = 0, *, source: str = "a", read_at: float = 0.0, is_live: bool = True
) -> Frame:
    """Returns a small black frame."""
    return Frame(source, number, read_at, read_at, PIXELS, is_live)


def make_answer(index: int = 281, name: str = "tabby") -> ImageExplanation:
    """Returns an answer with a map of 2 x 2 for one class."""
    values = np.array([[0, 1], [2, 4]], np.float32)
    raw = Heatmap("raw", 2, 2, "none", "none", values.tobytes())
    first = Explanation(index, name, 5.0, "top", "gradcam", -1.0, 4.0, False, (raw,))
    best = (Prediction(index, name, 0.5, 5.0),)
    stats = ServingStats(0, 0, 0, 0, 1, 1)
    return ImageExplanation("model", 4, 6, best, (first,), None, stats)


class Device:
    """Explains one image after another, each in the same time.

    Like the server, it refuses at once what would be late.

    Args:
        seconds: The time for an image.
        count: The number of such devices.

    Attributes:
        timeouts_s: The deadline of each call.
        options: The options of each call.
        computed: The number of images that it computed.
        fault: Returns the error of a call, or None.
    """

    def __init__(self, seconds: float, count: int = 1) -> None:
        self.seconds = seconds
        self.timeouts_s: list[float] = []
        self.options: list[dict[str, Any]] = []
        self.computed = 0
        self.fault: Callable[[], GradCamError | None] = lambda: None
        self._free_at = [0.0] * count

    async def explain(
        self, image: Any, *, timeout_s: float | None = None, **options: Any
    ) -> ImageExplanation:
        """Explains an image."""
        assert timeout_s is not None
        self.timeouts_s.append(timeout_s)
        self.options.append(options)
        if error := self.fault():
            raise error
        now = asyncio.get_running_loop().time()
        device = min(range(len(self._free_at)), key=self._free_at.__getitem__)
        done_at = max(now, self._free_at[device]) + self.seconds
        if done_at - now > timeout_s:
            raise OverloadedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "too late", 0.01)
        self._free_at[device] = done_at
        self.computed += 1
        await asyncio.sleep(done_at - now)
        return make_answer()


class LoopSlot:
    """A slot whose frames come from the event loop."""

    def __init__(self) -> None:
        self.shed = 0
        self._frame: Frame | None = None
        self._is_ended = False
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def put(self, frame: Frame) -> bool:
        """Replaces the frame."""
        self.shed += self._frame is not None
        self._frame = frame
        self._changed.set()
        return not self._is_ended

    async def put_and_wait(self, frame: Frame) -> None:
        """Puts a file's frame, and waits until it is taken."""
        assert self._frame is None
        self._taken.clear()
        self.put(frame)
        await self._taken.wait()

    def end(self) -> None:
        """Ends the frames after this one."""
        self._is_ended = True
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    def close(self) -> None:
        """Ends the frames."""
        self._frame = None
        self.end()

    async def take(self) -> Frame | None:
        """Takes a frame, or None at the end."""
        while self._frame is None and not self._is_ended:
            self._changed.clear()
            await self._changed.wait()
        frame, self._frame = self._frame, None
        self._taken.set()
        return frame


class LoopSource:
    """A source whose frames a coroutine puts into its slot.

    Args:
        name: Its name.
        fps: Frames in a second; a file's come as fast as they are taken.
        count: Number of frames; None never ends.
        is_live: Whether only the newest frame counts.
    """

    def __init__(
        self, name: str, fps: float, *, count: int | None = None, is_live: bool = True
    ) -> None:
        self.name, self.is_live = name, is_live
        self.slot = LoopSlot()
        self.count = 0
        self.done_numbers: list[int] = []
        self._fps, self._total = fps, count
        self._closed = threading.Event()

    def frames(self) -> Iterator[Frame]:
        """Blocks until it is closed."""
        self._closed.wait()
        return iter(())

    def done(self, frame: Frame) -> None:
        """Keeps the number of a frame whose result is written."""
        self.done_numbers.append(frame.number)

    def close(self) -> None:
        """Ends ``frames``."""
        self._closed.set()

    async def feed(self) -> None:
        """Puts frames into the slot."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        while self.count != self._total:
            frame = make_frame(
                self.count, source=self.name, read_at=loop.time(), is_live=self.is_live
            )
            self.count += 1
            if self.is_live:
                self.slot.put(frame)
                await asyncio.sleep(began_at + self.count / self._fps - loop.time())
            else:
                await self.slot.put_and_wait(frame)
        self.close()


class Collected:
    """An output that keeps all results, and the counts of them."""

    at_risk = ""

    def __init__(self) -> None:
        self.results: list[FrameResult] = []
        self.read_count: Counter[str] = Counter()
        self.shed_count: Counter[str] = Counter()
        self.audited = 0
        self.is_closed = False

    def write(self, result: FrameResult) -> None:
        """Keeps a result."""
        assert not self.is_closed
        self.results.append(result)

    def close(self) -> None:
        """Ends the output."""
        self.is_closed = True

    def read(self, source: str) -> None:
        """Counts a frame that was read."""
        self.read_count[source] += 1

    def shed(self, source: str) -> None:
        """Counts a frame that was replaced."""
        self.shed_count[source] += 1

    def finished(self, result: FrameResult, *, audited: bool) -> None:
        """Counts a result."""
        self.audited += audited

    def of(self, source: str, status: Status = Status.EXPLAINED) -> list[FrameResult]:
        """Returns the results of a source."""
        return [one for one in self.results if one.frame.source == source and one.status == status]


def watch_sources(
    sources: Sequence[LoopSource],
    device: Any,
    output: Collected,
    *,
    max_lag_s: float = 1.0,
    max_in_flight: int = 1,
    state: Callable[[], StreamState] = FrameByFrame,
    more_outputs: Sequence[Output] = (),
) -> tuple[Watcher, Coroutine[Any, Any, None]]:
    """Returns a watcher in the running loop, and its run together with the sources'."""
    clock = asyncio.get_running_loop().time
    pacer = Pacer(clock)
    explainer = FrameExplainer(device, {}, max_lag_s=max_lag_s, on_pause=pacer.pause, clock=clock)
    watched = [Watched(one, one.slot, state(), max_in_flight) for one in sources]
    watcher = Watcher(
        watched, explainer.explain, pacer, [output, *more_outputs], output, clock=clock
    )

    async def run_all() -> None:
        feeding = [asyncio.create_task(one.feed()) for one in sources]
        try:
            await watcher.run()
        finally:
            for task in feeding:
                task.cancel()
            await asyncio.gather(*feeding, return_exceptions=True)

    return watcher, run_all()


def watch_for(
    seconds: float, names_and_rates: dict[str, float], device: Device, **options: Any
) -> tuple[Collected, list[LoopSource]]:
    """Watches live sources in virtual time for some seconds."""
    output, sources = Collected(), list[LoopSource]()

    async def watch() -> None:
        sources.extend(LoopSource(name, fps) for name, fps in names_and_rates.items())
        watcher, running = watch_sources(sources, device, output, **options)
        asyncio.get_running_loop().call_later(seconds, watcher.stop)
        await running

    run(watch())
    return output, sources
