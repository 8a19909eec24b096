"""Maps against tf-keras-vis, where it is installed: its own tape, on the same Keras model.

Its Grad-CAM++ is left out: it divides alpha by its sum over space, which is not in the paper's
equations and changes the weights of the channels. So is its Score-CAM: it weighs by the
softmax over the classes, and enlarges masks with aligned corners.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from PIL import Image

from gradcam_server.domain.requests import Method
from gradcam_server.models import efficientnet_lite0
from gradcam_server.models.torch_checkpoint import read_torch_checkpoint
from oracles.adapter import explain
from oracles.precise import in_float64

pytest.importorskip("tf_keras_vis", reason="tf-keras-vis is not installed")

Array = NDArray[Any]

LAYERS = ("top_activation", "block5c_activation")
# Their classes, with the options that give the signed map.
THEIRS: dict[Method, tuple[str, str, dict[str, Any]]] = {
    Method.GRAD_CAM: ("gradcam", "Gradcam", {}),
    Method.LAYER_CAM: ("layercam", "Layercam", {}),
    # LayerCAM without its ReLU of the gradient is HiResCAM.
    Method.HIRES_CAM: ("layercam", "Layercam", {"gradient_modifier": None}),
}


@pytest.fixture(scope="module")
def model() -> Iterator[keras.Model]:
    """The trained weights, computing in float64."""
    with in_float64():
        path = efficientnet_lite0.default_checkpoint()
        yield efficientnet_lite0.build(read_torch_checkpoint(path))


@pytest.fixture(scope="module")
def inputs(images: Path) -> Array:
    """Two photographs, preprocessed."""
    opened = (Image.open(images / f"{name}.jpg").convert("RGB") for name in ("cat", "espresso"))
    resized = (one.resize((224, 224), Image.Resampling.BILINEAR) for one in opened)
    return (np.stack([np.asarray(one, np.float32) for one in resized]) - 127) / 128


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("method", THEIRS)
def test_signed_maps_are_tf_keras_viss(
    model: keras.Model, inputs: Array, method: Method, layer: str
) -> None:
    """At the last block and within the network, for each image's best class."""
    module, name, options = THEIRS[method]
    classes = np.argmax(model(inputs, training=False), axis=1)
    theirs = getattr(importlib.import_module(f"tf_keras_vis.{module}"), name)(model)(
        lambda logits: tf.gather(logits, classes, batch_dims=1),
        inputs,
        penultimate_layer=layer,
        seek_penultimate_conv_layer=False,
        activation_modifier=None,
        expand_cam=False,
        normalize_cam=False,
        **options,
    )
    (ours,) = explain(model, (layer,), method, inputs, classes[:, None])
    largest = np.abs(theirs).max(axis=(1, 2), keepdims=True)
    assert largest.min() > 0
    assert (np.abs(ours[:, 0] - theirs) / largest).max() < 1e-4
