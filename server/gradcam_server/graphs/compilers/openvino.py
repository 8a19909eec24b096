"""OpenVINO on CPUs: converts the traced function, gradient operations included."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from gradcam_server.domain import graph_io
from gradcam_server.domain.graph_io import INPUTS
from gradcam_server.domain.options import Precision
from gradcam_server.errors import CompilerError, DisconnectedLayerError, quote
from gradcam_server.graphs.compilers import openvino_runtime
from gradcam_server.graphs.compilers.base import Prepared
from gradcam_server.graphs.compilers.openvino_runtime import openvino
from gradcam_server.graphs.explanation import ExplanationGraph

# The line of OpenVINO's report that names the operations.
_UNKNOWN = re.compile(r"No conversion rule found .*")


def prepare(graph: ExplanationGraph, precision: Precision) -> Prepared:
    """Prepares a graph: converts it once, for batches of any size.

    Raises:
        CompilerError: OpenVINO cannot convert the graph, or this CPU lacks the precision.
        DisconnectedLayerError: The scores don't depend on one of the layers.
    """
    if not openvino_runtime.supports(precision):
        raise CompilerError(f"this CPU does not compute in {precision}")
    model = convert(graph)
    return openvino_runtime.CpuModel(model, output_names(graph), precision)


def output_names(graph: ExplanationGraph) -> tuple[str, ...]:
    """Returns the names of the outputs of a converted graph, in the order of ``explain``."""
    return graph_io.output_names(len(graph.key.layers))


def convert(graph: ExplanationGraph) -> openvino.Model:
    """Converts a graph for batches of any size.

    Returns:
        A model with inputs ``graph_io.INPUTS`` and outputs ``output_names``.

    Raises:
        CompilerError: OpenVINO does not know one of its operations.
        DisconnectedLayerError: The scores don't depend on one of the layers.
    """
    from openvino.tools.ovc import convert_model  # after openvino_runtime, which leaves it out

    try:
        frozen = _freeze(graph)
        inputs, outputs = (
            [tensor.name for tensor in tensors] for tensors in (frozen.inputs, frozen.outputs)
        )
        # Given the function instead of its graph, it would add inner tensors to the outputs.
        with _root_logger_kept():
            model = convert_model(frozen.graph, output=outputs)
        for old, name in zip(inputs, INPUTS, strict=True):
            model.input(old).set_names({name})
        for old, name in zip(outputs, output_names(graph), strict=True):
            model.output(old).set_names({name})
    except (CompilerError, DisconnectedLayerError):
        raise
    except Exception as error:
        unknown = _UNKNOWN.search(str(error))
        reason = quote(unknown[0] if unknown else error)
        raise CompilerError(f"OpenVINO cannot convert it: {reason}") from error
    return model


def _freeze(graph: ExplanationGraph) -> Any:
    """Traces a graph and makes constants of its weights, which OpenVINO folds.

    That also removes unused gradients, which OpenVINO may not know.
    """
    function = tf.function(
        _without_shapes_at_run_time(graph.explain),
        input_signature=graph.signature(None),
        autograph=False,
    ).get_concrete_function()
    _KEPT.append(function)
    frozen = convert_variables_to_constants_v2(function)
    if variables := [tensor.name for tensor in frozen.inputs[len(INPUTS) :]]:
        raise CompilerError(
            f"it reads inputs that cannot be made constants, such as tables: {', '.join(variables)}"
        )
    return frozen


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Restores the root logger, whose level, filters and handlers the converter changes."""
    root = logging.getLogger()
    before = root.level, root.filters[:], root.handlers[:]
    try:
        yield
    finally:
        root.setLevel(before[0])
        root.filters[:], root.handlers[:] = before[1:]


# Deleting a traced function after its copy in constants makes TensorFlow complain on stderr.
_KEPT: list[Any] = []

# With an unknown batch size, TensorFlow's gradients of arithmetic find out at run time which axes
# were broadcast, by operations that OpenVINO does not know. All sizes but the batch are known while
# tracing, so these gradients find out then.


def _without_shapes_at_run_time(explain: Any) -> Any:
    def traced(*arguments: tf.Tensor) -> Any:
        graph = tf.compat.v1.get_default_graph()
        with graph.gradient_override_map(_OVERRIDES):
            return explain(*arguments)

    return traced


def _fit(gradient: tf.Tensor, to: tf.Tensor) -> tf.Tensor:
    """Sums a gradient over the axes along which ``to`` was broadcast."""
    wanted, given = to.shape.as_list(), gradient.shape.as_list()
    leading = len(given) - len(wanted)
    axes = [
        axis
        for axis, (before, after) in enumerate(zip([1] * leading + wanted, given, strict=True))
        if before == 1 and after != 1
    ]
    if axes:
        gradient = tf.reduce_sum(gradient, axes, keepdims=True)
    return tf.squeeze(gradient, list(range(leading))) if leading else gradient


def _add(op: Any, gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x, y = op.inputs
    return _fit(gradient, x), _fit(gradient, y)


def _sub(op: Any, gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x, y = op.inputs
    return _fit(gradient, x), _fit(-gradient, y)


def _mul(op: Any, gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x, y = op.inputs
    return _fit(gradient * y, x), _fit(gradient * x, y)


def _div(op: Any, gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x, y = op.inputs
    return _fit(gradient / y, x), _fit(-gradient * op.outputs[0] / y, y)


def _squared_difference(op: Any, gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    x, y = op.inputs
    slope = 2.0 * gradient * (x - y)
    return _fit(slope, x), _fit(-slope, y)


# TensorFlow has operations for these gradients, which OpenVINO does not know either.


def _relu(op: Any, gradient: tf.Tensor) -> tf.Tensor:
    return tf.where(op.outputs[0] > 0, gradient, tf.zeros_like(gradient))


def _relu6(op: Any, gradient: tf.Tensor) -> tf.Tensor:
    inside = tf.logical_and(op.outputs[0] > 0, op.outputs[0] < 6)
    return tf.where(inside, gradient, tf.zeros_like(gradient))


def _sigmoid(op: Any, gradient: tf.Tensor) -> tf.Tensor:
    return gradient * op.outputs[0] * (1.0 - op.outputs[0])


def _rsqrt(op: Any, gradient: tf.Tensor) -> tf.Tensor:
    return -0.5 * gradient * op.outputs[0] ** 3


_GRADIENTS = {
    "Add": _add,
    "AddV2": _add,
    "Sub": _sub,
    "Mul": _mul,
    "RealDiv": _div,
    "SquaredDifference": _squared_difference,
    "Relu": _relu,
    "Relu6": _relu6,
    "Sigmoid": _sigmoid,
    "Rsqrt": _rsqrt,
}
_OVERRIDES = {operation: f"Gradcam{operation}" for operation in _GRADIENTS}
for _operation, _gradient in _GRADIENTS.items():
    ops.RegisterGradient(_OVERRIDES[_operation])(_gradient)
