"""The times of executables, by a clock that the executable moves."""

import numpy as np
import pytest

from gradcam_server.domain.graph_io import NO_CLASS, GraphKey
from gradcam_server.domain.requests import Method, ScoreType
from gradcam_server.graphs import timing
from gradcam_server.graphs.executable import Array
from gradcam_server.graphs.timing import noise_batch, quickest_s, seconds_by_size

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


class Neighbour:
    """A machine on which other work takes half of the speed, in every other ``period``."""

    def __init__(self, patch: pytest.MonkeyPatch, period: float) -> None:
        self._period, self._now = period, 0.0
        patch.setattr(timing, "perf_counter", lambda: self._now)

    def run(self, seconds: float) -> list[Array]:
        """Computes what takes so many seconds alone."""
        while seconds > 0:
            period, passed = divmod(self._now, self._period)
            speed = 0.5 if period % 2 else 1.0
            step = min(seconds / speed, self._period - passed) + 1e-9
            self._now += step
            seconds -= step * speed
        return []


@pytest.mark.parametrize("period", [0.06, 0.1, 0.13])
@pytest.mark.parametrize("alone_s", [{1: 0.02, 2: 0.04, 4: 0.08, 8: 0.16}, {1: 0.02, 8: 0.14}])
def test_other_work_does_not_make_large_batches_seem_costly(
    monkeypatch: pytest.MonkeyPatch, period: float, alone_s: dict[int, float]
) -> None:
    """No quick moment makes one image seem cheaper than an image of a batch."""
    machine = Neighbour(monkeypatch, period)
    found = seconds_by_size(
        {size: lambda *_, took=took: machine.run(took) for size, took in alone_s.items()},
        lambda size: [np.zeros(size)],
    )
    largest = max(alone_s)
    slowdown = found[largest] / alone_s[largest] / (found[1] / alone_s[1])
    assert slowdown == pytest.approx(1.0, rel=0.1)


def test_few_runs_of_small_batches_are_timed_beside_huge_batches() -> None:
    """A GPU's batch of 256 does not make for 256 runs of one image."""
    runs = dict.fromkeys((1, 256), 0)

    def count(images: Array) -> list[Array]:
        runs[len(images)] += 1
        return []

    seconds_by_size(dict.fromkeys(runs, count), lambda size: [np.zeros(size)])  # type: ignore[arg-type]
    assert runs == {1: 1 + 2 * 8, 256: 1 + 2}


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
