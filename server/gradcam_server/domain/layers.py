"""The layers of a network: which there are, and which can be explained."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Extent:
    """A rectangle of the model's input, in its pixels; it may reach beyond the input.

    Attributes:
        top: Upper edge; 0 is the input's.
        left: Left edge; 0 is the input's.
        height: Height.
        width: Width.
    """

    top: float
    left: float
    height: float
    width: float


@dataclass(frozen=True)
class LayerInfo:
    """A layer: its name, type, output shape (None is the batch) and use.

    Attributes:
        name: Name; the path of a nested layer.
        type: Keras class, or TensorFlow operation.
        output_shape: Shape of the output; None is the batch size.
        explainable: Whether it has a (B, H, W, C) output of more than one position.
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
