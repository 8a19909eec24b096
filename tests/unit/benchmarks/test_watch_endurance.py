"""The verdict of the endurance of ``gradcam watch``."""

import numpy as np
import pytest

from watch_endurance import trend

HOURS = np.arange(90) / 360


def noise(seed: int, memory: float) -> np.ndarray:
    """Noise of which each value keeps a share of the last one."""
    values = np.random.default_rng(seed).normal(0, 1, len(HOURS))
    for place in range(1, len(values)):
        values[place] += memory * values[place - 1]
    return values


@pytest.mark.parametrize("per_hour", [40.0, 100.0, 1000.0])
def test_a_leak_is_found(per_hour: float) -> None:
    """From 10 MiB of 200 MiB in fifteen minutes on."""
    for seed in range(20):
        found = trend(HOURS, 200 + per_hour * HOURS + noise(seed, 0.5))
        assert not found.is_flat
        assert found.slope_per_hour == pytest.approx(per_hour, rel=0.25)


@pytest.mark.parametrize("memory", [0.0, 0.5])
def test_noise_is_no_leak(memory: float) -> None:
    """Neighbouring samples are alike, and the interval says so: it holds 0 in most runs."""
    found = [trend(HOURS, 200 + noise(seed, memory)) for seed in range(200)]
    assert all(one.is_flat for one in found)
    assert np.mean([one.low <= 0 <= one.high for one in found]) > 0.75


def test_a_constant_is_flat() -> None:
    """Threads and descriptors do not vary at all."""
    found = trend(HOURS, np.full(len(HOURS), 31.0))
    assert found.is_flat
    assert (found.slope_per_hour, found.low, found.high) == (0, 0, 0)


def test_one_more_thread_every_minute_is_found() -> None:
    """A step is a slope."""
    assert not trend(HOURS, 30 + np.floor(HOURS * 60)).is_flat
