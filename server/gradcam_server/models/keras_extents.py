"""Extents of the layers of a Keras model; see ``extents.py``."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras.src.layers.convolutional.base_conv import BaseConv
from keras.src.layers.convolutional.base_conv_transpose import BaseConvTranspose
from keras.src.layers.convolutional.base_depthwise_conv import BaseDepthwiseConv
from keras.src.layers.convolutional.base_separable_conv import BaseSeparableConv
from keras.src.layers.pooling.base_pooling import BasePooling
from numpy.typing import NDArray

from gradcam_server.domain.layers import Extent
from gradcam_server.models.extents import IMAGE, Step, find_extents
from gradcam_server.models.keras_calls import Call

_CONVOLUTIONS = (BaseConv, BaseConvTranspose, BaseDepthwiseConv, BaseSeparableConv)
_MIXING_OPERATIONS = {
    "AdaptiveAveragePool",
    "AdaptiveMaxPool",
    "AveragePool",
    "Conv",
    "ConvTranspose",
    "DepthwiseConv",
    "MaxPool",
    "SeparableConv",
}
# Layers whose weights act on each position alone.
_POINTWISE_LAYERS = (
    keras.layers.BatchNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
)
_MOVING_LAYERS = (
    keras.layers.CenterCrop,
    keras.layers.Cropping2D,
    keras.layers.Lambda,
    keras.layers.RandomCrop,
    keras.layers.Resizing,
    keras.layers.UpSampling2D,
    keras.layers.ZeroPadding2D,
)
_MOVING_OPERATIONS = {
    "AffineTransform",
    "CropImages",
    "GetItem",
    "MapCoordinates",
    "Pad",
    "PadImages",
    "PerspectiveTransform",
    "Resize",
    "ScaleAndTranslate",
    "Slice",
}


def find_keras_extents(
    model: str, calls: Sequence[Call], image: keras.KerasTensor
) -> dict[str, Extent]:
    """Finds the part of the input that each layer's map covers; see ``find_extents``.

    Args:
        model: The model's name, for warnings.
        calls: All calls from the image to the logits, in order.
        image: The symbol of the input, shape (None, height, width, channels).

    Returns:
        Extents by the name of the call, without those of the whole input.
    """
    makers = {id(image): IMAGE, **{id(made): call.name for call in calls for made in call.outputs}}
    steps = [_step(call, makers) for call in calls]
    by_name = {call.name: call for call in calls}
    symbols = {IMAGE: image, **{call.name: call.outputs[0] for call in calls}}

    def run(
        source: str, images: NDArray[np.float32], wanted: Sequence[Step]
    ) -> Mapping[str, NDArray[np.floating]]:
        values = {id(symbols[source]): tf.cast(images, symbols[source].dtype)}
        for step in wanted:
            call = by_name[step.key]
            values.update(zip(map(id, call.outputs), call.run(values), strict=True))
        return {step.key: np.asarray(values[id(symbols[step.key])]) for step in wanted}

    def differentiate(step: Step) -> NDArray[np.floating]:
        call = by_name[step.key]
        (symbol,) = call.inputs
        noise = np.random.default_rng(0).uniform(size=(1, *symbol.shape[1:]))
        images = tf.cast(noise, symbol.dtype)
        with tf.GradientTape() as tape:
            tape.watch(images)
            output = call.run_on(images)
            score = tf.reduce_sum(output * output)
        return np.abs(np.asarray(tape.gradient(score, images), float)[0]).sum(axis=-1)

    shape = tuple(image.shape[1:])
    return find_extents(model, steps, shape, image.dtype, run, differentiate)


def _step(call: Call, makers: Mapping[int, str]) -> Step:
    operation = call.operation
    is_layer = isinstance(operation, keras.Layer)
    is_own = is_layer and not type(operation).__module__.startswith("keras.")
    window = _window(call)
    return Step(
        key=call.name,
        inputs=tuple(dict.fromkeys(makers[id(symbol)] for symbol in call.inputs)),
        shape=tuple(call.outputs[0].shape),
        dtype=call.outputs[0].dtype,
        window=window,
        is_hidden=is_own and window is not None,
        moves=window is None
        and (
            is_own
            or isinstance(operation, _MOVING_LAYERS)
            or (not is_layer and type(operation).__name__ in _MOVING_OPERATIONS)
        ),
    )


def _window(call: Call) -> tuple[int, int] | None:
    """Returns the (height, width) that a call mixes; (1, 1) if unknown; None for none."""
    operation = call.operation
    if isinstance(operation, _CONVOLUTIONS):
        kernel, dilation = operation.kernel_size, operation.dilation_rate
        dilations = (dilation,) * len(kernel) if isinstance(dilation, int) else dilation
        return _pair([(size - 1) * by + 1 for size, by in zip(kernel, dilations, strict=True)])
    if isinstance(operation, BasePooling):
        return _pair(operation.pool_size)
    if isinstance(operation, keras.Layer):
        mixes = operation.weights and not isinstance(operation, _POINTWISE_LAYERS)
        return (1, 1) if mixes else None
    if type(operation).__name__ not in _MIXING_OPERATIONS:
        return None
    if pool := getattr(operation, "pool_size", None):
        return _pair((pool, pool) if isinstance(pool, int) else pool)
    kernels = [
        tuple(leaf.shape)
        for leaf in keras.tree.flatten(call.arguments)
        if not isinstance(leaf, keras.KerasTensor) and len(getattr(leaf, "shape", ())) == 4
    ]
    return _pair(kernels[0]) if kernels else (1, 1)


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    """Returns the first two sizes; 1 for a size that a window of fewer axes lacks."""
    height, width = (*sizes, 1, 1)[:2]
    return int(height), int(width)
