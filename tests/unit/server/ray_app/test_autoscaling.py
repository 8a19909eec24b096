"""The autoscaling policy."""

from types import SimpleNamespace
from typing import Any

from gradcam_server.ray_app.autoscaling import IMAGES, by_images


def situation(reported: dict[str, dict[str, float]], queued: float | None) -> Any:
    return SimpleNamespace(
        aggregated_metrics=reported,
        total_queued_requests=queued,
        config=SimpleNamespace(target_ongoing_requests=8),
    )


def test_images_count_and_not_streams() -> None:
    """The policy adds the images of all replicas and the calls that wait for a replica."""
    assert by_images(situation({IMAGES: {"a": 20, "b": 16}}, 4)) == (5, {})
    assert by_images(situation({IMAGES: {"a": 6}}, None)) == (0.75, {})


def test_nothing_reported_is_nothing_in_work() -> None:
    """As long as the first replica warms up, no metric is there."""
    assert by_images(situation({}, 0)) == (0, {})
