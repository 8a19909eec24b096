"""The application: ``import_path: gradcam_server.ray_app.app:build``."""

from typing import Any

import ray
from ray import serve

from gradcam_server.config.settings import ServeConfig
from gradcam_server.ray_app.replica import Replica
from gradcam_server.ray_app.settings import read_args

DEPLOYMENT = "Explainer"


class _Replica(Replica):
    async def __init__(self, config: ServeConfig) -> None:  # type: ignore[misc]
        resources = ray.get_runtime_context().get_assigned_resources()
        await super().__init__(config, resources.get("CPU", 0))


def build(args: dict[str, Any]) -> serve.Application:
    """Makes the application; ``deployments`` of the configuration says what runs where.

    Args:
        args: Settings, by the keys of the file of ``gradcam serve --config``.

    Raises:
        StartupError: A setting is unknown or wrong.
    """
    config = read_args(args)
    return serve.deployment(name=DEPLOYMENT)(_Replica).bind(config)
