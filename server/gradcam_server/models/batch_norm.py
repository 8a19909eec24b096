"""Batch normalisation, folded into the layer before it: one multiplication less for each value.

Normalising by fixed statistics is y = s x + t for each channel. After a linear layer
x = W a + b that is (s W) a + (s b + t): the same cost as the layer alone. See Jacob et al.,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference",
CVPR 2018, section 3.2.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]

# A smaller scale switches a channel off, and dividing by it would lose the channel's values.
_MIN_SCALE = 1e-12

_KERNELS = {
    keras.layers.Conv2D: "kernel",
    keras.layers.DepthwiseConv2D: "kernel",
    keras.layers.SeparableConv2D: "pointwise_kernel",
    keras.layers.Dense: "kernel",
}


class Fold:
    """A linear layer that scales by the normalisation after it.

    **Both layers are changed**: together they compute the same as before, but the linear layer
    alone, without its bias, computes s W a. ``shown`` recovers W a + b from that.

    Args:
        linear: A layer for which ``can_fold`` holds with the normalisation after it.
        normalization: The normalisation.
    """

    def __init__(self, linear: keras.Layer, normalization: keras.layers.BatchNormalization) -> None:
        self._scale, shift = _affine(normalization)
        offset = linear.bias if linear.use_bias else None
        self._offset = np.zeros_like(shift) if offset is None else _values(offset)
        kernel = getattr(linear, _KERNELS[type(linear)])
        by_channel = self._scale
        if isinstance(linear, keras.layers.DepthwiseConv2D):
            by_channel = by_channel.reshape(kernel.shape[-2:])
        kernel.assign(_values(kernel) * by_channel)
        linear.use_bias = False
        if isinstance(linear, keras.layers.Dense):
            linear.bias = None  # Dense checks this, not use_bias
        bias = self._scale * self._offset + shift
        self._bias = tf.Variable(
            bias, trainable=False, dtype=kernel.dtype, name=f"{linear.name}/folded_bias"
        )
        _set_identity(normalization, bias)

    def normalized(self, linear_output: tf.Tensor) -> tf.Tensor:
        """Returns the output of the normalisation, from s W a."""
        bias = tf.cast(self._bias, linear_output.dtype)
        if linear_output.shape.rank == 4:
            return tf.nn.bias_add(linear_output, bias)  # TensorFlow fuses this with a convolution
        return linear_output + bias

    def shown(self, linear_output: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns W a + b, from s W a; and the output of the normalisation of it."""
        wide = tf.cast(linear_output, self._bias.dtype)
        output = tf.cast(wide / self._scale + self._offset, linear_output.dtype)
        shift = self._bias - self._scale * self._offset
        normalized = tf.cast(output, self._bias.dtype) * self._scale + shift
        return output, tf.cast(normalized, linear_output.dtype)


def can_fold(linear: Any, normalization: Any) -> bool:
    """Returns whether two successive layers are a linear layer and its normalisation."""
    # Subclasses, which users write, may do anything else.
    if type(linear) not in _KERNELS or type(normalization) is not keras.layers.BatchNormalization:
        return False
    if linear.activation is not keras.activations.linear or normalization.axis not in {-1, 3}:
        return False
    kernel = getattr(linear, _KERNELS[type(linear)])
    if kernel.dtype not in {"float32", "float64"} or getattr(linear, "quantization_mode", None):
        return False
    scale, _ = _affine(normalization)
    return bool(np.all(np.isfinite(scale)) and np.min(np.abs(scale)) > _MIN_SCALE)


def _affine(
    normalization: keras.layers.BatchNormalization,
) -> tuple[Floats, Floats]:
    """Returns s and t, shape (channels,), in the dtype of the statistics."""
    variance = _values(normalization.moving_variance).astype(np.float64)
    scale = 1 / np.sqrt(variance + normalization.epsilon)
    if normalization.scale:
        scale *= _values(normalization.gamma)
    shift = -_values(normalization.moving_mean) * scale
    if normalization.center:
        shift += _values(normalization.beta)
    dtype = normalization.moving_variance.dtype
    return scale.astype(dtype), shift.astype(dtype)


def _set_identity(normalization: keras.layers.BatchNormalization, bias: Floats) -> None:
    """Makes a normalisation that only adds a bias."""
    normalization.moving_mean.assign(-bias)
    normalization.moving_variance.assign(np.full_like(bias, 1 - normalization.epsilon))
    if normalization.scale:
        normalization.gamma.assign(np.ones_like(bias))
    if normalization.center:
        normalization.beta.assign(np.zeros_like(bias))


def _values(variable: Any) -> Floats:
    return np.asarray(keras.ops.convert_to_numpy(variable))
