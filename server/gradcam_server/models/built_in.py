"""The built-in models: EfficientNet-Lite0, and models of ``keras.applications``."""

import logging

from gradcam_server.domain.labels import imagenet_labels
from gradcam_server.domain.model_spec import EMBEDDED, ModelSpec
from gradcam_server.domain.options import Outputs
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.models import applications, embedded
from gradcam_server.models.keras_network import KerasNetwork
from gradcam_server.models.label_file import read_labels
from gradcam_server.models.loaded import LoadedModel

logger = logging.getLogger(__name__)


def load(spec: ModelSpec) -> LoadedModel:
    """Builds a model and loads its weights.

    Raises:
        StartupError: The weights cannot be loaded or don't fit.
    """
    if spec.source == EMBEDDED:
        model, origin = embedded.build(spec.weights, spec.seed)
        preprocessing = Preprocessing.LITE
    else:
        model, origin = applications.build(spec.source, spec.weights, spec.seed)
        preprocessing = applications.APPLICATIONS[spec.source].preprocessing
    if spec.weights == "random":
        logger.warning(
            "%s has random weights (seed %d): its answers mean nothing", spec.name, spec.seed
        )
    network = KerasNetwork(model, spec.input_size, Outputs.LOGITS)
    return LoadedModel(
        name=spec.name,
        network=network,
        preprocessing=spec.preprocessing or preprocessing,
        labels=read_labels(spec.labels, network.class_count) or imagenet_labels(),
        weights=origin,
        random_weights=spec.weights in {"random", "none"},
    )
