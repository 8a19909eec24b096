"""The choice of frames by a grid of times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradcam_server.watch.sources.grid import nearest_to_grid


def _chosen(times: list[float], fps: float) -> list[float]:
    return [time_s for time_s, _ in nearest_to_grid([(time, None) for time in times], fps)]


@pytest.mark.parametrize(
    ("times", "fps", "chosen"),
    [
        ([0, 0.1, 0.2, 0.3, 0.4, 0.5], 5, [0, 0.2, 0.4]),
        ([0, 0.1, 0.2], 100, [0, 0.1, 0.2]),  # no frame is repeated
        ([0, 0.45, 0.6, 1.1], 1, [0, 1.1]),
        ([0, 0.9, 1.05, 1.9], 1, [0, 1.05]),
        ([0.04, 0.5, 1.04], 1, [0.04, 1.04]),
        ([3.0], 1, [3.0]),
        ([], 1, []),
    ],
)
def test_frames_nearest_to_the_grid(times: list[float], fps: float, chosen: list[float]) -> None:
    """Of the frames around each point of the grid the nearest is chosen, once."""
    assert _chosen(times, fps) == chosen


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=60),
    st.sampled_from([0.5, 1, 3, 7, 24, 60]),
)
def test_choice_is_that_of_the_definition(gaps: list[int], fps: float) -> None:
    """For any gaps the choice is what comparing all frames with each point gives."""
    times = [0.0]
    for gap in gaps:
        times.append(times[-1] + gap / 1000)
    nearest = set()
    for point in range(int(times[-1] * fps + 1e-6) + 1):
        distances = [abs(time - point / fps) for time in times]
        best = min(distances)
        nearest.add(
            tuple(time for time, far in zip(times, distances, strict=True) if far - best < 1e-5)
        )
    chosen = _chosen(times, fps)
    assert all(any(time in group for group in nearest) for time in chosen)
    assert all(any(time in group for time in chosen) for group in nearest)
