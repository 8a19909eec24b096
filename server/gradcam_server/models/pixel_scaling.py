"""Finds out whether a network scales its pixels itself, as far as layers or operations tell.

The layers between the image and the first layers with weights either keep the values (padding,
resizing, the order of channels) or count as scaling, since an unknown layer may scale.
"""

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from gradcam_server.models.keras_calls import Call


class _Effect(Enum):
    KEEPS = auto()  # keeps the scale of the pixels
    WEIGHS = auto()  # makes features of pixels
    SCALES = auto()  # scales the pixels


_WEIGHTED_LAYERS = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv2DTranspose,
    layers.Conv3D,
    layers.Dense,
    layers.DepthwiseConv2D,
    layers.EinsumDense,
    layers.SeparableConv2D,
)
_KEEPING_LAYERS = (
    *(layers.ZeroPadding2D, layers.Cropping2D, layers.CenterCrop, layers.Resizing),
    *(layers.UpSampling2D, layers.MaxPooling2D, layers.AveragePooling2D),
    *(layers.Identity, layers.Reshape, layers.Permute, layers.Flatten, layers.Concatenate),
    *(layers.Dropout, layers.SpatialDropout2D, layers.GaussianNoise, layers.GaussianDropout),
)
_KEEPING_OPERATIONS = {
    *("Cast", "Concatenate", "Copy", "ExpandDims", "Flip", "GetItem", "Identity", "Pad"),
    *("Repeat", "Reshape", "Resize", "Split", "Squeeze", "Stack", "Take", "Transpose"),
}
# The prefix of layers for augmentation, which do nothing in inference.
_RANDOM = "Random"

_WEIGHTED_GRAPH_OPERATIONS = {
    *("BatchMatMulV2", "Conv2D", "Conv2DBackpropInput", "Conv3D", "DepthwiseConv2dNative"),
    *("Einsum", "MatMul"),
}
_KEEPING_GRAPH_OPERATIONS = {
    *("AvgPool", "BatchToSpaceND", "Cast", "ConcatV2", "CropAndResize", "EnsureShape"),
    *("ExpandDims", "GatherV2", "Identity", "IdentityN", "ImageProjectiveTransformV3"),
    *("MaxPool", "MirrorPad", "Pack", "Pad", "PadV2", "Select", "SelectV2"),
    *("PlaceholderWithDefault", "Reshape", "ResizeArea", "ResizeBicubic"),
    *("ResizeBilinear", "ResizeNearestNeighbor", "ReverseV2", "ScaleAndTranslate", "Slice"),
    *("SpaceToBatchND", "Split", "SplitV", "Squeeze", "StopGradient", "StridedSlice", "Tile"),
    *("Transpose", "Unpack"),
}
# Operations on the image's shape, not on its values.
_SHAPE_GRAPH_OPERATIONS = {"Rank", "Shape", "ShapeN", "Size"}


def do_layers_scale(calls: Iterable[Call], image: keras.KerasTensor) -> bool:
    """Returns whether a Keras model scales pixels.

    Args:
        calls: The calls of its layers, in the order of computation.
        image: The input. Integers can only be unscaled pixels, so a network that takes integers
            counts as scaling.
    """
    if "int" in image.dtype:
        return True
    pixels = {id(image)}
    for call in calls:
        if not any(id(symbol) in pixels for symbol in call.inputs):
            continue
        match _effect(call.operation):
            case _Effect.SCALES:
                return True
            case _Effect.KEEPS:
                pixels.update(map(id, call.outputs))
    return False


def _effect(operation: Any) -> _Effect:
    kind = type(operation).__name__
    if isinstance(operation, layers.Rescaling):
        is_identity = np.all(np.equal(operation.scale, 1)) and not np.any(operation.offset)
        return _Effect.KEEPS if is_identity else _Effect.SCALES
    if isinstance(operation, _WEIGHTED_LAYERS) or hasattr(operation, "kernel"):
        return _Effect.WEIGHS
    if isinstance(operation, layers.Activation):
        is_identity = operation.activation is keras.activations.linear
        return _Effect.KEEPS if is_identity else _Effect.SCALES
    if isinstance(operation, keras.Layer):
        keeps = isinstance(operation, _KEEPING_LAYERS) or kind.startswith(_RANDOM)
    else:
        keeps = kind in _KEEPING_OPERATIONS
    return _Effect.KEEPS if keeps else _Effect.SCALES


def do_operations_scale(image: tf.Tensor, between: set[tf.Operation]) -> bool:
    """Returns whether a TensorFlow graph scales pixels.

    Args:
        image: The input.
        between: The operations from the input to the logits.
    """
    reached: set[tf.Operation] = set()
    waiting: list[tf.Operation] = list(_users(image.op, between))
    while waiting:
        operation = waiting.pop()
        if operation in reached:
            continue
        reached.add(operation)
        if operation.type in _WEIGHTED_GRAPH_OPERATIONS | _SHAPE_GRAPH_OPERATIONS:
            continue
        if operation.type not in _KEEPING_GRAPH_OPERATIONS:
            return True
        waiting.extend(_users(operation, between))
    return False


def _users(operation: tf.Operation, between: set[tf.Operation]) -> Sequence[tf.Operation]:
    outputs = operation.outputs
    return [user for tensor in outputs for user in tensor.consumers() if user in between]
