"""XLA by JAX's runtime (PJRT): converts the traced function to StableHLO, for a batch size each."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import tensorflow as tf

from gradcam_server.domain.options import Precision
from gradcam_server.errors import CompilerError, DisconnectedLayerError, quote
from gradcam_server.graphs.compilers.base import Prepared
from gradcam_server.graphs.compilers.pjrt_devices import set_up_devices
from gradcam_server.graphs.compilers.pjrt_modules import (
    ModuleError,
    TensorType,
    from_text,
    read_signature,
)
from gradcam_server.graphs.compilers.pjrt_runtime import load_module, put_weights
from gradcam_server.graphs.executable import Array, Executables
from gradcam_server.graphs.explanation import ExplanationGraph


class Weights:
    """The weights of converted graphs of one model, each once in each type.

    Attributes:
        values: The weights by name.
    """

    def __init__(self) -> None:
        self.values: dict[str, Array] = {}
        self._names: dict[tuple[int | bytes, str], str] = {}
        self._variables: list[Any] = []  # kept, as ids are used again

    def add(self, weight: Any, is_variable: bool, kind: TensorType) -> str:
        """Adds a weight, unless it is known.

        Args:
            weight: A ``tf.Variable``, or the tensor of a constant.
            is_variable: Whether it is a variable.
            kind: The type in which a module takes it.

        Returns:
            Its name.

        Raises:
            CompilerError: It has another shape.
        """
        if tuple(weight.shape) != kind.shape:
            raise CompilerError(f"its module takes {kind} for a weight of {list(weight.shape)}")
        identity = id(weight) if is_variable else weight.numpy().tobytes()
        key = (identity, str(kind))
        if key not in self._names:
            base = weight.name.partition(":")[0] if is_variable else "constant"
            self._names[key] = name = self._free_name(f"{base}:{kind.dtype.name}")
            self.values[name] = weight.numpy().astype(kind.dtype)
            self._variables.append(weight)
        return self._names[key]

    def _free_name(self, name: str) -> str:
        numbered = (f"{name}:{number}" for number in itertools.count(2))
        return next(one for one in itertools.chain([name], numbered) if one not in self.values)


@dataclass(frozen=True)
class Converted:
    """A graph for one batch size.

    Attributes:
        artifact: The StableHLO module.
        weights: The names of the weights that ``main`` takes, in its order.
    """

    artifact: bytes
    weights: tuple[str, ...]


def prepare(graph: ExplanationGraph, precision: Precision) -> Prepared:
    """Prepares a graph. The sizes share one copy of each weight on the device.

    Raises:
        CompilerError: The graph cannot be converted.
        DisconnectedLayerError: The scores don't depend on one of the layers.
    """
    (device,) = set_up_devices([graph.model.device or "CPU:0"])
    weights = Weights()
    on_device: dict[str, Any] = {}

    def compile_size(batch_size: int) -> Executables:
        converted = convert(graph, precision, batch_size, weights)
        new = {name: one for name, one in weights.values.items() if name not in on_device}
        on_device.update(put_weights(new, device))
        taken = [on_device[name] for name in converted.weights]
        return (load_module(converted.artifact, taken, device),)

    return compile_size


def convert(
    graph: ExplanationGraph, precision: Precision, batch_size: int, weights: Weights
) -> Converted:
    """Converts a graph to StableHLO.

    Args:
        graph: The graph.
        precision: The precision of the network; the maps are computed in float32.
        batch_size: The batch size.
        weights: Takes the graph's weights.

    Raises:
        CompilerError: XLA cannot compute one of its operations, or it reads what is no weight.
        DisconnectedLayerError: The scores don't depend on one of the layers.
    """
    explain = partial(graph.explain, precision=precision)
    signature = graph.signature(batch_size)
    try:
        with tf.device("CPU:0"):
            # TensorFlow finds no StableHLO of a functools.partial.
            function: Any = tf.function(
                lambda *arguments: explain(*arguments),
                input_signature=signature,
                jit_compile=True,
                autograph=False,
            )
            concrete = function.get_concrete_function()
            example = [tf.zeros(one.shape, one.dtype) for one in signature]
            text = function.experimental_get_compiler_ir(*example)(stage="stablehlo")
        artifact = from_text(text)
        names = _add_weights(weights, concrete, read_signature(artifact).weights)
    except (CompilerError, DisconnectedLayerError):
        raise
    except ModuleError as error:
        raise CompilerError(f"StableHLO cannot express it: {error}") from error
    except Exception as error:
        raise CompilerError(f"XLA cannot compile it: {quote(error)}") from error
    return Converted(artifact, names)


def _add_weights(weights: Weights, concrete: Any, kinds: Sequence[TensorType]) -> tuple[str, ...]:
    """Adds what a function captured, which ``main`` takes in this order; returns the names."""
    captured = concrete.captured_inputs
    if len(captured) != len(kinds):
        raise CompilerError(
            f"its module takes {len(kinds)} weights, and the graph has {len(captured)}"
        )
    variables = {id(variable.handle): variable for variable in concrete.graph.variables}
    return tuple(
        weights.add(variables.get(id(tensor), tensor), id(tensor) in variables, kind)
        for tensor, kind in zip(captured, kinds, strict=True)
    )
