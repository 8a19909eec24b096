"""Whether a network scales its pixels itself, as far as its layers or operations tell.

The way from the image to the first layers with weights is followed. What is found there either
leaves the values as they are (padding, resizing, the order of channels) or counts as scaling: an
unknown layer may be one that scales.
"""

from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf
from keras import layers


class Call(Protocol):
    """A call of a layer or of another Keras operation."""

    @property
    def operation(self) -> Any:
        """The layer."""
        ...

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """Symbols."""
        ...

    @property
    def outputs(self) -> tuple[keras.KerasTensor, ...]:
        """Symbols."""
        ...


class _Effect(Enum):
    KEEPS = auto()  # the scale of the pixels
    WEIGHS = auto()  # from here on there are features, not pixels
    SCALES = auto()


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
# Augmentation, which does nothing in inference.
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
# These tell of the image's shape, not of its values.
_SHAPE_GRAPH_OPERATIONS = {"Rank", "Shape", "ShapeN", "Size"}


def do_layers_scale(calls: Iterable[Call], image: keras.KerasTensor) -> bool:
    """Returns whether a Keras model scales pixels.

    Args:
        calls: Of its layers, in the order in which they are computed.
        image: The input. Integers can only be pixels as they are, so their network counts as one
            that scales them.
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
        between: The operations on the way from it to the logits.
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
