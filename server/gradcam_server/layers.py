"""The layers of a network: which there are, and which can be explained."""

from dataclasses import dataclass

import keras


@dataclass(frozen=True)
class LayerInfo:
    """A layer: its name, Keras class, output shape (None is the batch) and use.

    Attributes:
        name: Name.
        type: Keras class.
        output_shape: Shape of the output; None is the batch size.
        explainable: Whether it has a (B, H, W, C) output of more than one position.
    """

    name: str
    type: str
    output_shape: tuple[int | None, ...]
    explainable: bool


def list_layers(network: keras.Model) -> tuple[LayerInfo, ...]:
    """Lists the layers of a functional model in its order."""
    layers = []
    for layer in network.layers:
        shape = tuple(layer.output.shape)
        explainable = (
            len(shape) == 4
            and shape[1] * shape[2] > 1
            and not isinstance(layer, keras.layers.InputLayer)
        )
        layers.append(LayerInfo(layer.name, type(layer).__name__, shape, explainable))
    return tuple(layers)


def default_layer(layers: tuple[LayerInfo, ...]) -> str:
    """Returns the last explainable layer: the last 4-D output before the global pooling.

    Raises:
        ValueError: No layer is explainable.
    """
    for layer in reversed(layers):
        if layer.explainable:
            return layer.name
    raise ValueError("the model has no layer with a (batch, height, width, channels) output")
