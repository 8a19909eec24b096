"""Maps over time."""

import numpy as np
import pytest

from gradcam_server.watch.temporal.motion import Map, Motion, MotionEstimator, small_gray
from gradcam_server.watch.temporal.smoothing import MapSmoother
from support.stream_frames import texture

SIZE = (48, 64)


def still() -> Motion:
    gray = np.zeros(SIZE, np.uint8)
    return Motion(gray, gray, np.zeros((*SIZE, 2), np.float32))


def pan(pixels: float) -> Motion:
    gray = np.zeros(SIZE, np.uint8)
    flow = np.zeros((*SIZE, 2), np.float32)
    flow[..., 0] = -pixels
    return Motion(gray, gray, flow)


def spot(x: int, size: float = 1.0) -> Map:
    values = np.zeros(SIZE, np.float32)
    values[20:28, x - 4 : x + 4] = size
    return values


@pytest.mark.parametrize("frames", [5, 10, 50])
def test_the_rate_of_frames_does_not_matter(frames: int) -> None:
    """After a second the old map has the same weight, at every rate of frames."""
    smoother = MapSmoother(0.5)
    smoother.update(None, np.full(SIZE, 2, np.float32), 0)
    for number in range(1, frames + 1):
        heat = smoother.update(still(), spot(30, 2), number / frames)
    # Outside of the spot the old map fades; its maximum stays 2.
    assert heat[0, 0] == pytest.approx(np.exp(-1 / 0.5), rel=1e-4)
    assert heat.max() == pytest.approx(1)


def test_the_mean_moves_with_the_scene() -> None:
    """Under a pan the heat stays on the object; nothing stays behind."""
    smoother = MapSmoother(1.0)
    for number in range(8):
        heat = smoother.update(pan(4) if number else None, spot(12 + 4 * number), number / 10)
    assert np.array_equal(heat > 0.5, spot(40) > 0.5)
    assert heat[20:28, :34].max() < 0.01


def test_flow_of_real_pictures_moves_the_mean() -> None:
    """With the estimated flow an old map lies on the moved object, not where it was."""
    image = texture(5)
    estimator = MotionEstimator()
    estimator.update(small_gray(image))
    motion = estimator.update(small_gray(np.roll(image, 20, axis=1)))
    smoother = MapSmoother(1.0)
    old = np.zeros((96, 128), np.float32)
    old[40:50, 60:70] = 1
    smoother.update(None, old, 0)
    heat = smoother.update(motion, np.zeros((96, 128), np.float32), 0.1)
    assert heat[45, 75] > 0.9
    assert heat[45, 61] < 0.1


def test_the_scale_does_not_flicker() -> None:
    """A maximum that comes and goes does not change the brightness of the rest."""
    smoother, heats = MapSmoother(0.5), []
    for number in range(60):
        raw = np.maximum(spot(50), spot(12, 3.0 * (number % 2)))
        heats.append(smoother.update(still() if number else None, raw, number / 15))
    rest, peak = np.array(heats[30:])[:, 24, 50], np.array(heats[30:])[:, 24, 12]
    assert np.abs(np.diff(rest)).max() < 0.02
    assert rest.mean() == pytest.approx(1 / 1.5, abs=0.05)
    assert peak.min() > 0.85


def test_what_comes_into_view_takes_the_new_map() -> None:
    """The strip that a pan uncovers has no past."""
    smoother = MapSmoother(100.0)
    smoother.update(None, np.ones(SIZE, np.float32), 0)
    heat = smoother.update(pan(5), np.zeros(SIZE, np.float32), 0.1)
    assert not heat[:, :5].any()
    assert heat[:, 5:].min() > 0.9


def test_a_start_afresh_forgets() -> None:
    """After a cut, by a missing motion or a reset, only the new map counts."""
    smoother = MapSmoother(10.0)
    smoother.update(None, spot(10, 5), 0)
    assert np.array_equal(smoother.update(None, spot(50, 1), 0.1), spot(50))
    smoother.reset()
    assert np.array_equal(smoother.update(still(), spot(20, 1), 0.2), spot(20))


def test_maps_without_heat_are_zeros() -> None:
    """A map of zeros is no division by zero, and heat comes back after it."""
    smoother = MapSmoother(0.0)
    assert not smoother.update(None, np.zeros((7, 7), np.float32), 0).any()
    assert not smoother.update(still(), np.zeros((7, 7), np.float32), 0.1).any()
    assert smoother.update(still(), np.ones((7, 7), np.float32), 0.2).min() == 1


def test_a_negative_time_constant_is_refused() -> None:
    """The error says what would be right."""
    with pytest.raises(ValueError, match="0 or more seconds, not -1"):
        MapSmoother(-1)
