"""The autoscaling policy: the number of replicas follows the images in work.

Ray counts requests: a stream is one request, whether it is idle or has 64 images in work.
"""

from collections.abc import Mapping
from typing import Any, Protocol

IMAGES = "images_in_work"
"""Metric that each replica reports: images of calls and streams that are not yet answered."""


class _Config(Protocol):
    target_ongoing_requests: float


class Situation(Protocol):
    """The part of ``ray.serve.config.AutoscalingContext`` that the policy uses."""

    aggregated_metrics: Mapping[str, Mapping[Any, float]]
    total_queued_requests: float | None
    config: _Config


def by_images(situation: Situation) -> tuple[float, dict[str, Any]]:
    """Returns the replicas needed for ``target_ongoing_requests`` images each; a Ray policy.

    Ray applies the bounds, the delays and the factors of ``autoscaling_config``.

    Args:
        situation: Ray's view of the deployment.

    Returns:
        The number of replicas, and an empty state.
    """
    in_work = sum(situation.aggregated_metrics.get(IMAGES, {}).values())
    images = in_work + (situation.total_queued_requests or 0)
    return images / situation.config.target_ongoing_requests, {}
