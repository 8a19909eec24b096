"""The loop: order, failures, the end, and bounds, in virtual time and with real threads."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence

import grpc
import pytest

from gradcam_client import ImageExplanation, OverloadedError, UnavailableError
from gradcam_client.errors import InvalidRequestError
from gradcam_server.watch.frames import Frame, FrameResult, Status
from gradcam_server.watch.pacing import Pacer
from gradcam_server.watch.stream_state import Choice, Decision, FrameByFrame, Shown
from gradcam_server.watch.watcher import FrameInterval, Watched, Watcher
from support.virtual_time import run
from support.watching import (
    Collected,
    Device,
    LoopSlot,
    LoopSource,
    make_answer,
    make_frame,
    watch_for,
    watch_sources,
)

UNAVAILABLE = UnavailableError(grpc.StatusCode.UNAVAILABLE, "draining")


def watch_file(device: Device, count: int = 40, **options: object) -> tuple[Collected, LoopSource]:
    """Watches a file to its end."""
    output, sources = Collected(), list[LoopSource]()

    async def watch() -> None:
        sources.append(LoopSource("file", 0, count=count, is_live=False))
        _, running = watch_sources(sources, device, output, **options)  # type: ignore[arg-type]
        await running

    run(watch())
    return output, sources[0]


class Uneven(Device):
    """Takes a different time for each image, so that answers overtake each other."""

    async def explain(self, image, **options):  # type: ignore[no-untyped-def]
        self.options.append(options)
        await asyncio.sleep((len(self.options) * 7 % 5 + 1) / 100)
        return make_answer()


def test_every_frame_of_a_file_has_its_result_in_order() -> None:
    """Nothing is shed, though several calls are in flight and overtake each other."""
    output, source = watch_file(Uneven(0), max_in_flight=4)
    assert [one.frame.number for one in output.results] == list(range(40))
    assert {one.status for one in output.results} == {Status.EXPLAINED}
    assert source.done_numbers == list(range(40))
    assert source.slot.shed == 0
    assert output.is_closed


@pytest.mark.parametrize("count", [1, 3])
def test_no_more_calls_are_in_flight_than_allowed(count: int) -> None:
    """The bound of a source holds, and it is used."""
    in_flight, seen = 0, set()

    class Counting(Device):
        async def explain(self, image, **options):  # type: ignore[no-untyped-def]
            nonlocal in_flight
            in_flight += 1
            seen.add(in_flight)
            await asyncio.sleep(0.1)
            in_flight -= 1
            return make_answer()

    watch_file(Counting(0), max_in_flight=count)
    assert max(seen) == count


class CountedState(FrameByFrame):
    """Counts the frames between their decision and their result."""

    def __init__(self, output: "CountedOutput") -> None:
        super().__init__()
        self._output = output

    def decide(self, frame: Frame) -> Decision:
        self._output.taken += 1
        self._output.most = max(self._output.most, self._output.taken - len(self._output.results))
        return super().decide(frame)


class CountedOutput(Collected):
    """An output that takes ``seconds`` for each result."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds, self.taken, self.most = seconds, 0, 0


async def run_with_slow_output(
    sources: Sequence[LoopSource],
    output: CountedOutput,
    seconds: float | None,
    max_in_flight: int = 1,
) -> None:
    """Watches sources for some seconds or to their end."""
    watcher, running = watch_sources(
        sources,
        Device(0.001),
        output,
        max_in_flight=max_in_flight,
        state=lambda: CountedState(output),
    )
    loop = asyncio.get_running_loop()
    inline, writing = loop.run_in_executor, asyncio.Lock()

    def slow(executor, func, *args):  # type: ignore[no-untyped-def]
        if func != watcher._write:
            return inline(executor, func, *args)

        async def write() -> None:
            async with writing:  # there is one thread
                await asyncio.sleep(output.seconds)
                func(*args)

        return asyncio.ensure_future(write())

    loop.run_in_executor = slow  # type: ignore[method-assign, assignment]
    if seconds is not None:
        loop.call_later(seconds, watcher.stop)
    await running


def test_a_slow_output_holds_the_frames_of_a_file_back() -> None:
    """All are written, and they do not pile up before the output: memory is bounded."""
    output = CountedOutput(1)

    async def watch() -> None:
        source = LoopSource("file", 0, count=40, is_live=False)
        await run_with_slow_output([source], output, None, max_in_flight=2)

    run(watch())
    assert [one.frame.number for one in output.results] == list(range(40))
    assert output.most <= 3


@pytest.mark.parametrize("seconds", [0.1, 0.5, 2.0])
def test_a_slow_output_sheds_live_frames_where_they_are_read(seconds: float) -> None:
    """Each frame is written or counted as shed, and no more than two of a source are kept."""
    output, sources = CountedOutput(seconds), list[LoopSource]()

    async def watch() -> None:
        sources.extend(LoopSource(name, 30) for name in "ab")
        await run_with_slow_output(sources, output, 60)

    run(watch())
    assert output.most <= 4
    for source in sources:
        written = [one.frame.number for one in output.of(source.name)]
        assert written == sorted(written)
        assert len(written) == pytest.approx(60 / seconds / 2, abs=3), "in turns"
        shed = output.shed_count[source.name] + source.slot.shed
        assert 0 <= source.count - len(written) - shed <= 4, "the end drops those on their way"


def test_a_restart_of_the_server_costs_live_frames_only() -> None:
    """While the server is away frames fail; after it they are explained at the same rate."""
    device = Device(0.01)

    def away() -> UnavailableError | None:
        return UNAVAILABLE if 1020 < asyncio.get_running_loop().time() < 1030 else None

    device.fault = away
    output, _ = watch_for(60, {"a": 10}, device)
    failed = output.of("a", Status.FAILED)
    assert failed
    assert len(failed) < 40, "it asks less and less often"
    assert {one.error for one in failed} == {"draining"}
    after = [one for one in output.of("a") if one.frame.read_at > 1036]
    assert len(after) == pytest.approx(240, abs=3)
    numbers = [one.frame.number for one in output.results]
    assert numbers == sorted(numbers)


def test_a_file_waits_for_a_server_that_restarts() -> None:
    """No frame of a file fails while the server is away."""
    device = Device(0.01)
    device.fault = lambda: (
        UNAVAILABLE if 1000.1 < asyncio.get_running_loop().time() < 1030 else None
    )
    output, _ = watch_file(device, max_in_flight=3)
    assert [one.frame.number for one in output.results] == list(range(40))
    assert {one.status for one in output.results} == {Status.EXPLAINED}


def test_a_frame_that_another_attempt_may_explain_is_not_done() -> None:
    """A folder's file that failed because of the server comes again; a broken file does not."""
    device = Device(0.01)
    broken = InvalidRequestError(grpc.StatusCode.INVALID_ARGUMENT, "no image")
    device.fault = lambda: broken if len(device.timeouts_s) == 1 else UNAVAILABLE
    output, source = watch_file(device, count=2)
    assert [one.status for one in output.results] == [Status.FAILED] * 2
    assert source.done_numbers == [0]


def test_one_call_at_a_time_knows_all_frames_before() -> None:
    """A file with one call in flight is decided frame by frame: a second run decides the same."""
    order: list[tuple[str, int]] = []

    class Ordered(FrameByFrame):
        def decide(self, frame: Frame) -> Decision:
            order.append(("decide", frame.number))
            return super().decide(frame)

        def learn(self, frame: Frame, explanation: ImageExplanation) -> None:
            order.append(("learn", frame.number))

        def shown(self, frame: Frame, explanation: ImageExplanation) -> Shown:
            order.append(("shown", frame.number))
            return super().shown(frame, explanation)

    watch_file(Uneven(0), count=10, state=Ordered)
    steps = ("decide", "learn", "shown")
    assert order == [(step, number) for number in range(10) for step in steps]


def test_one_source_that_fails_leaves_the_others() -> None:
    """The error of a source is kept with its name, and the other sources go on."""
    output = Collected()

    class Broken(LoopSource):
        def frames(self) -> Iterator[Frame]:
            raise OSError("no such camera")

    async def watch() -> Watcher:
        sources = [LoopSource("good", 0, count=20, is_live=False), Broken("bad", 1, count=0)]
        watcher, running = watch_sources(sources, Device(0.01), output)
        await running
        return watcher

    watcher = run(watch())
    assert {name: str(error) for name, error in watcher.errors.items()} == {"bad": "no such camera"}
    assert len(output.of("good")) == 20


class Reusing(FrameByFrame):
    """Computes every fourth frame, and audits every eighth."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: ImageExplanation | None = None
        self.learned: list[int] = []

    def decide(self, frame: Frame) -> Decision:
        if self.kept is None or frame.number % 4 == 0:
            return Decision(Choice.AUDIT if frame.number % 8 == 0 else Choice.COMPUTE)
        return Decision(Choice.REUSE, self.kept)

    def learn(self, frame: Frame, explanation: ImageExplanation) -> None:
        self.kept = explanation
        self.learned.append(frame.number)


def test_a_reused_frame_costs_no_call() -> None:
    """It has the answer of the frame before, in its place in the order; audits are computed."""
    device = Device(0.01)
    output, _ = watch_file(device, state=Reusing)
    assert [one.frame.number for one in output.results] == list(range(40))
    assert device.computed == 10
    assert [one.status for one in output.results[:5]] == [
        *(Status.EXPLAINED, Status.REUSED, Status.REUSED, Status.REUSED, Status.EXPLAINED)
    ]
    assert output.results[1].explanation is output.results[0].explanation
    assert output.audited == 5


def test_stop_ends_live_sources_and_closes_the_outputs() -> None:
    """What was in flight is written, and the run ends within the grace."""
    output, _ = watch_for(10, {"a": 10}, Device(0.05))
    assert output.is_closed
    assert len(output.of("a")) == pytest.approx(100, abs=2)


def test_stop_does_not_wait_for_a_server_that_is_away() -> None:
    """A file's frame that is retried is given up after the grace, and the file is unfinished."""
    output = Collected()

    async def watch() -> tuple[float, Watcher]:
        device = Device(0.01)
        device.fault = lambda: UNAVAILABLE
        sources = [LoopSource("file", 0, count=None, is_live=False)]
        watcher, running = watch_sources(sources, device, output)
        loop = asyncio.get_running_loop()
        loop.call_later(1, watcher.stop)
        began_at = loop.time()
        await running
        return loop.time() - began_at, watcher

    seconds, watcher = run(watch())
    assert seconds < 3.5
    assert watcher.unfinished == {"file"}
    assert output.is_closed


def test_stop_does_not_wait_for_a_pause_that_the_server_asked_for() -> None:
    """However long the server asked to be left alone."""
    output = Collected()

    async def watch() -> float:
        device = Device(0.01)
        device.fault = lambda: OverloadedError(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", 600)
        watcher, running = watch_sources([LoopSource("a", 10)], device, output)
        loop = asyncio.get_running_loop()
        loop.call_later(1, watcher.stop)
        began_at = loop.time()
        await running
        return loop.time() - began_at

    assert run(watch()) < 1.5
    assert len(output.of("a", Status.FAILED)) == 1


class Overlapping(FrameByFrame):
    """Notes whether two of its methods run at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.has_overlapped = False

    def _use(self) -> None:
        if not self.lock.acquire(blocking=False):
            self.has_overlapped = True
            return
        time.sleep(0.002)
        self.lock.release()

    def decide(self, frame: Frame) -> Decision:
        self._use()
        return super().decide(frame)

    def learn(self, frame: Frame, explanation: ImageExplanation) -> None:
        self._use()

    def shown(self, frame: Frame, explanation: ImageExplanation) -> Shown:
        self._use()
        return super().shown(frame, explanation)


def test_a_state_is_used_by_one_thread_at_a_time() -> None:
    """States need no locks, though several calls are in flight."""
    output, state = Collected(), Overlapping()

    async def watch() -> None:
        sources = [LoopSource("file", 0, count=30, is_live=False)]
        _, running = watch_sources(
            sources, Device(0.001), output, max_in_flight=4, state=lambda: state
        )
        await running

    asyncio.run(watch())
    assert len(output.results) == 30
    assert not state.has_overlapped


class Failing(Collected):
    """An output on a full disk."""

    def write(self, result: FrameResult) -> None:
        raise OSError("no space left")


def test_an_output_that_fails_ends_the_run_and_closes_the_others() -> None:
    """Its error is raised, and what the other outputs wrote is readable."""
    output, failing = Collected(), Failing()

    async def watch() -> None:
        sources = [LoopSource("a", 10)]
        _, running = watch_sources(sources, Device(0.01), output, more_outputs=[failing])
        await running

    with pytest.raises(OSError, match="no space left"):
        run(watch())
    assert output.is_closed
    assert failing.is_closed


def test_the_frame_interval_is_that_of_all_frames_read() -> None:
    """Frames that were shed between two taken ones count."""
    interval = FrameInterval()
    assert interval.mean_s is None
    for number in (0, 3, 4, 10):
        interval.add(make_frame(number, read_at=5 + number / 15))
    assert interval.mean_s == pytest.approx(1 / 15)


def test_it_runs_with_real_threads_and_time() -> None:
    """Readers in threads, the default clock, and outputs in their own thread."""

    class Real:
        name, is_live = "real", False

        def __init__(self) -> None:
            self.slot = LoopSlot()

        def frames(self) -> Iterator[Frame]:
            for number in range(5):
                yield make_frame(number, is_live=False, read_at=time.monotonic())

        def done(self, frame: Frame) -> None:
            pass

        def close(self) -> None:
            pass

    class Threads(Collected):
        def write(self, result: FrameResult) -> None:
            super().write(result)
            names.add(threading.current_thread().name)

    names: set[str] = set()
    output = Threads()

    async def explain(frame: Frame, classes: Sequence[int | str]) -> ImageExplanation:
        await asyncio.sleep(0)
        return make_answer()

    async def watch() -> None:
        source = Real()
        loop = asyncio.get_running_loop()

        class ThreadSlot(LoopSlot):
            def put(self, frame: Frame) -> bool:
                asyncio.run_coroutine_threadsafe(self.put_and_wait(frame), loop).result()
                return True

            async def put_and_wait(self, frame: Frame) -> None:
                self._taken.clear()
                LoopSlot.put(self, frame)
                await self._taken.wait()

        watched = Watched(source, ThreadSlot(), FrameByFrame())
        await Watcher([watched], explain, Pacer(), [output], output).run()

    asyncio.run(watch())
    assert [one.frame.number for one in output.results] == list(range(5))
    assert all(name.startswith("outputs") for name in names)
    assert output.read_count["real"] == 5
