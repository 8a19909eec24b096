"""Explains the frames of all sources, and writes the results of each source in order.

    reader thread -> slot -> turn -> decision -> call -> result -> outputs

Nothing queues without a bound: a source has one frame in its slot, and at most a few from there to
the outputs.
"""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Protocol

from gradcam_client import GradCamError, ImageExplanation
from gradcam_server.watch.frames import Frame, FrameResult, FrameSource, Status
from gradcam_server.watch.pacing import PacedCall, Pacer
from gradcam_server.watch.stream_state import Choice, Decision, StreamState

_GRACE_S = 2.0
# How much a new interval between two frames counts in the mean.
_INTERVAL_WEIGHT = 0.1


class Slot(Protocol):
    """Hands frames from a reader thread to the event loop."""

    def put(self, frame: Frame) -> bool:
        """Puts a frame, which replaces an older live one; waits with a file's.

        Returns:
            Whether it is open.
        """

    def end(self) -> None:
        """Says that no frame follows."""

    def close(self) -> None:
        """Drops the frame, and ends ``put`` and ``take``; called from any thread."""

    async def take(self) -> Frame | None:
        """Waits for a frame; None after the last one. A cancelled call loses no frame."""


class Output(Protocol):
    """Where results go. All calls come from one thread."""

    @property
    def at_risk(self) -> str:
        """What may be incomplete if the process ends at once, for people; empty if nothing."""

    def write(self, result: FrameResult) -> None:
        """Writes a result."""

    def close(self) -> None:
        """Leaves what was written readable; may be called at any time."""


class Counts(Protocol):
    """Counts frames by source."""

    def read(self, source: str) -> None:
        """A frame was read."""

    def shed(self, source: str) -> None:
        """A frame was replaced by a newer one."""

    def finished(self, result: FrameResult, *, audited: bool) -> None:
        """A frame has its result."""


@dataclass(frozen=True)
class Watched:
    """A source, and what belongs to it.

    Attributes:
        source: The source.
        slot: Its slot.
        state: What is kept from frame to frame.
        max_in_flight: The highest number of its calls at a time.
    """

    source: FrameSource
    slot: Slot
    state: StreamState
    max_in_flight: int = 1


@dataclass(frozen=True, slots=True)
class _Pending:
    frame: Frame
    decision: Decision
    call: "asyncio.Task[ImageExplanation | Exception] | None"


@dataclass
class _Limits:
    """The bounds of a source: frames from the slot to the outputs, and calls.

    Attributes:
        frames: Frames from the slot to the outputs.
        calls: Calls in flight.
        state: Held while the state is used: its methods never run at the same time.
        in_order: The frames on their way, in their order.
    """

    frames: asyncio.Semaphore
    calls: asyncio.Semaphore
    state: asyncio.Lock = field(default_factory=asyncio.Lock)
    in_order: "asyncio.Queue[_Pending | None]" = field(default_factory=asyncio.Queue)

    @classmethod
    def of(cls, watched: Watched) -> "_Limits":
        count = watched.max_in_flight
        # Of a live source a call begins while the last result is written. Of a file it does not:
        # with one call at a time, each frame is decided with all that is known of those before.
        frames = count + watched.source.is_live
        return cls(asyncio.Semaphore(frames), asyncio.Semaphore(count))


class FrameInterval:
    """The mean time between the frames of a source, in seconds."""

    def __init__(self) -> None:
        self.mean_s: float | None = None
        self._last: Frame | None = None

    def add(self, frame: Frame) -> None:
        """Takes a later frame; frames between may be missing."""
        if self._last is not None and frame.number > self._last.number:
            count = frame.number - self._last.number
            interval_s = (frame.read_at - self._last.read_at) / count
            mean_s = interval_s if self.mean_s is None else self.mean_s
            self.mean_s = mean_s + _INTERVAL_WEIGHT * (interval_s - mean_s)
        self._last = frame


class Watcher:
    """Explains the frames of several sources.

    Args:
        sources: The sources.
        explain: Explains a frame: ``FrameExplainer.explain``.
        pacer: Gives the turns.
        outputs: The outputs; ``run`` closes them.
        counts: Counts frames.
        grace_s: How long ``stop`` waits for the calls in flight.
        clock: Returns the time in seconds, of ``time.monotonic``.

    Attributes:
        errors: The errors that ended sources, by name.
        unfinished: The names of the sources that ended because of ``stop``.
    """

    def __init__(
        self,
        sources: Sequence[Watched],
        explain: Callable[[Frame, Sequence[int | str]], Awaitable[ImageExplanation]],
        pacer: Pacer,
        outputs: Sequence[Output],
        counts: Counts,
        *,
        grace_s: float = _GRACE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sources, self._explain, self._pacer = sources, explain, pacer
        self._outputs, self._counts = outputs, counts
        self._grace_s, self._clock = grace_s, clock
        self._calls: set[asyncio.Task[ImageExplanation | Exception]] = set()
        self._is_stopping = False
        # One thread writes: outputs need no locks, and results of a source stay in order.
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="outputs")
        self.errors: dict[str, Exception] = {}
        self.unfinished: set[str] = set()

    async def run(self) -> None:
        """Runs until all sources have ended, or ``stop`` was called; then closes all.

        Raises:
            Exception: The error of an output.
        """
        readers = [
            threading.Thread(
                target=self._read, args=(one,), name=f"reader of {one.source.name}", daemon=True
            )
            for one in self._sources
        ]
        loop = asyncio.get_running_loop()
        try:
            for reader in readers:
                reader.start()
            async with asyncio.TaskGroup() as group:
                for one in self._sources:
                    limits = _Limits.of(one)
                    group.create_task(self._take(one, limits))
                    group.create_task(self._deliver(one, limits))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._close_sources()
            for call in self._calls:
                call.cancel()
            await asyncio.gather(*self._calls, return_exceptions=True)
            try:
                await loop.run_in_executor(self._writer, self._close_outputs)
            finally:
                self._writer.shutdown()

    def stop(self) -> None:
        """Ends the sources, and the calls in flight after ``grace_s``; called in the event loop."""
        if self._is_stopping:
            return
        self._is_stopping = True
        self._close_sources()
        self._pacer.close()
        asyncio.get_running_loop().call_later(self._grace_s, self._cancel)

    def _close_sources(self) -> None:
        for one in self._sources:
            one.slot.close()
            # It may wait for its thread.
            threading.Thread(target=one.source.close, daemon=True).start()

    def _cancel(self) -> None:
        for call in self._calls:
            call.cancel()

    def _read(self, one: Watched) -> None:
        """Reads a source, in a thread of its own."""
        name = one.source.name
        try:
            for frame in one.source.frames():
                self._counts.read(name)
                if self._is_stopping or not one.slot.put(frame):
                    self.unfinished.add(name)
                    break
            else:
                if self._is_stopping:
                    self.unfinished.add(name)
        except Exception as error:  # noqa: BLE001 - the other sources go on
            if not self._is_stopping:
                self.errors[name] = error
        finally:
            one.slot.end()

    async def _take(self, one: Watched, limits: _Limits) -> None:
        """Takes frames, one at each turn, and begins their calls."""
        name, is_live, interval = one.source.name, one.source.is_live, FrameInterval()
        while True:
            await limits.frames.acquire()
            await limits.calls.acquire()
            frame = await one.slot.take()
            if frame is None:
                break
            async with self._pacer.turn(name, is_live=is_live) as turn:
                if self._is_stopping:
                    self.unfinished.add(name)
                    break
                if is_live:
                    frame = await self._newest(one, frame)
                interval.add(frame)
                # One decision for each frame that is taken: an audit is never lost to a newer one.
                async with limits.state:
                    decision = await asyncio.to_thread(one.state.decide, frame)
                call = None
                if decision.choice is Choice.REUSE:
                    limits.calls.release()
                else:
                    paced = turn.begin(interval.mean_s)
                    call = asyncio.create_task(self._call(one, limits, frame, paced))
                    self._calls.add(call)
                    call.add_done_callback(self._calls.discard)
            limits.in_order.put_nowait(_Pending(frame, decision, call))
        limits.in_order.put_nowait(None)

    async def _newest(self, one: Watched, frame: Frame) -> Frame:
        """Returns the frame that has come since another one was taken, or that one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                newer = await one.slot.take()
            if newer is not None:
                self._counts.shed(one.source.name)
                return newer
        return frame

    async def _call(
        self, one: Watched, limits: _Limits, frame: Frame, paced: PacedCall
    ) -> ImageExplanation | Exception:
        answered = False
        try:
            async with limits.state:
                classes = one.state.classes()
            explanation = await self._explain(frame, classes)
            answered = True
            async with limits.state:
                await asyncio.to_thread(one.state.learn, frame, explanation)
        except (GradCamError, OSError, ValueError) as error:
            return error
        finally:
            self._pacer.end(paced, answered=answered)
            limits.calls.release()
        return explanation

    async def _deliver(self, one: Watched, limits: _Limits) -> None:
        """Writes the results in the order of the frames."""
        loop = asyncio.get_running_loop()
        while (pending := await limits.in_order.get()) is not None:
            if pending.call is not None:
                await asyncio.wait({pending.call})
                if pending.call.cancelled():
                    self.unfinished.add(one.source.name)
                    limits.frames.release()
                    continue
            answer = pending.decision.explanation if not pending.call else pending.call.result()
            async with limits.state:
                result = await asyncio.to_thread(self._result, one, pending, answer)
            # Another attempt may explain it: a folder's file comes again after a restart.
            is_done = not (isinstance(answer, GradCamError) and answer.retryable)
            await loop.run_in_executor(self._writer, self._write, one, result, is_done)
            self._counts.finished(result, audited=pending.decision.choice is Choice.AUDIT)
            limits.frames.release()

    def _result(
        self, one: Watched, pending: _Pending, answer: ImageExplanation | Exception | None
    ) -> FrameResult:
        frame = pending.frame
        if not isinstance(answer, ImageExplanation):
            lag_s = self._clock() - frame.read_at
            return FrameResult(frame, Status.FAILED, None, "", None, str(answer), lag_s)
        status = Status.EXPLAINED if pending.call else Status.REUSED
        shown = one.state.shown(frame, answer)
        lag_s = self._clock() - frame.read_at
        return FrameResult(frame, status, answer, shown.target, shown.heat, "", lag_s)

    def _write(self, one: Watched, result: FrameResult, is_done: bool) -> None:
        for output in self._outputs:
            output.write(result)
        if is_done:
            one.source.done(result.frame)

    def _close_outputs(self) -> None:
        with ExitStack() as stack:  # each is closed, whatever another raises
            for output in self._outputs:
                stack.callback(output.close)
