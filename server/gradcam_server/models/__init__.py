"""The built-in models, by name. ``load`` is the only way in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gradcam_server.errors import StartupError

if TYPE_CHECKING:
    from gradcam_server.models.loaded import LoadedModel

DEFAULT_MODEL = "resnet50"
BUILT_IN = ("resnet50", "efficientnet-lite0")


def load(name: str, weights: str, seed: int = 0) -> LoadedModel:
    """Builds a built-in model and gives it its weights.

    Args:
        name: One of ``BUILT_IN``.
        weights: ``imagenet``, ``random``, ``none`` (the layers alone: quick) or a file.
        seed: For random weights.

    Raises:
        StartupError: No such model, or its weights cannot be had; the text names the
            ways out.
    """
    loaders: dict[str, Callable[[str, int], LoadedModel]] = {}
    if name == "resnet50":
        from gradcam_server.models import resnet50

        loaders[name] = resnet50.load
    elif name == "efficientnet-lite0":
        from gradcam_server.models import embedded

        loaders[name] = embedded.load
    else:
        raise StartupError(f"unknown model {name!r}; the models are: {', '.join(BUILT_IN)}")
    return loaders[name](weights, seed)
