"""Who may begin a call, and when: shares, lag and shed frames, in virtual time."""

import numpy as np
import pytest

from gradcam_server.watch.frames import FrameResult
from support.watching import Collected, Device, LoopSource, watch_for

FPS = 15
START_S = 2.0  # until the time of a call is known


def lags(results: list[FrameResult]) -> np.ndarray:
    """Returns the lags after the start, in seconds."""
    began_at = results[0].frame.read_at
    return np.array([one.lag_s for one in results if one.frame.read_at > began_at + START_S])


def shed(output: Collected, source: LoopSource) -> int:
    """Returns the number of frames that were replaced, in the slot or while waiting for a turn."""
    return source.slot.shed + output.shed_count[source.name]


def check_shares(
    output: Collected, sources: list[LoopSource], seconds: float, capacity: float
) -> None:
    """Each source gets its share of the capacity, and the rest of its frames is shed."""
    for source in sources:
        explained = len(output.of(source.name))
        assert explained == pytest.approx(seconds * capacity / len(sources), rel=0.05)
        assert source.count - explained - shed(output, source) <= 3  # on their way


def test_two_cameras_share_a_device() -> None:
    """30 frames/s for a device of 20: each gets 10, a third is shed, the lag is under 2 frames."""
    output, sources = watch_for(120, {"a": FPS, "b": FPS}, Device(0.05))
    check_shares(output, sources, 120, 20)
    for source in sources:
        assert shed(output, source) / source.count == pytest.approx(1 / 3, abs=0.02)
        assert lags(output.of(source.name)).max() < 2 / FPS


@pytest.mark.parametrize(
    ("cameras", "device", "capacity"),
    [(4, Device(0.05), 20), (4, Device(0.05, count=2), 40), (2, Device(0.06), 1 / 0.06)],
    ids=["four on one", "four on two", "two on a slower device"],
)
def test_no_frame_waits_behind_the_others(cameras: int, device: Device, capacity: float) -> None:
    """However many cameras and devices: equal shares, and a lag under two frames."""
    output, sources = watch_for(60, {f"camera {n}": FPS for n in range(cameras)}, device)
    check_shares(output, sources, 60, capacity)
    for source in sources:
        assert lags(output.of(source.name)).max() < 2 / FPS


def test_a_device_that_is_too_slow_for_any_frame_is_not_queued_at() -> None:
    """If one call takes longer than a frame, it begins with a new frame, and alone."""
    output, sources = watch_for(60, {"a": FPS, "b": FPS}, Device(0.2))
    check_shares(output, sources, 60, 5)
    for source in sources:
        assert lags(output.of(source.name)).max() < 0.2 * 1.2 + 1 / FPS


def test_a_source_that_needs_less_leaves_the_rest() -> None:
    """A camera of 5 frames/s loses none; the other one gets what it leaves."""
    output, (slow, _) = watch_for(60, {"slow": 5, "fast": 30}, Device(0.05))
    assert shed(output, slow) == 0
    assert len(output.of("slow")) == pytest.approx(300, abs=2)
    assert len(output.of("fast")) == pytest.approx(60 * 15, rel=0.03)


def test_a_fast_device_explains_all() -> None:
    """Where all is in time, nothing is shed and no call is delayed."""
    output, sources = watch_for(60, {"a": FPS, "b": FPS}, Device(0.005))
    for source in sources:
        assert shed(output, source) <= 1
        assert lags(output.of(source.name)).max() < 0.5 / FPS


def test_the_pace_follows_a_device_that_becomes_slower() -> None:
    """After a change of the device's speed the lag comes down again by itself."""

    class Changing(Device):
        async def explain(self, image, **options):  # type: ignore[no-untyped-def]
            self.seconds = 0.02 if self.computed < 500 else 0.06
            return await super().explain(image, **options)

    device = Changing(0.02)
    output, sources = watch_for(60, {"a": FPS, "b": FPS}, device)
    for source in sources:
        last = [one.lag_s for one in output.of(source.name)[-200:]]
        assert max(last) < 2 / FPS
