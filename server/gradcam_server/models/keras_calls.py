"""Calls of Keras layers and operations on symbols, and their effect on values."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from gradcam_server.models.ending import activation_of, keeps_values
from gradcam_server.models.network import OutputActivation

LAYERS_WITH_ACTIVATION = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.Dense,
    keras.layers.DepthwiseConv2D,
    keras.layers.EinsumDense,
    keras.layers.SeparableConv2D,
)
# Names of Keras' layers and operations. A scaling is linear if its other factor is a number.
_LINEAR_COMBINATIONS = {"Add", "Average", "Concatenate", "Rescaling", "Subtract"}
_LINEAR_SCALINGS = {"Divide", "Multiply", "TrueDivide"}


@dataclass(frozen=True)
class Call:
    """A call of a layer, or of another Keras operation, on symbols.

    Attributes:
        name: Path of the layer, unique; "#2" and so on for its second and further calls.
        position: Sorts the calls as ``model.layers`` does.
        operation: The layer.
        arguments: (args, kwargs) with symbols for tensors.
        outputs: Symbols.
    """

    name: str
    position: tuple[int, ...]
    operation: Any
    arguments: Any
    outputs: tuple[keras.KerasTensor, ...]

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The symbols among the arguments."""
        leaves = keras.tree.flatten(self.arguments)
        return [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]

    def arguments_of(self, values: Mapping[int, Any]) -> Any:
        """Returns (args, kwargs) with values, given by the identities of the symbols."""
        return keras.tree.map_structure(
            lambda leaf: values[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf,
            self.arguments,
        )

    def run(self, values: Mapping[int, Any]) -> list[Any]:
        """Returns the outputs for values, given by the identities of the symbols."""
        args, kwargs = self.arguments_of(values)
        return keras.tree.flatten(self.operation(*args, **kwargs))

    def run_on(self, value: tf.Tensor) -> tf.Tensor:
        """Returns the first output of a call of one tensor."""
        return self.run({id(self.inputs[0]): value})[0]


def keeps_all_values(call: Call) -> bool:
    """Returns whether a call returns the values of its one input, in their order."""
    if not _maps_one_tensor(call):
        return False
    (given,), (made,) = call.inputs, call.outputs
    if math.prod(given.shape[1:]) != math.prod(made.shape[1:]):
        return False
    return keeps_values(call.run_on, given.shape[1:], made.dtype)


def last_activation(call: Call) -> OutputActivation | None:
    """Returns the activation that a call applies last, if it makes probabilities of logits."""
    if not _maps_one_tensor(call):
        return None
    (given,), (made,) = call.inputs, call.outputs
    if isinstance(call.operation, LAYERS_WITH_ACTIVATION):
        return activation_of(call.operation.activation, made.shape[1:], made.dtype)
    if given.shape != made.shape:
        return None
    return activation_of(call.run_on, given.shape[1:], made.dtype)


def is_linear(call: Call | None, makers: Mapping[int, Call]) -> bool:
    """Returns whether layers that could have an activation, and have none, make a call's output.

    Args:
        call: The call.
        makers: The calls that make symbols, by the identities of the symbols.
    """
    if call is None:
        return False
    if isinstance(call.operation, LAYERS_WITH_ACTIVATION):
        return call.operation.activation is keras.activations.linear
    kind = type(call.operation).__name__
    if kind not in _LINEAR_COMBINATIONS and (kind not in _LINEAR_SCALINGS or len(call.inputs) > 1):
        return False
    return all(is_linear(makers.get(id(symbol)), makers) for symbol in call.inputs)


def _maps_one_tensor(call: Call) -> bool:
    return len(call.inputs) == 1 == len(call.outputs) and all(
        "float" in symbol.dtype and None not in symbol.shape[1:]
        for symbol in (*call.inputs, *call.outputs)
    )
