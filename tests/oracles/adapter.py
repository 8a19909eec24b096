"""The one place where the oracles meet our code."""

from functools import lru_cache
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from gradcam_server.methods import METHODS
from gradcam_server.requests import Method


def explain(
    model: keras.Model,
    layer: str,
    method: Method,
    images: NDArray[Any],
    classes: NDArray[Any],
) -> NDArray[np.float32]:
    """Explains the logits of some classes.

    Args:
        model: From preprocessed images to logits.
        layer: Name of the layer to explain.
        method: The method.
        images: Preprocessed, float32, shape (B, H, W, 3).
        classes: Shape (B, T).

    Returns:
        The maps before the final ReLU, shape (B, T, h, w).
    """
    function = _gradients(model, layer)
    slots = tf.constant(classes.T, tf.int32)
    found = [function(tf.constant(images, tf.float32), chosen) for chosen in slots]
    maps = [METHODS[method](activation, gradient) for activation, gradient in found]
    return np.stack([np.asarray(one, np.float32) for one in maps], axis=1)


@lru_cache(maxsize=16)
def _gradients(model: keras.Model, layer: str) -> Any:
    """A and g at a layer; traced once for all methods."""
    inner = keras.Model(model.inputs, [model.get_layer(layer).output, model.output])

    def compute(images: tf.Tensor, chosen: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        activation, logits = inner(images, training=False)
        score = tf.reduce_sum(tf.gather(logits, chosen, batch_dims=1))
        return activation, tf.gradients(score, activation)[0]

    return tf.function(compute, autograph=False, reduce_retracing=True)
