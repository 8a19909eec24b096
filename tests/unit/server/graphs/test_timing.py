"""The times of executables, by a clock that the executable moves."""

import numpy as np
import pytest

from gradcam_server.domain.graph_io import NO_CLASS, GraphKey
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.graphs import timing
from gradcam_server.graphs.executable import Array
from gradcam_server.graphs.timing import noise_batch, quickest_s

KEY = GraphKey("m", ("l",), Method.GRAD_CAM, ScoreType.LOGIT, 2)


class Device:
    """Returns at once; whoever reads the output waits until it is computed."""

    def __init__(self, patch: pytest.MonkeyPatch, *seconds: float) -> None:
        self._seconds, self._now = list(seconds), 0.0
        self.runs = 0
        patch.setattr(timing, "perf_counter", lambda: self._now)

    def __call__(self, *_: Array) -> list[Array]:
        self.runs += 1
        return [self]  # type: ignore[list-item]

    def __array__(self, dtype: object = None, copy: object = None) -> Array:
        self._now += self._seconds.pop(0)
        return np.zeros(1)


def test_the_quickest_run_counts_until_the_device_has_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first run, which compiles, does not count."""
    device = Device(monkeypatch, 0.01, 4.0, 2.0, 3.0)
    assert quickest_s(device, [], 3) == 2.0
    assert device.runs == 4


def test_long_runs_are_timed_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run begins after the given time, and one is timed in any case."""
    device = Device(monkeypatch, 9.0, 5.0, 1.0)
    assert quickest_s(device, [], 3, 4.0) == 5.0
    assert device.runs == 2


def test_noise_is_of_the_types_and_sizes_of_a_batch() -> None:
    """Without classes to contrast with."""
    images, classes, against = noise_batch(KEY, (4, 6), 3, 2)
    assert images.shape == (2, 4, 6, 3)
    assert images.dtype == np.uint8
    assert len(np.unique(images)) > 50
    assert classes.shape == (2, 2)
    assert classes.dtype == np.int32
    assert set(classes.ravel()) <= {0, 1, 2}
    assert (against == NO_CLASS).all()
