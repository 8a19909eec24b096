"""Models from files: .keras and .h5 files, and SavedModels."""

import json
import logging
import re
import zipfile
from pathlib import Path
from typing import Any

import h5py
import keras
import tensorflow as tf

from gradcam_server.domain.model_spec import ModelSpec
from gradcam_server.domain.options import Outputs
from gradcam_server.domain.preprocessing import Preprocessing
from gradcam_server.errors import StartupError, quote
from gradcam_server.models.binary import TwoClasses
from gradcam_server.models.keras_network import KerasNetwork
from gradcam_server.models.label_file import no_labels, read_labels
from gradcam_server.models.loaded import LoadedModel
from gradcam_server.models.network import Network, OutputActivation
from gradcam_server.models.saved_model_network import SavedModelNetwork

logger = logging.getLogger(__name__)

_SUFFIXES = (".keras", ".h5", ".hdf5")
# TensorFlow's functions that files may name as activations and Keras does not know.
_TENSORFLOW_FUNCTIONS = (
    *(tf.nn.softmax, tf.nn.log_softmax, tf.nn.sigmoid, tf.math.log_sigmoid, tf.nn.tanh),
    *(tf.nn.relu, tf.nn.relu6, tf.nn.crelu, tf.nn.leaky_relu, tf.nn.elu, tf.nn.selu),
    *(tf.nn.gelu, tf.nn.silu, tf.nn.swish, tf.nn.softplus, tf.nn.softsign),
)
_CUSTOM = (
    "It needs a class or function of its author: decorate that with "
    "@keras.saving.register_keras_serializable() in a Python module, put the module's folder "
    "into PYTHONPATH, and give --custom-objects MODULE."
)
_LAMBDA = (
    "It contains a Lambda layer, whose Python code a file must not bring along. Replace it by a "
    "layer class with @keras.saving.register_keras_serializable() (see --custom-objects) or by "
    "keras.ops, or export the model with model.export(FOLDER) and serve that."
)
_TFSM = (
    "It contains a TFSMLayer, which only calls a SavedModel: serve the SavedModel's folder itself."
)
_UNSAFE = (
    "It contains objects that could run Python code of its author, and a file must not bring code "
    "along. Export the model with model.export(FOLDER), and serve the folder."
)
_KERAS_2 = (
    "It was written by Keras {}, and Keras 3 reads such files only in part. Load it with that "
    "Keras, write a SavedModel with model.save(FOLDER) or model.export(FOLDER), and serve the "
    "folder; that needs no Keras 2."
)


def load(spec: ModelSpec) -> LoadedModel:
    """Loads a model from a file or folder.

    Raises:
        StartupError: The model cannot be read or explained, or its labels do not fit.
    """
    path = Path(spec.source)
    if spec.weights not in {"imagenet", "none"}:
        raise StartupError(
            f"{path} has its own weights; --weights is for built-in models, and "
            "--weights MODEL=FILE for one of several models"
        )
    if not path.exists():
        raise StartupError(f"the model {path} does not exist")
    loaded = _network(path, spec.input_size, spec.outputs)
    network: Network = loaded
    is_binary = network.class_count == 1 and network.output_activation is OutputActivation.SIGMOID
    counts = (1, 2) if is_binary else (network.class_count,)
    labels = read_labels(spec.labels, *counts) or no_labels(network.class_count)
    if len(labels) > network.class_count:
        network = TwoClasses(network)
    preprocessing = spec.preprocessing or Preprocessing.NONE
    logger.info(
        "%s: %d classes, images of %dx%d, preprocessing %s (%s)",
        *(spec.name, network.class_count, *network.input_size, preprocessing),
        "as declared" if spec.preprocessing else "by default",
    )
    return LoadedModel(
        name=spec.name,
        network=network,
        preprocessing=preprocessing,
        labels=labels,
        weights=f"file {path.name}",
        preprocessing_declared=spec.preprocessing is not None,
        scales_pixels=loaded.scales_pixels,
    )


def _network(
    path: Path, input_size: tuple[int, int] | None, outputs: Outputs | None
) -> KerasNetwork | SavedModelNetwork:
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise StartupError(f"{path} is no SavedModel: it has no saved_model.pb")
        return SavedModelNetwork(path, input_size, outputs)
    if path.suffix not in _SUFFIXES:
        raise StartupError(
            f"cannot load {path}: its name must end in {', '.join(_SUFFIXES)}, or it must be "
            "the folder of a SavedModel"
        )
    if not _holds_model(path):
        raise StartupError(
            f"cannot load {path}: it is damaged, or contains weights without a model; "
            "write it with model.save"
        )
    try:
        model = keras.models.load_model(
            path, custom_objects=_custom_objects(), compile=False, safe_mode=True
        )
    except Exception as error:
        advice = _advice(str(error), _keras_version(path))
        raise StartupError(f"cannot load {path}: {advice}") from error
    return KerasNetwork(model, input_size, outputs, path.name)


def _custom_objects() -> dict[str, Any]:
    """Returns TensorFlow's functions by the names that Keras gives them in files."""
    return {
        function.__name__: function
        for function in _TENSORFLOW_FUNCTIONS
        if not hasattr(keras.activations, function.__name__)
    }


def _holds_model(path: Path) -> bool:
    if path.suffix == ".keras":
        return zipfile.is_zipfile(path)
    if not h5py.is_hdf5(path):
        return False
    with h5py.File(path) as file:
        return "model_config" in file.attrs


def _keras_version(path: Path) -> str:
    """Returns the version of Keras that wrote a file; empty if the file does not say."""
    if path.suffix == ".keras":
        try:
            with zipfile.ZipFile(path) as file:
                return str(json.loads(file.read("metadata.json"))["keras_version"])
        except (KeyError, ValueError, zipfile.BadZipFile):
            return ""
    with h5py.File(path) as file:
        version = file.attrs.get("keras_version", "")
    return version.decode() if isinstance(version, bytes) else str(version)


def _advice(error: str, version: str) -> str:
    if "`Lambda` layer" in error:
        return _LAMBDA
    if re.search("`TFSMLayer`|Unknown layer: 'TFSMLayer'", error):
        return _TFSM
    if "safe_mode" in error:
        return _UNSAFE
    # The last of nested errors is the cause; the configuration of the layer stands before it.
    cause = error.rpartition("Exception encountered:")[2]
    if version.startswith(("1.", "2.")):
        return f"{_KERAS_2.format(version)} Keras says: {quote(cause)}"
    if missing := re.search(r"Could not locate [^.\n]*|Unknown layer: [^.\n]*", error):
        return f"{quote(missing[0])}. {_CUSTOM}"
    return quote(cause)
