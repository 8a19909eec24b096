"""Descriptions of the layers of a network."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Extent:
    """A rectangle of the model's input or of an image, in its pixels; it may reach beyond.

    Attributes:
        top: Upper edge; 0 is the upper edge of the input or image.
        left: Left edge; 0 is the left edge of the input or image.
        height: Height.
        width: Width.
    """

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class LayerInfo:
    """A layer of a network.

    Attributes:
        name: The name, or the path of a nested layer.
        type: Keras class, or TensorFlow operation.
        output_shape: Shape of the output; unknown sizes, such as the batch's, are None.
        explainable: Whether the output is (B, H, W, C) with more than one position.
        extent: The part of the model's input that its map covers; None is the whole input.
    """

    name: str
    type: str
    output_shape: tuple[int | None, ...]
    explainable: bool
    extent: Extent | None = None


def has_positions(shape: Sequence[int | None]) -> bool:
    """Returns whether a shape is (B, H, W, C) with more than one position."""
    return len(shape) == 4 and tuple(shape[1:3]) != (1, 1)


def default_layer(layers: tuple[LayerInfo, ...]) -> str:
    """Returns the last explainable layer: the last 4-D output before the global pooling.

    Raises:
        ValueError: No layer is explainable.
    """
    for layer in reversed(layers):
        if layer.explainable:
            return layer.name
    raise ValueError("the model has no layer with a (batch, height, width, channels) output")
