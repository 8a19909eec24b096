"""How many replicas there should be.

Ray counts requests, and to it a stream is one, idle or with 64 images in work. We count images.
"""

from collections.abc import Mapping
from typing import Any, Protocol

IMAGES = "images_in_work"
"""What each replica reports: images of calls and of streams that are not yet answered."""


class _Config(Protocol):
    target_ongoing_requests: float


class Situation(Protocol):
    """What we need of ``ray.serve.config.AutoscalingContext``."""

    aggregated_metrics: Mapping[str, Mapping[Any, float]]
    total_queued_requests: float | None
    config: _Config


def by_images(situation: Situation) -> tuple[float, dict[str, Any]]:
    """Says how many replicas have ``target_ongoing_requests`` images each; a Ray Serve policy.

    Ray applies the bounds, the delays and the factors of ``autoscaling_config``.

    Args:
        situation: Ray's.

    Returns:
        The number, and no state.
    """
    in_work = sum(situation.aggregated_metrics.get(IMAGES, {}).values())
    images = in_work + (situation.total_queued_requests or 0)
    return images / situation.config.target_ongoing_requests, {}
